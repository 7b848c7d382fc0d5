"""What an earlier packing has found in each file, so that the next one need not read it again.

A file is taken for the one of then by its inode, size and times. One that was changed within two
seconds of that packing is not noted, as another change then need not show in its times (git's
documentation calls this the racy index). All of it is forgotten where anything else has changed
that it depends on: the code that looks, the virtualenv's Python, the paths that are looked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from ..artefacts.elf import Needs
from ..system import files

_RACY = 2_000_000_000  # in nanoseconds
_PIECE = 1 << 20
_TOGETHER = 1000
"""Rows in a line."""


class Found(NamedTuple):
    """What packing needs to know of a file's content."""

    size: int
    sha256: str
    reference: bool = False
    """Whether it refers to a prefix."""
    hidden: str = ""
    """Why a reference in it cannot be edited; "" without any."""
    compiled: bool = False
    """Whether it is an ELF object."""
    needs: Needs | None = None


class Known(NamedTuple):
    """What is known of a path."""

    kept: bool
    """Of bytecode, whether what is there is of its source as it is, and can be made portable."""
    found: Found | None
    """None for bytecode of a source that does not compile."""
    block: str = ""
    """The key of the block that its content is in; "" without any."""


def signature(status: os.stat_result, other: os.stat_result | None = None) -> str:
    """What a file is known again by, or bytecode by its source and by itself where it exists."""
    text = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return text if other is None else f"{text} {signature(other)}"


class Index:
    """What is known of the files of a virtualenv.

    Args:
        path: the file that it is kept in; "" for none.
        basis: all that it depends on but the files themselves.
    """

    def __init__(self, path: str, basis: Any) -> None:
        self._path = path
        self._basis = hashlib.sha256(json.dumps(basis).encode()).hexdigest()
        self._before = time.time_ns() - _RACY
        self._old, self._old_blocks = self._read() if path else ({}, [])
        self._new: dict[str, tuple[str, bool, Found | None, int]] = {}
        self._blocks: list[str] = []

    @property
    def is_kept(self) -> bool:
        """Whether anything is noted for the next packing."""
        return bool(self._path)

    def get(self, path: str, signature: str) -> Known | None:
        """What is known of a path, if it is as it was."""
        return self._known(self._old.get(path), signature)

    def take(self, path: str, signature: str) -> Known | None:
        """The same, once: what was noted takes as much memory as what is known of it."""
        return self._known(self._old.pop(path, None), signature)

    def _known(self, row: list[Any] | None, signature: str) -> Known | None:
        if row is None or row[0] != signature:
            return None
        found = row[2]
        if found is not None:
            *rest, needs = found
            if needs is not None:
                needs = Needs(needs[0], needs[1], tuple(needs[2]))
            size, sha256, reference, hidden, compiled = rest
            found = Found(size, sha256, reference, hidden, compiled, needs)
        return Known(row[1], found, self._old_blocks[row[3]] if self._old_blocks else "")

    def note(self, path: str, signature: str, kept: bool, found: Found | None) -> None:
        """Note what was found in a path."""
        if self._path and signature:
            self._new[path] = (signature, kept, found, len(self._blocks))

    def end_block(self, key: str) -> None:
        """Note the key of the block that has what was noted since the last one."""
        self._blocks.append(key)

    def save(self) -> None:
        """Keep what was noted for the next packing, and nothing else."""
        if not self._path:
            return
        digest = hashlib.sha256()
        temporary = f"{self._path}{files.TEMPORARY}"
        with open(temporary, "wb") as file:
            for line in self._lines():
                digest.update(line)
                file.write(line)
            file.write(self._seal(digest.hexdigest()))
        os.rename(temporary, self._path)

    def _lines(self) -> Iterator[bytes]:
        """The keys of the blocks, then rows, some a line: all at once take a lot of memory."""
        encode = json.JSONEncoder(separators=(",", ":")).encode
        yield f"{encode(self._blocks)}\n".encode()
        rows = self._rows()
        while some := list(islice(rows, _TOGETHER)):
            yield f"{encode(some)}\n".encode()

    def _rows(self) -> Iterator[list[Any]]:
        """What is kept of each file."""
        for path, (signature, *row) in self._new.items():
            ctimes = signature.split(" ")[3::4]
            if all(int(ctime) < self._before for ctime in ctimes):
                yield [path, signature, *row]

    def _seal(self, digest: str) -> bytes:
        """The last line."""
        return f"{self._basis} {digest}\n".encode()

    def _read(self) -> tuple[dict[str, list[Any]], list[str]]:
        """What was noted; nothing where that is damaged, or was noted on another basis."""
        with suppress(FileNotFoundError), open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - len(self._seal("0" * 64))
            digest = hashlib.sha256()
            for begin in range(0, size, _PIECE):
                digest.update(file.read(min(_PIECE, size - begin)))
            if file.read() == self._seal(digest.hexdigest()) and size > 0:
                file.seek(0)
                blocks: list[str] = json.loads(file.readline())
                known: dict[str, list[Any]] = {}
                for line in file:
                    if line.startswith(b"["):  # all but the last one
                        known.update((path, row) for path, *row in json.loads(line))
                return known, blocks
        return {}, []
