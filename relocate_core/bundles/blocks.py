"""The blocks that a bundle's members are compressed in, and those that are kept for the next one.

A block is compressed on its own: a gzip member or a zstd frame, of which a file may have many (RFC
1952, RFC 8878). Where one ends depends on the paths and sizes of what is in it and just before it,
so that a change moves the bounds of its neighbours at most. A block that is kept is found by all
that decides about its bytes: the rows of its members, and what compresses them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import IO, NamedTuple

from ..archives.compression import compress, compressor
from ..archives.decompression import Stream
from ..archives.tar import DIRECTORY, members
from ..system import files
from ..system.processes import usable_cores
from ..virtualenvs.manifest import Row
from .tree import Entry

LARGE = 4 << 20
"""Bytes; a file of that size is a block of its own."""
# Smaller ones made zstd 5 % larger on sources, as each begins with nothing that it could refer to.
_LEAST = 2 << 20
_MOST = 8 << 20
_ONE_IN = 4
_PIECE = 1 << 20
_ANY = 1 << 62


class Block(NamedTuple):
    """Some members in a row."""

    first: int
    """Their first entry."""
    last: int
    """The entry behind them."""
    key: str = ""
    """What one that is kept is found by."""
    path: str = ""
    """Where it is kept, compressed."""
    rows: Sequence[Row] = ()
    """Of one that is kept."""


def cut(entries: Sequence[Entry]) -> Iterator[tuple[int, int]]:
    """The bounds of each block: the first of its entries, and the one behind its last."""
    first = size = 0
    for at, entry in enumerate(entries):
        if at > first and _begins(entries[at - 1], entry, size):
            yield first, at
            first, size = at, 0
        size += entry.size
    if entries:
        yield first, len(entries)


def _begins(before: Entry, entry: Entry, size: int) -> bool:
    """Whether a block begins with an entry, behind so many bytes of another one."""
    if before.size >= LARGE or entry.size >= LARGE or size >= _MOST:
        return True
    if size < _LEAST or entry.kind != DIRECTORY:
        return False
    return zlib.crc32(os.fsencode(entry.path)) % _ONE_IN == 0


class Store:
    """The blocks that are kept, each in a file that is named by what it is of, and its digest.

    Args:
        directory: where they are; made where it is missing.
        form: what they are compressed with, as `form_of` gives it.
        level: likewise.
    """

    def __init__(self, directory: str, form: str, level: int | None) -> None:
        os.makedirs(directory, exist_ok=True)
        self._directory = directory
        self._compressor = compressor(form, level)
        names = [name for name in os.listdir(directory) if name.count(".") == 1]
        self._names = {name.partition(".")[0]: name for name in names}

    def key(self, rows: Iterable[Row]) -> str:
        """What a block of these rows is found by."""
        lines = "\n".join([self._compressor, *(row.line() for row in rows)])
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def find(self, key: str) -> str:
        """The file with a block; "" without any that is whole."""
        name = self._names.get(key)
        if name is None:
            return ""
        path = os.path.join(self._directory, name)
        with suppress(OSError):
            with open(path, "rb", 0) as file:
                if files.digest(file.fileno()).hex() == name.partition(".")[2]:
                    os.utime(file.fileno())  # it was used
                    return path
            os.unlink(path)  # it is damaged
        return ""

    def put(self, key: str, block: Iterable[bytes]) -> str:
        """Keep a block; the file that it is in."""
        digest = hashlib.sha256()
        temporary = os.path.join(self._directory, files.temporary_name())
        with open(temporary, "wb") as file:
            for piece in block:
                digest.update(piece)
                file.write(piece)
        path = os.path.join(self._directory, f"{key}.{digest.hexdigest()}")
        os.rename(temporary, path)
        return path

    def read(self, path: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Iterator[bytes]]]:
        """The members of a block that is kept, and their contents.

        Args:
            path: the file that it is in.
            rows: what it is of.
        """
        for row, (_, pieces) in zip(rows, self.members(path)):
            yield row, pieces

    def members(self, path: str) -> Generator[tuple[str, Iterator[bytes]], None, None]:
        """The names and contents of all members of a block that is kept.

        Args:
            path: the file that it is in.

        Raises:
            Refused: it is asked for more than there are.
        """
        with open(path, "rb", 0) as file, Stream(file.fileno(), {}, _ANY, _ANY) as stream:
            for member in members(stream):
                pieces = map(bytes, stream.pieces(member.stored))
                yield member.name, pieces
                deque(pieces, 0)  # what was not taken


class Body:
    """The members of a bundle, block by block, compressed on all cores.

    Args:
        directory: where there is room for all of it.
        form: how they are compressed, as `form_of` gives it.
        level: likewise.
        store: keeps the blocks for the next bundle.
    """

    def __init__(
        self, directory: str, form: str, level: int | None, store: Store | None = None
    ) -> None:
        self._directory = directory
        self._form = form
        self._level = level
        self._store = store
        self._cores = usable_cores()
        self._pool = ThreadPoolExecutor(self._cores, "compression")
        self._packed = self._file()
        """The blocks that are not kept, compressed."""
        self._block: IO[bytes] | None = None
        self._ahead: deque[tuple[Future[IO[bytes]] | None, str]] = deque()
        """In order: blocks that are being compressed, each with its key, and paths of those that
        are kept."""
        self._segments: list[str | int] = []
        """In order: the path of a block that is kept, or how many bytes of the others."""

    def another(self) -> Body:
        """An empty one in the same place and of the same form, of which nothing is kept."""
        return Body(self._directory, self._form, self._level)

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._directory)

    def close(self) -> None:
        """End what runs."""
        for future, _ in self._ahead:
            if future is not None:
                future.cancel()
        self._pool.shutdown()
        self._ahead.clear()
        self._packed.close()
        if self._block is not None:
            self._block.close()

    def add(self, path: str) -> None:
        """Take a block that is kept."""
        self._ahead.append((None, path))

    def write(self, data: bytes) -> None:
        """Take more of a block."""
        if self._block is None:
            self._block = self._file()
        self._block.write(data)

    def finish(self, key: str = "") -> None:
        """End a block, which is kept under that key if there is one."""
        block, self._block = self._block, None
        if block is None:
            return
        path = self._store.find(key) if key and self._store is not None else ""
        if path:  # its files were read again, and are what they were
            block.close()
            self.add(path)
            return
        self._ahead.append((self._pool.submit(self._compress, block), key))
        self._drain(self._cores + 1)

    def _compress(self, block: IO[bytes]) -> IO[bytes]:
        """A block's compressed bytes, in a file; the block itself is given up."""
        with block, ExitStack() as stack:
            packed = stack.enter_context(self._file())
            compress(block, packed, self._form, self._level)
            stack.pop_all()
        return packed

    def _drain(self, most: int) -> None:
        """Wait until at most so many blocks are before the last one."""
        while len(self._ahead) > most:
            future, key = self._ahead.popleft()
            if future is None:
                self._segments.append(key)
                continue
            with future.result() as block:
                size = block.seek(0, os.SEEK_END)
                block.seek(0)
                if key and self._store is not None:
                    self._segments.append(self._store.put(key, _pieces(block, size)))
                else:
                    shutil.copyfileobj(block, self._packed, _PIECE)
                    self._segments.append(size)

    def pieces(self) -> Iterator[bytes]:
        """All of it, once the last block has ended."""
        self._drain(0)
        self._packed.seek(0)
        for segment in self._segments:
            if isinstance(segment, int):
                yield from _pieces(self._packed, segment)
            else:
                with open(segment, "rb") as file:
                    yield from _pieces(file, os.fstat(file.fileno()).st_size)


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise EOFError
        size -= len(piece)
        yield piece
