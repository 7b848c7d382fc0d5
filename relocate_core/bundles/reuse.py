"""Reusing the files of a previous release, which are then not unpacked again.

A reused file has to be what the manifest says. One that has not changed since the release was
sealed (its ctime is not after that of `.release.json`, which was written last) is taken as it is;
any other one is hashed first. Where somebody else owns the release's directory, and so could move
its record about, all are hashed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat

from ..archives.tar import Refused, printable
from ..errors import NoBase
from ..system import files
from ..virtualenvs import rewritten
from ..virtualenvs.manifest import Row
from ..virtualenvs.manifest_reader import Manifest, of_tree

_FICLONE = 0x40049409  # ioctl_ficlone(2)
_NO_CLONES = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 20


class Previous:
    """A release of an unpacked bundle.

    Args:
        path: its directory.
        seal: the name of its record, which was written last.
        digest: what its manifest has to hash to.
        link: whether its files may be reused as hard links.

    Attributes:
        manifest: its manifest.

    Raises:
        NoBase: it has no manifest, or that was changed.
    """

    def __init__(self, path: str, seal: str, digest: str, link: bool) -> None:
        self.path = path
        self.link = link
        self.root = files.open_root(path)
        try:
            self.manifest = self._own_manifest(digest)
        except BaseException:
            os.close(self.root)
            raise
        try:
            self._rewritten = rewritten.read(self.root)
            self._sealed = self._seal(seal)
            self._uid = os.geteuid()
            self._clones: bool | None = None
            self._descent = files.DirectoryCursor(self.root)
            self._parent: str | None = None
            self._place = -1
        except BaseException:
            self.manifest.close()
            os.close(self.root)
            raise

    def close(self) -> None:
        """Close all descriptors."""
        self._descent.close()
        self.manifest.close()
        os.close(self.root)

    def _own_manifest(self, digest: str) -> Manifest:
        try:
            known = of_tree(self.root)
            if known is None:
                raise Refused("its manifest is missing")
            if known.digest != digest:
                known.close()
                raise Refused("its manifest is another one")
            try:
                known.require_digest()
            except BaseException:
                known.close()
                raise
            return known
        except Refused as refusal:
            raise NoBase(
                f"{self.path} is not as it was deployed: {refusal}; deploy the full bundle"
            ) from refusal

    def _seal(self, name: str) -> int:
        """When the release was sealed, in the file system's own time; -1 where that is unknown.

        It is where others may write to the directory, or the record was moved, linked or
        restored, which makes its ctime later than the last time it was written.
        """
        directory = os.fstat(self.root)
        try:
            record = os.stat(name, dir_fd=self.root, follow_symlinks=False)
        except OSError:
            return -1
        own = directory.st_uid == record.st_uid == os.geteuid() and not directory.st_mode & 0o022
        untouched = stat.S_ISREG(record.st_mode) and record.st_ctime_ns == record.st_mtime_ns
        return record.st_ctime_ns if own and untouched else -1

    def shares(self, directory: int) -> bool:
        """Whether its files take no space of their own below `directory`: as links or as clones."""
        if self._clones is None:
            self._clones = self._can_clone(directory)
        return self.link or self._clones

    def _can_clone(self, directory: int) -> bool:
        name = files.temporary_name()
        file = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            source = os.dup(self.manifest.fileno())
            try:
                fcntl.ioctl(file, _FICLONE, source)
                return True
            except OSError:
                return False
            finally:
                os.close(source)
        finally:
            os.close(file)
            os.unlink(name, dir_fd=directory)

    def give(
        self, row: Row, directory: int, name: str, owner: tuple[int, int] | None, mtime: int
    ) -> None:
        """Make a file with the content of a row in another directory.

        Args:
            row: what it should be; its `source` is where that is here.
            directory: descriptor of the new file's directory.
            name: its name, which is free.
            owner: user and group that it should belong to; by default whoever runs this.
            mtime: its modification time, in seconds.

        Raises:
            NoBase: it is not there any more, or was changed.
        """
        where = row.source
        if where in self._rewritten:
            where = f"{rewritten.ORIGINALS}/{row.sha256}"
        parent, _, base = where.rpartition("/")
        try:
            if parent != self._parent:
                self._parent, self._place = None, self._descent.open(parent)
                self._parent = parent
            place = self._place
            if self.link and self._linked(row, place, base, directory, name, owner, mtime):
                return
            self._copied(row, place, base, directory, name, owner, mtime)
        except (FileNotFoundError, NotADirectoryError):
            raise self._changed(row, "is not there any more") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._changed(row, "is a symlink now") from None
            raise

    def _changed(self, row: Row, how: str) -> NoBase:
        return NoBase(
            f"{self.path} is not as it was deployed: {printable(row.source)} {how}; "
            "deploy the full bundle"
        )

    def _linked(
        self, row: Row, place: int, base: str, directory: int, name: str,
        owner: tuple[int, int] | None, mtime: int,
    ) -> bool:  # fmt: skip
        """Make a hard link, if nobody but this user can write through it; whether that was done.

        A source needs its own time, which its bytecode has; other files may have an older one.
        """
        if self._sealed < 0:
            return False
        status = os.stat(base, dir_fd=place, follow_symlinks=False)
        if (
            status.st_mode != stat.S_IFREG | row.mode
            or status.st_uid != self._uid
            or (owner is not None and owner != (status.st_uid, status.st_gid))
            or (base.endswith(".py") and status.st_mtime != mtime)
        ):
            return False
        if status.st_size != row.size:
            raise self._changed(row, "has another size")
        touched = status.st_ctime_ns > self._sealed
        if touched:
            file = files.open_file(place, base)
            try:
                if not files.same_file(os.fstat(file), status):
                    raise self._changed(row, "is changing")
                self._require_same(row, _hash(file, row.size))
            finally:
                os.close(file)
        try:
            os.link(base, name, src_dir_fd=place, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
                return False
            raise
        if touched and not files.same_file(
            os.stat(name, dir_fd=directory, follow_symlinks=False), status
        ):
            os.unlink(name, dir_fd=directory)
            raise self._changed(row, "is changing")
        return True

    def _copied(
        self, row: Row, place: int, base: str, directory: int, name: str,
        owner: tuple[int, int] | None, mtime: int,
    ) -> None:  # fmt: skip
        source = files.open_file(place, base)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or status.st_size != row.size:
                raise self._changed(row, "has another size")
            file = os.open(name, _CREATE, row.mode, dir_fd=directory)
            done = False
            try:
                if status.st_ctime_ns > self._sealed:
                    self._require_same(row, _hash(source, row.size, file))
                elif not self._cloned(source, file):
                    _copy(source, file, row.size)
                if os.fstat(source).st_ctime_ns != status.st_ctime_ns:
                    raise self._changed(row, "is changing")
                if owner is not None:
                    os.fchown(file, *owner)
                if stat.S_IMODE(os.fstat(file).st_mode) != row.mode:
                    os.fchmod(file, row.mode)
                os.utime(file, (mtime, mtime))
                done = True
            finally:
                os.close(file)
                if not done:
                    os.unlink(name, dir_fd=directory)
        finally:
            os.close(source)

    def _cloned(self, source: int, file: int) -> bool:
        """Share the content with the new file, on a file system that can."""
        if self._clones is False:
            return False
        try:
            fcntl.ioctl(file, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NO_CLONES:
                raise
            self._clones = False
            return False
        return True

    def _require_same(self, row: Row, digest: str) -> None:
        if digest != row.sha256:
            raise self._changed(row, "was changed")


def _hash(source: int, size: int, file: int | None = None) -> str:
    """The digest of an open file, of which so much is copied on the way; "" if it goes on."""
    digest = hashlib.sha256()
    while size > 0 and (piece := os.read(source, min(size, _PIECE))):
        size -= len(piece)
        digest.update(piece)
        if file is not None:
            files.write_all(file, piece)
    return "" if os.read(source, 1) else digest.hexdigest()


def _copy(source: int, file: int, size: int) -> None:
    """Copy in the kernel, where that can be done."""
    left = size
    while left > 0:
        sent = os.sendfile(file, source, None, left) if _SENDS else 0
        if not sent:
            break
        left -= sent
    while left > 0:
        piece = os.read(source, min(left, _PIECE))
        if not piece:
            break
        files.write_all(file, piece)
        left -= len(piece)


# To a file, only Linux sends.
_SENDS = os.uname().sysname == "Linux"
