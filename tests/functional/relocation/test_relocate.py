"""Real virtualenvs of every kind, relocated: nothing refers to the old path, and all works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relocate_core.errors import RelocateError
from relocate_core.relocation.relocate import relocate
from relocate_core.virtualenvs.contents import describe
from tests.support import checks, environments
from tests.support.environments import Environment, Project, differences, digest, make

PACKAGES = ("chardet", "pyflakes")
PACKAGES_2 = ("chardet<5", "pyflakes<2.3")
MODERN = (
    Project("alpha", entry_points=("alpha",), scripts=("alpha-script",)),
    Project("beta", entry_points=("beta",), layout="mapped"),
    Project("gamma", entry_points=("gamma",), mode="strict"),
    Project("delta", entry_points=("delta",), mode="compat"),
    Project("omega", entry_points=("omega",), mode="regular"),
)
DEVELOP = (Project("epsilon", entry_points=("epsilon",), scripts=("eps",), mode="develop"),)
KINDS = (
    *(f"venv-3.{minor}" for minor in range(8, 16)),
    *("virtualenv-16", "virtualenv-20", "virtualenv-21", "uv", "pypy3.9"),
)
SHAPES = (*checks.RELATED, *checks.SHAPES)
QUICK = {("venv-3.12", "same"), ("virtualenv-20", "long"), ("uv", "quotes")}
HASH = "4f2a9c1d" * 5
OWN = ("alpha", "beta", "gamma", "delta", "epsilon", "eps")


CASES = [  # every kind with every shape of path; the quick ones are a sample
    pytest.param(kind, shape, marks=() if (kind, shape) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for shape in SHAPES
    if (kind, shape) != ("virtualenv-16", "accents")  # refused, see below
]


def stand(stack: ExitStack, directory: Path, shape: str, kind: str, **options: Any) -> Environment:
    """Build a virtualenv and move it to a new path of some shape."""
    made = make(kind, directory / "carried", **options)
    path = stack.enter_context(checks.place(shape, made.old_prefix))
    shutil.move(made.path, path)
    return replace(made, path=path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What has to be undone after the test."""
    with ExitStack() as stack:
        yield stack


def pip_check(made: Environment) -> None:
    """Let pip (or uv, where there is no pip) look whether all that is installed fits together."""
    if made.kind == "uv":
        environments.uv("pip", "check", "-p", made.executable)
    elif not describe(made.path)["system_site_packages"]:  # what the system has may not fit
        made.run("-m", "pip", "check")


def assert_relocated(made: Environment) -> None:
    """All programs run, and those of the projects print paths inside the virtualenv."""
    scripts = checks.console_scripts(made.path)
    assert {"chardetect", "pyflakes"} <= set(scripts)
    for name in scripts:
        said = checks.run_script(made.path, name, "--help")
        if name.split("-")[0] in OWN:
            here, prefix = said.splitlines()
            assert here.startswith(f"{made.path}/"), said
            assert prefix == made.path
    pip_check(made)
    assert made.run("-c", "import sys; print(sys.prefix)").strip() == made.path


def assert_moves(made: Environment, home: str) -> None:
    """Relocate, use, repeat, and go back."""
    before = digest(made.path, times="files")
    mismatches = checks.record_mismatches(made.path)
    report = relocate(made.path)
    assert report.changed
    assert made.old_prefix in report.old_prefixes
    left = checks.named(made.path, made.old_prefix, made.path)
    assert left == [], report.problems
    assert report.problems == []
    assert checks.record_mismatches(made.path) <= mismatches
    assert not [path for path in digest(made.path) if ".relocating-" in path]

    after, timed = digest(made.path), digest(made.path, times="files")
    again = relocate(made.path)
    assert (again.changed, again.problems) == (False, [])
    assert digest(made.path) == after
    back = relocate(made.path, made.old_prefix)
    assert back.problems == []
    assert differences(before, digest(made.path, times="files")) == {}
    relocate(made.path)
    assert differences(timed, digest(made.path, times="files")) == {}
    assert_relocated(made)  # last, as it writes bytecode
    activated = checks.activated("bash", made.path, home)
    assert activated == [made.path, f"{made.path}/bin/python"]


def projects_of(kind: str) -> tuple[Project, ...]:
    """What can be installed editable there."""
    if kind == "virtualenv-16":
        return DEVELOP
    # There, pip still installs by `setup.py develop`, which knows of no mapped directories.
    modern = [each for each in MODERN if kind != "venv-3.8" or each.layout != "mapped"]
    return (*modern, *DEVELOP)


@pytest.mark.few(1, slow=24)
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_moved_virtualenv_works(kind: str, shape: str, stack: ExitStack, tmp_path: Path) -> None:
    made = stand(
        *(stack, tmp_path, shape, kind),
        packages=PACKAGES_2 if kind == "virtualenv-16" else PACKAGES,
        projects=projects_of(kind),
        old=HASH if shape == "same" else "venv",
    )
    assert_moves(made, str(tmp_path))


# --- one kind, its variants -----------------------------------------------------------------------


@pytest.mark.parametrize("shell", checks.SHELLS)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        pytest.param("venv-3.11", "quotes", marks=pytest.mark.slow),
        pytest.param("venv-3.12", "dollar", marks=pytest.mark.slow),
        pytest.param("virtualenv-20", "space", marks=pytest.mark.slow),
        ("virtualenv-21", "quotes"),
        ("uv", "accents"),
    ],
)
def test_activation(kind: str, shape: str, shell: str, stack: ExitStack, tmp_path: Path) -> None:
    made = stand(stack, tmp_path, shape, kind)
    relocate(made.path)
    assert checks.activated(shell, made.path, str(tmp_path)) == [
        *(made.path, f"{made.path}/bin/python")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"copies": True}, {"system_site_packages": True}])
def test_variants(options: dict[str, Any], stack: ExitStack, tmp_path: Path) -> None:
    made = stand(stack, tmp_path, "shorter", "venv-3.11", packages=PACKAGES, **options)
    assert_moves(made, str(tmp_path))


def test_the_prompt(stack: ExitStack, tmp_path: Path) -> None:
    """The default one is the directory's name and follows it; a chosen one stays."""
    followed = stand(stack, tmp_path / "a", "space", "venv-3.11")
    relocate(followed.path)
    assert "(my virtual env) " in Path(followed.bin("activate")).read_text()
    chosen = stand(stack, tmp_path / "b", "space", "venv-3.11", prompt="venv")
    relocate(chosen.path)
    assert "(venv) " in Path(chosen.bin("activate")).read_text()


def test_uv_relocatable(stack: ExitStack, tmp_path: Path) -> None:
    made = stand(
        *(stack, tmp_path, "quotes", "uv"),
        packages=PACKAGES,
        projects=(Project("alpha", entry_points=("alpha",)),),
        relocatable=True,
    )
    relocate(made.path, old_path=made.old_prefix)
    assert checks.named(made.path, made.old_prefix, made.path) == []
    assert_relocated(made)


def test_a_symlink_to_it_is_not_its_path(tmp_path: Path) -> None:
    """What is started from `current` would find another release there after the next switch."""
    made = make("venv-3.11", tmp_path / "4f2a9c1")
    current = tmp_path / "current"
    current.symlink_to("4f2a9c1")
    assert relocate(str(current)).prefix == made.path
    assert checks.named(made.path, str(current), made.path) == []


def test_python_2_is_kept_to_ascii(tmp_path: Path) -> None:
    """It refuses a script with anything else in its first line (PEP 263)."""
    made = make("virtualenv-16", tmp_path / "venv")
    before = digest(made.path)
    with pytest.raises(RelocateError, match="choose another path"):
        relocate(made.path, "/srv/gr\u00fcn")
    assert digest(made.path) == before


# --- where the known tools stop -------------------------------------------------------------------


def test_bytecode_of_another_python(tmp_path: Path) -> None:
    """Left by a Python that looked in: virtualenv-tools3 dies of it, half done."""
    made = make("venv-3.11", tmp_path / "venv", packages=("chardet",))
    others = [found for v in ("3.8", "3.12", "3.13") if (found := environments.interpreter(v))]
    if not others:
        pytest.skip("no other Python is on this machine")
    build = Path(made.old_prefix)
    build.parent.mkdir(parents=True)
    try:
        shutil.move(made.path, build)
        for other in others:
            environments.run(
                *(other, "-m", "compileall", "-q"), f"{build}/lib/python3.11/site-packages/chardet"
            )
        shutil.move(build, made.path)
    finally:
        shutil.rmtree(build.parent)
    before = digest(made.path, times="files")
    report = relocate(made.path)
    assert report.problems == []
    assert checks.named(made.path, made.old_prefix, made.path) == []
    relocate(made.path, made.old_prefix)
    assert differences(before, digest(made.path, times="files")) == {}


def test_broken_bytecode_is_left_and_reported(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv")
    cache = Path(made.site_packages, "pip", "__pycache__")
    good = (cache / "__init__.cpython-311.pyc").read_bytes()
    reference = made.old_prefix.encode()
    broken = {
        "cut.cpython-311.pyc": good[: good.rindex(reference) + len(reference) + 3],
        "junk.cpython-311.pyc": good[:16] + b"\xee" * 20 + reference,
        "text.cpython-311.pyc": b"nothing of the kind: " + reference,
    }
    for name, data in broken.items():
        (cache / name).write_bytes(data)
    report = relocate(made.path)
    named = {path.rpartition("/")[2]: reason for path, reason in report.problems}
    for name, data in broken.items():
        # Whatever becomes of it, it is not silently half done.
        assert name in named or reference not in (cache / name).read_bytes()
        assert name not in named or (cache / name).read_bytes() == data
    assert made.run("-c", "import pip; print(pip.__file__)").startswith(made.path)


def test_lines_of_pth_files_that_point_outside(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    pth = Path(made.site_packages, "paths.pth")
    pth.write_bytes(
        b"/usr/share/outside\n../relative\n# \xff\n"
        + f"{made.old_prefix}/src\n{made.old_prefix}2/src\nimport os # no end of line".encode()
    )
    relocate(made.path)
    assert pth.read_bytes() == (
        b"/usr/share/outside\n../relative\n# \xff\n"
        + f"{made.path}/src\n{made.old_prefix}2/src\nimport os # no end of line".encode()
    )


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        pytest.param(version, mode, marks=pytest.mark.slow if mode in other else ())
        # SipHash has other rounds since Python 3.11.
        for version, other in (
            ("3.8", ("UNCHECKED_HASH",)),
            ("3.10", ("CHECKED_HASH", "UNCHECKED_HASH")),
            ("3.11", ()),
            ("3.12", ("CHECKED_HASH", "UNCHECKED_HASH")),
            ("3.13", ("UNCHECKED_HASH",)),
        )
        for mode in ("TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH")
    ],
)
@pytest.mark.few(2)
def test_python_imports_the_new_value(version: str, mode: str, tmp_path: Path) -> None:
    """Paths of one length: the source's time and size stay, so Python trusts the old bytecode."""
    old = "0" * 40
    compile_ = (
        "import py_compile, sys; name = sys.argv[1]\n"
        "open(name, 'w').write('PLACE = %r\\n' % sys.argv[2])\n"
        f"mode = py_compile.PycInvalidationMode.{mode}\n"
        "py_compile.compile(name, invalidation_mode=mode)"
    )
    made = make(
        *(f"venv-{version}", tmp_path / "carried"),
        old=old,
        commands=[
            [
                *("{prefix}/bin/python", "-c", compile_),
                *(f"{{prefix}}/lib/python{version}/site-packages/place.py", "{prefix}/etc"),
            ]
        ],
    )
    with checks.place("same", made.old_prefix) as path:
        assert len(path) == len(made.old_prefix)
        shutil.move(made.path, path)
        relocate(path)
        moved = replace(made, path=path)
        assert moved.run("-B", "-c", "import place; print(place.PLACE)") == f"{path}/etc\n"
