"""Killed or failing at any step: a root holds complete releases, and the same call heals it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from relocate_core import activate, mark_bad, mark_healthy, prune, publish, remove, rollback
from relocate_core.errors import NoRoom, RelocateError
from relocate_core.releases import history
from relocate_core.releases.root import CURRENT, UNREPORTED
from tests.support import roots
from tests.support.fuzz import often, stride
from tests.support.roots import Site, State, left_behind, needs_root, shape
from tests.support.steps import Steps, in_child, sampled


@dataclass(frozen=True)
class Case:
    """A call to be disturbed, and what is there before it.

    Attributes:
        also: the releases that are only deployed, before the others.
        before: those that are deployed and activated, in this order.
        call: what is disturbed.
        gone: the releases that it removes.
    """

    before: str
    also: str
    call: Callable[[Site], object]
    gone: str = ""


def _pruned(site: Site) -> None:
    """Prune; what it tells of in its answer is an error as well."""
    done = prune(site.root, 1)
    if done.failed:
        raise RelocateError(f"cannot prune: {'; '.join(done.failed.values())}; see to it")


CASES = {
    "publish-first": Case("", "", lambda site: site.publish("A")),
    "publish-beside": Case("AB", "", lambda site: site.publish("C")),
    "activate-first": Case("", "A", lambda site: activate(site.path("A"))),
    "activate": Case("A", "B", lambda site: activate(site.path("B"))),
    "rollback": Case("ABC", "", lambda site: rollback(site.root, reason="it is slow")),
    "rollback-leaving": Case(
        "ABC", "", lambda site: rollback(site.root, leaving="C", reason="it is slow")
    ),
    "rollback-to": Case("ABC", "", lambda site: rollback(site.root, "A")),
    "mark": Case("AB", "", lambda site: mark_bad(site.path("A"), "it is slow")),
    "prune": Case("ABC", "D", _pruned, gone="AD"),
    "remove": Case("AB", "C", lambda site: remove(site.path("C")), gone="C"),
}
LONG = ("publish-first", "publish-beside", "prune", "remove")
"""Those of hundreds of steps."""
SOME = {**dict.fromkeys(CASES, 12), **dict.fromkeys(LONG, 600)}
"""One in how many steps is tried by default."""
SELDOM = ("activate-first", "rollback-to", "publish-first")
"""Those that are much like another one."""


def variants() -> list[Any]:
    """Each case, and one in how many steps: fewer of them by default."""
    slow = pytest.mark.slow
    some = [pytest.param(name, SOME[name], id=name) for name in CASES if name not in SELDOM]
    more = [
        pytest.param(name, stride(24 if name in LONG else 5), id=f"{name}-more", marks=slow)
        for name in CASES
    ]
    return some + more


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Four releases to be deployed, and what comes of each."""
    return Site.make(tmp_path_factory.mktemp("site"), "ABCD")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    roots.fast_clock(monkeypatch.setattr)
    roots.without_waiting(monkeypatch.setattr)


@dataclass
class Stage:
    """A root before a call, and what an undisturbed call makes of it."""

    site: Site
    case: Case
    kept: str
    wanted: State

    @classmethod
    def set_up(cls, site: Site, case: Case, directory: Path) -> Stage:
        site.clear()
        for name in case.also:
            site.publish(name)
        site.deploy(*case.before)
        kept = site.save(directory / "kept")
        case.call(site)
        assert left_behind(site.root) == []
        stage = cls(site, case, kept, State.of(site.root))
        assert not any(os.path.lexists(site.path(name)) for name in case.gone)
        site.restore(kept)
        return stage

    def count(self) -> tuple[int, list[str]]:
        """How many steps an undisturbed call takes, and which: `rename current` for one."""
        self.site.restore(self.kept)
        steps, seen = Steps(), []
        with pytest.MonkeyPatch.context() as patch:
            steps.install(patch.setattr)
            for name in Steps.CHANGING:
                patch.setattr(os, name, _noted(seen, steps, name, getattr(os, name)))
            self.case.call(self.site)
        return steps.done, seen

    def healed(self) -> list[str]:
        """What is wrong after the same call once more."""
        try:
            self.case.call(self.site)
        except Exception as error:
            return [f"the same call fails: {error!r}"]
        found = self.site.faults()
        found += State.of(self.site.root).differs(self.wanted)
        return found + [f"left behind: {name}" for name in left_behind(self.site.root)]


def _noted(
    seen: list[str], steps: Steps, name: str, real: Callable[..., object]
) -> Callable[..., object]:
    def wrapper(*arguments: object, **options: object) -> object:
        begun = steps.begun
        result = real(*arguments, **options)
        if steps.begun > begun:
            seen.append(" ".join([name, *(str(part) for part in arguments[:2])]))
        return result

    return wrapper


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "every"), variants())
@pytest.mark.few(3)
def test_killed_after_a_step(name: str, every: int, site: Site, tmp_path: Path) -> None:
    """`current` leads on, names are complete releases, and the same call ends where it would."""
    stage = Stage.set_up(site, CASES[name], tmp_path)
    steps, _ = stage.count()
    found: dict[int, list[str]] = {}
    points = sampled(steps, every)
    for step in points:
        site.restore(stage.kept)
        before = site.current()
        code = in_child(lambda: stage.case.call(site), Steps(step))
        assert code == 9, f"step {step} ended with {code}"
        wrong = site.faults()
        if before is not None and site.current() is None:
            wrong.append("current is missing")
        if name != "rollback" or step < steps - 1:  # see `test_the_end_of_a_rollback`
            wrong += stage.healed()
        if wrong:
            found[step] = wrong
    assert found == {}, f"{len(found)} of {len(points)} points (of {steps} steps)"


def test_the_end_of_a_rollback(site: Site, tmp_path: Path) -> None:
    """The note that it was not reported yet goes last; only the lock's label is emptied after it.

    A call killed after that is one that has returned: a plain rollback then is a second one.
    """
    stage = Stage.set_up(site, CASES["rollback"], tmp_path)
    _, seen = stage.count()
    assert seen[-2] == f"unlink {UNREPORTED.format(CURRENT)}"
    assert seen[-1].startswith("ftruncate ")


@pytest.mark.slow
@pytest.mark.parametrize("between", ["publish", "prune", "activate", "mark_healthy"])
@pytest.mark.few(1, slow=2)
def test_another_call_between_a_killed_rollback_and_the_same_one(
    between: str, site: Site, tmp_path: Path
) -> None:
    """It finishes the rollback. Only one about the active release makes a second one of the next.

    Tried for each step since the rollback was begun, but for those after it was reported.
    """
    calls: dict[str, Callable[[], object]] = {
        "publish": lambda: site.publish("D"),
        "prune": lambda: prune(site.root, 2),
        "activate": lambda: site.deploy("D"),
        "mark_healthy": lambda: mark_healthy(site.path("B")),
    }
    stage = Stage.set_up(site, CASES["rollback"], tmp_path)
    steps, _ = stage.count()
    tried = 0
    for step in range(steps - 2, 0, -1):
        site.restore(stage.kept)
        assert in_child(lambda: stage.case.call(site), Steps(step)) == 9
        if shape(site.root)[-1]["event"] not in (history.ROLLING_BACK, history.ROLLED_BACK):
            break
        where = f"after step {step} of {steps}"
        tried += 1
        if between == "mark_healthy" and site.current() == "C":
            continue
        calls[between]()
        looked = rollback(site.root, reason="it is slow", dry_run=True)
        done = rollback(site.root, reason="it is slow")
        assert replace(looked, dry_run=False) == done, where
        wanted = {"activate": ("B", "D"), "mark_healthy": ("A", "B")}.get(between, ("B", "C"))
        assert (done.release, done.previous, done.bad) == (*wanted, "it is slow"), where
        assert site.current() == done.release
        if between == "mark_healthy":
            continue
        further = rollback(site.root)
        assert (further.release, further.previous) == ("A", "B"), where
    assert tried > 5


@pytest.mark.slow
def test_a_killed_rollback_is_finished_by_whatever_comes_next(site: Site, tmp_path: Path) -> None:
    """Be it a deploy: the link, the mark and the history are what the rollback would have made."""
    stage = Stage.set_up(site, CASES["rollback"], tmp_path)
    steps, _ = stage.count()
    begun = 0
    for step in range(1, steps + 1):
        site.restore(stage.kept)
        assert in_child(lambda: stage.case.call(site), Steps(step)) == 9
        events = [event["event"] for event in shape(site.root)]
        site.publish("D")
        if history.ROLLING_BACK not in events:
            assert site.current() == "C"
            continue
        begun += 1
        assert site.current() == "B"
        assert State.of(site.root).bad == (("C", "it is slow"),)
        kinds = [event["event"] for event in shape(site.root)]
        assert kinds[-3:] == [history.ROLLING_BACK, history.ROLLED_BACK, history.PUBLISHED]
        assert site.faults() == []
    assert begun > 3


@pytest.mark.parametrize("every", [7, pytest.param(stride(2), id="more", marks=pytest.mark.slow)])
def test_a_killed_repair(every: int, site: Site, tmp_path: Path) -> None:
    """A release whose Python is gone, being put onto another one: the same call finishes it."""
    site.clear()
    site.deploy("A", "B")
    roots.lose_python(site.path("B"))
    stage = Stage(site, Case("", "", lambda site: site.publish("B")), "", State.of(site.root))
    stage = replace(stage, kept=site.save(tmp_path / "kept"))
    steps, _ = stage.count()
    assert steps > 5
    for step in range(1, steps + 1, every):
        site.restore(stage.kept)
        assert in_child(lambda: stage.case.call(site), Steps(step)) == 9
        assert site.current() == "B"
        assert stage.healed() == [], f"after step {step} of {steps}"


WORK = """
import random, sys, time
from relocate_core import activate, prune, publish, rollback
from relocate_core.errors import NotARelease
root, seed, *archives = sys.argv[1:]
chance = random.Random(int(seed))
number = 0
print("ready", flush=True)
while True:
    archive = archives[number % len(archives)]
    name = "ABCD"[number % len(archives)]
    number += 1
    for act in (
        lambda: publish(archive, f"{root}/{name}"),
        lambda: activate(f"{root}/{name}"),
        lambda: rollback(root, mark=False),
        lambda: prune(root, 1),
    ):
        if chance.random() < 0.8:
            try:
                act()
            except NotARelease:
                pass
    print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "times", [2, pytest.param(often(30, 200), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_killed_at_random_times(times: int, site: Site) -> None:
    """A process that deploys, activates, rolls back and prunes, and a real SIGKILL."""
    seed = random.SystemRandom().randrange(1 << 30)
    chance = random.Random(seed)
    site.clear()
    takes = _takes(site, seed)
    archives = [site.archives[name] for name in "ABCD"]
    for number in range(times):
        before = site.current()
        process = roots.python(WORK, site.root, str(seed + number), *archives)
        assert process.stdout is not None
        with process, process.stdout:
            try:
                assert process.stdout.readline() == "ready\n"
                time.sleep(chance.uniform(0, takes))
            finally:
                process.kill()
        where = f"seed {seed}, kill {number}"
        assert process.returncode == -signal.SIGKILL, where
        if before is not None:
            assert site.current() is not None, where
        assert site.faults() == [], where
        events = history.read(os.path.join(site.root, ".releases"))
        held = _lock_says(site)
        name = next(name for name in "ABCD" if name != site.current())
        site.publish(name)
        finished = site.current() == name  # by the end of a rollback that was killed
        assert activate(site.path(name)).changed is not finished, where
        assert site.faults() == [], where
        assert left_behind(site.root) == [], f"{where}, held: {held}"
        assert site.current() == name, where
        assert history.read(os.path.join(site.root, ".releases"))[: len(events)] == events, where


def _takes(site: Site, seed: int) -> float:
    """How long the worker's loop goes on until it has come around once."""
    process = roots.python(WORK, site.root, str(seed), *(site.archives[name] for name in "ABCD"))
    assert process.stdout is not None
    with process, process.stdout:
        try:
            process.stdout.readline()
            begin = time.monotonic()
            for _ in "ABCD":
                process.stdout.readline()
            return time.monotonic() - begin
        finally:
            process.kill()


def _lock_says(site: Site) -> str:
    try:
        return Path(site.root, ".releases", "lock").read_text()
    except FileNotFoundError:
        return ""


# --- failing -------------------------------------------------------------------------------------


FAULTS: dict[str, Callable[[int], Steps]] = {
    "EIO": lambda step: Steps(fail_at=(step, errno.EIO)),
    "full-disk": lambda step: Steps(full_at=step),
    "ENOSPC": lambda step: Steps(fail_at=(step, errno.ENOSPC)),
    "EACCES": lambda step: Steps(fail_at=(step, errno.EACCES)),
}
BY_DEFAULT = (
    *(("publish-beside", "full-disk"), ("activate", "EIO"), ("activate", "full-disk")),
    *(("rollback-leaving", "EIO"), ("mark", "full-disk"), ("remove", "EIO")),
)
FAILING = [
    *(pytest.param(case, fault, SOME[case], id=f"{case}-{fault}") for case, fault in BY_DEFAULT),
    *(
        pytest.param(
            case,
            fault,
            stride(45 if case in LONG else 6),
            id=f"{case}-{fault}-many",
            marks=pytest.mark.slow,
        )
        for case in CASES
        for fault in FAULTS
    ),
]


@pytest.mark.parametrize(("name", "fault", "every"), FAILING)
@pytest.mark.few(2)
def test_a_failing_step(name: str, fault: str, every: int, site: Site, tmp_path: Path) -> None:
    """One sentence, nothing new in the root, `current` as it was, and the same call then heals."""
    stage = Stage.set_up(site, CASES[name], tmp_path)
    steps, seen = stage.count()
    found: dict[str, list[str]] = {}
    points = sampled(steps, every)
    failures = 0
    for step in points:
        site.restore(stage.kept)
        names, current = set(State.of(site.root).releases), site.current()
        wrong = []
        disturbed = FAULTS[fault](step)
        error = _error_of(stage, disturbed)
        # On a full disk, a rename goes well and what is written after it does not.
        done = _is_done(seen[: step if fault == "full-disk" else step - 1])
        if error is not None:
            failures += 1
            if not roots.one_sentence(error):
                wrong.append(f"no sentence for an operator: {error!r}")
            if not done and set(State.of(site.root).releases) - names:
                wrong.append("a release has its name")
            if not done and site.current() != current:
                wrong.append(f"current is {site.current()}")
        wrong += site.faults()
        wrong += stage.healed() if error is not None else _whole(stage)
        if wrong:
            where = f"{step} of {steps}: {seen[step - 1]}"
            found[where] = [*wrong, f"error: {error}"]
    assert found == {}, f"{len(found)} of {len(points)} points"
    if (name, fault) != ("remove", "full-disk"):  # nothing that is removed needs any room
        assert failures > (0 if fault == "full-disk" else len(points) // 4)


def _error_of(stage: Stage, steps: Steps) -> Exception | None:
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        try:
            stage.case.call(stage.site)
        except Exception as error:
            return error
    return None


def _whole(stage: Stage) -> list[str]:
    """What is wrong after a call that succeeded all the same: no step of it was needed.

    What it could not tidy up may stay, for the next one that changes something.
    """
    return State.of(stage.site.root).differs(stage.wanted)


def _is_done(seen: list[str]) -> bool:
    """Whether a release has got its name, or the link its place, after these steps."""
    last = ("rename staging/current", "rename removed")
    return any(step.startswith(last) or _gives_a_name(step) for step in seen)


def _gives_a_name(step: str) -> bool:
    parts = step.split(" ")
    return parts[0] == "rename" and parts[-1] in "ABCD"


# --- a disk that is full -------------------------------------------------------------------------


@contextmanager
def disk(directory: Path, megabytes: int) -> Iterator[str]:
    """A small file system of its own; skips the test where none can be mounted."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield str(directory)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@needs_root
def test_a_disk_without_room_for_the_archive(site: Site, tmp_path: Path) -> None:
    """Refused before the first byte of it is written."""
    with disk(tmp_path / "disk", 60) as directory:
        root = f"{directory}/app"
        with pytest.raises(NoRoom, match=r"are needed and .* are free") as caught:
            publish(site.archives["A"], f"{root}/A")
        assert roots.one_sentence(caught.value)
        assert sorted(os.listdir(root)) == [".releases"]
        assert left_behind(root) == []


@needs_root
def test_a_disk_that_fills_up_while_unpacking(site: Site, tmp_path: Path) -> None:
    """Nothing of it stays; with room again, the same call deploys it."""
    with disk(tmp_path / "disk", 100) as directory:
        root, filler = f"{directory}/app", Path(directory, "filler")
        publish(site.archives["A"], f"{root}/A")
        activate(f"{root}/A")
        used = _used(root)

        def fill(path: str, flags: int, *rest: int, **options: int) -> int:
            if path == "pyvenv.cfg" and flags & os.O_CREAT and not filler.exists():
                _fill(filler)
            return real(path, flags, *rest, **options)

        real = os.open
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", fill)
            with pytest.raises(RelocateError, match=r"no space left.*free some space") as caught:
                publish(site.archives["B"], f"{root}/B")
        assert roots.one_sentence(caught.value)
        assert filler.exists()
        assert sorted(os.listdir(root)) == [".releases", "A", CURRENT]
        assert left_behind(root) == []
        assert _used(root) == used
        assert roots.faults(root, {}) == []
        filler.unlink()
        assert publish(site.archives["B"], f"{root}/B").changed
        assert roots.faults(root, {}) == []
        assert activate(f"{root}/B").changed


def _fill(path: Path) -> None:
    """Take all room that is left."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
    status = os.statvfs(path)
    assert status.f_bavail == 0


def _used(root: str) -> list[str]:
    return sorted(path for path in roots.everything(root) if not path.startswith(".releases/"))


@needs_root
@pytest.mark.parametrize("name", ["activate", "rollback-leaving", "mark", "remove"])
@pytest.mark.few(1)
def test_a_disk_without_any_room(name: str, site: Site, tmp_path: Path) -> None:
    """What needs a byte says so and changes nothing, or is done; with room, it is done."""
    case = CASES[name]
    with disk(tmp_path / "disk", 100) as directory:
        other = Site(f"{directory}/app", site.archives)
        other.deploy(*case.before)
        for each in case.also:
            other.publish(each)
        current = other.current()
        _fill(Path(directory, "filler"))
        error = roots.tried(lambda: case.call(other))
        assert error is None or other.current() == current
        assert other.faults() == []
        Path(directory, "filler").unlink()
        case.call(other)
        assert other.faults() == []
        assert left_behind(other.root) == []
