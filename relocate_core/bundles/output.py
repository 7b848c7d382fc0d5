"""A bundle's file: its members, and the archive with its digest put in place together."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from typing import Any, BinaryIO, Protocol

from ..archives.header import header
from ..archives.tar import BLOCK, FILE, LINK
from ..errors import Busy, InvalidPath
from ..virtualenvs import manifest, rewritten
from ..virtualenvs.manifest import Row
from .blocks import Body

# Bytes; so much is put together for one write, which costs more than to copy them.
_TOGETHER = 128 << 10


class Sink(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes, /) -> Any:
        """Take all of the data."""


def put(archives: Sequence[Sink], row: Row, pieces: Iterator[bytes]) -> None:
    """Write a member of one tar, or the same one of several."""
    mode = 0o777 if row.kind == LINK else row.mode
    data = header(row.path, row.kind, mode, row.size, manifest.FIXED_TIME, row.target)
    for piece in pieces:
        if len(data) + len(piece) > _TOGETHER:
            _write(archives, data)
            data = piece
        else:
            data += piece
    _write(archives, data + bytes(-row.size % BLOCK))


def _write(archives: Sequence[Sink], data: bytes) -> None:
    for archive in archives:
        archive.write(data)


def end(body: Body) -> None:
    """Write the end of a tar."""
    body.write(bytes(2 * BLOCK))
    body.finish()


def _own_file(path: str, create: int = os.O_CREAT) -> BinaryIO:
    """A file of ours to write to, with what is in it; made where missing unless `create` is 0.

    Raises:
        InvalidPath: somebody else has put something there.
    """
    flags = os.O_RDWR | create | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = open(  # noqa: SIM115 - the caller closes it
            path, "wb", opener=lambda path, _: os.open(path, flags, 0o644)
        )
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        status = os.fstat(file.fileno())
        own = status.st_uid == os.geteuid() and status.st_nlink == 1
        if stat.S_ISREG(status.st_mode) and own:
            return file
        file.close()
    raise InvalidPath(f"{path} is in the way, and none of our own files: see whose, and remove it")


class Output:
    """The archive and its digest: written to temporary files, put in place together."""

    def __init__(self, archive: str) -> None:
        self.archive = archive
        directory, name = os.path.split(archive)
        # Of a fixed name, so that the next run takes what a killed one has left.
        self.temporary = os.path.join(directory, f".{name}.packing")
        self.file: BinaryIO
        self._digest = hashlib.sha256()
        self.committed = False

    def __enter__(self) -> Output:
        # Opened here and not before: Control-C between the two would leave the file.
        try:
            self.file = self._locked(os.O_CREAT)
            return self
        except KeyboardInterrupt:
            self._take_back()
            raise

    def _locked(self, create: int) -> BinaryIO:
        """The temporary file, empty, and locked for as long as it is open."""
        while True:
            file = _own_file(self.temporary, create)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another run may have put it in place in between.
                if os.path.samestat(os.fstat(file.fileno()), os.lstat(self.temporary)):
                    file.truncate(0)
                    return file
            except FileNotFoundError:
                pass
            except BlockingIOError:
                file.close()
                raise Busy(
                    f"cannot write {self.archive}: another run is writing it; wait for that to end"
                ) from None
            except BaseException:
                file.close()
                raise
            file.close()

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Write more of the archive."""
        self._digest.update(data)
        self.file.write(data)

    def _take_back(self) -> None:
        """Remove the temporary file, unless it is another run's."""
        with suppress(OSError, Busy, InvalidPath), self._locked(0):
            os.unlink(self.temporary)

    def __exit__(self, *_: object) -> None:
        if not self.committed:  # before it is closed, and another run can have it
            for suffix in (".sha256", ""):
                with suppress(FileNotFoundError):
                    os.unlink(self.temporary + suffix)
        self.file.close()

    def complete(self, text: bytes, body: Body) -> tuple[int, str]:
        """Write the manifest and the members, and put both files in place.

        Args:
            text: the manifest.
            body: all that follows.

        Returns:
            The archive's size and digest.
        """
        with closing(body.another()) as head:
            for name, data in ((manifest.NAME, text), (rewritten.NAME, rewritten.EMPTY)):
                put([head], Row(name, FILE, 0o644, len(data)), iter((data,)))
            head.finish()
            for piece in chain(head.pieces(), body.pieces()):
                self.write(piece)
        return self.commit()

    def commit(self) -> tuple[int, str]:
        """Put both in place; the archive's size and digest.

        The digest comes first: whoever is killed in between has an archive that is refused, and
        not one that a later run takes for done.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        size, digest = self.file.tell(), self.sha256
        with _own_file(self.temporary + ".sha256") as beside:
            beside.truncate(0)
            beside.write(os.fsencode(f"{digest}  {os.path.basename(self.archive)}\n"))
            beside.flush()
            os.fsync(beside.fileno())
        os.rename(self.temporary + ".sha256", self.archive + ".sha256")
        os.rename(self.temporary, self.archive)
        self.committed = True
        directory = os.open(os.path.dirname(self.archive), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return size, digest
