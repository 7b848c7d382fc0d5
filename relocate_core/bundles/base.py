"""The full bundle that a delta bundle is made from."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..archives.compression import FORMS, form_of
from ..archives.tar import FILE, Refused
from ..errors import BadArchive
from ..virtualenvs.manifest import Row
from . import reader


class BaseBundle(NamedTuple):
    """The full bundle that a delta bundle is made from."""

    archive: str
    manifest: str
    """Its manifest's digest."""
    rows: dict[str, Row]
    """By their paths."""
    contents: frozenset[str]
    """The digests of its files."""

    def has(self, row: Row) -> bool:
        """Whether a delta bundle does without the member of that row."""
        return self.rows.get(row.path) == row or row.sha256 in self.contents


def base_bundle(archive: str) -> BaseBundle:
    """Read a full bundle that a delta bundle is to be made from.

    Raises:
        BadArchive: it is none, or damaged.
    """
    with reader.of_archive(archive) as known:
        if known.head.base is not None:
            raise BadArchive(
                f"cannot make a delta bundle from {archive}: it is a delta bundle itself; "
                "name the full bundle of that release"
            )
        try:
            rows = {row.path: row for row in known.rows()}
        except Refused as refusal:
            raise BadArchive(
                f"cannot make a delta bundle from {archive}: {refusal}; {refusal.advice}"
            ) from refusal
        contents = frozenset(row.sha256 for row in rows.values() if row.kind == FILE)
        return BaseBundle(archive, known.digest, rows, contents)


def delta_name(archive: str, base: str) -> str:
    """The path of a delta bundle, beside the full one.

    Raises:
        InvalidPath: one of them has no ending that a bundle has.
    """
    directory, name = os.path.split(archive)
    ending, other = _ending(name), os.path.basename(base)
    stem = other[: -len(_ending(other))]
    return os.path.join(directory, f"{name[: -len(ending)]}.from-{stem}{ending}")


def _ending(name: str) -> str:
    form_of(name)
    return next(ending for ending in FORMS if name.endswith(ending))
