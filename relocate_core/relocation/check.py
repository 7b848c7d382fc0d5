"""Whether a virtualenv can run where it stands: its Python, its scripts, its links, its files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..archives.tar import DIRECTORY, FILE, LINK, Refused
from ..artefacts import metadata, scripts
from ..errors import CannotRun, InterpreterNotFound, RelocateError, TreeError
from ..system import files
from ..virtualenvs import interpreter, manifest
from ..virtualenvs import rewritten as ledger
from ..virtualenvs.contents import Survey, broken_modules, survey
from ..virtualenvs.layout import Virtualenv, inspect
from ..virtualenvs.manifest import RECORD, Manifest, Row
from .relocate import relocate


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: `interpreter`, `access` (to it), `script`, `link`, `reference`, `path`, `manifest` or
            `record`.
        file: what is concerned, relative to the virtualenv.
        reason: what is wrong with it, and what to do where that is known.
    """

    kind: str
    file: str
    reason: str


@dataclass(frozen=True)
class Verdict:
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
        return {
            "path": self.path,
            "ok": self.ok,
            "python": self.python,
            "deep": self.deep,
            "problems": [asdict(problem) for problem in self.problems],
        }


def check(
    path: str,
    deep: bool = False,
    *,
    home: str | None = None,
    base: str | None = None,
    as_root: bool | None = None,
    compiled: dict[str, set[str]] | None = None,
    links: Mapping[str, str] | None = None,
) -> Verdict:
    """Tell whether the virtualenv at `path` can run here. Nothing is changed.

    Args:
        path: its directory.
        deep: compare every file as well: with the manifest where it came as a bundle, so that
            whatever was changed, removed or added is found; else with the hash in its RECORD.
        home: the path that it is going to be renamed to, where it does not stand there yet.
        base: the directory of its base Python, where that is known for sure, and
        as_root: whether the operator named root as the owner who should run it; see `ask_own`.
        compiled: its compiled modules, and
        links: its links, where both are known; see `survey`.

    Returns:
        The verdict, with every problem that was found.

    Raises:
        NotAVirtualenv: there is none.
        TreeError: it cannot be read.
    """
    environment = inspect(path)
    try:
        surveyed = survey(environment, compiled, links)
        version, problems = _interpreter(environment, surveyed, base, as_root)
        place = _Place(path, home)
        problems += _scripts(environment, place)
        problems += _links(surveyed, problems, place)
        problems += _references(environment, home)
        problems += [
            Problem("path", file, f"it names {line}, which is not on this machine")
            for file, line in surveyed.outside
            if not os.path.exists(place.now(line))
        ]
        if deep:
            problems += _contents(environment)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error) from error
    return Verdict(path, version, deep, tuple(problems))


class _Place:
    """Where a virtualenv stands, and where its files say so."""

    def __init__(self, path: str, home: str | None) -> None:
        self.path = os.path.abspath(path)
        self.home = home

    def now(self, path: str) -> str:
        """Where something is now that its files have at `path`."""
        if self.home is not None and (path + "/").startswith(self.home + "/"):
            return self.path + path[len(self.home) :]
        return path


def _interpreter(
    environment: Virtualenv, surveyed: Survey, base: str | None, as_root: bool | None
) -> tuple[str | None, list[Problem]]:
    file = "bin/python"
    executable = os.path.join(os.path.abspath(environment.path), file)
    if os.path.islink(executable) and not os.path.exists(executable):
        target = os.path.realpath(executable)
        reason = f"it points to {target}, which is not on this machine: reinitialize"
        return None, [Problem("interpreter", file, reason)]
    try:
        found = interpreter.ask_own(environment.path, base, as_root)
    except CannotRun as error:
        return None, [Problem("access", file, str(error))]
    except InterpreterNotFound as error:
        return None, [Problem("interpreter", file, f"{error}: reinitialize")]
    problems = []
    if found.short_version != environment.python:
        reason = f"it is Python {found.short_version}, the virtualenv is for {environment.python}"
        problems.append(Problem("interpreter", file, f"{reason}: reinitialize"))
    broken = broken_modules(surveyed.compiled, found.suffixes)
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reason = f"it cannot load {', '.join(broken[:3])}{more}: built for another ABI"
        problems.append(Problem("interpreter", file, reason))
    return found.long_version, problems


def _scripts(environment: Virtualenv, place: _Place) -> Iterator[Problem]:
    directory = os.path.join(environment.path, "bin")
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as file:
            head = file.read(8192)
        wanted = scripts.interpreter_of(head)
        if wanted is None or not wanted.startswith(b"/"):
            continue
        line = head.partition(b"\n")[0]
        if not os.access(place.now(os.fsdecode(wanted)), os.X_OK):
            reason = f"its interpreter {os.fsdecode(wanted)} is not there"
            yield Problem("script", f"bin/{entry.name}", reason)
        elif len(line) >= scripts.SHEBANG_LIMIT or (
            b" " in wanted and not line.startswith(b"#!/bin/sh")
        ):
            reason = "no kernel runs a shebang that is so long or has a space in its path"
            yield Problem("script", f"bin/{entry.name}", f"{reason}: relocate")


def _links(surveyed: Survey, known: list[Problem], place: _Place) -> Iterator[Problem]:
    """Dangling links, save those that only follow from a missing interpreter."""
    missing = any(problem.kind == "interpreter" for problem in known)
    for name, target in surveyed.dangling:
        waits = place.now(target) != target and os.path.exists(place.now(target))
        if not (waits or (missing and name.startswith("bin/"))):
            yield Problem("link", name, f"it points to {target}, which is not on this machine")


def _references(environment: Virtualenv, home: str | None) -> Iterator[Problem]:
    """References to another place than the one where the virtualenv stands, or is going to."""
    here = home or os.path.abspath(environment.path)
    real = os.path.realpath(here)
    strangers = [prefix for prefix in environment.old_prefixes if prefix not in (here, real)]
    if not strangers:
        return
    try:
        found = relocate(environment.path, home or "auto", dry_run=True)
    except RelocateError as error:
        yield Problem("reference", "", str(error))
        return
    count = sum(found.rewritten.values())
    names = ", ".join(strangers)
    yield Problem("reference", "", f"{count} files name {names}: update the path to {here}")


def _contents(environment: Virtualenv) -> Iterator[Problem]:
    """Files that are not what they were when the virtualenv was deployed or its packages installed.

    As `rpm -V` tells for packages.
    """
    root = files.open_root(environment.path)
    try:
        known = manifest.of_tree(root)
        if known is not None:
            with known:
                yield from _deviations(root, known)
        elif _came_with_manifest(root):
            yield Problem("manifest", manifest.NAME, "it is gone: deploy the release again")
        else:
            yield from _records(environment)
    except Refused as refusal:
        yield Problem("manifest", manifest.NAME, f"{refusal}: deploy the release again")
    finally:
        os.close(root)


def _came_with_manifest(root: int) -> bool:
    """Whether a release's record tells of a manifest."""
    try:
        data, _ = files.read(root, RECORD)
        return bool(json.loads(data).get("manifest"))
    except (OSError, ValueError, AttributeError):
        return False


def _deviations(root: int, known: Manifest) -> Iterator[Problem]:
    """What is not as the manifest of a bundle says, but for what the ledger accounts for."""
    rewritten = ledger.read(root)
    paths = set()
    added = {path: now for path, now in rewritten.items() if now.startswith(ledger.LEADS)}
    known.require_digest()
    for row in known.rows():
        paths.add(row.path)
        added.pop(row.path, None)
        reason = _deviation(root, row, rewritten.get(row.path))
        if reason is not None:
            yield Problem("manifest", row.path, reason)
    for path, now in added.items():  # what is shared by all releases
        reason = _deviation(root, Row(path, LINK), now)
        if reason is not None:
            yield Problem("manifest", path, reason)
        paths.update(_with_directories(path))
    yield from _strangers(root)
    for path in _all_paths(root):
        if path not in paths:
            yield Problem("manifest", path, "it is not in the manifest: added after it was packed")


def _with_directories(path: str) -> Iterator[str]:
    """A path, and the directories above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _deviation(root: int, row: Row, now: str | None) -> str | None:
    """How a file differs from its row, or from what the ledger has in its place."""
    parent, _, name = row.path.rpartition("/")
    missing = None if now == ledger.GONE else "it is in the manifest, but not on disk"
    try:
        directory = files.open_directory(root, parent)
    except (FileNotFoundError, NotADirectoryError):  # nor behind a link, which is not followed
        return missing
    try:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return missing
        what = stat.S_IFMT(status.st_mode)
        if what != _TYPES[LINK if now and now.startswith(ledger.LEADS) else row.kind]:
            return f"it is no {row.kind} any more"
        if what == stat.S_IFLNK:
            wanted = now[len(ledger.LEADS) :] if now else row.target
            target = os.readlink(name, dir_fd=directory)
            return None if target == wanted else f"it points to {target}, and not to {wanted}"
        if stat.S_IMODE(status.st_mode) != row.mode:
            return f"its mode is {stat.S_IMODE(status.st_mode):04o}, and not {row.mode:04o}"
        if what == stat.S_IFDIR:
            return None
        wanted = now[len(ledger.HASHES) :] if now else row.sha256
        same = now is not None or status.st_size == row.size
        return None if same and _sha256(directory, name) == wanted else "its content was changed"
    finally:
        os.close(directory)


_TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK}


def _sha256(directory: int, name: str) -> str:
    file = files.open_file(directory, name)
    try:
        return files.sha256(file)
    finally:
        os.close(file)


def _strangers(root: int) -> Iterator[Problem]:
    """What is in the manifest's own directory and does not belong there."""
    own = {os.path.basename(name) for name in (manifest.NAME, ledger.NAME, ledger.ORIGINALS)}
    directory = files.open_directory(root, manifest.PLACE)
    try:
        for name in sorted(set(os.listdir(directory)) - own):
            yield Problem("manifest", f"{manifest.PLACE}/{name}", "it was added later")
    finally:
        os.close(directory)
    try:
        directory = files.open_directory(root, ledger.ORIGINALS)
    except OSError:
        return
    try:
        for name in sorted(os.listdir(directory)):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or _sha256(directory, name) != name:
                where = f"{ledger.ORIGINALS}/{name}"
                yield Problem("manifest", where, "it is not what its name says")
    finally:
        os.close(directory)


def _all_paths(root: int) -> Iterator[str]:
    """Everything in a virtualenv but what belongs to the manifest and to the release."""
    for directory, directories, names, _ in os.fwalk(".", dir_fd=root):
        base = directory[2:] + "/" if directory != "." else ""
        if not base:
            directories[:] = [name for name in directories if name != manifest.PLACE]
            names = [name for name in names if name != RECORD]
        directories.sort()
        yield from (base + name for name in sorted((*directories, *names)))


def _records(environment: Virtualenv) -> Iterator[Problem]:
    """Files that differ from what their package's RECORD says, as `rpm -V` tells for packages."""
    top = os.path.abspath(environment.path)
    for site_packages in environment.site_packages:
        base = os.path.join(top, site_packages)
        for name in sorted(os.listdir(base)):
            if not name.endswith(".dist-info"):
                continue
            try:
                with open(os.path.join(base, name, "RECORD"), "rb") as file:
                    rows = list(metadata.record_rows(file.read()))
            except FileNotFoundError:
                continue
            for row, line in rows:
                path = os.path.normpath(os.path.join(base, os.fsdecode(row)))
                reason = _differs(path, line)
                if reason and path.startswith(top + "/"):
                    yield Problem("record", os.path.relpath(path, top), reason)


def _differs(path: str, line: bytes) -> str | None:
    known = metadata.recorded_digest(line)
    if known is None:
        return None
    algorithm, wanted = known
    digest = hashlib.new(algorithm)
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                digest.update(piece)
    except FileNotFoundError:
        return "it is in its package's RECORD, but not on disk"
    if metadata.encoded(digest.digest()) != wanted:
        return "it is not what its package's RECORD says: changed after it was installed"
    return None
