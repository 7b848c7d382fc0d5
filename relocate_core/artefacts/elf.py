"""Reading ELF files: what one needs of the machine, and where its dynamic strings are.

Only headers and tables are read, a piece at a time and never more than a fixed amount of each, so
a file of a gigabyte costs no more than a small one, and a hostile file can do no more than be
taken for something else. Sources: the ELF gABI, chapters 4 and 5; the Linux Standard Base's chapter
on symbol versioning for the versions that are needed.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import NamedTuple

MAGIC = b"\x7fELF"

_PROGRAM_HEADERS = 256
_DYNAMIC_BYTES = 64 << 10
_SYMBOL_BYTES = 64 << 20
_LIBRARIES = 1024
_VERSIONS = 4096
_NAME_BYTES = 512

# Types of files and of segments, tags of the dynamic section, flags of needed versions.
_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT = 0, 1, 5, 6, 10, 11
_DT_SONAME, _DT_RPATH, _DT_RUNPATH = 14, 15, 29
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_DT_RELA, _DT_RELASZ = 7, 8
_VER_FLG_WEAK = 2
_PF_X, _PF_W = 1, 2
_X86_64 = 62

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
"""Word size, byte order and number of the processors for which `uname -m` has exactly one name."""

_GLIBC = re.compile(rb"GLIBC_(\d{1,5}(?:\.\d{1,5}){1,3})\Z")
_GLIBC_LIBRARY = re.compile(rb"libc\.so\.\d|ld-linux")
_MUSL_LIBRARY = re.compile(rb"libc\.musl-[^/]*\.so\.1\Z|libc\.so\Z|ld-musl-")


class Needs(NamedTuple):
    """What a machine has to have for a file to load."""

    machine: str
    """As `uname -m` prints it; `elf-<number>` for a processor without such a name."""
    libc: str
    """`glibc`, `musl`, or "" where the file needs neither."""
    version: tuple[int, ...]
    """The oldest glibc that is enough; () where the file needs no particular one."""


class DynamicStrings(NamedTuple):
    """The dynamic string table of an ELF object, as offsets into the file."""

    start: int
    end: int
    runpath: int
    """Where the RPATH or RUNPATH string begins; 0 where there is none."""
    used: frozenset[int]
    """Where the names of symbols and libraries begin."""


class _Unsound(ValueError):
    """The file does not fit its headers."""


class Segment(NamedTuple):
    """A part of the file, and where it is loaded."""

    kind: int
    offset: int
    address: int
    size: int
    flags: int

    @property
    def executable(self) -> bool:
        """Whether it is code."""
        return bool(self.flags & _PF_X)

    @property
    def writable(self) -> bool:
        """Whether it is data that a program may change."""
        return bool(self.flags & _PF_W)


class Image(NamedTuple):
    """What of a linked x86-64 file is loaded, and how."""

    loads: list[Segment]
    position_independent: bool
    relocations: tuple[int, int]
    """Offset and size of the table of relocated pointers."""


def needs(file: int) -> Needs | None:
    """What the program or shared library behind a descriptor needs.

    Args:
        file: descriptor of a regular file; its position is not changed.

    Returns:
        None for everything that is no such file, or a damaged one.
    """
    try:
        elf = _Elf(lambda at, size: os.pread(file, size, at))
        return elf.needs() if elf.is_linked else None
    except (ValueError, OverflowError, struct.error, OSError):
        return None


def libraries(file: int) -> tuple[str, ...]:
    """The names of the shared libraries that the file behind a descriptor needs.

    Returns:
        () for everything that is no linked file, or a damaged one.
    """
    try:
        elf = _Elf(lambda at, size: os.pread(file, size, at))
        return elf.libraries() if elf.is_linked else ()
    except (ValueError, OverflowError, struct.error, OSError):
        return ()


def dynamic_strings(data: bytes) -> DynamicStrings | None:
    """The dynamic string table of a file; None where it has none, or is damaged."""
    try:
        return _Elf(lambda at, size: data[at : at + size]).dynamic_strings()
    except (ValueError, OverflowError, struct.error):
        return None


def image(data: bytes | mmap) -> Image | None:
    """What is loaded of a linked x86-64 file; None for any other file, or a damaged one."""
    try:
        return _Elf(lambda at, size: data[at : at + size]).image()
    except (ValueError, OverflowError, struct.error):
        return None


class _Elf:
    """An ELF file.

    Args:
        read: returns so many bytes from an offset of the file, or fewer at its end.
    """

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        head = self._bytes(0, 20)
        if head[:4] != MAGIC or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise _Unsound
        self._wide = head[4] == 2
        self._order = "<" if head[5] == 1 else ">"
        kind, self._machine = self._numbers("HH", 16)
        self._fixed = kind == _ET_EXEC
        self.is_linked = kind in (_ET_EXEC, _ET_DYN)
        """Whether it is a program or a shared library: no object file, no core dump."""
        self._segments = self._program_headers() if self.is_linked else []

    def needs(self) -> Needs:
        """What the file needs to load."""
        dynamic = self._dynamic()
        libraries = self._libraries(dynamic)
        version = max(map(_version, self._versions(dynamic)), default=())
        needed = [*libraries, *self._loader()]
        libc = ""
        if version or any(_GLIBC_LIBRARY.match(name) for name in needed):
            libc = "glibc"
        elif any(_MUSL_LIBRARY.match(name) for name in needed):
            libc = "musl"
        known = (2 if self._wide else 1, self._order, self._machine)
        return Needs(_MACHINES.get(known, f"elf-{self._machine}"), libc, version)

    def libraries(self) -> tuple[str, ...]:
        """The names of the shared libraries that the file needs."""
        return tuple(map(os.fsdecode, self._libraries(self._dynamic())))

    def dynamic_strings(self) -> DynamicStrings | None:
        """Where the dynamic strings are, and which of them are in use."""
        dynamic = self._dynamic()
        values = dict(dynamic)
        if _DT_STRTAB not in values:
            return None
        table = self._offset(values[_DT_STRTAB])
        used = {table + value for tag, value in dynamic if tag in (_DT_NEEDED, _DT_SONAME)}
        used.update(table + name for name in self._symbol_names(values, table))
        runpath = values.get(_DT_RUNPATH, values.get(_DT_RPATH))
        return DynamicStrings(
            table,
            table + values.get(_DT_STRSZ, 0),
            0 if runpath is None else table + runpath,
            frozenset(used),
        )

    def image(self) -> Image | None:
        """What of the file is loaded; None where it is not linked, or for another processor."""
        if not self.is_linked or (self._wide, self._order, self._machine) != (True, "<", _X86_64):
            return None
        values = dict(self._dynamic())
        relocations = (0, 0)
        if _DT_RELA in values:
            relocations = (self._offset(values[_DT_RELA]), values.get(_DT_RELASZ, 0))
        loads = [segment for segment in self._segments if segment.kind == _PT_LOAD]
        return Image(loads, not self._fixed, relocations)

    def _program_headers(self) -> list[Segment]:
        (offset,) = self._numbers("Q", 32) if self._wide else self._numbers("I", 28)
        entry, count = self._numbers("HH", 54 if self._wide else 42)
        layout = "IIQQQQ" if self._wide else "IIIIIII"
        if count > _PROGRAM_HEADERS or (count and entry < struct.calcsize("=" + layout)):
            raise _Unsound
        segments = []
        for number in range(count):
            fields = self._numbers(layout, offset + number * entry)
            if self._wide:
                kind, flags, start, address, _, size = fields
            else:
                kind, start, address, _, size, _, flags = fields
            segments.append(Segment(kind, start, address, size, flags))
        return segments

    def _loader(self) -> list[bytes]:
        """The name of the dynamic loader that a program needs."""
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return [self._text(segment.offset).rpartition(b"/")[2]]
        return []

    def _dynamic(self) -> list[tuple[int, int]]:
        """The tags and values of the dynamic section."""
        section = next((each for each in self._segments if each.kind == _PT_DYNAMIC), None)
        if section is None:
            return []
        layout = self._order + ("qQ" if self._wide else "iI")
        step = struct.calcsize(layout)
        size = min(section.size, _DYNAMIC_BYTES) // step * step
        entries = []
        for tag, value in struct.iter_unpack(layout, self._bytes(section.offset, size)):
            if tag == _DT_NULL:
                break
            entries.append((tag, value))
        return entries

    def _libraries(self, dynamic: list[tuple[int, int]]) -> list[bytes]:
        """The names of the libraries that the file needs."""
        found = [value for tag, value in dynamic if tag == _DT_NEEDED]
        if len(found) > _LIBRARIES:
            raise _Unsound
        strings = self._string_table(dynamic) if found else 0
        return [self._text(strings + value) for value in found]

    def _versions(self, dynamic: list[tuple[int, int]]) -> Iterator[bytes]:
        """The names of the versions that the libraries have to have."""
        values = dict(dynamic)
        if _DT_VERNEED not in values:
            return
        strings = self._string_table(dynamic)
        at = self._offset(values[_DT_VERNEED])
        count = values.get(_DT_VERNEEDNUM, 0)
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
                if not flags & _VER_FLG_WEAK:
                    yield self._text(strings + name)
                entry += beyond
                if not beyond:
                    break
            at += following
            if not following:
                break

    def _symbol_names(self, values: dict[int, int], table: int) -> Iterator[int]:
        """Where in the string table the names of the symbols begin.

        No tag gives the end of the table of symbols; linkers put it in front of the strings.
        """
        if _DT_SYMTAB not in values:
            return
        symbols = self._offset(values[_DT_SYMTAB])
        size = values.get(_DT_SYMENT, 24 if self._wide else 16)
        if size < 4 or not symbols < table <= symbols + _SYMBOL_BYTES:
            return
        data = self._bytes(symbols, (table - symbols) // size * size)
        for (name,) in struct.iter_unpack(f"{self._order}I{size - 4}x", data):
            yield name

    def _string_table(self, dynamic: list[tuple[int, int]]) -> int:
        values = dict(dynamic)
        if _DT_STRTAB not in values:
            raise _Unsound
        return self._offset(values[_DT_STRTAB])

    def _offset(self, address: int) -> int:
        """The offset in the file of what is loaded at an address."""
        for segment in self._segments:
            inside = segment.kind == _PT_LOAD
            if inside and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise _Unsound

    def _text(self, at: int) -> bytes:
        """The string that begins at an offset."""
        text, end, _ = self._read(at, _NAME_BYTES).partition(b"\0")
        if not end:
            raise _Unsound
        return text

    def _numbers(self, layout: str, at: int) -> tuple[int, ...]:
        layout = self._order + layout
        return struct.unpack(layout, self._bytes(at, struct.calcsize(layout)))

    def _bytes(self, at: int, size: int) -> bytes:
        data = self._read(at, size)
        if len(data) < size:
            raise _Unsound
        return data


def _version(name: bytes) -> tuple[int, ...]:
    """The numbers of a glibc version; () for another library's, and for GLIBC_PRIVATE."""
    if name == b"GLIBC_ABI_DT_RELR":  # packed relocations, which came with that version
        return (2, 36)
    match = _GLIBC.match(name)
    return tuple(map(int, match[1].split(b"."))) if match else ()
