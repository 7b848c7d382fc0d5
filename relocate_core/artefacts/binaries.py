"""Compiled files: RUNPATH and C strings of ELF objects, and `.a` archives of them.

Offsets in a binary must not move, so a path is replaced inside its own C string: a shorter one is
moved up and the rest filled with NUL, a longer one has no room. The exception is RUNPATH: where it
has to grow, `patchelf` can give it a new place, and `longer_runpath` says what to write there.

Two cases are left alone because an edit would be a guess: strings of Rust and Go programs, which
have no NUL behind them, and a dynamic string of which a symbol's name uses the end (linkers merge
equal tails). Sources: the ELF gABI, chapters 4 and 5; ar(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import elf
from .elf import DynamicStrings
from .prefix import Prefixes, reference_pattern

KIND = "binary"

_AR = b"!<arch>\n"
_NO_NUL_STRINGS = re.compile(rb"/rustc/[0-9a-f]{40}/|\xff Go build ID:|\xff Go buildinf:")

_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")


class NoRoom(Exception):
    """A path that cannot be replaced in place; the message gives the reason.

    Attributes:
        data: the file with all that could be replaced.
    """

    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason)
        self.data = data


def claims(path: str, data: bytes) -> bool:
    """Whether this is an ELF object or an archive of such, by its first bytes."""
    return data[:4] == elf.MAGIC or data[:8] == _AR


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data`, as long as before, with each path replaced inside its own C string.

    Raises:
        NoRoom: some path could not be replaced; the exception carries what could.
    """
    new, reason = rewrite_strings(data, prefixes, elf.dynamic_strings(data))
    if reason:
        raise NoRoom(reason, new)
    return new


def rewrite_strings(
    data: bytes, prefixes: Prefixes, dynamic: DynamicStrings | None = None
) -> tuple[bytes, str]:
    """Replace paths in the C strings of `data`, a whole file or a piece of one cut at NULs.

    Returns:
        The new bytes, and why a reference is left in them (empty where none is).
    """
    result = bytearray(data)
    reason = ""
    for start, end in _strings_with(data, prefixes):
        old = data[start:end]
        new = prefixes.replace(old)
        if new == old:
            continue
        room = end - start
        if dynamic is not None and dynamic.start <= start < dynamic.end:
            if any(start < used < end for used in dynamic.used):
                reason = reason or "a symbol's name shares the end of a path"
                continue
            room += _slack(data, end, dynamic)
        elif _NO_NUL_STRINGS.search(data):
            reason = reason or "its strings have no end mark (Rust or Go)"
            continue
        if len(new) > room:
            reason = reason or "the new path is longer than the room for it"
            continue
        result[start : start + max(len(new), end - start)] = new.ljust(end - start, b"\0")
    return bytes(result), reason


def longer_runpath(data: bytes, prefixes: Prefixes) -> bytes | None:
    """The RUNPATH to be written where the new one is longer than its place, else None."""
    dynamic = elf.dynamic_strings(data)
    if dynamic is None or not dynamic.runpath:
        return None
    end = data.find(b"\0", dynamic.runpath)
    if end < 0:
        return None
    old = data[dynamic.runpath : end]
    new = prefixes.replace(old)
    return new if len(new) > len(old) + _slack(data, end, dynamic) else None


def _slack(data: bytes, end: int, dynamic: DynamicStrings) -> int:
    """How many bytes behind a dynamic string are the filling of an earlier, longer one.

    Linkers write one NUL between two strings; more are there only where a string was shortened.
    """
    stop = end
    while stop < dynamic.end and data[stop] == 0:
        stop += 1
    return max(0, stop - end - 1)


def _strings_with(data: bytes, prefixes: Prefixes) -> Iterator[tuple[int, int]]:
    """Start and end of each C string that holds a reference."""
    end = 0
    for match in reference_pattern(prefixes.old, prefixes.new).finditer(data):
        if match.start() < end:
            continue
        begin = data.rfind(b"\0", 0, match.start()) + 1
        # In front of a string may stand machine code, with no NUL in between.
        before = data[max(begin, match.start() - 4096) : match.start()]
        text = _NO_TEXT.split(before.decode("utf-8", "surrogateescape"))[-1]
        end = data.find(b"\0", match.end())
        end = len(data) if end < 0 else end
        yield match.start() - len(text.encode()), end
