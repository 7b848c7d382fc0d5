"""A directory whose entries are complete as soon as they have their names: releases, interpreters.

An entry is prepared in `staging`, in the directory's records, gets a record of what it is as its
last file, is written to the disk, and is then renamed. It is removed the other way round: its name
first, at once. One run at a time does either; the next one removes what a killed one has left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import InvalidPath, TreeError, reason_of
from . import files, locks
from .ownership import make_trusted, require_trusted

STAGING = "staging"
_LONGEST_RECORD = 1 << 20


def record_of(path: str, file: str, form: int) -> dict[str, Any] | None:
    """The record of an entry; None where there is no complete one, or it was moved by hand.

    Args:
        path: the entry's path.
        file: the name of its record.
        form: the format that it has to be of.

    Raises:
        TreeError: it cannot be read.
    """
    place = os.path.join(path, file)
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return None
        descriptor = os.open(place, files.FILE)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_RECORD:
                return None
            known = json.loads(files.read_whole(descriptor))
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise TreeError.of(place, error, "read") from error
    if not isinstance(known, dict) or known.get("format") != form:
        return None
    return known if known.get("name") == os.path.basename(path) else None  # else it is a copy


@contextmanager
def opened(
    path: str, records: str, doing: str, wait: float, *, create: bool = False
) -> Iterator[Staging]:
    """Hold the lock of a directory of entries; gives what changes it.

    Args:
        path: the directory.
        records: the name of its directory of records.
        doing: what for, for the message of others who wait.
        wait: seconds to wait for another holder.
        create: whether to create the directory where it is missing.

    Raises:
        Busy: somebody else held the lock all the time.
        UnsafeDirectory: somebody else could redirect what is written.
        InvalidPath: the directory of records belongs to somebody else.
    """
    try:
        if create:
            make_trusted(path)
        require_trusted(path)
        directory = files.open_root(path)
        try:
            kept = own_directory(path, directory, records, 0o755)
            try:
                with locks.held(kept, path, doing, wait):
                    yield Staging(path, directory, kept, os.path.join(path, records))
            finally:
                os.close(kept)
        finally:
            os.close(directory)
    except OSError as error:
        raise TreeError.of(path, error, "work in") from error


class Staging:
    """A directory of entries whose lock is held.

    Args:
        path: the directory.
        directory: its descriptor.
        records: descriptor of its directory of records.
        place: the path of that one.
    """

    def __init__(self, path: str, directory: int, records: int, place: str) -> None:
        self.path = path
        self.directory = directory
        self.records = records
        self.place = place

    def clear(self) -> None:
        """Remove what a killed run has left."""
        shutil.rmtree(os.path.join(self.place, STAGING), ignore_errors=True)
        os.close(own_directory(self.path, self.records, STAGING, 0o700))

    @contextmanager
    def staged(self) -> Iterator[str]:
        """The path of a new directory of ours to prepare an entry in; removed at the end."""
        # A name that nobody can guess: while a smoke test runs, its user may pass through.
        inner = f"{STAGING}/{os.urandom(8).hex()}"
        os.mkdir(inner, 0o700, dir_fd=self.records)
        path = os.path.join(self.place, inner)
        try:
            directory = os.open(inner, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.records)
            try:
                _drop_default_list(directory)
                os.chmod(directory, 0o700)  # without the setgid bit of the directory above
            finally:
                os.close(directory)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, staged: str, name: str, file: str, record: Mapping[str, Any]) -> None:
        """Give a staged tree its final name, when all of it is on the disk.

        Args:
            staged: the tree's path.
            name: the entry's name.
            file: the name of its record.
            record: what that should contain.
        """
        tree = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with suppress(FileNotFoundError):
                os.unlink(file, dir_fd=tree)
            os.close(_written(tree, file, record))
            files.flush(tree)
        finally:
            os.close(tree)
        os.rename(staged, name, dst_dir_fd=self.directory)
        os.fsync(self.directory)

    def rewrite(self, name: str, file: str, record: Mapping[str, Any]) -> None:
        """Replace the record of an entry by another one, at once.

        Args:
            name: the entry's name.
            file: the name of its record.
            record: what that should contain.
        """
        staging = files.open_directory(self.records, STAGING)
        try:
            descriptor = _written(staging, new := os.urandom(8).hex(), record)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            entry = files.open_directory(self.directory, name)
            try:
                os.rename(new, file, src_dir_fd=staging, dst_dir_fd=entry)
                os.fsync(entry)
            finally:
                os.close(entry)
        finally:
            os.close(staging)

    def take_away(self, name: str, event: str) -> str:
        """Take an entry's name; what was in it is now where the result says.

        Args:
            name: the entry's name.
            event: why, which the name of the new place begins with.
        """
        doomed = os.path.join(self.place, STAGING, f"{event}-{os.urandom(8).hex()}")
        os.mkdir(doomed, 0o700)
        os.rename(name, os.path.join(doomed, name), src_dir_fd=self.directory)
        os.fsync(self.directory)
        return doomed


def _written(directory: int, file: str, record: Mapping[str, Any]) -> int:
    """A descriptor of a new file with a record."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o644, dir_fd=directory)
    with open(descriptor, "w", closefd=False) as stream:
        os.fchmod(descriptor, 0o644)  # whatever the umask
        json.dump(record, stream, indent=1)
        stream.write("\n")
    return descriptor


def remove(doomed: str) -> str | None:
    """Remove what was taken away; why something of it is left, or None."""
    try:
        shutil.rmtree(doomed)
    except OSError as error:
        return f"{error.filename} cannot be removed: {reason_of(error)}"
    return None


def own_directory(path: str, parent: int, name: str, mode: int) -> int:
    """A descriptor of a directory of ours, which is created where it is missing.

    Args:
        path: the path of the directory that it is in.
        parent: the descriptor of that one.
        name: its name.
        mode: its mode, where it is created.

    Raises:
        InvalidPath: something else is there, or it belongs to somebody else.
    """
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
        os.chmod(name, mode, dir_fd=parent)  # whatever the umask
    try:
        directory = files.open_directory(parent, name)
    except OSError as error:
        raise InvalidPath(
            f"{os.path.join(path, name)} is to be a directory of records and is none: move it away"
        ) from error
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        os.close(directory)
        raise InvalidPath(
            f"{os.path.join(path, name)} is not writable by this user alone: see who made it, and "
            "remove it or chown it"
        )
    return directory


def _drop_default_list(directory: int) -> None:
    """Let the directory above hand down no access list."""
    if hasattr(os, "removexattr"):
        with suppress(OSError):
            os.removexattr(directory, "system.posix_acl_default")
