"""The other releases of a root follow the active one onto its Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relocate_core import (
    Following,
    Root,
    activate,
    check,
    mark_healthy,
    put_back,
    reinitialize,
    reinitialize_others,
    rollback,
)
from relocate_core.errors import NotARelease
from relocate_core.relocation import reinitialize as relocation
from tests.support import roots
from tests.support.environments import digest
from tests.support.fuzz import stride
from tests.support.roots import Site, left_behind
from tests.support.steps import Steps, in_child, sampled


@dataclass(frozen=True)
class App:
    """Three releases on one Python, of which C is active and healthy; and another name of it."""

    site: Site
    old: str
    new: str

    def follow(self, **options: Any) -> Following:
        """Let the others follow the active one onto the other Python."""
        return reinitialize_others(self.site.root, self.new, **options)

    def swap(self) -> None:
        """Put the active one onto the other Python, and find it healthy there."""
        reinitialize(self.site.path("C"), self.new)
        mark_healthy(self.site.path("C"))

    def runs_on(self) -> dict[str, str]:
        """Which of the two each release is on, by its name."""
        names = {self.old: "old", self.new: "new"}
        return {
            name: names[os.readlink(f"{self.site.path(name)}/bin/python")]
            for name in Root(self.site.root).names()
        }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> App:
    directory = tmp_path_factory.mktemp("site")
    site = Site.make(directory, "ABC")
    site.publish("A")
    real = os.path.realpath(f"{site.path('A')}/bin/python")
    site.clear()
    names = []
    for name in ("old", "new"):
        python = directory / "pythons" / name / os.path.basename(real)
        python.parent.mkdir(parents=True)
        python.symlink_to(real)
        names.append(str(python))
    for name in "ABC":
        site.publish(name, python=names[0])
        activate(site.path(name))
        mark_healthy(site.path(name))
    site.save(directory / "kept")
    return App(site, *names)


@pytest.fixture
def app(built: App) -> App:
    built.site.restore(os.path.join(os.path.dirname(built.site.root), "kept"))
    return built


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may look at the packages of a release."""

    def read(*_: object) -> None:
        raise AssertionError("a look at the packages")

    with monkeypatch.context() as patch:
        patch.setattr(relocation, "read_contents", read)
        yield


def test_never_before_the_active_one_is_healthy(app: App) -> None:
    before = roots.everything(app.site.root)
    found = app.follow()
    assert found.waiting == "C, which is active, is not on that Python"
    assert (found.moved, found.left) == ({}, dict.fromkeys("AB", found.waiting))
    assert roots.everything(app.site.root) == before
    reinitialize(app.site.path("C"), app.new)
    assert "not found healthy" in str(app.follow().waiting)
    would = app.follow(dry_run=True)
    assert (would.moved, would.left) == ({"A": app.old, "B": app.old}, {})
    assert app.runs_on() == {"A": "old", "B": "old", "C": "new"}
    put_back(app.site.path("C"), "it is slow")
    assert app.follow().waiting == "C, which is active, is not on that Python"
    assert app.runs_on() == dict.fromkeys("ABC", "old")


def test_they_follow(app: App) -> None:
    app.swap()
    would = app.follow(dry_run=True)
    assert app.runs_on() == {"A": "old", "B": "old", "C": "new"}
    found = app.follow()
    assert found.moved == would.moved == {"A": app.old, "B": app.old}
    assert (found.left, found.failed, found.waiting) == ({}, {}, None)
    assert app.runs_on() == dict.fromkeys("ABC", "new")
    assert [check(app.site.path(name)).problems for name in "ABC"] == [(), (), ()]
    assert left_behind(app.site.root) == []
    assert {one.python for one in Root(app.site.root).releases()} == {app.new}


def test_a_second_time_costs_nothing(app: App, request: pytest.FixtureRequest) -> None:
    app.swap()
    app.follow()
    before = roots.everything(app.site.root)
    request.getfixturevalue("no_packages")
    assert app.follow().moved == {}
    assert roots.everything(app.site.root) == before


def test_a_release_that_is_rolled_back_to_is_judged_on_its_new_python(app: App) -> None:
    app.swap()
    app.follow()
    assert rollback(app.site.root).release == "B"
    assert roots.runs(app.site.path("B"))
    pending = Root(app.site.root).reinitialized("B")
    assert pending is not None
    assert put_back(app.site.path("B"), "it is slow").python == app.old
    activate(app.site.path("A"))
    mark_healthy(app.site.path("A"))
    assert app.follow().left == {"B": "it was not healthy on that Python (it is slow)"}
    assert app.runs_on()["B"] == "old"


def test_what_does_not_fit_stays(app: App, request: pytest.FixtureRequest) -> None:
    config = Path(app.site.path("A"), "pyvenv.cfg")
    library = next(Path(app.site.path("A"), "lib").glob("python3*"))
    text = config.read_text().replace(library.name[6:], "3.4")
    config.write_text(text)
    library.rename(library.with_name("python3.4"))
    app.swap()
    before = digest(app.site.path("A"))
    assert app.follow().moved.keys() == {"B"}
    request.getfixturevalue("no_packages")
    found = app.follow()
    version = library.name[6:]
    assert found.left == {"A": f"it is for Python 3.4, and C for Python {version}"}
    assert found.failed == {}
    assert digest(app.site.path("A")) == before


def test_a_damaged_one_is_named_and_keeps_none_from_following(app: App) -> None:
    app.swap()
    shutil.rmtree(f"{app.site.path('A')}/bin")
    found = app.follow()
    assert found.moved.keys() == {"B"}
    assert found.failed.keys() == {"A"}
    assert app.site.path("A") in found.failed["A"]


def test_one_that_runs_behind_another_link_stays(app: App) -> None:
    app.swap()
    activate(app.site.path("A"), f"{app.site.root}/next")
    found = app.follow()
    assert found.left == {"A": "next points to it, so it is put onto a Python for itself"}
    assert app.runs_on() == {"A": "old", "B": "new", "C": "new"}


def test_one_whose_python_is_gone_follows(app: App) -> None:
    app.swap()
    roots.lose_python(app.site.path("A"))
    assert app.follow().moved.keys() == {"A", "B"}
    assert app.runs_on()["A"] == "new"


def test_an_active_one_with_a_copy_of_the_python(app: App) -> None:
    path = app.site.path("C")
    os.unlink(f"{path}/bin/python")
    shutil.copy2(app.new, f"{path}/bin/python")
    assert app.follow().waiting is not None
    config = Path(path, "pyvenv.cfg")
    config.write_text(config.read_text().replace("/pythons/old", "/pythons/new"))
    for link in Path(path, "bin").glob("python3*"):
        if os.readlink(link).startswith("/"):
            link.unlink()
            link.symlink_to(app.new)
    assert app.follow().moved.keys() == {"A", "B"}


def test_an_app_without_checks(app: App) -> None:
    reinitialize(app.site.path("C"), app.new)
    assert app.follow(checked=False).moved.keys() == {"A", "B"}


def test_without_an_active_release(app: App) -> None:
    os.unlink(app.site.path("current"))
    with pytest.raises(NotARelease, match="points to no release"):
        app.follow()


@pytest.mark.parametrize(
    "every",
    [pytest.param(25, id="some"), pytest.param(stride(3), id="more", marks=pytest.mark.slow)],
)
def test_killed_at_any_step(every: int, app: App, tmp_path: Path) -> None:
    """All releases run, and the same call ends the work; what they ran on is not forgotten."""
    app.swap()
    kept = app.site.save(tmp_path / "kept")
    steps = Steps()
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch.setattr)
        app.follow()
    found: dict[int, list[str]] = {}
    for step in sampled(steps.done, every):
        app.site.restore(kept)
        assert in_child(app.follow, Steps(step)) == 9
        wrong = [name for name in "ABC" if not check(app.site.path(name)).ok]
        app.follow()
        known = Root(app.site.root)
        wrong += [name for name, runs_on in app.runs_on().items() if runs_on != "new"]
        entries = [known.reinitialized(name) or {} for name in "AB"]
        wrong += [f"{one}" for one in entries if one.get("previous") != app.old]
        wrong += left_behind(app.site.root)
        if wrong:
            found[step] = wrong
    assert found == {}
