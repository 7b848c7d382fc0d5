"""Unpacking an archive that may be hostile into a directory of ours.

Every member is written below a descriptor, with O_EXCL, into directories that this run has made;
links are made last, so nothing can be written through one, and only those that stay in the
virtualenv. Hard links come before them and point to files of this archive alone. Owners, extended
attributes and special bits are not taken over.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from ..archives import tar
from ..archives.decompression import Stream, expected_size
from ..archives.tar import DIRECTORY, FILE, HARD_LINK, LINK, Member, Refused, printable
from ..errors import BadArchive, InvalidPath, NoBase, NoRoom, RelocateError, TreeError, reason_of
from ..system import files
from ..virtualenvs import manifest
from ..virtualenvs.layout import inspect
from ..virtualenvs.manifest import Head, Row
from . import links as linking
from .reader import Accept, Bundle, Find, Give
from .reuse import Earlier

Progress = Callable[[int, int], None]
"""Called with the number of files and of bytes so far."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The deepest real trees have some twenty levels.
_DEEPEST = 100
_LONGEST_NAME = 255
_LONGEST_PATH = 4000  # of the kernel's 4096, with room for names that are put beside a file
# Unpacking leaves this much of a disk to its other users.
_LEFT_FREE = 64 << 20
_LONGEST_CONFIG = 1 << 20
_LOOK_AT_ROOM = 64 << 20
# Hashes of an archive that vouch for all that is in it.
_STRONG = frozenset(("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s"))


@dataclass(frozen=True)
class Limits:
    """What an archive may come to at the most.

    Attributes:
        files: members of any kind.
        size: bytes in all of its files.
        ratio: times its own size that it unpacks to.
    """

    files: int = 500_000
    size: int = 20 << 30
    ratio: int = 200

    @classmethod
    def of(cls, values: Mapping[str, object] | None) -> Limits:
        """Limits as an operator gave them, by name.

        Raises:
            InvalidPath: there is no such limit, or it is no positive number.
        """
        if not isinstance(values or {}, Mapping):
            raise InvalidPath(f"limits must be names and numbers, such as files: 1000: {values!r}")
        known = cls.__dataclass_fields__
        chosen: dict[str, int] = {}
        for name, value in (values or {}).items():
            if name not in known:
                raise InvalidPath(f"there is no limit {name!r}: choose of {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidPath(f"the limit {name} must be a positive number: {value!r}")
            chosen[name] = value
        return cls(**chosen)


@dataclass(frozen=True)
class Unpacked:
    """What an archive held.

    Attributes:
        top: the virtualenv's directory, relative to where it was unpacked; "" where it is the same.
        files: how many members there were.
        size: bytes in all files.
        digests: the archive's own hashes in hexadecimal, sha256 among them.
        bundle: what its manifest says; None where it has none.
        manifest: the manifest's digest; "" where there is none.
        base: the digest of the manifest that it was packed against; "" where it stands alone.
        reused: how many files an earlier release gave.
        links: all symbolic links and what they name, relative to where it was unpacked.
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
    accept: Accept | None = None,
    find: Find | None = None,
) -> Unpacked:
    """Unpack a tar of a virtualenv, plain or packed with gzip, bzip2, xz or zstd.

    Of a bundle, which begins with its manifest, everything has to be as that says: compared name by
    name, and content by content where `digests` does not vouch for all of it.

    Args:
        archive: path of the file.
        directory: descriptor of an empty directory that nobody else writes to.
        limits: what is refused as too much.
        digests: what the file has to hash to, by algorithm; it is checked while it is read.
        owner: user and group that everything should belong to; by default whoever runs this.
        progress: called now and then.
        accept: called with the head of a bundle's manifest, before anything is unpacked; raises
            where it is not wanted.
        find: the release to take files from: that with a manifest of the given digest, or any where
            None is asked for.

    Returns:
        What was unpacked, links and all. Nothing but `directory` was touched.

    Raises:
        NoBase: what the bundle was packed against is not there, or was changed.
        BadArchive: it is damaged, too large, of another hash, or holds what does not belong there.
        NoRoom: the disk has too little space.
        TreeError: the operating system refused.
    """
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
        _require_room(archive, directory, expected_size(file))
        most = limits.size + limits.files * 4 * tar.BLOCK
        with Stream(file, digests or {}, most, limits.ratio) as stream:
            writer = _Writer(directory, stream, limits, owner, progress)
            bundle = None
            try:
                members = tar.members(stream)
                first = next(members, None)
                if first is not None and first.name == manifest.NAME:
                    writer.bundle = True
                    prove = not _STRONG.intersection(map(str.lower, digests or {}))
                    bundle = Bundle(writer, stream, first, accept, find, prove)
                    bundle.take(members)
                else:
                    for member in chain(() if first is None else (first,), members):
                        writer.add(member)
                found = stream.require_digests()
                top = writer.finish()
            finally:
                if bundle is not None:
                    bundle.close()
                writer.close()
        if bundle is None:
            return Unpacked(top, writer.count, writer.size, found)
        head = bundle.head
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
    except Refused as refusal:
        raise BadArchive(f"cannot unpack {archive}: {refusal}; {refusal.advice}") from refusal
    except NoBase as error:
        raise NoBase(f"cannot unpack {archive}: {error}") from error
    except _Full as full:
        raise NoRoom(f"cannot unpack {archive}: {full}; free some space and run again") from full
    except OSError as error:
        raise TreeError.of(archive, error, "unpack") from error
    finally:
        os.close(file)


class _Full(Exception):
    """The disk has too little space left."""


def _require_room(archive: str, directory: int, size: int) -> None:
    status = os.fstatvfs(directory)
    free = status.f_bavail * status.f_frsize
    if size + _LEFT_FREE > free:
        raise NoRoom(
            f"cannot unpack {archive}: at least {_mega(size)} are needed and {_mega(free)} are "
            f"free, of which {_mega(_LEFT_FREE)} are left to others; free some space and run again"
        )


def _mega(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


class _Writer:
    """Writes members below a directory."""

    def __init__(
        self,
        directory: int,
        stream: Stream,
        limits: Limits,
        owner: tuple[int, int] | None,
        progress: Progress | None,
    ) -> None:
        self.root = directory
        self.stream = stream
        self.limits = limits
        self.owner = owner
        self.progress = progress
        self.count = self.size = 0
        self.bundle = False
        self.longest = _LONGEST_PATH - len(os.fsencode(_path_of(directory)))
        self.exact = _keeps_modes(directory)
        # Every name, in the form that a file system may take for the same, and what it is.
        self.names: dict[str, tuple[str, str]] = {}
        self.directories: dict[str, tuple[int, int] | None] = {"": None}
        self.links: dict[str, str] = {}
        self.hard_links: list[tuple[str, str]] = []
        self.descent = files.DirectoryCursor(directory)
        self.parent = ""
        self.descriptor = self.descent.open("")
        self.look = _LOOK_AT_ROOM

    def close(self) -> None:
        self.descent.close()

    # --- one member after the other -------------------------------------------------------------

    def add(self, member: Member, sha256: str = "", give: Give | None = None) -> None:
        """Write a file, make a directory, or remember a link.

        Args:
            member: the member; its content is taken from the stream.
            sha256: what the content has to hash to; not looked at where empty.
            give: makes a file of the same content, if it can; then the member's is passed over.
        """
        self.count += 1
        if self.count > self.limits.files:
            raise Refused(f"it holds more than {self.limits.files:,} members")
        name, kind = member.name, member.kind
        if kind == DIRECTORY:
            self._add_directory(name, member)
            return
        parent, _, base = name.rpartition("/")
        if parent != self.parent:
            self._enter(parent, name)
        self._claim(name, base, kind)
        if kind == FILE:
            if give is not None and give(self.descriptor, base):
                self._pass_over(member)
            else:
                self._write(base, member, sha256)
        elif kind == LINK:
            self.links[name] = member.target
        else:
            self.hard_links.append((name, self._linked(name, member.target)))
        if self.progress is not None and not self.count & 0xFF:
            self.progress(self.count, self.size)

    def put(self, row: Row, earlier: Earlier, mtime: int) -> None:
        """Let an earlier release give a file."""
        self.count += 1
        self.size += row.size
        if self.count > self.limits.files:
            raise Refused(f"it holds more than {self.limits.files:,} members")
        if self.size > self.limits.size:
            raise Refused(f"brings its files to more than {self.limits.size:,} bytes", row.path)
        parent, _, base = row.path.rpartition("/")
        if parent != self.parent:
            self._enter(parent, row.path)
        self._claim(row.path, base, FILE)
        earlier.give(row, self.descriptor, base, self.owner, mtime)
        self._look_at_room(0 if earlier.link else row.size)
        if self.progress is not None and not self.count & 0xFF:
            self.progress(self.count, self.size)

    def _add_directory(self, name: str, member: Member) -> None:
        if self.directories.get(name) is not None:
            raise Refused("stands in it twice", name or ".")
        if name:
            self._make(name, name)
        self.directories[name] = (member.mode, member.mtime)

    def _enter(self, parent: str, name: str) -> None:
        """Let the following files be written into `parent`, which is made where it is missing."""
        if parent not in self.directories:
            self._make(parent, name)
        self.descriptor = self.descent.open(parent)
        self.parent = parent

    def _make(self, directory: str, name: str) -> None:
        """Make a directory, and those above it, for the member `name`."""
        if directory in self.directories:
            return
        above, _, base = directory.rpartition("/")
        if directory.count("/") >= _DEEPEST:
            raise Refused(f"lies more than {_DEEPEST} directories deep", name)
        self._make(above, name)
        self._claim(directory, base, DIRECTORY, name)
        self.parent = above
        self.descriptor = self.descent.open(above)
        os.mkdir(base, 0o700, dir_fd=self.descriptor)
        self.directories[directory] = None

    def _claim(self, name: str, base: str, kind: str, member: str | None = None) -> None:
        """Take a name that is not there yet, nor one that only looks different."""
        length = len(base) if base.isascii() else len(os.fsencode(base))
        whole = len(name) if name.isascii() else len(os.fsencode(name))
        if length > _LONGEST_NAME or whole > self.longest:
            raise Refused("has a longer name than the system allows", name)
        key = _folded(name)
        known = self.names.get(key)
        if known is not None:
            other, what = known
            if other == name and member not in (None, name):
                raise Refused(f"lies in {printable(name)}, which is a {_called(what)}", member)
            if other == name:
                raise Refused("stands in it twice", name)
            raise Refused(
                f"differs from {printable(other)} only in case or in the form of its accents", name
            )
        self.names[key] = (name, kind)
        if len(self.names) > self.limits.files:
            raise Refused(f"it holds more than {self.limits.files:,} files and directories")

    def _pass_over(self, member: Member) -> None:
        self.size += member.size
        if self.size > self.limits.size:
            raise Refused(f"brings its files to more than {self.limits.size:,} bytes", member.name)
        for _ in self.stream.pieces(member.size):
            pass

    def _write(self, base: str, member: Member, sha256: str) -> None:
        digest = hashlib.sha256() if sha256 else None
        size = member.size
        self.size += size
        if base == "pyvenv.cfg" and size > _LONGEST_CONFIG:
            raise Refused("is too large for what it is", member.name)
        if self.size > self.limits.size:
            raise Refused(f"brings its files to more than {self.limits.size:,} bytes", member.name)
        mode = member.mode & 0o755 | 0o400
        file = os.open(base, _CREATE, mode, dir_fd=self.descriptor)
        try:
            for piece in self.stream.pieces(size):
                written = os.write(file, piece)
                while written < len(piece):
                    piece = piece[written:]
                    written = os.write(file, piece)
                if digest is not None:
                    digest.update(piece)
                if size > _LOOK_AT_ROOM:
                    self._look_at_room(len(piece))
            if digest is not None and digest.hexdigest() != sha256:
                raise Refused("is not what its manifest says", member.name, advice=tar.DAMAGED)
            if self.owner is not None:
                os.fchown(file, *self.owner)
            if not self.exact:
                os.fchmod(file, mode)
            os.utime(file, ns=(member.mtime, member.mtime))
        finally:
            os.close(file)
        self._look_at_room(size)

    def require_room(self, size: int) -> None:
        """Stop before anything is written, where the disk has not so many bytes left."""
        status = os.fstatvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if size + _LEFT_FREE > free:
            raise _Full(f"{_mega(size)} are needed and {_mega(free)} are free")

    def _look_at_room(self, written: int) -> None:
        """Stop before the disk is full: other programs on it would stop as well."""
        self.look -= written
        if self.look < 0:
            self.look = _LOOK_AT_ROOM
            status = os.fstatvfs(self.root)
            if status.f_bavail * status.f_frsize < _LEFT_FREE:
                raise _Full(f"less than {_mega(_LEFT_FREE)} are left on its disk")

    def _linked(self, name: str, target: str) -> str:
        """The file that a hard link points to."""
        other, kind = self.names.get(_folded(target), ("", ""))
        if other != target or target == name:
            where = printable(target)
            raise Refused(f"is a hard link to {where}, which does not stand before it", name)
        if kind != FILE:
            raise Refused(f"is a hard link to {printable(target)}, a {_called(kind)}", name)
        return target

    # --- at the end -----------------------------------------------------------------------------

    def finish(self) -> str:
        """Make the links, give directories their modes and times; return the virtualenv's place."""
        for name, target in self.hard_links:
            self._make_hard_link(name, target)
        top = self._top()
        self._require_inside(top)
        if top or not self.bundle:
            self._require_no_manifest(top)
        for name, target in self.links.items():
            self._make_link(name, target)
        for directory in sorted(self.directories, key=lambda path: path.count("/"), reverse=True):
            if directory:
                self._settle(directory, self.directories[directory])
        return top

    def _require_no_manifest(self, top: str) -> None:
        """Refuse a manifest that stands elsewhere than in front: nothing was compared with it."""
        place = f"{top}/{manifest.PLACE}" if top else manifest.PLACE
        if place in self.directories or place in self.links:
            raise Refused(
                f"is in an archive that does not begin with {manifest.NAME}",
                place,
                advice="pack it with --pack, or without that directory",
            )

    def _make_hard_link(self, name: str, target: str) -> None:
        source, place = files.directory_of(self.root, target), files.directory_of(self.root, name)
        with source as (old_directory, old), place as (directory, new):
            os.link(old, new, src_dir_fd=old_directory, dst_dir_fd=directory, follow_symlinks=False)

    def _make_link(self, name: str, target: str) -> None:
        with files.directory_of(self.root, name) as (directory, base):
            os.symlink(target, base, dir_fd=directory)
            if self.owner is not None:
                os.chown(base, *self.owner, dir_fd=directory, follow_symlinks=False)

    def _settle(self, directory: str, wanted: tuple[int, int] | None) -> None:
        descriptor = self.descent.open(directory)
        mode, mtime = wanted or (0o755, None)
        if self.owner is not None:
            os.fchown(descriptor, *self.owner)
        os.fchmod(descriptor, mode & 0o755 | 0o700)
        if mtime is not None:
            os.utime(descriptor, ns=(mtime, mtime))

    def _top(self) -> str:
        """The directory with the virtualenv: the top, or the only directory in a row of only
        ones."""
        if not self.names:
            raise Refused("it is empty", advice=tar.DAMAGED)
        kinds = dict(self.names.values())
        inner: dict[str, list[str]] = {}
        for name in kinds:
            inner.setdefault(name.rpartition("/")[0], []).append(name)
        top = ""
        while True:
            base = f"{top}/" if top else ""
            marks = [f"{base}pyvenv.cfg", f"{base}bin/activate"]
            for name in marks:
                if kinds.get(name, FILE) != FILE:
                    raise Refused(
                        f"is a {_called(kinds[name])}, where every virtualenv has a file", name
                    )
            if any(name in kinds for name in marks):
                return top
            only = inner.get(top, [])
            if len(only) != 1 or kinds[only[0]] != DIRECTORY:
                raise Refused(
                    "it holds no virtualenv: there is neither pyvenv.cfg nor bin/activate at its "
                    "top or in a single directory there",
                    advice="pack a virtualenv's directory and nothing else",
                )
            top = only[0]

    def _require_inside(self, top: str) -> None:
        """Refuse links that leave the virtualenv; make those to its old place lead into it."""
        base = f"{top}/" if top else ""
        links = {name[len(base) :]: target for name, target in self.links.items()}
        absolute = any(
            target.startswith("/") and not linking.is_base(name, target)
            for name, target in links.items()
        )
        prefixes = self._prefixes(top) if absolute else ()
        work = linking.Work()
        for name, target in links.items():
            fault = linking.fault(name, links, prefixes, work)
            if fault is not None:
                raise Refused(fault, base + name)
            inside = linking.below(target, prefixes) if target.startswith("/") else None
            if inside is not None and not linking.is_base(name, target):
                self.links[base + name] = "../" * name.count("/") + (inside.lstrip("/") or ".")

    def _prefixes(self, top: str) -> tuple[str, ...]:
        """Where the virtualenv was before, by its files: absolute links may lead there."""
        with suppress(RelocateError):
            found = inspect(os.path.join(_path_of(self.root), top)).old_prefixes
            return tuple(prefix for prefix in found if os.path.normpath(prefix) == prefix != "/")
        return ()


def _path_of(directory: int) -> str:
    """A descriptor's path as it is now."""
    return os.readlink(f"/proc/self/fd/{directory}")


def _folded(name: str) -> str:
    """The form in which a file system that folds case or accents would compare a name."""
    if name.isascii():
        lower = name.lower()
        return name if lower == name else lower
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _called(kind: str) -> str:
    return "hard link" if kind == HARD_LINK else kind


def _keeps_modes(directory: int) -> bool:
    """Whether a file gets just the mode that is asked for, whatever umask and access lists say."""
    name = files.temporary_name()
    probe = os.open(name, _CREATE, 0o755, dir_fd=directory)
    try:
        return stat.S_IMODE(os.fstat(probe).st_mode) == 0o755
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=directory)
