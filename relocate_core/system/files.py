"""Work below a directory descriptor: no symlink followed, every change a new file and a rename.

A path is opened component by component, each with O_NOFOLLOW, so nobody who may write somewhere in
the tree can redirect a write out of it. A file is never written in place: hard links (uv links
from its cache) keep their content, a running program keeps its file, and a kill leaves either the
old file or the new one, and at most a temporary file that the next run removes.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ..errors import TreeChanged, TreeError

TEMPORARY = ".relocating-"
_counter = itertools.count()
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_root(path: str) -> int:
    """A descriptor of the directory `path`, which itself may be reached through symlinks.

    Raises:
        TreeError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TreeError.of(path, error) from error


def open_directory(root: int, path: str) -> int:
    """A descriptor of the directory `path` below `root`; "" is the root itself."""
    directory = os.dup(root)
    for component in path.split("/") if path else ():
        parent = directory
        try:
            directory = os.open(component, _DIRECTORY, dir_fd=parent)
        finally:
            os.close(parent)
    return directory


class DirectoryCursor:
    """Opens one directory after the other below a root, as `open_directory` does.

    The descriptors on the way to the last one stay open, so that a neighbour costs one call and
    not one for each component.
    """

    def __init__(self, root: int) -> None:
        self._names: list[str] = []
        self._descriptors = [os.dup(root)]

    def open(self, path: str) -> int:
        """A descriptor of the directory `path`, good until the next call."""
        names = path.split("/") if path else []
        same = 0
        for ours, theirs in zip(self._names, names):
            if ours != theirs:
                break
            same += 1
        self._leave(same)
        for name in names[same:]:
            self._descriptors.append(os.open(name, _DIRECTORY, dir_fd=self._descriptors[-1]))
            self._names.append(name)
        return self._descriptors[-1]

    def close(self) -> None:
        """Close all descriptors."""
        self._leave(0)
        os.close(self._descriptors.pop())

    def _leave(self, depth: int) -> None:
        del self._names[depth:]
        while len(self._descriptors) > depth + 1:
            os.close(self._descriptors.pop())


@contextmanager
def directory_of(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The descriptor of the directory that holds `path`, and the name in it."""
    parent, _, name = path.rpartition("/")
    directory = open_directory(root, parent)
    try:
        yield directory, name
    finally:
        os.close(directory)


def open_file(directory: int, name: str) -> int:
    """A descriptor of a file to read from."""
    return os.open(name, FILE, dir_fd=directory)


def read_whole(file: int) -> bytes:
    """The rest of an open file."""
    pieces: list[bytes] = []
    size = os.fstat(file).st_size + 1  # one more, to see the end with the first call
    while True:
        piece = os.read(file, min(size, 1 << 20))
        if not piece:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.append(piece)


def digest(file: int, algorithm: str = "sha256") -> bytes:
    """The digest of the rest of an open file."""
    import hashlib  # not above: the workers of a relocation need it for nothing, and start faster

    found = hashlib.new(algorithm)
    while piece := os.read(file, 1 << 20):
        found.update(piece)
    return found.digest()


def digest_of(directory: int, name: str, algorithm: str = "sha256") -> bytes:
    """The digest of a file in an open directory."""
    file = open_file(directory, name)
    try:
        return digest(file, algorithm)
    finally:
        os.close(file)


def read(directory: int, name: str) -> tuple[bytes, os.stat_result]:
    """A regular file's content, and what it was like before it was read."""
    file = open_file(directory, name)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ELOOP, "not a regular file any more")
        return read_whole(file), status
    finally:
        os.close(file)


def temporary_name() -> str:
    """A name for a temporary file or symlink, unique to this process."""
    return f"{TEMPORARY}{os.getpid()}-{next(_counter)}"


def write_beside(
    directory: int, original: int, status: os.stat_result, pieces: Iterable[bytes]
) -> str:
    """Write a new file into `directory`, like `original` in all but its content; return its name.

    Mode, owner, times and extended attributes (capabilities and access lists among them) are kept.

    Args:
        directory: descriptor of the directory.
        original: descriptor of the file that it is to replace.
        status: what that file was like before it was read.
        pieces: the new content.
    """
    name = temporary_name()
    mode = stat.S_IMODE(status.st_mode)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = os.open(name, flags, mode & 0o777, dir_fd=directory)
    try:
        for piece in pieces:
            write_all(file, piece)
        # In this order: a change of owner clears setuid bits and capabilities, and an access list
        # has its part in the mode.
        now = os.fstat(file)
        if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(file, status.st_uid, status.st_gid)
        if _copy_attributes(original, file) or now.st_mode != status.st_mode:
            os.fchmod(file, mode)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(file)
    return name


def write_all(file: int, data: bytes | memoryview) -> None:
    """Write all of it, where one call writes only a part."""
    written = os.write(file, data)
    while written < len(data):  # a signal or a nearly full disk
        data = data[written:]
        written = os.write(file, data)


def _copy_attributes(original: int, file: int) -> bool:
    """Give a file the extended attributes of another; whether there was any."""
    if not hasattr(os, "listxattr"):
        return False
    try:
        names, ours = os.listxattr(original), os.listxattr(file)
        for name in set(ours).difference(names):
            if not name.startswith("security."):  # such as the directory's default access list
                os.removexattr(file, name)
        for name in names:
            try:
                os.setxattr(file, name, os.getxattr(original, name))
            except OSError:
                # A label that the system has already set by its own policy may be refused.
                if name != "security.selinux":
                    raise
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return bool(names or ours)


def put_in_place(
    directory: int, temporary: str, name: str, status: os.stat_result, *, path: str
) -> None:
    """Rename `temporary` over `name`, unless somebody has changed that since `status`.

    Raises:
        TreeChanged: the file is not the one that was read any more.
    """
    try:
        now = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        now = None
    if now is None or not same_file(now, status):
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        what = "disappeared" if now is None else "changed"
        raise TreeChanged(
            f"cannot relocate {path}: it {what} meanwhile; "
            "stop what writes into the virtualenv and run again"
        )
    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two looks at a name saw the same, unchanged file."""
    return (
        one.st_ino == other.st_ino
        and one.st_size == other.st_size
        and one.st_mtime_ns == other.st_mtime_ns
    )


def symlink_beside(directory: int, status: os.stat_result, target: str) -> str:
    """Make a symbolic link with the owner and times of `status`; return its name."""
    name = temporary_name()
    os.symlink(target, name, dir_fd=directory)
    try:
        now = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
            os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise
    return name


def clear_directories(root: int, directories: Iterable[str]) -> None:
    """Remove what a killed run has left in some directories."""
    for path in directories:
        with suppress(OSError):
            directory = open_directory(root, path)
            try:
                for name in os.listdir(directory):
                    if name.startswith(TEMPORARY):
                        os.unlink(name, dir_fd=directory)
            finally:
                os.close(directory)


def clear_leftovers(root: int) -> None:
    """Remove what a killed run has left anywhere: under the lock, nobody else is using it."""
    with suppress(OSError):  # untidy, not wrong
        for _, directories, names, directory in os.fwalk(".", dir_fd=root):
            for name in (*directories, *names):  # a symlink to a directory is among the directories
                if name.startswith(TEMPORARY):
                    os.unlink(name, dir_fd=directory)


def flush(root: int) -> None:
    """Make everything written to the file system of `root` so far survive a power cut.

    Raises:
        OSError: the disk did not take it.
    """
    try:
        import ctypes

        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (ImportError, OSError, AttributeError):
        os.sync()
        return
    if syncfs(root):
        number = ctypes.get_errno()
        if number != errno.ENOSYS:
            raise OSError(number, os.strerror(number))
        os.sync()
