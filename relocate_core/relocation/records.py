"""The RECORD files of a virtualenv: what they list, and bringing them up to date."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from functools import partial

from ..artefacts import bytecode, metadata
from ..artefacts.metadata import Digests
from ..artefacts.prefix import Prefixes
from ..system import files
from ..system.transaction import LINK, Transaction
from ..virtualenvs.distributions import listed_path, records

_HASHED_BYTECODE = b".pyc,sha"


class Records:
    """The RECORD of every installed distribution.

    Args:
        root: descriptor of the virtualenv.
        site_packages: its site-packages directories, relative to it.
        prefixes: what is replaced by what.
    """

    def __init__(self, root: int, site_packages: tuple[str, ...], prefixes: Prefixes) -> None:
        self.root = root
        self.site_packages = site_packages
        self.prefixes = prefixes
        self._back = [Prefixes((prefixes.new,), old) for old in prefixes.old]

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Path and content of each."""
        return records(self.root, self.site_packages)

    def update(
        self, transaction: Transaction, listed: Collection[str] | None = None
    ) -> Iterator[tuple[str, bool]]:
        """Rewrite every RECORD that lists a rewritten file, with that file's new hash and size.

        Args:
            transaction: what was rewritten.
            listed: the RECORDs to look at; by default all.

        Yields:
            The RECORD's path, and whether it was rewritten already.
        """
        marks = {_mark(path) for path in transaction.items} | {_HASHED_BYTECODE}
        for record, data in self if listed is None else self._read(listed):
            changed: dict[bytes, Callable[[str], Digests]] = {}
            for row, line in metadata.record_rows(data, marks):
                path = listed_path(record, row)
                item = transaction.items.get(path)
                if item is not None and item.kind != LINK:
                    changed[row] = partial(_digests, transaction, path)
                elif row.endswith(b".pyc") and _HASHED_BYTECODE in line:
                    changed[row] = partial(self._bytecode_digests, path, line)
            if changed:
                known = record in transaction.items
                old, status = transaction.read(record)
                new = metadata.update_record(old, changed)
                if new != old:
                    transaction.write(record, metadata.KIND, new, status)
                    yield record, known

    def _read(self, paths: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for path in paths:
            with files.directory_of(self.root, path) as (directory, name):
                yield path, files.read(directory, name)[0]

    def _bytecode_digests(self, path: str, line: bytes, algorithm: str) -> Digests:
        """The digests of bytecode, which was rewritten before anybody read the RECORD.

        Perhaps by a run that was then killed. So its old content is what the opposite rewrite
        gives, if the row fits that, and else it was never rewritten.
        """

        import hashlib

        def digest(content: bytes) -> bytes:
            return hashlib.new(algorithm, content).digest()

        try:
            with files.directory_of(self.root, path) as (directory, name):
                now, _ = files.read(directory, name)
            before = [bytecode.rewrite(path, now, back) for back in self._back]
            after = bytecode.rewrite(path, now, self.prefixes)
        except (OSError, bytecode.Unreadable):
            return Digests(b"", b"", 0)  # fits no row
        recorded = metadata.recorded_digest(line)
        digests = map(digest, (now, *before))
        fitting = [d for d in digests if recorded == (algorithm, metadata.encoded(d))]
        return Digests(fitting[0] if fitting else b"", digest(after), len(after))


def _digests(transaction: Transaction, path: str, algorithm: str) -> Digests:
    return Digests(*transaction.digests(path, algorithm))


def _mark(path: str) -> bytes:
    """What a row that lists `path` has in it. One mark for all scripts makes a search of many."""
    if path.startswith("bin/"):
        return b"/bin/"
    # Up to a quote, which is written twice in a row.
    return os.fsencode(path.rpartition("/")[2].partition('"')[0]) or b","
