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
from contextlib import suppress
from typing import Any, NamedTuple

from ..artefacts.elf import Needs
from ..system import files

_RACY = 2_000_000_000  # in nanoseconds


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
        self._new: dict[str, list[Any]] = {}
        self._blocks: list[str] = []

    def get(self, path: str, signature: str) -> Known | None:
        """What is known of a path, if it is as it was."""
        row = self._old.get(path)
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
            self._new[path] = [signature, kept, found, len(self._blocks)]

    def end_block(self, key: str) -> None:
        """Note the key of the block that has what was noted since the last one."""
        self._blocks.append(key)

    def save(self) -> None:
        """Keep what was noted for the next packing, and nothing else."""
        if not self._path:
            return
        known = {
            path: row
            for path, row in self._new.items()
            if int(row[0].rpartition(" ")[2]) < self._before
            and int(row[0].split(" ", 4)[3]) < self._before
        }
        text = json.dumps([known, self._blocks], separators=(",", ":")).encode()
        digest = hashlib.sha256(text).hexdigest()
        temporary = f"{self._path}{files.TEMPORARY}"
        with open(temporary, "wb") as file:
            file.write(f"{self._basis} {digest}\n".encode())
            file.write(text)
        os.rename(temporary, self._path)

    def _read(self) -> tuple[dict[str, list[Any]], list[str]]:
        """What was noted; nothing where that is damaged, or was noted on another basis."""
        with suppress(FileNotFoundError), open(self._path, "rb") as file:
            first, text = file.readline(256), file.read()
            if first == f"{self._basis} {hashlib.sha256(text).hexdigest()}\n".encode():
                known, blocks = json.loads(text)
                return known, blocks
        return {}, []
