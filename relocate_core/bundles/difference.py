"""What differs between two builds, in words that an operator reads: packages before files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..archives.tar import DIRECTORY, FILE, Refused
from ..errors import BadArchive, InvalidPath, TreeError
from ..progress import Report
from ..system import files
from ..virtualenvs import manifest_reader
from ..virtualenvs.layout import absolute_prefix, inspect
from ..virtualenvs.manifest import NAME, RECORD, Row
from . import reader

# Whatever may be in a version but a dash, as installers normalize it (the specification of the
# directory's name, "Recording installed projects").
_INSTALLED = re.compile(
    r"(?:.*/)?(?:site|dist)-packages/(?P<name>[^/]+?)-(?P<version>[^-/]+)(?:-py[\d.]+)?"
    r"\.(?:dist|egg)-info(?:/.*)?\Z"
)
_DJANGO = re.compile(r"(?:.*/)?(?P<app>[^/]+)/migrations/(?P<name>\d[^/]*)\.py\Z")
_ALEMBIC = re.compile(r"(?:.*/)?versions/(?P<name>[0-9a-f]{6,}_[^/]+)\.py\Z")
_OWN = os.path.dirname(NAME)


@dataclass(frozen=True)
class Difference(Report):
    """What differs between two builds.

    Attributes:
        old: the path of the first one.
        new: the path of the second one.
        added: the version of each package that only the second one has, by name.
        removed: the version of each one that only the first one has.
        changed: the two versions of each one whose version differs.
        migrations: those that only the second one has, such as `shop 0002_price`.
        files: how many files were added, removed and changed; the latter is missing where one of
            the two has no manifest, as for a virtualenv that was not packed. Empty where only the
            packages were compared.
        size: how many bytes the files of the second one have more.
        summary: the packages and the migrations in one line, such as
            `django 5.2.1 -> 5.2.4, +orjson 3.11`.
    """

    old: str
    new: str
    added: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, dict[str, str]] = field(default_factory=dict)
    migrations: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    size: int = 0
    summary: str = ""


def diff(old: str, new: str, *, brief: bool = False) -> Difference:
    """Compare two builds: releases, virtualenvs or full bundles. No file's content is read.

    A package is known by its directory of metadata, a file of a bundle or of what was deployed from
    one by its digest in the manifest.

    Args:
        old: a directory, or a bundle.
        new: likewise.
        brief: compare the packages alone; of directories, no file is looked at for that.

    Raises:
        InvalidPath: one of them does not exist, or is a delta bundle.
        NotAVirtualenv: a directory is none.
        BadArchive: an archive is no bundle, or damaged.
    """
    before, after = _Build.of(old, brief), _Build.of(new, brief)
    known, there = _packages(before.rows), _packages(after.rows)
    added = {name: there[name] for name in sorted(there.keys() - known.keys())}
    removed = {name: known[name] for name in sorted(known.keys() - there.keys())}
    changed = {
        name: {"old": known[name], "new": there[name]}
        for name in sorted(known.keys() & there.keys())
        if known[name] != there[name]
    }
    if brief:
        return Difference(
            old, new, added, removed, changed, summary=_summary(added, removed, changed)
        )
    migrations = sorted(_migrations(after.rows) - _migrations(before.rows))
    return Difference(
        *(old, new, added, removed, changed, migrations),
        files=_counts(before, after),
        size=after.size - before.size,
        summary=_summary(added, removed, changed, migrations),
    )


def _summary(
    added: dict[str, str],
    removed: dict[str, str],
    changed: dict[str, dict[str, str]],
    migrations: Sequence[str] = (),
) -> str:
    packages = [f"{name} {one['old']} -> {one['new']}" for name, one in changed.items()]
    packages += [f"+{name} {version}" for name, version in added.items()]
    packages += [f"-{name} {version}" for name, version in removed.items()]
    brought = ["migrations " + ", ".join(migrations)] if migrations else []
    return "; ".join([", ".join(packages) or "the same packages", *brought])


class _Build(NamedTuple):
    """The files and symlinks of a build."""

    rows: dict[str, Row]
    """By their paths."""
    is_packed: bool
    """Whether a manifest has them, and so the digests of their content."""

    @property
    def size(self) -> int:
        """Bytes in its files."""
        return sum(row.size for row in self.rows.values())

    @classmethod
    def of(cls, path: str, brief: bool) -> _Build:
        """What is at a path; in brief, of a directory only what shows the packages."""
        absolute_prefix(os.path.abspath(path), "the path")
        if not os.path.lexists(path):
            raise InvalidPath(f"cannot compare {path}: it does not exist")
        if not os.path.isdir(path):
            with reader.of_archive(path) as known:
                return cls(_of_manifest(path, known), True)
        if brief:
            return cls(_metadata(path), False)
        root = files.open_root(path)
        try:
            found = manifest_reader.of_tree(root)
            if found is not None:
                with found as known:
                    return cls(_of_manifest(path, known), True)
        except Refused as refusal:
            raise BadArchive(f"cannot compare {path}: {refusal}; {refusal.advice}") from refusal
        finally:
            os.close(root)
        return cls(_of_directory(path), False)


def _counts(before: _Build, after: _Build) -> dict[str, int]:
    """How many files were added, removed and changed."""
    counts = {
        "added": len(after.rows.keys() - before.rows.keys()),
        "removed": len(before.rows.keys() - after.rows.keys()),
    }
    if before.is_packed and after.is_packed:
        pairs = (
            (before.rows[path], after.rows[path]) for path in before.rows if path in after.rows
        )
        counts["changed"] = sum(_content(one) != _content(other) for one, other in pairs)
    return counts


def _metadata(path: str) -> dict[str, Row]:
    """The directories that show the packages of a virtualenv."""
    found = {}
    for place in inspect(path).site_packages:
        for name in os.listdir(os.path.join(path, place)):
            found[f"{place}/{name}"] = Row(f"{place}/{name}", DIRECTORY)
    return found


def _of_manifest(path: str, known: manifest_reader.Manifest) -> dict[str, Row]:
    if known.head.base is not None:
        raise InvalidPath(
            f"cannot compare {path}: it is a delta bundle; name the full bundle of that release"
        )
    try:
        return {row.path: row for row in known.rows() if row.kind != DIRECTORY}
    except Refused as refusal:
        raise BadArchive(f"cannot compare {path}: {refusal}; {refusal.advice}") from refusal


def _of_directory(path: str) -> dict[str, Row]:
    """Those of a virtualenv that was not packed, whose content nobody has recorded."""
    inspect(path)

    def fail(error: OSError) -> None:
        raise TreeError.of(error.filename or path, error, "compare")

    found = {}
    for parent, directories, names in os.walk(path, onerror=fail):
        directories[:] = [name for name in directories if name != _OWN]
        for name in sorted({*names} - {RECORD}):
            place = os.path.join(parent, name)
            relative = os.path.relpath(place, path)
            found[relative] = Row(relative, FILE, size=os.lstat(place).st_size)
    return found


def _packages(paths: Iterable[str]) -> dict[str, str]:
    """The version of each installed package, by its normalized name (PEP 503)."""
    found = filter(None, map(_INSTALLED.match, paths))
    return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in found}


def _migrations(paths: Iterable[str]) -> set[str]:
    found = set()
    for path in paths:
        if match := _DJANGO.match(path):
            found.add(f"{match['app']} {match['name']}")
        elif match := _ALEMBIC.match(path):
            found.add(match["name"])
    return found


def _content(row: Row) -> tuple[str, str, str]:
    return row.kind, row.sha256, row.target
