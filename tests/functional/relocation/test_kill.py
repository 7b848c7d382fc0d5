"""Killed anywhere, run again: the tree is what one undisturbed run makes of it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relocate_core.errors import Busy
from relocate_core.relocation import workers
from relocate_core.relocation.relocate import relocate
from tests.support.environments import copy, differences, digest
from tests.support.fuzz import stride
from tests.support.steps import NEW, ROOT, Steps, in_child, large, small, temporaries

RUN = "import sys; from relocate_core import relocate; relocate(*sys.argv[1:])"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the tests for workers starts any."""
    monkeypatch.setattr(workers, "ALONE", 1 << 30)


def kill_at_steps(
    directory: Path, every: int, new: str = NEW, fail: tuple[str, int, int] | None = None
) -> int:
    """Kill a run after one step in `every`, let a second one finish; the number of all steps."""
    made = small(directory / "made")
    before = digest(made.path, times="files")
    whole = copy(made.path, directory / "whole")
    assert relocate(whole, new).changed
    expected = digest(whole, times="files")
    assert expected != before
    for step in range(1 + random.SystemRandom().randrange(every), 10_000, every):
        tree = copy(made.path, directory / "tree")
        code = in_child(lambda tree=tree: relocate(tree, new), Steps(step, fail))  # type: ignore[misc]
        if code != 9:
            assert code == (1 if fail else 0)
            wanted = before if fail else expected
            assert differences(wanted, digest(tree, times="files")) == {}
            assert step > 1
            return step
        relocate(tree, new)
        assert temporaries(tree) == [], f"after step {step}"
        assert differences(expected, digest(tree, times="files")) == {}, f"after step {step}"
        shutil.rmtree(tree)
    raise AssertionError("it never ended")


def test_a_kill_now_and_then(tmp_path: Path) -> None:
    assert kill_at_steps(tmp_path, every=29) > 100


@pytest.mark.slow
def test_a_kill_after_more_steps(tmp_path: Path) -> None:
    assert kill_at_steps(tmp_path, every=stride(5)) > 100


@pytest.mark.slow
def test_a_kill_on_the_way_to_a_path_that_contains_the_old_one(tmp_path: Path) -> None:
    old = small(tmp_path / "look").old_prefix
    assert kill_at_steps(tmp_path, every=stride(10), new=f"{old}/v2") > 100


@pytest.mark.parametrize("every", [37, pytest.param(stride(8), marks=pytest.mark.slow)])
def test_a_kill_while_a_failure_is_put_back(every: int, tmp_path: Path) -> None:
    counted = count_renames(tmp_path)
    fail = ("rename", counted, errno.EIO)
    assert kill_at_steps(tmp_path, every, fail=fail) > 100


def count_renames(directory: Path) -> int:
    """How many renames a whole run takes: the last one is that of `activate`."""
    made = small(directory / "count")
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps()
        steps.install(patch.setattr)
        relocate(made.path, NEW)
    return steps.calls["rename"]


@pytest.mark.slow
def test_killed_at_any_time_with_workers(tmp_path: Path) -> None:
    made = large(tmp_path / "made")
    whole = copy(made.path, tmp_path / "whole")
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", RUN, whole, NEW], cwd=ROOT, check=True)
    takes = time.monotonic() - begin
    expected = digest(whole, times="files")
    chance = random.Random(20)
    killed = 0
    for _ in range(10):
        tree = copy(made.path, tmp_path / "tree")
        process = subprocess.Popen([sys.executable, "-c", RUN, tree, NEW], cwd=ROOT)
        time.sleep(chance.uniform(0.05, 1) * takes)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        relocate(tree, NEW)
        assert temporaries(tree) == []
        assert differences(expected, digest(tree, times="files")) == {}
        shutil.rmtree(tree)
    assert killed


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text()
        return list(map(int, found.split()))
    except FileNotFoundError:
        return []


def start_with_workers(tree: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a run, and stop all its processes as soon as workers are at work."""
    process = subprocess.Popen([sys.executable, "-c", RUN, tree, NEW], cwd=ROOT)
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        found = children(process.pid)
        if found and changed(tree):
            os.kill(process.pid, signal.SIGSTOP)
            workers = children(process.pid)
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            if workers:
                return process, workers
            os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()
    pytest.skip("no worker was caught at work: this machine has one core, or is too fast")


def changed(tree: str) -> bool:
    """Whether some bytecode has been rewritten since the tree was made."""
    for directory, _, names in os.walk(tree):
        for name in names:
            if name.endswith(".pyc"):
                with open(os.path.join(directory, name), "rb") as file:
                    if NEW.encode() in file.read():
                        return True
    return False


@pytest.mark.slow
def test_an_orphaned_worker_keeps_the_lock(tmp_path: Path) -> None:
    made = large(tmp_path / "tree")
    process, workers = start_with_workers(made.path)
    process.kill()
    process.wait()
    try:
        with pytest.raises(Busy, match=r"another run has been at work on it for 0\.3 seconds"):
            relocate(made.path, NEW, wait=0.3)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    relocate(made.path, NEW)
    whole = large(tmp_path / "whole").path
    relocate(whole, NEW)
    assert differences(digest(whole, times="none"), digest(made.path, times="none")) == {}
    assert temporaries(made.path) == []


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    made = large(tmp_path / "tree")
    process, workers = start_with_workers(made.path)
    os.kill(workers[0], signal.SIGKILL)
    for one in (*workers[1:], process.pid):
        os.kill(one, signal.SIGCONT)
    assert process.wait(60) == 0
    whole = large(tmp_path / "whole").path
    relocate(whole, NEW)
    assert differences(digest(whole, times="none"), digest(made.path, times="none")) == {}
    assert temporaries(made.path) == []


@pytest.mark.slow
def test_all_workers_killed(tmp_path: Path) -> None:
    made = large(tmp_path / "tree")
    process, workers = start_with_workers(made.path)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0
    assert relocate(made.path, NEW).changed is False
    whole = large(tmp_path / "whole").path
    relocate(whole, NEW)
    assert differences(digest(whole, times="none"), digest(made.path, times="none")) == {}
