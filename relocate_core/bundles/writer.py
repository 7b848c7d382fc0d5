"""Writing the members of an archive below a directory.

Every member is written below a descriptor, with O_EXCL, into directories that this run has made.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from ..archives import sparse, tar
from ..archives.decompression import Stream
from ..archives.tar import DIRECTORY, FILE, HARD_LINK, LINK, WITHOUT, Member, Refused
from ..errors import RelocateError
from ..system import files
from ..virtualenvs import manifest
from ..virtualenvs.layout import inspect
from ..virtualenvs.manifest import Row
from . import links as linking
from .limits import Limits, Space
from .names import LONGEST_PATH, Names, folds_names, require_config, require_depth
from .reuse import Previous

Give = Callable[[int, str], bool]
"""Makes a file in a directory, given by its descriptor and the file's name; whether it did."""

Progress = Callable[[int, int], None]
"""Called with the number of files and of bytes so far."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Holes take no space, but time to read: up to this much of them is taken from any archive.
_HOLES_FROM = 1 << 30


class Writer:
    """Writes members below a directory.

    Args:
        directory: descriptor of the directory, which is empty.
        stream: where the contents come from.
        limits: what is refused as too much.
        owner: user and group that everything should belong to; by default whoever runs this.
        progress: called now and then.

    Attributes:
        root: the directory.
        count: how many members there were so far.
        size: bytes in their files.
        links: the symlinks so far and their targets.
        bundle: whether the archive is a bundle, whose manifest is compared with all of it.
        interpreter: whether it is one of an interpreter, and not of a virtualenv.
    """

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
        self.count = self.size = self.holes = 0
        self.bundle = self.interpreter = False
        self.exact = _keeps_modes(directory)
        self.space = Space(directory)
        longest = LONGEST_PATH - len(os.fsencode(_path_of(directory)))
        self.names = Names(limits.files, longest, folds_names(directory))
        self.directories: dict[str, tuple[int, int] | None] = {"": None}
        self.links: dict[str, str] = {}
        self.hard_links: list[tuple[str, str]] = []
        self.descent = files.DirectoryCursor(directory)
        self.parent = ""
        self.descriptor = self.descent.open("")

    def close(self) -> None:
        """Close all descriptors but `directory`."""
        self.descent.close()

    # --- one member after the other -------------------------------------------------------------

    def add(self, member: Member, sha256: str = "", give: Give | None = None) -> None:
        """Write a file, make a directory, or remember a link.

        Args:
            member: the member; its content is taken from the stream.
            sha256: what the content has to hash to; not looked at where empty.
            give: makes a file of the same content, if it can; then the member's is passed over.
        """
        self._count(member.name, member.size)
        name, kind = member.name, member.kind
        if kind == DIRECTORY:
            self._add_directory(name, member)
            return
        parent, _, base = name.rpartition("/")
        if parent != self.parent:
            self._enter(parent, name)
        if not self.names.claim(name, base, kind):
            self._require_same(base, member)
        elif kind == FILE:
            if give is not None and give(self.descriptor, base):
                self.stream.skip(member.stored)
            else:
                self._write(base, member, sha256)
        elif kind == LINK:
            self.links[name] = member.target
        else:
            self.hard_links.append((name, self.names.linked(name, member.target)))

    def reuse(self, row: Row, previous: Previous, mtime: int) -> None:
        """Take a file from a previous release."""
        self._count(row.path, row.size)
        parent, _, base = row.path.rpartition("/")
        if parent != self.parent:
            self._enter(parent, row.path)
        if not self.names.claim(row.path, base, FILE):
            raise Refused("is in it twice", row.path)
        previous.give(row, self.descriptor, base, self.owner, mtime)
        self.space.used(0 if previous.link else row.size)

    def _count(self, name: str, size: int) -> None:
        self.count += 1
        self.size += size
        if self.count > self.limits.files:
            raise Refused(
                f"it contains more than {self.limits.files:,} members", advice=tar.TOO_LARGE
            )
        if self.size > self.limits.size:
            raise Refused(
                f"brings its files to more than {self.limits.size:,} bytes",
                name,
                advice=tar.TOO_LARGE,
            )
        if self.progress is not None and not self.count & 0xFF:
            self.progress(self.count, self.size)

    def _add_directory(self, name: str, member: Member) -> None:
        known = self.directories.get(name)
        if known is not None:
            if known[0] != member.mode:
                raise Refused("is in it twice, with two modes", name or ".", advice=WITHOUT)
            return
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
        require_depth(directory, name)
        self._make(above, name)
        self.names.claim(directory, base, DIRECTORY, name)
        self.parent = above
        self.descriptor = self.descent.open(above)
        os.mkdir(base, 0o700, dir_fd=self.descriptor)
        self.directories[directory] = None

    def _write(self, base: str, member: Member, sha256: str) -> None:
        digest = hashlib.sha256() if sha256 else None
        require_config(member.name, member.size)
        mode = _file_mode(member.mode)
        file = os.open(base, _CREATE, mode, dir_fd=self.descriptor)
        try:
            for offset, length in self._extents(member):
                os.lseek(file, offset, os.SEEK_SET)
                for piece in self.stream.pieces(length):
                    files.write_all(file, piece)
                    if digest is not None:
                        digest.update(piece)
                    self.space.used(len(piece))
            if member.extents is not None:
                os.ftruncate(file, member.size)
            if digest is not None and digest.hexdigest() != sha256:
                raise Refused("is not what its manifest says", member.name, advice=tar.DAMAGED)
            if self.owner is not None:
                os.fchown(file, *self.owner)
            if not self.exact:
                os.fchmod(file, mode)
            os.utime(file, ns=(member.mtime, member.mtime))
        finally:
            os.close(file)

    def _extents(self, member: Member) -> sparse.Extents:
        """Where the data of a file belongs; refuses holes that no such archive has."""
        if member.extents is None:
            return ((0, member.size),)
        self.holes += member.size - member.stored
        ratio = self.limits.ratio
        if self.holes > max(_HOLES_FROM, self.stream.size * ratio):
            raise Refused(
                f"is a sparse file, and makes more than {ratio} times the archive's size of it",
                member.name,
                advice=tar.TOO_LARGE,
            )
        return member.extents

    def _require_same(self, base: str, member: Member) -> None:
        """Refuse a second member of the same name that is not the same."""
        name = member.name
        if member.kind == LINK:
            same = self.links[name] == member.target
        elif member.kind == HARD_LINK:
            same = (name, member.target) in self.hard_links
        else:
            file = files.open_file(self.descriptor, base)
            try:
                same = _is_content(file, member, self.stream)
                os.utime(file, ns=(member.mtime, member.mtime))
            finally:
                os.close(file)
        if not same:
            raise Refused(
                "is in it twice, and not the same both times", name, advice="pack it again with one"
            )

    # --- at the end -----------------------------------------------------------------------------

    def finish(self) -> str:
        """Make the links, and give directories their modes and times.

        Returns:
            The virtualenv's directory, relative to the root; that of an interpreter is the root.
        """
        for name, target in self.hard_links:
            _make_hard_link(self.root, name, target)
        if self.interpreter:
            top = ""
            self.names.require_interpreter()
            linking.require_closed(self.links)
        else:
            top = self.names.top()
            self.links = linking.inside(self.links, top, self._prefixes)
        if top or not self.bundle:
            self._require_no_manifest(top)
        for name, target in self.links.items():
            _make_link(self.root, name, target, self.owner)
        for directory in sorted(self.directories, key=lambda path: path.count("/"), reverse=True):
            if directory:
                self._settle(directory, self.directories[directory])
        return top

    def _require_no_manifest(self, top: str) -> None:
        """Refuse a manifest that is not the first member: nothing was compared with it."""
        place = f"{top}/{manifest.PLACE}" if top else manifest.PLACE
        if place in self.directories or place in self.links:
            raise Refused(
                f"is in an archive that does not begin with {manifest.NAME}",
                place,
                advice="pack it with --pack, or without that directory",
            )

    def _settle(self, directory: str, wanted: tuple[int, int] | None) -> None:
        descriptor = self.descent.open(directory)
        mode, mtime = wanted or (0o755, None)
        if self.owner is not None:
            os.fchown(descriptor, *self.owner)
        os.fchmod(descriptor, mode & 0o755 | 0o700)
        if mtime is not None:
            os.utime(descriptor, ns=(mtime, mtime))

    def _prefixes(self, top: str) -> tuple[str, ...]:
        """Where the virtualenv was before, by its files: absolute symlinks may point there."""
        with suppress(RelocateError):
            found = inspect(os.path.join(_path_of(self.root), top)).old_prefixes
            return tuple(prefix for prefix in found if os.path.normpath(prefix) == prefix != "/")
        return ()


def _make_hard_link(root: int, name: str, target: str) -> None:
    source, place = files.directory_of(root, target), files.directory_of(root, name)
    with source as (old_directory, old), place as (directory, new):
        os.link(old, new, src_dir_fd=old_directory, dst_dir_fd=directory, follow_symlinks=False)


def _make_link(root: int, name: str, target: str, owner: tuple[int, int] | None) -> None:
    with files.directory_of(root, name) as (directory, base):
        os.symlink(target, base, dir_fd=directory)
        if owner is not None:
            os.chown(base, *owner, dir_fd=directory, follow_symlinks=False)


def _file_mode(mode: int) -> int:
    return mode & 0o755 | 0o400


def _is_content(file: int, member: Member, stream: Stream) -> bool:
    """Whether an open file is what a member, which is taken, would make of it."""
    status = os.fstat(file)
    same = (
        member.extents is None
        and status.st_size == member.size
        and stat.S_IMODE(status.st_mode) == _file_mode(member.mode)
    )
    at = 0
    for piece in stream.pieces(member.stored):
        same = same and os.pread(file, len(piece), at) == piece
        at += len(piece)
    return same


def _path_of(directory: int) -> str:
    """A descriptor's path as it is now."""
    return os.readlink(f"/proc/self/fd/{directory}")


def _keeps_modes(directory: int) -> bool:
    """Whether a file gets just the mode that is asked for, whatever umask and access lists say."""
    name = files.temporary_name()
    probe = os.open(name, _CREATE, 0o755, dir_fd=directory)
    try:
        return stat.S_IMODE(os.fstat(probe).st_mode) == 0o755
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=directory)
