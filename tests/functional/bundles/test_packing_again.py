"""Packing with a cache: the same bytes as without one, whatever is in it or was killed."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relocate_core.bundles import blocks, index, members
from relocate_core.bundles.compiler import Job
from relocate_core.bundles.pack import pack, pack_with_deltas
from relocate_core.errors import InvalidPath, TreeError, UnsafeDirectory
from tests.support import packages, steps
from tests.support.environments import Environment, copy, make, uv
from tests.support.roots import needs_root


@pytest.fixture(autouse=True)
def _files_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files for known that were changed a moment ago; the tests wait for no clock."""
    monkeypatch.setattr(index, "_RACY", 0)


@pytest.fixture(autouse=True)
def _blocks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a small virtualenv have many, as a large one has."""
    for name in ("LARGE", "_LEAST", "_MOST"):
        monkeypatch.setattr(blocks, name, getattr(blocks, name) // 4)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtualenv without pip, with a package of many files, and one of a few."""
    directory = tmp_path_factory.mktemp("built")
    made = make("uv", directory / "app", packages=("markupsafe",))
    many = {f"many/sub{at // 20}/file{at}.txt": f"{at}\n" * 3000 for at in range(200)}
    many |= {f"many/module{at}.py": f"value = {at}\n" for at in range(20)}
    for one in (packages.wheel(directory, "many", files=many), packages.wheel(directory, "few")):
        uv("pip", "install", "-q", "--no-index", "--no-deps", "-p", made.executable, str(one))
    compile_all = "import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=1)"
    made.run("-c", compile_all, os.path.join(made.site_packages, "many"))
    return made


class Place:
    """A copy of it, where it is packed again and again."""

    def __init__(self, built: Environment, directory: Path) -> None:
        self.directory = directory
        self.tree = Path(copy(built.path, directory / "app"))
        self.cache = directory / "cache"
        self.count = 0

    def packed(self, form: str = ".tar.gz", cache: bool = True, **options: Any) -> bytes:
        """What the archive has."""
        self.count += 1
        archive = self.directory / f"{self.count}{form}"
        pack(str(self.tree), str(archive), cache=str(self.cache) if cache else None, **options)
        return archive.read_bytes()

    def fresh(self, form: str = ".tar.gz", **options: Any) -> bytes:
        """What it has without a cache."""
        return self.packed(form, False, **options)

    def blocks(self) -> set[str]:
        return set(os.listdir(self.cache / "blocks"))

    def inodes(self) -> set[int]:
        return {block.stat().st_ino for block in (self.cache / "blocks").iterdir()}

    def site_packages(self) -> Path:
        (found,) = self.tree.glob("lib/python3.*/site-packages")
        return found


@pytest.fixture
def place(built: Environment, tmp_path: Path) -> Place:
    return Place(built, tmp_path)


@pytest.mark.parametrize("form", [".tar.gz", ".tar.zst", ".tar"])
def test_the_same_bytes(form: str, place: Place) -> None:
    whole = place.fresh(form)
    assert place.packed(form) == whole
    assert place.packed(form) == whole


def edited(place: Place) -> None:
    (place.site_packages() / "many/sub3/file61.txt").write_text("new\n")


def edited_at_the_same_time(place: Place) -> None:
    """As large as before, and with the time of before: the change shows in its ctime alone."""
    file = place.site_packages() / "many/sub3/file61.txt"
    status = file.stat()
    file.write_text(file.read_text().replace("61\n", "16\n"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size


def replaced_by_rename(place: Place) -> None:
    file = place.site_packages() / "many/sub3/file61.txt"
    new = file.with_name("new")
    new.write_text(file.read_text().replace("61\n", "16\n"))
    shutil.copystat(file, new)
    new.rename(file)


def a_source(place: Place) -> None:
    (place.site_packages() / "many/module7.py").write_text("value = 8\n")


def stale_bytecode(place: Place) -> None:
    (cached,) = (place.site_packages() / "many/__pycache__").glob("module7.*.pyc")
    cached.write_bytes(cached.read_bytes()[:-2])


def no_bytecode(place: Place) -> None:
    shutil.rmtree(place.site_packages() / "many/__pycache__")


def a_mode(place: Place) -> None:
    (place.site_packages() / "many/sub3/file61.txt").chmod(0o755)


def a_directory_mode(place: Place) -> None:
    (place.site_packages() / "many/sub3").chmod(0o700)


def removed(place: Place) -> None:
    shutil.rmtree(place.site_packages() / "many/sub3")


def added(place: Place) -> None:
    (place.site_packages() / "many/sub3/new.py").write_text("value = 'new'\n")


def does_not_compile(place: Place) -> None:
    (place.site_packages() / "many/module7.py").write_text("print 'new'\n")


def a_reference(place: Place) -> None:
    (place.site_packages() / "many/sub3/file61.txt").write_text(f"{place.tree}/bin/python\n")


def a_file_for_a_symlink(place: Place) -> None:
    file = place.site_packages() / "many/sub3/file61.txt"
    file.unlink()
    file.symlink_to("file62.txt")


CHANGES = (
    *(edited, edited_at_the_same_time, replaced_by_rename, a_source, stale_bytecode, no_bytecode),
    *(a_mode, a_directory_mode, removed, added, does_not_compile, a_reference),
    a_file_for_a_symlink,
)


@pytest.mark.few(4)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_packed(change: Callable[[Place], None], place: Place) -> None:
    before = place.packed()
    kept = place.blocks()
    change(place)
    after = place.packed()
    assert after == place.fresh()
    if change not in (stale_bytecode, no_bytecode):
        assert after != before
    assert len(place.blocks() - kept) <= 3, "the rest is taken from the cache"


@pytest.mark.slow
def test_changes_one_after_the_other(place: Place) -> None:
    order = list(CHANGES)
    random.Random(7).shuffle(order)
    for change in order:
        if not (place.site_packages() / "many/sub3/file61.txt").is_file():
            continue
        if (place.site_packages() / "many/__pycache__").is_dir():
            change(place)
        assert place.packed() == place.fresh(), change.__name__


def test_files_are_not_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = place.packed()
    monkeypatch.delattr(members.Members, "_read")
    assert place.packed() == whole


@pytest.mark.parametrize("mode", ["timestamp", "checked-hash"])
def test_bytecode_is_compiled_once(
    mode: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beside a source that has changed is taken from the block that was made before."""
    for cached in (place.site_packages() / "many").rglob("__pycache__"):
        shutil.rmtree(cached)
    jobs = members.Members._jobs
    asked: list[str] = []

    def noted(self: members.Members) -> Iterator[Job]:
        for job in jobs(self):
            asked.append(job.name.rpartition("/")[2])
            yield job

    monkeypatch.setattr(members.Members, "_jobs", noted)
    (place.site_packages() / "many/broken.py").write_text("def")
    place.packed(bytecode=mode)
    assert len(asked) > 20
    asked.clear()
    a_source(place)
    packed = place.packed(bytecode=mode)
    assert [name for name in asked if name != "broken.py"] == ["module7.py"]
    assert place.fresh(bytecode=mode) == packed
    asked.clear()
    assert place.packed(".tar.zst", bytecode=mode)
    assert set(asked) <= {"broken.py"}, "blocks of another form have it too"


@pytest.mark.parametrize("what", ["another block", "another content"])
def test_a_block_that_is_not_what_was_noted(what: str, place: Place) -> None:
    """Nothing but another program writes so; what it has is not packed."""
    for cached in (place.site_packages() / "many").rglob("__pycache__"):
        shutil.rmtree(cached)
    place.packed()
    names = sorted(path.name for path in (place.cache / "blocks").iterdir())
    contents = [(place.cache / "blocks" / name).read_bytes() for name in names]
    for name in names:
        (place.cache / "blocks" / name).unlink()
    others = contents[1:] + contents[:1]
    if what == "another content":
        others = [
            gzip.compress(gzip.decompress(one).replace(b"value", b"valuf")) for one in contents
        ]
    for name, data in zip(names, others):
        digest = hashlib.sha256(data).hexdigest()
        (place.cache / "blocks" / f"{name.partition('.')[0]}.{digest}").write_bytes(data)
    a_source(place)
    with pytest.raises(TreeError, match="remove that cache"):
        place.packed()


def test_blocks_are_taken_without_an_index(place: Place) -> None:
    """As after an upgrade of this program: everything is read, and nothing compressed."""
    whole = place.packed()
    kept = place.inodes()
    (known,) = place.cache.glob("index-*")
    known.unlink()
    assert place.packed() == whole
    assert place.inodes() == kept


@pytest.mark.few(2)
@pytest.mark.parametrize("damage", [b"", b"{}", b"0 0\n{}", None])
def test_a_damaged_index(damage: bytes | None, place: Place) -> None:
    whole = place.packed()
    (known,) = place.cache.glob("index-*")
    data = bytearray(known.read_bytes())
    data[len(data) // 2] ^= 1
    known.write_bytes(data if damage is None else damage)
    assert place.packed() == whole


def test_damaged_blocks(place: Place) -> None:
    whole = place.packed()
    for number, block in enumerate(sorted((place.cache / "blocks").iterdir())):
        data = bytearray(block.read_bytes())
        data[number * 7 % len(data)] ^= 1 << number % 8
        block.write_bytes(data[: len(data) - number % 2])
    assert place.packed() == whole
    assert place.packed() == whole


def test_deltas_of_blocks_that_are_kept(place: Place) -> None:
    """What they need of such a block is taken out of it."""
    options: dict[str, Any] = {"cache": str(place.cache)}
    tree = str(place.tree)
    pack(tree, str(place.directory / "a.tar.gz"), **options)
    edited(place)
    a_source(place)
    pack(tree, str(place.directory / "b.tar.gz"), **options)
    added(place)
    bases = [str(place.directory / f"{name}.tar.gz") for name in "ab"]
    done = {}
    for way in ("kept", "fresh"):
        (place.directory / way).mkdir()
        archive = str(place.directory / way / "c.tar.gz")
        known = options if way == "kept" else {}
        reports = pack_with_deltas(tree, archive, bases, **known)
        done[way] = [
            ({**one.as_dict(), "archive": ""}, Path(one.archive).read_bytes()) for one in reports
        ]
    assert len(done["kept"]) == 3
    assert done["kept"] == done["fresh"]
    alone = place.directory / "alone.tar.gz"
    pack(tree, str(alone), delta_from=bases[0], **options)
    assert alone.read_bytes() == done["fresh"][1][1]


@pytest.mark.few(1)
@pytest.mark.parametrize("begin", range(1, 9))
def test_killed_in_between(begin: int, place: Place) -> None:
    place.packed()
    edited(place)
    whole = place.fresh()
    cache = shutil.copytree(place.cache, place.directory / "before")
    archive = place.directory / "killed.tar.gz"
    for step in range(begin, 10_000, 8):
        shutil.rmtree(place.cache)
        shutil.copytree(cache, place.cache)
        code = steps.in_child(
            lambda: pack(str(place.tree), str(archive), cache=str(place.cache)),
            steps.Steps(step),
        )
        assert place.packed() == whole, f"after step {step}"
        assert not [name for name in place.blocks() if name.count(".") != 1]
        if code == 0:
            return
    raise AssertionError("it never ended")


def test_a_cache_inside_of_what_is_packed(place: Place) -> None:
    place.cache = place.tree / "cache"
    with pytest.raises(InvalidPath, match="is inside of what it would pack: name a directory"):
        place.packed()


@needs_root
def test_a_cache_that_others_can_write_to(place: Place) -> None:
    place.cache.mkdir()
    place.cache.chmod(0o777)
    with pytest.raises(UnsafeDirectory):
        place.packed()


def test_what_was_not_used_for_a_month_goes(place: Place) -> None:
    """And nothing else: the directory may have other files."""
    place.packed()
    blocks = place.cache / "blocks"
    kept = place.blocks()
    ours = {blocks / f"{'0' * 64}.{'1' * 64}", place.cache / f"index-{'0' * 16}"}
    theirs = {place.cache / "index-old", place.cache / "report.tar.gz", blocks / "notes.txt"}
    (place.cache / "photos").mkdir()
    theirs |= {place.cache / "photos" / "1.jpg", place.cache / "photos" / f"index-{'0' * 16}"}
    for old in (*ours, *theirs, *(blocks / block for block in kept)):
        if not old.exists():
            old.write_bytes(b"old")
        os.utime(old, (1, 1))
    place.packed()
    assert kept <= place.blocks(), "what was used stays"
    assert [path for path in ours if path.exists()] == []
    assert [path for path in theirs if not path.exists()] == []
