"""Packaging metadata: pyvenv.cfg, `.pth`, `.egg-link`, direct_url.json, RECORD.

RECORD is here for the rows of files that were rewritten: `relocation` asks `update_record` for
them once it knows the new hashes.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from .prefix import Prefixes
from .quoting import JSON, PYTHON, RAW, replace

KIND = "metadata"

_NAMES = ("pyvenv.cfg", "direct_url.json", "RECORD")
_SUFFIXES = (".pth", ".egg-link")
_HASH = re.compile(rb",([a-z0-9_]+)=([A-Za-z0-9_=-]+),(\d*)(\r?\n?)\Z")
_CODE_LINE = re.compile(rb"import[ \t]")


def claims(path: str, data: bytes) -> bool:
    """Whether this is packaging metadata, by its name."""
    name = path.rpartition("/")[2]
    return (name in _NAMES or name.endswith(_SUFFIXES)) and b"\0" not in data


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` relocated; paths outside the virtualenv stay as they are."""
    if path.endswith(".json"):
        return replace(data, prefixes, JSON)
    if path.endswith(".pth"):
        lines = data.splitlines(keepends=True)
        return b"".join(
            replace(line, prefixes, PYTHON if _CODE_LINE.match(line) else RAW) for line in lines
        )
    return replace(data, prefixes, RAW)


def record_rows(
    record: bytes, marks: Iterable[bytes] | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """The path and the raw line of each row of a RECORD, in order.

    Rows are cut by hand, not by `csv`, because the other rows have to stay as they are to the byte.

    Args:
        record: the file's content.
        marks: only rows with one of these byte strings in them; by default all.
    """
    lines = record.splitlines(keepends=True) if marks is None else _lines_with(record, marks)
    for line in lines:
        if line.startswith(b'"'):
            import csv

            text = line.decode("utf-8", "surrogateescape")
            row = next(csv.reader([text]), [""])
            yield row[0].encode("utf-8", "surrogateescape"), line
        else:
            yield line.partition(b",")[0], line


def _lines_with(record: bytes, marks: Iterable[bytes]) -> Iterator[bytes]:
    starts = set()
    for mark in marks:
        at = record.find(mark)
        while at >= 0:
            starts.add(record.rfind(b"\n", 0, at) + 1)
            at = record.find(mark, at + len(mark))
    for start in sorted(starts):
        end = record.find(b"\n", start) + 1
        yield record[start : end or len(record)]


class Digests(NamedTuple):
    """The digests of a rewritten file's old and new content, and the new one's size in bytes."""

    old: bytes
    new: bytes
    size: int


def update_record(record: bytes, changed: Mapping[bytes, Callable[[str], Digests]]) -> bytes:
    """`record` with the hash and size of each changed file made those of its new content.

    A row whose hash did not fit the old content stays as it is: somebody changed that file before,
    and a verifier should still report it. So does a row that has no hash.

    Args:
        record: the file's content.
        changed: for each path as RECORD spells it, what gives the file's digests by an algorithm.
    """
    pieces, end = [], 0
    # A quote is written twice in a row, so such a path is not there as it is.
    marks = None if any(b'"' in path for path in changed) else changed
    for path, line in record_rows(record, marks):
        if path in changed:
            start = record.index(line, end)
            pieces += [record[end:start], _update_row(line, changed[path])]
            end = start + len(line)
    return b"".join((*pieces, record[end:]))


def _update_row(line: bytes, digests: Callable[[str], Digests]) -> bytes:
    recorded = recorded_digest(line)
    match = _HASH.search(line)
    if recorded is None or match is None:
        return line
    known = digests(recorded[0])
    if encoded(known.old) != recorded[1]:
        return line
    size = b"%d" % known.size if match[3] else b""
    return line[: match.start()] + b",%s=%s,%s%s" % (match[1], encoded(known.new), size, match[4])


def recorded_digest(line: bytes) -> tuple[str, bytes] | None:
    """The algorithm and the digest in a row of a RECORD; None where it has none that is known."""
    import hashlib

    match = _HASH.search(line)
    if match is None:
        return None
    algorithm = match[1].decode()
    if algorithm not in hashlib.algorithms_guaranteed or algorithm.startswith("shake"):
        return None
    return algorithm, match[2].rstrip(b"=")


def encoded(digest: bytes) -> bytes:
    """A digest as RECORD spells it: URL-safe base64 without padding."""
    return urlsafe_b64encode(digest).rstrip(b"=")
