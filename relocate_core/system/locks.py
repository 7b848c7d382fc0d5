"""One run at a time: a virtualenv is locked by its directory, a root by a file with its holder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone

from ..errors import Busy

LOCK = "lock"


def locked(directory: int, path: str, wait: float) -> AbstractContextManager[None]:
    """Hold the lock on an open directory.

    Args:
        directory: the descriptor; processes that inherit it hold the lock as well.
        path: the directory's path, for the message.
        wait: seconds to wait for another holder.

    Raises:
        Busy: somebody else held it all the time.
    """
    return _hold(
        directory,
        wait,
        lambda: (
            f"cannot relocate {path}: another run has been at work on it for {wait:g} seconds; "
            "wait for it to end and run again"
        ),
    )


@contextmanager
def held(records: int, path: str, doing: str, wait: float) -> Iterator[None]:
    """Hold the lock of a root of releases.

    The file stays, as removing it would let two runs hold two files of one name; it contains who
    holds it for as long as it is held.

    Args:
        records: descriptor of the root's directory of records.
        path: the root's path, for the message.
        doing: what the lock is held for.
        wait: seconds to wait for another holder.

    Raises:
        Busy: somebody else held it all the time.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(LOCK, flags, 0o644, dir_fd=records)

    def refusal() -> str:
        return (
            f"cannot work in {path}: {_holder(file)}, and held it all of {wait:g} seconds; "
            "wait for that run to end and run again"
        )

    try:
        with _hold(file, wait, refusal):
            holder = {"pid": os.getpid(), "doing": doing.strip(), "since": now()}
            with suppress(OSError):  # a full disk: the lock holds without its label
                os.fchmod(file, 0o644)  # whatever the umask
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(holder).encode() + b"\n", 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.ftruncate(file, 0)
    finally:
        os.close(file)


def inherited(file: int, path: str, wait: float) -> AbstractContextManager[None]:
    """Hold a lock that programs inherit, so that what a killed run has left running is waited for.

    Args:
        file: an open file.
        path: the root's path, for the message.
        wait: seconds to wait for such a program.

    Raises:
        Busy: one is still running.
    """
    return _hold(
        file,
        wait,
        lambda: (
            f"cannot work in {path}: a migration is still running that another run has begun, and "
            f"was all of {wait:g} seconds; wait for it to end and run again"
        ),
    )


@contextmanager
def _hold(file: int, wait: float, refusal: Callable[[], str]) -> Iterator[None]:
    """Hold the lock on an open file or directory, or raise `Busy` with the refusal."""
    if not _acquired(file, wait):
        raise Busy(refusal())
    try:
        yield
    finally:
        # Not left to closing it: what another thread has forked meanwhile holds a copy.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def _holder(file: int) -> str:
    try:
        known = json.loads(os.pread(file, 4096, 0))
        return f"process {known['pid']} ({known['doing']}) has held its lock since {known['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process has its lock"


def _acquired(file: int, wait: float) -> bool:
    """Lock an open file or directory; False where somebody else held it all the time."""
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
            continue
        except OSError:
            pass  # a file system without locks
        return True


def now() -> str:
    """The time as records have it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
