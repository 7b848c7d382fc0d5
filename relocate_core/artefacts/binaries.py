"""Compiled files: ELF objects and `.a` archives of them.

Nothing in a compiled file may change its place or its length. Linkers let a literal that is the
end of another one share its bytes, and many languages compile the length of a string into the code.
So the new prefix is filled up with slashes, which every kernel reads as one: `/srv/app/share/x`
becomes `/new/////share/x`, and the slash in front of `share` stays where it was. The filled-up
spelling is also found as an old prefix, so a path that became shorter can become longer again, and
going there and back gives back every byte.

A path is left and reported where that is not enough: the new prefix is longer than the room,
nothing but the prefix is in the string, or the text has no NUL behind it (Rust, Go, Fortran), so
that it is not known where it begins and ends.

The exception is RUNPATH, of which the dynamic section has the place and no length: it is replaced
as a C string, filled up with NUL. Where it has to grow, `patchelf` can give it another place, and
`longer_runpath` returns what to write there. Sources: the ELF gABI, chapters 4 and 5; ar(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from mmap import mmap
from typing import NamedTuple

from . import elf, literals
from .elf import DynamicStrings
from .prefix import PLAIN, Prefixes, possible_reference, starts_path

KIND = "binary"

_AR = b"!<arch>\n"
FIRST = frozenset((elf.MAGIC[0], _AR[0]))
"""What such a file begins with."""
_NO_NUL = re.compile(
    rb"/rustc/[0-9a-f]{40}/|rustc version |\xff Go build(?: ID|inf):|\ngo object |_gfortran_"
)
"""What compilers leave in a file whose literals have no NUL behind them."""
_SLASHES = re.compile(rb"/+")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")


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
    """`data`, as long as before, with each path replaced inside its own place.

    Raises:
        NoRoom: some path could not be replaced; the exception carries what could.
    """
    new, reason = _rewrite_runpath(data, prefixes)
    new, other = rewrite_strings(new, prefixes, facts_of(new, prefixes))
    if reason or other:
        raise NoRoom(reason or other, new)
    return new


def first_pieces(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """What of each path is in every compiled file that may contain it."""
    return tuple(literals.first_piece(path) if PLAIN.match(path) else path for path in paths)


class Facts(NamedTuple):
    """What has to be known of a whole file before a piece of it is rewritten."""

    ends: bool
    """Whether every literal has a NUL behind it, as far as its compilers are known."""
    shared: frozenset[int]
    """Where paths begin inside which another literal begins, or which are loaded in pieces."""
    pieces: bool = False
    """Whether there is a path of which no piece is whole."""


def facts_of(data: bytes | mmap, prefixes: Prefixes) -> Facts:
    """What has to be known of a file."""
    spans = []
    for match in prefixes.occurrences(data):
        slashes = _SLASHES.match(data, match.end())
        if slashes is not None:
            spans.append((match.start(), slashes.end() - 2))
    pieces = any(literals.in_pieces(data, old) for old in prefixes.old)
    return Facts(_NO_NUL.search(data) is None, literals.shared(data, spans), pieces)


def rewrite_strings(
    data: bytes, prefixes: Prefixes, facts: Facts, offset: int = 0
) -> tuple[bytes, str]:
    """Replace the prefix in `data`, a whole file or a piece of one cut at NULs.

    Args:
        data: the bytes.
        prefixes: what to replace by what.
        facts: what is known of the whole file.
        offset: where in the file the piece begins.

    Returns:
        The new bytes, and why a reference is left in them (empty where none is).
    """
    pieces, done, text_end = [], 0, 0
    reason = "a path in it is in pieces, in its instructions" if facts.pieces else ""
    for match in prefixes.occurrences(data):
        begins = _behind_code(data, match.start()) or starts_path(data, match.start())
        slashes = _SLASHES.match(data, match.end())
        if begins is False and (slashes is None or match[1].count(b"/") == 1):
            continue  # the end of a longer path, as /usr/app has /app
        if match.end() > text_end:
            text = _TEXT.match(data, match.end())
            text_end = text.end() if text else match.end()
        wrong = ""
        if not facts.ends:
            wrong = "its strings have no end mark (Rust, Go or Fortran)"
        elif not begins or not prefixes.ends(match):
            wrong = possible_reference(match)
        elif slashes is None:
            wrong = "the prefix is all of a string, whose length may be compiled in"
        elif offset + match.start() in facts.shared:
            wrong = "another literal in it begins inside the prefix, or it is used in pieces"
        elif data[text_end : text_end + 1] != b"\0":
            wrong = "a path in it has no NUL behind it"
        elif len(prefixes.new) >= slashes.end() - match.start():
            wrong = "the new path is longer than the room for it"
        elif slashes.end() == text_end and len(prefixes.new) < slashes.end() - match.start() - 1:
            wrong = "the prefix is all of a string, and may be compared with other paths"
        else:
            filled = prefixes.new.ljust(slashes.end() - match.start(), b"/")
            pieces += [data[done : match.start()], filled]
            done = slashes.end()
        reason = reason or wrong
    return b"".join((*pieces, data[done:])) if pieces else data, reason


def _behind_code(data: bytes, at: int) -> bool:
    """Whether the byte before an offset is of no text, as those of machine code are."""
    before = data[max(0, at - 4) : at]
    for size in range(1, len(before) + 1):
        try:
            before[-size:].decode()
        except UnicodeDecodeError:
            continue
        return False
    return bool(before)


def _rewrite_runpath(data: bytes, prefixes: Prefixes) -> tuple[bytes, str]:
    """Replace the RUNPATH of a file as a C string; it is left where a name shares its end."""
    found = _runpath(data)
    if found is None:
        return data, ""
    old = data[found[0] : found[1]]
    new = prefixes.everywhere().replace(old)
    if new == old:
        return data, ""
    try:
        return with_runpath(data, new), ""
    except NoRoom as refusal:
        return data, str(refusal)


def runpath(data: bytes) -> bytes:
    """Where the file's libraries are searched; b"" where it has no RUNPATH of its own."""
    found = _runpath(data)
    return b"" if found is None else data[found[0] : found[1]]


def with_runpath(data: bytes, new: bytes) -> bytes:
    """The file with another RUNPATH.

    Raises:
        NoRoom: the new one is longer than the room for it.
    """
    found = _runpath(data)
    if found is None or len(new) > found[1] - found[0] + found[2]:
        raise NoRoom("the new path is longer than the room for it", data)
    start, end, _ = found
    size = max(len(new), end - start)
    return data[:start] + new.ljust(size, b"\0") + data[start + size :]


def longer_runpath(data: bytes, prefixes: Prefixes) -> bytes | None:
    """The RUNPATH to be written where the new one is longer than its place, else None."""
    found = _runpath(data)
    if found is None:
        return None
    start, end, slack = found
    new = prefixes.everywhere().replace(data[start:end])
    return new if len(new) > end - start + slack else None


def _runpath(data: bytes) -> tuple[int, int, int] | None:
    """Start and end of the RUNPATH, and how many bytes behind it are free; None if shared."""
    dynamic = elf.dynamic_strings(data)
    if dynamic is None or not dynamic.runpath:
        return None
    start = dynamic.runpath
    end = data.find(b"\0", start)
    if end < 0 or any(start < used < end for used in dynamic.used):
        return None
    return start, end, _slack(data, end, dynamic)


def _slack(data: bytes, end: int, dynamic: DynamicStrings) -> int:
    """How many bytes behind a dynamic string are the filling of a former, longer one.

    Linkers write one NUL between two strings; more are there only where a string was shortened.
    """
    stop = end
    while stop < dynamic.end and data[stop : stop + 1] == b"\0":
        stop += 1
    return max(0, stop - end - 1)
