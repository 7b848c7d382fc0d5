"""Bundles for the tests: packing and unpacking them, and reading them without the core's help."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relocate_core import Packing, pack
from tests.support.environments import Environment

MANIFEST = ".relocation/manifest.json"
LEDGER = ".relocation/ledger.json"
FIXED_TIME = 315_619_200
"""1980-01-02, which every source in a bundle is of."""


def packed(
    environment: Environment | str | os.PathLike[str],
    archive: str | os.PathLike[str],
    **options: Any,
) -> Packing:
    """Pack a virtualenv, or the directory of one."""
    path = environment.path if isinstance(environment, Environment) else os.fspath(environment)
    return pack(path, os.fspath(archive), **options)


def unpack_by_tar(archive: str | os.PathLike[str], directory: str | os.PathLike[str]) -> str:
    """Unpack an archive with GNU tar into a new directory; the directory's path."""
    os.makedirs(directory)
    subprocess.run(
        ["tar", "--extract", "--file", os.fspath(archive), "--directory", os.fspath(directory)],
        check=True,
        capture_output=True,
    )
    return os.fspath(directory)


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a manifest, in the words of a tar's members."""

    path: str
    kind: str
    mode: int = 0
    size: int = 0
    sha256: str = ""
    target: str = ""
    source: str = ""


@dataclass(frozen=True)
class Document:
    """A manifest, as any reader of JSON finds it.

    Attributes:
        text: all of it.
        format: which one it is of.
        sha256: the digest that its first line gives.
        head: what it says of the whole.
        rows: its rows in order.
    """

    text: bytes
    format: int
    sha256: str
    head: dict[str, Any]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, text: bytes) -> Document:
        """The manifest of that text."""
        known = json.loads(text)
        assert list(known) == ["format", "sha256", "head", "files"]
        rows = tuple(map(_row, known["files"]))
        return cls(text, known["format"], known["sha256"], known["head"], rows)

    @property
    def by_path(self) -> dict[str, Row]:
        """The rows by path."""
        return {row.path: row for row in self.rows}


def _row(values: list[Any]) -> Row:
    path, kind, *rest = values
    if kind == "directory":
        (mode,) = rest
        return Row(path, kind, mode)
    if kind == "link":
        (target,) = rest
        return Row(path, kind, target=target)
    assert kind == "file"
    mode, size, sha256, *source = rest
    return Row(path, kind, mode, size, sha256, source="".join(source))


def manifest_of(archive: str | os.PathLike[str]) -> Document:
    """The manifest of a bundle."""
    with opened(archive) as archived:
        first = archived.next()
        assert first is not None
        assert first.name == MANIFEST
        return Document.of(content(archived, first))


def opened(archive: str | os.PathLike[str]) -> tarfile.TarFile:
    """An archive for reading; one of zstd is unpacked by the program first."""
    if os.fspath(archive).endswith(".zst"):
        done = subprocess.run(["zstd", "-dcq", os.fspath(archive)], check=True, capture_output=True)
        return tarfile.open(fileobj=io.BytesIO(done.stdout))
    return tarfile.open(archive)


def content(archived: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """What a file of an archive holds."""
    stream = archived.extractfile(member)
    assert stream is not None
    return stream.read()


def members_of(archive: str | os.PathLike[str]) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """All members of an archive by name, in order, and what files hold."""
    found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    with opened(archive) as archived:
        for member in archived:
            assert member.name not in found, f"{member.name} stands there twice"
            found[member.name] = member, content(archived, member) if member.isreg() else b""
    return found


# -- changing --------------------------------------------------------------------------------------


def reheaded(archive: str | os.PathLike[str], new: str | os.PathLike[str], **changes: Any) -> str:
    """Write a bundle again with other values in its manifest's head, and a right digest."""

    def change(head: dict[str, Any]) -> None:
        assert set(changes) <= set(head)
        head.update(changes)

    return rewritten(archive, new, change)


def rewritten(
    archive: str | os.PathLike[str],
    new: str | os.PathLike[str],
    head: Callable[[dict[str, Any]], None] = lambda known: None,
    rows: Callable[[list[list[Any]]], None] = lambda known: None,
    files: Mapping[str, bytes] | None = None,
) -> str:
    """Write a bundle again, its head and rows changed in place, its digest right; the new path.

    Args:
        archive: the bundle.
        new: where to write it, as a plain or gzipped tar by its ending.
        head: changes the head.
        rows: changes the list of rows.
        files: other contents of members; the rows are left alone.
    """
    there = members_of(archive)
    known = json.loads(there[MANIFEST][1])
    head(known["head"])
    rows(known["files"])
    text = written(known["head"], known["files"])
    with tarfile.open(new, "w:gz" if os.fspath(new).endswith("gz") else "w") as packing:
        for name, (member, data) in there.items():
            data = text if name == MANIFEST else (files or {}).get(name, data)
            member.size = len(data)
            packing.addfile(member, io.BytesIO(data))
    return os.fspath(new)


def written(head: Mapping[str, Any], rows: list[list[Any]]) -> bytes:
    """A manifest of that head and those rows."""
    listed = ",\n".join(map(json.dumps, rows))
    rest = f'"head": {json.dumps(head, sort_keys=True)},\n"files": [\n{listed}\n]}}\n'.encode()
    digest = hashlib.sha256(rest).hexdigest()
    return b'{"format": 1, "sha256": "%s",\n' % digest.encode() + rest


# -- builds ----------------------------------------------------------------------------------------

# Run by a virtualenv's own Python, 3.6 or later, with the prefix: makes one of each that is hard.
SPICE = r"""
import glob, importlib.util, os, py_compile, shutil, sys
prefix = sys.argv[1]
(site,) = glob.glob(prefix + "/lib/python*/site-packages")
if "bare" in sys.argv:
    for name in os.listdir(site):
        if name.startswith(("setuptools", "wheel", "pkg_resources", "distutils-", "_distutils")):
            path = os.path.join(site, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    for name in ("wheel", "activate.nu", "activate.bat", "activate_this.py"):
        if os.path.exists(prefix + "/bin/" + name):
            os.unlink(prefix + "/bin/" + name)
here = os.path.join(site, "extra")
cache = os.path.join(here, "__pycache__")
tag = sys.implementation.cache_tag
modes = getattr(py_compile, "PycInvalidationMode", None)


def write(name, text, how="TIMESTAMP", **options):
    path = os.path.join(here, name + ".py")
    with open(path, "w") as file:
        file.write(text)
    if how:
        if modes is not None:
            options["invalidation_mode"] = getattr(modes, how)
        return py_compile.compile(path, **options)
    return path


os.makedirs(cache)
write("__init__", "")
for how in ("TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH"):
    write("names_" + how.lower(), "PLACE = %r\n" % (prefix + "/etc"), how)
    write("plain_" + how.lower(), "VALUE = %r\n" % how, how)
write("fails", "def one():\n    def two():\n        raise ValueError('on purpose')\n    two()\n")
write("broken", "def (:\n", None)
write("never", "VALUE = 'compiled by nobody'\n", None)
write("stale_size", "VALUE = 'old'\n")
write("stale_size", "VALUE = 'newer'\n", None)
write("stale_time", "VALUE = 'as it is'\n")
os.utime(here + "/stale_time.py", (1500000000, 1500000000))
shutil.copy(write("gone", "VALUE = 1\n"), cache + "/plain_timestamp.cpython-27.pyc")
os.unlink(here + "/gone.py")
with open(write("magic", "VALUE = 'magic'\n"), "r+b") as file:
    file.write(b"\x33\x0d")
for level in (0, 1, 2):
    write("optimised", "def run():\n    'words'\n    assert False\n    return run.__doc__\n",
          optimize=level)
write("nosource", "def boom():\n    raise ValueError('without source')\n",
      cfile=here + "/nosource.pyc")
os.unlink(here + "/nosource.py")
os.makedirs(prefix + "/etc")
with open(prefix + "/etc/omega.conf", "w") as file:
    file.write("[omega]\ncommand = %s/bin/omega\n" % prefix)
with open(prefix + "/etc/plain.txt", "w") as file:
    file.write("nothing of the kind\n" * 100)
os.symlink(prefix + "/etc/omega.conf", prefix + "/lib/omega.conf")
os.symlink("../etc", prefix + "/lib/etc")
"""

# Run by the Python that should take the bytecode: tells what it would compile again, and what names
# another source than its own. It is Python's own loader that decides.
JUDGE = r"""
import importlib.machinery, os, sys


class Loader(importlib.machinery.SourceFileLoader):
    compiled = False

    def source_to_code(self, *arguments, **options):
        self.compiled = True
        return super().source_to_code(*arguments, **options)

    def set_data(self, *arguments, **options):
        pass


def names(code):
    yield code.co_filename
    for value in code.co_consts:
        if isinstance(value, type(code)):
            yield from names(value)


seen = 0
for directory, directories, files in os.walk(sys.argv[1]):
    for path in (os.path.join(directory, name) for name in files if name.endswith(".py")):
        loader = Loader("x", path)
        try:
            code = loader.get_code("x")
        except SyntaxError:
            continue
        seen += 1
        if loader.compiled:
            print("has to compile", path)
        if set(names(code)) != {path}:
            print("names", sorted(set(names(code)) - {path}), "in", path)
print("seen" if seen > 5 else "nothing seen")
"""
