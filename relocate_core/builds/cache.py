"""The cache of builds: `<cache>/<Python, platform and tools>`, in which one build works at a time.

What is in it is executed and packed, so nobody else may be able to change it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ..errors import Busy
from ..system.locks import held, locked
from ..system.ownership import make_trusted


@contextmanager
def locked_directory(cache: str, directory: str, doing: str, wait: float) -> Iterator[int]:
    """Lock a directory of the cache, which is created where it is missing; its descriptor.

    Args:
        cache: the cache.
        directory: the directory in it.
        doing: what it is locked for.
        wait: seconds to wait for another build.

    Raises:
        Busy: another build held it all the time.
        UnsafeDirectory: somebody else could change what is built.
    """
    until = time.monotonic() + wait
    for one in (cache, directory):
        make_trusted(one)
    with ExitStack() as stack:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        stack.enter_context(held(descriptor, directory, doing, wait))
        try:
            stack.enter_context(locked(descriptor, directory, max(0.0, until - time.monotonic())))
        except Busy:
            raise Busy(
                f"cannot build in {directory}: a process that an earlier, killed build has started "
                "is still running there; wait for it to end, or end it, and run again"
            ) from None
        yield descriptor


def tidy_up(directory: str) -> None:
    """Remove what a single build needed; some of it may have credentials."""
    for name in ("source", "wheels", "planned"):
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    for name in ("requirements.txt", "selected.txt", "pins.txt"):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))
