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
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .prefix import Prefixes, reference_pattern

KIND = "binary"

_ELF = b"\x7fELF"
_AR = b"!<arch>\n"
_NO_NUL_STRINGS = re.compile(rb"/rustc/[0-9a-f]{40}/|\xff Go build ID:|\xff Go buildinf:")

_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]")


class NoRoom(Exception):
    """A path that cannot be replaced in place; the message says why.

    Attributes:
        data: the file with all that could be replaced.
    """

    def __init__(self, reason: str, data: bytes) -> None:
        super().__init__(reason)
        self.data = data


class _Dynamic(NamedTuple):
    """The dynamic string table of an ELF object, as offsets into the file."""

    start: int
    end: int
    runpath: int
    """Where the RPATH or RUNPATH string begins; 0 where there is none."""
    used: frozenset[int]
    """Where strings begin that symbols and libraries are named by."""


def claims(path: str, data: bytes) -> bool:
    """Whether this is an ELF object or an archive of such, by its first bytes."""
    return data[:4] == _ELF or data[:8] == _AR


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data`, as long as before, with each path replaced inside its own C string.

    Raises:
        NoRoom: some path could not be replaced; the exception carries what could.
    """
    new, reason = rewrite_strings(data, prefixes, _dynamic(data))
    if reason:
        raise NoRoom(reason, new)
    return new


def rewrite_strings(
    data: bytes, prefixes: Prefixes, dynamic: _Dynamic | None = None
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
    dynamic = _dynamic(data)
    if dynamic is None or not dynamic.runpath:
        return None
    end = data.find(b"\0", dynamic.runpath)
    if end < 0:
        return None
    old = data[dynamic.runpath : end]
    new = prefixes.replace(old)
    return new if len(new) > len(old) + _slack(data, end, dynamic) else None


def _slack(data: bytes, end: int, dynamic: _Dynamic) -> int:
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


def _dynamic(data: bytes) -> _Dynamic | None:
    """Read the dynamic section; None where there is none, or where the file is not sound."""
    if data[:4] != _ELF or len(data) < 64:
        return None
    try:
        return _read_dynamic(data)
    except (struct.error, ValueError, KeyError, OverflowError):
        return None


def _read_dynamic(data: bytes) -> _Dynamic | None:
    wide = data[4] == 2
    order = "<" if data[5] == 1 else ">"
    if wide:
        offset, entry, count = (*struct.unpack_from(order + "Q", data, 32), 56, 0)
        entry, count = struct.unpack_from(order + "HH", data, 54)
    else:
        (offset,) = struct.unpack_from(order + "I", data, 28)
        entry, count = struct.unpack_from(order + "HH", data, 42)
    loads, section = [], None
    for number in range(count):
        at = offset + number * entry
        if wide:
            kind, _, start, address, _, size = struct.unpack_from(order + "IIQQQQ", data, at)
        else:
            kind, start, address, _, size = struct.unpack_from(order + "IIIII", data, at)
        if kind == 1:
            loads.append((address, start, size))
        elif kind == 2:
            section = (start, size)
    if section is None:
        return None
    entries = order + ("qQ" if wide else "iI")
    tags = [
        (tag, value)
        for tag, value in struct.iter_unpack(
            entries,
            data[
                section[0] : section[0]
                + section[1] // struct.calcsize(entries) * struct.calcsize(entries)
            ],
        )
    ]
    values = dict(tags)

    def in_file(address: int) -> int:
        for base, start, size in loads:
            if base <= address < base + size:
                return int(address - base + start)
        raise ValueError("an address outside every segment")

    table = in_file(values[5])  # DT_STRTAB
    size = values.get(10, 0)  # DT_STRSZ
    # DT_NEEDED and DT_SONAME; a symbol's name is the first 32-bit word of its entry.
    used = {table + value for tag, value in tags if tag in (1, 14)}
    if 6 in values:  # DT_SYMTAB, whose end nothing tells: it stands before the string table
        symbols = in_file(values[6])
        length = values.get(11, 24 if wide else 16)
        if symbols < table and length:
            used.update(
                table + struct.unpack_from(order + "I", data, at)[0]
                for at in range(symbols, table - length + 1, length)
            )
    runpath = values.get(29, values.get(15))  # DT_RUNPATH, DT_RPATH
    return _Dynamic(
        table,
        min(table + size, len(data)),
        table + runpath if runpath is not None else 0,
        frozenset(used),
    )
