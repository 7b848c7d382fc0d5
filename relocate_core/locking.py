"""One run at a time on a folder, with the folder itself as the lock: no file is left behind."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import Busy


@contextmanager
def locked(folder: int, path: str, wait: float) -> Iterator[None]:
    """Hold the lock on an open folder.

    Args:
        folder: the descriptor; processes that inherit it hold the lock as well.
        path: the folder's path, for the message.
        wait: seconds to wait for another holder.

    Raises:
        Busy: somebody else held it all the time.
    """
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Busy(
                    f"cannot relocate {path}: another run has been at work on it for "
                    f"{wait:g} seconds; wait for it to end and run again"
                ) from None
            time.sleep(0.05)
        except OSError:
            break  # a file system without locks
    try:
        yield
    finally:
        # Not left to closing it: what another thread has forked meanwhile holds a copy.
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
