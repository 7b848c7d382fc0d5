"""The manifest of a bundle: what it is, and a row for each file in it.

It is one JSON document, written so that little of it has to be read. Its first line has the format
and the SHA-256 of everything behind that line; the second one, the head, has all that decides
about the bundle, the files to relocate among it; then each row stands on a line of its own, in the
order of the archive, so that rows and members are compared as they come and never held together.

A bundle against an earlier one has in its head what that one's digest is, which of its paths are
gone, and what the digest of the whole is; its rows are the new and the changed ones. `merged` gives
the whole, byte for byte what the full bundle has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..archives.tar import (
    CONTROL,
    DAMAGED,
    DIRECTORY,
    FILE,
    LINK,
    Refused,
    members,
    plain_name,
    printable,
)
from ..errors import BadArchive, TreeError
from ..system import files

if TYPE_CHECKING:
    from ..archives.decompression import Stream

FORMAT = 1
PLACE = ".relocation"
"""The directory in a virtualenv that the manifest is in, and what belongs to it."""
NAME = f"{PLACE}/manifest.json"
RECORD = ".release.json"
"""What says of a release that it is complete; see `releases`. No bundle has it."""

SOURCE_TIME = 315_619_200
"""What every `.py` file has for its modification time: 1980-01-02.

Bytecode carries its source's time, so one that differed from build to build would make all bytecode
differ. Zip archives know no time before 1980, wherever on earth one is.
"""
_LONGEST = 512 << 20
LONGEST_HEAD = 8 << 20
_MOST_LISTS = 50_000
_LONGEST_ROW = 64 << 10
_FIRST = '{"format": %d, "sha256": "%s",\n'
_FIRST_LINE = re.compile(rb'\{"format": (0|[1-9]\d{0,8}), "sha256": "([0-9a-f]{64})",\n')
_STRINGS = (
    *("prefix", "python", "version", "implementation", "home", "machine", "libc"),
    "libc_version",
)
_PYTHON = re.compile(r"\d{1,2}\.\d{1,3}\Z")
_VERSION = re.compile(r"(?:\d{1,5}(?:\.\d{1,5}){0,3})?\Z")
_NO_PREFIXES = ("", "/", "/usr", "/usr/local", "/opt")
_MOST_PREFIXES = 100
_LAST = chr(0x10FFFF)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# Nearly every row is one of these, with nothing in its path that JSON spells in another way.
_PLAIN_FILE = re.compile(
    rb'\["([ !#-\[\]-~]+)", "file", (0|[1-9]\d{0,2}), (0|[1-9]\d{0,17}), "([0-9a-f]{64})"\],?\n\Z'
)
_PLAIN = re.compile(r"[ !#-\[\]-~]*\Z")


class Row(NamedTuple):
    """One file, directory or link of a bundle."""

    path: str
    """Relative to the virtualenv."""
    kind: str
    """FILE, DIRECTORY or LINK."""
    mode: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    """What a link names."""
    source: str = ""
    """Where the earlier bundle has this content, if this one lacks it."""

    @property
    def key(self) -> str:
        """What rows are ordered by: a directory, then all that is in it."""
        return order(self.path)

    def mtime(self, time: int) -> int:
        """Its modification time in a bundle of that time, in seconds."""
        return SOURCE_TIME if self.path.endswith(".py") else time

    def line(self) -> str:
        """It as it stands in the manifest."""
        if self.kind == FILE and not self.source and _PLAIN.match(self.path):
            return f'["{self.path}", "file", {self.mode}, {self.size}, "{self.sha256}"]'
        if self.kind == DIRECTORY:
            return json.dumps([self.path, DIRECTORY, self.mode])
        if self.kind == LINK:
            return json.dumps([self.path, LINK, self.target])
        source = [self.source] if self.source else []
        return json.dumps([self.path, FILE, self.mode, self.size, self.sha256, *source])


def order(path: str) -> str:
    """A key by which a directory comes before what is in it, and nothing else in between."""
    return path.replace("/", "\0")


@dataclass(frozen=True)
class Base:
    """The earlier bundle that another one was packed against.

    Attributes:
        manifest: the digest of its manifest.
        removed: its paths that are gone, in order.
        result: the digest of the whole manifest.
    """

    manifest: str
    removed: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Head:
    """What a manifest says of the whole.

    Attributes:
        prefix: the path that most of its files name; "" where it is relocatable.
        prefixes: all paths that they name.
        python: X.Y of the Python that it is for.
        version: X.Y.Z of the one that it was built with.
        implementation: `cpython` or `pypy`.
        home: the directory of that one; "" where pyvenv.cfg does not tell.
        compiled: the file name endings that compiled modules come with, and one such module.
        machine: the processor's architecture that its compiled files are for; "" without any.
        libc: `glibc`, `musl` or "".
        libc_version: the oldest glibc that has all that they ask for; "" where any does.
        time: modification time of all but `.py` files, in seconds since 1970.
        files: how many rows the whole has.
        size: bytes in all of its files.
        references: the files and links that name a prefix, and the RECORDs that list them.
        uneditable: (file, reason) of references that cannot be edited.
        facts: what the build says of itself.
        base: what it was packed against.
    """

    prefix: str
    prefixes: tuple[str, ...]
    python: str
    version: str
    implementation: str
    home: str
    compiled: tuple[tuple[tuple[str, ...], str], ...]
    machine: str
    libc: str
    libc_version: str
    time: int
    files: int
    size: int
    references: tuple[str, ...] = field(repr=False)
    uneditable: tuple[tuple[str, str], ...] = field(repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    base: Base | None = None

    def line(self) -> str:
        """It as it stands in the manifest."""
        known = asdict(self)
        if self.base is None:
            del known["base"]
        return json.dumps(known, sort_keys=True)


def lines(head: Head, rows: Iterable[Row]) -> Iterator[bytes]:
    """All lines of a manifest behind its first one."""
    yield f'"head": {head.line()},\n"files": [\n'.encode()
    before, end = "", "]}\n"
    for row in rows:
        yield f"{before}{row.line()}".encode()
        before, end = ",\n", "\n]}\n"
    yield end.encode()


def document(head: Head, rows: Iterable[Row]) -> tuple[bytes, str]:
    """A whole manifest, and its digest."""
    rest = b"".join(lines(head, rows))
    digest = hashlib.sha256(rest).hexdigest()
    return (_FIRST % (FORMAT, digest)).encode() + rest, digest


# --- reading --------------------------------------------------------------------------------------


class Manifest:
    """A manifest in a file, read from its beginning as far as is asked for.

    Args:
        file: descriptor of the file; it is closed by `close`.

    Attributes:
        digest: the SHA-256 that its first line gives.
        head: what it says of the whole.

    Raises:
        Refused: it is damaged, or of a format that is not known.
    """

    def __init__(self, file: int) -> None:
        try:
            self._stream = open(file, "rb", buffering=1 << 18)  # noqa: SIM115 - see `close`
        except OSError:  # a directory, say
            os.close(file)
            raise
        try:
            if os.fstat(file).st_size > _LONGEST:
                raise _damaged("is larger than any")
            self.digest = _digest(self._stream.readline(256))
            self.head = _head(self._stream.readline(LONGEST_HEAD))
            self._begin = self._stream.tell()
        except BaseException:
            self._stream.close()
            raise

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._stream.fileno()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def require_digest(self) -> None:
        """Refuse it where what stands behind its first line is not what that line says."""
        self._stream.seek(0)
        self._stream.readline(256)
        found = hashlib.sha256()
        while piece := self._stream.read(1 << 20):
            found.update(piece)
        if found.hexdigest() != self.digest:
            raise _damaged("is not what its own digest says")

    def rows(self, trusted: bool = False) -> Iterator[Row]:
        """Every row, in order.

        Args:
            trusted: whether they were looked at before, and are the same by their digest.

        Raises:
            Refused: one is malformed, out of order, or names an impossible path.
        """
        self._stream.seek(self._begin)
        if self._stream.readline(256) != b'"files": [\n':
            raise _damaged("has no list of files")
        before = ""
        line = self._stream.readline(_LONGEST_ROW)
        more = line != b"]}\n"
        while more:
            more = line[-3:] == b"],\n"
            row = _row(line, trusted)
            if not trusted:
                key = row.key
                if key <= before:
                    raise _damaged(f"has {printable(row.path)} in the wrong place")
                before = key
            yield row
            line = self._stream.readline(_LONGEST_ROW)
        if line != b"]}\n" or self._stream.read(1):
            raise _damaged("does not end as one")


def _digest(line: bytes) -> str:
    match = _FIRST_LINE.match(line)
    if match is None:
        raise _damaged("does not begin as one")
    if int(match[1]) != FORMAT:
        raise Refused(
            f"its manifest has format {int(match[1])}, and this version knows {FORMAT}",
            advice="upgrade this extension on the minion, or pack it with the minion's version",
        )
    return match[2].decode()


def _head(line: bytes) -> Head:
    """The head, with every value of the type that it has to be of, and spelled in the one way."""
    try:
        text = line[len(b'"head": ') : -len(b",\n")].decode("ascii")
        if line != f'"head": {text},\n'.encode() or text.count("[") > _MOST_LISTS:
            raise ValueError
        known = json.loads(text)
        if set(known) - {one.name for one in fields(Head)}:
            raise ValueError
        for name in _STRINGS:
            known[name] = _string(known[name])
        for name in ("time", "files", "size"):
            known[name] = _number(known[name])
        for name in ("prefixes", "references"):
            known[name] = _strings(known[name])
        known["compiled"] = tuple((_strings(e), _string(m)) for e, m in known["compiled"])
        known["uneditable"] = tuple((_string(p), _string(r)) for p, r in known["uneditable"])
        known["facts"] = {_string(k): _string(v) for k, v in known["facts"].items()}
        if known.get("base") is not None:
            known["base"] = _base(known["base"])
        head = Head(**known)
        if head.line() != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        raise _damaged("has no head that can be read") from None
    _require_sense(head)
    for path in (*head.references, *(path for path, _ in head.uneditable)):
        _require_plain(path)
    return head


def _base(known: Any) -> Base:
    base = Base(_string(known["manifest"]), _strings(known["removed"]), _string(known["result"]))
    if not (_SHA256.match(base.manifest) and _SHA256.match(base.result)):
        raise ValueError
    for path in base.removed:
        _require_plain(path)
    return base


def _require_sense(head: Head) -> None:
    """Refuse what no virtualenv can be of, or have been built at."""
    for version, pattern in (
        (head.python, _PYTHON),
        (head.version, _VERSION),
        (head.libc_version, _VERSION),
    ):
        if pattern.match(version) is None:
            raise _damaged(f"has the impossible version {printable(version) or 'of nothing'}")
    if len(head.prefixes) > _MOST_PREFIXES or len(set(head.references)) < len(head.references):
        raise _damaged("names too many prefixes, or a file twice")
    paths = [path for path in (head.prefix, head.home) if path]
    for path in (*head.prefixes, *paths):
        if os.path.normpath(path) != path or path in _NO_PREFIXES or path[0] != "/":
            raise _damaged(f"has the impossible prefix {printable(path) or 'of no length'}")


def _row(line: bytes, trusted: bool = False) -> Row:
    """A row, of a line as `Row.line` gives it and nothing else."""
    match = _PLAIN_FILE.match(line)
    if match is not None:
        path, mode, size, sha256 = match.groups()
        row = Row(path.decode(), FILE, int(mode), int(size), sha256.decode())
        if trusted:
            return row
        if row.mode != file_mode(row.mode):
            raise _damaged(f"has a row of {printable(row.path)} that makes no sense")
        _require_plain(row.path)
        return row
    name = "something"
    try:
        text = line.decode("ascii").removesuffix("\n").removesuffix(",")
        values = json.loads(text)
        name = printable(_string(values[0]))
        row = _parsed(values)
        if row.line() != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, MemoryError):
        raise _damaged(f"has a row of {name} that makes no sense") from None
    _require_plain(row.path)
    if row.source:
        _require_plain(row.source)
    return row


def _parsed(values: Any) -> Row:
    path, kind, *rest = values
    if kind == DIRECTORY:
        row = Row(_string(path), DIRECTORY, _number(rest[0]))
        right = row.mode == directory_mode(row.mode)
    elif kind == LINK:
        row = Row(_string(path), LINK, target=_string(rest[0]))
        right = bool(row.target)
    else:
        row = Row(
            _string(path), FILE, _number(rest[0]), _number(rest[1]), _string(rest[2]), "",
            *map(_string, rest[3:]),
        )  # fmt: skip
        right = row.mode == file_mode(row.mode) and _SHA256.match(row.sha256) is not None
    if not right:
        raise ValueError
    return row


def file_mode(mode: int) -> int:
    """A file's mode as unpacking gives it: writable by nobody else, readable by its owner."""
    return mode & 0o755 | 0o400


def directory_mode(mode: int) -> int:
    """A directory's."""
    return mode & 0o755 | 0o700


def _require_plain(path: str) -> None:
    """Refuse a path that leads out, or into what belongs to the manifest or to the release."""
    try:
        possible = bool(path) and plain_name(path, directory=False) == path
    except Refused:
        possible = False
    if not possible:
        raise _damaged(f"names the impossible path {printable(path)}")
    if path.partition("/")[0] in (PLACE, RECORD):
        raise _damaged(f"names {printable(path)}, which is in no bundle")


def _string(value: Any) -> str:
    """A text that a path and a terminal can take."""
    if not isinstance(value, str):
        raise TypeError
    if not value.isprintable():
        os.fsencode(value)  # bytes that are no UTF-8 stand there as half of a surrogate pair
        if CONTROL.search(value):
            raise ValueError
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(_string, value))


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise TypeError
    return value


def _damaged(what: str) -> Refused:
    return Refused(f"its manifest {what}", advice=DAMAGED)


def of_tree(root: int) -> Manifest | None:
    """The manifest in an unpacked bundle; None where there is none.

    Raises:
        Refused: it is damaged, or of a format that is not known.
    """
    try:
        with files.directory_of(root, NAME) as (directory, name):
            return Manifest(files.open_file(directory, name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # a directory or a link, say
        raise _damaged("cannot be read") from None


def consistent(head: Head, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a whole, once they are found to be what its head says.

    Raises:
        Refused: a row is in a directory without one, a file of the head has none, or they are more
            or less than it says.
    """
    named = {*head.references, *(path for path, _ in head.uneditable)}
    directories, directory = {""}, ""
    count = size = 0
    for row in rows:
        count += 1
        size += row.size
        if row.kind == DIRECTORY:
            directories.add(row.path)
        elif row.path in named:
            named.remove(row.path)
        parent = row.path.rpartition("/")[0]
        if parent != directory:
            if parent not in directories:
                raise _damaged(f"has {printable(row.path)} in a directory that it has not")
            directory = parent
        yield row
    for path in sorted(named):
        raise _damaged(f"tells of {printable(path)}, which is none of its files")
    if (count, size) != (head.files, head.size):
        raise _damaged(
            f"tells of {head.files:,} files and {head.size:,} bytes, and has {count:,} and {size:,}"
        )


def of_stream(stream: Stream, size: int, file: int) -> Manifest:
    """The manifest that an archive begins with, once it is taken into a file.

    Args:
        stream: the archive, behind the manifest's header.
        size: how long it is, in bytes.
        file: descriptor of an empty file to keep it in; the manifest closes it.
    """
    try:
        if size > _LONGEST:
            raise _damaged(f"has {size:,} bytes, which is too much")
        for piece in stream.pieces(size):
            files.write_all(file, bytes(piece))
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    known = Manifest(file)
    try:
        known.require_digest()
    except BaseException:
        known.close()
        raise
    return known


def of_archive(archive: str) -> Manifest:
    """The manifest of a bundle; the rest of the archive is not read.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    from ..archives.decompression import Stream

    doing = f"cannot read {archive}"
    try:
        file = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadArchive(f"{doing}: {reason}; name a bundle that can be read") from error
    try:
        with Stream(file, {}, 1 << 62, 1 << 62) as stream:
            first = next(members(stream), None)
            if first is None or first.name != NAME or first.kind != FILE:
                raise Refused(
                    f"it is no bundle, as it does not begin with {NAME}",
                    advice="name one that was packed with --pack",
                )
            import tempfile

            with tempfile.TemporaryFile() as kept:
                return of_stream(stream, first.size, os.dup(kept.fileno()))
    except Refused as refusal:
        raise BadArchive(f"{doing}: {refusal}; {refusal.advice}") from refusal
    except OSError as error:
        raise TreeError.of(archive, error, "read") from error
    finally:
        os.close(file)


def read_digest(archive: str) -> str:
    """The digest of a bundle's manifest.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    with of_archive(archive) as known:
        return known.digest


def read_head(archive: str) -> Head:
    """What a bundle's manifest says of the whole.

    Raises:
        BadArchive: it is no bundle, or damaged.
    """
    with of_archive(archive) as known:
        return known.head


# --- a bundle against an earlier one --------------------------------------------------------------


def difference(base: Mapping[str, Row], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that differ from an earlier bundle's, with where that has their content.

    Args:
        base: the earlier bundle's rows by path.
        rows: those of the new one.
    """
    sources = {row.sha256: row.path for row in base.values() if row.kind == FILE}
    for row in rows:
        known = base.get(row.path)
        if known == row:
            continue
        if row.kind == FILE and row.sha256 in sources:
            same = known is not None and known.sha256 == row.sha256
            row = row._replace(source=row.path if same else sources[row.sha256])
        yield row


def merged(base: Iterable[Row], removed: Iterable[str], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of the whole: those of the earlier bundle, without what is gone, and the new ones.

    Args:
        base: the earlier bundle's rows, in order; each gets its own path for its source.
        removed: its paths that are gone.
        rows: the new and the changed rows, in order.
    """
    gone = set(removed)
    changed = iter(rows)
    row = next(changed, None)
    key = row.key if row else _LAST
    for old in base:
        at = old.key
        while row is not None and key < at:
            yield row
            row = next(changed, None)
            key = row.key if row else _LAST
        if row is not None and key == at:
            yield row
            row = next(changed, None)
            key = row.key if row else _LAST
        elif old.path not in gone:
            yield old._replace(source=old.path)
    if row is not None:
        yield row
    yield from changed


def whole(head: Head) -> Head:
    """The head of the full bundle."""
    return replace(head, base=None)


def write(
    directory: int, digest: str, head: Head, rows: Iterable[Row], owner: tuple[int, int] | None
) -> Iterator[Row]:
    """Write a whole manifest row by row as they are asked for.

    Args:
        directory: descriptor of the virtualenv, which has the directory PLACE.
        digest: what the manifest has to come to.
        head: the whole's.
        rows: the whole's; each is given on, once it is written.
        owner: user and group that it should belong to; by default whoever runs this.

    Raises:
        Refused: the rows come to another digest.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.directory_of(directory, NAME) as (place, name):
        file = os.open(name, flags, 0o644, dir_fd=place)
    found = hashlib.sha256()
    with open(file, "wb", buffering=1 << 18) as stream:
        os.fchmod(file, 0o644)  # whatever the umask
        if owner is not None:
            os.fchown(file, *owner)
        stream.write((_FIRST % (FORMAT, digest)).encode())

        written: list[Row] = []

        def noted() -> Iterator[Row]:
            for row in rows:
                written.append(row)
                yield row._replace(source="")

        for piece in lines(head, noted()):
            found.update(piece)
            stream.write(piece)
            yield from written
            written.clear()
    if found.hexdigest() != digest:
        raise Refused("it does not belong to that base: together they are another whole")
