"""A delta bundle's manifest: the rows that differ from a base, and the whole made of both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..archives.tar import FILE, Refused, printable
from ..system import files
from ..virtualenvs.manifest import NAME, Head, Row, first_line, lines
from ..virtualenvs.manifest_reader import damaged, row_of

_LAST = chr(0x10FFFF)


def difference(base: Sequence[bytes], rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """What a delta bundle's manifest says: what differs from an earlier bundle, and what is gone.

    Args:
        base: the lines of the earlier bundle's rows, in order, without what ends them.
        rows: the new one's, in order.

    Returns:
        The rows that differ, with where the earlier bundle has their content, and the paths that
        it alone has.

    Raises:
        Refused: a line that the new one does not have is malformed, out of order, or has an
            impossible path.
    """
    changed: list[tuple[Row, Row | None]] = []
    gone: list[str] = []
    old = iter(base)
    line, last = next(old, b""), None
    for row in rows:
        own, known = row.line().encode(), None
        while line and line != own:
            known = _row_after(last, line)
            if known.key >= row.key:
                break
            gone.append(known.path)
            line, last = next(old, b""), known
        if line == own:
            line, last = next(old, b""), row
            continue
        before = known if line and known is not None and known.key == row.key else None
        changed.append((row, before))
        if before is not None:
            line, last = next(old, b""), before
    while line:
        last = _row_after(last, line)
        gone.append(last.path)
        line = next(old, b"")
    return _with_sources(base, changed), gone


def _row_after(last: Row | None, line: bytes) -> Row:
    """The row of a line; refuses one that does not belong behind the last one."""
    row = row_of(line)
    if last is not None and row.key <= last.key:
        raise damaged(f"has {printable(row.path)} in the wrong place")
    return row


def _with_sources(base: Sequence[bytes], changed: list[tuple[Row, Row | None]]) -> list[Row]:
    """The rows that differ, with where the base has their content, at the same path if it can.

    Args:
        base: the lines of the base's rows.
        changed: each row, and that of the same path in the base.
    """
    wanted = {row.sha256.encode() for row, _ in changed if row.kind == FILE}
    sources: dict[str, str] = {}
    for line in base:
        if line[-66:-2] in wanted and (known := row_of(line)).kind == FILE:
            sources[known.sha256] = known.path
    found = []
    for row, before in changed:
        if row.kind == FILE and row.sha256 in sources:
            is_same = before is not None and before.sha256 == row.sha256
            row = row._replace(source=row.path if is_same else sources[row.sha256])
        found.append(row)
    return found


def merged(base: Iterable[Row], removed: Iterable[str], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of the whole: those of the earlier bundle, without what is gone, and the new ones.

    Args:
        base: the earlier bundle's rows, in order; each gets its own path for its source.
        removed: its paths that are gone.
        rows: the new and the changed rows, in order.
    """
    gone = set(removed)
    changed = iter(rows)
    row = next(changed, None)
    key = row.key if row else _LAST
    for old in base:
        at = old.key
        while row is not None and key < at:
            yield row
            row = next(changed, None)
            key = row.key if row else _LAST
        if row is not None and key == at:
            yield row
            row = next(changed, None)
            key = row.key if row else _LAST
        elif old.path not in gone:
            yield old._replace(source=old.path)
    if row is not None:
        yield row
    yield from changed


def whole(head: Head) -> Head:
    """The head of the full bundle."""
    return replace(head, base=None)


def write(
    directory: int, digest: str, head: Head, rows: Iterable[Row], owner: tuple[int, int] | None
) -> Iterator[Row]:
    """Write a whole manifest row by row as they are asked for.

    Args:
        directory: descriptor of the virtualenv, which has the directory PLACE.
        digest: what the manifest has to come to.
        head: the whole's.
        rows: the whole's; each is given on, once it is written.
        owner: user and group that it should belong to; by default whoever runs this.

    Raises:
        Refused: the rows come to another digest.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.directory_of(directory, NAME) as (place, name):
        file = os.open(name, flags, 0o644, dir_fd=place)
    found = hashlib.sha256()
    with open(file, "wb", buffering=1 << 18) as stream:
        os.fchmod(file, 0o644)  # whatever the umask
        if owner is not None:
            os.fchown(file, *owner)
        stream.write(first_line(digest))

        written: list[Row] = []

        def noted() -> Iterator[Row]:
            for row in rows:
                written.append(row)
                yield row._replace(source="")

        for piece in lines(head, noted()):
            found.update(piece)
            stream.write(piece)
            yield from written
            written.clear()
    if found.hexdigest() != digest:
        raise Refused("it does not belong to that base: together they are another whole")
