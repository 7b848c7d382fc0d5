"""Bundles of real virtualenvs: packed, read, deployed, made into delta bundles, and refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relocate_core import Packing, activate, check, publish, reinitialize, relocate
from relocate_core.bundles.pack import pack_with_deltas
from relocate_core.errors import (
    BadArchive,
    CannotTravel,
    InterpreterMismatch,
    InterpreterNotFound,
    InvalidPath,
    NoBase,
    NotAVirtualenv,
    RelocateError,
)
from relocate_core.releases.root import RECORD
from relocate_core.relocation import workers
from tests.support import bundles, checks, environments, minions, packages
from tests.support.bundles import manifest_of, members_of, packed, reheaded, unpack_by_tar
from tests.support.environments import (
    Environment,
    Project,
    copy,
    differences,
    digest,
    environ,
    interpreters,
    make,
)
from tests.support.fuzz import stride
from tests.support.roots import (
    NOBODY,
    left_behind,
    needs_root,
    one_sentence,
    refused,
)
from tests.support.steps import ROOT, Steps, in_child, temporaries

CLI = [sys.executable, "-m", "relocate_core"]
MODES = ("timestamp", "checked-hash", "unchecked-hash")
NOT_LOOKED_AT = {".relocation", RECORD}

PACKAGES = ("chardet", "pyflakes", "markupsafe")
PACKAGES_36 = ("chardet<5", "pyflakes<2.3", "markupsafe<2.1")
MODERN = (
    Project("alpha", entry_points=("alpha",), scripts=("alpha-script",)),
    Project("beta", entry_points=("beta",), layout="mapped"),
    Project("gamma", entry_points=("gamma",), mode="strict"),
    Project("omega", entry_points=("omega",), mode="regular"),
)
OLD = (MODERN[0], MODERN[3])
BUILDS = {  # what builds a virtualenv, and for which Python
    **{f"venv-3.{minor}": (f"venv-3.{minor}", None) for minor in range(6, 15)},
    **{f"virtualenv-20-3.{m}": ("virtualenv-20", f"3.{m}") for m in range(7, 14)},
    **{f"virtualenv-21-3.{m}": ("virtualenv-21", f"3.{m}") for m in range(9, 15)},
    **{f"uv-3.{m}": ("uv", f"3.{m}") for m in range(8, 15)},
    "pypy3.9": ("pypy3.9", None),
}
QUICK = ("uv-3.12",)
WITH_PIP = ("venv-3.11", "timestamp")
"""What is deployed by the quick tests beside it."""
ALL = [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in BUILDS]


@dataclass(frozen=True)
class Built:
    """A virtualenv that was built elsewhere, and its bundle."""

    made: Environment
    archive: str
    packing: Packing

    @property
    def version(self) -> tuple[int, ...]:
        """X.Y of its Python."""
        return tuple(map(int, self.made.version.split(".")[:2]))

    @property
    def tag(self) -> str:
        """What the names of its bytecode have in them."""
        return "cpython-{}{}".format(*self.version)


class Shop:
    """Builds, packs and deploys each kind once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._built: dict[str, Built] = {}
        self._deployed: dict[str, str] = {}

    def built(self, name: str) -> Built:
        """A virtualenv with packages, projects and bytecode of all sorts."""
        if name not in self._built:
            kind, python = BUILDS[name]
            version = python or kind.removeprefix("venv-").removeprefix("pypy")
            numbers = tuple(map(int, version.split(".")))
            made = make(
                kind,
                self.directory / "built" / name,
                packages=PACKAGES_36 if numbers < (3, 7) else PACKAGES,
                projects=OLD if numbers < (3, 9) else MODERN,
                commands=[["{prefix}/bin/python", "-c", bundles.SPICE, "{prefix}"]],
                python=python,
            )
            archive = str(self.directory / f"{name}.tar.gz")
            self._built[name] = Built(made, archive, packed(made, archive))
        return self._built[name]

    def deployed(self, name: str) -> str:
        """The release that is made of it; not to be written to."""
        if name not in self._deployed:
            built = self.built(name)
            path = str(self.directory / "srv" / name / "4f2a9c1")
            assert publish(built.archive, path, python=built.made.python).problems == []
            self._deployed[name] = path
        return self._deployed[name]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the whole module."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def shop(directory: Path) -> Shop:
    """The virtualenvs of this module."""
    return Shop(directory)


@pytest.fixture
def place(directory: Path) -> Iterator[Path]:
    """A directory in memory for one test."""
    own = directory / "own"
    own.mkdir()
    yield own
    subprocess.run(["rm", "-rf", "--", str(own)], check=True)


@pytest.fixture(scope="module")
def tiny(directory: Path) -> Built:
    """A virtualenv of some sixty files, without pip, on the first of two Pythons if there are."""
    found = two_patch_versions()
    made = make(
        "uv",
        directory / "tiny",
        projects=(Project("omega", entry_points=("omega",), mode="regular"),),
        commands=[["{prefix}/bin/python", "-c", bundles.SPICE, "{prefix}", "bare"]],
        python=found[0] if found else None,
    )
    archive = str(directory / "tiny.tar.gz")
    return Built(made, archive, packed(made, archive))


def two_patch_versions() -> tuple[str, str] | None:
    """Two interpreters of one X.Y and different patch versions, if this machine has such."""
    for version in environments.VERSIONS:
        known = {probe.version: one for one in interpreters(version) if (probe := _probe(one))}
        if len(known) > 1:
            older, newer = sorted(known)[:2]
            return known[newer], known[older]
    return None


def _probe(executable: str) -> environments.Python | None:
    return environments.probe(executable)


def another_python(built: Built) -> str:
    """Another patch version of the Python that it was built with."""
    found = two_patch_versions()
    if found is None:
        pytest.skip("no X.Y is on this machine in two patch versions")
    assert built.made.python == found[0]
    return found[1]


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    options.setdefault("env", environ(PYTHONPATH=ROOT))
    return subprocess.run(
        [*CLI, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
    )


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    return done.returncode, done.stdout, done.stderr


def deviations(path: str) -> list[tuple[str, str]]:
    """What a deep check finds: (file, reason)."""
    return [(one.file, one.reason) for one in check(path, deep=True).problems]


def unlisted(path: str) -> list[str]:
    """The files that are not what the manifest and the ledger say, wherever it may run."""
    return [one.file for one in check(path, deep=True).problems if one.kind == "manifest"]


# --- the same input gives the same bytes ----------------------------------------------------------


def shuffled(source: str, target: Path) -> str:
    """A copy whose files were made in another order, with all their times."""
    paths = [
        (directory, [*directories, *names]) for directory, directories, names in os.walk(source)
    ]
    target.mkdir()
    for directory, _ in paths:
        (target / os.path.relpath(directory, source)).mkdir(exist_ok=True)
    for directory, names in reversed(paths):
        for name in sorted(names, reverse=True):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isdir(path):
                new = target / os.path.relpath(path, source)
                shutil.copy2(path, new, follow_symlinks=False)
    for directory, _ in reversed(paths):
        shutil.copystat(directory, target / os.path.relpath(directory, source))
    return str(target)


def pack_by_command(tree: str, archive: Path, *before: str, **variables: str) -> None:
    """Pack in a process of its own, with other variables, or below another command."""
    done = subprocess.run(
        [*before, *CLI, "--pack", str(archive), tree],
        env=environ(PYTHONPATH=ROOT, **variables),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def under_umask(tree: str, archive: Path) -> None:
    """Pack with a strict umask."""
    before = os.umask(0o077)
    try:
        packed(tree, archive)
    finally:
        os.umask(before)


AGAIN: dict[str, Callable[[str, Path], object]] = {
    "again": packed,
    "another process": pack_by_command,
    "umask": under_umask,
    "files in another order": lambda tree, archive: packed(
        shuffled(tree, archive.with_name("copy")), archive
    ),
    "locale and zone": lambda tree, archive: pack_by_command(
        *(tree, archive), LC_ALL="tr_TR.UTF-8", LANG="C", TZ="Pacific/Kiritimati"
    ),
    "hash seed": lambda tree, archive: pack_by_command(
        *(tree, archive), PYTHONHASHSEED="7", PYTHONOPTIMIZE="2", PYTHONDONTWRITEBYTECODE="1"
    ),
    "one core": lambda tree, archive: pack_by_command(tree, archive, "taskset", "-c", "0"),
}
BY_KIND = ("another process", "files in another order")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("uv-3.12", how) for how in AGAIN),
        *(
            pytest.param(*one.values, how, marks=pytest.mark.slow)
            for one in ALL
            for how in BY_KIND
            if one.values != ("uv-3.12",)
        ),
    ],
)
@pytest.mark.few(1, slow=8)
def test_the_same_bytes(name: str, how: str, shop: Shop, place: Path) -> None:
    """Whoever packs it, wherever the tree stands."""
    if how == "one core" and shutil.which("taskset") is None:
        pytest.skip("taskset is not on this machine")
    built = shop.built(name)
    AGAIN[how](built.made.path, place / "again.tar.gz")
    assert (place / "again.tar.gz").read_bytes() == Path(built.archive).read_bytes()


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.few(2)
def test_each_form_twice(ending: str, tiny: Built, place: Path) -> None:
    """The same bytes, and a digest beside them that sha256sum takes."""
    if ending == ".tar.zst" and shutil.which("zstd") is None:
        pytest.skip("zstd is not on this machine")
    for name in ("one", "two"):
        packing = packed(tiny.made, place / f"{name}{ending}")
        archive = place / f"{name}{ending}"
        assert packing.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
        assert packing.packed_size == archive.stat().st_size
        beside = place / f"{name}{ending}.sha256"
        assert beside.read_text() == f"{packing.sha256}  {name}{ending}\n"
        subprocess.run(["sha256sum", "-c", beside.name], cwd=place, check=True)
        assert packing.manifest == manifest_of(archive).sha256 == tiny.packing.manifest
    assert (place / f"one{ending}").read_bytes() == (place / f"two{ending}").read_bytes()
    assert sorted(path.name for path in place.iterdir()) == sorted(
        f"{name}{ending}{more}" for name in ("one", "two") for more in ("", ".sha256")
    )


def test_source_date_epoch(tiny: Built, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the time of data files in a release, as reproducible-builds.org has it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    packed(tiny.made, place / "one.tar.gz")
    tree = copy(tiny.made.path, place / "tree")
    os.utime(f"{tree}/etc/plain.txt")
    packed(tree, place / "two.tar.gz")
    assert (place / "one.tar.gz").read_bytes() == (place / "two.tar.gz").read_bytes()
    assert manifest_of(place / "one.tar.gz").head["time"] == 1_700_000_000
    times = {m.mtime for m, _ in members_of(place / "one.tar.gz").values()}
    assert times == {bundles.FIXED_TIME}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    not_packed(tree, place / "three.tar.gz", InvalidPath, "SOURCE_DATE_EPOCH must be a number")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.few(slow=8)
def test_there_and_back(name: str, shop: Shop, place: Path) -> None:
    """Unpacked, moved, and moved back, it packs to what it was unpacked from."""
    built = shop.built(name)
    tree = unpack_by_tar(built.archive, place / "tree")
    assert relocate(tree).changed
    assert relocate(tree, built.made.old_prefix).changed
    packed(tree, place / "again.tar.gz")
    assert manifest_of(place / "again.tar.gz").text == manifest_of(built.archive).text
    assert (place / "again.tar.gz").read_bytes() == Path(built.archive).read_bytes()


def test_a_release_and_back(shop: Shop, place: Path) -> None:
    """Only what the Python there is may differ."""
    built = shop.built("uv-3.12")
    path = str(place / "srv" / "one")
    publish(built.archive, path, python=built.made.python)
    relocate(path, built.made.old_prefix)
    packed(path, place / "again.tar.gz")
    old, new = manifest_of(built.archive), manifest_of(place / "again.tar.gz")
    changed = {row.path for row in {*old.rows} ^ {*new.rows}}
    assert changed <= {"pyvenv.cfg", "bin/python", "bin/python3", "bin/python3.12"}
    assert new.head["references"] == old.head["references"]


# --- the archive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_members_and_rows(name: str, shop: Shop) -> None:
    """The manifest comes first, the ledger second; then each member has its row, in one order."""
    built = shop.built(name)
    there = members_of(built.archive)
    known = manifest_of(built.archive)
    first, second, *others = there
    assert (first, second) == (bundles.MANIFEST, bundles.LEDGER)
    assert others == [row.path for row in known.rows]
    for row in known.rows:
        member, data = there[row.path]
        kind = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link"}
        assert kind[member.type] == row.kind
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        if row.kind == "link":
            assert member.linkname == row.target
            continue
        assert member.mode == row.mode
        assert not member.mode & 0o022, "only its owner may write"
        if row.kind == "file":
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row.size, row.sha256)
        assert member.mtime == bundles.FIXED_TIME
    assert built.packing.files == known.head["files"] == len(known.rows)
    assert built.packing.size == known.head["size"] == sum(row.size for row in known.rows)
    assert built.packing.carried == sum(row.kind == "file" for row in known.rows)


def test_the_document(tiny: Built) -> None:
    """One JSON document: the digest of all that follows, the head, and a row a line."""
    known = manifest_of(tiny.archive)
    first, head, begin, *lines = known.text.decode().split("\n")
    assert first == f'{{"format": 1, "sha256": "{known.sha256}",'
    rest = known.text[len(first) + 1 :]
    assert hashlib.sha256(rest).hexdigest() == known.sha256 == tiny.packing.manifest
    assert head.startswith('"head": {')
    assert begin == '"files": ['
    assert lines[-2:] == ["]}", ""]
    rows = [json.loads(line.rstrip(",")) for line in lines[:-2]]
    assert rows == json.loads(known.text)["files"]
    assert known.head["prefix"] == tiny.made.old_prefix
    assert known.head["python"] == ".".join(tiny.made.version.split(".")[:2])
    assert known.head["version"] == tiny.made.version
    assert known.head["implementation"] == "cpython"
    assert known.head["facts"] == {}
    assert "base" not in known.head


@pytest.mark.parametrize("name", ALL)
def test_all_references_are_listed(name: str, shop: Shop) -> None:
    """Whatever names the prefix, and nothing else but the RECORDs that list it."""
    built = shop.built(name)
    head = manifest_of(built.archive).head
    old = built.made.old_prefix.encode()
    naming = set()
    for path, (member, data) in members_of(built.archive).items():
        if path.startswith(".relocation/"):
            continue
        if old in data or built.made.old_prefix in member.linkname:
            naming.add(path)
    listed = set(head["references"])
    assert naming <= listed | {path for path, _ in head["uneditable"]}
    assert all(path.endswith("/RECORD") for path in listed - naming)
    assert "bin/activate" in listed
    assert not [path for path in listed if path.endswith(".pyc") and "names_" not in path] or (
        {path for path in listed if path.endswith(".pyc")} >= {f"{site(built)}/extra/nosource.pyc"}
    )


def site(built: Built) -> str:
    """Where packages are in it."""
    return os.path.relpath(built.made.site_packages, built.made.path)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.few(slow=8)
def test_unpacked_by_tar_it_is_what_the_manifest_says(name: str, shop: Shop, place: Path) -> None:
    built = shop.built(name)
    tree = unpack_by_tar(built.archive, place / "tree")
    there = digest(tree)
    known = manifest_of(built.archive)
    own = {".", ".relocation", bundles.MANIFEST, bundles.LEDGER}
    assert {*there} - own == {*known.by_path}
    for row in known.rows:
        found = there[row.path]
        if row.kind == "link":
            assert (found.type, found.content) == ("link", row.target)
        elif row.kind == "directory":
            assert (found.type, found.mode) == ("directory", row.mode)
        else:
            assert found[:2] == ("file", row.mode)
            assert (found.size, found.content) == (row.size, row.sha256)
    with open(f"{tree}/{bundles.LEDGER}") as ledger:
        assert ledger.read() == "{}\n"


# --- deployed -------------------------------------------------------------------------------------


def naming(tree: str, old: str) -> list[str]:
    """What grep and find see of an old path, but for what tells of the past."""
    done = subprocess.run(
        ["grep", "-rlaF", "--", old, "."], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    links = subprocess.run(
        ["find", ".", "-lname", f"*{old}*"], cwd=tree, capture_output=True, text=True, check=True
    )
    found = [path[2:] for path in (done.stdout + links.stdout).splitlines()]
    return [path for path in found if path.split("/")[0] not in NOT_LOOKED_AT]


def judged(built: Built, release: str, python: str) -> list[str]:
    """What a Python has to say against the bytecode of a release."""
    said = environments.run(python, "-B", "-c", bundles.JUDGE, os.path.join(release, site(built)))
    *faults, last = said.splitlines()
    assert last == "seen"
    return faults


def written(tree: str) -> dict[str, tuple[int, int]]:
    """All bytecode, by which file it is and when it was written."""
    return {
        os.path.relpath(os.path.join(directory, name), tree): (status.st_ino, status.st_mtime_ns)
        for directory, _, names in os.walk(tree)
        for name in names
        if name.endswith(".pyc") and (status := os.lstat(os.path.join(directory, name)))
    }


def assert_at_home(built: Built, release: str) -> None:
    """All programs run, imports work, pip finds nothing wrong, and nothing is compiled by that."""
    before = written(release)
    scripts = checks.console_scripts(release)
    assert {"chardetect", "pyflakes", "omega", "alpha"} <= set(scripts)
    for name in scripts:
        said = checks.run_script(release, name, "--help")
        if name in ("alpha", "alpha-script", "beta", "gamma", "omega"):
            here, prefix = said.splitlines()
            assert here.startswith(f"{release}/"), said
            assert prefix == release
    moved = replace(built.made, path=release)
    if moved.kind == "uv":
        environments.uv("pip", "check", "-p", moved.executable)
    else:
        moved.run("-m", "pip", "check")
    assert moved.run("-c", "import sys; print(sys.prefix)").strip() == release
    moved.run("-c", "import ssl, json, sqlite3, markupsafe, chardet, extra.never")
    assert moved.run("-c", "import markupsafe as m; print(m.escape('<'))") == "&lt;\n"
    after = written(release)
    assert {path: after.get(path) for path in before} == before
    new = {path for path in after if path not in before}
    assert {path for path in new if not path.startswith("src/")} == set()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=() if is_quick else pytest.mark.slow)
        for name in BUILDS
        for mode in MODES
        for is_quick in [name in QUICK or (name, mode) == WITH_PIP]
    ],
)
@pytest.mark.few(1, slow=8)
def test_deployed_it_is_at_home(name: str, mode: str, shop: Shop, place: Path) -> None:
    built = shop.built(name)
    archive, path = built.archive, str(place / "srv" / "4f2a9c1")
    if mode != "timestamp":
        if built.version < (3, 7):
            pytest.skip("Python 3.6 knows bytecode by time only")
        archive = str(place / "hashed.tar.gz")
        packed(built.made, archive, bytecode=mode)
    published = publish(archive, path, python=built.made.python)
    assert published.changed
    assert published.problems == []
    assert naming(path, built.made.old_prefix) == []
    assert checks.record_mismatches(path) <= checks.record_mismatches(built.made.path)
    assert judged(built, path, built.made.python) == []
    assert deviations(path) == []
    flags = {
        int.from_bytes(Path(directory, name).read_bytes()[4:8], "little")
        for directory, _, names in os.walk(f"{path}/{site(built)}")
        for name in names
        if name.endswith(".pyc") and "__pycache__" in directory and ".opt-" not in name
    }
    if built.version >= (3, 7):
        assert flags == {{"timestamp": 0, "checked-hash": 3, "unchecked-hash": 1}[mode]}
    assert_at_home(built, path)


@pytest.mark.parametrize("name", ["uv-3.12", pytest.param("venv-3.11", marks=pytest.mark.slow)])
def test_python_itself_says_that_bytecode_matches(name: str, shop: Shop) -> None:
    built = shop.built(name)
    release = shop.deployed(name)
    done = subprocess.run(
        [f"{release}/bin/python", "-v", "-c", "import extra.names_timestamp, omega, chardet"],
        env=environ(),
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in done.stderr.splitlines() if f"{release}/{site(built)}/" in line]
    for part in ("extra/__init__", "extra/names_timestamp", "omega/__init__", "chardet/__init__"):
        source = f"{release}/{site(built)}/{part}.py"
        assert any(line.endswith(f" matches {source}") for line in told), part
    assert not [line for line in told if line.startswith("# wrote")]


@pytest.mark.parametrize("name", ALL)
def test_bytecode_of_all_sorts(name: str, shop: Shop) -> None:
    """What is stale, foreign or an orphan's stays behind; what is good is kept or made."""
    built = shop.built(name)
    release = shop.deployed(name)
    base = Path(release, site(built), "extra")
    tag = built.tag
    there = {path.name for path in (base / "__pycache__").iterdir()}
    assert there == {
        *(f"{path.stem}.{tag}.pyc" for path in base.glob("*.py") if path.stem != "broken"),
        *(f"optimised.{tag}.opt-{level}.pyc" for level in (1, 2)),
    }
    assert (base / "broken.py").exists()
    assert (base / "nosource.pyc").exists()
    run = replace(built.made, path=release).run
    values = (
        "from extra import stale_size, stale_time, magic, never, plain_checked_hash as c\n"
        "print(stale_size.VALUE, stale_time.VALUE, magic.VALUE, never.VALUE, c.VALUE, sep='/')"
    )
    expected = "newer/as it is/magic/compiled by nobody/CHECKED_HASH\n"
    assert run("-B", "-c", values) == expected
    places = "from extra import names_timestamp as t, names_checked_hash as c\n"
    places += "from extra import names_unchecked_hash as u; print(t.PLACE, c.PLACE, u.PLACE)"
    assert run("-B", "-c", places) == " ".join([f"{release}/etc"] * 3) + "\n"
    optimised = "from extra.optimised import run, __cached__ as c; print(run(), c)"
    for flag, level, words in (("-O", 1, "words"), ("-OO", 2, None)):
        cached = f"{base}/__pycache__/optimised.{tag}.opt-{level}.pyc"
        assert run("-B", flag, "-c", optimised) == f"{words} {cached}\n"


@pytest.mark.parametrize("name", ALL)
def test_tracebacks_name_the_files(name: str, shop: Shop) -> None:
    built = shop.built(name)
    release = shop.deployed(name)
    for module, call in (("fails", "one"), ("nosource", "boom")):
        done = subprocess.run(
            [f"{release}/bin/python", "-B", "-c", f"from extra.{module} import {call} as f; f()"],
            env=environ(),
            capture_output=True,
            text=True,
        )
        named = re.findall(r'File "(/[^"]+)", line \d+, in (?:one|two|boom)', done.stderr)
        assert set(named) == {f"{release}/{site(built)}/extra/{module}.py"}, done.stderr


def test_a_build_without_bytecode_gets_all_of_it(tiny: Built, place: Path) -> None:
    """As uv leaves it; and that can be had without the bytecode, too."""
    bare = copy(tiny.made.path, place / "bare")
    for cache in list(Path(bare).rglob("__pycache__")):
        shutil.rmtree(cache)
    packing = packed(bare, place / "bare.tar.gz")
    sources = [
        row.path for row in manifest_of(place / "bare.tar.gz").rows if row.path[-3:] == ".py"
    ]
    sources = [path for path in sources if path.startswith(site(tiny))]
    made = [path for path in members_of(place / "bare.tar.gz") if "__pycache__/" in path]
    assert packing.compiled == len(made) == len(sources) - 1  # but for the broken one
    release = str(place / "srv" / "one")
    publish(str(place / "bare.tar.gz"), release, python=tiny.made.python)
    assert judged(tiny, release, tiny.made.python) == []
    packed(bare, place / "without.tar.gz", exclude=["*.pyc", "__pycache__"])
    assert [p for p in members_of(place / "without.tar.gz") if p.endswith(".pyc")] == []


@pytest.mark.slow
def test_python_2(place: Path) -> None:
    """Its bytecode lies beside the sources, and has to fit them as well."""
    made = make("virtualenv-16", place / "made", packages=("chardet<5",))
    packed(made, place / "two.tar.gz")
    release = str(place / "srv" / "one")
    # Its executable is a copy, which root runs where it is named as the owner.
    owner = (os.getuid(), os.getgid())
    publish(str(place / "two.tar.gz"), release, python=made.python, owner=owner)
    assert naming(release, made.old_prefix) == []
    before = written(release)
    for name in checks.console_scripts(release):
        if name != "python-config":
            checks.run_script(release, name, "--help")
    assert written(release) == before


# --- another patch version of the same Python -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["newer to older", pytest.param("older to newer", marks=pytest.mark.slow)]
)
def test_another_patch_version(way: str, place: Path) -> None:
    """Built with the one, it runs with the other, and all of its bytecode is good there too."""
    found = two_patch_versions()
    if found is None:
        pytest.skip("no X.Y is on this machine in two patch versions")
    there, here = found if way == "newer to older" else found[::-1]
    kind = "venv-3.11" if way == "newer to older" else "virtualenv-20"
    made = make(
        kind,
        place / "made",
        packages=PACKAGES,
        projects=OLD,
        commands=[["{prefix}/bin/python", "-c", bundles.SPICE, "{prefix}"]],
        python=there,
    )
    archive = str(place / "one.tar.gz")
    built = Built(made, archive, packed(made, archive))
    release = str(place / "srv" / "one")
    publish(archive, release, python=here)
    ask = "import platform; print(platform.python_version())"
    versions = [environments.run(one, "-c", ask) for one in (f"{release}/bin/python", here, there)]
    assert versions[0] == versions[1] != versions[2]
    assert judged(built, release, here) == []
    assert naming(release, made.old_prefix) == []
    assert deviations(release) == []
    assert_at_home(built, release)


# --- unpacked by tar, then relocated by hand ---------------------------------------------------

STEPS = {
    "path first": [["--update-path", "auto"], ["--reinitialize"]],
    "python first": [["--reinitialize"], ["--update-path", "auto"]],
    "both at once": [["--reinitialize", "--update-path", "auto"]],
}
PLANTED = "etc/planted.txt"


def plant(tree: str, old: str) -> None:
    """Add a file with the old path that is not in the manifest, and leave no evidence of it."""
    directory = Path(tree, PLANTED).parent
    status = directory.stat()
    Path(tree, PLANTED).write_text(f"{old}/etc\n")
    os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))


def is_planted(tree: str, path: str) -> bool:
    """Whether that file names this path."""
    return Path(tree, PLANTED).read_text() == f"{path}/etc\n"


@pytest.mark.parametrize("order", STEPS)
@pytest.mark.few(1)
def test_unpacked_by_tar_and_put_in_order(order: str, tiny: Built, place: Path) -> None:
    """Only the files are looked at that the manifest lists."""
    other = another_python(tiny)
    tree = unpack_by_tar(tiny.archive, place / "tree")
    plant(tree, tiny.made.old_prefix)
    for arguments in STEPS[order]:
        python = ["--python", other] if "--reinitialize" in arguments else []
        done = command(*arguments, *python, tree)
        assert (done.returncode, done.stderr) == (0, ""), done
    assert is_planted(tree, tiny.made.old_prefix), "a file that is not listed was looked at"
    assert deviations(tree) == [
        (PLANTED, "it is not in the manifest: added after it was packed"),
    ]
    os.unlink(f"{tree}/{PLANTED}")
    version = environments.probe(other).version  # type: ignore[union-attr]
    assert said(command("--check", "--deep", tree)) == (
        *(0, f"OK: {tree} (Python {'.'.join(map(str, version))})\n", ""),
    )
    assert naming(tree, tiny.made.old_prefix) == []
    assert judged(tiny, tree, f"{tree}/bin/python") == []
    assert checks.run_script(tree, "omega").splitlines()[1] == tree
    assert temporaries(tree) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(o, marks=() if o == "uv-3.12" else pytest.mark.slow) for o in BUILDS]
)
@pytest.mark.few(slow=6)
def test_unpacked_by_tar_it_is_at_home(name: str, shop: Shop, place: Path) -> None:
    """All that a release can do, and back again."""
    built = shop.built(name)
    tree = unpack_by_tar(built.archive, place / "tree")
    done = command("--reinitialize", "--python", built.made.python, "--update-path", "auto", tree)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert deviations(tree) == []
    assert naming(tree, built.made.old_prefix) == []
    assert judged(built, tree, built.made.python) == []
    assert checks.record_mismatches(tree) <= checks.record_mismatches(built.made.path)
    assert_at_home(built, tree)


def test_a_second_run_changes_nothing(tiny: Built, place: Path) -> None:
    tree = unpack_by_tar(tiny.archive, place / "tree")
    arguments = ("--reinitialize", "--update-path", "auto", tree)
    assert command(*arguments).returncode == 0
    before = digest(tree)
    assert command(*arguments).stdout.splitlines()[1] == f"Already up-to-date: {tree} ({tree})"
    assert digest(tree) == before


def test_to_another_place_and_back(tiny: Built, place: Path) -> None:
    """The manifest is used each time, and what it says stays provable."""
    tree = unpack_by_tar(tiny.archive, place / "tree")
    relocate(tree)  # which gives data files the time of the build
    relocate(tree, tiny.made.old_prefix)
    before = digest(tree, times="files")
    plant(tree, tiny.made.old_prefix)
    for new in ("/srv/one", "/srv/another/place", tree, "/srv/one", tiny.made.old_prefix):
        assert relocate(tree, new).changed
        assert unlisted(tree) == [PLANTED]
        assert is_planted(tree, tiny.made.old_prefix)
        if new != tiny.made.old_prefix:
            assert naming(tree, tiny.made.old_prefix) == [PLANTED]
    os.unlink(f"{tree}/{PLANTED}")
    after = digest(tree, times="files")
    left = {path for path in differences(before, after) if not path.startswith(".relocation")}
    assert left == set()


@pytest.mark.slow
def test_what_is_installed_later_is_found(shop: Shop, place: Path) -> None:
    """By pip, whose bytecode and scripts name where it stood then: all is searched again."""
    built = shop.built("venv-3.11")
    wheel = packages.wheel(place / "wheels", "later", scripts=("later",))
    tree = unpack_by_tar(built.archive, place / "tree")
    relocate(tree)
    plant(tree, tree)
    moved = replace(built.made, path=tree)
    moved.run("-m", "pip", "install", "-q", "--no-index", "--no-deps", str(wheel))
    new = str(place / "a" / "new" / "place")
    os.makedirs(os.path.dirname(new))
    os.rename(tree, new)
    assert relocate(new).changed
    assert naming(new, tree) == []
    assert is_planted(new, new)
    assert checks.run_script(new, "later") == "later 1.0\n"
    assert {path for path, _ in deviations(new)} >= {"bin/later", PLANTED}


def test_the_full_search_keeps_account_too(tiny: Built, place: Path) -> None:
    """What it rewrites is no deviation, and its old content is kept for later releases."""
    tree = unpack_by_tar(tiny.archive, place / "tree")
    os.utime(f"{tree}/bin")  # as any install does
    assert relocate(tree).changed
    assert naming(tree, tiny.made.old_prefix) == []
    ledger = json.loads(Path(tree, bundles.LEDGER).read_text())
    rows = manifest_of(tiny.archive).by_path
    rewritten = {path for path, now in ledger.items() if now.startswith("sha256:")}
    lost = {p for p in rewritten if not os.path.exists(f"{tree}/{originals(rows[p].sha256)}")}
    assert (unlisted(tree), lost) == ([], set())


def originals(digest_: str) -> str:
    """Where the old content of a file is kept."""
    return f".relocation/originals/{digest_}"


def test_what_is_removed_later_is_no_obstacle(shop: Shop, place: Path) -> None:
    """A listed file may be gone."""
    built = shop.built("uv-3.12")
    tree = unpack_by_tar(built.archive, place / "tree")
    relocate(tree)
    executable = replace(built.made, path=tree).executable
    environments.uv("pip", "uninstall", "-q", "-p", executable, "pyflakes", "omega")
    assert relocate(tree, "/srv/elsewhere").changed
    assert naming(tree, tree) == []
    assert ("bin/omega", "it is in the manifest, but not on disk") in deviations(tree)


def kill_in_between(built: Built, directory: Path, every: int) -> int:
    """Kill the two runs after each step, let them run again; return how many steps there were."""
    other = another_python(built)
    source = unpack_by_tar(built.archive, directory / "source")

    def work(tree: str) -> None:
        reinitialize(tree, other)
        relocate(tree, "/srv/app/4f2a9c1")

    whole = cp(source, directory / "whole")
    work(whole)
    assert unlisted(whole) == []
    expected = digest(whole, times="files")
    for step in range(1, 10_000, every):
        tree = cp(source, directory / "tree")
        code = in_child(lambda tree=tree: work(tree), Steps(step))  # type: ignore[misc]
        work(tree)
        assert temporaries(tree) == [], f"after step {step}"
        assert unlisted(tree) == [], f"after step {step}"
        assert differences(expected, digest(tree, times="files")) == {}, f"after step {step}"
        shutil.rmtree(tree)
        if code == 0:
            return step
        assert code == 9
    raise AssertionError("it never ended")


def cp(source: str, target: Path) -> str:
    """A copy with all times, those of directories too."""
    subprocess.run(["cp", "-a", "--", source, str(target)], check=True)
    return str(target)


@pytest.mark.parametrize("every", [37, pytest.param(stride(5), id="more", marks=pytest.mark.slow)])
def test_killed_in_between(every: int, tiny: Built, place: Path, request: Any) -> None:
    """The same calls again make of it what an undisturbed run makes, ledger and all."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(workers, "ALONE", 1 << 30)
    assert kill_in_between(tiny, place, every) > 50


# --- a deep check ---------------------------------------------------------------------------------


def swap(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    make(path)


def retarget(path: Path, target: str) -> None:
    """Let a link lead elsewhere."""
    path.unlink()
    path.symlink_to(target)


def flip(path: Path) -> None:
    """Change one byte of a file, and neither its size nor its time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


TXT = "etc/plain.txt"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a byte": (TXT, flip, "its content was changed"),
    "a byte of what was relocated": ("bin/omega", flip, "its content was changed"),
    "a byte at the end": (
        *(TXT, lambda path: path.write_text(path.read_text() + "x")),
        "its content was changed",
    ),
    "the mode": (TXT, lambda path: path.chmod(0o600), "its mode is 0600, and not 0644"),
    "the mode of what was relocated": (
        *("bin/omega", lambda path: path.chmod(0o4755)),
        "its mode is 4755, and not 0755",
    ),
    "the mode of a directory": (
        *("etc", lambda path: path.chmod(0o777)),
        "its mode is 0777, and not 0755",
    ),
    "removed": (TXT, lambda path: path.unlink(), "it is in the manifest, but not on disk"),
    "added": ("etc/new", lambda path: path.touch(), "it is not in the manifest: added after"),
    "an added directory": ("new", lambda path: path.mkdir(), "it is not in the manifest: added"),
    "an added link": (
        *("lib/new", lambda path: path.symlink_to("/etc")),
        "it is not in the manifest: added after it was packed",
    ),
    "a link": ("lib/etc", lambda path: retarget(path, "../bin"), "it points to ../bin, and not to"),
    "a file as a link": (
        *(TXT, lambda path: swap(path, lambda path: path.symlink_to("omega.conf"))),
        "it is no file any more",
    ),
    "a file as a directory": (
        *(TXT, lambda path: swap(path, Path.mkdir)),
        "it is no file any more",
    ),
    "a link as a file": (
        *("lib/etc", lambda path: swap(path, Path.touch)),
        "it is no link any more",
    ),
    "a pipe": (TXT, lambda path: swap(path, os.mkfifo), "it is no file any more"),
}


@pytest.fixture
def standing(tiny: Built, place: Path) -> str:
    """A release of the tiny virtualenv."""
    path = str(place / "srv" / "4f2a9c1")
    publish(tiny.archive, path, python=tiny.made.python)
    assert deviations(path) == []
    return path


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.few(3)
def test_a_deep_check_finds(what: str, standing: str) -> None:
    file, damage, reason = DAMAGES[what]
    damage(Path(standing, file))
    known = dict(deviations(standing))
    assert [path for path in known if path not in (file, "lib/omega.conf")] == []
    assert known[file].startswith(reason)
    done = command("--check", "--deep", standing)
    assert done.returncode == 1
    assert f"{standing}/{file}: {reason}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Cannot run: {standing} (")


def test_a_deep_check_finds_a_directory_swapped_for_a_link(standing: str) -> None:
    """Even where all that is behind the link is as it should be."""
    os.rename(f"{standing}/etc", f"{standing}/../elsewhere")
    os.symlink("../elsewhere", f"{standing}/etc")
    known = dict(deviations(standing))
    assert known["etc"] == "it is no directory any more"
    assert known[TXT] == "it is in the manifest, but not on disk"


def test_a_deep_check_finds_bytecode(tiny: Built, standing: str) -> None:
    """Whatever Python would take for code."""
    cache = Path(standing, site(tiny), "extra", "__pycache__")
    added = cache / f"broken.{tiny.tag}.pyc"
    shutil.copy(cache / f"fails.{tiny.tag}.pyc", added)
    flip(cache / f"never.{tiny.tag}.pyc")
    assert deviations(standing) == [
        (os.path.relpath(cache / f"never.{tiny.tag}.pyc", standing), "its content was changed"),
        (
            os.path.relpath(added, standing),
            "it is not in the manifest: added after it was packed",
        ),
    ]


@pytest.mark.parametrize("damage", ["a row", "cut", "empty", "no manifest", "its digest"])
def test_a_damaged_manifest(damage: str, standing: str) -> None:
    """It is told, and nothing that it says is believed."""
    file = Path(standing, bundles.MANIFEST)
    text = file.read_text()
    known = {
        "a row": text.replace(f'["{TXT}", "file", 420', f'["{TXT}", "file", 493'),
        "cut": text[: len(text) // 2],
        "empty": "",
        "no manifest": "{}\n",
        "its digest": text.replace('"sha256": "', '"sha256": "0', 1).replace('0",\n', '",\n', 1),
    }
    assert known[damage] != text
    file.write_text(known[damage])
    found = deviations(standing)
    assert [path for path, _ in found] == [bundles.MANIFEST], found


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "a list", "a value"])
def test_a_damaged_ledger(damage: str, standing: str) -> None:
    """What it accounted for is then not what the manifest says."""
    file = Path(standing, bundles.LEDGER)
    known = json.loads(file.read_text())
    assert "bin/omega" in known
    if damage == "removed":
        file.unlink()
    elif damage == "a value":
        file.write_text(json.dumps({**known, "bin/omega": "sha256:" + "0" * 64}))
    else:
        text = {"cut": file.read_text()[:-20], "emptied": "", "a list": "[]\n"}[damage]
        file.write_text(text)
    assert ("bin/omega", "its content was changed") in deviations(standing)


def test_a_deep_check_after_all_that_is_allowed(tiny: Built, standing: str, place: Path) -> None:
    """Another Python, another place, and back: nothing of that is a deviation."""
    other = another_python(tiny)
    reinitialize(standing, other)
    assert deviations(standing) == []
    assert judged(tiny, standing, other) == []
    elsewhere = str(place / "elsewhere")
    os.rename(standing, elsewhere)
    relocate(elsewhere)
    assert deviations(elsewhere) == []
    reinitialize(elsewhere, tiny.made.python)
    os.rename(elsewhere, standing)
    relocate(standing)
    assert deviations(standing) == []


# --- what cannot travel ---------------------------------------------------------------------------


def not_packed(
    tree: str | Environment,
    archive: Path,
    error: type[RelocateError],
    text: str,
    **options: Any,
) -> None:
    """It is refused in one sentence, and nothing is written or changed anywhere."""
    path = tree.path if isinstance(tree, Environment) else tree
    directory = os.path.realpath(archive.parent)
    before = digest(directory) if os.path.isdir(directory) else {}
    with pytest.raises(error, match=text) as caught:
        packed(path, archive, **options)
    assert one_sentence(caught.value), caught.value
    after = digest(directory) if os.path.isdir(directory) else {}
    changed = {p: c for p, c in differences(before, after).items() if c != ("mtime_ns",)}
    assert changed == {}


EDITABLES = {  # what installs a project beside the virtualenv, and what has to be left out then
    "a path": ("venv-3.11", Project("alpha", inside=False)),
    "a finder": ("venv-3.11", Project("beta", layout="mapped", inside=False)),
    "strict": ("venv-3.11", Project("gamma", mode="strict", inside=False)),
    "compat": ("venv-3.11", Project("delta", mode="compat", inside=False)),
    "develop": ("venv-3.11", Project("epsilon", mode="develop", inside=False)),
    "uv": ("uv", Project("alpha", inside=False)),
}
EXCLUDED = ["*.egg-link", "easy-install.pth", "__editable__*", "direct_url.json"]


@pytest.mark.parametrize(
    "how",
    [pytest.param(one, marks=() if one == "uv" else pytest.mark.slow) for one in EDITABLES],
)
def test_an_editable_install_from_outside(how: str, place: Path) -> None:
    """Its sources would not be there."""
    kind, project = EDITABLES[how]
    made = make(kind, place / "made", projects=(project,))
    out = place / "out"
    out.mkdir()
    not_packed(
        *(made, out / "one.tar.gz", CannotTravel),
        rf"/site-packages/\S+ refers to {made.outside}/{project.name}\S*, which is outside of it; "
        "install that without --editable, or exclude the file",
    )
    packed(made, out / "one.tar.gz", exclude=EXCLUDED)
    assert publish(str(out / "one.tar.gz"), str(place / "srv" / "one"), python=made.python).changed


def test_editable_installs_from_inside(shop: Shop) -> None:
    """They travel along, as their sources do."""
    warnings = shop.built("uv-3.12").packing.warnings
    assert [one for one in warnings if "in a home directory" not in one["reason"]] == []


def line_outside(tree: Path, sites: Path) -> str:
    """A line of a .pth file."""
    (sites / "paths.pth").write_text("/usr/share/outside\n")
    return "lib/python3.11/site-packages/paths.pth refers to /usr/share/outside, which is outside"


def absolute_link(tree: Path, sites: Path) -> str:
    """A link to somewhere else on this machine."""
    (tree / "etc" / "paths.pth").symlink_to("/etc/hosts")
    return "etc/paths.pth points to /etc/hosts, out of the virtualenv; remove the symlink"


def relative_link(tree: Path, sites: Path) -> str:
    """A link to beside the virtualenv."""
    (tree / "etc" / "paths.pth").symlink_to("../../beside")
    return r"etc/paths.pth points to \.\./\.\./beside, out of the virtualenv; remove the symlink"


def link_by_a_link(tree: Path, sites: Path) -> str:
    """A link that leads out by way of another one."""
    (tree / "etc" / "paths.pth").symlink_to("../lib/etc/../../beside")
    return r"etc/paths.pth points to \.\./lib/etc/\.\./\.\./beside, out of the virtualenv"


def link_in_a_circle(tree: Path, sites: Path) -> str:
    """A link to itself."""
    (tree / "etc" / "paths.pth").symlink_to("paths.pth")
    return "etc/paths.pth points in a circle; remove the symlink"


def pipe(tree: Path, sites: Path) -> str:
    """A named pipe."""
    os.mkfifo(tree / "etc" / "paths.pth")
    return "etc/paths.pth: it is a socket, pipe or device; remove it, or exclude it"


def unix_socket(tree: Path, sites: Path) -> str:
    """What a server has left."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "etc" / "paths.pth"))
    return "etc/paths.pth: it is a socket, pipe or device; remove it, or exclude it"


OUTSIDERS = (
    *(line_outside, absolute_link, relative_link, link_by_a_link, link_in_a_circle),
    *(pipe, unix_socket),
)


@pytest.mark.parametrize("add", OUTSIDERS, ids=lambda add: add.__name__)
@pytest.mark.few(4)
def test_what_leads_out(add: Callable[[Path, Path], str], tiny: Built, place: Path) -> None:
    """Refused by its name; left out, the rest is packed."""
    tree = copy(tiny.made.path, place / "tree")
    text = add(Path(tree), Path(tree, site(tiny)))
    (place / "out").mkdir()
    not_packed(tree, place / "out" / "one.tar.gz", CannotTravel, text)
    dry = {"dry_run": True}
    not_packed(tree, place / "out" / "one.tar.gz", CannotTravel, text, **dry)
    packed(tree, place / "out" / "one.tar.gz", exclude=["paths.pth"])
    assert not [p for p in members_of(place / "out" / "one.tar.gz") if p.endswith("paths.pth")]


def test_links_to_the_place_where_it_was_built_become_relative(tiny: Built) -> None:
    rows = manifest_of(tiny.archive).by_path
    assert rows["lib/omega.conf"].target == "../etc/omega.conf"
    assert rows["lib/etc"].target == "../etc"
    assert rows["bin/python"].target.startswith("/")


# --- what may not work elsewhere ------------------------------------------------------------------


def test_warnings(tiny: Built, place: Path) -> None:
    """What may not work on another machine is packed, and told."""
    tree = copy(tiny.made.path, place / "tree")
    config = Path(tree, "pyvenv.cfg")
    config.write_text(
        config.read_text().replace(
            "include-system-site-packages = false", "include-system-site-packages = true"
        )
    )
    with zipfile.ZipFile(f"{tree}/etc/data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("place.txt", f"{tiny.made.old_prefix}/etc\n" * 10)
    home = Path(tree, "bin", "python")
    target = os.path.expanduser("~/python3.11")
    home.unlink()
    os.symlink(tiny.made.python, home)
    packing = packed(tree, place / "one.tar.gz")
    known = {one["file"]: one["reason"] for one in packing.warnings}
    assert "sees the base Python's packages" in known.pop("pyvenv.cfg")
    assert "refers to the place where it was built" in known.pop("etc/data.zip")
    if tiny.made.python.startswith(("/home/", os.path.dirname(target) + "/")):
        assert "in a home directory: reinitialize it there" in known.pop("bin/python")
    assert known == {}
    assert [path for path, _ in manifest_of(place / "one.tar.gz").head["uneditable"]] == [
        "etc/data.zip"
    ]
    done = publish(str(place / "one.tar.gz"), str(place / "srv" / "one"), python=tiny.made.python)
    assert [one["file"] for one in done.problems] == ["etc/data.zip"]


# --- options --------------------------------------------------------------------------------------


def test_a_prefix_of_ones_own(tiny: Built, place: Path) -> None:
    """Packed as if it had been built there; the tree is not touched, nothing is left beside it."""
    tree = copy(tiny.made.path, place / "beside" / "tree")
    before = digest(tree)
    packed(tree, place / "one.tar.gz", prefix="/srv/app/4f2a9c1")
    assert digest(tree) == before
    assert os.listdir(place / "beside") == ["tree"]
    head = manifest_of(place / "one.tar.gz").head
    assert head["prefix"] == "/srv/app/4f2a9c1"
    old = tiny.made.old_prefix.encode()
    assert [p for p, (_, data) in members_of(place / "one.tar.gz").items() if old in data] == []
    release = str(place / "srv" / "one")
    publish(str(place / "one.tar.gz"), release, python=tiny.made.python)
    assert naming(release, "/srv/app/4f2a9c1") == []
    assert judged(tiny, release, tiny.made.python) == []
    packed(tiny.made, place / "same.tar.gz", prefix=tiny.made.old_prefix)
    assert (place / "same.tar.gz").read_bytes() == Path(tiny.archive).read_bytes()
    not_packed(tree, place / "two.tar.gz", InvalidPath, "absolute", prefix="srv/app")


def test_what_a_prefix_of_ones_own_leaves_is_reported(tiny: Built, place: Path) -> None:
    """A reference that cannot be edited refers to the build's path, which no server has."""
    tree = copy(tiny.made.path, place / "beside" / "tree")
    with gzip.open(f"{tree}/share.gz", "wb") as file:
        file.write(f"{tiny.made.old_prefix}/lib".encode() * 20)
    done = packed(tree, place / "one.tar.gz", prefix="/srv/app/4f2a9c1")
    assert {"file": "share.gz", "reason": "it is compressed"} in done.warnings


def test_patterns_that_are_left_out(tiny: Built, place: Path) -> None:
    """Of a path, or of a name; a directory goes with all that is in it."""
    packed(tiny.made, place / "one.tar.gz", exclude=["etc/*.txt", "extra", "omega-*.dist-info"])
    left = set(members_of(tiny.archive)) - set(members_of(place / "one.tar.gz"))
    assert {path for path in left if not path.startswith(f"{site(tiny)}/")} == {TXT}
    assert {path.split("/")[3].partition("-")[0] for path in left - {TXT}} == {"extra", "omega"}
    not_packed(
        *(tiny.made, place / "two.tar.gz", CannotTravel, "nobody would take it for a virtualenv"),
        exclude=["pyvenv.cfg", "activate"],
    )


def test_levels(tiny: Built, place: Path) -> None:
    sizes = [
        packed(tiny.made, place / f"{level}.tar.gz", level=level).packed_size for level in (1, 5, 9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    assert sizes[1] == tiny.packing.packed_size


REFUSED: dict[str, tuple[str, dict[str, Any], type[RelocateError], str]] = {
    "level 0": ("one.tar.gz", {"level": 0}, InvalidPath, "level of gzip is 1 to 9, not 0"),
    "level 10": ("one.tar.gz", {"level": 10}, InvalidPath, "level of gzip is 1 to 9, not 10"),
    "level 20": ("one.tar.zst", {"level": 20}, InvalidPath, "level of zstd is 1 to 19, not 20"),
    "level of tar": ("one.tar", {"level": 6}, InvalidPath, "no compression level"),
    "bytecode": (
        *("one.tar.gz", {"bytecode": "magic"}, InvalidPath),
        "bytecode must be one of timestamp, checked-hash, unchecked-hash: magic",
    ),
    "build metadata": (
        "one.tar.gz",
        {"build_metadata": {"a": 1}},
        InvalidPath,
        "build_metadata must be at most 100 names",
    ),
    "much build metadata": (
        *("one.tar.gz", {"build_metadata": {str(n): "" for n in range(101)}}, InvalidPath),
        "build_metadata must be at most 100 names",
    ),
    "ending": ("one.zip", {}, InvalidPath, "ends in none of .tar"),
    "no directory": ("no/one.tar.gz", {}, InvalidPath, "there is no directory .*/no to write"),
    "a directory": (
        "out.tar.gz",
        {},
        InvalidPath,
        "out.tar.gz is a directory: name a file to write",
    ),
    "inside": ("tree/one.tar.gz", {}, InvalidPath, "is inside of what it would pack"),
    "inside, by a link": ("link/one.tar.gz", {}, InvalidPath, "is inside of what it would pack"),
    "no base": (
        *("one.tar.gz", {"delta_from": "/nonexistent.tar.gz"}, BadArchive),
        "cannot read /nonexistent.tar.gz: no such file",
    ),
    "a base that is no bundle": (
        *("one.tar.gz", {"delta_from": "/etc/hostname"}, BadArchive, "cannot read /etc/hostname: "),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_values(what: str, tiny: Built, place: Path) -> None:
    name, options, error, text = REFUSED[what]
    tree = copy(tiny.made.path, place / "tree")
    (place / "out.tar.gz").mkdir()
    (place / "link").symlink_to("tree/etc")
    not_packed(tree, place / name, error, text, **options)
    assert digest(tree) == digest(tiny.made.path)


def test_no_virtualenv(place: Path) -> None:
    for name in ("nothing", "empty", "half"):
        (place / "half" / "bin").mkdir(parents=True, exist_ok=True)
        (place / "empty").mkdir(exist_ok=True)
        (place / "out").mkdir(exist_ok=True)
        not_packed(
            *(str(place / name), place / "out" / "one.tar.gz", NotAVirtualenv),
            "is not a virtualenv: not a",
        )


@needs_root
def test_a_directory_that_cannot_be_written_to(tiny: Built, place: Path) -> None:
    """By another user, as root may write anywhere."""
    os.chmod(place.parent, 0o755)
    archive = str(place / "one.tar.gz")
    code = (
        "import os, sys; from relocate_core import pack, errors\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try: pack(*sys.argv[1:])\n"
        "except errors.RelocateError as error: print(error)"
    )
    made = make("venv-3.11", place / "made")
    if not made.python.startswith("/usr/"):
        pytest.skip("no interpreter here may be run by everybody")
    done = subprocess.run(
        [sys.executable, "-c",
         f"import relocate_core.bundles.pack, relocate_core.system.locks\n{code}",
         made.path, archive],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "permission denied" in done.stdout
    assert os.listdir(place) == ["made"]


@pytest.mark.slow
def test_a_failure_leaves_the_archive_before(tiny: Built, place: Path) -> None:
    """Killed or full, the one that stood there stands, with its digest; the next run cleans up."""
    archive = place / "one.tar.gz"
    packed(tiny.made, archive)
    before = archive.read_bytes()
    tree = copy(tiny.made.path, place / "tree")
    Path(tree, TXT).write_text("another\n")
    finished = False
    for step in range(1, 200, 4):
        code = in_child(lambda: packed(tree, archive), Steps(step))
        data = archive.read_bytes()
        beside = (place / "one.tar.gz.sha256").read_text().split()[0]
        if data != before:
            assert hashlib.sha256(data).hexdigest() == beside
        packed(tiny.made, archive)
        assert archive.read_bytes() == before
        assert sorted(os.listdir(place)) == ["one.tar.gz", "one.tar.gz.sha256", "tree"]
        finished = code == 0
        if finished:
            break
        assert code == 9
    assert finished
    assert step > 8


# --- delta bundles --------------------------------------------------------------------------------


def write(tree: Path, path: str, text: str) -> None:
    """Write a file of a virtualenv again."""
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_text(text)


def directory_and_back(tree: Path) -> None:
    """A file becomes a directory, and a directory a file."""
    (tree / TXT).unlink()
    write(tree, f"{TXT}/inner/{'x' * 120}", "deep\n")
    shutil.rmtree(tree / "lib/directory")
    write(tree, "lib/directory", "a file now\n")


def links(tree: Path) -> None:
    """A link becomes a file, a file a link, and a link leads elsewhere."""
    swap(tree / "lib/etc", lambda path: path.write_text("a file now\n"))
    swap(tree / TXT, lambda path: path.symlink_to("omega.conf"))
    retarget(tree / "lib/other", "../bin")


def moved_reference(tree: Path) -> None:
    """A script that is relocated gets another name: the earlier release has its old content."""
    os.rename(tree / "bin/omega", tree / "bin/omega2")
    (tree / "bin/omega3").write_bytes((tree / "bin/omega2").read_bytes())
    (tree / "bin/omega3").chmod(0o755)


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda tree: write(tree, TXT, "another\n"),
    "changed source": lambda tree: next(tree.glob("lib/*/site-packages/extra/never.py")).write_text(
        "VALUE = 2\n"
    ),
    "changed reference": lambda tree: write(tree, "etc/omega.conf", "[omega]\nnothing = 1\n"),
    "added": lambda tree: write(tree, "etc/a/b/c.txt", "new\n"),
    "removed": lambda tree: shutil.rmtree(tree / "lib/directory"),
    "removed reference": lambda tree: (tree / "bin/omega").unlink(),
    "moved": lambda tree: os.rename(tree / TXT, tree / "lib/directory/moved.txt"),
    "moved reference": moved_reference,
    "mode": lambda tree: (tree / TXT).chmod(0o755),
    "mode of a directory": lambda tree: (tree / "lib/directory").chmod(0o700),
    "mode of a reference": lambda tree: (tree / "bin/omega").chmod(0o700),
    "directory and back": directory_and_back,
    "links": links,
}


def everything_at_once(tree: Path) -> None:
    """As the next build of an application."""
    CHANGES["changed source"](tree)
    CHANGES["added"](tree)
    moved_reference(tree)
    directory_and_back(tree)
    retarget(tree / "lib/other", "../bin")
    write(tree, "etc/omega.conf", "[omega]\nnothing = 1\n")


CHANGES["all"] = everything_at_once


@dataclass
class Chain:
    """Versions of one virtualenv, and a root for them."""

    directory: Path
    python: str
    trees: list[str]
    archives: list[str]

    @property
    def root(self) -> str:
        """Where the releases are."""
        return str(self.directory / "srv")

    def path(self, name: str) -> str:
        """A release's path."""
        return f"{self.root}/{name}"

    def next(self, change: Callable[[Path], object]) -> str:
        """Change the newest tree, pack it in full and as a delta bundle; the path of that."""
        tree = Path(copy(self.trees[-1], self.directory / f"tree{len(self.trees)}"))
        change(tree)
        full = str(self.directory / f"{len(self.trees)}.tar.gz")
        part = str(self.directory / f"{len(self.trees)}.part.tar.gz")
        self.packing = packed(str(tree), full)
        self.part = packed(str(tree), part, delta_from=self.archives[-1])
        self.trees.append(str(tree))
        self.archives.append(full)
        return part

    def publish(self, archive: str, name: str, **options: Any) -> Any:
        """Deploy an archive."""
        return publish(archive, self.path(name), python=self.python, **options)

    def expected(self, name: str, **options: Any) -> dict[str, environments.Fingerprint]:
        """What the newest full bundle makes of a release of that name."""
        path = self.path(name)
        assert not os.path.exists(self.root)
        self.publish(self.archives[-1], name, **options)
        found = facts(path)
        shutil.rmtree(self.root)
        return found


def facts(release: str) -> dict[str, environments.Fingerprint]:
    """All of a release but what tells when and out of what it was deployed."""
    found = digest(release)
    for path in (".", RECORD, ".relocation", ".relocation/originals"):
        found.pop(path, None)
    for path, one in list(found.items()):  # nobody looks at a link's time; the others are new
        if one.type == "link" or path.startswith(".relocation/"):
            found[path] = one._replace(mtime_ns=0)
    return found


def assert_same(expected: dict[str, environments.Fingerprint], release: str, links: bool) -> None:
    """A release is as it should be, file by file.

    A second link has the time of the first one; only that of a source matters.
    """
    found = differences(expected, facts(release))
    if links:
        found = {p: n for p, n in found.items() if p.endswith(".py") or n != ("mtime_ns",)}
    assert found == {}


@pytest.fixture
def chain(tiny: Built, place: Path) -> Chain:
    """The first version."""
    tree = copy(tiny.made.path, place / "tree0")
    for number in range(40):
        write(Path(tree), f"lib/directory/{number:02}.txt", f"{number}\n" * 1000)
    os.symlink("directory", f"{tree}/lib/other")
    archive = str(place / "0.tar.gz")
    packed(tree, archive)
    return Chain(place, tiny.made.python, [tree], [archive])


@pytest.mark.parametrize("links", [False, True], ids=["copies", "hard links"])
@pytest.mark.parametrize(
    "change", [pytest.param(o, marks=() if o == "all" else pytest.mark.slow) for o in CHANGES]
)
@pytest.mark.few(1)
def test_a_delta_bundle(change: str, links: bool, chain: Chain) -> None:
    """File by file what the full one makes of it; the earlier release is not touched."""
    part = chain.next(CHANGES[change])
    expected = chain.expected("two")
    chain.publish(chain.archives[0], "one")
    before = facts(chain.path("one"))
    done = chain.publish(part, "two", hard_links=links)
    assert done.changed
    assert done.reused == sum(
        row.kind == "file" for row in manifest_of(chain.archives[-1]).rows
    ) - sum(path[0] != "." and m.isreg() for path, (m, _) in members_of(part).items())
    assert_same(expected, chain.path("two"), links)
    assert differences(before, facts(chain.path("one"))) == {}
    for name in ("one", "two"):
        assert unlisted(chain.path(name)) == []
        assert environments.run(f"{chain.path(name)}/bin/python", "-B", "-c", "import omega") == ""
    assert left_behind(chain.root) == []


def test_what_a_part_holds(chain: Chain) -> None:
    """What is new, by content, and no more; the manifest tells the rest."""
    part = chain.next(everything_at_once)
    packing = chain.part
    carried = [p for p, (m, _) in members_of(part).items() if m.isreg() and p[0] != "."]
    assert packing.carried == len(carried)
    assert {path.rpartition("/")[2] for path in carried} == {
        *("never.py", f"never.{tag_of(chain.python)}.pyc", "c.txt", "x" * 120, "directory"),
        "omega.conf",
    }
    assert packing.packed_size < chain.packing.packed_size / 4
    base, full, delta = map(manifest_of, (chain.archives[0], chain.archives[1], part))
    assert packing.base == delta.head["base"]["manifest"] == base.sha256
    assert packing.manifest == delta.head["base"]["result"] == full.sha256
    assert set(delta.head["base"]["removed"]) == {*base.by_path} - {*full.by_path}
    again = packed(chain.trees[-1], chain.directory / "again.tar.gz", delta_from=chain.archives[0])
    assert again.sha256 == packing.sha256


def tag_of(python: str) -> str:
    """What the names of a Python's bytecode have in them."""
    return environments.run(python, "-c", "import sys; print(sys.implementation.cache_tag)").strip()


@pytest.mark.slow
@pytest.mark.parametrize("links", [False, True], ids=["copies", "hard links"])
@pytest.mark.few(1)
def test_a_chain_of_three(links: bool, chain: Chain) -> None:
    """Each from the one before, which may itself have been a delta bundle."""
    first = chain.next(everything_at_once)
    second = chain.next(
        lambda tree: (write(tree, TXT + "2", "x\n"), retarget(tree / "lib/other", ".."))
    )
    third = chain.next(lambda tree: os.rename(tree / "bin/omega2", tree / "bin/omega"))
    expected = chain.expected("four")
    chain.publish(chain.archives[0], "one")
    for part, name in ((first, "two"), (second, "three"), (third, "four")):
        chain.publish(part, name, hard_links=links)
        activate(chain.path(name))
    assert_same(expected, chain.path("four"), links)
    for name in ("one", "two", "three", "four"):
        assert deviations(chain.path(name)) == []


def inodes(release: str) -> dict[str, int]:
    """The files of a release by path."""
    return {
        os.path.relpath(path, release): os.lstat(path).st_ino
        for directory, directories, names in os.walk(release)
        for name in names
        if not os.path.islink(path := os.path.join(directory, name)) and ".relocation" not in path
    }


@pytest.mark.parametrize("what", ["part", "full"])
@pytest.mark.parametrize("links", [False, True], ids=["copies", "hard links"])
@pytest.mark.few(1)
def test_who_shares_files(what: str, links: bool, chain: Chain) -> None:
    """With hard links all that neither changed nor was relocated; without, nothing."""
    part = chain.next(CHANGES["changed"])
    chain.publish(chain.archives[0], "one")
    archive = part if what == "part" else chain.archives[1]
    done = chain.publish(archive, "two", hard_links=links)
    one, two = inodes(chain.path("one")), inodes(chain.path("two"))
    shared = {path for path in two if one.get(path) == two[path]}
    ledger = json.loads(Path(chain.path("two"), bundles.LEDGER).read_text())
    own = {TXT, RECORD, *ledger}
    assert shared == ({path for path in two if path not in own} if links else set())
    if links:
        assert done.reused >= len(shared)
    # What was relocated is the one's own: both name themselves.
    for name in ("one", "two"):
        assert checks.run_script(chain.path(name), "omega").splitlines()[1] == chain.path(name)
    shutil.rmtree(chain.path("one"))
    assert deviations(chain.path("two")) == []


@needs_root
def test_hard_links_for_another_owner(chain: Chain) -> None:
    """For somebody else all is copied; the first one stays as it is."""
    part = chain.next(CHANGES["changed"])
    owner = {"owner": (NOBODY, NOBODY)}
    expected = chain.expected("two", **owner)
    assert {found.owner for path, found in expected.items()} == {(NOBODY, NOBODY)}
    chain.publish(chain.archives[0], "one")
    before = facts(chain.path("one"))
    chain.publish(part, "two", hard_links=True, **owner)
    assert differences(expected, facts(chain.path("two"))) == {}
    assert differences(before, facts(chain.path("one"))) == {}
    one, two = inodes(chain.path("one")), inodes(chain.path("two"))
    assert not set(one.values()) & set(two.values())


@needs_root
def test_owners_that_differ(chain: Chain) -> None:
    """The earlier one is nobody's, the new one root's: nothing is shared that nobody may write."""
    part = chain.next(CHANGES["changed"])
    expected = chain.expected("two")
    chain.publish(chain.archives[0], "one", owner=(NOBODY, NOBODY))
    chain.publish(part, "two", hard_links=True)
    assert differences(expected, facts(chain.path("two"))) == {}
    one, two = inodes(chain.path("one")), inodes(chain.path("two"))
    assert not set(one.values()) & set(two.values())


KEPT = "lib/directory/07.txt"
TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda tree: flip(tree / KEPT), f"{KEPT} was changed"),
    "size": (lambda tree: write(tree, KEPT, "x"), f"{KEPT} has another size"),
    "removed": (lambda tree: (tree / KEPT).unlink(), f"{KEPT} is not there any more"),
    "a link": (
        lambda tree: (os.rename(tree / KEPT, tree / "etc/x"), (tree / KEPT).symlink_to("/etc/x")),
        f"{KEPT} is a symlink now",
    ),
    "its directory a link": (
        lambda tree: (
            os.rename(tree / "lib/directory", tree / "lib/directory2"),
            (tree / "lib/directory").symlink_to("directory2"),
        ),
        "lib/directory/00.txt is",
    ),
    "a directory": (lambda tree: swap(tree / KEPT, Path.mkdir), f"{KEPT} "),
    "a pipe": (lambda tree: swap(tree / KEPT, os.mkfifo), f"{KEPT} "),
    "its directory gone": (
        lambda tree: shutil.rmtree(tree / "lib/directory"),
        "is not there any more",
    ),
    "an original": (
        lambda tree: shutil.rmtree(tree / ".relocation/originals"),
        "is not there any more",
    ),
    "a row of the manifest": (
        lambda tree: write(
            *(tree, bundles.MANIFEST),
            (tree / bundles.MANIFEST).read_text().replace('07.txt", "file"', '08.txt", "file"'),
        ),
        "is not as it was deployed: its manifest does not have the digest in its first line",
    ),
    "no manifest": (
        lambda tree: (tree / bundles.MANIFEST).unlink(),
        "is not as it was deployed: its manifest is missing; deploy the full bundle",
    ),
}


@pytest.mark.parametrize("links", [False, True], ids=["copies", "hard links"])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(one, marks=() if one in ("content", "a link") else pytest.mark.slow)
        for one in TAMPERED
    ],
)
@pytest.mark.few(1)
def test_an_earlier_one_that_was_changed(how: str, links: bool, chain: Chain) -> None:
    """Nothing of it becomes a part of a new release."""
    tamper, text = TAMPERED[how]
    part = chain.next(CHANGES["changed"])
    chain.publish(chain.archives[0], "one")
    tamper(Path(chain.path("one")))
    site_ = SimpleNamespace(root=chain.root)
    refused(
        lambda: chain.publish(part, "two", hard_links=links),
        *(NoBase, text),
        site_,  # type: ignore[arg-type]
    )
    assert not os.path.exists(chain.path("two"))
    assert left_behind(chain.root) == []
    assert chain.publish(chain.archives[1], "two", hard_links=links).changed
    assert deviations(chain.path("two")) == []


def test_an_earlier_manifest_that_lies(chain: Chain) -> None:
    """Whoever edits the manifest of a release decides nothing about the next one."""
    chain.next(lambda tree: flip(tree / KEPT))
    old, new = (manifest_of(archive).by_path[KEPT].sha256 for archive in chain.archives)
    chain.publish(chain.archives[0], "one")
    file = Path(chain.path("one"), bundles.MANIFEST)
    file.write_text(file.read_text().replace(old, new))
    chain.publish(chain.archives[1], "two", hard_links=True)
    assert unlisted(chain.path("two")) == []


@pytest.mark.slow
def test_an_earlier_one_that_was_repaired_serves_still(
    tiny: Built, chain: Chain, place: Path
) -> None:
    """Put onto another Python, relocated elsewhere and back: its old contents are kept."""
    other = another_python(tiny)
    part = chain.next(everything_at_once)
    expected = chain.expected("two")
    chain.publish(chain.archives[0], "one")
    reinitialize(chain.path("one"), other)
    relocate(chain.path("one"), "/srv/elsewhere")
    relocate(chain.path("one"))
    reinitialize(chain.path("one"), tiny.made.python)
    reinitialize(chain.path("one"), other)
    for links in (False, True):
        chain.publish(part, "two", hard_links=links)
        assert_same(expected, chain.path("two"), links)
        assert deviations(chain.path("one")) == []
        shutil.rmtree(chain.path("two"))


def test_touched_but_not_changed(chain: Chain) -> None:
    """What the kernel saw a change of is hashed, and taken if it is the same."""
    part = chain.next(CHANGES["changed"])
    expected = chain.expected("two")
    chain.publish(chain.archives[0], "one")
    Path(chain.path("one"), KEPT).touch()
    Path(chain.path("one"), "lib/directory/08.txt").chmod(0o600)
    chain.publish(part, "two")
    assert differences(expected, facts(chain.path("two"))) == {}


def test_touched_and_linked(tiny: Built, chain: Chain) -> None:
    """A second link has the times of the first: a source's decides about its bytecode."""
    part = chain.next(CHANGES["changed"])
    chain.publish(chain.archives[0], "one")
    source = f"{site(tiny)}/extra/never.py"
    Path(chain.path("one"), source).touch()
    chain.publish(part, "two", hard_links=True)
    assert int(os.stat(f"{chain.path('two')}/{source}").st_mtime) == bundles.FIXED_TIME
    assert judged(tiny, chain.path("two"), chain.python) == []


def test_without_the_earlier_one(chain: Chain) -> None:
    part = chain.next(CHANGES["changed"])
    with pytest.raises(NoBase, match="made from is not here: deploy the full bundle"):
        chain.publish(part, "two")
    assert not os.path.exists(chain.path("two"))
    unrelated = chain.next(CHANGES["added"])
    chain.publish(chain.archives[0], "one")
    refused(
        lambda: chain.publish(unrelated, "three"),
        *(NoBase, "deploy the full bundle"),
        SimpleNamespace(root=chain.root),  # type: ignore[arg-type]
    )


def test_delta_bundles_are_packed_in_the_same_pass(chain: Chain) -> None:
    apart = chain.next(lambda tree: write(tree, "lib/directory/07.txt", "seven\n"))
    tree, base = chain.trees[-1], chain.archives[0]
    same = str(chain.directory / "same.tar.gz")
    shutil.copy(chain.archives[-1], same)
    steps: list[str] = []
    archive = str(chain.directory / "both.tar.gz")
    full, *deltas = pack_with_deltas(
        tree, archive, [base, same, archive], notify=lambda step, _: steps.append(step)
    )
    assert steps.count("looked") == 1
    assert steps.count("packed") == 2
    assert [one.archive for one in deltas] == [str(chain.directory / "both.from-0.tar.gz")]
    assert (deltas[0].carried, full.carried > 40) == (1, True)
    for one, alone, known in (
        (full, chain.archives[-1], chain.packing),
        (*deltas, apart, chain.part),
    ):
        assert Path(one.archive).read_bytes() == Path(alone).read_bytes()
        assert Path(f"{one.archive}.sha256").exists()
        wanted = replace(known, archive=one.archive)
        assert one == wanted
    assert not list(chain.directory.glob(".*packing*"))


def test_an_unreadable_base_leaves_the_full_bundle_and_the_others(chain: Chain) -> None:
    chain.next(lambda tree: write(tree, "lib/directory/07.txt", "seven\n"))
    bad = chain.directory / "bad.tar.gz"
    bad.write_bytes(Path(chain.archives[0]).read_bytes()[:99])
    archive = str(chain.directory / "both.tar.gz")
    with pytest.raises(BadArchive, match=r"bad\.tar\.gz"):
        pack_with_deltas(chain.trees[-1], archive, [str(bad), chain.archives[0]])
    made = sorted(one.name for one in chain.directory.glob("both*.gz"))
    assert made == ["both.from-0.tar.gz", "both.tar.gz"]
    assert Path(archive).read_bytes() == Path(chain.archives[-1]).read_bytes()


def test_a_delta_bundle_from_what_is_no_base(chain: Chain) -> None:
    part = chain.next(CHANGES["changed"])
    out = chain.directory / "out"
    out.mkdir()
    not_packed(
        *(
            chain.trees[-1],
            out / "x.tar.gz",
            BadArchive,
            "it is a delta bundle itself",
        ),
        delta_from=part,
    )
    not_packed(
        *(chain.trees[-1], out / "x.tar.gz", InvalidPath, "nothing differs between them"),
        delta_from=chain.archives[-1],
    )
    cut = out / "cut.tar.gz"
    cut.write_bytes(Path(chain.archives[0]).read_bytes()[:2000])
    not_packed(chain.trees[-1], out / "x.tar.gz", BadArchive, "cannot read", delta_from=str(cut))


# --- not for this machine -------------------------------------------------------------------------

STRANGE: dict[str, tuple[dict[str, Any], type[RelocateError], str]] = {
    "version": ({"python": "3.4"}, InterpreterNotFound, r"needs Python 3\.4, and none was found"),
    "implementation": (
        *({"implementation": "pypy"}, InterpreterNotFound),
        r"needs PyPy 3\.11, and none was found",
    ),
    "machine": (
        *({"machine": "s390x"}, InterpreterMismatch),
        "its compiled files are for s390x, and this machine is ",
    ),
    "libc": (
        *({"libc": "musl", "libc_version": "", "machine": ""}, InterpreterMismatch),
        "its compiled files are for musl, and .* runs with glibc",
    ),
    "glibc": (
        *({"libc": "glibc", "libc_version": "99.0"}, InterpreterMismatch),
        r"its compiled files need glibc 99\.0, and this machine has 2\.\d+; build it on the oldest",
    ),
    "ABI": (
        *({"compiled": [[[".cpython-311d-x86_64-linux-gnu.so"], "some.module"]]},),
        *(InterpreterMismatch, "these compiled modules would not load: some.module"),
    ),
}


@pytest.mark.parametrize(
    "named", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["found", "named"]
)
@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.few(3)
def test_not_for_this_machine(what: str, named: bool, tiny: Built, place: Path) -> None:
    """Refused in one sentence, before anything of it was unpacked."""
    changes, error, text = STRANGE[what]
    if named and error is InterpreterNotFound:
        error, text = InterpreterMismatch, "the virtualenv is for (Python 3.4|PyPy 3.11)"
    archive = reheaded(tiny.archive, place / "strange.tar", **changes)
    # Nothing but the beginning is there, so nobody can have read on.
    cut = str(place / "cut.tar")
    with tarfile.open(archive) as strange:
        second = strange.getmembers()[2].offset
    Path(cut).write_bytes(Path(archive).read_bytes()[:second])
    publish(tiny.archive, str(place / "srv" / "one"), python=tiny.made.python)
    told: list[str] = []
    for one in (archive, cut):
        refused(
            lambda one=one: publish(  # type: ignore[misc]
                *(one, str(place / "srv" / "two")),
                python=tiny.made.python if named else None,
                notify=lambda event, _: told.append(event),
            ),
            *(error, text),
            SimpleNamespace(root=str(place / "srv")),  # type: ignore[arg-type]
        )
    assert not {"unpacking", "unpacked"} & set(told)
    assert left_behind(str(place / "srv")) == []


def test_a_changed_head_that_fits(tiny: Built, place: Path) -> None:
    """The way the others are made is not what they are refused for."""
    archive = reheaded(tiny.archive, place / "same.tar", facts={"a": "b"}, libc_version="2.5")
    assert publish(archive, str(place / "srv" / "one"), python=tiny.made.python).changed


# --- the command ----------------------------------------------------------------------------------


def test_the_command(chain: Chain) -> None:
    tree, out = chain.trees[0], chain.directory / "out"
    out.mkdir()
    done = command("--pack", str(out / "one.tar.gz"), tree)
    assert (done.returncode, done.stderr) in ((0, ""), (0, home_warning(tree)))
    assert re.fullmatch(
        rf"Packed: {tree} \(\d+ members, \d+\.\d MB, as \d+\.\d [kM]B\)\n", done.stdout
    )
    assert (out / "one.tar.gz").read_bytes() == Path(chain.archives[0]).read_bytes()
    # From where it stands, to a relative name.
    done = command("--pack", "../out/two.tar.gz", cwd=tree)
    assert done.returncode == 0
    assert done.stdout.startswith("Packed: . (")
    assert (out / "two.tar.gz").read_bytes() == (out / "one.tar.gz").read_bytes()

    chain.next(everything_at_once)
    base = ("--delta-from", chain.archives[0])
    done = command("--pack", str(out / "part.tar.gz"), *base, chain.trees[1])
    assert re.search(r"\(\d+ members, 6 of them carried, ", done.stdout), done.stdout


def home_warning(tree: str) -> str:
    """What is told of an interpreter in a home directory."""
    target = os.readlink(f"{tree}/bin/python")
    return (
        f"warning: {tree}/bin/python: it points to {target}, in a home directory: reinitialize it "
        "there\n"
    )


def test_the_command_dry_and_in_json(chain: Chain) -> None:
    tree, archive = chain.trees[0], chain.directory / "out.tar.gz"
    done = command("--pack", str(archive), "--dry-run", tree)
    assert (done.returncode, done.stdout[: len(f"Would pack: {tree} (")]) == (
        *(0, f"Would pack: {tree} ("),
    )
    assert not archive.exists()
    foretold = json.loads(command("--pack", str(archive), "--dry-run", "--json", tree).stdout)
    assert (foretold["dry_run"], foretold["changed"], foretold["sha256"]) == (True, True, "")
    assert not archive.exists()
    done = command("--pack", str(archive), "--json", tree)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["action"] == "pack"
    assert answer["path"] == tree
    assert answer["archive"] == str(archive)
    assert answer["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    known = manifest_of(archive)
    assert (answer["manifest"], answer["files"]) == (known.sha256, len(known.rows))
    assert answer["references"] == len(known.head["references"])
    assert answer["base"] is None
    for key in ("files", "size", "carried", "references", "warnings"):
        assert key in foretold
    failed = command("--pack", str(chain.directory / "one.zip"), "--json", tree)
    assert failed.returncode == 1
    assert set(json.loads(failed.stdout)) == {"path", "error"}


def test_the_options_of_the_command(tiny: Built, place: Path) -> None:
    archive = str(place / "one.tar.gz")
    done = command(
        *("--pack", archive, "--exclude", TXT, "--exclude", "lib/etc", "--level", "1"),
        *("--bytecode", "checked-hash", "--prefix", "/srv/app/one", tiny.made.path),
    )
    assert done.returncode == 0, done
    there = members_of(archive)
    assert TXT not in there
    assert "lib/etc" not in there
    assert manifest_of(archive).head["prefix"] == "/srv/app/one"
    (pyc,) = (data for path, (_, data) in there.items() if path.endswith(f"/never.{tiny.tag}.pyc"))
    assert pyc[4:8] == b"\3\0\0\0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pack"],
        ["--pack", "x.tar.gz", "one", "two"],
        ["--pack", "x.tar.gz", "--bytecode", "magic"],
        ["--pack", "x.tar.gz", "--level", "high"],
        ["--info", "--delta-from", "x.tar.gz"],
        ["--info", "--exclude", "x"],
        ["--info", "--prefix", "/x"],
        ["--info", "--bytecode", "timestamp"],
        ["--info", "--level", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: virtualenv-tools")


def test_what_the_command_refuses(tiny: Built, place: Path) -> None:
    tree = copy(tiny.made.path, place / "tree")
    for arguments, text in (
        (["--level", "10"], "the compression level of gzip is 1 to 9, not 10\n"),
        (["--prefix", "srv"], "srv\n"),
        (["--delta-from", str(place / "none.tar.gz")], "name a bundle that can be read\n"),
    ):
        done = command("--pack", str(place / "one.tar.gz"), *arguments, tree)
        assert done.returncode == 1
        assert (done.stdout + done.stderr).endswith(text)
        assert len((done.stdout + done.stderr).splitlines()) == 1
    assert os.listdir(place) == ["tree"]


def test_interrupted(shop: Shop, place: Path) -> None:
    """Control-C in the middle leaves no archive, and nothing else."""
    built = shop.built("venv-3.11")
    process = subprocess.Popen(
        [*CLI, "--pack", str(place / "one.tar.gz"), "--bytecode", "checked-hash", built.made.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(PYTHONPATH=ROOT),
        start_new_session=True,
    )
    while process.poll() is None and not os.listdir(place):
        pass
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert process.returncode == 130
    assert errors.decode().splitlines() == ["interrupted: run the same again to finish"]
    assert os.listdir(place) == []


# --- the execution module -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of a minion that has synced."""
    pytest.importorskip("salt", reason="Salt does not run on this Python")
    import salt.config
    import salt.loader

    directory = tmp_path_factory.mktemp("minion")
    opts = salt.config.minion_config(None)
    opts.update(minions.masterless(directory, minions.file_root(directory / "root")))
    opts["grains"] = salt.loader.grains(opts)
    minions.sync(opts)
    return salt.loader.minion_mods(opts)


def test_the_function(functions: Any, chain: Chain) -> None:
    call = functions["virtualenv_tools.pack"]
    archive = chain.directory / "out.tar.gz"
    foretold = call(chain.trees[0], str(archive), test=True)
    assert (foretold["dry_run"], foretold["changed"]) == (True, True)
    assert not archive.exists()
    answer = call(
        chain.trees[0], str(archive), build_metadata={"commit": "4f2a9c1"}, exclude="paths.pth"
    )
    assert (answer["dry_run"], answer["changed"], answer["archive"]) == (
        *(False, True, str(archive)),
    )
    json.dumps(answer)
    known = manifest_of(archive)
    assert known.head["facts"] == {"commit": "4f2a9c1"}
    assert answer["manifest"] == known.sha256
    assert answer["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    chain.next(CHANGES["changed"])
    part = call(chain.trees[1], str(chain.directory / "part.tar.gz"), delta_from=chain.archives[0])
    assert (part["carried"], part["base"]) == (1, manifest_of(chain.archives[0]).sha256)
    path = f"{chain.root}/one"
    functions["virtualenv_tools.unpack"](str(archive), path, python=chain.python)
    assert functions["virtualenv_tools.check"](path, deep=True)["ok"] is True
    release = functions["virtualenv_tools.releases"](chain.root)
    assert "bundle" in str(release)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": "x"}, "level"),
        ({"level": True}, "level"),
        ({"level": 2.5}, "level"),
        ({"level": [6]}, "level"),
        ({"build_metadata": "x"}, "build_metadata must be"),
        ({"build_metadata": ["x"]}, "build_metadata must be"),
        ({"build_metadata": {"a": {}}}, "build_metadata must be"),
        ({"build_metadata": {1: "a"}}, "build_metadata must be"),
        ({"exclude": 5}, "exclude"),
        ({"exclude": [5]}, "exclude"),
        ({"exclude": {"a": 1}}, "exclude"),
        ({"bytecode": 1}, "bytecode must be one of"),
        ({"bytecode": None}, "bytecode must be one of"),
        ({"bytecode": ["timestamp"]}, "bytecode must be one of"),
        ({"prefix": "x"}, "absolute"),
        ({"prefix": 5}, "absolute"),
        ({"delta_from": "x.tar.gz"}, "delta_from must be absolute: x.tar.gz"),
        ({"delta_from": 5}, "delta_from must be absolute: 5"),
        ({"delta_from": ""}, "delta_from must be absolute"),
        ({"archive": "one.tar.gz"}, "the archive must be absolute: one.tar.gz"),
        ({"archive": None}, "the archive must be absolute: None"),
        ({"path": "tree"}, "the path of a virtualenv must be absolute: tree"),
    ],
    ids=str,
)
def test_what_the_function_refuses(
    options: dict[str, Any], text: str, functions: Any, tiny: Built, place: Path
) -> None:
    """In one sentence, as everything else; nothing is written."""
    from salt.exceptions import CommandExecutionError

    wanted = {"path": tiny.made.path, "archive": str(place / "one.tar.gz"), **options}
    with pytest.raises(CommandExecutionError, match=text) as caught:
        functions["virtualenv_tools.pack"](**wanted)
    assert "\n" not in str(caught.value)
    assert os.listdir(place) == []
