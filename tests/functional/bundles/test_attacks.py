"""Bundles that attack, and releases that were tampered with before a delta bundle needs them.

Each attack is a real bundle with one thing changed, whose manifest is given a right digest again:
so it is refused for that one thing. Refused means in one sentence that names it, with nothing under
the release's name, and a root that is as it was before.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Root, check, pack, publish, relocate
from relocate_core.errors import NoBase, RelocateError
from relocate_core.releases import history
from relocate_core.releases.root import RECORD
from relocate_core.releases.store import locked
from relocate_core.virtualenvs import rewritten
from tests.support import roots
from tests.support.archives import remove
from tests.support.bundles import FIXED_TIME, LEDGER, MANIFEST, members_of, written
from tests.support.environments import Fingerprint, digest
from tests.support.fuzz import stride
from tests.support.roots import NOBODY, left_behind, needs_root
from tests.support.steps import ROOT, small

Head = dict[str, Any]
Rows = list[list[Any]]

SECONDS = 60
"""What no call may take, however busy the machine is: it hangs then."""
TWIN, OTHER_TWIN = "etc/twin.txt", "etc/twin2.txt"
"""Two files of one size and different content."""
ALONE = "etc/alone.txt"
"""A file that names no prefix."""
NEW = "etc/new.txt"
"""A file that only the second build has."""
SHA256 = hashlib.sha256(b"").hexdigest()


# -- bundles, taken apart and put together again ---------------------------------------------------


@dataclass
class Parts:
    """A bundle in parts that may be changed; `write` gives its manifest a right digest."""

    head: Head
    rows: Rows
    members: list[tuple[tarfile.TarInfo, bytes]]
    """All but the manifest."""
    first: list[tuple[tarfile.TarInfo, bytes]]
    """What stands in place of the manifest; the manifest itself if empty."""

    @classmethod
    def of(cls, archive: str) -> Parts:
        """The parts of a bundle."""
        there = members_of(archive)
        text = json.loads(there.pop(MANIFEST)[1])
        return cls(text["head"], text["files"], list(there.values()), [])

    def copy(self) -> Parts:
        """Others that are the same."""
        return Parts(
            copy.deepcopy(self.head),
            copy.deepcopy(self.rows),
            [(copy.copy(info), data) for info, data in self.members],
            [],
        )

    def at(self, name: str) -> int:
        """Which member has that name."""
        return next(n for n, (info, _) in enumerate(self.members) if info.name == name)

    def info(self, name: str) -> tarfile.TarInfo:
        """A member's header."""
        return self.members[self.at(name)][0]

    def row(self, path: str) -> list[Any]:
        """The row of a path."""
        return next(row for row in self.rows if row[0] == path)

    def data(self, name: str, data: bytes) -> None:
        """Give a member another content."""
        number = self.at(name)
        info = self.members[number][0]
        info.size = len(data)
        self.members[number] = info, data

    def put(self, row: list[Any], data: bytes = b"") -> None:
        """Add a file, by a row and a member of its own, where it belongs."""
        key = row[0].replace("/", "\0")
        place = next((n for n, o in enumerate(self.rows) if o[0].replace("/", "\0") > key), None)
        number = len(self.members) if place is None else self.at(self.rows[place][0])
        self.rows.insert(len(self.rows) if place is None else place, row)
        self.head["files"] += 1
        self.head["size"] += len(data)
        self.members.insert(number, self.new(row[0], data, mode=row[2]))

    def new(self, name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
        """A member for this bundle."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(data), FIXED_TIME
        for field, value in fields.items():
            setattr(info, field, value)
        return info, data

    def text(self) -> bytes:
        """The manifest."""
        return written(self.head, self.rows)

    def tar(self) -> bytes:
        """A plain tar of all."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as packing:
            text = self.text()
            for info, data in [*(self.first or [self.new(MANIFEST, text)]), *self.members]:
                packing.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    def rehash(self, path: str) -> None:
        """Let a row say what the member's content is."""
        info, data = self.members[self.at(path)]
        self.row(path)[2:5] = [info.mode, len(data), hashlib.sha256(data).hexdigest()]


def text_row(path: str, data: bytes = b"evil\n", mode: int = 0o644) -> list[Any]:
    """The row of a file."""
    return [path, "file", mode, len(data), hashlib.sha256(data).hexdigest()]


@dataclass
class World:
    """A root in which the first build stands, and the bundles of two builds.

    Attributes:
        directory: what is watched: the root is in it, and victims beside it.
        bundles: the parts of `A`, the first build, of `B`, the second, and of `B-A`, the second
            one as a delta bundle from the first.
        trees: what undisturbed deploys make of `A` and `B`.
    """

    directory: Path
    bundles: dict[str, Parts]
    archives: dict[str, str]
    trees: dict[str, dict[str, Fingerprint]]
    name: str = "root"

    @property
    def root(self) -> str:
        """The directory of the releases."""
        return str(self.directory / self.name)

    def put(self, data: bytes | Parts, name: str = "evil.tar") -> str:
        """Write an archive; its path."""
        path = self.directory.parent / name
        path.write_bytes(data.tar() if isinstance(data, Parts) else data)
        return str(path)

    def state(self) -> dict[str, Fingerprint]:
        """Everything but what taking the lock touches."""
        seen = digest(str(self.directory))
        records = f"{self.name}/.releases"
        touched = (records, *(f"{records}/{name}" for name in ("lock", "staging", history.NAME)))
        return {path: facts for path, facts in seen.items() if path not in touched}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Packed once for all tests."""
    memory = tmp_path_factory.mktemp("site")
    build = small(memory / "build")
    os.unlink(f"{build.path}/.gitignore")
    for name, text in ((TWIN, "one\n"), (OTHER_TWIN, "two\n"), (ALONE, "alone\n" * 500)):
        Path(build.path, name).write_text(text)
    archives = {name: str(memory / f"{name}.tar.gz") for name in ("A", "B", "B-A")}
    pack(build.path, archives["A"])
    Path(build.path, NEW).write_text("new\n" * 100)
    Path(build.path, ALONE).write_text("other\n" * 500)
    os.unlink(f"{build.path}/{OTHER_TWIN}")
    pack(build.path, archives["B"])
    pack(build.path, archives["B-A"], delta_from=archives["A"])
    remove(build.path)
    directory = memory / "watched"
    (directory / "victims").mkdir(parents=True)
    (directory / "victims" / "file").write_text("a victim\n")
    made = World(directory, {n: Parts.of(path) for n, path in archives.items()}, archives, {})
    for name in ("A", "B"):
        publish(archives[name], f"{made.root}/{name}")
        made.trees[name] = roots.tree(f"{made.root}/{name}")
    forget(made, "B")
    return made


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without waiting for the disk; whatever hangs is told by an error."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"it hangs: {SECONDS} seconds")

    roots.without_waiting(monkeypatch.setattr)
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sha256_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def refusal(world: World, archive: str, *, vouched: bool = False, **options: Any) -> str:
    """The sentence that refuses a bundle; nothing else may have come of it.

    Args:
        world: the root to deploy it in.
        archive: its path.
        vouched: whether its hash is given.
        options: of `publish`.
    """
    digests = {"sha256": sha256_of(archive)} if vouched else None
    before, descriptors = world.state(), os.listdir("/proc/self/fd")
    path = f"{world.root}/X"
    try:
        with pytest.raises(RelocateError) as caught:
            publish(archive, path, digests=digests, **options)
        assert not os.path.lexists(path)
        after = world.state()
        changed = {name for name, _ in before.items() ^ after.items()}
        assert not changed, f"touched: {sorted(changed)}"
        assert left_behind(world.root) == []
        assert len(os.listdir("/proc/self/fd")) == len(descriptors), "descriptors were left open"
    finally:
        forget(world, "X")
    sentence = str(caught.value)
    assert roots.one_sentence(caught.value), sentence
    assert sentence.isprintable() or not sentence.isascii(), "no terminal obeys it"
    assert len(sentence) < 3000, "a message is for a person"
    return sentence


def forget(world: World, name: str) -> None:
    """Remove a release, and let that be written down."""
    if os.path.lexists(f"{world.root}/{name}"):
        remove(f"{world.root}/{name}")
        with locked(Root(world.root), "tidying up"):
            pass


@contextmanager
def deployed(world: World, archive: str, name: str, **options: Any) -> Iterator[str]:
    """A release; it is removed at the end."""
    try:
        done = publish(archive, f"{world.root}/{name}", **options)
        assert done.changed
        yield f"{world.root}/{name}"
    finally:
        forget(world, name)


def digests_of(archive: str, vouched: bool) -> dict[str, str] | None:
    return {"sha256": sha256_of(archive)} if vouched else None


# -- members that are not what the manifest says ---------------------------------------------------

Change = Callable[[Parts], None]


def drop(name: str) -> Change:
    return lambda parts: parts.members.pop(parts.at(name)) and None


def drop_row(path: str) -> Change:
    def change(parts: Parts) -> None:
        parts.rows.remove(parts.row(path))
        parts.head["files"] -= 1

    return change


def fields(name: str, **values: Any) -> Change:
    def change(parts: Parts) -> None:
        for field, value in values.items():
            setattr(parts.info(name), field, value)

    return change


def insert(name: str, where: int | str, data: bytes = b"evil\n", **values: Any) -> Change:
    def change(parts: Parts) -> None:
        number = where if isinstance(where, int) else parts.at(where)
        number = len(parts.members) if number < 0 else number
        parts.members.insert(number, parts.new(name, data, **values))

    return change


def ledger_is(data: bytes = b"{}\n", name: str = LEDGER, times: int = 1, **values: Any) -> Change:
    """Something else is in the place of the ledger."""

    def change(parts: Parts) -> None:
        parts.members[parts.at(LEDGER)] = parts.new(name, data * times, **values)

    return change


def manifest_is(*members: tuple[str, dict[str, Any]]) -> Change:
    """Something else stands where the manifest stands."""

    def change(parts: Parts) -> None:
        for name, values in members:
            data = b"" if values else parts.text()
            parts.first.append(parts.new(name, data, **values))

    return change


def swap(one: str, other: str) -> Change:
    def change(parts: Parts) -> None:
        a, b = parts.at(one), parts.at(other)
        parts.members[a], parts.members[b] = parts.members[b], parts.members[a]

    return change


def as_row(path: str, number: int, value: Any) -> Change:
    """Another value in a row, and none in the member."""

    def change(parts: Parts) -> None:
        parts.row(path)[number] = value

    return change


def with_file(path: str, data: bytes = b"evil\n", mode: int = 0o644) -> Change:
    """A file more, in the archive and in its manifest."""
    return lambda parts: parts.put(text_row(path, data, mode), data)


def everywhere(path: str, **values: Any) -> Change:
    """Another mode, in the archive and in its manifest."""

    def change(parts: Parts) -> None:
        fields(path, **values)(parts)
        parts.row(path)[2] = values["mode"]

    return change


LNK, HARD, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE

MEMBERS: dict[str, tuple[Change, str]] = {
    "missing": (drop("bin/beta"), "bin/beta is in its manifest, and not in the archive"),
    "missing-link": (drop("bin/python3"), "bin/python3 is in its manifest, and not"),
    "missing-directory": (drop("etc"), "etc is in its manifest, and not"),
    "missing-last": (lambda p: p.members.pop() and None, "is in its manifest, and not"),
    "missing-row": (drop_row("bin/beta"), "bin/beta is not in its manifest"),
    "missing-row-of-a-link": (drop_row("bin/python3"), "bin/python3 is not in its manifest"),
    "added-first": (insert("!aaa", 1), "!aaa is not in its manifest"),
    "added": (insert("bin/evil", "bin/omega"), "bin/evil is not in its manifest"),
    "added-last": (insert("zzz", -1), "zzz is not in its manifest"),
    "added-link": (insert("zzz", -1, b"", type=LNK, linkname="bin"), "zzz is not in its"),
    "added-hard-link": (
        insert("zzz", -1, b"", type=HARD, linkname="bin/beta"),
        "zzz is not in its manifest",
    ),
    "added-record": (insert(RECORD, "CACHEDIR.TAG"), r"\.release\.json"),
    "added-record-last": (insert(RECORD, -1), r"\.release\.json"),
    "added-to-its-own": (insert(".relocation/evil", "CACHEDIR.TAG"), r"\.relocation/evil"),
    "added-to-its-own-last": (insert(".relocation/evil", -1), r"\.relocation/evil"),
    "added-original": (
        insert(f"{rewritten.ORIGINALS}/{SHA256}", "CACHEDIR.TAG"),
        r"\.relocation/originals",
    ),
    "swapped": (swap("bin/beta", "bin/omega"), "bin/(beta|omega|deactivate.bat)"),
    "mode": (fields("bin/beta", mode=0o700), "bin/beta is not what its manifest says"),
    "mode-of-a-directory": (fields("etc", mode=0o700), "etc is not what its manifest says"),
    "mtime": (fields("bin/beta", mtime=1_600_000_000), "bin/beta is not what its manifest"),
    "mtime-of-a-source": (fields("bin/activate_this.py", mtime=1), "bin/activate_this.py is not"),
    "kind-link": (
        fields("etc/twin.txt", type=LNK, linkname="alone.txt", size=0),
        "etc/twin.txt is not what its manifest says",
    ),
    "kind-hard-link": (
        fields("etc/twin2.txt", type=HARD, linkname="etc/twin.txt", size=0),
        "etc/twin2.txt is not what its manifest says",
    ),
    "kind-directory": (fields("etc/twin.txt", type=DIR, size=0), "etc/twin.txt is not what"),
    "kind-fifo": (fields("etc/twin.txt", type=tarfile.FIFOTYPE, size=0), "twin.txt.* pipe"),
    "kind-device": (fields("etc/twin.txt", type=tarfile.CHRTYPE, size=0), "twin.txt.*device"),
    "setuid": (fields("bin/beta", mode=0o4755), "bin/beta has a setuid"),
    "target": (fields("bin/python3", linkname="python3.12"), "bin/python3 is not what"),
    "size": (lambda p: p.data("bin/beta", b"x"), "bin/beta is not what its manifest says"),
    "size-of-the-row": (as_row("bin/beta", 3, 1), "bin/beta is not what its manifest says"),
    "row-of-another-kind": (
        lambda p: p.rows.__setitem__(p.rows.index(p.row("etc")), ["etc", "link", "bin"]),
        "etc is not what its manifest says",
    ),
    "manifest-of-another": (
        lambda p: p.first.append(p.new(MANIFEST, written(p.head, p.rows[:-1]))),
        "not in its manifest|manifest",
    ),
    "manifest-twice": (
        manifest_is((MANIFEST, {}), (MANIFEST, {})),
        r"\.relocation/manifest\.json|no ledger",
    ),
    "manifest-link": (
        manifest_is((MANIFEST, {"type": LNK, "linkname": "../etc/twin.txt"})),
        r"\.relocation/manifest\.json is a link",
    ),
    "manifest-directory": (
        manifest_is((MANIFEST, {"type": DIR, "mode": 0o755})),
        r"\.relocation/manifest\.json is a directory",
    ),
    "manifest-hard-link": (
        manifest_is((MANIFEST, {"type": HARD, "linkname": "bin/beta"})),
        r"\.relocation/manifest\.json is a hardlink|hard link",
    ),
    "no-ledger": (drop(LEDGER), "no .*ledger"),
    "ledger-of-another-name": (ledger_is(name=".relocation/evil"), r"\.relocation/evil|ledger"),
    "ledger-is-an-original": (
        ledger_is(b"evil\n", f"{rewritten.ORIGINALS}/{SHA256}"),
        r"originals|ledger",
    ),
    "ledger-link": (ledger_is(b"", type=LNK, linkname="../etc/twin.txt"), "ledger"),
    "ledger-hard-link": (ledger_is(b"", type=HARD, linkname=MANIFEST), "ledger"),
    "ledger-directory": (ledger_is(b"", type=DIR, mode=0o755), "ledger"),
    "ledger-lies": (
        ledger_is(json.dumps({ALONE: f"sha256:{SHA256}", "bin/activate": "link:/x"}).encode()),
        "ledger",
    ),
    "ledger-nested": (ledger_is(b"[" * 200_000), "ledger"),
    "ledger-no-json": (ledger_is(b"evil"), "ledger"),
    "ledger-huge": (ledger_is(b" ", times=30 << 20), "ledger"),
    "ledger-executable": (ledger_is(mode=0o755), "ledger"),
    "names-the-record": (with_file(RECORD), r"\.release\.json"),
    "names-a-file-in-the-record": (with_file(f"{RECORD}/x"), r"\.release\.json"),
    "mode-world-writable": (everywhere(ALONE, mode=0o666), "etc/alone.txt"),
    "mode-none": (everywhere(ALONE, mode=0), "etc/alone.txt"),
    "mode-of-a-directory-world-writable": (everywhere("etc", mode=0o777), "etc "),
    "directory-without-a-row": (with_file("evil/file"), "evil"),
}


@pytest.mark.parametrize("vouched", [False, True], ids=["unknown", "vouched"])
@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.few(15)
def test_a_member_that_the_manifest_does_not_name(name: str, vouched: bool, world: World) -> None:
    """Also where the archive's hash is given: it says who packed it, and not that it is whole."""
    change, text = MEMBERS[name]
    parts = world.bundles["A"].copy()
    change(parts)
    assert re.search(text, refusal(world, world.put(parts), vouched=vouched))


def test_other_content(world: World) -> None:
    """Of the same size, and of another file in the same archive."""
    for change in (
        lambda p: p.data(TWIN, b"six\n"),
        lambda p: (p.data(TWIN, b"two\n"), p.data(OTHER_TWIN, b"one\n")),
    ):
        parts = world.bundles["A"].copy()
        change(parts)
        said = refusal(world, world.put(parts))
        assert "etc/twin.txt is not what its manifest says" in said


def test_a_member_behind_the_end(world: World) -> None:
    """Behind the zeros at the end, where some programs go on reading."""
    data = world.bundles["A"].tar()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packing:
        packing.addfile(*_evil())
    said = refusal(world, world.put(data + buffer.getvalue()))
    assert "something follows the end" in said
    said = refusal(world, world.put(gzip.compress(data) + gzip.compress(buffer.getvalue())))
    assert "something follows the end" in said


def _evil() -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo("evil")
    info.size = 1
    return info, io.BytesIO(b"x")


def test_a_manifest_that_comes_later(world: World) -> None:
    """That is no bundle; its `.relocation` must not be believed then."""
    parts = world.bundles["A"].copy()
    parts.head["prefixes"] = ["/usr"]
    parts.members.insert(5, parts.new(MANIFEST, parts.text()))
    ledger_member = parts.members.pop(parts.at(LEDGER))
    parts.first.append(parts.new("aaa", b"x"))
    parts.members.append(ledger_member)
    archive = world.put(parts)
    assert "manifest" in refusal(world, archive)


# -- heads that lie --------------------------------------------------------------------------------

HUGE = 10**30


def head_is(**values: Any) -> Change:
    return lambda parts: parts.head.update(values)


HEADS: dict[str, tuple[Change, str]] = {
    "libc-version-huge": (
        head_is(libc="glibc", libc_version="9" * 10_000),
        "manifest|glibc",
    ),
    "python-2": (head_is(python="2.7"), r"2\.7"),
    "python-9": (head_is(python="9.99"), r"9\.99"),
    "python-none": (head_is(python=""), "manifest|Python"),
    "python-newline": (head_is(python="3.12\nroot::0:0"), "manifest"),
    "python-escape": (head_is(python="3.12\x1b[2J"), "manifest"),
    "python-nul": (head_is(python="3.12\0"), "manifest"),
    "python-path": (head_is(python="3.12/../../evil"), "manifest|Python"),
    "python-surrogate": (head_is(python="\ud800"), "manifest"),
    "implementation": (head_is(implementation="jython"), "(?i)jython|Python|manifest"),
    "implementation-newline": (head_is(implementation="\n"), "manifest|Python"),
    "home-nul": (head_is(home="/usr\0/bin"), "manifest"),
    "home-newline": (head_is(home="/usr\n/bin"), "manifest"),
    "home-relative": (head_is(home="bin"), "manifest"),
    "home-surrogate": (head_is(home="/\ud800"), "manifest"),
    "machine": (head_is(machine="vax"), "vax"),
    "machine-escape": (head_is(machine="\x1b[2J\n"), "manifest"),
    "libc-escape": (head_is(libc="\x1b[2J\n"), "manifest"),
    "libc": (head_is(libc="musl"), "musl"),
    "prefixes-root": (lambda p: p.head["prefixes"].append("/"), "manifest"),
    "prefixes-empty": (lambda p: p.head["prefixes"].append(""), "manifest"),
    "prefixes-usr": (lambda p: p.head["prefixes"].append("/usr"), "manifest"),
    "prefixes-relative": (lambda p: p.head["prefixes"].append("bin"), "manifest"),
    "prefixes-newline": (lambda p: p.head["prefixes"].append("/srv/x\n"), "manifest"),
    "prefixes-surrogate": (lambda p: p.head["prefixes"].append("/\ud800"), "manifest"),
    "prefixes-dots": (lambda p: p.head["prefixes"].append("/srv/../etc"), "manifest"),
    "prefix-root": (head_is(prefix="/"), "manifest"),
    "prefix-newline": (head_is(prefix="/srv\n"), "manifest"),
    "time-huge": (head_is(time=HUGE), "time|manifest"),
    "time-negative": (head_is(time=-1), "manifest"),
    "files-fewer": (head_is(files=1), "manifest"),
    "files-more": (head_is(files=10**9), "manifest"),
    "size-less": (head_is(size=1), "manifest"),
    "size-huge": (head_is(size=HUGE), "manifest"),
    "references-missing": (lambda p: p.head["references"].append("zzz"), "manifest|zzz"),
    "references-directory": (lambda p: p.head["references"].append("etc"), "manifest|etc"),
    "references-through-a-file": (
        lambda p: p.head["references"].append("pyvenv.cfg/zzz"),
        "manifest|pyvenv.cfg/zzz",
    ),
    "references-through-a-link": (
        lambda p: p.head["references"].append("bin/python3/zzz"),
        "manifest|bin/python3/zzz",
    ),
    "references-parent": (lambda p: p.head["references"].append("../victims/file"), "victims"),
    "references-absolute": (lambda p: p.head["references"].append("/etc/passwd"), "passwd"),
    "references-control": (lambda p: p.head["references"].append("a\nb"), "manifest|a.nb"),
    "references-nul": (lambda p: p.head["references"].append("a\0b"), "manifest|a.x00b"),
    "references-own": (lambda p: p.head["references"].append(MANIFEST), "manifest"),
    "references-record": (lambda p: p.head["references"].append(RECORD), "manifest|release"),
    "references-surrogate": (lambda p: p.head["references"].append("\ud800"), "manifest"),
    "references-none": (head_is(references=[]), "manifest|name|update the path"),
    "references-twice": (lambda p: p.head["references"].append("bin/beta"), "manifest"),
    "uneditable-escape": (head_is(uneditable=[["a\x1b[2J", "b\n"]]), "manifest"),
    "uneditable-unknown": (head_is(uneditable=[["zzz", "because"]]), "manifest|zzz"),
    "facts-escape": (head_is(facts={"a\n": "\x1b"}), "manifest"),
    "facts-surrogate": (head_is(facts={"a": "\ud800"}), "manifest"),
    "compiled-escape": (head_is(compiled=[[[".cpython-99.so"], "a\x1b[2J\n.so"]]), "manifest"),
    "compiled-lies": (head_is(compiled=[[[".cpython-99.so"], "a"]]), "would not load"),
    "compiled-empty": (head_is(compiled=[[[], "a"]]), "manifest|load"),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.few(8)
def test_a_head_that_lies(name: str, world: World) -> None:
    """Refused as the manifest's fault, or as what it asks of this machine; never a traceback."""
    change, text = HEADS[name]
    parts = world.bundles["A"].copy()
    change(parts)
    assert re.search(text, refusal(world, world.put(parts)))


# Made when they are wanted: every process that the tests fork copies what is there by then.
TOO_MUCH: dict[str, Callable[[], object]] = {
    "facts": lambda: {f"{n}": "x" * 1000 for n in range(10_000)},
    "uneditable": lambda: [["bin/beta", "x" * 100] for _ in range(100_000)],
    "references": lambda: [f"zzz{n}" for n in range(1_000_000)],
    "prefixes": lambda: [f"/srv/{n}" for n in range(500_000)],
    "compiled": lambda: [[[f".{n}.so"], "x"] for n in range(300_000)],
}


@pytest.mark.parametrize("key", TOO_MUCH)
@pytest.mark.few(2)
def test_a_head_with_far_too_much(key: str, world: World) -> None:
    """No machine is brought to a stop, and no log filled, by lists that no packer writes."""
    parts = world.bundles["A"].copy()
    parts.head[key] = TOO_MUCH[key]()
    try:
        said = in_bounds(world.put(parts), f"{world.root}/X")
    finally:
        forget(world, "X")
    assert said.startswith("refused") or key == "facts"
    assert len(said) < 3000


def test_a_home_that_is_no_place_for_a_python(world: World, tmp_path: Path) -> None:
    """Whoever packs a bundle must not choose a program that root runs before it is unpacked."""
    told = tmp_path / "told"
    program = tmp_path / "python3.12"
    program.write_text(f"#!/bin/sh\ntouch {told}\nexit 1\n")
    program.chmod(0o755)
    os.chmod(tmp_path, 0o777)
    parts = world.bundles["A"].copy()
    version = parts.head["python"]
    program.rename(tmp_path / f"python{version}")
    parts.head["home"] = str(tmp_path)
    parts.members.pop()  # so that it is refused in any case
    refusal(world, world.put(parts))
    assert not told.exists()


# -- bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "every", [4999, pytest.param(4 * stride(300) + 1, id="more", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.few(1)
def test_a_flipped_bit(every: int, packed: bool, world: World, tmp_path: Path) -> None:
    """Refused, or harmless: then it unpacks to just the same."""
    from relocate_core.bundles.unpack import unpack

    data = world.bundles["A"].tar()
    data = gzip.compress(data, mtime=0) if packed else data
    step = every if packed else every * 5

    def result(archived: bytes) -> object:
        place = tmp_path / "place"
        place.mkdir()
        (tmp_path / "evil.tar").write_bytes(archived)
        directory = os.open(place, os.O_RDONLY)
        try:
            error = roots.tried(lambda: unpack(str(tmp_path / "evil.tar"), directory))
            return digest(str(place)) if error is None else None
        finally:
            os.close(directory)
            remove(str(place))

    same = _without_times(result(data))
    refused = 0
    for at in [*range(0, len(data), step), *range(len(data) - 40, len(data))]:
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        signal.alarm(SECONDS)
        found = result(bytes(changed))
        refused += found is None
        assert found is None or _without_times(found) == same, f"bit {at % 8} of byte {at}"
    assert refused > len(data) // step // 3


def test_a_flipped_bit_in_the_ledger(world: World, tmp_path: Path) -> None:
    """The one member that no row names."""
    data = world.bundles["A"].tar()
    at = data.index(b"{}\n\0")
    for number in range(3):
        changed = bytearray(data)
        changed[at + number] ^= 1
        assert "ledger" in refusal(world, world.put(bytes(changed)))


def _without_times(found: object) -> object:
    """All but the times of what has none in a bundle: links, and directories without a row."""
    if not isinstance(found, dict):
        return found
    return {
        path: facts if facts.type == "file" else facts._replace(mtime_ns=0)
        for path, facts in found.items()
    }


# -- a delta bundle --------------------------------------------------------------------------------


def order(path: str) -> str:
    return path.replace("/", "\0")


def reseal(world: World, parts: Parts) -> None:
    """Let the digest of the whole be that of the rows as they are."""
    base, gone = parts.head["base"], set(parts.head["base"]["removed"])
    rows = {row[0]: row for row in world.bundles["A"].rows if row[0] not in gone}
    rows.update({row[0]: row[:5] for row in parts.rows})
    head = {key: value for key, value in parts.head.items() if key != "base"}
    text = written(head, sorted(rows.values(), key=lambda row: order(row[0])))
    base["result"] = hashlib.sha256(text.partition(b"\n")[2]).hexdigest()


def given(path: str, source: str, content: bytes = b"one\n", **values: Any) -> Change:
    """A file that the earlier release should give, from wherever."""

    def change(parts: Parts) -> None:
        row = text_row(path, content, values.get("mode", 0o644))
        row[3] = values.get("size", len(content))
        parts.rows.append([*row, source])
        parts.rows.sort(key=lambda row: order(row[0]))
        parts.head["files"] += 1
        parts.head["size"] += row[3]

    return change


def base_is(**values: Any) -> Change:
    return lambda parts: parts.head["base"].update(values)


def removes(path: str) -> Change:
    def change(parts: Parts) -> None:
        parts.head["base"]["removed"].append(path)
        parts.head["files"] -= 1

    return change


UNSEALED: dict[str, tuple[Change, str]] = {
    "result": (base_is(result="0" * 64), "another whole"),
    "unknown": (base_is(manifest="0" * 64), "not here"),
    "empty": (base_is(manifest=""), "manifest"),
    "no-digest": (base_is(manifest="A"), "manifest|not here"),
    "result-no-digest": (base_is(result="x\n"), "manifest|another whole"),
    "removed-less": (base_is(removed=[]), "another whole|records"),
    "removed-more": (
        lambda p: p.head["base"]["removed"].append(TWIN),
        "another whole|records",
    ),
    "removed-control": (lambda p: p.head["base"]["removed"].append("a\nb"), "manifest"),
    "row-more": (given("etc/evil", TWIN), "another whole"),
    "row-less": (lambda p: p.rows.remove(p.row(ALONE)), "another whole|not in its manifest"),
    "null": (lambda p: p.head.update(base=[]), "manifest"),
    "additional": (base_is(evil="x"), "manifest"),
}

SEALED: dict[str, tuple[Change, str]] = {
    "missing": (given("etc/evil", "etc/missing"), "etc/missing"),
    "missing-directory": (given("etc/evil", "missing/x"), "missing/x"),
    "other-hash": (given("etc/evil", TWIN, b"two\n"), "etc/(twin.txt|evil)"),
    "other-hash-in-place": (given("etc/zzz", TWIN, b"six\n"), "etc/(twin.txt|zzz)"),
    "size": (given("etc/evil", TWIN, size=5), "etc/(twin.txt|evil)"),
    "relocated": (given("etc/evil", "bin/beta"), "bin/beta|etc/evil"),
    "own": (given("etc/evil", ".relocation/ledger.json"), "manifest"),
    "original": (given("etc/evil", f"{rewritten.ORIGINALS}/{SHA256}"), "manifest"),
    "record": (given("etc/evil", RECORD), r"manifest|\.release\.json"),
    "parent": (given("etc/evil", "../../victims/file", b"a victim\n"), r"\.\."),
    "absolute": (given("etc/evil", "/etc/passwd"), "/etc/passwd"),
    "through-a-link": (
        given("etc/evil", "lib64/python3.12/site-packages/omega/__init__.py"),
        "lib64",
    ),
    "a-link": (given("etc/evil", "bin/python3"), "bin/python3"),
    "the-interpreter": (given("etc/evil", "bin/python"), "bin/python"),
    "a-directory": (given("etc/evil", "etc"), "etc"),
    "empty-source": (given("etc/evil", ""), "evil"),
    "below-a-link": (given("lib64/evil", TWIN), "lib64"),
    "below-a-file": (given(f"{TWIN}/evil", TWIN), "twin.txt"),
    "below-nothing": (given("evil/evil", TWIN), "evil"),
    "world-writable": (given("etc/evil", TWIN, mode=0o777), "etc/evil"),
    "unreadable": (given("etc/evil", TWIN, mode=0), "etc/evil"),
    "a-record": (given(RECORD, TWIN), r"\.release\.json"),
    "surrogate": (given("etc/\ud800", TWIN), "manifest"),
    "long": (given("etc/" + "x" * 300, TWIN), "long|manifest"),
    "case": (given("ETC/twin.txt", TWIN), "ETC"),
    "time-huge": (
        lambda p: (p.head.update(time=HUGE), p.members.__delitem__(slice(1, None))),
        "time|manifest|archive",
    ),
    "directory-gone": (removes("etc"), "etc"),
    "files": (head_is(files=1), "manifest"),
    "size-of-the-whole": (head_is(size=1), "manifest"),
}


@pytest.mark.parametrize("vouched", [False, True], ids=["unknown", "vouched"])
@pytest.mark.parametrize("name", [*UNSEALED, *SEALED])
@pytest.mark.few(12)
def test_a_delta_bundle(name: str, vouched: bool, world: World) -> None:
    """What its rows and its base say is not believed, not even when somebody vouches for it."""
    change, text = UNSEALED.get(name) or SEALED[name]
    parts = world.bundles["B-A"].copy()
    change(parts)
    if name in SEALED:
        reseal(world, parts)
    assert re.search(text, refusal(world, world.put(parts), vouched=vouched))


def test_resealed_bundles_are_good(world: World) -> None:
    """The attacks above are refused for what they change, and not for how they are made."""
    parts = world.bundles["B-A"].copy()
    given("etc/good.txt", TWIN)(parts)
    reseal(world, parts)
    with deployed(world, world.put(parts), "X") as path:
        assert Path(path, "etc/good.txt").read_text() == "one\n"
        assert check(path, deep=True).problems == ()
    with deployed(world, world.archives["B-A"], "B") as path:
        assert roots.tree(path) == world.trees["B"]


def test_no_base_says_which_archive(world: World) -> None:
    """What, where, and what to do."""
    parts = world.bundles["B-A"].copy()
    base_is(manifest="0" * 64)(parts)
    archive = world.put(parts)
    assert archive in refusal(world, archive)


def test_the_rows_of_a_base_of_a_delta_bundle(world: World, tmp_path: Path) -> None:
    """A bad one is refused in a sentence by `pack` as well."""
    build = small(tmp_path / "build")
    parts = world.bundles["A"].copy()
    parts.rows[3][0] = "../evil"
    archive = world.put(parts, "base.tar")
    with pytest.raises(RelocateError, match="manifest") as caught:
        pack(build.path, str(tmp_path / "new.tar.gz"), delta_from=archive)
    assert roots.one_sentence(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["build"]


# -- what an earlier release has become ------------------------------------------------------------

LIMIT = 600 << 20  # bytes of address space for a process that is to hold nothing large

LIMITED = """
import resource, sys
from relocate_core import publish
from relocate_core.errors import RelocateError
import relocate_core.releases.publish, relocate_core.relocation.check
import relocate_core.relocation.reinitialize
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
try:
    print("deployed", publish(sys.argv[2], sys.argv[3], hard_links=bool(sys.argv[4])).reused)
except RelocateError as error:
    print("refused", error)
"""


def in_bounds(archive: str, path: str, hard_links: bool = False) -> str:
    """What comes of deploying in a process of little memory, that is given a minute."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, str(LIMIT), archive, path, "1" * hard_links],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS / 4,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def elsewhere(world: World, **options: Any) -> Iterator[World]:
    """Another root, with nothing in it but the first build as a release to be changed."""
    other = replace(world, name="other")
    try:
        publish(world.archives["A"], f"{other.root}/A", **options)
        yield other
    finally:
        remove(other.root)


@contextmanager
def theirs(world: World) -> Iterator[World]:
    """The same of somebody else's."""
    with elsewhere(world, owner=(NOBODY, NOBODY)) as other:
        yield other


def replaced(path: str, make: Callable[[str], object]) -> None:
    """What the owner of a release can do with a name in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    make(path)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def text(content: bytes) -> Callable[[str], object]:
    return lambda path: Path(path).write_bytes(content)


def sparse(size: int, head: bytes = b"") -> Callable[[str], object]:
    def make(path: str) -> None:
        Path(path).write_bytes(head)
        os.truncate(path, size)

    return make


def changed_in_place(path: str) -> None:
    """Other content of the same size, and the same times."""
    status = os.stat(path)
    data = Path(path).read_bytes()
    with open(path, "r+b") as file:
        file.write(data[::-1] if data[::-1] != data else bytes(len(data)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


KEPT = "lib/omega.conf"
SITE_FILE = ".lock"

TAMPERED: dict[str, tuple[str, Callable[[str], object]]] = {
    "content": (TWIN, text(b"six\n")),
    "shadow": (TWIN, lambda path: os.symlink("/etc/shadow", path)),
    "link-inside": (TWIN, lambda path: os.symlink("alone.txt", path)),
    "fifo": (TWIN, os.mkfifo),
    "directory": (TWIN, os.mkdir),
    "hard-link": (TWIN, lambda path: os.link(f"{Path(path).parents[3]}/victims/file", path)),
    "larger": (TWIN, text(b"one\nmore\n")),
    "directory-link": ("etc", lambda path: os.symlink("/etc", path)),
    "directory-file": ("etc", text(b"x")),
    "manifest-gone": (MANIFEST, text(b"")),
    "manifest-link": (MANIFEST, lambda path: os.symlink("/etc/shadow", path)),
    "manifest-fifo": (MANIFEST, os.mkfifo),
    "manifest-directory": (MANIFEST, os.mkdir),
    "manifest-nested": (
        MANIFEST,
        text(b'{"format": 1, "sha256": "%s",\n"head": ' % (b"0" * 64) + b"[" * 99_999),
    ),
    "own-directory-link": (".relocation", lambda path: os.symlink("/etc", path)),
    "ledger-nested": (LEDGER, text(b"[" * 200_000)),
    "ledger-fifo": (LEDGER, os.mkfifo),
    "ledger-directory": (LEDGER, os.mkdir),
    "ledger-lies": (LEDGER, text(json.dumps({TWIN: "sha256:x"}).encode())),
    "record-nested": (RECORD, text(b"[" * 200_000)),
    "record-fifo": (RECORD, os.mkfifo),
}


@needs_root
@pytest.mark.parametrize(
    "hard_links", [pytest.param(False, marks=pytest.mark.slow), True], ids=["copied", "linked"]
)
@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.few(5)
def test_their_release_was_tampered_with(name: str, hard_links: bool, world: World) -> None:
    """Refused by the release's name and the file's."""
    where, make = TAMPERED[name]
    with theirs(world) as other:
        replaced(f"{other.root}/A/{where}", make)
        said = refusal(other, world.archives["B-A"], hard_links=hard_links)
        assert where != TWIN or TWIN in said
        assert "deploy the full bundle" in said


@needs_root
@pytest.mark.parametrize(
    "owner",
    [pytest.param(None, marks=pytest.mark.slow), (NOBODY, NOBODY)],
    ids=["root", "nobody"],
)
@pytest.mark.parametrize("name", TAMPERED)
@pytest.mark.few(5)
def test_a_full_bundle_beside_one(name: str, owner: tuple[int, int] | None, world: World) -> None:
    """It is complete, and is deployed whatever has become of the releases beside it."""
    where, make = TAMPERED[name]
    # The root is in a directory that only root may enter, so nobody's interpreter is not run.
    wanted = [] if owner is None else [("access", "bin/python")]
    with theirs(world) as other:
        replaced(f"{other.root}/A/{where}", make)
        with deployed(other, world.archives["B"], "B", hard_links=True, owner=owner) as new:
            problems = check(new, deep=True).problems
            assert [(problem.kind, problem.file) for problem in problems] == wanted


@needs_root
@pytest.mark.parametrize("bundle", ["B", "B-A"])
@pytest.mark.parametrize("where", [TWIN, LEDGER, MANIFEST, RECORD, rewritten.ORIGINALS])
@pytest.mark.few(2)
def test_their_release_holds_a_file_without_an_end(where: str, bundle: str, world: World) -> None:
    """A hole of a terabyte costs nobody anything to make, and must cost root nothing to look at."""
    with theirs(world) as other:
        place = f"{other.root}/A/{where}"
        names = sorted(os.listdir(place)) if os.path.isdir(place) else [""]
        for name in names:
            file = os.path.join(place, name).rstrip("/")
            replaced(file, sparse(1 << 40, Path(file).read_bytes()))
        said = in_bounds(world.archives[bundle], f"{other.root}/X", hard_links=bundle == "B")
    assert said.startswith("deployed" if bundle == "B" else "refused"), said


@needs_root
@pytest.mark.parametrize("hard_links", [False, True], ids=["copied", "linked"])
@pytest.mark.few(1)
def test_their_release_changes_meanwhile(hard_links: bool, world: World) -> None:
    """Whatever is deployed is what the manifest says, or nothing is."""
    stopped = threading.Event()
    with theirs(world) as other:

        def write() -> None:
            while not stopped.is_set():
                for content in (b"six\n", b"one\n"):
                    with open(f"{other.root}/A/{TWIN}", "r+b") as stream:
                        stream.write(content)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(6):
                path = f"{other.root}/B{number}"
                deploy = partial(publish, world.archives["B-A"], path, hard_links=hard_links)
                error = roots.tried(deploy)
                assert isinstance(error, (NoBase, type(None)))
                assert error is not None or Path(path, TWIN).read_bytes() == b"one\n"
        finally:
            stopped.set()
            writer.join()


@needs_root
def test_their_file_grows_while_it_is_copied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is ever taken than the row says."""
    real, most = os.read, 64 << 20
    taken = 0
    with theirs(world) as other:
        path = f"{other.root}/A/{TWIN}"
        inode = os.stat(path).st_ino

        def read(descriptor: int, size: int) -> bytes:
            nonlocal taken
            if os.fstat(descriptor).st_ino == inode:
                if not taken:
                    os.truncate(path, 1 << 40)
                taken += size
                assert taken < most, "it is read to its end"
            return real(descriptor, size)

        monkeypatch.setattr(os, "read", read)
        with pytest.raises(NoBase, match=TWIN):
            publish(world.archives["B-A"], f"{other.root}/B")


@needs_root
def test_a_file_is_swapped_between_its_hash_and_its_link(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the directory is somebody else's, what is linked may not be what was looked at."""
    real = os.link
    with theirs(world) as other:
        path = f"{other.root}/A/{TWIN}"
        os.chown(path, 0, 0)  # a hard link to root's, where fs.protected_hardlinks is 0

        def link(name: str, *rest: Any, **options: Any) -> None:
            if name == os.path.basename(TWIN):
                replaced(path, text(b"six\n"))
            real(name, *rest, **options)

        monkeypatch.setattr(os, "link", link)
        new = f"{other.root}/B"
        error = roots.tried(lambda: publish(world.archives["B-A"], new, hard_links=True))
        assert error is not None or Path(new, TWIN).read_bytes() == b"one\n"
        assert error is not None or os.stat(f"{new}/{TWIN}").st_uid == 0


@needs_root
def test_a_release_of_their_own_making(world: World) -> None:
    """A directory of somebody else's may say that it is any release: what it gives is hashed."""
    with theirs(world) as other:
        changed_in_place(f"{other.root}/A/{TWIN}")
        record = f"{other.root}/A/{RECORD}"
        replaced(record, text(Path(record).read_bytes()))  # sealed again, after the change
        assert TWIN in refusal(other, world.archives["B-A"])


def _moved(record: str) -> None:
    os.rename(record, f"{record}.aside")
    os.rename(f"{record}.aside", record)


def _linked(record: str) -> None:
    os.link(record, f"{record}.aside")
    os.unlink(f"{record}.aside")


def _restored(record: str) -> None:
    """From a backup, which has written the record last."""
    release = os.path.dirname(record)
    os.rename(release, f"{release}.old")
    subprocess.run(["cp", "-a", f"{release}.old", release], check=True)
    os.unlink(record)
    subprocess.run(["cp", "-a", f"{release}.old/{RECORD}", record], check=True)
    remove(f"{release}.old")


def _sealed_by_the_group(record: str) -> None:
    """Whose members may write into the directory."""
    os.chmod(os.path.dirname(record), 0o775)
    data = Path(record).read_bytes()
    replaced(record, text(data))


def _renamed(record: str) -> None:
    release = os.path.dirname(record)
    os.rename(release, f"{release}.old")
    os.rename(f"{release}.old", release)


AFTERWARDS: dict[str, Callable[[str], object]] = {
    "nothing": lambda record: None,
    "moved": _moved,
    "linked": _linked,
    "chmod": lambda record: os.chmod(record, 0o644),
    "restored": _restored,
    "renamed": _renamed,
    "group": _sealed_by_the_group,
}


@needs_root
@pytest.mark.parametrize("hard_links", [False, True], ids=["copied", "linked"])
@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.few(6)
def test_our_release_was_changed(afterwards: str, hard_links: bool, world: World) -> None:
    """By hand, with all times put back: whatever was done to the record does not hide it."""
    with elsewhere(world) as other:
        changed_in_place(f"{other.root}/A/{TWIN}")
        AFTERWARDS[afterwards](f"{other.root}/A/{RECORD}")
        assert TWIN in refusal(other, world.archives["B-A"], hard_links=hard_links)


# -- the ledger ------------------------------------------------------------------------------------


@needs_root
def test_the_ledgers_directory_is_swapped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While root relocates somebody else's release, no link of theirs leads root out of it."""
    victims = str(world.directory / "victims")
    real = os.mkdir
    swapped = []
    with theirs(world) as other:
        path = f"{other.root}/A"
        shutil.rmtree(f"{path}/{rewritten.ORIGINALS}")
        replaced(f"{path}/{LEDGER}", text(b"{}\n"))

        def mkdir(name: str, *rest: Any, **options: Any) -> None:
            if name.endswith("originals") and not swapped:
                os.rename(f"{path}/.relocation", f"{path}/aside")
                os.symlink(victims, f"{path}/.relocation")
                swapped.append(True)
            real(name, *rest, **options)

        before = digest(victims)
        monkeypatch.setattr(os, "mkdir", mkdir)
        with suppress(RelocateError):
            relocate(path, "/srv/elsewhere/and/longer")
        after = digest(victims)
        shutil.rmtree(f"{victims}/originals", ignore_errors=True)
    assert swapped
    assert after == before


def test_a_ledger_that_hides_a_change(world: World) -> None:
    """`check --deep` goes by the manifest where relocation cannot have changed a file."""
    with deployed(world, world.archives["B"], "B") as path:
        known = json.loads(Path(path, LEDGER).read_bytes())
        changed_in_place(f"{path}/{TWIN}")
        found = [problem.file for problem in check(path, deep=True).problems]
        assert found == [TWIN]
        assert TWIN not in known
        assert known.keys() >= {"bin/beta", "bin/activate"}


def test_what_deep_says_of_what_is_added_to_its_own_directory(world: World) -> None:
    """Nothing is hidden in `.relocation`."""
    with deployed(world, world.archives["B"], "B") as path:
        Path(path, ".relocation/evil.py").write_text("evil\n")
        assert [p.file for p in check(path, deep=True).problems] == [".relocation/evil.py"]


# -- bounds ----------------------------------------------------------------------------------------

MEASURED = """
import os, re, sys
from relocate_core.bundles.unpack import unpack
import relocate_core.bundles.reuse, relocate_core.virtualenvs.rewritten
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) >> 10
before = peak()
os.mkdir(sys.argv[2])
done = unpack(sys.argv[1], os.open(sys.argv[2], os.O_RDONLY))
print(before, peak(), done.files)
"""


def many(world: World, files: int) -> bytes:
    """A bundle with so many tiny files more."""
    parts = world.bundles["A"].copy()
    for number in range(files // 200):
        directory = f"zzz/directory{number:05}"
        for path in ("zzz",) * (not number) + (directory,):
            parts.rows.append([path, "directory", 0o755])
            parts.members.append(parts.new(path, type=DIR, mode=0o755))
        for name in range(200):
            path = f"{directory}/module{name:05}"
            parts.rows.append(text_row(path, b"x"))
            parts.members.append(parts.new(path, b"x", mode=0o644))
    parts.head["files"] = len(parts.rows)
    parts.head["size"] += files // 200 * 200
    return parts.tar()


@pytest.mark.parametrize("files", [7_000, pytest.param(70_000, marks=pytest.mark.slow)])
def test_a_bundle_of_many_files(files: int, world: World, tmp_path: Path) -> None:
    """Neither much memory nor, with ten times the files, much more than ten times the time."""
    archive = world.put(many(world, files), "many.tar")
    place = str(world.directory.parent / "many")
    done = subprocess.run(
        [sys.executable, "-B", "-c", MEASURED, archive, place],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS - 5,
    )
    remove(place)
    os.unlink(archive)
    assert done.returncode == 0, done.stderr
    before, peak, count = map(int, done.stdout.split())
    assert count > files
    assert peak < 150, f"{peak} MB, of which the interpreter has {before} MB"
