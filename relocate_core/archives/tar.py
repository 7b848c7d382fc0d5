"""Reading a tar that may be hostile: strict about every header, so that nobody reads it otherwise.

Python's `tarfile` takes a damaged header in the middle of an archive for its end, follows pax and
GNU overrides wherever they stand, and knows ten kinds of member. A packed virtualenv has files,
directories and links, so all else is refused by name. The formats are POSIX.1-2017 (ustar and pax,
in `pax`) and GNU's long names (in the manual of GNU tar, "Basic Tar Format").
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

BLOCK = 512
FILE, DIRECTORY, LINK, HARD_LINK = "file", "directory", "link", "hardlink"

_KINDS = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,  # "contiguous", which every system treats as a file
    b"5": DIRECTORY,
    b"2": LINK,
    b"1": HARD_LINK,
}
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "a part of a file from another volume",
    b"V": "a volume's label",
    b"D": "a GNU directory dump",
    b"N": "an old GNU list of names",
    b"X": "a Solaris header",
}
_ZEROS = bytes(BLOCK)
_LONGEST_NAME = 64 << 10
_LONGEST_PAX = 1 << 20
_SHOWN = 120
_LONGEST_TARGET = 1000  # characters, of up to four bytes each
_LATEST = 10**11  # seconds; some three thousand years
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\0\n]+)=")
_TIME = re.compile(r"(\d{1,11})(?:\.(\d+))?\Z")
_OVERRIDES = ("path", "linkpath", "size", "mtime")


STRANGE = "find out who packed it so before you use it"
DAMAGED = "fetch it again or pack it again"


class Refused(Exception):
    """The archive is not taken; `str()` says why, with the member's name where there is one.

    Attributes:
        advice: what to do about it.
    """

    def __init__(self, reason: str, name: str | None = None, *, advice: str = STRANGE) -> None:
        super().__init__(reason if name is None else f"{printable(name)} {reason}")
        self.advice = advice


class Source(Protocol):
    """Where the bytes come from."""

    def take(self, size: int) -> bytes:
        """Exactly that many bytes; refuses an archive that ends before."""

    def rest(self) -> Iterator[bytes]:
        """Everything that is left."""


class Member(NamedTuple):
    """One member of an archive."""

    name: str
    """Relative and in its plain form: no `.`, no `..`, no empty component; "" is the top itself."""
    kind: str
    """FILE, DIRECTORY, LINK or HARD_LINK."""
    size: int
    """Bytes of content that follow; 0 for all but files."""
    mode: int
    mtime: int
    """Nanoseconds since 1970."""
    target: str
    """What a link names: as it stands for LINK, in its plain form for HARD_LINK."""


def printable(name: str) -> str:
    """A name as a message can carry it: one line, not too long, no escapes for a terminal."""
    if len(name) > _SHOWN:
        name = f"{name[: _SHOWN - 3]}..."
    return name if name.isascii() and name.isprintable() else ascii(name)


def members(source: Source) -> Iterator[Member]:
    """The members of a tar, in their order.

    After each FILE the caller takes exactly `size` bytes from `source` before it asks for the next.

    Raises:
        Refused: the archive is damaged, or has something in it that no virtualenv has.
    """
    extended: dict[str, str] = {}
    before = ""  # what kind of header came last that only tells of the next one
    while True:
        header = source.take(BLOCK)
        if header == _ZEROS:
            break
        kind = _check(header)
        if kind in (b"x", b"g", b"L", b"K"):
            for field in (header[100:108], header[136:148]):
                _number(field, "mode or time", None)
            if kind in (b"x", b"g"):
                records = _pax(source, _size(header, "an extended header"), is_global=kind == b"g")
            else:
                key = "path" if kind == b"L" else "linkpath"
                records = {key: _long_name(source, _size(header, "a long name"))}
            if kind == b"g":
                continue
            if any(key in extended for key in records):
                raise Refused("two headers in a row tell the same of one member")
            extended.update(records)
            before = "an extended header or a long name"
            continue
        yield from _member(header, kind, extended, source)
        extended = {}
        before = ""
    if before:
        raise Refused(f"it ends with {before} that belongs to no member", advice=DAMAGED)
    _require_end(source)


def _check(header: bytes) -> bytes:
    """The header's type, once its checksum is found right."""
    wanted = _number(header[148:156], "checksum", None)
    if wanted != _sum(header[:148] + b"        " + header[156:]):  # its own field counts as spaces
        raise Refused("a header's checksum is wrong", advice=DAMAGED)
    for field in (header[108:116], header[116:124]):  # whom nothing is given to
        _number(field, "owner or group", None)
    kind = header[156:157]
    magic = header[257:263]
    if magic not in (b"ustar\0", b"ustar ") and (magic != b"\0\0\0\0\0\0" or kind > b"2"):
        raise Refused("a header is neither ustar, pax nor GNU", advice=DAMAGED)
    return kind


def _sum(block: bytes) -> int:
    """The sum of a block's bytes."""
    if block.isascii():
        # Adler-32 has it in its lower half, modulo 65521, which 512 bytes of ASCII cannot reach;
        # that is thirty times as fast.
        return (zlib.adler32(block) & 0xFFFF) - 1
    return sum(block)


def _member(
    header: bytes, kind: bytes, extended: dict[str, str], source: Source
) -> Iterator[Member]:
    told = name = _text(header[:100])
    if "path" in extended:
        name = extended["path"]
    elif header[345]:
        # A name's beginning; in GNU's headers the times that only incremental archives have.
        if header[257:263] != b"ustar\0":
            raise Refused("has two names, as one program reads it and as another", name)
        name = f"{_text(header[345:500])}/{name}"
    meaning = _KINDS.get(kind)
    if meaning is None:
        what = _REFUSED.get(kind, f"a member of the unknown type {kind!r}")
        raise Refused(f"is {what}", name)
    if kind == b"\0" and "/" in (name[-1:], told[-1:]):
        if name[-1:] != told[-1:]:
            raise Refused("is a directory as one program reads it, and a file as another", name)
        meaning = DIRECTORY  # as tars before 1988 wrote them
    plain = plain_name(name, directory=meaning == DIRECTORY)
    size = _number(header[124:136], "size", name)
    if "size" in extended:
        size = _larger_size(extended["size"], size, name)
    mode = _number(header[100:108], "mode", name)
    seconds = _number(header[136:148], "time", name)
    if seconds > _LATEST:
        raise Refused("has a time that is none", name)
    mtime = seconds * 1_000_000_000
    if "mtime" in extended:
        mtime = _time(extended["mtime"], name)
    target = ""
    if meaning == FILE:
        if mode & 0o7000:
            raise Refused("has a setuid, setgid or sticky bit", name)
    elif size:
        raise Refused(f"is a {meaning} with content", name)
    if meaning in (LINK, HARD_LINK):
        target = extended.get("linkpath") or _text(header[157:257])
        if not target or len(target) > _LONGEST_TARGET or CONTROL.search(target):
            raise Refused("is a link to an impossible name", name)
        if meaning == HARD_LINK:
            target = plain_name(target, directory=False, link=name)
    yield Member(plain, meaning, size, mode & 0o777, mtime, target)
    if size % BLOCK:
        source.take(-size % BLOCK)


def plain_name(name: str, *, directory: bool, link: str | None = None) -> str:
    """A member's name in its plain form.

    Args:
        name: as it stands in the archive.
        directory: whether it may end in a slash, or name the top itself.
        link: the member whose target it is.
    """
    told = name if link is None else link
    what = "is" if link is None else f"is a hard link to {printable(name)}, which is"
    if CONTROL.search(name):
        raise Refused("has a NUL or control character in its name", told)
    if name[:1] == "/":
        raise Refused(f"{what} an absolute path", told)
    plain = name[2:] if name[:2] == "./" else name
    if directory:
        plain = plain.rstrip("/")
    if plain[:1] in ("", ".", "/") or plain[-1] == "/" or "/." in plain or "//" in plain:
        parts = plain.split("/")
        if ".." in parts:
            raise Refused(f"{what} a path with .. in it", told)
        if not directory and parts[-1] in ("", "."):
            raise Refused(f"{what} a name without an end", told)
        plain = "/".join(part for part in parts if part not in ("", "."))
    if not plain and not (directory and name):
        raise Refused("a member has no name")
    return plain


def _number(field: bytes, what: str, name: str | None) -> int:
    """A numeric field: octal digits, or GNU's binary form with the first bit set."""
    digits = field.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif not digits:
        return 0
    elif field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
        if value < 1 << 62:
            return value
    where = "a header" if name is None else printable(name)
    raise Refused(f"{where} has a {what} that is no number", advice=DAMAGED)


def _size(header: bytes, what: str) -> int:
    size = _number(header[124:136], "size", None)
    if size > _LONGEST_PAX:
        raise Refused(f"{what} is {size:,} bytes long")
    return size


def _body(source: Source, size: int, what: str) -> bytes:
    body = bytes(source.take(size + -size % BLOCK))
    if body[size:].strip(b"\0"):  # which other programs take for a part of it
        raise Refused(f"{what} goes on behind its end")
    return body[:size]


def _long_name(source: Source, size: int) -> str:
    if size > _LONGEST_NAME:
        raise Refused(f"a name of {size:,} bytes is longer than any path can be")
    name = _body(source, size, "a long name")
    if name[-1:] == b"\0":
        name = name[:-1]
    if not name:
        raise Refused("a long name is empty", advice=DAMAGED)
    return name.decode("utf-8", "surrogateescape")


def _pax(source: Source, size: int, *, is_global: bool) -> dict[str, str]:
    """The records of an extended header that count here."""
    body = _body(source, size, "an extended header")
    found: dict[str, str] = {}
    at = 0
    while at < len(body):
        match = _RECORD.match(body, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(body) or end <= match.end() or body[end - 1] != 0x0A:
            raise Refused("an extended header is malformed", advice=DAMAGED)
        key = match[2].decode("utf-8", "surrogateescape")
        if key.startswith("GNU.sparse.") or key == "SCHILY.realsize":
            raise Refused("an extended header tells of a sparse file")
        if key in _OVERRIDES:
            if is_global:
                raise Refused(f"a global header sets the {key} of every member")
            if key in found:
                raise Refused(f"an extended header has two values of {key}")
            value = body[match.end() : end - 1]
            if not value:
                raise Refused(f"an extended header has an empty {key}")
            found[key] = value.decode("utf-8", "surrogateescape")
        at = end
    return found


def _larger_size(text: str, size: int, name: str) -> int:
    """A pax `size`, which stands there when the header has no room for it, or says the same."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Refused("has a size that is no number", name)
    if size != int(text) and (size or int(text) < 8 << 30):
        raise Refused("has two sizes that contradict each other", name)
    return int(text)


def _time(text: str, name: str) -> int:
    """A pax `mtime` in nanoseconds."""
    match = _TIME.match(text)
    if match is None or not text.isascii():
        raise Refused("has a time that is none, or lies before 1970", name)
    return int(match[1]) * 1_000_000_000 + int((match[2] or "0")[:9].ljust(9, "0"))


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _require_end(source: Source) -> None:
    """After one block of zeros: a second one, and nothing but zeros to the end."""
    if source.take(BLOCK) != _ZEROS:
        raise Refused("something follows the end of the archive")
    for piece in source.rest():
        if piece.strip(b"\0"):
            raise Refused("something follows the end of the archive")
