"""Whether a virtualenv can run where it is: its Python, its scripts, its symlinks, its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..artefacts import scripts
from ..errors import CannotRun, InterpreterNotFound, RelocateError, TreeError
from ..progress import Report
from ..system import files
from ..virtualenvs import access, interpreter
from ..virtualenvs.carried import Place, carried_python, probe_carried
from ..virtualenvs.contents import Contents, broken_modules, read_contents
from ..virtualenvs.evidence import all_prefixes
from ..virtualenvs.layout import Virtualenv, inspect
from ..virtualenvs.manifest_reader import system_packages
from ..virtualenvs.origins import missing_imports
from ..virtualenvs.system_packages import differences
from ..virtualenvs.verify import Problem, verify
from .relocate import relocate


@dataclass(frozen=True)
class Verdict(Report):
    """Whether a virtualenv can run, and if not, why.

    Attributes:
        path: the virtualenv, as it was given.
        python: the version X.Y.Z that it runs on; None where it does not.
        deep: whether the files' hashes were compared as well.
        problems: what is wrong; empty where it can run.
    """

    path: str
    python: str | None
    deep: bool
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether it can run."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        return {**super().as_dict(), "ok": self.ok}


def check(
    path: str,
    deep: bool = False,
    *,
    home: str | None = None,
    base: str | None = None,
    as_root: bool | None = None,
    compiled: dict[str, set[str]] | None = None,
    links: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
) -> Verdict:
    """Report whether the virtualenv at `path` can run here. Nothing is changed.

    Args:
        path: its directory.
        deep: compare every file as well: with the manifest where it came as a bundle, so that
            whatever was changed, removed or added is found; else with the hash in its RECORD. And
            compare what a bundle needs of the base Python's packages with what these are.
        home: the path that it is going to be renamed to, where it is not there yet.
        base: the directory of its base Python, where that is known for sure, and
        as_root: whether the operator named root as the owner who should run it; see `probe_own`.
        compiled: its compiled modules, and
        links: its symlinks, where both are known; see `read_contents`.
        user: user and group that are going to run it. By default its owner or, where that is root
            and it is in no directory that is closed to others, anybody.

    Returns:
        The verdict, with every problem that was found.

    Raises:
        NotAVirtualenv: there is none.
        TreeError: it cannot be read.
    """
    environment = inspect(path)
    try:
        contents = read_contents(environment, compiled, links)
        version, problems = _interpreter(environment, contents, home, base, as_root)
        place = Place(path, home)
        problems += _configuration(environment)
        problems += _scripts(environment, place)
        problems += _links(contents, problems, place)
        problems += _references(environment, home, packed=links is not None)
        problems += _packages(contents, place)
        problems += _imports(environment)
        problems += _access(environment, user, published=home is not None)
        if deep:
            problems += _system_packages(environment, base, as_root)
            problems += verify(environment)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error) from error
    return Verdict(path, version, deep, tuple(problems))


def _interpreter(
    environment: Virtualenv,
    contents: Contents,
    home: str | None,
    base: str | None,
    as_root: bool | None,
) -> tuple[str | None, list[Problem]]:
    file = "bin/python"
    executable = os.path.join(os.path.abspath(environment.path), file)
    own = carried_python(environment, home)
    if own is None and os.path.islink(executable) and not os.path.exists(executable):
        target = os.path.realpath(executable)
        reason = f"it points to {target}, which is not on this machine: reinitialize"
        return None, [Problem("interpreter", file, reason)]
    try:
        if own is not None:
            found = probe_carried(environment, own, as_root)
        else:
            found = interpreter.probe_own(environment.path, base, as_root)
    except CannotRun as error:
        return None, [Problem("access", file, str(error))]
    except InterpreterNotFound as error:
        return None, [Problem("interpreter", file, f"{error}: reinitialize")]
    problems = []
    if found.short_version != environment.python:
        reason = f"it is Python {found.short_version}, the virtualenv is for {environment.python}"
        problems.append(Problem("interpreter", file, f"{reason}: reinitialize"))
    if found.untried:
        top = os.path.abspath(environment.path)
        problems.append(Problem("untried", file, found.untried.replace(top, home or top)))
    broken = broken_modules(contents.compiled, found.suffixes)
    if broken and not found.untried:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reason = f"it cannot load {', '.join(broken[:3])}{more}: built for another ABI"
        problems.append(Problem("interpreter", file, reason))
    return found.long_version, problems


def _system_packages(
    environment: Virtualenv, base: str | None, as_root: bool | None
) -> Iterator[Problem]:
    """What it needs of the base Python's packages, and is not there in that version."""
    path = os.path.abspath(environment.path)
    root = files.open_root(path)
    try:
        wanted = system_packages(root, environment)
    finally:
        os.close(root)
    if not wanted:
        return
    try:
        user = interpreter.user_for_own(path, base, as_root)
        found = interpreter.probe(os.path.join(path, "bin", "python"), user)
        wrong = differences(wanted, found.executable, user)
    except (CannotRun, InterpreterNotFound):  # that is reported already
        return
    if wrong:
        yield Problem("system", "pyvenv.cfg", wrong)


def _configuration(environment: Virtualenv) -> Iterator[Problem]:
    """A pyvenv.cfg by which Python does not find the packages of the virtualenv, or does not start.

    Virtualenvs without one have a standard library of their own.
    """
    name = "pyvenv.cfg"
    library = os.path.join(environment.path, os.path.dirname(environment.site_packages[0]))
    try:
        with open(os.path.join(environment.path, name), "rb") as file:
            file.read(1 << 20).decode()
    except FileNotFoundError:
        has_library = os.path.lexists(os.path.join(library, "os.py"))
        if environment.implementation == "cpython" and not has_library:
            reason = (
                "it is missing, and without it Python sees none of the packages: build it again"
            )
            yield Problem("interpreter", name, reason)
    except UnicodeDecodeError:
        if not environment.python.startswith("2."):
            reason = "it is not in UTF-8, and Python reads no other: write it again, or relocate"
            yield Problem("interpreter", name, reason)


def _scripts(environment: Virtualenv, place: Place) -> Iterator[Problem]:
    directory = os.path.join(environment.path, "bin")
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as file:
            head = file.read(8192)
        wanted = scripts.interpreter_of(head)
        line = head.partition(b"\n")[0]
        if line.startswith(b"#!") and line.endswith(b"\r"):
            reason = (
                "its first line ends with a carriage return, which the kernel takes for a part of"
            )
            yield Problem(
                "script", f"bin/{entry.name}", f"{reason} the name: convert its line ends"
            )
            continue
        if wanted is None or not wanted.startswith(b"/"):
            continue
        if not os.access(place.resolved(os.fsdecode(wanted)), os.X_OK):
            reason = f"its interpreter {os.fsdecode(wanted)} is not there"
            yield Problem("script", f"bin/{entry.name}", reason)
        elif len(line) >= scripts.SHEBANG_LIMIT or (
            b" " in wanted and not line.startswith(b"#!/bin/sh")
        ):
            reason = "no kernel runs a shebang that is so long or has a space in its path"
            yield Problem("script", f"bin/{entry.name}", f"{reason}: relocate")


def _links(contents: Contents, known: list[Problem], place: Place) -> Iterator[Problem]:
    """Dangling symlinks, except those that only follow from a missing interpreter."""
    missing = any(problem.kind == "interpreter" for problem in known)
    for name, target in contents.dangling:
        waits = os.path.exists(place.resolved(os.path.join(place.path, name)))
        if not (waits or (missing and name.startswith("bin/"))):
            yield Problem("link", name, f"it points to {target}, which is not on this machine")


def _packages(contents: Contents, place: Place) -> Iterator[Problem]:
    """What packages are imported from, and is not there."""
    for file, path in (*contents.outside, *contents.inside):
        if not os.path.exists(place.now(path)):
            yield Problem("path", file, f"it refers to {path}, which is not on this machine")


def _imports(environment: Virtualenv) -> Iterator[Problem]:
    """What the finders of editable installs import, and is not installed."""
    if environment.system_site_packages:
        return
    for file, module in missing_imports(environment.path, environment.site_packages):
        reason = f"it imports {module}, which is not installed: its packages cannot be imported"
        yield Problem("path", file, reason)


def _access(
    environment: Virtualenv, user: tuple[int, int] | None, published: bool
) -> Iterator[Problem]:
    """Files that those who run it cannot read, and a file system that runs no program."""
    if access.is_noexec(environment.path):
        reason = "its file system is mounted noexec: no program of it can be started, and no"
        yield Problem("mount", "", f"{reason} compiled module loaded; mount it without noexec")
    owner = os.stat(environment.path).st_uid
    if user is None and (owner or (not published and access.is_private(environment.path))):
        return
    reader = access.Reader.of(user)
    closed = sorted(access.unreadable(environment, reader))
    if closed:
        yield Problem("mode", closed[0], access.reason(f"{reader} cannot read it", closed))


def _references(environment: Virtualenv, home: str | None, packed: bool) -> Iterator[Problem]:
    """References to another place than the one where the virtualenv is, or is going to be."""
    here = home or os.path.abspath(environment.path)
    real = os.path.realpath(here)
    known = environment.old_prefixes if packed else all_prefixes(environment)
    strangers = [prefix for prefix in known if prefix not in (here, real)]
    strangers = [
        prefix
        for prefix in strangers
        if prefix in environment.old_prefixes or os.path.realpath(prefix) != real
    ]
    if not strangers:
        return
    try:
        found = relocate(environment.path, home or "auto", dry_run=True)
    except RelocateError as error:
        yield Problem("reference", "", str(error))
        return
    count = sum(found.rewritten.values())
    if count or any(prefix in environment.old_prefixes for prefix in strangers):
        names = ", ".join(strangers)
        reason = f"{count} files refer to {names}: update the path to {here}"
        yield Problem("reference", "", reason)
