"""Killed at any step: interpreters and releases are complete, and the same call ends the work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Place, PythonBundle, check, prune, publish
from relocate_core.errors import RelocateError
from relocate_core.interpreters import users
from tests.support import environments, roots
from tests.support.fuzz import stride
from tests.support.pythons import Pair
from tests.support.steps import Steps, in_child, sampled


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small Python's bundle, and one of a virtualenv for it."""
    return Pair.make(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    roots.without_waiting(monkeypatch.setattr)


@dataclass
class Stage:
    """What two roots and their interpreters are in, and what is called there."""

    srv: str
    kept: str
    pair: Pair
    call: Callable[[], Any]
    interpreter: dict[str, Any]

    @property
    def place(self) -> Place:
        """Where the interpreters are."""
        return Place(f"{self.srv}/pythons")

    def save(self) -> None:
        """Keep what is there now."""
        subprocess.run(["cp", "-a", "--", self.srv, self.kept], check=True)

    def restore(self) -> None:
        """Let everything be what was kept."""
        shutil.rmtree(self.srv, ignore_errors=True)
        subprocess.run(["cp", "-a", "--", self.kept, self.srv], check=True)

    def faults(self) -> list[str]:
        """What is there under a name and is not complete, and which release cannot run."""
        found = []
        for name in _listed(self.place.path):
            if name != ".pythons":
                installed = self.place.get(name)
                if installed is None:
                    found.append(f"{name} is there and not complete")
                elif _tree(installed.path) != self.interpreter:
                    found.append(f"{name} is not what was unpacked elsewhere")
        for app in ("shop", "blog"):
            root = f"{self.srv}/{app}"
            found += roots.faults(root, {})
            for name in _listed(root):
                if name != ".releases" and not check(f"{root}/{name}").ok:
                    found.append(f"{app}/{name} cannot run")
        return found

    def left(self) -> list[str]:
        """What a run has left behind."""
        found = _listed(f"{self.place.records}/staging")
        return found + [one for app in ("shop", "blog") for one in _left(f"{self.srv}/{app}")]


def _left(root: str) -> list[str]:
    return roots.left_behind(root) if os.path.isdir(root) else []


def _listed(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def _tree(path: str) -> dict[str, Any]:
    found = environments.digest(path, times="none")
    del found[".interpreter.json"]
    return dict(found)


def stage(pair: Pair, tmp_path: Path, call: Callable[[Stage], Any]) -> Stage:
    """An empty place, and what an undisturbed call makes of the interpreter."""
    srv = str(tmp_path / "srv")
    os.makedirs(srv)
    made = Stage(srv, str(tmp_path / "kept"), pair, lambda: call(made), {})
    done = _publish(made, "shop/1")
    made.interpreter = _tree(os.path.dirname(os.path.dirname(str(done.python))))
    shutil.rmtree(srv)
    os.makedirs(srv)
    return made


def _publish(stage: Stage, name: str, **options: Any) -> Any:
    python = PythonBundle(stage.pair.python.archive, stage.pair.digests)
    return publish(stage.pair.app, f"{stage.srv}/{name}", python=python, **options)


EVERY = [pytest.param(1000, id="some"), pytest.param(stride(50), id="more", marks=pytest.mark.slow)]
FEW = [pytest.param(200, id="some"), pytest.param(stride(8), id="more", marks=pytest.mark.slow)]


def steps_of(made: Stage) -> int:
    """How many steps an undisturbed call takes."""
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        made.call()
    made.restore()
    return steps.done


def named_at(made: Stage) -> int:
    """The step at which the interpreter gets its name."""
    steps, found = Steps(), []
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        real = os.rename

        def rename(old: str, new: str, **options: Any) -> None:
            real(old, new, **options)
            if new.startswith("cpython-"):
                found.append(steps.done)

        patch.setattr(os, "rename", rename)
        made.call()
    made.restore()
    (step,) = found
    return step


@pytest.mark.parametrize(
    "steps", [pytest.param(1, id="some"), pytest.param(4, id="more", marks=pytest.mark.slow)]
)
def test_killed_about_when_it_gets_its_name(steps: int, pair: Pair, tmp_path: Path) -> None:
    """From so many steps before it until so many after it."""
    made = stage(pair, tmp_path, lambda stage: _publish(stage, "shop/1"))
    made.save()
    found: dict[int, list[str]] = {}
    step = named_at(made)
    for near in range(step - steps, step + steps):
        made.restore()
        assert in_child(made.call, Steps(near)) == 9
        there = [one.name for one in made.place.installed()]
        wrong = made.faults() + ([] if bool(there) is (near >= step) else [f"there: {there}"])
        made.call()
        wrong += made.faults() + [f"left behind: {name}" for name in made.left()]
        if wrong:
            found[near - step] = wrong
    assert found == {}


def nothing(made: Stage) -> list[str]:
    """What is wrong: nothing more is looked at."""
    return []


def killed(
    made: Stage,
    every: int,
    least: int,
    between: Callable[[Stage], list[str]] = nothing,
    at_end: Callable[[Stage], list[str]] = nothing,
) -> dict[int, list[str]]:
    """Kill a call after one step in `every`, and make it again; what is wrong, by step.

    Args:
        made: where, and which call.
        every: see `sampled`.
        least: how many steps it takes at least.
        between: what is wrong before the second call, beside what is looked for always.
        at_end: likewise, after it.
    """
    made.save()
    found: dict[int, list[str]] = {}
    steps = steps_of(made)
    assert steps > least
    for step in sampled(steps, every):
        made.restore()
        assert in_child(made.call, Steps(step)) == 9
        wrong = between(made) + made.faults()
        made.call()
        wrong += made.faults() + [f"left behind: {name}" for name in made.left()] + at_end(made)
        if wrong:
            found[step] = wrong
    return found


@pytest.mark.parametrize("every", EVERY)
def test_killed_while_the_first_release_brings_it(every: int, pair: Pair, tmp_path: Path) -> None:
    def unregistered(made: Stage) -> list[str]:
        (installed,) = made.place.installed()
        return [] if list(users.users(made.place, installed)) else ["nobody is registered"]

    made = stage(pair, tmp_path, lambda stage: _publish(stage, "shop/1"))
    assert killed(made, every, 500, at_end=unregistered) == {}


@pytest.mark.slow
@pytest.mark.parametrize("every", FEW)
def test_killed_while_another_app_shares_it(every: int, pair: Pair, tmp_path: Path) -> None:
    """Whatever was killed where: pruning in the other root never takes it too early."""

    def pruned_too_early(made: Stage) -> list[str]:
        shutil.rmtree(f"{made.srv}/shop/1")
        os.makedirs(f"{made.srv}/other", exist_ok=True)
        gone = prune(f"{made.srv}/other", 1).pythons
        there = os.path.isdir(f"{made.srv}/blog/1")
        wrong = [f"the release is there: {there}, and removed was {gone}"]
        return wrong if there == bool(gone) else []

    made = stage(pair, tmp_path, lambda stage: _publish(stage, "blog/1"))
    _publish(made, "shop/1")
    assert killed(made, every, 50, between=pruned_too_early) == {}


@pytest.mark.parametrize("every", FEW)
def test_killed_while_it_is_removed(every: int, pair: Pair, tmp_path: Path) -> None:
    made = stage(pair, tmp_path, _pruned)
    _publish(made, "shop/1")
    shutil.rmtree(f"{made.srv}/shop/1")
    wrong = killed(
        made, every, 50, at_end=lambda made: [one.name for one in made.place.installed()]
    )
    assert wrong == {}


def _pruned(stage: Stage) -> None:
    """Prune; what it tells of in its answer is an error as well."""
    done = prune(f"{stage.srv}/shop", 1)
    if done.failed:
        raise RelocateError(f"cannot prune: {'; '.join(done.failed.values())}; see to it")


FAULTS: dict[str, Callable[[int], Steps]] = {
    "EIO": lambda step: Steps(fail_at=(step, 5)),
    "full-disk": lambda step: Steps(full_at=step),
}


@pytest.mark.slow
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_step(fault: str, every: int, pair: Pair, tmp_path: Path) -> None:
    """One sentence, nothing incomplete, nobody registered, and the same call then does it."""
    made = stage(pair, tmp_path, lambda stage: _publish(stage, "shop/1"))
    made.save()
    found: dict[int, list[str]] = {}
    for step in sampled(steps_of(made), every):
        made.restore()
        with pytest.MonkeyPatch.context() as patch:
            FAULTS[fault](step).install(patch.setattr)
            error = roots.tried(made.call)
        wrong = [] if error is None or roots.one_sentence(error) else [str(error)]
        wrong += made.faults()
        if error is not None and not os.path.isdir(f"{made.srv}/shop/1"):
            there = Path(made.place.records, "users").glob("*/*")
            wrong += [f"registered: {file.read_text()}" for file in there]
        made.call()
        wrong += made.faults() + [f"left behind: {name}" for name in made.left()]
        if wrong:
            found[step] = wrong
    assert found == {}
