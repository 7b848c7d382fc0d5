"""Reading the manifest of a bundle, which may come from anybody: every value is checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from ..archives.tar import CONTROL, DAMAGED, DIRECTORY, FILE, LINK, Refused, plain_name, printable
from ..system import files
from .layout import Virtualenv
from .manifest import (
    FORMAT,
    LONGEST,
    LONGEST_HEAD,
    NAME,
    PLACE,
    RECORD,
    Base,
    BuiltOn,
    Head,
    OwnPython,
    Row,
    directory_mode,
    file_mode,
)

_MOST_LISTS = 50_000
_LONGEST_ROW = 64 << 10
_FIRST_LINE = re.compile(rb'\{"format": (0|[1-9]\d{0,8}), "sha256": "([0-9a-f]{64})",\n')
_STRINGS = (
    *("prefix", "python", "version", "implementation", "home", "machine", "libc"),
    "libc_version",
)
_PYTHON = re.compile(r"\d{1,2}\.\d{1,3}\Z")
_VERSION = re.compile(r"(?:\d{1,5}(?:\.\d{1,5}){0,3})?\Z")
_PACKAGE = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\Z")
_RELEASE = re.compile(r"\S{1,200}\Z")
_NO_PREFIXES = ("", "/", "/usr", "/usr/local", "/opt")
_MOST_PREFIXES = 100
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
# A name that no file system and no URL takes for anything but a file in the same directory.
_INTERPRETER = re.compile(
    r"cpython-[0-9]{1,2}(?:\.[0-9]{1,5}){2}t?-([0-9a-f]{12})\.(?:tar|tar\.gz|tgz|tar\.zst|tzst)\Z"
)
# Nearly every row is one of these, with nothing in its path that JSON spells in another way.
_PLAIN_FILE = re.compile(
    rb'\["([ !#-\[\]-~]+)", "file", (0|[1-9]\d{0,2}), (0|[1-9]\d{0,17}), "([0-9a-f]{64})"\],?\n?\Z'
)


class Manifest:
    """A manifest in a file, read from its beginning as far as it is needed.

    Args:
        file: descriptor of the file; it is closed by `close`.

    Attributes:
        digest: the SHA-256 that its first line gives.
        head: what it records about the whole.

    Raises:
        Refused: it is damaged, or of a format that is not known.
    """

    def __init__(self, file: int) -> None:
        try:
            self._stream = open(file, "rb", buffering=1 << 18)  # noqa: SIM115 - see `close`
        except OSError:  # such as a directory
            os.close(file)
            raise
        try:
            if os.fstat(file).st_size > LONGEST:
                raise damaged("is larger than any")
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
        """Refuse it where the digest in its first line is not that of the lines after it."""
        self._stream.seek(0)
        self._stream.readline(256)
        found = hashlib.sha256()
        while piece := self._stream.read(1 << 20):
            found.update(piece)
        if found.hexdigest() != self.digest:
            raise damaged("does not have the digest in its first line")

    def rows(self, trusted: bool = False) -> Iterator[Row]:
        """Every row, in order.

        Args:
            trusted: whether they were checked before, and are the same by their digest.

        Raises:
            Refused: one is malformed, out of order, or has an impossible path.
        """
        before = ""
        for line in self.lines():
            row = row_of(line, trusted)
            if not trusted:
                key = row.key
                if key <= before:
                    raise damaged(f"has {printable(row.path)} in the wrong place")
                before = key
            yield row

    def lines(self) -> Iterator[bytes]:
        """The line of every row, in order, as it is in the file.

        Raises:
            Refused: there is no list of rows, or it does not end as one.
        """
        self._stream.seek(self._begin)
        if self._stream.readline(256) != b'"files": [\n':
            raise damaged("has no list of files")
        line = self._stream.readline(_LONGEST_ROW)
        more = line != b"]}\n"
        while more:
            more = line[-3:] == b"],\n"
            yield line
            line = self._stream.readline(_LONGEST_ROW)
        if line != b"]}\n" or self._stream.read(1):
            raise damaged("does not end as one")


def _digest(line: bytes) -> str:
    match = _FIRST_LINE.match(line)
    if match is None:
        raise damaged("does not begin as one")
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
        if known.get("interpreter") is not None:
            known["interpreter"] = _own_python(known["interpreter"])
        if "system_packages" in known:
            known["system_packages"] = _system_packages(known["system_packages"])
        if known.get("built_on") is not None:
            known["built_on"] = _built_on(known["built_on"])
        if known.get("free_threaded", True) is not True:
            raise ValueError
        head = Head(**known)
        if head.line() != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        raise damaged("has no head that can be read") from None
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


def _own_python(known: Any) -> OwnPython:
    names = ("program", "abiflags", "soabi", "cache_tag")
    texts = {name: _string(known[name]) for name in names}
    _require_plain(texts["program"])
    return OwnPython(**texts, libraries=_strings(known["libraries"]))


def _system_packages(known: Any) -> tuple[tuple[str, str], ...]:
    """Names and versions, each name once and in order."""
    found = tuple((_string(name), _string(version)) for name, version in known)
    names = [name for name, _ in found]
    plain = all(_PACKAGE.match(name) and _RELEASE.match(version) for name, version in found)
    if not plain or names != sorted(set(names)):
        raise ValueError
    return found


def _built_on(known: Any) -> BuiltOn:
    built_on = BuiltOn(**{name: _string(value) for name, value in known.items()})
    name = _INTERPRETER.match(built_on.file)
    if name is None or not built_on.manifest.startswith(name[1]):
        raise ValueError
    if not (_SHA256.match(built_on.manifest) and _SHA256.match(built_on.sha256)):
        raise ValueError
    return built_on


def _require_sense(head: Head) -> None:
    """Refuse what no virtualenv can be of, or have been built at."""
    for version, pattern in (
        (head.python, _PYTHON),
        (head.version, _VERSION),
        (head.libc_version, _VERSION),
    ):
        if pattern.match(version) is None:
            raise damaged(f"has the impossible version {printable(version) or 'of nothing'}")
    if len(head.prefixes) > _MOST_PREFIXES or len(set(head.references)) < len(head.references):
        raise damaged("has too many prefixes, or a file twice")
    paths = [path for path in (head.prefix, head.home) if path]
    for path in (*head.prefixes, *paths):
        if os.path.normpath(path) != path or path in _NO_PREFIXES or path[0] != "/":
            raise damaged(f"has the impossible prefix {printable(path) or 'of no length'}")


def row_of(line: bytes, trusted: bool = False) -> Row:
    """The row of a line as `Row.line` gives it and nothing else.

    Args:
        line: the line, with the comma and the end that it has in a manifest, or without.
        trusted: whether it was checked before.

    Raises:
        Refused: it is malformed, or has an impossible path.
    """
    match = _PLAIN_FILE.match(line)
    if match is not None:
        path, mode, size, sha256 = match.groups()
        row = Row(path.decode(), FILE, int(mode), int(size), sha256.decode())
        if trusted:
            return row
        if row.mode != file_mode(row.mode):
            raise damaged(f"has a row of {printable(row.path)} that makes no sense")
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
        raise damaged(f"has a row of {name} that makes no sense") from None
    _require_plain(row.path)
    if row.source:
        _require_plain(row.source)
    return row


def plain_sha256(line: bytes) -> str:
    """The digest in the line of a file with a plain path; "" in any other line."""
    match = _PLAIN_FILE.match(line)
    return "" if match is None else match[4].decode()


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


def _require_plain(path: str) -> None:
    """Refuse a path that points out, or into what belongs to the manifest or to the release."""
    try:
        possible = bool(path) and plain_name(path, directory=False) == path
    except Refused:
        possible = False
    if not possible:
        raise damaged(f"has the impossible path {printable(path)}")
    if path.partition("/")[0] in (PLACE, RECORD):
        raise damaged(f"lists {printable(path)}, which is in no bundle")


def _string(value: Any) -> str:
    """A text that a path and a terminal can take."""
    if not isinstance(value, str):
        raise TypeError
    if not value.isprintable():
        os.fsencode(value)  # bytes that are no UTF-8 are in it as half of a surrogate pair
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


def damaged(what: str) -> Refused:
    """The refusal of a manifest, with what is wrong with it."""
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
    except OSError:  # such as a directory or a symlink
        raise damaged("cannot be read") from None


def head_in(root: int) -> Head | None:
    """The head of the manifest in an unpacked bundle; None without any that can be read.

    What is wrong with one is reported by a deep check.
    """
    try:
        known = of_tree(root)
    except Refused:
        return None
    if known is None:
        return None
    with known:
        return known.head


def system_packages(root: int, environment: Virtualenv) -> tuple[tuple[str, str], ...]:
    """What an unpacked bundle needs of the base Python's packages; nothing where it is none.

    Args:
        root: descriptor of its directory.
        environment: the virtualenv there.
    """
    head = head_in(root) if environment.system_site_packages else None
    return () if head is None else head.system_packages


def consistent(head: Head, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a whole, once they are found to be what its head records.

    Raises:
        Refused: a row is in a directory without one, a file of the head has none, or they are more
            or fewer than it records.
    """
    expected = {*head.references, *(path for path, _ in head.uneditable)}
    directories, directory = {""}, ""
    count = size = 0
    for row in rows:
        count += 1
        size += row.size
        if row.kind == DIRECTORY:
            directories.add(row.path)
        elif row.path in expected:
            expected.remove(row.path)
        parent = row.path.rpartition("/")[0]
        if parent != directory:
            if parent not in directories:
                raise damaged(f"has {printable(row.path)} in a directory that it has not")
            directory = parent
        yield row
    for path in sorted(expected):
        raise damaged(f"refers to {printable(path)}, which is none of its files")
    if (count, size) != (head.files, head.size):
        raise damaged(
            f"records {head.files:,} files and {head.size:,} bytes, and has {count:,} and {size:,}"
        )
