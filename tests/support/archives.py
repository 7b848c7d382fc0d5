"""Tar archives made block by block, as no tool would make them, and a watched place to unpack in.

A text, number or raw bytes may be given for any field of a header: text and numbers are spelled as
ustar and GNU have them, bytes stand as they are. The checksum is right unless it is given as well.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Union

import pytest

BLOCK = 512
END = bytes(2 * BLOCK)
MTIME = 1_600_000_000

FIELDS = {  # name -> (offset, length)
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "chksum": (148, 8),
    "kind": (156, 1),
    "target": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
}
FILE, HARD_LINK, LINK, CHARACTER, DEVICE, DIRECTORY, FIFO = (b"%d" % digit for digit in range(7))
GNU_MAGIC = b"ustar  \0"

OLD_PREFIX = "/var/build/shop"
INTERPRETER = "/usr/bin/python3.11"

Value = Union[str, bytes, int]


# -- headers and members --------------------------------------------------------------------------


def checksum(block: bytes) -> bytes:
    """The checksum field that a header block ought to have."""
    start, length = FIELDS["chksum"]
    total = sum(block) - sum(block[start : start + length]) + length * 0x20
    return b"%06o\0 " % total


def set_field(block: bytes, field: str, value: bytes, *, repair: bool = True) -> bytes:
    """A header block with a field replaced and, by default, its checksum made right again."""
    start, length = FIELDS[field]
    block = block[:start] + value[:length].ljust(length, b"\0") + block[start + length :]
    return set_field(block, "chksum", checksum(block), repair=False) if repair else block


def header(name: Value, kind: bytes = FILE, **fields: Value) -> bytes:
    """One header block: a regular, empty file unless fields say otherwise."""
    values: dict[str, Value] = {"mode": 0o644, "uid": 0, "gid": 0, "size": 0, "mtime": MTIME}
    values["magic"] = b"ustar\x0000"
    values.update(fields, name=name, kind=kind)
    block = bytearray(BLOCK)
    for field, value in values.items():
        start, length = FIELDS[field]
        if isinstance(value, int):
            fits = 0 <= value < 8 ** (length - 1)
            value = b"%0*o\0" % (length - 1, value) if fits else base256(value, length)
        value = os.fsencode(value)
        assert len(value) <= length, f"{value!r} does not fit into {field}"
        block[start : start + len(value)] = value
    made = bytes(block)
    if "chksum" in values:
        return made
    return set_field(made, "chksum", checksum(made), repair=False)


def padded(data: bytes) -> bytes:
    """Data with zeros up to the next block."""
    return data + bytes(-len(data) % BLOCK)


def member(name: Value, data: bytes = b"", kind: bytes = FILE, **fields: Value) -> bytes:
    """A header and its data; a name or target too long for it goes into GNU headers before it."""
    fields.setdefault("size", len(data))
    before = b""
    target = fields.get("target", "")
    if isinstance(target, str) and len(os.fsencode(target)) > 100:
        before += gnu_long(target, b"K")
        fields["target"] = os.fsencode(target)[:100]
    if isinstance(name, str) and len(os.fsencode(name)) > 100:
        before += gnu_long(name)
        name = os.fsencode(name)[:100]
    return before + header(name, kind, **fields) + padded(data)


def directory(name: Value, **fields: Value) -> bytes:
    """A directory."""
    return member(name, kind=DIRECTORY, **{"mode": 0o755, **fields})


def link(name: Value, target: Value, **fields: Value) -> bytes:
    """A symbolic link."""
    return member(name, kind=LINK, target=target, **{"mode": 0o777, **fields})


def hard_link(name: Value, target: Value, **fields: Value) -> bytes:
    """A hard link."""
    return member(name, kind=HARD_LINK, target=target, **fields)


def gnu_long(text: Value, kind: bytes = b"L", **fields: Value) -> bytes:
    """GNU's header for the name (L) or the target (K) of the member behind it."""
    data = os.fsencode(text) + b"\0" if isinstance(text, str) else bytes(text)  # type: ignore[arg-type]
    return member("././@LongLink", data, kind, **{"magic": GNU_MAGIC, **fields})


def record(key: str, value: str | bytes) -> bytes:
    """One record of a pax header, with the length that counts itself."""
    rest = b" %s=%s\n" % (key.encode(), os.fsencode(value))
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d%s" % (length, rest)


def pax(records: Mapping[str, str | bytes] | bytes, kind: bytes = b"x", **fields: Value) -> bytes:
    """A pax header for the member behind it (x) or for all of them (g), from records or raw."""
    data = records if isinstance(records, bytes) else b"".join(map(record, *zip(*records.items())))
    return member("PaxHeaders/x", data, kind, **fields)


def base256(number: int, length: int = 12) -> bytes:
    """A number as GNU spells those that octal digits cannot hold."""
    data = bytearray(number.to_bytes(length, "big", signed=True))
    data[0] |= 0x80
    return bytes(data)


# -- archives -------------------------------------------------------------------------------------


def virtualenv_members(
    top: str = "", version: str = "3.11", prefix: str = OLD_PREFIX
) -> list[bytes]:
    """The members of a virtualenv that is accepted: few, but a tool could have made them.

    Args:
        top: the directory in the archive that is the virtualenv, such as `srv/app/` - with its
            slash.
        version: its Python.
        prefix: where it was built.
    """
    packages = f"{top}lib/python{version}/site-packages"
    config = (
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}.2\n"
        f"executable = /usr/bin/python{version}\n"
        f"command = /usr/bin/python{version} -m venv {prefix}\n"
    )
    activate = f'deactivate () {{\n    unset -f deactivate\n}}\nVIRTUAL_ENV="{prefix}"\n'
    script = f"#!{prefix}/bin/python\nimport shop\n"
    return [
        member(f"{top}pyvenv.cfg", config.encode()),
        directory(f"{top}bin/"),
        member(f"{top}bin/activate", activate.encode()),
        member(f"{top}bin/shop", script.encode(), mode=0o755),
        link(f"{top}bin/python3", f"/usr/bin/python{version}"),
        link(f"{top}bin/python", "python3"),
        directory(f"{top}lib/"),
        directory(f"{top}lib/python{version}/"),
        directory(f"{packages}/"),
        member(f"{packages}/shop.py", b"PRICE = 1\n"),
        link(f"{top}lib64", "lib"),
    ]


def archive(*members: bytes, end: bytes = END) -> bytes:
    """A plain tar of these members."""
    return b"".join(members) + end


def virtualenv(*more: bytes, first: bytes = b"", top: str = "", end: bytes = END) -> bytes:
    """A plain tar of an accepted virtualenv, with something before and behind its members."""
    return archive(first, *virtualenv_members(top), *more, end=end)


def zstd(data: bytes) -> bytes:
    """Compressed by the program `zstd`; skips the test where there is none."""
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("zstd is not on this machine")
    return subprocess.run(
        [program, "-q", "--check", "-c"], input=data, stdout=subprocess.PIPE, check=True
    ).stdout


def plain(data: bytes) -> bytes:
    """Not compressed."""
    return data


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": plain,
    "tar.gz": lambda data: gzip.compress(data, mtime=0),
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": zstd,
}


# -- a place to unpack in -------------------------------------------------------------------------


class Sandbox:
    """An empty directory to unpack into, and around it whatever an attack would like to reach.

    Attributes:
        target: the empty directory, two levels below `root`.
        victim: the absolute path of a file that no archive may touch; `../victim` and
            `../../victim` are others, as seen from the target.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.target = str(root / "releases" / "target")
        self.victim = str(root / "victim")
        self.victims = str(root / "victims")
        self.working = str(root / "working")
        self._archives = root / "archives"
        for level in (root, root / "releases", root / "working"):
            (level / "victims").mkdir(parents=True)
            for file in ("victim", "victims/file", "python3.11"):
                (level / file).write_text(f"the {file} of {level.name}\n")
            os.symlink("victim", level / "to-victim")
            os.symlink("victims", level / "to-victims")
            os.link(level / "victim", level / "other-name")
        os.chmod(self.victim, 0o640)
        self._archives.mkdir()
        self.reset()

    def reset(self) -> None:
        """Make the target a new, empty directory."""
        remove(self.target)
        os.mkdir(self.target, 0o700)

    def put(self, data: bytes, name: str = "app.tar") -> str:
        """Write an archive; return its path."""
        path = self._archives / name
        path.write_bytes(data)
        return str(path)

    def state(self) -> dict[str, tuple[object, ...]]:
        """All that can be told about everything but what is in the target."""
        return dict(self._below(self.root))

    def _below(self, path: str) -> Iterator[tuple[str, tuple[object, ...]]]:
        status = os.lstat(path)
        facts = (status.st_ino, status.st_uid, status.st_gid, status.st_mode)
        if path == self.target:
            yield path, facts[:1]
            return
        content: object = None
        if stat.S_ISDIR(status.st_mode):
            content = tuple(sorted(os.listdir(path)))
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode) and os.path.dirname(path) != str(self._archives):
            content = Path(path).read_bytes()
        # The times of change tell of what was done and undone; the number of links, of a hard link.
        times = (status.st_mtime_ns, status.st_ctime_ns)
        yield path, (*facts, *times, status.st_size, status.st_nlink, content)
        if stat.S_ISDIR(status.st_mode):
            for name in sorted(os.listdir(path)):
                yield from self._below(os.path.join(path, name))

    @contextmanager
    def watched(self) -> Iterator[int]:
        """A descriptor of the target; fails if anything around it was touched meanwhile.

        It fails for a descriptor or thread that was left as well: a minion runs for months.
        """
        before, left_before = self.state(), (_open_descriptors(), threading.active_count())
        working = os.getcwd()
        os.chdir(self.working)  # what is relative by mistake lands where it is seen
        descriptor = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
            os.chdir(working)
            after, left_after = self.state(), (_open_descriptors(), threading.active_count())
            changed = {path for path, _ in before.items() ^ after.items()}
            assert not changed, f"touched outside the target: {sorted(changed)}"
            assert left_after == left_before, "(descriptors, threads) were left open"


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # no such thing on this system
        return 0


def remove(tree: str) -> None:
    """Remove a tree, directories that may not be entered included; no link is looked behind."""
    pending = [tree] if os.path.isdir(tree) else []
    while pending:
        path = pending.pop()
        with suppress(OSError):
            os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    with suppress(FileNotFoundError):
        shutil.rmtree(tree)


def leaving_links(tree: str) -> list[str]:
    """The symbolic links in an unpacked virtualenv that lead out of it, as the kernel has them.

    The interpreter's links lead out by right, and virtualenv 16's to the library of Python 2.7.
    """
    top = os.path.realpath(tree)
    return [f"{path} -> {os.readlink(path)}" for path in links(tree) if not _stays(top, path)]


def links(tree: str) -> list[str]:
    """All symbolic links below a directory."""
    return [path for path in _entries(tree) if os.path.islink(path)]


def _entries(tree: str) -> Iterator[str]:
    for path, directories, names in os.walk(tree):
        for name in (*directories, *names):
            yield os.path.join(path, name)


def _stays(top: str, path: str) -> bool:
    """Whether every step of a link's target is in the tree, or the last one an allowed exception.

    A target that leaves and comes back, such as `../shop/bin`, is broken by the next rename.
    """
    target = os.readlink(path)
    if target.startswith("/"):
        return _leads_to_base(top, path, target)
    parts = target.split("/")
    for count in range(1, len(parts) + 1):
        step = os.path.join(os.path.dirname(path), *parts[:count])
        real = os.path.realpath(step)
        if real == top or real.startswith(f"{top}/"):
            continue
        last = _last_link(step)  # only as the very end, and only through a link that may lead there
        if count < len(parts) or not _leads_to_base(top, last, os.readlink(last)):
            return False
    return True


def _last_link(path: str) -> str:
    """The link that a path is, or points to through others, and which points to no further one."""
    while True:
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        target = os.path.join(os.path.dirname(path), os.readlink(path))
        if not os.path.islink(target) or os.readlink(path).startswith("/"):
            return path
        path = target


def _leads_to_base(top: str, path: str, target: str) -> bool:
    directory, name = os.path.split(path)
    inside = os.path.relpath(os.path.realpath(directory), top)
    if inside == "lib/python2.7":
        return target.endswith(f"/lib/python2.7/{name}")
    programs = ("python", "pypy")
    return (
        inside == "bin"
        and name.startswith(programs)
        and os.path.basename(target).startswith(programs)
    )
