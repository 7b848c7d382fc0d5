"""A release for a canary, then in batches; back where one fails; safe to be called again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("pytestshellutils", reason="pytest-salt-factories is not installed")

from pytestshellutils.exceptions import FactoryTimeout

from tests.integration.fleet.conftest import MINIONS, Fleet
from tests.support import environments, minions

pytestmark = pytest.mark.integration


def test_a_roll_out_to_a_single_minion(one_minion: Fleet) -> None:
    """What the quick tests have of a real master: it costs a third of a fleet of three."""
    fleet = one_minion
    done = fleet.roll("2")
    assert done["result"] is True
    assert done["comment"] == "2 was rolled out to 1 minion."
    assert fleet.on() == {"web1": "2"}
    assert fleet.restarts("web1") == ["1", "2"]
    (known,) = fleet.salt("virtualenv_tools.releases", fleet.root).values()
    assert known["2"]["source"] == "salt://shop/2.from-1.tar.gz"
    again = fleet.roll("2")
    assert (again["result"], again["steps"]) == (True, [])


@pytest.mark.slow
def test_a_roll_out(deployed: Fleet) -> None:
    fleet = deployed
    tree = environments.digest(fleet.base)
    said = fleet.roll("2", "batch=1", "test=True")
    assert said["result"] is None
    assert said["comment"] == (
        "2 would be rolled out, canary: web1 (from 1); batch 1: web2 (from 1); "
        "batch 2: web10 (from 1)."
    )
    assert environments.digest(fleet.base) == tree

    done = fleet.roll("2", "batch=1")
    assert done["result"] is True
    assert done["steps"] == said["steps"]
    assert done["comment"] == "2 was rolled out to 3 minions."
    assert fleet.on() == dict.fromkeys(MINIONS, "2")
    assert [fleet.restarts(short) for short in MINIONS] == [["1", "2"]] * 3
    known = fleet.salt("virtualenv_tools.releases", fleet.root)
    assert {one["2"]["source"] for one in known.values()} == {"salt://shop/2.from-1.tar.gz"}
    view = fleet.view()
    jobs = [view["minions"][short]["job"] for short in ("web1", "web2", "web10")]
    assert jobs == sorted(set(jobs))  # one after the other

    again = fleet.roll("2", "batch=1")
    assert (again["result"], again["steps"]) == (True, [])
    assert again["comment"] == "2 is on 3 minions already; nothing was to be done."


@pytest.mark.slow
def test_a_canary_that_fails(deployed: Fleet) -> None:
    fleet = deployed
    sick = fleet.sicken("web2", "2")
    answer = fleet.roll("2", f"canary=[{fleet.id('web2')}]")
    assert answer["result"] is False
    assert answer["comment"].startswith(
        "The roll-out of 2 has failed on web2: the shop answers: 2 is not healthy: `read which"
    )
    assert answer["comment"].endswith(" Back on the previous release: web2.")
    assert (answer["back"], answer["untouched"]) == ({"web2": "1"}, ["web1", "web10"])
    assert fleet.on() == dict.fromkeys(MINIONS, "1")
    assert fleet.restarts("web1") == ["1"]
    assert list(fleet.view()["bad"]) == ["2"]

    # It is not tried again by itself, and goes on when that is wanted.
    answer = fleet.roll("2")
    assert answer["result"] is False
    assert answer["comment"].startswith("Nothing was rolled out: 2 is marked bad on web2 (`read ")
    assert f"run virtualenv_tools.unmark_bad {fleet.root}/2 there first." in answer["comment"]
    sick.unlink()
    fleet.salt("virtualenv_tools.unmark_bad", f"{fleet.root}/2", tgt=fleet.id("web2"))
    assert fleet.roll("2", "batch=100%")["result"] is True
    assert fleet.on() == dict.fromkeys(MINIONS, "2")


@pytest.mark.slow
def test_a_failure_in_the_second_batch(deployed: Fleet) -> None:
    """All that this run has switched go back; what had the release before stays on it."""
    fleet = deployed
    (states,) = fleet.highstate("pillar={shop: {release: '2'}}", tgt=fleet.id("web1")).values()
    assert states[-1]["result"] is True
    fleet.sicken("web10", "2")
    said = fleet.roll("2", "canary=0", "batch=1", "test=True")
    assert [step["minions"] for step in said["steps"]] == [["web2"], ["web10"]]
    answer = fleet.roll("2", "canary=0", "batch=1")
    assert answer["result"] is False
    assert list(answer["failed"]) == ["web10"]
    assert answer["back"] == {"web2": "1", "web10": "1"}
    assert (answer["skipped"], answer["switched"], answer["stuck"]) == (["web1"], [], {})
    assert fleet.on() == {"web1": "2", "web2": "1", "web10": "1"}
    assert fleet.restarts("web2") == ["1", "2", "1"]
    view = fleet.view()
    assert view["comment"] == "2 of 3 minions are on 1."
    (reasons,) = view["bad"].values()
    assert sorted(reasons.values()) == [["web10"], ["web2"]]
    (told,) = [reason for reason, names in reasons.items() if names == ["web2"]]
    assert told.startswith("the roll-out has failed on web10: the shop answers: 2 is not healthy")
    # No highstate brings the release back to those.
    fleet.want("2")
    assert fleet.highstate()["web2"][1]["result"] is False
    assert fleet.on() == {"web1": "2", "web2": "1", "web10": "1"}


@pytest.mark.slow
def test_bad_parameters(fleet: Fleet) -> None:
    for argument, words in (
        ("canary=-1", "Canary must be a number or a list of minions: -1."),
        ("batch=0", "Batch must be a number of at least 1 or a percentage up to 100%: 0."),
        ("release=a/b", "The release must be a name, without a slash or a space: 'a/b'."),
    ):
        arguments = ["/srv/shop", "release=2", argument]
        answer, code = fleet.run("releases.roll", *arguments)
        assert answer["comment"] == words
        assert (answer["result"], code) == (False, 1)


@pytest.mark.slow
def test_the_first_release(fleet: Fleet) -> None:
    """A minion that had none before cannot go back, and stays."""
    fleet.sicken("web10", "1")
    answer = fleet.roll("1", "canary=2", "batch=1")
    assert answer["result"] is False
    assert answer["before"] == dict.fromkeys(MINIONS)
    stays = dict.fromkeys(MINIONS, "Stays on 1, as it had no previous release.")
    assert answer["stuck"] == stays
    assert answer["comment"].endswith(" Look after web1, web2, web10.")
    assert fleet.on() == dict.fromkeys(MINIONS, "1")


@pytest.mark.slow
def test_an_sls_that_takes_no_notice(deployed: Fleet) -> None:
    """Its states succeed, and the release is not there."""
    fleet = deployed
    answer = fleet.roll("2", "pillar_key=other:place")
    assert answer["result"] is False
    assert answer["failed"] == {
        "web1": "Is on 1 after shop was applied: see that it takes the release from pillar, at "
        f"other:place, and its root is {fleet.root}."
    }
    answer = fleet.roll("2", "sls=nothing")
    assert "No matching sls found for 'nothing' in env 'base'" in answer["failed"]["web1"]
    assert fleet.on() == dict.fromkeys(MINIONS, "1")


@pytest.mark.slow
def test_back_without_the_sls(deployed: Fleet) -> None:
    """Where the SLS does not come to the switch any more, the links are switched alone."""
    fleet = deployed
    fleet.sicken("web10", "2")
    broken = '{% if app["release"] == "1" %}{{ no["such release"] }}{% endif %}'
    sls = fleet.file_root / "shop.sls"
    good = sls.read_text()
    try:
        sls.write_text(good.replace("{% set root", broken + "\n{% set root", 1))
        answer = fleet.roll("2", "batch=1")
    finally:
        sls.write_text(good)
    assert answer["result"] is False
    assert answer["back"] == dict.fromkeys(MINIONS, "1")
    assert set(answer["stuck"]) == {"web1", "web2"}
    assert answer["stuck"]["web1"].startswith("Is on 1, and not all of its states succeed: ")
    assert fleet.on() == dict.fromkeys(MINIONS, "1")


@pytest.mark.slow
def test_it_waits_for_a_highstate(deployed: Fleet) -> None:
    fleet = deployed
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(
            fleet.salt, "state.single", "cmd.run", "name=sleep 5", tgt=fleet.id("web1")
        )
        time.sleep(2)
        answer = fleet.roll("2", "batch=2")
        assert slow.done()
    assert answer["comment"] == "2 was rolled out to 3 minions."


@pytest.mark.slow
def test_two_at_once(deployed: Fleet) -> None:
    fleet = deployed
    options = ("sls=shop", "pillar_key=shop:release", "batch=100%", "pause=8")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fleet.run, "releases.roll", fleet.root, "2", *options)
        while fleet.on()["web1"] == "1":
            time.sleep(0.2)
        second = fleet.roll("3", "batch=1")
        assert f"Another roll-out in {fleet.root} is under way, as job " in second["comment"]
        assert fleet.on() == {"web1": "2", "web2": "1", "web10": "1"}
        said = fleet.roll("2", "batch=100%", "test=True")
        assert [step["minions"] for step in said["steps"]] == [["web2", "web10"]]
        answer, code = first.result()
    assert (answer["result"], code) == (True, 0), answer
    assert fleet.on() == dict.fromkeys(MINIONS, "2")


@pytest.mark.slow
def test_one_that_is_killed_goes_on(deployed: Fleet) -> None:
    fleet = deployed
    arguments = (fleet.root, "2", "sls=shop", "pillar_key=shop:release", "pause=60")
    with pytest.raises(FactoryTimeout):
        fleet.master.salt_run_cli().run("releases.roll", *arguments, _timeout=10)
    assert fleet.on() == {"web1": "2", "web2": "1", "web10": "1"}
    answer = fleet.roll("2", "batch=100%")
    assert answer["comment"] == "2 was rolled out to 2 minions; 1 minion had it already."
    assert fleet.restarts("web1") == ["1", "2"]


@pytest.mark.slow
def test_an_orchestration(deployed: Fleet) -> None:
    fleet = deployed
    state, code = fleet.orchestrate("test=True", release="2", batch=2)
    assert (state["result"], code) == (None, 0)
    assert state["comment"] == (
        "2 would be rolled out, canary: web1 (from 1); batch 1: web2, web10 (from 1)."
    )
    assert fleet.on() == dict.fromkeys(MINIONS, "1")
    state, code = fleet.orchestrate("test=True", release="2", batch="many")
    assert (state["result"], code) == (False, 1)
    assert state["comment"].startswith("Batch must be a number")
    state, code = fleet.orchestrate(release="2", batch="many")
    assert (state["result"], code) == (False, 1)
    assert state["changes"]["return"]["comment"].startswith("Batch must be a number")
    state, code = fleet.orchestrate(release="2", batch=2)
    assert (state["result"], code) == (True, 0)
    assert state["changes"]["return"]["comment"] == "2 was rolled out to 3 minions."
    fleet.sicken("web1", "3")
    state, code = fleet.orchestrate(release="3", pause=0.1)
    assert (state["result"], code) == (False, 1)
    told = state["changes"]["return"]
    assert told["comment"].startswith("The roll-out of 3 has failed on web1: ")
    assert minions.sentence(told["comment"])
    assert fleet.on() == dict.fromkeys(MINIONS, "2")
