"""The formula on all minions: highstates, and roll-outs that are about one of several apps."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet.conftest import EACH, MINIONS, Fleet
from tests.support import environments, minions
from tests.support.managers import Manager

pytestmark = pytest.mark.integration

ME = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name
SLEEPS = "bin/python -c 'import time; time.sleep(600)'"
ID = "{{ grains['id'] }}"
"""In a pillar: the ID of the minion that it is for."""


class Formula(Fleet):
    """The fleet with the formula, two apps and a process manager on each minion.

    Attributes:
        settings: what stands in the pillar `releases` of all minions.
        apps: what stands there of each app.
        managers: the process managers.
    """

    applied = ("releases",)
    rolled = ()

    def __init__(self, fleet: Fleet, managers: Path) -> None:
        super().__init__(fleet.master, fleet.daemons, fleet.file_root, fleet.pillar, fleet.base)
        self.apps = {name: self._app(name) for name in ("shop", "blog")}
        self.settings: dict[str, Any] = {
            "apps": self.apps,
            "supervisor": {
                "command": f"{managers}/{ID}/supervisor",
                "conf_dir": f"{managers}/{ID}/configs",
                "log_dir": f"{managers}/{ID}",
            },
        }
        self.managers = {
            short: Manager("supervisor", managers / self.id(short)) for short in MINIONS
        }

    def _app(self, name: str) -> dict[str, Any]:
        return {
            "release": "1",
            "source": "salt://shop/{release}.tar.gz",
            "root": f"{self.base}/{ID}/{name}",
            "user": ME,
            "group": GROUP,
            "programs": {"web": {"command": SLEEPS}},
            "health": {
                "checks": f"read which < {minions.WHICH} && "
                f"test ! -e {self.base}/{ID}/sick-$which && "
                f"test ! -e {self.base}/{ID}/sick-{name}",
                "attempts": 2,
                "interval": 0.1,
            },
        }

    def want(self, release: str, app: str = "shop") -> None:
        """Write into pillar what a highstate should bring."""
        self.apps[app]["release"] = release
        self.write()

    def write(self, only_for: str | None = None) -> None:
        """Write the pillar; for one minion alone, where that is wanted."""
        text = json.dumps({"releases": self.settings})
        if only_for:
            mine = f"grains['id'] == '{self.id(only_for)}'"
            text = f"{{% if {mine} %}}{text}{{% else %}}{{}}{{% endif %}}"
        self.pillar.write_text(text)

    def by_id(self, *arguments: str, tgt: str = "*") -> dict[str, dict[str, dict[str, Any]]]:
        """The answers of the states on each minion, by ID."""
        answers = self.highstate(*arguments, tgt=tgt)
        return {
            short: {state["__id__"]: state for state in states} for short, states in answers.items()
        }

    def runs(self) -> dict[str, dict[str, str]]:
        """The release that each program runs on, by minion."""
        return {short: manager.runs_on() for short, manager in self.managers.items()}

    def untouched(self, app: str) -> Any:
        """All that must stay as it is where a run is about another app."""
        return {
            short: (
                environments.digest(self.home(short) / app),
                (manager.configs / f"{app}.conf").read_text(),
                {name: one["pid"] for name, one in manager.known().items() if app in name},
            )
            for short, manager in self.managers.items()
        }


@pytest.fixture
def fleet(all_minions: Fleet, tmp_path: Path) -> Iterator[Formula]:
    """The fleet with apps that have not been deployed yet."""
    made = Formula(all_minions, tmp_path)
    made.begin("shop")
    yield made
    for manager in made.managers.values():
        manager.end()


@pytest.fixture
def deployed(fleet: Formula) -> Formula:
    """The fleet with the first release of both apps."""
    for states in fleet.highstate().values():
        assert {state["result"] for state in states} == {True}, states
    return fleet


def everywhere(**releases: str) -> dict[str, dict[str, str]]:
    """What runs on all minions."""
    programs = {f"{app}:web": release for app, release in releases.items()}
    return {short: dict(programs) for short in MINIONS}


@pytest.mark.slow
def test_from_bare_to_running(fleet: Formula) -> None:
    tree = environments.digest(fleet.base)
    for states in fleet.by_id("test=True").values():
        assert {state["result"] for state in states.values()} <= {None, True}
        wanted = {"shop is deployed", "shop runs", "shop answers", "blog is deployed"}
        assert {states[key]["result"] for key in wanted} == {None}
    assert environments.digest(fleet.base) == tree
    assert fleet.runs() == everywhere()

    for states in fleet.by_id().values():
        assert {state["result"] for state in states.values()} == {True}, states
    assert fleet.runs() == everywhere(shop="1", blog="1")
    for states in fleet.by_id().values():
        states_of = [(state["result"], state["changes"]) for state in states.values()]
        assert states_of == [(True, {})] * len(states_of)
    assert fleet.view()["comment"] == "All 3 minions are on 1."


@pytest.mark.slow
def test_a_roll_out_is_about_one_app(fleet: Formula) -> None:
    """The other one is not made, and what is wrong with it does not count."""
    del fleet.apps["blog"]["source"]
    fleet.write()
    answer = fleet.roll("2", "canary=0", "batch=100%")
    assert answer["comment"] == "2 was rolled out to 3 minions."
    assert fleet.runs() == everywhere(shop="2")
    assert [os.listdir(fleet.home(short)) for short in MINIONS] == [["shop"]] * 3
    assert fleet.roll("2")["comment"] == "2 is on 3 minions already; nothing was to be done."


@pytest.mark.slow
def test_a_minion_without_the_app_is_reported_first(fleet: Formula) -> None:
    fleet.write(only_for="web2")
    answer = fleet.roll("2", "test=True")
    assert answer["comment"] == (
        "Nothing was rolled out: web1, web10 cannot take the release from "
        "releases:apps:shop:release: the pillar of releases: releases:run:app: shop is no app of "
        "this minion: there are none."
    )
    fleet.write()
    answer, code = fleet.run("releases.roll", f"{fleet.base}/{EACH}/store", "2")
    assert code == 1
    assert answer["comment"] == (
        "Nothing was rolled out: web1, web2, web10 cannot take the release from "
        "releases:apps:store:release: the pillar of releases: releases:run:app: store is no app "
        "of this minion: there are blog, shop."
    )
    assert fleet.on() == dict.fromkeys(MINIONS)


@pytest.mark.slow
def test_an_app_that_is_broken_already_is_not_concerned(deployed: Formula) -> None:
    fleet = deployed
    for short in MINIONS:
        fleet.sicken(short, "blog")
    fleet.apps["blog"]["keep_releases"] = 1
    fleet.apps["blog"]["programs"]["web"]["env"] = {"MORE": "1"}
    fleet.want("2", app="blog")
    before = fleet.untouched("blog")
    answer = fleet.roll("2", "batch=1")
    assert (answer["result"], answer["switched"]) == (True, ["web1", "web2", "web10"])
    assert fleet.untouched("blog") == before
    assert fleet.runs() == everywhere(shop="2", blog="1")
    fleet.want("2")
    for states in fleet.by_id().values():  # which brings all that stands in pillar
        failed = [key for key, state in states.items() if state["result"] is False]
        assert failed == ["blog answers"]


@pytest.mark.slow
def test_a_canary_that_fails(deployed: Formula) -> None:
    fleet = deployed
    fleet.sicken("web1", "2")
    before = fleet.untouched("blog")
    said = fleet.roll("2", "test=True")
    assert said["comment"].startswith("2 would be rolled out, canary: web1 (from 1); batch 1: ")
    answer = fleet.roll("2")
    assert answer["result"] is False
    assert answer["comment"].startswith(
        "The roll-out of 2 has failed on web1: shop answers: 2 is not healthy: `read which"
    )
    assert (answer["back"], answer["untouched"]) == ({"web1": "1"}, ["web2", "web10"])
    assert fleet.runs() == everywhere(shop="1", blog="1")
    assert fleet.untouched("blog") == before
    assert fleet.view()["comment"] == "All 3 minions are on 1."


@pytest.mark.slow
def test_a_failure_in_the_second_batch(deployed: Formula) -> None:
    """Each minion that was switched is rolled back by the formula, with all its programs."""
    fleet = deployed
    fleet.sicken("web10", "2")
    before = fleet.untouched("blog")
    answer = fleet.roll("2", "batch=1")
    assert answer["result"] is False
    assert [step["minions"] for step in answer["steps"]] == [["web1"], ["web2"], ["web10"]]
    assert answer["back"] == dict.fromkeys(MINIONS, "1")
    assert (answer["stuck"], answer["switched"], answer["untouched"]) == ({}, [], [])
    assert fleet.runs() == everywhere(shop="1", blog="1")
    assert fleet.untouched("blog") == before
    refused = fleet.roll("2")
    assert refused["comment"].startswith("Nothing was rolled out: 2 is marked bad on web1, web2, ")


@pytest.mark.slow
def test_a_minion_that_was_away(deployed: Formula) -> None:
    """The roll-out leaves it out, and the next highstate brings it along."""
    fleet = deployed
    away = fleet.daemons["web2"]
    away.terminate()
    try:
        answer = fleet.roll("2", "batch=1")
        assert (answer["result"], answer["missing"]) == (True, ["web2"])
    finally:
        away.start()
    assert fleet.on() == {"web1": "2", "web2": "1", "web10": "2"}
    fleet.want("2")
    for short, states in fleet.by_id().items():
        assert {state["result"] for state in states.values()} == {True}, states
        changed = [key for key, state in states.items() if state["changes"]]
        assert bool(changed) == (short == "web2")
    assert fleet.runs() == everywhere(shop="2", blog="1")


@pytest.mark.slow
def test_an_orchestration(deployed: Formula) -> None:
    fleet = deployed
    wanted = {"sls": "releases", "pillar_key": "releases:apps:shop:release"}
    for arguments, result in ((("test=True",), None), ((), True)):
        state, code = fleet.orchestrate(*arguments, release="2", batch="100%", **wanted)
        assert (state["result"], code) == (result, 0), state
    assert fleet.runs() == everywhere(shop="2", blog="1")
