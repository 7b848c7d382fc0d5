"""The maps of sparse files: where in a file its data goes, and that all else is zeros.

GNU tar has had four forms: its own kind of member, and three with pax headers, called 0.0, 0.1 and
1.0, of which bsdtar writes the last one. Source: the manual of GNU tar, "Storing Sparse Files".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Callable

Extents = tuple[tuple[int, int], ...]
"""The offset and length of each part with data, in order."""

PREFIX = "GNU.sparse."
_BLOCK = 512
_MOST = 100_000
_DIGITS = 18


class Unreadable(ValueError):
    """The map cannot be read; `str()` says why."""


def checked(extents: Iterable[tuple[int, int]], size: int, stored: int) -> Extents:
    """Extents that lie in a file of that size in order, and take all that is stored of it.

    Raises:
        Unreadable: they do not.
    """
    known = tuple(extents)
    end = 0
    for offset, length in known:
        if offset < end or length < 0 or offset + length > size:
            raise Unreadable("its map is out of order, or leaves the file")
        end = offset + length
    if sum(length for _, length in known) != stored:
        raise Unreadable("its map is of another length than its data")
    return tuple((offset, length) for offset, length in known if length)


def of_header(
    header: bytes, take: Callable[[int], bytes], number: Callable[[bytes], int]
) -> tuple[int, list[tuple[int, int]]]:
    """The size and extents of a GNU sparse member.

    Args:
        header: the member's.
        take: gives the blocks that follow it.
        number: reads a numeric field.
    """
    size = number(header[483:495])
    found: list[tuple[int, int]] = []
    block, start, count, goes_on = header, 386, 4, header[482]
    while True:
        for at in range(start, start + 24 * count, 24):
            if block[at : at + 24].strip(b"\0"):
                found.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
        if not goes_on:
            return size, found
        if len(found) > _MOST:
            raise Unreadable(f"its map has more than {_MOST:,} parts")
        block, start, count = take(_BLOCK), 0, 21
        goes_on = block[504]


class Records:
    """The records of an extended header that describe a sparse file."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._numbers: list[str] = []

    def add(self, key: str, value: str) -> None:
        """Take one record, in its order."""
        key = key[len(PREFIX) :]
        if key in ("offset", "numbytes"):
            if (key == "offset") == (len(self._numbers) % 2 == 1):
                raise Unreadable("its map is out of order")
            self._numbers.append(value)
        elif key in self._known:
            raise Unreadable(f"it has two values of {PREFIX}{key}")
        else:
            self._known[key] = value

    @property
    def name(self) -> str | None:
        """The file's name, where the member has another one."""
        return self._known.get("name")

    def map(
        self, stored: int, take: Callable[[int], bytes]
    ) -> tuple[int, list[tuple[int, int]], int]:
        """The file's size, its extents, and how many bytes of data follow.

        Args:
            stored: how many bytes the member has.
            take: gives them; those of the map are taken, if it is there.
        """
        known = self._known
        if "major" in known or "minor" in known:
            if (known.get("major"), known.get("minor")) != ("1", "0"):
                raise Unreadable("it is of an unknown version")
            if not known.get("name") or "map" in known or self._numbers:
                raise Unreadable("its records contradict each other")
            numbers, blocks = _from_data(stored, take)
            return _number(known.get("realsize")), _pairs(numbers), stored - blocks * _BLOCK
        if "map" in known:
            if not known.get("name") or self._numbers:
                raise Unreadable("its records contradict each other")
            self._numbers = known["map"].split(",") if known["map"] else []
        elif not self._numbers and known.get("numblocks") != "0":
            raise Unreadable("its map is missing")
        numbers = [_number(text) for text in self._numbers]
        if "numblocks" in known and _number(known["numblocks"]) * 2 != len(numbers):
            raise Unreadable("its map is of another length than it says")
        return _number(known.get("size")), _pairs(numbers), stored


def _from_data(stored: int, take: Callable[[int], bytes]) -> tuple[list[int], int]:
    """The numbers in front of a member's data, one a line, and how many blocks they take."""
    text, blocks = b"", 0
    numbers: list[int] = []
    wanted = 1
    while len(numbers) < wanted:
        blocks += 1
        if blocks * _BLOCK > stored:
            raise Unreadable("its map is longer than its data")
        *lines, text = (text + bytes(take(_BLOCK))).split(b"\n")
        for line in lines:
            if len(numbers) < wanted:
                numbers.append(_number(line.decode("ascii", "replace")))
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
        if wanted > 2 * _MOST or len(text) > _BLOCK:
            raise Unreadable(f"its map has more than {_MOST:,} parts")
    return numbers[1:], blocks


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise Unreadable("its map is out of order")
    each: Iterator[int] = iter(numbers)
    return list(zip(each, each))


def _number(text: str | None) -> int:
    if not (text and text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise Unreadable("its map has something else than a number")
    return int(text)
