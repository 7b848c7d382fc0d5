"""Reading a bundle: every member is compared with the manifest, and a delta bundle made whole.

Members come in the order of the manifest's rows, so both are gone through once, side by side. Of a
delta bundle the whole manifest is put together on the way, and the files that it does not contain
are taken from the previous release that it was made from.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NoReturn

from ..archives.decompression import Stream
from ..archives.tar import DAMAGED, DIRECTORY, FILE, Member, Refused, members, printable
from ..errors import BadArchive, NoBase, TreeError, reason_of
from ..system import files
from ..virtualenvs import manifest, manifest_reader, rewritten
from ..virtualenvs.manifest import LONGEST, NAME, Head, Row
from ..virtualenvs.manifest_reader import Manifest, damaged
from . import delta
from .reuse import Previous
from .writer import Writer

_SECOND = 1_000_000_000  # in nanoseconds

Accept = Callable[[Head], None]
"""Raises where a bundle is not for this machine."""

Find = Callable[["str | None"], "Previous | None"]
"""The release with a manifest of that digest; any that may have the same files for None."""


class Bundle:
    """A bundle that is being unpacked.

    Args:
        writer: what writes its members.
        stream: the archive, behind the header of its first member.
        first: that member, the manifest.
        kind: refuses bundles of another kind.
        accept: whether the bundle is wanted.
        find: finds the release that has the files it does not contain.
        verify: whether to hash the files' contents as well.

    Attributes:
        head: the head of the manifest of the whole.
        digest: that manifest's digest.
        base: of a delta bundle, the digest of the manifest it was made from; else "".
        reused: how many files were taken from a previous release.
    """

    def __init__(
        self,
        writer: Writer,
        stream: Stream,
        first: Member,
        kind: Accept,
        accept: Accept | None,
        find: Find | None,
        verify: bool,
    ) -> None:
        self.writer = writer
        self.stream = stream
        self.verify = verify
        self.reused = 0
        self.previous: Previous | None = None
        if first.kind != FILE:
            raise Refused(f"is a {first.kind}, where a bundle has its manifest", first.name)
        writer.add(first)
        with files.directory_of(writer.root, manifest.NAME) as (directory, name):
            self.manifest = manifest_reader.Manifest(files.open_file(directory, name))
        try:
            self.manifest.require_digest()
            self.head, self.digest = self.manifest.head, self.manifest.digest
            kind(self.head)
            writer.interpreter = self.head.interpreter is not None
            if accept is not None:
                accept(self.head)
            self.base = self.head.base.manifest if self.head.base else ""
            if find is not None:
                self.previous = find(self.base or None)
            if self.base and self.previous is None:
                raise NoBase(
                    "the release that this delta bundle was made from is not here: "
                    "deploy the full bundle"
                )
            if self.previous is None or not self.previous.shares(writer.root):
                writer.space.require(self.head.size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all descriptors."""
        self.manifest.close()
        if self.previous is not None:
            self.previous.close()

    def take(self, members: Iterator[Member]) -> None:
        """Take all members that follow, and what the previous release has of the rest.

        Raises:
            Refused: anything is not as the manifest says.
            NoBase: the previous release is not as it was deployed.
        """
        second = next(members, None)
        if second is None or (second.name, second.kind) != (rewritten.NAME, FILE):
            raise Refused(f"it has no {rewritten.NAME} behind {manifest.NAME}", advice=DAMAGED)
        empty = hashlib.sha256(rewritten.EMPTY).hexdigest()
        own = Row(rewritten.NAME, FILE, 0o644, len(rewritten.EMPTY), empty)
        self._compare(second, own)
        self.writer.add(second, empty)
        base = self.head.base
        if base is None:
            self._take_carried(members, manifest_reader.consistent(self.head, self.manifest.rows()))
            return
        self._complete(base)
        carried = (row for row in self.manifest.rows() if not row.source)
        self._take_carried(members, carried)
        self.head, self.digest = delta.whole(self.head), base.result

    def _previous_rows(self, changed: list[Row]) -> Iterator[Row]:
        """The previous release's rows; refuses a reference to something that it does not have."""
        assert self.previous is not None
        wanted: dict[str, list[Row]] = {}
        for row in changed:
            if row.source:
                wanted.setdefault(row.source, []).append(row)
        for known in self.previous.manifest.rows(trusted=True):
            for row in wanted.pop(known.path, ()):
                if (known.kind, known.size, known.sha256) != (FILE, row.size, row.sha256):
                    raise Refused(f"is not what {printable(known.path)} was before", row.path)
            yield known
        for source, rows in wanted.items():
            raise Refused(f"was {printable(source)} before, which is not there", rows[0].path)

    def _complete(self, base: manifest.Base) -> None:
        """Write the whole manifest, and take what the previous release has of it."""
        assert self.previous is not None
        with files.directory_of(self.writer.root, manifest.NAME) as (directory, name):
            os.unlink(name, dir_fd=directory)
        changed = list(self.manifest.rows())
        rows = delta.merged(self._previous_rows(changed), base.removed, changed)
        head, writer = delta.whole(self.head), self.writer
        rows = manifest_reader.consistent(head, rows)
        for row in delta.write(writer.root, base.result, head, rows, writer.owner):
            mtime = row.mtime(head.time)
            if row.source and row.kind == FILE:
                writer.reuse(row, self.previous, mtime)
                self.reused += 1
            elif row.source:
                writer.add(Member(row.path, row.kind, 0, row.mode, mtime * _SECOND, row.target))

    def _take_carried(self, members: Iterator[Member], rows: Iterator[Row]) -> None:
        """Compare each member with its row, and write it."""
        time = self.head.time
        known = self._known() if self.head.base is None else None
        for row in rows:
            member = next(members, None)
            if member is None or member.name != row.path:
                self._refuse(member, row)
            self._compare(member, row)
            give = None
            if row.kind == FILE and known is not None and known(row):
                give = partial(self._give, row._replace(source=row.path))
            if (mtime := row.mtime(time) * _SECOND) != member.mtime:
                member = member._replace(mtime=mtime)
            self.writer.add(member, row.sha256 if self.verify else "", give)
        member = next(members, None)
        if member is not None:
            self._refuse(member, None)

    def _give(self, row: Row, directory: int, name: str) -> bool:
        """Reuse a file of the previous release for one in the bundle; whether that was done."""
        if self.previous is None:
            return False
        try:
            mtime = row.mtime(self.head.time)
            self.previous.give(row, directory, name, self.writer.owner, mtime)
        except NoBase:  # it was changed: nothing more is taken from it
            self.previous.close()
            self.previous = None
            return False
        self.reused += 1
        return True

    def _known(self) -> Callable[[Row], bool] | None:
        """A test of each row in turn: whether the previous release has it; None if it is no use."""
        if self.previous is None or not self.previous.shares(self.writer.root):
            return None
        rows = self.previous.manifest.rows(trusted=True)
        at = next(rows, None)

        def has(row: Row) -> bool:
            nonlocal at
            if self.previous is None:
                return False
            while at is not None and at.key < row.key:
                at = next(rows, None)
            return at is not None and at == row

        return has

    def _refuse(self, member: Member | None, row: Row | None) -> NoReturn:
        """Refuse the next member, or its absence: it is not that of the next row."""
        if member is not None and (row is None or manifest.order(member.name) < row.key):
            raise Refused("is not in its manifest", member.name)
        assert row is not None
        raise Refused("is in its manifest, and not in the archive", row.path, advice=DAMAGED)

    def _compare(self, member: Member, row: Row) -> None:
        same = member.kind == row.kind and member.target == row.target and member.extents is None
        if row.kind == FILE:
            same = same and member.size == row.size
        if row.kind in (FILE, DIRECTORY):
            same = same and member.mode == row.mode
        if not same or member.mtime != manifest.FIXED_TIME * _SECOND:
            raise Refused("is not what its manifest says", member.name, advice=DAMAGED)


def _of_stream(stream: Stream, size: int, file: int, accept: Accept) -> Manifest:
    """The manifest that an archive begins with, once it is taken into a file.

    Args:
        stream: the archive, behind the manifest's header.
        size: how long it is, in bytes.
        file: descriptor of an empty file to keep it in; the manifest closes it.
        accept: refuses bundles of the wrong kind.
    """
    try:
        if size > LONGEST:
            raise damaged(f"has {size:,} bytes, which is too much")
        for piece in stream.pieces(size):
            files.write_all(file, bytes(piece))
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    known = Manifest(file)
    try:
        known.require_digest()
        accept(known.head)
    except BaseException:
        known.close()
        raise
    return known


def of_archive(
    archive: str, accept: Accept | None = None, digests: Mapping[str, str] | None = None
) -> Manifest:
    """The manifest of a bundle; the rest of the archive is not read, unless it is to be compared.

    Args:
        archive: its path.
        accept: refuses bundles of the wrong kind; by default all that are of no virtualenv.
        digests: what the archive has to hash to, by algorithm.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    doing = f"cannot read {archive}"
    try:
        file = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadArchive(f"{doing}: {reason_of(error)}; name a bundle that can be read") from error
    try:
        with Stream(file, digests or {}, 1 << 62, 1 << 62) as stream:
            first = next(members(stream), None)
            if first is None or first.name != NAME or first.kind != FILE:
                raise Refused(
                    f"it is no bundle, as it does not begin with {NAME}",
                    advice="name one that was packed with --pack",
                )
            import tempfile

            with tempfile.TemporaryFile() as kept:
                descriptor = os.dup(kept.fileno())
                known = _of_stream(stream, first.size, descriptor, accept or require_virtualenv)
            if digests:
                try:
                    deque(stream.rest(), 0)
                    stream.require_digests()
                except BaseException:
                    known.close()
                    raise
            return known
    except Refused as refusal:
        raise BadArchive(f"{doing}: {refusal}; {refusal.advice}") from refusal
    except OSError as error:
        raise TreeError.of(archive, error, "read") from error
    finally:
        os.close(file)


def require_virtualenv(head: Head) -> None:
    """Refuse the bundle of an interpreter.

    Raises:
        Refused: it is one.
    """
    if head.interpreter is not None:
        raise Refused(
            f"it is the bundle of an interpreter, Python {head.version}, and not of a virtualenv",
            advice="name one that was packed with --pack",
        )


def require_interpreter(head: Head) -> None:
    """Refuse the bundle of a virtualenv.

    Raises:
        Refused: it is one.
    """
    if head.interpreter is None:
        raise Refused(
            "it is the bundle of a virtualenv, and not of an interpreter",
            advice="name one that was packed with --pack-python",
        )


def read_digest(archive: str) -> str:
    """The digest of a bundle's manifest.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    with of_archive(archive) as known:
        return known.digest


def read_proven_head(archive: str, digests: Mapping[str, str]) -> Head:
    """What a bundle's manifest has for the whole, once the archive was compared with its hashes.

    All of the archive is read for that, once: nobody can replace it between the two.

    Args:
        archive: its path.
        digests: what it has to hash to, by algorithm.

    Raises:
        BadArchive: it is no bundle, damaged, or of another hash.
    """
    with of_archive(archive, digests=digests) as known:
        return known.head


def read_head(archive: str) -> Head:
    """What a bundle's manifest has for the whole.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    with of_archive(archive) as known:
        return known.head
