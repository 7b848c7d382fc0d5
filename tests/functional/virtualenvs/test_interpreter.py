"""Archives that bring something to run in the place of Python, or for Python to run at its start.

Root asks a release's Python what it is before the release counts. Whatever would then run besides
the base Python does not run as root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from relocate_core import check, publish, reinitialize
from relocate_core.errors import CannotRun, RelocateError

NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


def base() -> str | None:
    """A Python that everybody can run."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError):
            if not subprocess.run([python, "-c", ""], cwd="/", check=False, **NOBODY).returncode:
                return os.path.realpath(python)
    return None


BASE = (base() if os.geteuid() == 0 else None) or ""
VERSION = os.path.basename(BASE)
pytestmark = pytest.mark.skipif(
    not re.fullmatch(r"python3\.\d+", VERSION),
    reason="this is about what root runs, and needs a Python that others can run as well",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that nobody but root can write to, and everybody can enter."""
    directory = Path(tempfile.mkdtemp(prefix="relocate-test-", dir="/var/lib"))
    directory.chmod(0o755)
    ran = directory / "ran"
    ran.touch()
    ran.chmod(0o666)
    yield directory
    shutil.rmtree(directory)


def library(directory: Path, ran: Path) -> None:
    """A standard library of its own, which writes down who runs it."""
    stdlib = Path(os.path.dirname(os.path.dirname(BASE)), "lib", VERSION)
    directory.mkdir(parents=True)
    for name in ("encodings", "collections", "re", "importlib"):
        if (stdlib / name).is_dir():
            shutil.copytree(stdlib / name, directory / name, dirs_exist_ok=True)
    for file in stdlib.glob("*.py"):
        shutil.copy(file, directory)
    (directory / "lib-dynload").mkdir()
    with (directory / "encodings" / "__init__.py").open("a") as file:
        file.write(
            "\nimport posix as _posix\n"
            f"_ran = _posix.open({str(ran)!r}, _posix.O_WRONLY | _posix.O_APPEND)\n"
            "_posix.write(_ran, b'%d\\n' % _posix.getuid())\n"
        )


def a_copy(tree: Path, ran: Path) -> None:
    shutil.copy(BASE, tree / "bin" / "python")
    library(tree / "lib" / VERSION, ran)


def a_copy_without_home(tree: Path, ran: Path) -> None:
    a_copy(tree, ran)
    (tree / "pyvenv.cfg").write_text("version = 3.11.2\n")


def a_home_in_the_archive(tree: Path, ran: Path) -> None:
    """Named by a pyvenv.cfg in a place where Python looks as well."""
    (tree / "bin" / "python").symlink_to(BASE)
    (tree / "evil" / "bin").mkdir(parents=True)
    library(tree / "evil" / "lib" / VERSION, ran)
    (tree / "bin" / "pyvenv.cfg").write_text(f"home = {tree.parent}/srv/1/evil/bin\n")


def a_second_home(tree: Path, ran: Path) -> None:
    (tree / "bin" / "python").symlink_to(BASE)
    (tree / "evil" / "bin").mkdir(parents=True)
    library(tree / "evil" / "lib" / VERSION, ran)
    (tree / "pyvenv.cfg").write_text(
        f"\u00a0home = {tree.parent}/srv/1/evil/bin\nhome = {os.path.dirname(BASE)}\n"
    )


def a_program(tree: Path, ran: Path) -> None:
    (tree / "bin" / "python").symlink_to("other")
    (tree / "bin" / "other").write_text(f'#!/bin/sh\nid -u >> {ran}\nexec {BASE} "$@"\n')
    (tree / "bin" / "other").chmod(0o755)
    (tree / "pyvenv.cfg").write_text(f"home = {os.path.dirname(BASE)}\n")


def a_program_that_leaves_another_one(tree: Path, ran: Path) -> None:
    a_program(tree, ran)
    (tree / "bin" / "other").write_text(
        f'#!/bin/sh\n(sleep 2; id -u >> {ran}; echo late >> {ran}) &\nexec {BASE} "$@"\n'
    )


def a_program_that_prints_anything(tree: Path, ran: Path) -> None:
    a_program(tree, ran)
    (tree / "bin" / "other").write_text(f"#!/bin/sh\nid -u >> {ran}\necho '[{{}}]'\n")


CASES = (
    a_copy,
    a_copy_without_home,
    a_home_in_the_archive,
    a_second_home,
    a_program,
    a_program_that_leaves_another_one,
    a_program_that_prints_anything,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.few(3)
def test_root_does_not_run_what_an_archive_brings(
    place: Path, case: Callable[[Path, Path], None]
) -> None:
    ran = place / "ran"
    tree = place / "build"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib" / VERSION / "site-packages").mkdir(parents=True)
    shutil.rmtree(tree / "lib")
    case(tree, ran)
    (tree / "lib" / VERSION / "site-packages").mkdir(parents=True, exist_ok=True)
    activate = tree / "bin" / "activate"
    activate.write_text(f'VIRTUAL_ENV="{tree}"\nexport VIRTUAL_ENV\n')
    with tarfile.open(place / "1.tar", "w") as tar:
        tar.add(tree, ".")
    shutil.rmtree(tree)
    os.makedirs(place / "srv")
    release = place / "srv" / "1"
    with suppress(RelocateError):  # either is right: it is refused, or run by somebody else
        publish(str(place / "1.tar"), str(release), python=BASE)
        check(str(release))
    assert "0" not in ran.read_text().split(), ran.read_text()
    assert "late" not in ran.read_text()


def test_a_copy_that_is_what_it_should_be_runs(place: Path) -> None:
    """What is refused to root is not refused: it runs as nobody."""
    tree = place / "build"
    subprocess.run([BASE, "-m", "venv", "--copies", "--without-pip", tree], check=True)
    with tarfile.open(place / "1.tar", "w") as tar:
        tar.add(tree, ".")
    os.makedirs(place / "srv")
    release = str(place / "srv" / "1")
    publish(str(place / "1.tar"), release, python=BASE)
    assert check(release).ok


def test_a_python_of_somebody_else_is_run_as_them(place: Path) -> None:
    tree = place / "theirs"
    subprocess.run([BASE, "-m", "venv", "--without-pip", tree], check=True)
    (tree / "bin" / "python").unlink()
    (tree / "bin" / "python").write_text(
        f'#!/bin/sh\nid -u >> {place}/ran\nexec {tree}/bin/{VERSION} "$@"\n'
    )
    (tree / "bin" / "python").chmod(0o755)
    for directory, _, names in os.walk(tree):
        for name in (".", *names):
            os.chown(os.path.join(directory, name), 4321, 4321, follow_symlinks=False)
    check(str(tree))
    assert set((place / "ran").read_text().split()) == {"4321"}


def build(place: Path, *options: str) -> str:
    """An archive of a real virtualenv; its path."""
    tree = place / "build"
    subprocess.run([BASE, "-m", "venv", "--without-pip", *options, tree], check=True)
    return packed(place, tree)


def packed(place: Path, tree: Path) -> str:
    with tarfile.open(place / "1.tar", "w") as tar:
        tar.add(tree, ".")
    shutil.rmtree(tree)
    return str(place / "1.tar")


@pytest.mark.parametrize("owner", [None, (4321, 4321)])
def test_a_base_that_only_root_can_run(place: Path, owner: tuple[int, int] | None) -> None:
    """It is probed all the same: who owns a release need not be who runs it."""
    closed = place / "closed"
    closed.mkdir(0o700)
    (closed / VERSION).symlink_to(BASE)
    os.makedirs(place / "srv")
    release = place / "srv" / "1"
    publish(build(place), str(release), python=str(closed / VERSION), owner=owner)
    assert release.stat().st_uid == (owner or (0, 0))[0]


def test_a_copy_of_a_base_that_only_root_can_run(place: Path) -> None:
    """It would look for its library in the archive; root runs it only where that is asked for."""
    closed = place / "closed"
    closed.mkdir(0o700)
    (closed / VERSION).symlink_to(BASE)
    os.makedirs(place / "srv")
    archive, release = build(place, "--copies"), str(place / "srv" / "1")
    with pytest.raises(CannotRun, match=rf"nobody may not enter {closed}; open it"):
        publish(archive, release, python=str(closed / VERSION))
    assert publish(archive, release, python=str(closed / VERSION), owner=(0, 0)).changed


@pytest.fixture
def closed(place: Path) -> Path:
    """The root of the releases, where only root can enter; an archive is beside it."""
    (place / "srv").mkdir(0o700)
    tree = place / "build"
    subprocess.run([BASE, "-m", "venv", "--without-pip", tree], check=True)
    (tree / "bin" / "python").unlink()
    a_program(tree, place / "ran")
    packed(place, tree)
    return place / "srv" / "app"


def refused(function: Callable[[], object], place: Path) -> None:
    """In one sentence, and nothing of it has run."""
    with pytest.raises(CannotRun) as caught:
        function()
    words = str(caught.value)
    assert re.fullmatch(
        rf"{place}/srv/app/1/bin/python is not run: root runs nothing from an archive, and the "
        rf"user \w+ may not enter {place}/srv/app/1; open it and the directories above it to that "
        r"user \(chmod o\+x\), or deploy it with user=root if root should run it",
        words,
    )
    assert (place / "ran").read_text() == ""


@pytest.mark.parametrize("owner", [None, (4321, 4321)])
def test_a_root_that_only_root_may_enter(
    place: Path, closed: Path, owner: tuple[int, int] | None
) -> None:
    release = str(closed / "1")
    refused(lambda: publish(str(place / "1.tar"), release, python=BASE, owner=owner), place)
    assert os.listdir(closed) == [".releases"]
    # Open to them, the same call deploys it.
    closed.parent.chmod(0o711)
    publish(str(place / "1.tar"), release, python=BASE, owner=owner)
    users = {"4321"} if owner else {"65534"}
    assert set((place / "ran").read_text().split()) == users
    # Closed again, nothing of it is run later either.
    (place / "ran").write_text("")
    closed.parent.chmod(0o700)
    (problem,) = [one for one in check(release).problems if one.kind == "access"]
    assert "root runs nothing from an archive" in problem.reason
    (closed / "1" / "pyvenv.cfg").write_text("home = /nonexistent/bin\n")
    refused(lambda: reinitialize(release, BASE), place)
    assert (place / "ran").read_text() == ""


def test_root_runs_it_where_root_was_asked_for(place: Path, closed: Path) -> None:
    publish(str(place / "1.tar"), str(closed / "1"), python=BASE, owner=(0, 0))
    assert set((place / "ran").read_text().split()) == {"0"}


def test_a_real_virtualenv_where_only_root_may_enter(place: Path) -> None:
    """Of which only the base Python is run: deployed as before."""
    (place / "srv").mkdir(0o700)
    release = str(place / "srv" / "app" / "1")
    publish(build(place), release, python=BASE)
    assert check(release).ok
    assert reinitialize(release, BASE).files == []


@pytest.mark.parametrize("how", ["link", "home"])
def test_a_program_of_another_release(place: Path, how: str) -> None:
    """It came from an archive as well: root does not run it for the base Python."""
    ran, release = place / "ran", place / "srv" / "1"
    (place / "srv").mkdir()
    publish(build(place), str(release), python=BASE)
    program = release / "evil" / VERSION
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nid -u >> {ran}\nexec {BASE} "$@"\n')
    program.chmod(0o755)
    tree = place / "build"
    subprocess.run([BASE, "-m", "venv", "--without-pip", tree], check=True)
    if how == "link":
        (tree / "bin" / "python").unlink()
        (tree / "bin" / "python").symlink_to("other")
        (tree / "bin" / "other").symlink_to(program)
    else:
        config = tree / "pyvenv.cfg"
        config.write_text(re.sub("(?m)^home = .*", f"home = {program.parent}", config.read_text()))
    python = BASE if how == "link" else None
    with suppress(RelocateError):
        publish(packed(place, tree), str(place / "srv" / "2"), python=python)
    assert "0" not in ran.read_text().split()


def test_a_virtualenv_of_root_s_own_where_only_root_may_enter(place: Path) -> None:
    """It is no release, and came from no archive: root runs the copy of the base in it."""
    tree = place / "closed" / "venv"
    tree.parent.mkdir(0o700)
    subprocess.run([BASE, "-m", "venv", "--copies", "--without-pip", tree], check=True)
    assert check(str(tree)).ok
    (tree / ".release.json").touch()
    assert [problem.kind for problem in check(str(tree)).problems] == ["access"]
