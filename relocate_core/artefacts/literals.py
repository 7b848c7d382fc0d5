"""Which literals of a compiled file begin inside another one.

Linkers let `app/share/x` be the end of `/srv/app/share/x`. Where that other literal begins within
the prefix, it would change with it, and nothing in the bytes of the text shows it; but some
instruction or pointer has its address. They are found for x86-64, all of them in one pass: operands
relative to the instruction, addresses in position-dependent programs, and relocated pointers. What
only looks like such an operand costs no more than a path that is left and reported.
"""

from __future__ import annotations

import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from mmap import mmap

from . import elf
from .elf import Image

# The byte in front of a displacement: a register, and an address relative to the instruction.
_RELATIVE = re.compile(rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?=(.{4}))", re.S)


_PIECE = 1 << 20


def shared(data: bytes | mmap, spans: Sequence[tuple[int, int]]) -> frozenset[int]:
    """The beginnings of those spans inside which another literal begins.

    Args:
        data: the file.
        spans: first and last offset at which such a literal would change, in order.
    """
    image = elf.image(data) if spans else None
    if image is None:
        return frozenset()
    inside = sorted(_loaded(image, spans))
    if not inside:
        return frozenset()
    found = set()
    for address in _pointers(data, image, {first >> 16 for first, _, _ in inside}):
        number = bisect_right(inside, (address, sys.maxsize, 0)) - 1
        if number >= 0 and address <= inside[number][1]:
            found.add(inside[number][2])
    return frozenset(found)


def _loaded(image: Image, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """First and last address of each span that is loaded, and its first offset."""
    for first, last in spans:
        for segment in image.loads:
            if segment.offset <= first < segment.offset + segment.size:
                at = segment.address - segment.offset
                yield at + first, at + last, first


def _pointers(data: bytes | mmap, image: Image, halves: set[int]) -> Iterator[int]:
    """Every address that code or data of the file may refer to.

    Args:
        data: the file.
        image: what of it is loaded.
        halves: the upper halves of the addresses that are of interest.
    """
    absolute = [re.compile(b"(?=(.." + re.escape(_half(half)) + b"))", re.S) for half in halves]
    for segment in image.loads:
        end = min(segment.offset + segment.size, len(data))  # a damaged file may claim any size
        for at in range(segment.offset, end, _PIECE):
            # A number may lie across the end of a piece.
            piece = data[at : min(at + _PIECE + 4, end)]
            if segment.executable:
                base = segment.address + at - segment.offset + 4
                for match in _RELATIVE.finditer(piece):
                    yield base + match.end() + int.from_bytes(match[1], "little", signed=True)
            elif segment.writable:
                whole = piece[: min(len(piece), _PIECE) // 8 * 8]
                yield from (value for (value,) in struct.iter_unpack("<Q", whole))
            for pattern in () if image.position_independent else absolute:
                yield from (int.from_bytes(m[1], "little") for m in pattern.finditer(piece))
    start, size = image.relocations
    table = data[start : start + size]
    for _, _, addend in struct.iter_unpack("<QQq", table[: len(table) // 24 * 24]):
        yield addend


def _half(half: int) -> bytes:
    return struct.pack("<H", half & 0xFFFF)
