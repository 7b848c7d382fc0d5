"""Reading a tar that may be hostile: strict about every header, so that nobody reads it otherwise.

Python's `tarfile` takes a damaged header in the middle of an archive for its end, follows pax and
GNU overrides wherever they are, and knows ten kinds of member. A packed virtualenv has files,
sparse ones among them, directories and links, so all else is refused by name. The formats are
POSIX.1-2017 (ustar and pax, in `pax`) and GNU's long names (in the manual of GNU tar, "Basic Tar
Format").
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from . import sparse

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
    b"S": "a sparse file of an unknown form",
    b"M": "a part of a file from another volume",
    b"V": "a volume's label, behind other members",
    b"D": "a GNU directory dump",
    b"N": "an old GNU list of names",
    b"X": "a Solaris header",
}
_GNU_MAGIC = b"ustar "
_ZEROS = bytes(BLOCK)
_LONGEST_NAME = 64 << 10
_LONGEST_PAX = 1 << 20
_SHOWN = 120
_LONGEST_TARGET = 1000  # characters, of up to four bytes each
LATEST = 10**11
"""The largest time that a member may have, in seconds; some three thousand years."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\0\n]+)=")
_TIME = re.compile(r"(-?)(\d{1,11})(?:\.(\d+))?\Z")
_TIMES = re.compile(rb"(?:[0-7]{11}\0){1,2}")
_OVERRIDES = ("path", "linkpath", "size", "mtime")


STRANGE = "find out who packed it so before you use it"
DAMAGED = "fetch it again or pack it again"
WITHOUT = "pack it again without that"
INCREMENTAL = "pack it again as a full one (GNU tar: without --listed-incremental or --incremental)"
ABSOLUTE = "pack it again with relative names (GNU tar: without -P, and with -C)"
TOO_LARGE = "if it is meant to be so large, raise the limit"


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
    """Bytes of content; 0 for all but files."""
    mode: int
    mtime: int
    """Nanoseconds since 1970."""
    target: str
    """Where a link points to: as written for LINK, in its plain form for HARD_LINK."""
    extents: sparse.Extents | None = None
    """Which parts of a sparse file follow, the rest being zeros; None where all of it does."""

    @property
    def stored(self) -> int:
        """Bytes that follow in the archive."""
        return self.size if self.extents is None else sum(length for _, length in self.extents)


def printable(name: str) -> str:
    """A name as a message can carry it: one line, not too long, no escapes for a terminal."""
    if len(name) > _SHOWN:
        name = f"{name[: _SHOWN - 3]}..."
    return name if name.isascii() and name.isprintable() else ascii(name)


def members(source: Source) -> Iterator[Member]:
    """The members of a tar, in their order.

    After each FILE the caller takes exactly `stored` bytes from `source`, then asks for the next.

    Raises:
        Refused: the archive is damaged, or has something in it that no virtualenv has.
    """
    extended: dict[str, str] = {}
    holes: sparse.Records | None = None
    before = ""  # what kind of header came last that only describes the next one
    is_first = True
    while True:
        header = source.take(BLOCK)
        if header == _ZEROS:
            break
        kind = _check(header)
        is_label = is_first and kind == b"V" and not _number(header[124:136], "size", None)
        is_first = False
        if is_label:
            continue
        if kind in (b"x", b"g", b"L", b"K"):
            for field in (header[100:108], header[136:148]):
                _number(field, "mode or time", None, signed=True)
            if kind in (b"x", b"g"):
                size = _size(header, "an extended header")
                records, described = _pax(source, size, is_global=kind == b"g")
                if described is not None and holes is not None:
                    raise Refused("two headers in a row describe one sparse file")
                holes = described or holes
            else:
                key = "path" if kind == b"L" else "linkpath"
                records = {key: _long_name(source, _size(header, "a long name"))}
            if kind == b"g":
                continue
            if any(key in extended for key in records):
                raise Refused("two headers in a row have the same of one member")
            extended.update(records)
            before = "an extended header or a long name"
            continue
        yield from _member(header, kind, extended, holes, source)
        extended, holes = {}, None
        before = ""
    if before:
        raise Refused(f"it ends with {before} that belongs to no member", advice=DAMAGED)
    _require_end(source)


def _check(header: bytes) -> bytes:
    """The header's type, once its checksum is found right."""
    wanted = _number(header[148:156], "checksum", None)
    if wanted != _checksum(header):
        raise Refused("a header's checksum is wrong", advice=DAMAGED)
    for field in (header[108:116], header[116:124]):  # whom nothing is given to
        _number(field, "owner or group", None)
    kind = header[156:157]
    magic = header[257:263]
    if magic not in (b"ustar\0", _GNU_MAGIC) and (
        magic != b"\0\0\0\0\0\0" or (kind > b"2" and kind != b"V")
    ):
        raise Refused("a header is neither ustar, pax nor GNU", advice=DAMAGED)
    return kind


def begins(head: bytes) -> bool:
    """Whether that may be the beginning of a tar: POSIX's or GNU's, or a volume's label."""
    return head[257:262] == b"ustar" or head[156:157] == b"V"


def _checksum(header: bytes) -> int:
    return _sum(header[:148] + b"        " + header[156:])  # its own field counts as spaces


def _sum(block: bytes) -> int:
    """The sum of a block's bytes."""
    if block.isascii():
        # Adler-32 has it in its lower half, modulo 65521, which 512 bytes of ASCII cannot reach;
        # that is thirty times as fast.
        return (zlib.adler32(block) & 0xFFFF) - 1
    return sum(block)


def _member(
    header: bytes,
    kind: bytes,
    extended: dict[str, str],
    holes: sparse.Records | None,
    source: Source,
) -> Iterator[Member]:
    name = _name(header, extended, holes)
    meaning, plain = _meaning(header, kind, name, holes)
    size = _number(header[124:136], "size", name)
    if "size" in extended:
        size = _larger_size(extended["size"], size, name)
    mode = _number(header[100:108], "mode", name)
    if "mtime" in extended:
        mtime = _time(extended["mtime"], name)
    else:
        mtime = _number(header[136:148], "time", name, signed=True) * 1_000_000_000
    if abs(mtime) > LATEST * 1_000_000_000:
        raise Refused("has a time that is none", name, advice=WITHOUT)
    target = ""
    if meaning == FILE:
        if mode & 0o7000:
            raise Refused("has a setuid, setgid or sticky bit", name, advice=WITHOUT)
    elif size:
        raise Refused(f"is a {meaning} with content", name)
    if meaning in (LINK, HARD_LINK):
        target = extended.get("linkpath") or _text(header[157:257])
        require_target(target, name)
        if meaning == HARD_LINK:
            target = plain_name(target, directory=False, link=name)
    member = Member(plain, meaning, size, mode & 0o777, mtime, target)
    if kind == b"S" or holes is not None:
        member = _sparse(member, header, holes, source)
    yield member
    if member.stored % BLOCK:
        source.take(-member.stored % BLOCK)


def _name(header: bytes, extended: dict[str, str], holes: sparse.Records | None) -> str:
    """A member's name, as the archive has it."""
    name = _text(header[:100])
    if "path" in extended:
        name = extended["path"]
    elif header[345]:
        # A name's beginning; in GNU's headers the times that only incremental archives have.
        if header[257:263] == _GNU_MAGIC and _TIMES.match(header, 345):
            raise Refused("is of an incremental archive", name, advice=INCREMENTAL)
        if header[257:263] != b"ustar\0":
            raise Refused("has two names, as one program reads it and as another", name)
        name = f"{_text(header[345:500])}/{name}"
    return name if holes is None or holes.name is None else holes.name


def _meaning(
    header: bytes, kind: bytes, name: str, holes: sparse.Records | None
) -> tuple[str, str]:
    """What a member is, and its name in its plain form."""
    meaning = FILE if kind == b"S" and header[257:263] == _GNU_MAGIC else _KINDS.get(kind)
    if meaning is None:
        what = _REFUSED.get(kind, f"a member of the unknown type {kind!r}")
        raise Refused(f"is {what}", name, advice=WITHOUT)
    if holes is not None and (meaning != FILE or kind == b"S"):
        raise Refused("is described as a sparse file, and is none", name)
    short = _text(header[:100])
    if kind == b"\0" and "/" in (name[-1:], short[-1:]):
        if name[-1:] != short[-1:]:
            raise Refused("is a directory as one program reads it, and a file as another", name)
        meaning = DIRECTORY  # as tars before 1988 wrote them
    return meaning, plain_name(name, directory=meaning == DIRECTORY)


def _sparse(member: Member, header: bytes, holes: sparse.Records | None, source: Source) -> Member:
    """A sparse file with its map, which is taken from the source where it is there."""
    try:
        if holes is None:
            stored = member.size
            size, found = sparse.of_header(
                header, source.take, lambda field: _number(field, "map", member.name)
            )
        else:
            size, found, stored = holes.map(member.size, source.take)
        extents = sparse.checked(found, size, stored)
    except sparse.Unreadable as error:
        raise Refused(
            f"is a sparse file that cannot be read: {error}",
            member.name,
            advice="pack it again without looking for holes (bsdtar: --no-read-sparse, GNU tar: "
            "without --sparse)",
        ) from error
    return member._replace(size=size, extents=extents)


def require_target(target: str, name: str) -> None:
    """Refuse where a link cannot point to.

    Args:
        target: where it points to.
        name: the link.
    """
    if not target or len(target) > _LONGEST_TARGET or CONTROL.search(target):
        raise Refused("is a link to an impossible name", name, advice=WITHOUT)


def plain_name(name: str, *, directory: bool, link: str | None = None) -> str:
    """A member's name in its plain form.

    Args:
        name: as it is in the archive.
        directory: whether it may end in a slash, or be the top itself.
        link: the member whose target it is.
    """
    member = name if link is None else link
    what = "is" if link is None else f"is a hard link to {printable(name)}, which is"
    if CONTROL.search(name):
        raise Refused("has a NUL or control character in its name", member)
    if name[:1] == "/":
        raise Refused(f"{what} an absolute path", member, advice=ABSOLUTE)
    plain = name[2:] if name[:2] == "./" else name
    if directory:
        plain = plain.rstrip("/")
    if plain[:1] in ("", ".", "/") or plain[-1] == "/" or "/." in plain or "//" in plain:
        parts = plain.split("/")
        if ".." in parts:
            raise Refused(f"{what} a path with .. in it", member)
        if not directory and parts[-1] in ("", "."):
            raise Refused(f"{what} a name without an end", member)
        plain = "/".join(part for part in parts if part not in ("", "."))
    if not plain and not (directory and name):
        raise Refused("a member has no name")
    return plain


def _number(field: bytes, what: str, name: str | None, *, signed: bool = False) -> int:
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
    elif signed and field[0] == 0xFF:  # a time before 1970
        return int.from_bytes(field, "big", signed=True)
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


def _pax(
    source: Source, size: int, *, is_global: bool
) -> tuple[dict[str, str], sparse.Records | None]:
    """The records of an extended header that count here, and those of a sparse file."""
    body = _body(source, size, "an extended header")
    found: dict[str, str] = {}
    holes: sparse.Records | None = None
    at = 0
    while at < len(body):
        match = _RECORD.match(body, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(body) or end <= match.end() or body[end - 1] != 0x0A:
            raise Refused("an extended header is malformed", advice=DAMAGED)
        key = match[2].decode("utf-8", "surrogateescape")
        value = body[match.end() : end - 1].decode("utf-8", "surrogateescape")
        if key == "SCHILY.realsize" or (is_global and key.startswith(sparse.PREFIX)):
            raise Refused("an extended header describes a sparse file in an unknown form")
        if key.startswith(sparse.PREFIX):
            holes = holes or sparse.Records()
            try:
                holes.add(key, value)
            except sparse.Unreadable as error:
                raise Refused(f"an extended header of a sparse file is wrong: {error}") from error
        if key in _OVERRIDES:
            if is_global:
                raise Refused(f"a global header sets the {key} of every member")
            if key in found:
                raise Refused(f"an extended header has two values of {key}")
            if not value:
                raise Refused(f"an extended header has an empty {key}")
            found[key] = value
        at = end
    return found, holes


def _larger_size(text: str, size: int, name: str) -> int:
    """A pax `size`, which is there where the header has no room for it, or has the same."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Refused("has a size that is no number", name)
    if size != int(text) and (size or int(text) < 8 << 30):
        raise Refused("has two sizes that contradict each other", name)
    return int(text)


def _time(text: str, name: str) -> int:
    """A pax `mtime` in nanoseconds."""
    match = _TIME.match(text)
    if match is None or not text.isascii():
        raise Refused("has a time that is none", name)
    time = int(match[2]) * 1_000_000_000 + int((match[3] or "0")[:9].ljust(9, "0"))
    return -time if match[1] else time


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _require_end(source: Source) -> None:
    """After one block of zeros: a second one, and nothing but zeros to the end."""
    if source.take(BLOCK) != _ZEROS:
        raise Refused("something follows the end of the archive")
    for piece in source.rest():
        if piece.strip(b"\0"):
            raise Refused("something follows the end of the archive")
