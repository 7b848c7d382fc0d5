"""Unpacking an archive that may be hostile into a staging directory.

Members are written first and links made last, so nothing can be written through one: hard links
point to files of this archive alone, and symlinks are refused unless they stay in the virtualenv.
Owners, extended attributes and special bits are not taken over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

from ..archives import tar
from ..archives.decompression import Stream, expected_size
from ..archives.tar import Refused
from ..errors import BadArchive, NoBase, NoRoom, TreeError, reason_of
from ..virtualenvs import manifest
from ..virtualenvs.manifest import Head
from .limits import Full, Limits, Space
from .reader import Accept, Bundle, Find, require_virtualenv
from .writer import Progress, Writer

STRONG = frozenset(("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s"))
"""Hashes of an archive that are proof of all that is in it."""


@dataclass(frozen=True)
class Unpacked:
    """What an archive contained.

    Attributes:
        top: the virtualenv's directory, relative to where it was unpacked; "" where it is the same.
        files: how many members there were.
        size: bytes in all files.
        digests: the archive's own hashes in hexadecimal, sha256 among them.
        bundle: the head of its manifest; None where it has none.
        manifest: the manifest's digest; "" where there is none.
        base: of a delta bundle, the digest of the manifest it was made from; else "".
        reused: how many files were taken from a previous release.
        links: all symlinks and their targets, relative to where it was unpacked.
    """

    top: str
    files: int
    size: int
    digests: dict[str, str]
    bundle: Head | None = None
    manifest: str = ""
    base: str = ""
    reused: int = 0
    links: Mapping[str, str] = field(default_factory=dict)


def unpack(
    archive: str,
    directory: int,
    *,
    limits: Limits | None = None,
    digests: Mapping[str, str] | None = None,
    owner: tuple[int, int] | None = None,
    progress: Progress | None = None,
    kind: Accept = require_virtualenv,
    accept: Accept | None = None,
    find: Find | None = None,
) -> Unpacked:
    """Unpack a tar of a virtualenv, plain or packed with gzip, bzip2, xz or zstd.

    A bundle begins with its manifest, and all of it must match that: it is compared name by name,
    and content by content where `digests` does not verify all of it.

    Args:
        archive: path of the file.
        directory: descriptor of an empty directory that nobody else writes to.
        limits: what is refused as too much.
        digests: what the file has to hash to, by algorithm; it is checked while it is read.
        owner: user and group that everything should belong to; by default whoever runs this.
        progress: called now and then.
        kind: refuses bundles of another kind. Without a manifest, it has to be a virtualenv.
        accept: called with the head of a bundle's manifest, before anything is unpacked; raises
            where it is not wanted.
        find: returns the release to take files from: that with a manifest of the given digest, or
            any for None.

    Returns:
        What was unpacked. Nothing but `directory` was touched.

    Raises:
        NoBase: the release that a delta bundle was made from is missing, or was changed.
        BadArchive: it is damaged, too large, of another hash, or contains what no virtualenv has.
        NoRoom: the disk has too little space.
        TreeError: the operating system refused.
    """
    with _opened(archive, directory, limits, digests, owner, progress) as (stream, writer):
        verify = not STRONG.intersection(map(str.lower, digests or {}))
        return _unpack(stream, writer, kind, accept, find, verify)


def unpack_published(
    archive: str,
    directory: int,
    *,
    limits: Limits | None = None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Unpack a tar of an interpreter as its makers publish it, without a manifest.

    Args:
        archive: path of the file.
        directory: descriptor of an empty directory that nobody else writes to.
        limits: what is refused as too much.
        digests: what the file has to hash to, by algorithm; it is checked while it is read.

    Raises:
        BadArchive: it is damaged, too large, of another hash, a bundle, or has a symlink that
            leaves it.
        NoRoom: the disk has too little space.
        TreeError: the operating system refused.
    """
    with _opened(archive, directory, limits, digests, None, None) as (stream, writer):
        writer.interpreter = True
        for member in tar.members(stream):
            if member.name == manifest.NAME:
                raise Refused("it is a bundle already", advice="deploy it as it is")
            writer.add(member)
        stream.require_digests()
        writer.finish()


@contextmanager
def _opened(
    archive: str,
    directory: int,
    limits: Limits | None,
    digests: Mapping[str, str] | None,
    owner: tuple[int, int] | None,
    progress: Progress | None,
) -> Iterator[tuple[Stream, Writer]]:
    """An archive, and what writes its members; what goes wrong becomes one sentence."""
    limits = limits or Limits()
    try:
        file = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadArchive(
            f"cannot unpack {archive}: {reason_of(error)}; name a readable file"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise BadArchive(f"cannot unpack {archive}: it is no file; name a tar")
        Space(directory).require(expected_size(file))
        most = limits.size + limits.files * 4 * tar.BLOCK
        with Stream(file, digests or {}, most, limits.ratio) as stream:
            writer = Writer(directory, stream, limits, owner, progress)
            try:
                yield stream, writer
            finally:
                writer.close()
    except Refused as refusal:
        raise BadArchive(f"cannot unpack {archive}: {refusal}; {refusal.advice}") from refusal
    except NoBase as error:
        raise NoBase(f"cannot unpack {archive}: {error}") from error
    except Full as full:
        raise NoRoom(f"cannot unpack {archive}: {full}; free some space and run again") from full
    except OSError as error:
        raise TreeError.of(archive, error, "unpack") from error
    finally:
        os.close(file)


def _unpack(
    stream: Stream,
    writer: Writer,
    kind: Accept,
    accept: Accept | None,
    find: Find | None,
    verify: bool,
) -> Unpacked:
    members = tar.members(stream)
    first = next(members, None)
    if first is None or first.name != manifest.NAME:
        if kind is not require_virtualenv:
            raise Refused(
                f"it is no bundle, as it does not begin with {manifest.NAME}",
                advice="name one that was packed with --pack-python",
            )
        for member in chain(() if first is None else (first,), members):
            writer.add(member)
        found = stream.require_digests()
        return Unpacked(writer.finish(), writer.count, writer.size, found)
    writer.bundle = True
    bundle = Bundle(writer, stream, first, kind, accept, find, verify)
    try:
        bundle.take(members)
        found = stream.require_digests()
        top, head = writer.finish(), bundle.head
    finally:
        bundle.close()
    return Unpacked(
        top,
        head.files,
        head.size,
        found,
        head,
        bundle.digest,
        bundle.base,
        bundle.reused,
        writer.links,
    )
