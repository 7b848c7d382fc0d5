"""Which files are a package's own text, in which a common prefix is no reference.

A file is its package's own where RECORD lists it with the hash that it still has, or without one as
some tools write it, and no installer writes such a file; there a prefix of plain words (`/app`,
`/home/user`, `/usr/src/app`) is a reference only where the path goes on to something that is
installed in the virtualenv. What else follows such a prefix there, as in the URL `/app/static/`, is
left, and the file is reported.
Shebangs, RUNPATH, the names of sources in bytecode, all other files, and every other prefix are
rewritten wherever they are references.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

from ..artefacts import bytecode, metadata
from ..artefacts.kinds import rewrite, written_at_installation
from ..artefacts.prefix import Prefixes
from ..system import files
from ..virtualenvs.distributions import listed_path
from .records import Records
from .scan import WHOLE

_PIECE = 1 << 20


class Packaged:
    """The files of a virtualenv that are as their packages were built.

    Args:
        root: descriptor of the virtualenv.
        records: the RECORDs of its packages.
        prefixes: what is replaced by what.
    """

    def __init__(self, root: int, records: Records, prefixes: Prefixes) -> None:
        self.root = root
        self.prefixes = prefixes
        self._records = records
        self._own = prefixes.in_package(self._exists)
        self._rows: dict[str, tuple[str, bytes] | None] | None = None

    def prefixes_for(self, path: str, file: int) -> Prefixes:
        """What to replace in a file.

        Args:
            path: relative to the virtualenv.
            file: a descriptor of it; its position is not changed.
        """
        if not self.prefixes.common or written_at_installation(path, os.pread(file, 256, 0)):
            return self.prefixes
        source = bytecode.source_of(path)
        if source is None:
            return self._own if self._is_own(path, file) else self.prefixes
        try:
            with files.directory_of(self.root, source) as (directory, name):
                opened = files.open_file(directory, name)
        except OSError:  # without a source it is for itself
            return self._own if self._is_own(path, file) else self.prefixes
        try:
            written = written_at_installation(source, b"")
            return self._own if not written and self._is_own(source, opened) else self.prefixes
        finally:
            os.close(opened)

    def _is_own(self, path: str, file: int) -> bool:
        if self._rows is None:
            self._rows = dict(_rows(self._records))
        if path not in self._rows:
            return False
        recorded = self._rows[path]
        if recorded is None:
            return True
        algorithm, digest = recorded
        if _digest(algorithm, _pieces(file)) == digest:
            return True
        if os.fstat(file).st_size > WHOLE:
            return False
        # A killed run may have written the RECORD, and not the file.
        new = rewrite(path, b"".join(_pieces(file)), self._own).data
        return _digest(algorithm, (new,)) == digest

    def _exists(self, path: bytes) -> bool:
        if b".." in path.split(b"/"):
            return False
        try:
            os.stat(path, dir_fd=self.root, follow_symlinks=False)
        except (OSError, ValueError):
            return False
        return True


def _rows(records: Records) -> Iterable[tuple[str, tuple[str, bytes] | None]]:
    """The path of each row, and its hash."""
    for record, data in records:
        for row, line in metadata.record_rows(data):
            yield listed_path(record, row), metadata.recorded_digest(line)


def _pieces(file: int) -> Iterable[bytes]:
    at = 0
    while piece := os.pread(file, _PIECE, at):
        yield piece
        at += len(piece)


def _digest(algorithm: str, pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.new(algorithm)
    for piece in pieces:
        digest.update(piece)
    return metadata.encoded(digest.digest())
