"""A release is put onto another Python, and back where it is not healthy on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relocate_core import (
    Root,
    activate,
    check,
    mark_healthy,
    put_back,
    reinitialize,
    remove,
    unmark_bad,
)
from relocate_core.errors import CannotRun, MarkedBad, NotARelease
from relocate_core.releases import history
from tests.support import roots
from tests.support.environments import digest
from tests.support.fuzz import stride
from tests.support.roots import Site, left_behind
from tests.support.steps import Steps, in_child, sampled


@dataclass(frozen=True)
class Active:
    """An active release that is healthy on one Python, and other names of the same Python."""

    site: Site
    path: str
    python: str
    other: str
    third: str

    @property
    def pending(self) -> dict[str, Any] | None:
        """How it was put onto what it runs on, if it was not found healthy since."""
        return Root(self.site.root).reinitialized("A")

    @property
    def runs_on(self) -> str:
        """What its `bin/python` points to."""
        return os.readlink(f"{self.path}/bin/python")

    def faults(self) -> list[str]:
        """Why it does not run, and what was left behind."""
        problems = [str(one) for one in check(self.path).problems]
        return problems + left_behind(self.site.root)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"), "A")


@pytest.fixture
def active(built: Site, tmp_path: Path) -> Active:
    site = built
    site.clear()
    site.publish("A")
    path = site.path("A")
    real = os.path.realpath(f"{path}/bin/python")
    names = []
    for name in ("one", "other", "third"):
        directory = tmp_path / "pythons" / name
        directory.mkdir(parents=True)
        (directory / os.path.basename(real)).symlink_to(real)
        names.append(f"{directory}/{os.path.basename(real)}")
    reinitialize(path, names[0])
    activate(path)
    mark_healthy(path)
    return Active(site, path, *names)


def test_it_has_to_be_found_healthy_again(active: Active) -> None:
    assert active.pending is None
    assert reinitialize(active.path, active.other).changed
    assert active.runs_on == active.other
    assert active.pending is not None
    assert (active.pending["previous"], active.pending["python"]) == (active.python, active.other)
    assert mark_healthy(active.path)
    assert active.pending is None
    assert not mark_healthy(active.path)
    with pytest.raises(NotARelease, match="nothing to put back"):
        put_back(active.path, "it is slow")
    assert active.runs_on == active.other


def test_there_and_back_changes_no_byte(active: Active) -> None:
    before = digest(active.path, times="none")
    reinitialize(active.path, active.other)
    assert digest(active.path, times="none") != before
    assert put_back(active.path, "it is slow").changed
    assert digest(active.path, times="none") == before
    assert active.pending is None


def test_a_python_that_it_was_put_back_from_is_refused_until_the_mark_is_taken_away(
    active: Active,
) -> None:
    reinitialize(active.path, active.other)
    put_back(active.path, "it is slow")
    for dry_run in (True, False):
        with pytest.raises(MarkedBad, match=r"not healthy on .*/other/.*it is slow.*unmark_bad"):
            reinitialize(active.path, active.other, dry_run=dry_run)
    assert active.runs_on == active.python
    assert reinitialize(active.path, active.third).changed, "another one is not"
    reinitialize(active.path, active.python)
    assert unmark_bad(active.path)
    assert not unmark_bad(active.path)
    assert reinitialize(active.path, active.other).changed


def test_a_release_of_the_same_name_is_another_one(active: Active) -> None:
    reinitialize(active.path, active.other)
    put_back(active.path, "it is slow")
    os.unlink(f"{active.site.root}/current")
    remove(active.path)
    active.site.publish("A")
    assert active.pending is None
    assert reinitialize(active.path, active.other).changed


def test_nothing_is_recorded_where_nothing_is_done(active: Active) -> None:
    before = roots.everything(active.site.root)
    assert not reinitialize(active.path, active.python).changed
    assert reinitialize(active.path, active.other, dry_run=True).changed
    assert roots.everything(active.site.root) == before


def test_what_it_ran_on_is_gone(active: Active) -> None:
    reinitialize(active.path, active.other)
    os.unlink(active.python)
    with pytest.raises(CannotRun, match=r"/one/.*is not there any more; put it onto another"):
        put_back(active.path, "it is slow")
    assert active.runs_on == active.other


CALLS: dict[str, tuple[Callable[[Active], Any], str]] = {
    "onto": (lambda active: reinitialize(active.path, active.other), "other"),
    "back": (lambda active: put_back(active.path, "it is slow"), "python"),
}


@pytest.mark.parametrize(
    "every",
    [pytest.param(60, id="some"), pytest.param(stride(4), id="more", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.few(1)
def test_killed_at_any_step(call: str, every: int, active: Active, tmp_path: Path) -> None:
    """The release runs, and the same call ends the work; what it ran on is not forgotten."""
    again, ends_on = CALLS[call]
    if call == "back":
        reinitialize(active.path, active.other)
    kept = active.site.save(tmp_path / "kept")
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        again(active)
    found: dict[int, list[str]] = {}
    for step in sampled(steps.done, every):
        active.site.restore(kept)
        assert in_child(lambda: again(active), Steps(step)) == 9
        wrong = [] if check(active.path).ok else ["it does not run"]
        if call == "onto" or active.pending is not None:
            again(active)
        else:  # done but for what was left behind: a highstate tidies that up
            active.site.publish("A", python=active.other)
        wrong += active.faults()
        if active.runs_on != getattr(active, ends_on):
            wrong.append(f"it runs on {active.runs_on}")
        if call == "onto" and put_back(active.path, "it is slow").python != active.python:
            wrong.append("it is put back onto another one")
        known = history.standing(Root(active.site.root).events()).bad_pythons
        if call == "back" and known != {"A": {active.other: "it is slow"}}:
            wrong.append(f"marks: {known}")
        if wrong:
            found[step] = wrong
    assert found == {}
