"""The manifest of a bundle: what it is, and a row for each file in it.

It is one JSON document, written so that little of it has to be read. Its first line has the format
and the SHA-256 of everything behind that line; the second one, the head, has all that decides
about the bundle, the files to relocate among it; then each row is on a line of its own, in the
order of the archive, so that rows and members are compared as they come and never held together.

A delta bundle has in its head the digest of its base's manifest, which paths of the base are gone,
and the digest of the whole; its rows are the new and the changed ones. `bundles.delta` makes the
whole of both, byte for byte what the full bundle has.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from ..archives.tar import DIRECTORY, FILE, LINK

FORMAT = 1
PLACE = ".relocation"
"""The directory in a virtualenv that the manifest is in, and what belongs to it."""
NAME = f"{PLACE}/manifest.json"
RECORD = ".release.json"
"""What marks a release as complete; see `releases`. No bundle has it."""

FIXED_TIME = 315_619_200
"""The modification time of every member of a bundle, and of what is not data once it is unpacked:
1980-01-02.

Bytecode carries its source's time, so one that differed from build to build would make all bytecode
differ; and what is packed of a file depends on nothing else. Zip archives know no time before 1980,
wherever on earth one is.
"""
LONGEST = 512 << 20
LONGEST_HEAD = 8 << 20
_FIRST = '{"format": %d, "sha256": "%s",\n'
_PLAIN = re.compile(r"[ !#-\[\]-~]*\Z")


class Row(NamedTuple):
    """One file, directory or symlink of a bundle."""

    path: str
    """Relative to the virtualenv."""
    kind: str
    """FILE, DIRECTORY or LINK."""
    mode: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    """What a symlink points to."""
    source: str = ""
    """Where the base of a delta bundle has this content, if the delta lacks it."""

    @property
    def key(self) -> str:
        """What rows are ordered by: a directory, then all that is in it."""
        return order(self.path)

    def mtime(self, time: int) -> int:
        """Its modification time in a release of a bundle of that time, in seconds.

        By it web servers decide whether a browser's copy of a file is still right.
        """
        data = self.kind == FILE and not self.path.endswith((".py", ".pyc"))
        return time if data else FIXED_TIME

    def line(self) -> str:
        """Its line in the manifest."""
        if self.kind == FILE and not self.source and _PLAIN.match(self.path):
            return f'["{self.path}", "file", {self.mode}, {self.size}, "{self.sha256}"]'
        if self.kind == DIRECTORY and _PLAIN.match(self.path):
            return f'["{self.path}", "{DIRECTORY}", {self.mode}]'
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
class BuiltOn:
    """The interpreter bundle that a virtualenv was built on.

    Attributes:
        file: the name of its file, such as `cpython-3.13.0-1f3a9c0b72de.tar.zst`, which is beside
            the virtualenv's bundle.
        manifest: the digest of its manifest.
        sha256: the digest of the file.
    """

    file: str
    manifest: str
    sha256: str


@dataclass(frozen=True)
class Base:
    """The bundle that a delta bundle was packed from.

    Attributes:
        manifest: the digest of its manifest.
        removed: its paths that are gone, in order.
        result: the digest of the whole manifest.
    """

    manifest: str
    removed: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class OwnPython:
    """What a manifest records about an interpreter, of which the bundle is one.

    Attributes:
        program: its program, relative to its prefix.
        abiflags: such as `t` for a build without the GIL.
        soabi: what the names of its compiled modules have in them.
        cache_tag: what the names of its bytecode have in them.
        libraries: the system's shared libraries that it needs, in order.
    """

    program: str
    abiflags: str
    soabi: str
    cache_tag: str
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """What a manifest records about the whole bundle.

    Attributes:
        prefix: the path that most of its files refer to; "" where it is relocatable.
        prefixes: all paths that they refer to.
        python: X.Y of the Python that it is for.
        version: X.Y.Z of the one that it was built with.
        implementation: `cpython` or `pypy`.
        home: the directory of that one; "" where pyvenv.cfg has none.
        compiled: the file name endings that compiled modules come with, and one such module.
        machine: the processor's architecture that its compiled files are for; "" without any.
        libc: `glibc`, `musl` or "".
        libc_version: the oldest glibc that has all that they need; "" where any does.
        time: modification time of data files in a release, in seconds since 1970.
        files: how many rows the whole has.
        size: bytes in all of its files.
        references: the files and symlinks that refer to a prefix, and the RECORDs that list them.
        uneditable: (file, reason) of references that cannot be edited.
        facts: the build metadata.
        base: what a delta bundle was packed from.
        interpreter: what the bundle is where it is no virtualenv's, but an interpreter's.
        system_packages: names and versions of the base Python's packages that it needs; none but
            of a virtualenv with system site-packages.
        built_on: the interpreter bundle that it was built on, which it is to run on.
        free_threaded: whether a virtualenv is for a build without the GIL.
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
    interpreter: OwnPython | None = None
    system_packages: tuple[tuple[str, str], ...] = ()
    built_on: BuiltOn | None = None
    free_threaded: bool = False

    def line(self) -> str:
        """Its line in the manifest."""
        known = asdict(self)
        for name in ("base", "interpreter", "built_on"):
            if known[name] is None:
                del known[name]
        for name in ("system_packages", "free_threaded"):
            if not known[name]:
                del known[name]
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
    digest = hashlib.sha256()
    begin = len(first_line(digest.hexdigest()))
    text = bytearray(begin)
    for line in lines(head, rows):  # which take several times the memory together
        digest.update(line)
        text += line
    text[:begin] = first_line(digest.hexdigest())
    return bytes(text), digest.hexdigest()


def first_line(digest: str) -> bytes:
    """The first line of a manifest, whose other lines have that digest."""
    return (_FIRST % (FORMAT, digest)).encode()


def file_mode(mode: int) -> int:
    """A file's mode as unpacking gives it: writable by nobody else, readable by its owner."""
    return mode & 0o755 | 0o400


def directory_mode(mode: int) -> int:
    """A directory's."""
    return mode & 0o755 | 0o700
