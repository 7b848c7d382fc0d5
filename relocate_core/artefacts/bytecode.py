"""Bytecode files (`.pyc`, `.pyo`) of every CPython from 2.7 on and of PyPy.

A pyc has the path of its source in `co_filename` of each code object, and may hold paths in
constants. The strings are found by walking the marshal stream - types and lengths only, nothing is
unmarshalled - so any Python's files can be rewritten by any other, and a hostile file can do no
more than fail to parse. Sources: CPython's Python/marshal.c of 2.7 to 3.15, PEP 552 for the header,
Lib/importlib/_bootstrap_external.py for the magic numbers, PyPy's pypy/interpreter/pycode.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .prefix import Prefixes

KIND = "bytecode"
MODES = ("timestamp", "checked-hash", "unchecked-hash")
"""How bytecode may know whether it fits its source, as `py_compile` calls it."""


class Unreadable(ValueError):
    """The file is no bytecode that this module knows; the message gives the reason."""


class Layout(NamedTuple):
    """How one Python writes a code object, and how long its file's header is.

    `code` is a sequence of `i` (a 32-bit number), `o` (an object that may hold paths) and `x`
    (an object that must not be touched: instructions and line tables).
    """

    header: int
    code: str
    ascii_types: bool
    """Whether strings of ASCII have types of their own (CPython 3.4 and later)."""
    rounds: int
    """SipHash's compression rounds in the source hash: 2 before 3.11, 1 since."""


_CODE_2 = "iiii" + "xooooooo" + "ix"
_CODE_3 = "iiiii" + "xooooooo" + "ix"
_CODE_38 = "iiiiii" + "xooooooo" + "ix"
_CODE_311 = "iiiii" + "xooo" + "xooo" + "ixx"

# Magic numbers (the low 16 bits) from CPython's own history of them.
_LAYOUTS = (
    (3450, 3899, Layout(16, _CODE_311, True, 1)),  # 3.11 (3450-3495) to 3.15 (3650-)
    (3401, 3449, Layout(16, _CODE_38, True, 2)),  # 3.8 (3401-3413), 3.9, 3.10
    (3390, 3400, Layout(16, _CODE_3, True, 2)),  # 3.7; 3.8's first alpha
    (3250, 3389, Layout(12, _CODE_3, True, 2)),  # 3.4 (3250-3310), 3.5, 3.6
    (3190, 3249, Layout(12, _CODE_3, False, 2)),  # 3.3
    (62211, 62211, Layout(8, _CODE_2, False, 2)),  # 2.7
    (336, 336, Layout(16, _CODE_38, True, 2)),  # PyPy of 3.9
)

_REF = 0x80
_FIXED = {ord(kind): size for kind, size in zip("0NFTS.iIgyrR", (0,) * 6 + (4, 8, 8, 16, 4, 4))}
_LONG_STRINGS = frozenset(b"stuaA")
_SHORT_STRINGS = frozenset(b"zZ")
_CONTAINERS = frozenset(b"([<>")
_NUMBERS = frozenset(b"lfx")
_LONG, _COMPLEX, _CODE, _SMALL_TUPLE = b"lxc)"
_DICTIONARIES = frozenset(b"{}")
"""A dict, and since Python 3.15 a frozendict."""
_NULL = ord("0")
"""What ends a dictionary."""
_SLICE = ord(":")
"""Since Python 3.14."""


def claims(path: str, data: bytes) -> bool:
    """Whether this is a bytecode file, by its name."""
    return path.endswith((".pyc", ".pyo"))


def layout_of(data: bytes) -> Layout:
    """The layout that belongs to the file's magic number.

    Raises:
        Unreadable: an unknown magic number, or no header.
    """
    if len(data) < 8 or data[2:4] != b"\r\n":
        raise Unreadable("it has no bytecode header")
    magic = data[0] | data[1] << 8
    for first, last, layout in _LAYOUTS:
        if first <= magic <= last:
            return layout
    raise Unreadable(f"it belongs to a Python that is not known yet (magic number {magic})")


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` with every path in it relocated; the same object where there is none.

    Raises:
        Unreadable: the references are in something that does not parse.
    """
    layout = layout_of(data)
    quick = _rewrite_filenames(path, data, prefixes, layout)
    if quick is not None:
        return quick
    pieces, end = [], 0
    for start, stop, kind in _strings(data, layout):
        old = data[start:stop]
        new = prefixes.replace(old)
        if new is not old and new != old:
            head = start - (2 if kind & ~_REF in _SHORT_STRINGS else 5)
            pieces += [data[end:head], _spell(kind, old, new, layout)]
            end = stop
    return b"".join((*pieces, data[end:])) if pieces else data


def rewrite_filenames(path: str, data: bytes, prefixes: Prefixes) -> bytes | None:
    """`data` with the names of its sources relocated; None where a prefix is in anything else.

    Raises:
        Unreadable: it has no header, or that of an unknown Python.
    """
    return _rewrite_filenames(path, data, prefixes, layout_of(data))


def _rewrite_filenames(
    path: str, data: bytes, prefixes: Prefixes, layout: Layout, cut: int = 0
) -> bytes | None:
    """The usual case, without a walk: every occurrence is a source's name, whole and well formed.

    Nearly all of a virtualenv's bytecode refers to nothing but its own source, and a walk costs a
    hundred times more than this check: a type byte and a length that fit, the prefix, and the
    source's own file name at the end. None where any occurrence is something else.

    The type byte has to carry the mark of a shared object, as CPython's and PyPy's compilers give
    it to every file name: with it, a type byte is no text in UTF-8, so no constant can look so.
    Of what follows the prefix the first `cut` bytes are left out.
    """
    new = prefixes.new
    for old in prefixes.old:
        at = data.find(old)
        if at >= 0:
            break
    else:
        return data
    source = path.rpartition("/")[2].partition(".")[0]
    tail = f"/{source}.py".encode("utf-8", "surrogateescape")
    inside = prefixes.inside[old]
    size, tail_size, plain = len(old), len(tail), old.isascii()
    pieces, end = [], 0
    while at >= 0:
        if inside and any(
            data.startswith(new + b"/", at - offset) for offset in inside if offset < at
        ):
            at = data.find(old, at + size)  # it is the new prefix already
            continue
        kind, length, start = data[at - 2], data[at - 1], at - 2
        if kind & 0x7F not in _SHORT_STRINGS:
            start = at - 5
            kind, length = data[start], int.from_bytes(data[start + 1 : at], "little")
            if kind & 0x7F not in _LONG_STRINGS:
                return None
        stop = at + length
        if (
            start < layout.header
            or not kind & _REF
            or length < size + tail_size
            or data[at + size] != 0x2F
            or data[stop - tail_size : stop] != tail
            or data.find(old, at + 1, stop) >= 0
        ):
            return None
        name = new + data[at + size + cut : stop]
        if kind & 0x7F in _SHORT_STRINGS and plain and len(name) < 256 and name.isascii():
            pieces += [data[end : at - 1], bytes((len(name),)), name]
        else:
            pieces += [data[end:start], _spell(kind, data[at:stop], name, layout)]
        end = stop
        at = data.find(old, stop)
    result = b"".join((*pieces, data[end:])) if pieces else data
    if len(prefixes.old) > 1 and any(o in result for o in prefixes.old if o not in new):
        return None
    return result


def _spell(kind: int, old: bytes, new: bytes, layout: Layout) -> bytes:
    """The marshalled string `new`, of the type that its Python would give it."""
    ref, kind = kind & _REF, kind & ~_REF
    if chr(kind) in "zZaA" and not old.isascii():
        raise Unreadable("a string is not of its type")
    if (layout.ascii_types and chr(kind) in "zZaA") or (
        layout.ascii_types and chr(kind) in "ut" and not old.isascii()
    ):
        interned = chr(kind) in "ZAt"
        if not new.isascii():
            kind = ord("t" if interned else "u")
        elif len(new) < 256:
            return bytes((ref | ord("Z" if interned else "z"), len(new))) + new
        else:
            kind = ord("A" if interned else "a")
    return bytes((ref | kind,)) + struct.pack("<i", len(new)) + new


def _strings(data: bytes, layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Start, end and type byte of every string that may hold a path, in file order.

    The stack holds what is still to be read: `o` and `x` for an object, `i` for a number, `k` for
    the rest of a dictionary.
    """
    at, size = layout.header, len(data)
    stack: list[str] = ["o"]
    try:
        while stack:
            want = stack.pop()
            if want == "i":
                at += 4
                continue
            flagged = data[at]
            kind = flagged & ~_REF
            at += 1
            if want == "k":
                if kind == _NULL:
                    continue
                stack += ["k", "o"]
                want = "o"
            if kind in _SHORT_STRINGS or kind in _LONG_STRINGS:
                if kind in _SHORT_STRINGS:
                    length = data[at]
                    at += 1
                else:
                    length = _number(data, at)
                    at += 4
                if length < 0 or at + length > size:
                    raise Unreadable("a string reaches over the end of the file")
                if want == "o":
                    yield at, at + length, flagged
                at += length
            elif kind in _FIXED:
                at += _FIXED[kind]
            elif kind in _NUMBERS:
                at = _behind_number(data, at, kind)
            else:
                at = _enter(data, at, kind, want, layout, stack)
        if at > size:
            raise Unreadable("it is cut short")
    except (IndexError, struct.error):
        raise Unreadable("it is cut short") from None


def _behind_number(data: bytes, at: int, kind: int) -> int:
    """The offset behind a number whose length is in the file: a long one, or one as text."""
    if kind == _LONG:
        return at + 4 + 2 * abs(_number(data, at))
    at += 1 + data[at]
    return at + 1 + data[at] if kind == _COMPLEX else at


def _enter(data: bytes, at: int, kind: int, want: str, layout: Layout, stack: list[str]) -> int:
    """Push what an object consists of; returns the offset of the first of it."""
    if kind == _CODE:
        code = layout.code[::-1]
        stack += code if want == "o" else code.replace("o", "x")
    elif kind == _SMALL_TUPLE:
        stack += want * data[at]
        return at + 1
    elif kind in _CONTAINERS:
        length = _number(data, at)
        # Each object takes a byte at least, which keeps a hostile count from eating memory.
        if not 0 <= length <= len(data) - at - len(stack):
            raise Unreadable("a container reaches over the end of the file")
        stack += want * length
        return at + 4
    elif kind in _DICTIONARIES:
        stack.append("k")
    elif kind == _SLICE:
        stack += want * 3
    else:
        raise Unreadable(f"it holds an object of unknown type {chr(kind)!r}")
    return at


def _number(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<i", data, at)[0])


# --- portable bytecode ----------------------------------------------------------------------------


def portable(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` with its source's name relative to the virtualenv.

    Python corrects the name when it imports the file together with its source (`_fix_co_filename`
    in importlib), so nothing has to be done for it where it is unpacked.

    Args:
        path: relative to the virtualenv.
        data: the file.
        prefixes: those that it may hold, and none in their place.

    Returns:
        The new content; the old one where a prefix is in anything else than such a name.

    Raises:
        Unreadable: it has no header, or that of an unknown Python.
    """
    if not any(prefix in data for prefix in prefixes.old):
        return data
    moved = _rewrite_filenames(path, data, prefixes, layout_of(data), cut=1)
    return data if moved is None else moved


def fits(data: bytes, magic: bytes, mtime: int, size: int) -> bool:
    """Whether bytecode is for a Python, and by its time and size for a source.

    Args:
        data: the file.
        magic: what that Python's bytecode begins with.
        mtime: the source's modification time in whole seconds.
        size: the source's size in bytes.

    Raises:
        Unreadable: it has no header, or that of an unknown Python.
    """
    header = layout_of(data).header
    return data[:header] == stamped(data[:header], mtime, size) and data.startswith(magic)


def stamped(data: bytes, mtime: int, size: int) -> bytes:
    """`data` with the header of a source of that time and size.

    Raises:
        Unreadable: it has no header, or that of an unknown Python.
    """
    header = layout_of(data).header
    flags = bytes(4) if header == 16 else b""
    source = struct.pack("<II", mtime & 0xFFFFFFFF, size & 0xFFFFFFFF)
    return data[:4] + flags + source[: header - 4 - len(flags)] + data[header:]


# --- which source a file belongs to ---------------------------------------------------------------


def follow_source(data: bytes, old_source: Source, new_source: Source) -> bytes:
    """The bytecode `data` with its header moved from `old_source` to `new_source`.

    A header that did not fit the old source stays: the file was out of date before, and Python
    sees that by itself. Both sources have the same modification time, which is kept.

    Raises:
        Unreadable: an unknown magic number.
    """
    layout = layout_of(data)
    if layout.header == 16 and data[4] & 1:
        if data[8:16] != source_hash(data[:4], old_source.data, layout.rounds):
            return data
        return data[:8] + source_hash(data[:4], new_source.data, layout.rounds) + data[16:]
    stamp = layout.header - (8 if layout.header > 8 else 4)
    if data[stamp : stamp + 4] != struct.pack("<I", old_source.mtime & 0xFFFFFFFF):
        return data
    if layout.header == 8:
        return data  # 2.7 compares the time alone
    if data[stamp + 4 : stamp + 8] != struct.pack("<I", len(old_source.data) & 0xFFFFFFFF):
        return data
    return (
        data[: stamp + 4] + struct.pack("<I", len(new_source.data) & 0xFFFFFFFF) + data[stamp + 8 :]
    )


class Source(NamedTuple):
    """A Python source file: its bytes, and its modification time in whole seconds."""

    data: bytes
    mtime: int


def source_hash(magic: bytes, source: bytes, rounds: int) -> bytes:
    """The 8 bytes by which a hash-based pyc knows its source (PEP 552).

    SipHash with the magic number as its key: SipHash-2-4 up to Python 3.10, SipHash-1-3 since.
    """
    mask = (1 << 64) - 1
    key = int.from_bytes(magic[:4], "little")
    v0, v1 = key ^ 0x736F6D6570736575, 0x646F72616E646F6D
    v2, v3 = key ^ 0x6C7967656E657261, 0x7465646279746573

    def mix(times: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(times):
            v0 = (v0 + v1) & mask
            v1 = ((v1 << 13 | v1 >> 51) & mask) ^ v0
            v0 = (v0 << 32 | v0 >> 32) & mask
            v2 = (v2 + v3) & mask
            v3 = ((v3 << 16 | v3 >> 48) & mask) ^ v2
            v0 = (v0 + v3) & mask
            v3 = ((v3 << 21 | v3 >> 43) & mask) ^ v0
            v2 = (v2 + v1) & mask
            v1 = ((v1 << 17 | v1 >> 47) & mask) ^ v2
            v2 = (v2 << 32 | v2 >> 32) & mask

    whole = len(source) & ~7
    for (word,) in struct.iter_unpack("<Q", source[:whole]):
        v3 ^= word
        mix(rounds)
        v0 ^= word
    last = (len(source) & 0xFF) << 56 | int.from_bytes(source[whole:], "little")
    v3 ^= last
    mix(rounds)
    v0 ^= last
    v2 ^= 0xFF
    mix(rounds + 2)
    return (v0 ^ v1 ^ v2 ^ v3).to_bytes(8, "little")


def recorded_source(path: str, data: bytes) -> str | None:
    """The absolute source path that a pyc at `path` records, where it ends like its own.

    `path` is relative to the virtualenv. Used to find prefixes that no other file contains, such as
    the second spelling of a build below a symlinked directory. None where the recorded name
    differs.
    """
    tail = source_of(path)
    if tail is None:
        return None
    encoded = b"/" + tail.encode("utf-8", "surrogateescape")
    stop = data.find(encoded) + len(encoded)
    if stop < len(encoded):
        return None
    start = data.rfind(b"/", 0, stop)
    while start >= 2:
        length = stop - start
        if data[start - 1] == length & 0xFF and data[start - 2] & 0x7F in _SHORT_STRINGS:
            return data[start:stop].decode("utf-8", "surrogateescape")
        if data[start - 4 : start] == length.to_bytes(4, "little"):
            return data[start:stop].decode("utf-8", "surrogateescape")
        start = data.rfind(b"/", max(0, stop - 4096), start)
    return None


def source_of(path: str) -> str | None:
    """Where the source of the bytecode at `path` is, or None for a name without one."""
    directory, _, name = path.rpartition("/")
    if directory.rpartition("/")[2] != "__pycache__":
        return path[:-1] if path.endswith((".pyc", ".pyo")) else None
    stem = name.partition(".")[0]
    parent = directory.rpartition("/")[0]
    return f"{parent}/{stem}.py" if parent else f"{stem}.py"
