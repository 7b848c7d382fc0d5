"""The bytes of an archive, decompressed and hashed by a thread while another one writes them.

The format is known by the first bytes, never by the file's name. What is decompressed is held in
pieces of fixed size, so an archive that unpacks to a thousand times its size costs no more memory
than any other; how much of it is taken is up to the caller's limits.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Callable, Protocol, cast

from . import tar, zstd
from .tar import BLOCK, DAMAGED, TOO_LARGE, Refused

_PACKED = 128 << 10
_PIECE = 1 << 20
_PIECES_AHEAD = 8
_MEMORY = 256 << 20
RATIO_FROM = 32 << 20
"""Bytes; the ratio of anything smaller means nothing."""


class Decompressor(Protocol):
    """What `bz2` and `lzma` have, and `_Gzip` is given."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """The next bytes, at most so many."""


def _inflater() -> Callable[..., Any]:
    """What has `zlib`'s interface: the package `isal` where it is installed, in half the time."""
    for name in ("isal.isal_zlib", "zlib"):
        with suppress(ImportError):
            return cast(Callable[..., Any], import_module(name).decompressobj)
    raise Refused("this Python has no zlib", advice="install it, or pack with zstd")


class _Gzip:
    def __init__(self) -> None:
        self._inner = _inflater()(wbits=31)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return bytes(self._inner.decompress(self._inner.unconsumed_tail + data, max_length))


def _gzip() -> Decompressor:
    return cast(Decompressor, _Gzip())


def _bzip2() -> Decompressor:
    import bz2

    return cast(Decompressor, bz2.BZ2Decompressor())


def _xz() -> Decompressor:
    import lzma

    return cast(Decompressor, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))


_MAGIC: tuple[tuple[bytes, Callable[[], Decompressor]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _bzip2),
    (b"\xfd7zXZ\0", _xz),
)


class Stream:
    """What an archive's file holds, to be taken from its beginning to its end.

    Args:
        file: descriptor of the archive, at its beginning; it stays open.
        digests: what the file has to hash to, by algorithm, in hexadecimal.
        most: bytes that it may unpack to, and
        ratio: times its own size that it may.

    Attributes:
        size: bytes of the file.

    Raises:
        Refused: the digests are of an unknown algorithm.
    """

    def __init__(self, file: int, digests: Mapping[str, str], most: int, ratio: int) -> None:
        self._file = file
        self._most = most
        self._ratio = ratio
        self._packed = 0
        self.size = os.fstat(file).st_size
        self._wanted = {name.lower(): value.lower() for name, value in digests.items()}
        self._hashes = {name: _new_hash(name) for name in {"sha256", *self._wanted}}
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = 0
        self._pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_PIECES_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="decompression", daemon=True)
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._pieces.get(timeout=0.05)
        self._thread.join()

    # --- taking ---------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """Exactly that many bytes.

        Raises:
            Refused: the archive is damaged, or ends before.
        """
        end = self._at + size
        if end <= len(self._chunk):
            taken = self._chunk[self._at : end]
            self._at = end
            return taken
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The same in the pieces that are at hand, without copying any of them."""
        while size:
            left = len(self._chunk) - self._at
            if not left:
                if not self._next():
                    raise Refused("it ends too soon", advice=DAMAGED)
                continue
            step = min(size, left)
            at, self._at = self._at, self._at + step
            yield self._view[at : at + step]
            size -= step

    def skip(self, size: int) -> None:
        """Take that many bytes, and drop them."""
        for _ in self.pieces(size):
            pass

    def rest(self) -> Iterator[bytes]:
        """Everything to the end, which proves that the archive is whole."""
        yield self._chunk[self._at :]
        while self._next():
            yield self._chunk
        self._at = len(self._chunk)

    def require_digests(self) -> dict[str, str]:
        """The file's hashes, once all of it was taken.

        Raises:
            Refused: one is not what it has to be.
        """
        found = {name: value.hexdigest() for name, value in self._hashes.items()}
        for name, wanted in self._wanted.items():
            if found[name] != wanted:
                raise Refused(
                    f"its {name} is {found[name]}, and {wanted} was expected", advice=DAMAGED
                )
        return found

    def _next(self) -> bool:
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            self._pieces.put(piece)
            raise piece
        if piece is None:
            self._pieces.put(None)
            return False
        self._chunk, self._view, self._at = piece, memoryview(piece), 0
        return True

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        total = 0
        try:
            for piece in self._unpacked():
                total += len(piece)
                if total > self._most:
                    raise Refused(f"it unpacks to more than {self._most:,} bytes", advice=TOO_LARGE)
                if total > RATIO_FROM and total > self._packed * self._ratio:
                    raise Refused(
                        f"it unpacks to more than {self._ratio} times its size",
                        advice=TOO_LARGE,
                    )
                if piece:
                    self._put(piece)
                if self._stopped.is_set():
                    return
            self._put(None)
        except Refused as error:
            self._put(error)
        except Exception as error:  # what each of the libraries raises; an OSError of bz2
            if isinstance(error, OSError) and error.errno:
                self._put(error)
                return
            text = str(error).rstrip(".") or type(error).__name__
            self._put(Refused(f"it cannot be decompressed ({text})", advice=DAMAGED))

    def _put(self, piece: bytes | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return

    def _read(self, size: int = _PACKED) -> bytes:
        """The next bytes of the file, which are hashed on the way."""
        data = os.read(self._file, size)
        self._packed += len(data)
        for digest in self._hashes.values():
            digest.update(data)
        return data

    def _unpacked(self) -> Iterator[bytes]:
        head = self._read()
        if zstd.begins(head):
            yield from zstd.unpacked(head, self._read)
            return
        for magic, new in _MAGIC:
            if head.startswith(magic):
                yield from self._decompressed(head, magic, new)
                return
        if not tar.begins(head):
            what = "it is empty" if not head else "it is no tar, plain or packed with gzip, bzip2, "
            raise Refused(what if not head else what + "xz or zstd", advice=DAMAGED)
        while head:
            yield head
            head = self._read(_PIECE)

    def _decompressed(
        self, data: bytes, magic: bytes, new: Callable[[], Decompressor]
    ) -> Iterator[bytes]:
        """What one or several compressed streams in a row hold; zeros may follow the last one."""
        while data:
            unpack = new()
            while not unpack.eof:
                wants = unpack.needs_input
                if wants and not data:
                    data = self._read()
                piece = unpack.decompress(data, _PIECE)
                if wants and not (piece or data or unpack.eof):
                    raise Refused("it ends too soon", advice=DAMAGED)
                yield piece
                data = b""
            data = unpack.unused_data
            if len(data) < len(magic):
                data += self._read()
            if not data.startswith(magic):
                while data:
                    if data.strip(b"\0"):
                        raise Refused("something follows the end of its compressed part")
                    data = self._read()


def _new_hash(name: str) -> Any:
    try:
        digest = hashlib.new(name)
    except (ValueError, TypeError):
        digest = None
    if digest is None or not digest.digest_size:
        raise Refused(f"this Python knows no hash {name!r} of a fixed length", advice="use sha256")
    return digest


def expected_size(file: int) -> int:
    """At least how many bytes an archive unpacks to, as far as that is known before it is done."""
    size = os.fstat(file).st_size
    head = os.pread(file, 8, 0)
    if head.startswith(b"\x1f\x8b") and size > 18:
        # The last four bytes are the size modulo 2^32 (RFC 1952), of the last member only.
        size_modulo = int.from_bytes(os.pread(file, 4, size - 4), "little")
        if size_modulo >= size:
            return size_modulo
        return max(size, size_modulo + (1 << 32)) if size > 1 << 30 else size
    return size - size % BLOCK
