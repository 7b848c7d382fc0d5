"""Bundles packed, deployed and worked on by runs that are killed or fail at any step.

Whatever is there afterwards is whole, and the same call once more does what it was to do.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relocate_core import check, pack, publish, reinitialize, relocate
from relocate_core.errors import Busy, RelocateError
from relocate_core.system import pipes
from tests.support import roots
from tests.support.archives import remove
from tests.support.bundles import unpack_by_tar
from tests.support.environments import Fingerprint, digest
from tests.support.fuzz import often, stride
from tests.support.roots import left_behind
from tests.support.steps import ROOT, Steps, in_child, sampled, small, temporaries

slow = pytest.mark.slow


@dataclass
class World:
    """A build, its bundles, and a root in which the first of them stands as `A`."""

    directory: Path

    @property
    def root(self) -> str:
        return str(self.directory / "root")

    @property
    def packed(self) -> Path:
        """The directory that is packed into."""
        return self.directory / "packed"

    def archive(self, name: str) -> str:
        return str(self.directory / f"{name}.tar.gz")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Packed and deployed once."""
    directory = tmp_path_factory.mktemp("site")
    made = World(directory)
    build = small(directory / "build")
    Path(build.path, "etc/which").write_text("A\n" * 1000)
    pack(build.path, made.archive("A"))
    Path(build.path, "etc/which").write_text("B\n" * 1000)
    Path(build.path, "etc/new").write_text("new\n")
    pack(build.path, made.archive("B"))
    pack(build.path, made.archive("B-A"), delta_from=made.archive("A"))
    made.packed.mkdir()
    publish(made.archive("A"), f"{made.root}/A")
    return made


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk; the pipes to the compilers are no part of it."""
    monkeypatch.setattr(pipes, "os", SimpleNamespace(**vars(os)))
    roots.without_waiting(monkeypatch.setattr)


# -- what is disturbed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A call to be disturbed.

    Attributes:
        prepare: makes what it needs.
        call: the call.
        result: what it leaves, as it has to be after all.
        faults: what must not be, whenever it was disturbed.
    """

    prepare: Callable[[World], object]
    call: Callable[[World], object]
    result: Callable[[World], object]
    faults: Callable[[World], list[str]]


def _pair(world: World) -> tuple[Path, Path]:
    return world.packed / "x.tar.gz", world.packed / "x.tar.gz.sha256"


def _prepare_pack(world: World) -> None:
    """An archive of the first build stands there, as an earlier run has left it."""
    shutil.rmtree(world.packed)
    world.packed.mkdir()
    archive, beside = _pair(world)
    shutil.copy(world.archive("A"), archive)
    beside.write_text(f"{_sha256(archive)}  {archive.name}\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _pack(world: World) -> None:
    pack(str(world.directory / "build"), str(_pair(world)[0]))


def _pack_faults(world: World) -> list[str]:
    """The archive is an old or a new one, whole, and never taken for what it is not."""
    archive, beside = _pair(world)
    known = {_sha256(Path(world.archive(name))) for name in "AB"}
    found = []
    if _sha256(archive) not in known:
        found.append("the archive is neither the old nor the new one")
    told = beside.read_text().split()[:1]
    if not known.issuperset(told) or not told:
        found.append(f"the digest beside it is none of both: {told}")
    return found


def _pack_result(world: World) -> object:
    archive, beside = _pair(world)
    assert beside.read_text() == f"{_sha256(archive)}  {archive.name}\n"
    return _sha256(archive), sorted(os.listdir(world.packed))


def _deploy(archive: str, **options: Any) -> Case:
    def prepare(world: World) -> None:
        remove(f"{world.root}/X")
        remove(f"{world.root}/.releases/staging")

    def faults(world: World) -> list[str]:
        found = [] if digest(f"{world.root}/A") == BASES[world.root] else ["A was changed"]
        if os.path.lexists(f"{world.root}/X") and roots.tree(f"{world.root}/X") != TREES.get(
            archive
        ):
            found.append("X is there, and not complete")
        return found

    def result(world: World) -> object:
        path = f"{world.root}/X"
        assert check(path, deep=True).problems == ()
        assert left_behind(world.root) == []
        return roots.tree(path)

    return Case(
        prepare,
        lambda world: publish(world.archive(archive), f"{world.root}/X", **options),
        result,
        faults,
    )


BASES: dict[str, dict[str, Fingerprint]] = {}
TREES: dict[str, object] = {}


def _in_place(call: Callable[[str], object], prepare: Callable[[World, str], object]) -> Case:
    """A call on a virtualenv that stands alone."""

    def place(world: World) -> str:
        return str(world.directory / "place")

    def prepared(world: World) -> None:
        remove(place(world))
        prepare(world, place(world))

    def result(world: World) -> object:
        assert check(place(world), deep=True).problems == ()
        assert temporaries(place(world)) == []
        return digest(place(world), times="none")

    return Case(prepared, lambda world: call(place(world)), result, lambda world: [])


def _other_python(path: str) -> None:
    """As if it came from a machine whose Python is elsewhere."""
    roots.lose_python(path)


def _from_release(world: World, place: str) -> None:
    unpack_by_tar(world.archive("A"), place)
    relocate(place)
    _other_python(place)


CASES = {
    "pack": Case(_prepare_pack, _pack, _pack_result, _pack_faults),
    "full": _deploy("B"),
    "full-linked": _deploy("B", hard_links=True),
    "delta-copied": _deploy("B-A"),
    "delta-linked": _deploy("B-A", hard_links=True),
    "update-path": _in_place(
        relocate, lambda world, place: unpack_by_tar(world.archive("A"), place)
    ),
    "reinitialize": _in_place(reinitialize, _from_release),
}
STRIDES = {
    **dict.fromkeys(("full", "full-linked", "delta-copied", "delta-linked"), 400),
    "update-path": 200,
    "reinitialize": 20,
    "pack": 20,
}
"""How many steps the quick tests leave out."""


def points(world: World, name: str, every: int) -> tuple[list[int], object]:
    """The steps to disturb, other ones each time, and what an undisturbed run comes to."""
    case = CASES[name]
    if world.root not in BASES:
        BASES[world.root] = digest(f"{world.root}/A")
    case.prepare(world)
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        case.call(world)
    wanted = case.result(world)
    TREES.update({"B": wanted, "B-A": wanted} if "X" in os.listdir(world.root) else {})
    assert steps.done
    return sampled(steps.done, every), wanted


def healed(world: World, name: str, wanted: object) -> list[str]:
    """What is wrong after the same call once more."""
    case = CASES[name]
    try:
        case.call(world)
        found = case.result(world)
    except Exception as error:
        return [f"the same call fails: {error!r}"]
    return [] if found == wanted else ["the same call comes to something else"]


def variants() -> list[Any]:
    return [
        *(pytest.param(name, every, id=name) for name, every in STRIDES.items()),
        *(
            pytest.param(name, stride(max(4, every // 10)), id=f"{name}-more", marks=slow)
            for name, every in STRIDES.items()
            if every > 1
        ),
    ]


# -- killed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "every"), variants())
@pytest.mark.few(3)
def test_killed_after_a_step(name: str, every: int, world: World) -> None:
    """What is there is whole; the same call ends where it would have; the base is as it was."""
    case = CASES[name]
    steps, wanted = points(world, name, every)
    found: dict[int, list[str]] = {}
    for step in steps:
        case.prepare(world)
        code = in_child(lambda: case.call(world), Steps(step))
        assert code == 9, f"step {step} ended with {code}"
        wrong = case.faults(world) + healed(world, name, wanted) + case.faults(world)
        if wrong:
            found[step] = wrong
    assert found == {}, f"{len(found)} of {len(steps)} points"


PACK = """
import sys
from relocate_core import pack
print("ready", flush=True)
pack(sys.argv[1], sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.parametrize("times", [2, pytest.param(often(20, 100), marks=slow)])
def test_packing_killed_at_random_times(times: int, world: World) -> None:
    """By a real SIGKILL, also within what Python writes by itself."""
    seed = random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    CASES["pack"].prepare(world)
    _pack(world)
    wanted = CASES["pack"].result(world)
    for number in range(times):
        CASES["pack"].prepare(world)
        build, archive = str(world.directory / "build"), str(_pair(world)[0])
        process = roots.python(PACK, build, archive)
        assert process.stdout is not None
        with process, process.stdout:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        where = f"seed {seed}, kill {number}"
        assert _pack_faults(world) == [], where
        assert healed(world, "pack", wanted) == [], where


def test_a_killed_pack_of_another_prefix_leaves_nothing(world: World, tmp_path: Path) -> None:
    """The copy beside the virtualenv is gone after the next run."""
    shutil.copytree(world.directory / "build", tmp_path / "build", symlinks=True)
    archive = str(tmp_path / "x.tar.gz")

    def call() -> None:
        pack(str(tmp_path / "build"), archive, prefix="/srv/elsewhere")

    assert in_child(call, Steps(150)) == 9
    call()
    assert sorted(os.listdir(tmp_path)) == ["build", "x.tar.gz", "x.tar.gz.sha256"]


# -- failing ---------------------------------------------------------------------------------------

FAULTS: dict[str, Callable[[int], Steps]] = {
    "EIO": lambda step: Steps(fail_at=(step, errno.EIO)),
    "EACCES": lambda step: Steps(fail_at=(step, errno.EACCES)),
    "ENOSPC": lambda step: Steps(fail_at=(step, errno.ENOSPC)),
    "full-disk": lambda step: Steps(full_at=step),
}
BY_DEFAULT = (("pack", "EIO"), ("delta-copied", "full-disk"), ("delta-linked", "EACCES"))


@pytest.mark.parametrize(
    ("name", "fault", "every"),
    [
        pytest.param(
            name,
            fault,
            STRIDES[name] if (name, fault) in BY_DEFAULT else stride(max(4, STRIDES[name] // 8)),
            id=f"{name}-{fault}",
            marks=() if (name, fault) in BY_DEFAULT else slow,
        )
        for name in CASES
        for fault in FAULTS
    ],
)
@pytest.mark.few(2, slow=12)
def test_a_failing_step(name: str, fault: str, every: int, world: World) -> None:
    """One sentence, or it was not needed; and then the same call does it."""
    case = CASES[name]
    steps, wanted = points(world, name, every)
    found: dict[int, list[str]] = {}
    for step in steps:
        case.prepare(world)
        wrong: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            FAULTS[fault](step).install(patch.setattr)
            try:
                case.call(world)
            except Exception as error:
                if not roots.one_sentence(error):
                    wrong.append(f"no sentence for an operator: {error!r}")
        wrong += case.faults(world) + healed(world, name, wanted) + case.faults(world)
        if wrong:
            found[step] = wrong
    assert found == {}, f"{len(found)} of {len(steps)} points"


# -- two at once -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(often(6, 30), marks=slow)])
def test_packing_to_one_archive_at_once(rounds: int, world: World) -> None:
    """Each succeeds or is told to wait; what stands there is whole."""
    CASES["pack"].prepare(world)
    _pack(world)
    wanted = CASES["pack"].result(world)
    build, archive = str(world.directory / "build"), str(_pair(world)[0])
    for _ in range(rounds):
        running = [
            subprocess.Popen(
                [sys.executable, "-B", "-c", PACK, build, archive],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        said = [process.communicate()[1] for process in running]
        assert all(not text or "Busy" in text for text in said), said
        assert any(not text for text in said)
        assert CASES["pack"].result(world) == wanted


def test_a_lock_that_is_taken_too_late(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened may be the archive itself by the time that it is locked."""
    CASES["pack"].prepare(world)
    archive = _pair(world)[0]
    real = fcntl.flock
    first: list[int] = []

    def flock(file: Any, how: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        name = os.readlink(f"/proc/self/fd/{number}")
        if name.endswith(".packing") and not first:
            first.append(1)
            # Another run, which has had the lock all the time, now puts it in place and ends.
            shutil.copyfile(world.archive("A"), name)
            os.rename(name, archive)
            _pair(world)[1].write_text(f"{_sha256(archive)}  {archive.name}\n")
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    error = roots.tried(lambda: _pack(world))
    assert first
    assert error is None or isinstance(error, Busy)
    assert _pair(world)[1].read_text().split()[0] == _sha256(archive)


@pytest.mark.parametrize("ending", ["packing", "packing.sha256"])
def test_a_link_in_place_of_the_temporary_file(ending: str, world: World, tmp_path: Path) -> None:
    """In a directory that others may write to, root must not write through it."""
    victim = tmp_path / "victim"
    victim.write_text("a victim\n")
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / f".x.tar.gz.{ending}").symlink_to(victim)
    with suppress(RelocateError):
        pack(str(world.directory / "build"), str(directory / "x.tar.gz"))
    assert victim.read_text() == "a victim\n"


DEPLOY = """
import sys
from relocate_core import publish
publish(sys.argv[1], sys.argv[2], hard_links=bool(sys.argv[3]))
"""


@pytest.mark.parametrize("hard_links", ["", "1"], ids=["copied", "linked"])
@pytest.mark.parametrize("names", ["XY", "XX"])
@pytest.mark.few(1, slow=4)
def test_deploying_from_one_base_at_once(names: str, hard_links: str, world: World) -> None:
    """One after the other, of one name or of two."""
    points(world, "full", 1 << 30)
    running = []
    for name in names:
        remove(f"{world.root}/{name}")
    for name in names:
        running.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-B", "-c", DEPLOY),
                    *(world.archive("B-A"), f"{world.root}/{name}", hard_links),
                ],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        assert [process.communicate()[1] for process in running] == ["", ""]
        for name in names:
            assert check(f"{world.root}/{name}", deep=True).problems == ()
        assert digest(f"{world.root}/A") == BASES[world.root]
        assert left_behind(world.root) == []
    finally:
        for name in names:
            remove(f"{world.root}/{name}")


WORK = """
import sys
from relocate_core import publish
print("ready", flush=True)
publish(sys.argv[1], sys.argv[2], hard_links=bool(sys.argv[3]))
"""


@pytest.mark.parametrize("times", [2, pytest.param(often(20, 100), marks=slow)])
def test_deploying_killed_at_random_times(times: int, world: World) -> None:
    """Against the base, by copies and by links, and a real SIGKILL."""
    seed = random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    _, wanted = points(world, "full", 1 << 30)
    for number in range(times):
        name = chance.choice(["delta-copied", "delta-linked"])
        CASES[name].prepare(world)
        process = roots.python(
            WORK, world.archive("B-A"), f"{world.root}/X", "1" * ("linked" in name)
        )
        assert process.stdout is not None
        with process, process.stdout:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.4))
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        where = f"seed {seed}, kill {number}"
        assert CASES[name].faults(world) == [], where
        assert healed(world, name, wanted) == [], where
