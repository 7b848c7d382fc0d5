"""Which texts of a compiled file are not what they look like: shared, or only a piece of one.

Linkers let `app/share/x` be the end of `/srv/app/share/x`. Where that other literal begins within
the prefix, it would change with it, and nothing in the bytes of the text shows it; but some
instruction or pointer has its address. They are found for x86-64, all of them in one pass: operands
relative to the instruction, addresses in position-dependent programs, and relocated pointers. What
only looks like such an operand costs no more than a path that is left and reported.

Compilers copy and compare short texts without an address, in pieces of 8 or 16 bytes: some are
constants that an instruction loads, some are in the instructions, and two may overlap. One of them
would change and the others not. So a text is whole only where the code takes its address.
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
_TAKE_ADDRESS = 0x8D
"""The instruction `lea`; all others load from the address."""
WORD, CHUNK = 8, 16
"""How many bytes compilers copy and compare at once: of a register, of a vector."""
_NEAR = 40
"""Within so many bytes of instructions is the next piece."""

_PIECE = 1 << 20


def shared(data: bytes | mmap, spans: Sequence[tuple[int, int]]) -> frozenset[int]:
    """The beginnings of those spans inside which another literal, or from which a piece is loaded.

    Args:
        data: the file.
        spans: the offset where a path begins, and the last one at which another literal that
            begins there would change; in order.
    """
    image = elf.image(data) if spans else None
    if image is None:
        return frozenset()
    inside = sorted(_loaded(image, spans))
    if not inside:
        return frozenset()
    found = set()
    for address, is_load in _pointers(data, image, {first >> 16 for first, _, _ in inside}):
        number = bisect_right(inside, (address, sys.maxsize, 0)) - 1
        if (
            number >= 0
            and address <= inside[number][1]
            and (is_load or address > inside[number][0])
        ):
            found.add(inside[number][2])
    return frozenset(found)


def first_piece(path: bytes) -> bytes:
    """The beginning of a path that is in every compiled file with the path or its pieces."""
    return path[:CHUNK] if len(path) >= CHUNK else path[:WORD]


def in_pieces(data: bytes | mmap, path: bytes) -> bool:
    """Whether a path is in the file in pieces, of which none is the whole path.

    Args:
        data: the file.
        path: the prefix; nothing is known of one that is shorter than a piece.
    """
    return _in_instructions(data, path) or (len(path) >= CHUNK and _in_constants(data, path))


def _in_instructions(data: bytes | mmap, path: bytes) -> bool:
    """Whether the first eight bytes are an operand, and the next are in an instruction nearby."""
    first = path[:WORD]
    if len(first) < WORD:
        return False
    behind = {(path + end)[WORD : WORD + 2] for end in (b"/", b"\0")}
    for match in re.finditer(rb"[\x48\x49][\xb8-\xbf]" + re.escape(first), data):
        around = data[max(0, match.start() - _NEAR) : match.start()]
        around += data[match.end() : match.end() + _NEAR]
        if any(piece in around for piece in behind):
            return True
    return False


def _in_constants(data: bytes | mmap, path: bytes) -> bool:
    """Whether the first 16 bytes are a constant without the rest behind it."""
    rest = re.escape(path[CHUNK:]) or rb"[/\0]"
    pieces = re.finditer(re.escape(path[:CHUNK]) + b"(?!" + rest + b")", data)
    places = [(match.start(), match.start()) for match in pieces]
    if elf.image(data) is None:
        return any(at % CHUNK == 0 for at, _ in places)
    return bool(shared(data, places))


def _loaded(image: Image, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """First and last address of each span that is loaded, and its first offset."""
    for first, last in spans:
        for segment in image.loads:
            if segment.offset <= first < segment.offset + segment.size:
                at = segment.address - segment.offset
                yield at + first, at + last, first


def _pointers(data: bytes | mmap, image: Image, halves: set[int]) -> Iterator[tuple[int, bool]]:
    """Every address that code or data of the file may refer to, and whether it loads from there.

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
                    address = base + match.end() + int.from_bytes(match[1], "little", signed=True)
                    yield address, data[at + match.start() - 1] != _TAKE_ADDRESS
            elif segment.writable:
                whole = piece[: min(len(piece), _PIECE) // 8 * 8]
                yield from ((value, False) for (value,) in struct.iter_unpack("<Q", whole))
            for pattern in () if image.position_independent else absolute:
                for match in pattern.finditer(piece):
                    yield int.from_bytes(match[1], "little"), False
    start, size = image.relocations
    table = data[start : start + size]
    for _, _, addend in struct.iter_unpack("<QQq", table[: len(table) // 24 * 24]):
        yield addend, False


def _half(half: int) -> bytes:
    return struct.pack("<H", half & 0xFFFF)
