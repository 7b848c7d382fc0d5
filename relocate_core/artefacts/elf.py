"""What a compiled file needs of the machine: the processor, the C library and its version.

Only headers and tables are read, a piece at a time and never more than a fixed amount of each, so
a file of a gigabyte costs no more than a small one, and a hostile file can do no more than be
taken for none. Sources: the ELF gABI, chapters 4 and 5; the Linux Standard Base's chapter on
symbol versioning for the version needs.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_PROGRAM_HEADERS = 256
_DYNAMIC_BYTES = 64 << 10
_LIBRARIES = 1024
_VERSIONS = 4096
_NAME_BYTES = 512

_MACHINES = {
    (2, "<", 62): "x86_64",
    (1, "<", 62): "x86_64",
    (1, "<", 3): "i686",
    (2, "<", 183): "aarch64",
    (2, ">", 183): "aarch64_be",
    (2, "<", 21): "ppc64le",
    (2, ">", 21): "ppc64",
    (1, ">", 20): "ppc",
    (2, ">", 22): "s390x",
    (2, "<", 243): "riscv64",
    (1, "<", 243): "riscv32",
    (2, "<", 258): "loongarch64",
}
"""Word size, byte order and number of the processors that `uname -m` has one name for."""

_GLIBC = re.compile(rb"GLIBC_(\d{1,5}(?:\.\d{1,5}){1,3})\Z")
_GLIBC_LIBRARY = re.compile(rb"libc\.so\.\d|ld-linux")
_MUSL_LIBRARY = re.compile(rb"libc\.musl-[^/]*\.so\.1\Z|libc\.so\Z|ld-musl-")


class Needs(NamedTuple):
    """What a machine has to have for a file to load."""

    machine: str
    """As `uname -m` says it; `elf-<number>` for a processor without such a name."""
    libc: str
    """`glibc`, `musl`, or "" where the file asks for neither."""
    version: tuple[int, ...]
    """The oldest glibc that will do; () where the file does not say."""


class _Unsound(ValueError):
    """The file is not what its headers say."""


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


def needs(file: int) -> Needs | None:
    """What the program or shared library behind a descriptor needs.

    Args:
        file: descriptor of a regular file; where it stands is not changed.

    Returns:
        None for everything that is no such file, or a damaged one.
    """
    try:
        return _Reader(file).needs()
    except (ValueError, OverflowError, struct.error, OSError):
        return None


class _Reader:
    def __init__(self, file: int) -> None:
        self._file = file
        head = self._bytes(0, 20)
        if head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise _Unsound
        self._wide = head[4] == 2
        self._order = "<" if head[5] == 1 else ">"
        self._kind, self._machine = self._numbers("HH", 16)
        self._segments = self._program_headers() if self._kind in (2, 3) else []

    def needs(self) -> Needs | None:
        """What the file needs; None for an object that is yet to be linked, or a core dump."""
        if self._kind not in (2, 3):
            return None
        libraries, names = self._dynamic()
        versions = [_version(name) for name in names]
        version = max(versions, default=())
        asked = [*libraries, *self._loader()]
        libc = ""
        if version or any(_GLIBC_LIBRARY.match(name) for name in asked):
            libc = "glibc"
        elif any(_MUSL_LIBRARY.match(name) for name in asked):
            libc = "musl"
        known = (2 if self._wide else 1, self._order, self._machine)
        return Needs(_MACHINES.get(known, f"elf-{self._machine}"), libc, version)

    def _program_headers(self) -> list[_Segment]:
        (offset,) = self._numbers("Q", 32) if self._wide else self._numbers("I", 28)
        entry, count = self._numbers("HH", 54 if self._wide else 42)
        layout = "IIQQQQ" if self._wide else "IIIII"
        if count > _PROGRAM_HEADERS or (count and entry < struct.calcsize("=" + layout)):
            raise _Unsound
        segments = []
        for number in range(count):
            fields = self._numbers(layout, offset + number * entry)
            if self._wide:
                kind, _, start, address, _, size = fields
            else:
                kind, start, address, _, size = fields
            segments.append(_Segment(kind, start, address, size))
        return segments

    def _loader(self) -> list[bytes]:
        """The name of the dynamic loader that a program asks for."""
        for segment in self._segments:
            if segment.kind == 3:  # PT_INTERP
                return [self._text(segment.offset).rpartition(b"/")[2]]
        return []

    def _dynamic(self) -> tuple[list[bytes], list[bytes]]:
        """The libraries that the file needs, and the versions of what it needs of them."""
        section = next((segment for segment in self._segments if segment.kind == 2), None)
        if section is None:
            return [], []
        layout = self._order + ("qQ" if self._wide else "iI")
        step = struct.calcsize(layout)
        size = min(section.size, _DYNAMIC_BYTES) // step * step
        values: dict[int, int] = {}
        libraries = []
        for tag, value in struct.iter_unpack(layout, self._bytes(section.offset, size)):
            if tag == 0:  # DT_NULL
                break
            if tag == 1:  # DT_NEEDED
                libraries.append(value)
            values[tag] = value
        if not libraries and 0x6FFFFFFE not in values:
            return [], []
        if 5 not in values or len(libraries) > _LIBRARIES:
            raise _Unsound
        strings = self._offset(values[5])  # DT_STRTAB
        names = [self._text(strings + value) for value in libraries]
        if 0x6FFFFFFE not in values:  # DT_VERNEED
            return names, []
        count = values.get(0x6FFFFFFF, 0)  # DT_VERNEEDNUM
        return names, list(self._versions(self._offset(values[0x6FFFFFFE]), count, strings))

    def _versions(self, at: int, count: int, strings: int) -> Iterator[bytes]:
        """The names of the versions that must be there."""
        if count > _LIBRARIES:
            raise _Unsound
        left = _VERSIONS
        for _ in range(count):
            _, versions, _, first, following = self._numbers("HHIII", at)
            left -= versions
            if left < 0:
                raise _Unsound
            entry = at + first
            for _ in range(versions):
                _, flags, _, name, beyond = self._numbers("IHHII", entry)
                # A weak one may be missing: the loader then leaves its symbols undefined.
                if not flags & 2:  # VER_FLG_WEAK
                    yield self._text(strings + name)
                entry += beyond
                if not beyond:
                    break
            at += following
            if not following:
                break

    def _offset(self, address: int) -> int:
        """Where in the file that stands which is loaded at an address."""
        for segment in self._segments:
            inside = segment.kind == 1  # PT_LOAD
            if inside and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise _Unsound

    def _text(self, at: int) -> bytes:
        """The string that begins there."""
        text, end, _ = os.pread(self._file, _NAME_BYTES, at).partition(b"\0")
        if not end:
            raise _Unsound
        return text

    def _numbers(self, layout: str, at: int) -> tuple[int, ...]:
        layout = self._order + layout
        return struct.unpack(layout, self._bytes(at, struct.calcsize(layout)))

    def _bytes(self, at: int, size: int) -> bytes:
        data = os.pread(self._file, size, at)
        if len(data) < size:
            raise _Unsound
        return data


def _version(name: bytes) -> tuple[int, ...]:
    """The numbers of a glibc version; () for another's, and for GLIBC_PRIVATE."""
    if name == b"GLIBC_ABI_DT_RELR":  # packed relocations, which came with that version
        return (2, 36)
    match = _GLIBC.match(name)
    return tuple(map(int, match[1].split(b"."))) if match else ()
