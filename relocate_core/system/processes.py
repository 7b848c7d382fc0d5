"""Which releases the running processes use, as far as this user may see (Linux' /proc)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress


def using(directories: Iterable[str]) -> dict[str, int]:
    """The directories that a process runs from, works in, or has a file of open, and one such
    process.

    A program that was started as `current/bin/python` and has read only modules in pure Python
    leaves no trace of its release: start programs by their scripts, whose first line names it.

    Args:
        directories: absolute paths.
    """
    wanted = {path.encode("utf-8", "surrogateescape") + b"/": path for path in directories}
    for path in list(wanted.values()):
        real = os.fsencode(os.path.realpath(path)) + b"/"
        wanted.setdefault(real, path)
    found: dict[str, int] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return found
    for number in numbers:
        if number != os.getpid():
            text = b"\0".join(_traces(f"/proc/{number}"))
            for prefix, path in wanted.items():
                if prefix in text:
                    found.setdefault(path, number)
    return found


def _traces(process: str) -> Iterator[bytes]:
    """All paths that tell what a process uses, each followed by a slash."""
    for name in ("exe", "cwd", "root"):
        with suppress(OSError):
            yield os.fsencode(os.readlink(f"{process}/{name}")) + b"/"
    for name in ("cmdline", "maps"):
        with suppress(OSError), open(f"{process}/{name}", "rb") as file:
            yield file.read()
    with suppress(OSError):
        for number in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                yield os.fsencode(os.readlink(f"{process}/fd/{number}")) + b"/"


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
