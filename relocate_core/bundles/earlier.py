"""Bytecode that an earlier packing has compiled, in the blocks that it kept.

A block is made again as soon as one of its files has changed; the rest of it is as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator

from ..archives.tar import Refused
from ..errors import TreeError
from .blocks import Store
from .index import Known


class Earlier:
    """The blocks of earlier packings, of which one is open at a time.

    Args:
        store: where they are; None where nothing is kept.
    """

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._paths: dict[str, str] = {}
        self._block = ""
        self._members: Generator[tuple[str, Iterator[bytes]], None, None] | None = None

    def close(self) -> None:
        """Close the block that is open."""
        if self._members is not None:
            self._members.close()

    def has(self, known: Known | None) -> bool:
        """Whether the content of a file that is known is in a block that is whole."""
        if known is None or known.found is None or not known.block or self._store is None:
            return False
        if known.block not in self._paths:
            self._paths[known.block] = self._store.find(known.block)
        return self._paths[known.block] != ""

    def take(self, path: str, known: Known) -> bytes:
        """That content. What is in one block is taken in order.

        Args:
            path: the file's.
            known: what is known of it; `has` has said yes to that.

        Raises:
            TreeError: the block is not what was noted of it.
        """
        assert known.found is not None, "`has` has seen to it"
        try:
            for name, pieces in self._open(known.block):
                if name == path:
                    data = b"".join(pieces)
                    if hashlib.sha256(data).hexdigest() == known.found.sha256:
                        return data
                    break
        except Refused:
            pass
        raise TreeError(
            f"{self._paths[known.block]} is not what was noted of it: remove that cache, and run "
            "again"
        )

    def _open(self, block: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        """What was not taken yet of the members of a block."""
        if self._members is None or block != self._block:
            assert self._store is not None, "`has` has seen to it"
            self.close()
            self._block, self._members = block, self._store.members(self._paths[block])
        return self._members
