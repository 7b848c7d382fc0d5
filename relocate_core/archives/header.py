"""The header of a tar's member: one block as ustar has it, where that can say all; else with pax.

A bundle has as many as there are files, of which nearly all have plain names: `tarfile` takes five
times as long, and gives each path of more than 100 bytes two further blocks. Source: POSIX.1-2017,
pax, "ustar Interchange Format".
"""

from __future__ import annotations

import tarfile

from .tar import BLOCK, DIRECTORY, FILE, LINK

_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, LINK: tarfile.SYMTYPE}
_LONGEST_NAME, _LONGEST_PREFIX = 100, 155
_LARGEST = 8**11
_SUM_AT = 148
_MIDDLE = b"ustar\x0000" + bytes(80)
"""The magic and version, no names of owners, and no device."""


def header(name: str, kind: str, mode: int, size: int, mtime: int, target: str = "") -> bytes:
    """The header of a member that belongs to nobody.

    Args:
        name: its path.
        kind: FILE, DIRECTORY or LINK.
        mode: its permissions.
        size: bytes of its content.
        mtime: seconds since 1970.
        target: where a link points to.
    """
    path = f"{name}/" if kind == DIRECTORY else name
    if path.isascii() and target.isascii() and len(target) <= _LONGEST_NAME and size < _LARGEST:
        at = -1 if len(path) <= _LONGEST_NAME else path.find("/", len(path) - _LONGEST_NAME - 1)
        prefix, base = path[: max(at, 0)], path[at + 1 :]
        if base and len(base) <= _LONGEST_NAME and len(prefix) <= _LONGEST_PREFIX:
            return _ustar(base, prefix, _TYPES[kind], (mode, size, mtime), target)
    info = tarfile.TarInfo(name)
    info.type, info.linkname = _TYPES[kind], target
    info.mode, info.size, info.mtime = mode, size, mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _ustar(
    base: str, prefix: str, kind: bytes, numbers: tuple[int, int, int], target: str
) -> bytes:
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%s%s%s" % (
        base.encode().ljust(_LONGEST_NAME, b"\0"),
        numbers[0],
        0,
        0,
        *numbers[1:],
        kind,
        target.encode().ljust(_LONGEST_NAME, b"\0"),
        _MIDDLE,
        prefix.encode(),
    )
    total = b"%06o\0" % (sum(block))
    return (block[:_SUM_AT] + total + block[_SUM_AT + len(total) :]).ljust(BLOCK, b"\0")
