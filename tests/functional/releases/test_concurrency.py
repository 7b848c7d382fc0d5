"""Several at once: readers of `current` see no gap, and writers of a root take turns."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Root, activate, prune, publish, remove, rollback, unmark_bad
from relocate_core.errors import Busy
from relocate_core.releases import history
from relocate_core.releases.root import CURRENT, RECORDS
from tests.support import roots
from tests.support.roots import MARKED, MARKER, Site, left_behind, python, shape
from tests.support.steps import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three releases to be deployed, and what comes of each."""
    return Site.make(tmp_path_factory.mktemp("site"), "ABC")


@pytest.fixture
def site(built: Site) -> Site:
    """The same with an empty root."""
    built.clear()
    return built


# --- readers -------------------------------------------------------------------------------------


READ = """
import json, os, select, sys
from collections import Counter
current, marker, marked = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen, wrong = Counter(), []
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        os.stat(current)
        target = os.readlink(current)
        with open(current + "/" + marker) as file:
            text = file.read()
    except OSError as error:
        wrong.append(repr(error))
        continue
    name = text[:1]
    seen[name] += 1
    if text != (name + " ") * marked:
        wrong.append("a mix: %s" % set(text.split()))
    if "/" in target:
        wrong.append("current points to " + target)
print(json.dumps([seen, wrong]))
"""


@contextmanager
def reader(root: str, said: list[list[Any]]) -> Iterator[None]:
    """A process that opens a file through `current` again and again; what it saw, in the end."""
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", READ, os.path.join(root, CURRENT), MARKER, str(MARKED)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        output, _ = process.communicate("", timeout=60)
    said.append(json.loads(output))


@pytest.mark.parametrize("wanted", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_readers_see_no_gap_in_many_switches(
    wanted: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an error nor a mix of two releases, whichever call it is that switches."""
    roots.without_waiting(monkeypatch.setattr)
    site.deploy("A", "B")
    switches = rounds = 0
    said: list[list[Any]] = []
    with reader(site.root, said), reader(site.root, said):
        while switches < wanted:
            if not rounds % 20:  # every call reads all of it
                os.unlink(site.path(f"{RECORDS}/{history.NAME}"))
            rounds += 1
            switches += activate(site.path("A")).changed
            switches += activate(site.path("B")).changed
            switches += rollback(site.root).changed
            assert unmark_bad(site.path("B"))
    for seen, wrong in said:
        assert wrong == []
        assert set(seen) == {"A", "B"}
        assert sum(seen.values()) > 100
    assert left_behind(site.root) == []


SWITCH = """
import sys
from relocate_core import activate, publish, rollback
root, archive = sys.argv[1:]
activate(root + "/A"); activate(root + "/B"); rollback(root); publish(archive, root + "/C")
"""


def traced(site: Site, calls: str) -> list[str]:
    """The calls of that kind that switching and deploying make."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
    log = Path(site.root, os.pardir, "strace.log")
    arguments = [sys.executable, "-B", "-c", SWITCH, site.root, site.archives["C"]]
    done = subprocess.run(
        ["strace", "-f", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={calls}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def test_the_kernel_is_never_asked_to_remove_current(site: Site) -> None:
    """It is made aside, relative, and renamed over; nothing unlinks it or writes through it."""
    for name in "AB":
        site.publish(name)
    lines = traced(site, "unlink,unlinkat,rename,renameat,renameat2,symlink,symlinkat,rmdir")
    removing = [line for line in lines if "unlink" in line or "rmdir" in line]
    # Only a name in the root itself: `.releases/staging/current` may go.
    assert not [
        line for line in removing if re.search(rf'{re.escape(site.root)}>?[,/ "]*current"', line)
    ]
    renamed = [line for line in lines if re.search(r'rename.*, "current"', line)]
    assert len(renamed) == 3
    made = [line for line in lines if re.search(r"symlinkat.*current", line)]
    assert [re.search(r'symlinkat\("([^"]*)"', line)[1] for line in made] == ["A", "B", "A"]  # type: ignore[index]
    away = [
        line for line in lines if "rename" in line and re.search(r'\("?[^"]*"current", .*', line)
    ]
    assert not [line for line in away if "staging/current" not in line]


def test_all_is_on_the_disk_before_a_name_is_given(site: Site) -> None:
    """A power cut finds no name without its content: synced, renamed, and the directory synced."""
    for name in "AB":
        site.publish(name)
    lines = traced(site, "rename,renameat,renameat2,syncfs,sync,fsync,fdatasync,write")
    for place, name, synced in (
        (r'rename.*, "C"', "C", r"\bsyncfs\("),
        (r'rename.*, "current"', CURRENT, None),
    ):
        at = next(number for number, line in enumerate(lines) if re.search(place, line))
        assert lines[at].rstrip().endswith("= 0"), name
        if synced:
            before = [line for line in lines[:at] if "sync" in line or "write(" in line]
            assert re.search(synced, before[-1]), before[-1]
        assert re.search(rf"fsync\(\d+<{re.escape(site.root)}>\)", lines[at + 1]), lines[at + 1]
    told = [n for n, line in enumerate(lines) if re.search(r'write\(.*history\.jsonl>, "\{', line)]
    assert len(told) == 7  # a switch is told before and after
    assert all("fsync" in lines[n + 1] and "history.jsonl" in lines[n + 1] for n in told)


# --- writers -------------------------------------------------------------------------------------

PUBLISH = """
import json, sys
from relocate_core import publish
print("ready", flush=True)
done = publish(sys.argv[1], sys.argv[2])
print(json.dumps(done.changed))
"""


def at_once(commands: list[tuple[str, ...]]) -> list[list[str]]:
    """Run a piece of Python for each, all at the same time; the lines that each has said."""
    processes = [python(code, *arguments) for code, *arguments in commands]
    said = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        said.append(output.splitlines())
    return said


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_the_same_release_at_once(count: int, site: Site) -> None:
    """One does it, the others find it done."""
    said = at_once([(PUBLISH, site.archives["A"], site.path("A"))] * count)
    assert sorted(lines[1] for lines in said) == ["false"] * (count - 1) + ["true"]
    assert site.faults() == []
    assert left_behind(site.root) == []
    assert [event["event"] for event in shape(site.root)] == [history.PUBLISHED]


def test_different_releases_at_once(site: Site) -> None:
    """All are there in the end."""
    said = at_once([(PUBLISH, site.archives[name], site.path(name)) for name in "ABC"])
    assert [lines[1] for lines in said] == ["true"] * 3
    assert Root(site.root).names() == ["A", "B", "C"]
    assert site.faults() == []
    assert left_behind(site.root) == []
    assert sorted(event["release"] for event in shape(site.root)) == ["A", "B", "C"]


HOLD = """
import sys
from relocate_core import Root
from relocate_core.releases.store import locked
with locked(Root(sys.argv[1], "job-7"), "deploying X"):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(site: Site) -> Iterator[int]:
    """Another process holds the root's lock; its id."""
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", HOLD, site.root],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.communicate()


@pytest.mark.parametrize("call", ["publish", "activate", "rollback", "prune", "remove", "unmark"])
@pytest.mark.few(2)
def test_busy_says_who_what_and_since_when(
    call: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, after the time that one is willing to wait; nothing is changed."""
    roots.fast_clock(monkeypatch.setattr)
    site.deploy("A", "B")
    rollback(site.root)
    site.publish("C")
    calls = {
        "publish": lambda: publish(site.archives["A"], site.path("D"), wait=0.2),
        "activate": lambda: activate(site.path("C"), wait=0.2),
        "rollback": lambda: rollback(site.root, "C", wait=0.2),
        "prune": lambda: prune(site.root, 1, wait=0.2),
        "remove": lambda: remove(site.path("C"), wait=0.2),
        "unmark": lambda: unmark_bad(site.path("B"), wait=0.2),
    }
    before = roots.everything(site.root)
    with held(site) as pid:
        before = roots.everything(site.root)
        begin = time.monotonic()
        with pytest.raises(Busy) as caught:
            calls[call]()
        assert 0.2 <= time.monotonic() - begin < 60
        assert roots.everything(site.root) == before
    assert roots.one_sentence(caught.value)
    assert re.fullmatch(
        rf"cannot work in {re.escape(site.root)}: process {pid} \(deploying X job-7\) has held its "
        r"lock since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ, and held it all of 0\.2 seconds; wait .*",
        str(caught.value),
    )
    calls[call]()
    assert site.faults() in ([], ["D differs from what was deployed elsewhere"])


def test_reading_does_not_wait(site: Site) -> None:
    """What stands is told, and what is done already is found done, while another one works."""
    site.deploy("A", "B")
    with held(site):
        begin = time.monotonic()
        assert [release.name for release in Root(site.root).releases()] != []
        assert Root(site.root).active() == "B"
        assert not site.publish("A").changed
        assert not activate(site.path("B")).changed
        assert activate(site.path("A"), dry_run=True).changed
        assert rollback(site.root, dry_run=True).release == "A"
        assert prune(site.root, 1, dry_run=True).removed == []
        assert time.monotonic() - begin < 60


def test_an_activation_in_the_way_of_another_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says that it has changed something has done so, whenever the others come by."""
    site.deploy("A", "B")
    real = Root.active

    def active(root: Root, link: str = CURRENT) -> str | None:
        """Another run switches back and forth, right after each look."""
        found = real(root, link)
        if not busy:
            roots.by_hand(site, "A" if found == "B" else "B")
        return found

    busy: list[str] = []
    monkeypatch.setattr(Root, "active", active)
    before = len(shape(site.root))
    done = activate(site.path("B"))
    busy.append("no more")
    assert done.release == "B"
    if done.changed:
        assert shape(site.root)[before:] != [], "nothing was done, and it says that it was"


def test_a_killed_holder_holds_nothing(site: Site) -> None:
    """Its lock is gone with it, and what it wrote into the file is nobody's any more."""
    site.deploy("A")
    process = python(HOLD, site.root)
    assert process.stdout is not None
    with process, process.stdout:
        process.kill()
    assert site.publish("B", wait=0.2).changed
    assert Path(site.root, RECORDS, "lock").read_text() == ""


MIXED = """
import json, random, sys, time
from relocate_core import activate, mark_bad, pin, prune, publish, remove, rollback
from relocate_core import unmark_bad, unpin
from relocate_core.errors import CannotRun, MarkedBad, NotARelease, ReleaseInUse
root, seed, seconds, *archives = sys.argv[1:]
chance = random.Random(int(seed))
job = "job-" + seed
names = "ABC"
until = time.monotonic() + float(seconds)
while time.monotonic() < until:
    name = chance.choice(names)
    path = root + "/" + name
    kind, act = chance.choice([
        ("published", lambda: publish(archives[names.index(name)], path, job=job).changed),
        ("activated", lambda: activate(path, job=job).changed),
        ("rolled_back", lambda: rollback(root, job=job, mark=chance.random() < 0.5).changed),
        ("unmarked", lambda: unmark_bad(path, job=job)),
        ("pinned", lambda: pin(path, job=job)),
        ("unpinned", lambda: unpin(path, job=job)),
        ("pruned", lambda: prune(root, 1, job=job).removed),
        ("removed", lambda: remove(path, job=job)),
    ])
    try:
        done = act()
    except (CannotRun, MarkedBad, NotARelease, ReleaseInUse):
        continue
    count = len(done) if isinstance(done, list) else int(done)
    for _ in range(count):
        print(json.dumps([kind, job]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_four_that_do_everything_at_random(seconds: int, site: Site) -> None:
    """What holds, holds in the end; and for all that was done there is its event, and no other."""
    seed = random.SystemRandom().randrange(1 << 30)
    site.deploy("A", "B")
    archives = [site.archives[name] for name in "ABC"]
    commands = [
        (MIXED, site.root, str(seed + number), str(seconds), *archives) for number in range(4)
    ]
    done = Counter(tuple(json.loads(line)) for said in at_once(commands) for line in said)
    where = f"seed {seed}"
    assert site.faults() == [], where
    assert left_behind(site.root) == [], where
    assert site.current() in ("A", "B", "C"), where
    events = [event for event in shape(site.root) if "job" in event]
    told = Counter((event["event"], event["job"]) for event in events)
    begun = Counter(job for kind, job in told.elements() if kind == history.ROLLING_BACK)
    for kind, job in {*told, *done}:
        if kind == history.ACTIVATING:
            assert told[kind, job] == told[history.ACTIVATED, job], where
        elif kind == history.ROLLING_BACK:
            assert begun[job] == told[history.ROLLED_BACK, job], where
        elif kind == history.ACTIVATED:  # one that was there already may be told again
            assert told[kind, job] >= done[kind, job], where
        else:
            assert told[kind, job] == done[kind, job], f"{where}: {kind}"
    assert len(done) > 10, where
    known = Root(site.root).standing()
    assert known.unfinished == {}, where
