"""What is kept between two packings of a virtualenv: what its files were, and compressed blocks."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..relocation.workers import fingerprint
from ..system import files
from ..system.locks import LOCK, held
from ..system.ownership import require_trusted
from .blocks import Store
from .index import Index
from .tree import Tree

_SECONDS = 30 * 24 * 3600


class Cache:
    """A directory for that, which is locked.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @classmethod
    @contextmanager
    def of(cls, directory: str, doing: str, wait: float) -> Iterator[Cache]:
        """Lock the cache in a directory, which is made where it is missing.

        Args:
            directory: where it is.
            doing: what it is locked for.
            wait: seconds to wait for another packing.

        Raises:
            Busy: another packing had it all the time.
            UnsafeDirectory: somebody else could change what is packed.
        """
        directory = os.path.abspath(directory)
        above = directory
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        require_trusted(above)
        os.makedirs(directory, 0o755, exist_ok=True)
        descriptor = files.open_root(directory)
        try:
            with held(descriptor, directory, doing, wait):
                yield cls(directory)
        finally:
            os.close(descriptor)

    def tidy_up(self) -> None:
        """Remove what no packing has used for a month, and what a killed run has left."""
        until = time.time() - _SECONDS
        for directory, _, names in os.walk(self._directory):
            for name in names:
                path = os.path.join(directory, name)
                left = files.TEMPORARY in name or os.stat(path).st_mtime < until
                if left and name != LOCK:
                    os.unlink(path)

    def index(self, path: str, tree: Tree, mode: str) -> Index:
        """What is known of the files of a virtualenv.

        Args:
            path: its directory.
            tree: what is packed of it.
            mode: how bytecode knows whether it fits its source.
        """
        place = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
        python = tree.interpreter
        basis = [fingerprint(), python.long_version, python.cache_tag, python.magic.hex()]
        return Index(os.path.join(self._directory, f"index-{place}"), [*basis, tree.prefixes, mode])

    def store(self, form: str, level: int | None) -> Store | None:
        """The compressed blocks; None where nothing is compressed."""
        if form == "tar":
            return None
        return Store(os.path.join(self._directory, "blocks"), form, level)
