"""What is kept between two packings of a virtualenv: what its files were, and compressed blocks."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..relocation.workers import LOADED
from ..system import files
from ..system.locks import held
from ..system.ownership import make_trusted
from .blocks import Store
from .index import Index
from .tree import Tree

_SECONDS = 30 * 24 * 3600
_LEFT = re.escape(files.TEMPORARY)
_INDEX = re.compile(rf"index-[0-9a-f]{{16}}(?P<left>{_LEFT})?\Z")
_BLOCK = re.compile(rf"[0-9a-f]{{64}}\.[0-9a-f]{{64}}\Z|(?P<left>{_LEFT}.+)\Z")


class Cache:
    """A directory for that, which is locked.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._blocks = os.path.join(directory, "blocks")

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
        make_trusted(directory)
        descriptor = files.open_root(directory)
        try:
            with held(descriptor, directory, doing, wait):
                yield cls(directory)
        finally:
            os.close(descriptor)

    def tidy_up(self) -> None:
        """Remove what no packing has used for a month, and what a killed run has left.

        Files of other names are somebody else's: the directory may be any that was given.
        """
        until = time.time() - _SECONDS
        for directory, ours in ((self._directory, _INDEX), (self._blocks, _BLOCK)):
            for name in os.listdir(directory) if os.path.isdir(directory) else ():
                match = ours.match(name)
                path = os.path.join(directory, name)
                if match and (match["left"] or os.lstat(path).st_mtime < until):
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
        basis = [LOADED, python.long_version, python.cache_tag, python.magic.hex()]
        # What this program is cannot be said of one in a zip: nothing is known then.
        file = os.path.join(self._directory, f"index-{place}") if LOADED else ""
        return Index(file, [*basis, tree.prefixes, mode])

    def store(self, form: str, level: int | None) -> Store | None:
        """The compressed blocks; None where nothing is compressed."""
        if form == "tar":
            return None
        return Store(self._blocks, form, level)
