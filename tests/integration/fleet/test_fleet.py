"""Highstates on all minions, what each of them fetches, and the view of the fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet.conftest import EACH, MINIONS, SECONDS, Fleet
from tests.support import environments, minions

pytestmark = pytest.mark.integration


def results(answers: dict[str, list[dict[str, Any]]]) -> list[list[bool | None]]:
    """The states' results, of each minion once."""
    assert set(answers) == set(MINIONS)
    found = [[state["result"] for state in states] for states in answers.values()]
    return [one for number, one in enumerate(found) if one not in found[:number]]


@pytest.mark.slow
def test_highstates(fleet: Fleet) -> None:
    view = fleet.view()
    assert view["comment"] == "None of 3 minions is on a release."
    assert view["stragglers"] == dict.fromkeys(MINIONS, f"Has no release in {fleet.root}.")
    assert (view["release"], view["releases"], view["bad"]) == (None, {}, {})

    tree = environments.digest(fleet.base)
    assert results(fleet.highstate("test=True")) == [[None, None, None, None, True]]
    assert environments.digest(fleet.base) == tree
    assert fleet.on() == dict.fromkeys(MINIONS)

    done = fleet.highstate()
    assert results(done) == [[True] * 5]
    assert fleet.on() == dict.fromkeys(MINIONS, "1")
    assert results(fleet.highstate("test=True")) == [[True] * 5]
    again = fleet.highstate()
    assert results(again) == [[True] * 5]
    assert not [
        state["changes"] for states in again.values() for state in states if state["changes"]
    ]
    assert [fleet.restarts(short) for short in MINIONS] == [["1"]] * 3

    view = fleet.view()
    assert view["comment"] == "All 3 minions are on 1."
    assert view["releases"] == {"1": ["web1", "web2", "web10"]}
    assert (view["release"], view["stragglers"], view["bad"]) == ("1", {}, {})
    for short in MINIONS:
        minion = view["minions"][short]
        assert minion["since"].endswith("Z")
        assert minion["job"].isdigit()
        told = {
            "release": "1",
            "how": "activated",
            "user": "root",
            "healthy": True,
            "problem": None,
        }
        assert {key: minion[key] for key in told} == told
    assert len({minion["job"] for minion in view["minions"].values()}) == 1
    assert "minions" not in fleet.view("brief=True")


@pytest.mark.slow
def test_only_what_changed_is_fetched(deployed: Fleet) -> None:
    fleet = deployed
    fleet.want("2")
    (said,) = fleet.highstate("test=True", tgt=fleet.id("web1")).values()
    assert said[0]["result"] is None
    for states in fleet.highstate().values():
        assert states[0]["comment"].endswith(" files taken from another release.")
        assert "deployed from salt://shop/2.from-1.tar.gz" in states[0]["comment"]
    assert fleet.on() == dict.fromkeys(MINIONS, "2")
    for short in MINIONS:
        whole = fleet.salt(
            "virtualenv_tools.check", f"{fleet.root}/2", "deep=True", tgt=fleet.id(short)
        )
        assert whole[short]["ok"] is True, whole
        cache = Path(fleet.daemons[short].config["cachedir"])
        assert list(cache.rglob("*.tar.gz")) == []


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence(fleet: Fleet) -> None:
    for arguments, words in (
        ((), "Root is missing: give the directory of the releases."),
        (("srv/shop",), "The root must be an absolute path: srv/shop."),
        (("/srv/shop", "tgt=nobody"), "No minion matches the target nobody."),
        (("/srv/shop", "release=1.5"), "The release must be a name, "),
        (("/srv/shop", "targt=web*"), "There is no parameter targt: see sys.doc."),
    ):
        answer, code = fleet.run("releases.fleet", *arguments)
        assert answer["comment"].startswith(words), answer
        assert (answer["result"], code) == (False, 1)


@pytest.mark.slow
def test_a_marked_release(deployed: Fleet) -> None:
    fleet = deployed
    path = f"{fleet.root}/1"
    fleet.salt("virtualenv_tools.mark_bad", path, "reason=leaks memory", tgt=fleet.id("web2"))
    view = fleet.view()
    assert view["bad"] == {"1": {"leaks memory": ["web2"]}}
    assert list(view["stragglers"]) == ["web2"]
    told = view["stragglers"]["web2"]
    assert told.endswith(", and that is marked bad there: leaks memory.")
    assert fleet.view("release=2")["comment"] == "0 of 3 minions are on 2."


@pytest.mark.slow
def test_a_minion_that_was_away(deployed: Fleet) -> None:
    fleet = deployed
    away = fleet.daemons["web2"]
    away.terminate()
    try:
        answer = fleet.roll("2", "batch=1")
        assert answer["result"] is True
        assert answer["comment"] == (
            "2 was rolled out to 2 minions. 1 minion does not answer, and does not get it: web2."
        )
        assert answer["missing"] == ["web2"]
        view = fleet.view()
        assert view["comment"] == "2 of 3 minions are on 2; 1 of them does not answer."
        assert view["stragglers"] == {"web2": "Does not answer."}
        assert view["minions"]["web2"]["problem"] == "Does not answer."
    finally:
        away.start()
    stragglers = fleet.view()["stragglers"]
    assert list(stragglers) == ["web2"]
    assert stragglers["web2"].startswith("Is on 1 since 20")
    fleet.want("2")
    answers = fleet.highstate()
    assert results(answers) == [[True] * 5]
    view = fleet.view()
    assert view["comment"] == "All 3 minions are on 2."
    assert view["minions"]["web1"]["job"] != view["minions"]["web2"]["job"]


@pytest.mark.slow
def test_the_outputs(deployed: Fleet) -> None:
    """One for people, and one document for programs."""
    fleet = deployed
    cli = fleet.master.salt_run_cli(timeout=SECONDS)
    said = cli.run("releases.fleet", fleet.root, "--out=nested").stdout
    assert "comment:\n    All 3 minions are on 1.\n" in said
    arguments = (fleet.root, "2", "sls=shop", "pillar_key=shop:release")
    told = cli.run("releases.roll", *arguments, "batch=1", "--out=nested").stdout
    assert "message:\n        batch 1, 2 of 3: " in told
    told = cli.run("releases.roll", fleet.root, "3", *arguments[2:], "--out=json").stdout
    assert json.loads(told)["result"] is True


@pytest.mark.slow
def test_an_extension_that_is_not_there_or_older(deployed: Fleet) -> None:
    """A sync upgrades minions that live on; until then the view reports which ones need it."""
    fleet = deployed
    module = fleet.file_root / "_modules" / "virtualenv_tools.py"
    good = module.read_text()
    pids = [daemon.pid for daemon in fleet.daemons.values()]
    try:
        module.write_text(good.replace("def active(", "def active_as_it_was(", 1))
        fleet.salt("saltutil.sync_modules", tgt=fleet.id("web1"))
        module.write_text("raise ImportError('not on this one')")
        fleet.salt("saltutil.sync_modules", tgt=fleet.id("web2"))
        view = fleet.view()
        words = "has no extension or an older one: run saltutil.sync_all there."
        assert view["stragglers"] == dict.fromkeys(("web1", "web2"), f"H{words[1:]}")
        answer = fleet.roll("2")
        assert answer["comment"] == f"Nothing was rolled out: web1 {words}"
        module.write_text(good.replace("there is no user", "no such user here,"))
        fleet.salt("saltutil.sync_modules")
        assert fleet.view()["comment"] == "All 3 minions are on 1."
        said = fleet.salt("virtualenv_tools.unpack", "/a.tar", f"{fleet.base}/x/1", "user=nobody-")
        assert all("no such user here," in told for told in said.values())
        assert [daemon.pid for daemon in fleet.daemons.values()] == pids
    finally:
        module.write_text(good)
        fleet.salt("saltutil.sync_modules")


@pytest.mark.slow
def test_an_error_of_a_minion(deployed: Fleet) -> None:
    """A root that is a file is reported in one sentence."""
    fleet = deployed
    records = fleet.home("web10") / fleet.name / ".releases" / "history.jsonl"
    records.unlink()
    records.mkdir()
    view = fleet.view()
    assert list(view["stragglers"]) == ["web10"]
    assert view["stragglers"]["web10"].startswith("Cannot be asked: ")
    assert minions.sentence(view["stragglers"]["web10"])
    assert EACH not in view["stragglers"]["web10"]
