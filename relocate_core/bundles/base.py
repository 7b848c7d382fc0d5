"""The full bundle that a delta bundle is made from."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..archives.compression import FORMS, form_of
from ..archives.tar import FILE, Refused
from ..errors import BadArchive
from ..virtualenvs.manifest import Row
from ..virtualenvs.manifest_reader import plain_sha256, row_of
from . import reader


class BaseBundle(NamedTuple):
    """The full bundle that a delta bundle is made from."""

    archive: str
    manifest: str
    """Its manifest's digest."""
    lines: list[bytes]
    """The lines of its rows, in order. Nearly all are those of the new bundle too, and are never
    taken apart."""
    contents: frozenset[str]
    """The digests of its files."""
    others: frozenset[Row]
    """The rows of all but files."""

    def has(self, row: Row) -> bool:
        """Whether a delta bundle does without the member of that row."""
        return row.sha256 in self.contents if row.kind == FILE else row in self.others


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
        lines: list[bytes] = []
        contents: set[str] = set()
        others: set[Row] = set()
        try:
            for line in known.lines():
                lines.append(line.rstrip(b",\n"))
                sha256 = plain_sha256(line)
                if sha256:
                    contents.add(sha256)
                    continue
                row = row_of(line)
                if row.kind == FILE:
                    contents.add(row.sha256)
                else:
                    others.add(row)
        except Refused as refusal:
            raise BadArchive(
                f"cannot make a delta bundle from {archive}: {refusal}; {refusal.advice}"
            ) from refusal
        return BaseBundle(archive, known.digest, lines, frozenset(contents), frozenset(others))


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
