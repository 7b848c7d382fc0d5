"""Virtualenvs carried to a machine whose Python lives elsewhere, put onto that one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from relocate_core.errors import InterpreterMismatch, InterpreterNotFound, RelocateError
from relocate_core.relocation import reinitialize as reinitialization
from relocate_core.relocation.check import check
from relocate_core.relocation.reinitialize import reinitialize
from relocate_core.virtualenvs import discovery, interpreter
from tests.support import environments
from tests.support.environments import Environment, copy, differences, digest, make
from tests.support.fuzz import stride
from tests.support.steps import Steps, in_child, temporaries

GONE = "/opt/gone"
KINDS = (
    *("venv-3.8", "venv-3.9", "venv-3.10", "venv-3.11", "venv-3.12", "venv-3.13"),
    *("virtualenv-16", "virtualenv-20", "virtualenv-21", "uv", "pypy3.9"),
)
QUICK = ("venv-3.11", "virtualenv-20", "virtualenv-16", "uv")
ALL = [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS]


def base_of(made: Environment) -> str:
    """Where the base Python of a virtualenv lives, as that says itself."""
    ask = "import sys; print(getattr(sys, 'real_prefix', getattr(sys, 'base_prefix', '')))"
    return made.run("-c", ask).strip()


def carry(made: Environment) -> str:
    """Make all links and files refer to a base Python that is not here; return the real one.

    That is what a virtualenv looks like that was built where Python lies in another directory.
    """
    base = base_of(made)
    directories = {base, os.path.dirname(os.path.dirname(os.path.realpath(made.python)))}
    directories |= {os.path.dirname(os.path.dirname(made.python))}
    for directory, directories_, names in os.walk(made.path):
        for name in (*directories_, *names):
            path = os.path.join(directory, name)
            if os.path.islink(path):
                target = os.readlink(path)
                for old in directories:
                    if target.startswith(f"{old}/"):
                        os.unlink(path)
                        os.symlink(GONE + target[len(old) :], path)
                        break
    for name in (
        "pyvenv.cfg",
        *(f"lib/{n}/orig-prefix.txt" for n in os.listdir(f"{made.path}/lib")),
    ):
        path = os.path.join(made.path, name)
        if os.path.isfile(path):
            text = Path(path).read_text()
            for old in sorted(directories, key=len, reverse=True):
                text = text.replace(f"{old}/", f"{GONE}/").replace(f"= {old}\n", f"= {GONE}\n")
                text = GONE if text.strip() == old else text
            Path(path).write_text(text)
    return base


def links_to(tree: str, needle: str) -> list[str]:
    """Links whose target holds a string."""
    return [p for p, f in digest(tree).items() if f.type == "link" and needle in f.content]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("copies", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.few(2)
def test_put_onto_this_machines_python(kind: str, copies: bool, tmp_path: Path) -> None:
    if copies and kind in ("uv", "pypy3.9"):
        pytest.skip("uv has no --copies, and that of a packaged PyPy copies all of /usr")
    made = make(kind, tmp_path / "venv", copies=copies)
    base = carry(made)
    if not os.path.exists(made.executable):
        with pytest.raises((environments.BuildError, OSError)):
            made.run("-c", "")
        assert check(made.path).problems[0].kind == "interpreter"
    before = digest(made.path)
    foretold = reinitialize(made.path, made.python, dry_run=True)
    assert foretold.changed
    assert digest(made.path) == before
    report = reinitialize(made.path, made.python)
    assert report.files == foretold.files
    assert report.version == made.version
    assert links_to(made.path, GONE) == []
    assert base_of(made) == base
    made.run("-c", "import os, ssl, json")
    if os.path.isfile(f"{made.path}/pyvenv.cfg"):
        lines = Path(made.path, "pyvenv.cfg").read_text().splitlines()
        # `command` is history: it refers to the Python that the virtualenv was made with.
        assert not [row for row in lines if GONE in row and not row.startswith("command")]
    assert not [p for p in check(made.path).problems if p.kind in ("interpreter", "link")]
    after = digest(made.path)
    assert not reinitialize(made.path, made.python).changed
    assert digest(made.path) == after
    assert temporaries(made.path) == []


def test_found_by_itself_by_name_and_by_version(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    carry(made)
    directory = tmp_path / "bin"
    directory.mkdir()
    for python in (None, "3.11", "python3.11", "my-python", str(directory / "my-python")):
        tree = copy(made.path, tmp_path / "tree")
        with pytest.MonkeyPatch.context() as patch:
            if not (directory / "my-python").exists():
                os.symlink(made.python, directory / "my-python")
                os.symlink(made.python, directory / "python3.11")
            patch.setenv("PATH", f"{directory}:/usr/bin")
            report = reinitialize(tree, python)
        assert report.changed
        assert report.version.startswith("3.11.")
        assert environments.run(f"{tree}/bin/python", "-c", "import sys; print(sys.prefix)") == (
            f"{tree}\n"
        )
        shutil.rmtree(tree)


def refuses(tree: str, python: str | None, expected: type[RelocateError], text: str) -> None:
    """It says why, in one line, and changes nothing."""
    before = digest(tree)
    with pytest.raises(expected, match=text) as caught:
        reinitialize(tree, python)
    assert "\n" not in str(caught.value)
    assert digest(tree) == before


def test_refused(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", packages=("markupsafe",))
    tree = made.path
    refuses(tree, "/nonexistent/python", InterpreterNotFound, "does not run: no such file")
    refuses(tree, "no-such-python", InterpreterNotFound, "there is no no-such-python on this")
    refuses(tree, "9.9", InterpreterNotFound, r"there is no python9\.9 on this machine's PATH")
    refuses(tree, "/bin/true", InterpreterNotFound, "is no Python that runs here")
    refuses(tree, "/bin/false", InterpreterNotFound, "is no Python that runs here")
    for version, name in (("3.12", "Python 3.12"), ("pypy3.9", "PyPy 3.9"), ("2.7", "Python 2.7")):
        other = environments.interpreter(version)
        if other is not None:
            text = f"it is {name} and the virtualenv is for Python 3.11; these compiled modules"
            refuses(
                tree, other, InterpreterMismatch, f"{text} would not load: markupsafe._speedups"
            )


def test_another_abi_of_the_same_version(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    for name in ("one", "two", "three", "four"):
        Path(made.site_packages, f"{name}.cpython-311d-x86_64-linux-gnu.so").touch()
    text = "its ABI is another; these compiled modules would not load: four, one, three and 1 more"
    refuses(made.path, made.python, InterpreterMismatch, text)
    # No tag, or one that this Python loads as well: that is fine.
    Path(made.site_packages, "libplain.so").touch()
    for name in ("one", "two", "three", "four"):
        Path(made.site_packages, f"{name}.abi3.so").touch()
    assert reinitialize(made.path, made.python).version == made.version


def test_none_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("venv-3.12", tmp_path / "venv", without_pip=True)
    carry(made)
    monkeypatch.setattr(discovery, "USUAL_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    refuses(made.path, None, InterpreterNotFound, r"needs Python 3\.12, and none was found on this")


def test_a_failing_proof_puts_everything_back(tmp_path: Path) -> None:
    """A Python that answers, but not from inside a virtualenv."""
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    carry(made)
    liar = tmp_path / "python3.11"
    liar.write_text(
        "#!/bin/sh\n"
        f'case "$0" in {made.path}/*) echo "no: cannot run there" >&2; exit 3;; esac\n'
        f'exec {made.python} "$@"\n'
    )
    liar.chmod(0o755)
    before = digest(made.path, times="files")
    real = interpreter.probe(made.python)
    with pytest.MonkeyPatch.context() as patch:
        found = real.__class__(**{**vars(real), "executable": str(liar)})
        patch.setattr(reinitialization, "find_named", lambda python: found)
        with pytest.raises(
            InterpreterNotFound, match="is no Python that runs here: no: cannot run"
        ):
            reinitialize(made.path, str(liar))
    assert differences(before, digest(made.path, times="files")) == {}
    assert temporaries(made.path) == []


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        ("venv-3.11", 7),
        ("virtualenv-16", 60),  # which has hundreds of steps, as it brings its own library
        pytest.param("venv-3.11", stride(2), id="venv-3.11-more", marks=pytest.mark.slow),
        pytest.param("virtualenv-16", stride(3), id="virtualenv-16-more", marks=pytest.mark.slow),
    ],
)
@pytest.mark.few(1)
def test_killed_after_a_step(kind: str, every: int, tmp_path: Path) -> None:
    """Other ones each time; a fault is reported with its step."""
    made = make(kind, tmp_path / "venv")
    carry(made)
    whole = copy(made.path, tmp_path / "whole")
    reinitialize(whole, made.python)
    expected = digest(whole, times="none")
    first = random.SystemRandom().randrange(every) + 1
    for step in range(first, 10_000, every):
        tree = copy(made.path, tmp_path / "tree")
        code = in_child(lambda tree=tree: reinitialize(tree, made.python), Steps(step))  # type: ignore[misc]
        reinitialize(tree, made.python)
        assert temporaries(tree) == [], step
        assert differences(expected, digest(tree, times="none")) == {}, step
        shutil.rmtree(tree)
        if code == 0:
            assert step > 7
            return
        assert code == 9


@pytest.mark.parametrize("name", ["write", "rename", "symlink", "open"])
@pytest.mark.few(1)
def test_a_failing_disk(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("venv-3.11", tmp_path / "venv", copies=name == "write", without_pip=True)
    carry(made)
    if name == "write":
        Path(made.executable).write_bytes(b"\x7fELF and no more")
    before = digest(made.path, times="files")
    for number in range(1, 1000):
        with monkeypatch.context() as patch:
            Steps(fail=(name, number, errno.EIO)).install(patch.setattr)
            failure = None
            try:
                reinitialize(made.path, made.python)
            except RelocateError as error:
                failure = str(error)
        if failure is None:
            assert number > 1
            return
        assert "input/output error" in failure
        assert differences(before, digest(made.path, times="files")) == {}, number


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_works_without_network(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    carry(made)
    command = ["unshare", "-n", "true"]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run(
        [
            "unshare",
            "-n",
            *environments_cli(),
            "--reinitialize",
            "--python",
            made.python,
            made.path,
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Reinitialized: ")


def environments_cli() -> list[str]:
    """The command."""
    import sys

    return [sys.executable, "-m", "relocate_core"]
