"""What an archive may come to, and the space on the disk that unpacking leaves to others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..archives.decompression import RATIO_FROM
from ..archives.tar import BLOCK
from ..errors import InvalidPath

# Unpacking leaves this much of a disk to its other users.
_LEFT_FREE = 64 << 20
_LOOK_EVERY = 64 << 20


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

    def exceeded(self, files: int, size: int, packed_size: int) -> dict[str, int]:
        """Which of them an archive exceeds, and the least that it needs instead.

        Args:
            files: its members.
            size: bytes in all of its files.
            packed_size: its own size in bytes.
        """
        unpacked = size + files * 2 * BLOCK  # with headers, and what fills up the blocks
        ratio = -(-unpacked // packed_size) if unpacked > RATIO_FROM else 1
        needed = {"files": files, "size": size, "ratio": ratio}
        return {name: least for name, least in needed.items() if least > getattr(self, name)}


class Full(Exception):
    """The disk has too little space left; `str()` says how little."""


class Space:
    """The space that is left on the disk of a directory, given by its descriptor.

    Other programs on a full disk would stop as well.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._unlooked = 0

    def require(self, size: int) -> None:
        """Stop before anything is written, where the disk has not so many bytes left.

        Raises:
            Full: it has not.
        """
        free = self._free()
        if size + _LEFT_FREE > free:
            raise Full(
                f"at least {_mega(size)} are needed and {_mega(free)} are free, of which "
                f"{_mega(_LEFT_FREE)} are left to others"
            )

    def used(self, size: int) -> None:
        """Count bytes that were written, and stop before the disk is full.

        Raises:
            Full: too little is left.
        """
        self._unlooked += size
        if self._unlooked > _LOOK_EVERY:
            self._unlooked = 0
            if self._free() < _LEFT_FREE:
                raise Full(f"less than {_mega(_LEFT_FREE)} are left on its disk")

    def _free(self) -> int:
        status = os.fstatvfs(self._directory)
        return status.f_bavail * status.f_frsize


def _mega(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
