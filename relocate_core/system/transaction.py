"""New files and symlinks: written beside the old ones, renamed into place together, or undone.

Until `commit` nothing is in place, so a full disk or a missing permission costs nothing. From then
on each old content keeps a second link until all is done; `put_back` renames those over again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from . import files

LINK = "link"


@dataclass
class Change:
    """A new file or symlink, written beside the old one."""

    path: str
    kind: str
    status: os.stat_result
    """What the old one was like when it was read."""
    temporary: str
    backup: str | None = None
    """The second link to the old content, once the new one is in place."""


class Transaction:
    """New files and symlinks below a root.

    Args:
        root: descriptor of the directory that all paths are relative to.
        name: its path, for messages.
        durable: whether what is put in place has to survive a power cut.
    """

    def __init__(self, root: int, name: str, durable: bool = True) -> None:
        self.root = root
        self.name = name
        self.durable = durable
        self.items: dict[str, Change] = {}
        self._times: dict[str, tuple[int, int]] = {}

    def read(self, path: str) -> tuple[bytes, os.stat_result]:
        """A file's content as it will be, and what the old one was like when it was read."""
        change = self.items.get(path)
        with files.directory_of(self.root, path) as (directory, name):
            data, status = files.read(directory, change.temporary if change else name)
        return data, change.status if change else status

    def write(
        self,
        path: str,
        kind: str,
        data: bytes | Iterable[bytes],
        status: os.stat_result | None = None,
    ) -> Change:
        """Write the new content of `path` beside it; a second one replaces the first.

        Args:
            path: the file.
            kind: its kind.
            data: the new content, whole or in pieces.
            status: what the old one was like when it was read, if the new one is made from it.
        """
        pieces = (data,) if isinstance(data, bytes) else data
        with files.directory_of(self.root, path) as (directory, name):
            self._note_time(path, directory)
            original = files.open_file(directory, name)
            try:
                status = status or os.fstat(original)
                temporary = files.write_beside(directory, original, status, pieces)
            finally:
                os.close(original)
        return self._add(path, kind, status, temporary)

    def link(self, path: str, target: str, status: os.stat_result | None = None) -> Change:
        """Make the symlink that `path` should be."""
        with files.directory_of(self.root, path) as (directory, name):
            self._note_time(path, directory)
            status = status or os.stat(name, dir_fd=directory, follow_symlinks=False)
            temporary = files.symlink_beside(directory, status, target)
        return self._add(path, LINK, status, temporary)

    def _note_time(self, path: str, directory: int) -> None:
        """Remember a directory's times: as no name in it changes, nor should they."""
        parent = path.rpartition("/")[0]
        if parent not in self._times:
            status = os.fstat(directory)
            self._times[parent] = (status.st_atime_ns, status.st_mtime_ns)

    def _add(self, path: str, kind: str, status: os.stat_result, temporary: str) -> Change:
        self.drop(path)
        self.items[path] = Change(path, kind, status, temporary)
        return self.items[path]

    def drop(self, path: str) -> None:
        """Forget the change of `path`."""
        change = self.items.pop(path, None)
        if change is not None:
            self._remove(path, change.temporary)

    def run(self, path: str, command: list[str]) -> bool:
        """Let a program edit the new file, given as its last argument; whether it did."""
        import subprocess

        change = self.items[path]
        with files.directory_of(self.root, path) as (directory, _):
            try:
                subprocess.run(
                    [*command, change.temporary],
                    cwd=f"/proc/self/fd/{directory}",
                    check=True,
                    capture_output=True,
                    timeout=60,
                )
            except (OSError, subprocess.SubprocessError):
                return False
            times = (change.status.st_atime_ns, change.status.st_mtime_ns)
            os.utime(change.temporary, ns=times, dir_fd=directory)
        return True

    def digests(self, path: str, algorithm: str) -> tuple[bytes, bytes, int]:
        """The digests of a file's old and new content, and the new one's size in bytes."""
        change = self.items[path]
        with files.directory_of(self.root, path) as (directory, name):
            old = files.digest_of(directory, name, algorithm)
            new = files.digest_of(directory, change.temporary, algorithm)
            size = os.stat(change.temporary, dir_fd=directory).st_size
        return old, new, size

    def commit(self, rank: Callable[[Change], int], last: int, *, keep: bool = False) -> None:
        """Rename everything into place in the order of `rank`.

        Everything of a rank below `last` is on disk before the first item from there on. With
        `keep` the old contents stay at hand, for `put_back`, until `clean` is called.
        """
        order = sorted(self.items.values(), key=lambda item: (rank(item), item.path))
        # `clean` goes by the same order, so what it has left when killed is known by the last one.
        self.items = {item.path: item for item in order}
        flushed = not self.durable
        for item in order:
            if not flushed and rank(item) >= last:
                files.flush(self.root)
                flushed = True
            with files.directory_of(self.root, item.path) as (directory, name):
                item.backup = _second_link(directory, name)
                where = os.path.join(self.name, item.path)
                files.put_in_place(directory, item.temporary, name, item.status, path=where)
        if self.durable:
            files.flush(self.root)
        if not keep:
            self.clean()

    def clean(self) -> None:
        """Remove the second links to the old contents; give directories their times again."""
        for item in self.items.values():
            self._remove(item.path, item.backup)
        self._settle()

    def put_back(self) -> None:
        """Give every path its old content again, and remove what is not in place.

        In the opposite order, which makes a kill in between as harmless as one on the way.
        """
        for item in reversed(list(self.items.values())):
            if item.backup is not None:
                with files.directory_of(self.root, item.path) as (directory, name):
                    with suppress(FileNotFoundError):
                        os.rename(item.backup, name, src_dir_fd=directory, dst_dir_fd=directory)
                    # Renaming one link of a file over another does nothing: it was not replaced.
                    with suppress(FileNotFoundError):
                        os.unlink(item.backup, dir_fd=directory)
            self._remove(item.path, item.temporary)
        self._settle()

    def _settle(self) -> None:
        for parent, times in self._times.items():
            with suppress(OSError):  # somebody else's directory, where this user may write
                directory = files.open_directory(self.root, parent)
                try:
                    os.utime(directory, ns=times)
                finally:
                    os.close(directory)

    def _remove(self, path: str, name: str | None) -> None:
        if name is not None:
            with suppress(FileNotFoundError), files.directory_of(self.root, path) as (directory, _):
                os.unlink(name, dir_fd=directory)


class DryRun(Transaction):
    """A transaction that keeps new contents in memory and writes nothing."""

    def __init__(self, root: int, name: str, durable: bool = True) -> None:
        super().__init__(root, name, durable)
        self.contents: dict[str, bytes] = {}

    def read(self, path: str) -> tuple[bytes, os.stat_result]:
        data, status = super().read(path)
        return self.contents.get(path, data), status

    def write(
        self,
        path: str,
        kind: str,
        data: bytes | Iterable[bytes],
        status: os.stat_result | None = None,
    ) -> Change:
        if isinstance(data, bytes):
            self.contents[path] = data
        else:
            for _ in data:  # too large to be kept, but not to be generated
                pass
        return self._pretend(path, kind)

    def link(self, path: str, target: str, status: os.stat_result | None = None) -> Change:
        return self._pretend(path, LINK)

    def _pretend(self, path: str, kind: str) -> Change:
        with files.directory_of(self.root, path) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self.items[path] = Change(path, kind, status, name)
        return self.items[path]

    def drop(self, path: str) -> None:
        self.items.pop(path, None)
        self.contents.pop(path, None)

    def digests(self, path: str, algorithm: str) -> tuple[bytes, bytes, int]:
        import hashlib

        old, _, _ = super().digests(path, algorithm)
        content = self.contents.get(path, b"")
        return old, hashlib.new(algorithm, content).digest(), len(content)


@contextmanager
def reserve(root: int, size: int = 1 << 20) -> Iterator[Callable[[], None]]:
    """Keep some room of the disk free for putting things back; gives what releases it.

    Fails at once on a full or a read-only file system, before anything else was tried.
    """
    name = files.temporary_name()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor: int | None = os.open(name, flags, 0o600, dir_fd=root)

    def release() -> None:
        nonlocal descriptor
        if descriptor is not None:
            os.close(descriptor)
            descriptor = None

    try:
        os.unlink(name, dir_fd=root)
        if hasattr(os, "posix_fallocate"):
            assert descriptor is not None
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:  # some file systems cannot reserve
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        yield release
    finally:
        release()


def _second_link(directory: int, name: str) -> str | None:
    """Another name for a file's old content; None on a file system without hard links."""
    backup = files.temporary_name()
    try:
        os.link(name, backup, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return backup
