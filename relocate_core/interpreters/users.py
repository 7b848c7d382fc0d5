"""Who uses an interpreter, and removing those that nobody uses.

Each release is registered with its interpreter before it is published, in a file that stays locked
until then. The registration counts for as long as it is locked, or the release runs on the
interpreter. Virtualenvs beside the interpreters that run on one without being registered, such as
those that were made by hand, are found by their symlinks.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import Busy, reason_of
from ..system import files, staging
from ..system.processes import using
from ..system.staging import STAGING, Staging
from ..virtualenvs.layout import read_config
from .place import RECORDS, Installed, Place

USERS = "users"
PRUNED = "pruned"
_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_PATH = 4096


def register(place: Staging, name: str, release: str) -> int:
    """Register a release with an interpreter.

    Args:
        place: the directory of the interpreters, whose lock is held.
        name: the interpreter's.
        release: the release's path; nothing has to be there yet.

    Returns:
        A descriptor that keeps the registration locked until it is closed.
    """
    os.close(staging.own_directory(place.place, place.records, USERS, 0o755))
    inner = f"{USERS}/{name}"
    directory = staging.own_directory(place.place, place.records, inner, 0o755)
    try:
        file = os.open(_key(release), _NEW, 0o644, dir_fd=directory)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH)
            content = os.fsencode(release)
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))
            os.fsync(file)
            os.fsync(directory)
        except BaseException:
            os.close(file)
            raise
    finally:
        os.close(directory)
    return file


def unregister(place: Place, name: str, release: str) -> None:
    """Forget a release that was not published."""
    with suppress(OSError):
        os.unlink(os.path.join(place.records, USERS, name, _key(release)))


def _key(release: str) -> str:
    return hashlib.sha256(os.fsencode(release)).hexdigest()[:32]


def users(place: Place, interpreter: Installed) -> Iterator[str]:
    """The paths of the releases and virtualenvs that use an interpreter, or are about to."""
    directory = os.path.join(place.records, USERS, interpreter.name)
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            file = os.open(os.path.join(directory, name), files.FILE)
            try:
                release = os.fsdecode(os.pread(file, _LONGEST_PATH, 0))
                if release and (_is_locked(file) or runs_on(release, interpreter)):
                    yield release
            finally:
                os.close(file)
    yield from (path for path in _beside(place) if runs_on(path, interpreter))


def _is_locked(file: int) -> bool:
    """Whether the release is being deployed now: whoever does that was not killed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: it may be
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _beside(place: Place) -> Iterator[str]:
    """The virtualenvs in the directories beside the interpreters, by their Python."""
    parent = os.path.dirname(place.path)
    for root in set(_directories(parent)) - {place.path}:
        for path in (root, *_directories(root)):
            if os.path.lexists(os.path.join(path, "bin", "python")):
                yield path


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as found:
            return sorted(one.path for one in found if one.is_dir(follow_symlinks=False))
    except OSError:
        return []


def runs_on(path: str, interpreter: Installed) -> bool:
    """Whether a virtualenv's Python, or the home in its pyvenv.cfg, is in an interpreter."""
    inside = os.path.realpath(interpreter.path) + "/"
    places = [os.path.join(path, "bin", "python")]
    with suppress(OSError):
        places += filter(None, [read_config(path).get("home")])
    return any(f"{os.path.realpath(one)}/".startswith(inside) for one in places)


@dataclass
class Unused:
    """The interpreters that nobody uses.

    Attributes:
        removed: the paths of those that are gone, or in a dry run would be.
        failed: why one could not be removed, or not all of it, by path.
    """

    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def prune(
    place: Place, without: Collection[str] = (), *, dry_run: bool = False, wait: float = 300.0
) -> Unused:
    """Remove the interpreters that no release, virtualenv or process uses.

    Args:
        place: their directory.
        without: releases that do not count, as a dry run only says that they would be removed.
        dry_run: look, and change nothing.
        wait: seconds to wait for another run there.
    """
    found = Unused()
    if not place.is_ours:
        return found
    if dry_run or not (_unused(place, without) or _is_left(place)):
        found.removed = [one.path for one in _unused(place, without)]
        return found
    try:
        with staging.opened(place.path, RECORDS, f"pruning {place.job}", wait) as opened:
            opened.clear()
            for one in _unused(place, without):
                _remove(opened, one, found)
    except Busy as error:
        found.failed[place.path] = str(error)
    return found


def tidy(place: Place) -> None:
    """Remove what a killed or failed run has left, unless somebody works there now."""
    if place.is_ours and _is_left(place):
        with suppress(Busy), staging.opened(place.path, RECORDS, "tidying up", 0) as opened:
            opened.clear()


def _unused(place: Place, without: Collection[str]) -> list[Installed]:
    idle = [one for one in place.installed() if not set(users(place, one)).difference(without)]
    busy = using([one.path for one in idle]) if idle else {}
    return [one for one in idle if one.path not in busy]


def _is_left(place: Place) -> bool:
    """Whether a killed run has left something."""
    try:
        return bool(os.listdir(os.path.join(place.records, STAGING)))
    except OSError:
        return False


def _remove(place: Staging, one: Installed, found: Unused) -> None:
    try:
        doomed = place.take_away(one.name, PRUNED)
    except OSError as error:
        found.failed[one.path] = reason_of(error)
        return
    found.removed.append(one.path)
    shutil.rmtree(os.path.join(place.place, USERS, one.name), ignore_errors=True)
    left = staging.remove(doomed)
    if left is not None:
        found.failed[one.path] = left
