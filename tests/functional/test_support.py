"""The tests' own tools: real virtualenvs, and oracles that notice what they must notice."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable

import pytest

from tests.support import environments
from tests.support.environments import Project, differences, digest, make, references

ONE_SCRIPT = Project("tiny", entry_points=("tiny",), mode="regular")


def test_the_interpreter_is_the_one_asked_for() -> None:
    for version in (*environments.VERSIONS, "2.7", "pypy3.9"):
        found = environments.interpreter(version)
        if found is not None:
            python = environments.probe(found)
            assert python is not None
            assert python.name == version
            assert not python.virtual


def test_a_missing_python_skips_with_a_reason() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^Python 3\.99 is not on this machine$"):
        environments.require("3.99")


def test_tools_write_bytecode_whatever_the_tests_run_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert not {"PYTHONDONTWRITEBYTECODE", "SOURCE_DATE_EPOCH"} & set(environments.environ())


@pytest.mark.parametrize("kind", environments.KINDS)
@pytest.mark.few(5)
def test_a_virtualenv_is_carried_and_its_old_path_is_gone(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "new")
    assert not os.path.lexists(made.old_prefix)
    assert made.run("-c", "import sys; print(sys.prefix)").strip() == str(tmp_path / "new")
    named = references(made.path, made.old_prefix)
    assert "bin/activate" in named
    if kind != "uv":
        assert "bin/pip" in named
    if kind.startswith("venv-") and kind != "venv-3.6":
        assert any(path.endswith(".pyc") for path in named)


def test_the_second_copy_comes_from_the_cache(tmp_path: Path) -> None:
    environments.require("3.11")
    first, second = (make("venv-3.11", tmp_path / name) for name in "ab")
    assert first.old_prefix == second.old_prefix
    assert digest(first.path) == digest(second.path)


def test_the_old_path_may_hold_anything(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "new", old="a 'b' \"c\"/grün/my venv")
    assert made.old_prefix.endswith("/a 'b' \"c\"/grün/my venv")
    assert "pyvenv.cfg" in references(made.path, made.old_prefix)


@pytest.mark.parametrize("kind", ["venv-3.11", "virtualenv-16", "virtualenv-20", "virtualenv-21"])
def test_copies_and_prompt(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "new", copies=True, prompt="a prompt", system_site_packages=True)
    assert not os.path.islink(os.path.realpath(made.executable))
    assert os.path.realpath(made.executable).startswith(str(tmp_path))
    assert "bin/activate" in references(made.path, "a prompt")


def test_uv_relocatable_names_no_path(tmp_path: Path) -> None:
    made = make("uv", tmp_path / "new", relocatable=True, seed=True)
    assert references(made.path, made.old_prefix) == []
    assert b"dirname" in Path(made.bin("pip")).read_bytes()


@pytest.mark.parametrize(
    ("mode", "layout", "expected"),
    [
        ("default", "src", "__editable__.tiny-1.0.pth"),
        ("default", "mapped", "__editable___tiny_1_0_finder.py"),
        ("strict", "flat", "__editable__.tiny-1.0.pth"),
        ("compat", "flat", "__editable__.tiny-1.0.pth"),
        ("develop", "src", "easy-install.pth"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.few(3)
def test_editable_projects(
    mode: str, layout: str, expected: str, inside: bool, tmp_path: Path
) -> None:
    tiny = Project(
        "tiny",
        scripts=("tiny-script",),
        entry_points=("tiny-entry",),
        layout=layout,
        mode=mode,
        inside=inside,
    )
    made = make("venv-3.11", tmp_path / "new", projects=[tiny])
    home = os.path.join(made.old_prefix, "src") if inside else made.outside
    named = references(made.path, os.path.join(home, "tiny"))
    assert os.path.relpath(os.path.join(made.site_packages, expected), made.path) in named
    if mode == "develop":
        assert "bin/tiny-script" in named
        assert any(path.endswith("tiny.egg-link") for path in named)
    if mode == "strict":
        assert any(os.path.islink(os.path.join(made.path, path)) for path in named) == inside
    assert "bin/tiny-entry" in references(made.path, made.old_prefix)


@pytest.mark.parametrize("kind", ["venv-3.6", "virtualenv-16", "uv", "pypy3.9"])
def test_console_scripts(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "new", projects=[ONE_SCRIPT])
    head = Path(made.bin("tiny")).read_bytes().splitlines()[0]
    assert head.startswith(b"#!" + os.fsencode(made.old_prefix) + b"/bin/python")


def test_commands_run_at_the_old_path(tmp_path: Path) -> None:
    code = "import os; open('where', 'w').write(os.getcwd())"
    made = make("venv-3.11", tmp_path / "new", commands=[("{prefix}/bin/python", "-c", code)])
    assert (tmp_path / "new" / "where").read_text() == made.old_prefix


@pytest.mark.slow
def test_a_failing_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOCATE_TEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RELOCATE_TEST_BUILD", str(tmp_path / "build"))
    with pytest.raises(environments.BuildError):
        make("venv-3.11", tmp_path / "new", commands=[("false",)])
    assert os.listdir(tmp_path / "build") == []
    assert os.listdir(tmp_path / "cache" / "environments") == []
    assert not (tmp_path / "new").exists()


def test_an_unknown_kind_or_option_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such kind"):
        make("venv", tmp_path / "new")
    environments.require("3.11")
    with pytest.raises(ValueError, match="no such option"):
        make("venv-3.11", tmp_path / "new", relocatable=True)


# -- references -----------------------------------------------------------------------------------


def test_references_are_bytes_in_files_and_link_targets(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "binary").write_bytes(b"\0\xff/old/venv\0")
    (tmp_path / "link").symlink_to("/old/venv/gone")
    (tmp_path / "other").write_bytes(b"/old/ven")
    (tmp_path / "loop").symlink_to(".")
    assert references(tmp_path, "/old/venv") == ["link", "sub/binary"]
    assert references(tmp_path, b"\xff/old") == ["sub/binary"]


# -- digest ---------------------------------------------------------------------------------------


def tree(root: Path) -> Path:
    """A small tree with one of each."""
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(b"content")
    (root / "link").symlink_to("sub/file")
    return root


def rewrite(path: Path, data: bytes) -> None:
    """Change the content only: same size, same times."""
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def relink(path: Path) -> None:
    """Another target of the same length, same times."""
    status, parent = path.lstat(), path.parent.stat()
    target = os.readlink(path)
    path.unlink()
    path.symlink_to(target[:-1] + "X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: None, {}),
        (lambda root: rewrite(root / "sub/file", b"CONTENT"), {"sub/file": ("content",)}),
        (lambda root: os.utime(root / "sub/file", ns=(1, 1)), {"sub/file": ("mtime_ns",)}),
        (lambda root: os.utime(root / "sub", ns=(1, 1)), {"sub": ("mtime_ns",)}),
        (lambda root: os.utime(root, ns=(1, 1)), {".": ("mtime_ns",)}),
        (
            lambda root: os.utime(root / "link", ns=(1, 1), follow_symlinks=False),
            {"link": ("mtime_ns",)},
        ),
        (lambda root: (root / "sub/file").chmod(0o4755), {"sub/file": ("mode",)}),
        (lambda root: (root / "sub").chmod(0o700), {"sub": ("mode",)}),
        (lambda root: relink(root / "link"), {"link": ("content",)}),
        (lambda root: (root / "new").write_bytes(b""), {".": ("mtime_ns",), "new": ("added",)}),
        (lambda root: (root / "link").unlink(), {".": ("mtime_ns",), "link": ("removed",)}),
    ],
)
def test_digest_notices(
    change: Callable[[Path], object], expected: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    root = tree(tmp_path / "tree")
    os.utime(root, ns=(10**18, 10**18))
    before = digest(root)
    change(root)
    assert differences(before, digest(root)) == expected


def test_digest_can_leave_times_out(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    files, none = digest(root, times="files"), digest(root, times="none")
    os.utime(root / "sub", ns=(1, 1))
    assert digest(root, times="files") == files
    os.utime(root / "sub/file", ns=(1, 1))
    assert set(differences(files, digest(root, times="files"))) == {"sub/file"}
    assert digest(root, times="none") == none


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
def test_digest_notices_xattrs(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    before = digest(root)
    try:
        os.setxattr(root / "sub/file", "user.note", b"1")
    except OSError as error:
        pytest.skip(f"no extended attributes on this file system: {error}")
    assert differences(before, digest(root)) == {"sub/file": ("xattrs",)}
    copied = environments.copy(root, tmp_path / "copy")
    assert digest(copied) == digest(root)


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 on macOS")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff"
    with open(name, "wb") as handle:
        handle.write(b"/old/venv")
    assert references(tmp_path, "/old/venv") == ["\udcff"]
    assert "\udcff" in digest(tmp_path)
