"""References that are in a file and cannot be seen in its bytes: compressed, in a zip, in UTF-16.

They cannot be edited, and are reported. An archive in an archive is looked into as well, such as a
wheel in a zip application.
"""

from __future__ import annotations

import io
import os
import zlib
from contextlib import suppress
from typing import IO, BinaryIO, cast

_ZIP = b"PK\x03\x04"
_UTF = (
    (b"\xff\xfe\0\0", "utf-32-le", "it is in UTF-32"),
    (b"\0\0\xfe\xff", "utf-32-be", "it is in UTF-32"),
    (b"\xff\xfe", "utf-16-le", "it is in UTF-16"),
    (b"\xfe\xff", "utf-16-be", "it is in UTF-16"),
)
_ZLIB = (b"x\x01", b"x^", b"x\x9c", b"x\xda")
HIDDEN_FIRST = frozenset(b"P\x1fB\xfd]x\xff\xfe\0")
"""What such files begin with; a zip application begins with a shebang."""
_HASH = ord("#")
_PIECE = 1 << 18
_INFLATED = 256 << 20
"""How much of one file is inflated at the most: it may be a bomb."""
_DEEPEST = 2


def may_hide(first: int, in_packages: bool) -> bool:
    """Whether a file may hide a reference.

    Args:
        first: its first byte.
        in_packages: whether it is in a directory of packages, where no zip application is.
    """
    return first in HIDDEN_FIRST or (first == _HASH and not in_packages)


def hidden_reference(file: int, wanted: tuple[bytes, ...]) -> str | None:
    """Why a reference in a file cannot be edited; None where there is none.

    Args:
        file: descriptor of the file.
        wanted: what one is in each file with a reference.
    """
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(os.dup(file), "rb") as stream:
        return reference_inside(stream, wanted)


def reference_inside(stream: BinaryIO, wanted: tuple[bytes, ...]) -> str | None:
    """The same of a stream that can be searched through, at its beginning."""
    with suppress(Exception):  # broken archives of every kind: nothing to find in them
        return _inside(stream, _head(stream), wanted, 0)
    return None


def _head(stream: BinaryIO) -> bytes:
    head = stream.read(8)
    stream.seek(0)
    return head


def _inside(stream: BinaryIO, head: bytes, wanted: tuple[bytes, ...], depth: int) -> str | None:
    for mark, coding, reason in _UTF:
        if head.startswith(mark):
            encoded = tuple(needle.decode("ascii").encode(coding) for needle in wanted)
            return reason if _is_in(stream, encoded) else None
    if head.startswith((_ZIP, b"#!")):
        return "it is a zip archive" if _is_in_zip(stream, wanted, depth) else None
    inflated = _inflated(stream, head)
    if inflated is not None and _is_deeper(inflated, wanted, depth):
        return "it is compressed"
    return None


def _inflated(stream: BinaryIO, head: bytes) -> IO[bytes] | None:
    """What is in a compressed stream; None where it is none."""
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb"))
    if head.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File(stream)
    if head.startswith((b"\xfd7zXZ\0", b"]\0\0")):
        import lzma

        return lzma.LZMAFile(stream)
    if head.startswith(_ZLIB):
        return io.BytesIO(zlib.decompressobj().decompress(stream.read(_INFLATED), _INFLATED))
    return None


def _is_in_zip(stream: BinaryIO, wanted: tuple[bytes, ...], depth: int) -> bool:
    import zipfile

    if not zipfile.is_zipfile(stream):
        return False
    with zipfile.ZipFile(stream) as archive:
        left = _INFLATED
        for member in archive.infolist():
            left -= member.file_size
            if left < 0:
                return False
            with archive.open(member) as inner:
                if _is_deeper(inner, wanted, depth):
                    return True
    return False


def _is_deeper(stream: IO[bytes], wanted: tuple[bytes, ...], depth: int) -> bool:
    """Whether a needle is in what an archive contains."""
    inner = cast("BinaryIO", stream)
    head = _head(inner)
    if depth < _DEEPEST and head and head[0] in HIDDEN_FIRST:
        with suppress(Exception):  # it only begins like one
            if _inside(inner, head, wanted, depth + 1) is not None:
                return True
        inner.seek(0)
    return _is_in(inner, wanted)


def _is_in(stream: BinaryIO, wanted: tuple[bytes, ...]) -> bool:
    """Whether a needle is in what the stream gives, up to a limit."""
    keep = max(map(len, wanted)) - 1
    tail, total = b"", 0
    while total < _INFLATED:
        piece = stream.read(_PIECE)
        if not piece:
            return False
        text = tail + piece
        if any(needle in text for needle in wanted):
            return True
        tail = text[-keep:] if keep else b""
        total += len(piece)
    return False
