"""The runner without a master: what minions answer is given, and what it makes of that is seen."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions

pytest.importorskip("salt", reason="Salt does not run on this Python")

import salt.loader
from salt.exceptions import SaltReqTimeoutError

PYTHON = "/srv/pythons/cpython-3.13.0-1f3a9c0b72de"
ROOT = "/srv/shop"
TOOLS = "virtualenv_tools"


class Killed(BaseException):
    """The runner is killed: nothing that it wants to do after that is done."""


class Minions:
    """Minions that answer at once.

    Attributes:
        on: the release of each one; None for one that has none yet.
        down: those that do not answer.
        sick: (minion, release) that is not healthy: the minion goes back by itself.
        broken: minions of which another state fails, after the switch.
        deaf: minions whose SLS does not switch.
        bad: why a release is marked bad, by minion.
        unproven: minions that are on their release without having been found healthy.
        problems: what a minion answers instead of facts.
        refusals: the states of the formula for a minion with a wrong pillar.
        hosts: who migrates the schema, by minion, in pillar and, once deployed, as recorded.
        schema: what the shared schema is at: the release that it was migrated for.
        migrations: each change of it: who, and to which release.
        unpacked: the releases that each minion has unpacked.
        full: those that cannot unpack anything.
        previous: what a minion would roll back to, where that is not `1`.
        rolled_from: what a minion was rolled back from.
        activated_after: what a minion was on before its release was activated.
        newest_first: all releases that there are, in that order.
        diffs: how a build differs from a release, by their paths.
        sources: where a minion deploys its release from, as the formula has it.
        claims: whose a minion is.
        last_job: after which job the runner is killed, counted from the next one on.
        jobs: all jobs, as (function, minions, arguments); the formula's look at the pillar is
            `checked`.
    """

    def __init__(self, **on: str | None) -> None:
        self.on = dict(on)
        self.down: set[str] = set()
        self.sick: set[tuple[str, str]] = set()
        self.broken: set[str] = set()
        self.deaf: set[str] = set()
        self.bad: dict[str, dict[str, str]] = {}
        self.unproven: set[str] = set()
        self.problems: dict[str, Any] = {}
        self.refusals: dict[str, Any] = {}
        self.hosts: dict[str, str] = {}
        self.schema = "1"
        self.migrations: list[tuple[str, str]] = []
        self.unpacked: dict[str, set[str]] = {}
        self.full: set[str] = set()
        self.previous: dict[str, str] = {}
        self.rolled_from: dict[str, str] = {}
        self.activated_after: dict[str, str] = {}
        self.newest_first = ["5", "4", "3", "2", "1", "0"]
        self.diffs: dict[tuple[str, str], str] = {}
        self.sources: dict[str, str] = {}
        self.claims: dict[str, str] = {}
        self.last_job: int | None = None
        self.jobs: list[tuple[str, list[str], dict[str, Any]]] = []

    def ask(
        self, tgt: Any, tgt_type: str, functions: Any, arguments: list[Any], timeout: Any
    ) -> dict[str, Any]:
        """Stands for the runner's `_ask`."""
        names = [name for name in self.on if fnmatch(name, tgt)] if tgt_type == "glob" else tgt
        keywords = arguments[0] if isinstance(functions, str) else {}
        if keywords.get("mods", [""])[0].endswith(".checked"):
            functions = "checked"
        if self.last_job is not None and self.last_job <= 0:
            raise Killed
        self.jobs.append((functions if isinstance(functions, str) else "facts", names, keywords))
        json.dumps(arguments)
        answers = {
            name: None if name in self.down else {"ret": self.answer(name, functions, keywords)}
            for name in names
        }
        if self.last_job is not None:
            self.last_job -= 1
            if not self.last_job:
                raise Killed
        return answers

    def answer(self, name: str, function: Any, keywords: dict[str, Any]) -> Any:
        """What one minion does and answers."""
        if function == "checked":
            return self.refusals.get(name, self.host_state(name))
        if function == f"{TOOLS}.migrate_down":
            return self.migrate_down(name, keywords)
        if function == f"{TOOLS}.diff":
            line = self.diffs.get((keywords["old"], keywords["new"]))
            return "ERROR: it does not exist" if line is None else {"summary": line}
        if function == f"{TOOLS}.claim":
            holder = self.claims.setdefault(name, keywords["holder"])
            claim = {"holder": holder, "doing": "roll-out of 3", "since": "2026-01-01T00:00:00Z"}
            return {"claimed": holder == keywords["holder"], **claim}
        if function == f"{TOOLS}.unclaim":
            if self.claims.get(name) == keywords["holder"]:
                del self.claims[name]
            return True
        if function == "state.apply" and keywords["mods"][-1].endswith((".unpack", ".migrate")):
            return self.prepare(name, keywords)
        if function == "state.apply" and keywords["mods"][-1].endswith(".rollback"):
            return self.roll_back(name, keywords["pillar"]["releases"])
        if function == "state.apply":
            return self.apply(name, keywords["pillar"]["releases"]["apps"]["shop"]["release"])
        if function == f"{TOOLS}.mark_bad":
            release = keywords["path"].rpartition("/")[2]
            self.bad.setdefault(name, {})[release] = keywords["reason"]
            return True
        if function == f"{TOOLS}.rollback":
            assert self.on[name] == keywords["leaving"]
            if keywords.get("test"):
                return {"release": self.previous.get(name, "1")}
            self.rolled_from[name] = keywords["leaving"]
            self.bad.setdefault(name, {})[keywords["leaving"]] = keywords["reason"]
            self.on[name] = keywords["to"]
            return {}
        return self.problems.get(name, self.facts(name))

    def host_state(self, name: str) -> dict[str, Any]:
        """What the formula's `host` reports."""
        found = {
            "shop is migrated by its host": self.hosts.get(name),
            "shop is deployed from its source": self.sources.get(name),
        }
        return {
            key: {"__id__": key, "result": True, "comment": "", "name": value}
            for key, value in found.items()
            if value is not None
        }

    def prepare(self, name: str, keywords: dict[str, Any]) -> Any:
        """The formula's `unpack` and `migrate`."""
        release = keywords["pillar"]["releases"]["apps"]["shop"]["release"]
        state = {"__id__": "shop is deployed", "__run_num__": 1, "result": True, "comment": "."}
        if name in self.full:
            return {"state": {**state, "result": False, "comment": "The disk is full."}}
        self.unpacked.setdefault(name, set()).add(release)
        if keywords["mods"][-1].endswith(".migrate"):
            assert name == self.hosts[name]
            if self.schema != release:
                self.migrations.append((name, release))
            self.schema = release
        return {"state": state}

    def roll_back(self, name: str, pillar: dict[str, Any]) -> Any:
        """The formula's `rollback`."""
        assert pillar["run"]["app"] == "shop"
        state = {"__id__": "shop is rolled back", "__run_num__": 1, "result": True, "comment": "."}
        if name in self.deaf:
            return {"state": {**state, "result": False, "comment": "It does not stop."}}
        if self.on[name] == pillar["run"]["from"]:
            self.rolled_from[name] = pillar["run"]["from"]
            self.on[name] = pillar["run"]["to"]
        return {"state": state}

    def migrate_down(self, name: str, keywords: dict[str, Any]) -> Any:
        """What the host does at the end."""
        to = keywords["to"]
        if set(keywords["running"]) != {to}:
            return "ERROR: the schema is left as it is: another release still runs"
        old, self.schema = self.schema, to
        if old != to:
            self.migrations.append((name, to))
        return {"changed": old != to, "old": f"shop {old}", "new": f"shop {to}"}

    def apply(self, name: str, release: str) -> Any:
        """The SLS of the formula."""
        state = {"__id__": "the shop answers", "__run_num__": 1, "result": True, "comment": "Fine."}
        before, self.on[name] = self.on[name], release
        if name in self.deaf:
            self.on[name] = before
        elif (name, release) in self.sick:
            self.bad.setdefault(name, {})[release] = "answers with 500"
            self.on[name] = before or release
            self.rolled_from[name] = release
            state.update(result=False, comment=f"{release} answers with 500. It is marked bad.")
        elif name in self.broken:
            return ["Rendering SLS 'base:releases' failed: no such key"]
        if before not in (None, self.on[name]):
            self.activated_after[name] = str(before)
            self.rolled_from.pop(name, None)
        return {"state": state}

    def facts(self, name: str) -> dict[str, Any]:
        """What the extension answers."""
        release = self.on[name]
        known = {one: {"bad": why} for one, why in self.bad.get(name, {}).items()}
        events = []
        if release is not None:
            known.setdefault(release, {})["interpreter"] = PYTHON
            events = [
                {"time": "2026-01-01T00:00:00Z", "event": "activated", "release": release},
                {"time": "2026-01-02T00:00:00Z", "event": "healthy", "release": release},
            ]
            known = {one: known[one] for one in self.newest_first if one in known} or known
            if name in self.activated_after:
                events[0]["previous"] = self.activated_after[name]
            if name in self.rolled_from:
                events[0].update(event="rolled_back", previous=self.rolled_from[name])
        return {
            f"{TOOLS}.active": {"release": release, "proven": name not in self.unproven},
            f"{TOOLS}.releases": known,
            f"{TOOLS}.history": events,
            f"{TOOLS}.schemas": self.schemas(name),
            f"{TOOLS}.claimed": {"holder": self.claims[name]} if name in self.claims else {},
        }

    def schemas(self, name: str) -> dict[str, Any]:
        """What a minion that was deployed has recorded of its schema."""
        if name not in self.hosts or self.on[name] is None:
            return {}
        known = {
            "host": self.hosts[name],
            "place": "postgresql db shop",
            "version": f"shop {self.schema}",
            "release": self.schema,
            "fits": [str(one) for one in range(int(self.schema) + 1)],
        }
        change = {"event": "migrated", "time": "2026-01-03T00:00:00Z", "by": self.schema}
        return {"django default": {**known, **change}}

    def did(self, function: str) -> list[list[str]]:
        """The minions of each job of a function."""
        return [names for one, names, _ in self.jobs if one == function]


class Runner:
    """The runner, as Salt's loader has it.

    Attributes:
        functions: what the loader has found.
        context: Salt's `__context__`.
        reports: its progress.
    """

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        opts = {
            **minions.masterless(directory, directory),
            "conf_file": str(directory / "master"),
            "runner_dirs": [str(minions.CHECKOUT / "_runners")],
            "optimization_order": [0],
            "master_job_cache": "local_cache",
            "ext_job_cache": "",
        }
        self.context: dict[str, Any] = {}
        self.functions = salt.loader.runner(opts, context=self.context, whitelist=["releases"])
        self.space = self.functions["releases.roll"].__globals__
        self.patch = patch
        self.reports: list[str] = []
        patch.setitem(self.space, "_report", self.reports.append)
        patch.setitem(self.space, "_refuse_second", lambda root: None)

    def __call__(self, function: str, there: Minions, *arguments: Any, **options: Any) -> Any:
        self.patch.setitem(self.space, "_ask", there.ask)
        self.context.pop("retcode", None)
        answer = self.functions[f"releases.{function}"](*arguments, **options)
        json.dumps(answer)
        assert minions.sentence(answer["comment"]), answer
        failed = answer.get("result") is False
        assert (answer.get("retcode", 0), self.context.get("retcode", 0)) == (failed, failed)
        return answer


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tmp_path, monkeypatch)


@pytest.fixture
def there() -> Minions:
    return Minions(web10="1", web2="1", web1="1", web3="1", web4="1")


def test_what_the_loader_finds(runner: Runner) -> None:
    found = [name for name in runner.functions if name.startswith("releases.")]
    assert sorted(found) == ["releases.fleet", "releases.roll", "releases.rollback"]
    for name in found:
        assert "CLI Example:" in runner.functions[name].__doc__


# --- the fleet ------------------------------------------------------------------------------------


def test_the_fleet(runner: Runner, there: Minions) -> None:
    there.on["web3"] = "2"
    there.on["web4"] = None
    there.down = {"web10"}
    there.bad = {"web3": {"2": "leaks"}, "web1": {"3": "leaks", "1": "slow"}}
    answer = runner("fleet", there, ROOT)
    assert answer["comment"] == "2 of 5 minions are on 1; 1 of them does not answer."
    assert answer["releases"] == {"1": ["web1", "web2"], "2": ["web3"]}
    since = "since 2026-01-01T00:00:00Z"
    assert answer["stragglers"] == {
        "web1": f"Is on 1 {since}, and that is marked bad there: slow.",
        "web3": f"Is on 2 {since}, and that is marked bad there: leaks.",
        "web4": f"Has no release in {ROOT}.",
        "web10": "Does not answer.",
    }
    assert answer["bad"] == {
        "1": {"slow": ["web1"]},
        "2": {"leaks": ["web3"]},
        "3": {"leaks": ["web1"]},
    }
    assert list(answer["minions"]) == ["web1", "web2", "web3", "web4", "web10"]
    keys = {tuple(one) for one in answer["minions"].values()}
    (found,) = keys
    assert found[:6] == ("release", "since", "how", "job", "user", "healthy")
    assert found[6:] == ("interpreter", "problem")
    shared = {name: one["interpreter"] for name, one in answer["minions"].items()}
    assert (shared["web1"], shared["web4"]) == (PYTHON, None)
    assert len(there.jobs) == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("The minion is in blackout mode.", "Cannot be asked: The minion is in blackout mode."),
        (
            {f"{TOOLS}.active": "Traceback ...\n  x\nTypeError: 'str' object is not callable\n"},
            "Has no extension or an older one: run saltutil.sync_all there.",
        ),
        ({}, "Has no extension or an older one: run saltutil.sync_all there."),
        (
            {
                f"{TOOLS}.active": "Traceback ...\n  x\n"
                "salt.exceptions.CommandExecutionError: /srv/shop is not root's: see to that"
            },
            "Cannot be asked: /srv/shop is not root's: see to that.",
        ),
    ],
)
def test_a_minion_with_a_problem(runner: Runner, there: Minions, said: Any, words: str) -> None:
    there.problems["web2"] = said
    assert runner("fleet", there, ROOT)["stragglers"] == {"web2": words}
    answer = runner("roll", there, ROOT, "2")
    assert answer["comment"].startswith(
        f"Nothing was rolled out: web2 {words[0].lower()}{words[1:]}"
    )
    assert there.did("state.apply") == []


def test_thousands(runner: Runner) -> None:
    there = Minions(**{f"web{number}": "1" for number in range(5000)})
    begun = time.monotonic()
    answer = runner("fleet", there, ROOT)
    assert time.monotonic() - begun < 5
    assert answer["comment"] == "All 5,000 minions are on 1."
    assert "minions" not in runner("fleet", there, ROOT, brief=True)
    there.sick = {("web4999", "2")}
    answer = runner("roll", there, ROOT, "2", canary=10, batch="20%")
    assert [len(step["minions"]) for step in answer["steps"]] == [10, *[1000] * 4, 990]
    assert len(answer["back"]) == 5000
    assert answer["comment"].endswith("on the previous release: web0, web1, web2 and 4,997 more.")


# --- rolling out ----------------------------------------------------------------------------------


def test_the_plan(runner: Runner, there: Minions) -> None:
    def steps(**options: Any) -> list[list[str]]:
        answer = runner("roll", there, ROOT, 2, test=True, **options)
        assert answer["result"] is None
        return [step["minions"] for step in answer["steps"]]

    assert steps() == [["web1"], ["web2"], ["web3"], ["web4"], ["web10"]]
    assert steps(canary=2, batch="40%") == [["web1", "web2"], ["web3", "web4"], ["web10"]]
    assert steps(canary="web3,web10", batch=9) == [["web3", "web10"], ["web1", "web2", "web4"]]
    assert steps(canary=0, batch="100%") == [["web1", "web2", "web3", "web4", "web10"]]
    assert steps(canary=9, batch="1%") == [["web1", "web2", "web3", "web4", "web10"]]
    # The steps stay the same where some of it is done.
    there.on["web2"] = there.on["web1"] = "2"
    assert steps(batch=2) == [["web3"], ["web4", "web10"]]
    there.unproven = {"web1"}
    assert steps(batch=2) == [["web1"], ["web3"], ["web4", "web10"]]
    there.down = {"web3"}
    answer = runner("roll", there, ROOT, 2, batch=2, test=True)
    assert answer["comment"] == (
        "2 would be rolled out, canary: web1 (on it, but not found healthy); "
        "batch 1: web4 (from 1); batch 2: web10 (from 1). "
        "1 minion does not answer, and does not get it: web3."
    )
    assert there.did("state.apply") == []


def test_a_roll_out(runner: Runner, there: Minions, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(runner.space["time"], "sleep", pauses.append)
    pillar = {"releases": {"apps": {"shop": {"keep_releases": 3}}}}
    answer = runner("roll", there, f"{ROOT}/", 2, batch=2, pause=9, pillar=pillar, sls="a, b")
    assert answer["comment"] == "2 was rolled out to 5 minions."
    assert there.did("state.apply") == [["web1"], ["web2", "web3"], ["web4", "web10"]]
    assert pauses == [9, 9]
    applied = [options for function, _, options in there.jobs if function == "state.apply"]
    assert applied[0]["mods"] == ["a", "b"]
    assert applied[0]["pillar"] == {
        "releases": {"apps": {"shop": {"keep_releases": 3, "release": "2"}}}
    }
    assert pillar == {"releases": {"apps": {"shop": {"keep_releases": 3}}}}
    assert not {"saltenv", "pillarenv"} & applied[0].keys()
    assert runner.reports == [
        *("canary, 1 of 3: web1", "done on web1", "waiting for 9 seconds"),
        *("batch 1, 2 of 3: web2, web3", "done on web2, web3", "waiting for 9 seconds"),
        *("batch 2, 3 of 3: web4, web10", "done on web4, web10"),
    ]
    there.jobs.clear()
    assert runner("roll", there, ROOT, 2)["comment"] == (
        "2 is on 5 minions already; nothing was to be done."
    )
    assert len(there.jobs) == 1


def test_a_failure(runner: Runner, there: Minions) -> None:
    there.sick = {("web3", "2")}
    there.on["web2"] = "0"
    answer = runner("roll", there, ROOT, 2, batch=2)
    assert answer["comment"] == (
        "The roll-out of 2 has failed on web3: the shop answers: 2 answers with 500. "
        "Back on the previous release: web1, web2, web3."
    )
    assert there.on == {"web10": "1", "web2": "0", "web1": "1", "web3": "1", "web4": "1"}
    assert answer["failed"] == {"web3": "The shop answers: 2 answers with 500. It is marked bad."}
    assert answer["back"] == {"web1": "1", "web2": "0", "web3": "1"}
    assert answer["untouched"] == ["web4", "web10"]
    assert (answer["switched"], answer["stuck"]) == ([], {})
    why = "the roll-out has failed on web3: the shop answers: 2 answers with 500"
    assert {name: told["2"] for name, told in there.bad.items()} == {
        "web1": why,
        "web2": why,
        "web3": "answers with 500",
    }
    answer = runner("roll", there, ROOT, 2)
    assert answer["comment"] == (
        f"Nothing was rolled out: 2 is marked bad on web1, web2, web3 ({why}); if it is good, run "
        f"virtualenv_tools.unmark_bad {ROOT}/2 there first."
    )


def test_what_a_roll_out_changes(runner: Runner, there: Minions) -> None:
    """Minions on the same release are asked once, and those with the same line share it."""
    there.on["web4"] = "0"
    there.on["web10"] = None
    there.sources = dict.fromkeys(there.on, "salt://shop/2.tar.gz")
    line = "django 5.2.1 -> 5.2.4, +orjson 3.11; migrations shop 0002_price"
    there.diffs = {(f"{ROOT}/1", "salt://shop/2.tar.gz"): line}
    answer = runner("roll", there, ROOT, 2, batch="100%", test=True)
    assert answer["comment"] == (
        "2 would be rolled out, canary: web1 (from 1); batch 1: web2, web3 (from 1), "
        f"web4 (from 0), web10 (from none). On web1, web2, web3: {line}."
    )
    assert answer["changes"] == {line: ["web1", "web2", "web3"]}
    assert there.did(f"{TOOLS}.diff") == [["web1"], ["web1"], ["web4"], ["web4"]]
    runner.reports.clear()
    there.diffs = {(f"{ROOT}/{old}", f"{ROOT}/2"): line for old in ("0", "1")}
    answer = runner("roll", there, ROOT, 2, batch="100%")
    assert answer["changes"] == {line: ["web1", "web2", "web3", "web4"]}
    said = [one for one in runner.reports if one.startswith("what")]
    assert said == [f"what changes since {old}: {line}" for old in ("1", "0")]


def test_what_another_master_works_on_is_left_alone(runner: Runner, there: Minions) -> None:
    there.claims = {"web3": "other_master"}
    words = (
        f"Nothing was changed: other_master is at work in {ROOT} on web3 (roll-out of 3, since "
        "2026-01-01T00:00:00Z): wait for its end; if that was killed, call it again there, or run "
        "virtualenv_tools.unclaim on these minions."
    )
    for function in ("roll", "rollback"):
        there.on, options = dict.fromkeys(there.on, "2"), {"to": "1"}
        if function == "roll":
            there.on, options = dict.fromkeys(there.on, "1"), {"release": "2"}
        answer = runner(function, there, ROOT, **options)
        assert (answer["comment"], there.did("state.apply")) == (words, [])
        assert (there.claims, len(set(there.on.values()))) == ({"web3": "other_master"}, 1)
    there.claims = {}
    assert runner("rollback", there, ROOT, to=1)["result"] is True
    assert there.claims == {}


def test_claims_are_renewed_where_it_takes_long(
    runner: Runner, there: Minions, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 301)
    monkeypatch.setattr(runner.space["time"], "monotonic", lambda: float(next(clock)))
    assert runner("roll", there, ROOT, 2, canary=0, batch=1)["result"] is True
    assert there.did(f"{TOOLS}.claim") == [["web1", "web2", "web3", "web4", "web10"]] * 3


def test_claims_are_renewed_in_a_long_pause(
    runner: Runner, there: Minions, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(runner.space["time"], "sleep", pauses.append)
    monkeypatch.setattr(runner.space["time"], "monotonic", lambda: sum(pauses) * 1.01)
    assert runner("roll", there, ROOT, 2, canary=0, batch=4, pause=1500.5)["result"] is True
    assert pauses == [600, 600, 300.5]
    assert len(there.did(f"{TOOLS}.claim")) == 3


def test_a_failure_after_the_switch(runner: Runner, there: Minions) -> None:
    """The SLS does not help to go back either, so the link is switched without it."""
    there.broken = {"web2"}
    answer = runner("roll", there, ROOT, 2, batch=2)
    assert answer["failed"] == {"web2": "Rendering SLS 'base:releases' failed: no such key."}
    assert set(there.on.values()) == {"1"}
    assert answer["stuck"] == {
        "web2": "Is on 1, and not all of its states succeed: Rendering SLS 'base:releases' failed: "
        "no such key."
    }
    assert answer["comment"].endswith(" Look after web2.")


def test_a_minion_that_falls_silent(runner: Runner, there: Minions) -> None:
    apply = there.apply

    def cut(name: str, release: str) -> Any:
        if name == "web2":
            there.down.add(name)
        return apply(name, release)

    ask = there.ask

    def silent(tgt: Any, tgt_type: str, functions: Any, *rest: Any) -> dict[str, Any]:
        answers = ask(tgt, tgt_type, functions, *rest)
        return {name: None if name in there.down else one for name, one in answers.items()}

    there.apply = cut  # type: ignore[method-assign]
    there.ask = silent  # type: ignore[method-assign]
    answer = runner("roll", there, ROOT, 2, batch=1)
    assert answer["failed"] == {"web2": "Does not answer."}
    assert answer["back"] == {"web1": "1"}
    assert answer["stuck"] == {"web2": "Does not answer: see what it is on when it is back."}


def test_a_master_that_falls_silent(runner: Runner, there: Minions) -> None:
    """What was done is reported all the same."""
    ask = there.ask

    def lost(tgt: Any, tgt_type: str, functions: Any, *rest: Any) -> dict[str, Any]:
        if functions == "state.apply" and tgt == ["web2"]:
            raise SaltReqTimeoutError("Salt request timed out. The master is not responding.")
        return ask(tgt, tgt_type, functions, *rest)

    there.ask = lost  # type: ignore[method-assign]
    answer = runner("roll", there, ROOT, 2, batch=1)
    assert answer["result"] is False
    assert "failed on web2: Salt request timed out" in answer["comment"]
    assert set(there.on.values()) == {"1"}


def test_a_release_that_had_none_before_it(runner: Runner) -> None:
    there = Minions(web1=None, web2=None)
    there.sick = {("web2", "2")}
    answer = runner("roll", there, ROOT, 2)
    assert answer["stuck"] == dict.fromkeys(
        ("web1", "web2"), "Stays on 2, as it had no previous release."
    )
    assert answer["switched"] == ["web1", "web2"]


def test_an_sls_that_takes_no_notice(runner: Runner, there: Minions) -> None:
    there.deaf = {"web1"}
    answer = runner("roll", there, ROOT, 2)
    assert answer["failed"]["web1"] == (
        "Is on 1 after releases was applied: see that it takes the release from pillar, at "
        "releases:apps:shop:release, and its root is /srv/shop."
    )


@pytest.mark.parametrize(
    ("sls", "key", "app", "checked"),
    [
        ("releases", None, "shop", "releases.checked"),
        ("a,x.releases.deploy", None, "shop", "x.releases.checked"),
        ("formula.releases", "releases:apps:web:release", "web", "formula.releases.checked"),
        ("releases", "shop:release", None, None),
        ("shop", None, None, None),
        ("shop.releases2", None, None, None),
    ],
)
def test_with_the_formula_it_is_about_one_app(
    runner: Runner, there: Minions, sls: str, key: str | None, app: str | None, checked: str | None
) -> None:
    applied: list[dict[str, Any]] = []
    answer_as_usual = there.answer

    def answer(name: str, function: Any, keywords: dict[str, Any]) -> Any:
        if function == "state.apply":
            applied.append(keywords)
            return there.apply(name, "2")
        return answer_as_usual(name, function, keywords)

    there.answer = answer  # type: ignore[method-assign]
    options = {"sls": sls, "saltenv": "next", "pillarenv": "staging"}
    if key is not None:
        options["pillar_key"] = key
    assert runner("roll", there, ROOT, 2, **options)["result"] is True
    assert {one["pillar"].get("releases", {}).get("run", {}).get("app") for one in applied} == {app}
    assert {(one["saltenv"], one["pillarenv"]) for one in applied} == {("next", "staging")}
    looks = [(names, told["mods"]) for kind, names, told in there.jobs if kind == "checked"]
    both = [checked, str(checked).replace("checked", "facts")]
    assert looks == ([(["web1", "web2", "web3", "web4", "web10"], both)] if checked else [])


def test_the_formula_refuses_the_pillar_of_one(runner: Runner, there: Minions) -> None:
    why = "releases:run:app: shop is no app of this minion: there are none"
    state = {"__id__": "the pillar of releases", "result": False, "comment": why}
    there.refusals = {"web3": {"a": state}, "web2": ["Rendering failed"], "web10": {"a": state}}
    for options in ({}, {"test": True}):
        answer = runner("roll", there, ROOT, 2, **options)
        assert answer["comment"] == (
            "Nothing was rolled out: web2 cannot take the release from releases:apps:shop:release: "
            "Rendering failed."
        )
        assert there.did("state.apply") == []
    del there.refusals["web2"]
    answer = runner("roll", there, ROOT, 2)
    assert answer["comment"] == (
        "Nothing was rolled out: web3, web10 cannot take the release from "
        f"releases:apps:shop:release: the pillar of releases: {why}."
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            ["Rendering SLS 'base:a' failed: no b\n\n---\nTraceback (most recent call last):\n  x"],
            None,
        ),
        ("Traceback (most recent call last):\n  x\nValueError: no b\n", "ValueError: no b."),
        (
            {
                "a": {
                    "result": False,
                    "__id__": "a",
                    "comment": "An exception occurred in this state: "
                    "Traceback (most recent call last):\n  x\nValueError: no b\n",
                }
            },
            "A: An exception occurred in this state: ValueError: no b.",
        ),
        (
            {
                "a": {
                    "result": False,
                    "__run_num__": 1,
                    "__id__": "a",
                    "comment": "One or more requisite failed: x.b",
                },
                "b": {"result": False, "__run_num__": 2, "__id__": "b", "comment": "No.\nNever."},
            },
            "B: No. Never.",
        ),
        ({}, "State.apply ends with return code 0."),
        ([], "Its states cannot be compiled."),
    ],
)
def test_why_states_fail(runner: Runner, there: Minions, said: Any, words: str | None) -> None:
    there.apply = lambda name, release: said  # type: ignore[method-assign]
    answer = runner("roll", there, ROOT, 2)
    assert answer["failed"] == {"web1": words or "Rendering SLS 'base:a' failed: no b."}
    assert (answer["back"], answer["stuck"]) == ({"web1": "1"}, {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Root is missing: give the directory of the releases."),
        (("srv",), "The root must be an absolute path: srv."),
        ((ROOT,), "The release is missing: give its name."),
        ((ROOT, "a b"), "The release must be a name, without a slash or a space: 'a b'."),
        ((ROOT, 1.5), "The release must be a name, without a slash or a space: 1.5."),
        ((ROOT, ".releases"), "The release must be a name, "),
        ((ROOT, 2, {"canary": {}}), "Canary must be a number or a list of minions: {}."),
        ((ROOT, 2, {"canary": ["web9"]}), "Nothing was rolled out: the canary is not among"),
        ((ROOT, 2, {"batch": "101%"}), "Batch must be a number of at least 1 or a percentage"),
        ((ROOT, 2, {"batch": True}), "Batch must be a number of at least 1 or a percentage"),
        ((ROOT, 2, {"sls": []}), "Sls must be a name or a list of names: []."),
        ((ROOT, 2, {"pillar": "a"}), "Pillar must be a dictionary: 'a'."),
        ((ROOT, 2, {"pillar_key": "a::b"}), "Pillar_key must be a path in pillar, such as a:b: "),
        ((ROOT, 2, {"pause": -1}), "Pause must be a number of seconds: -1."),
        ((ROOT, 2, {"saltenv": 2}), "Saltenv must be the name of an environment: 2."),
        ((ROOT, 2, {"timeout": "soon"}), "Timeout must be a whole number of seconds: 'soon'."),
        ((ROOT, 2, {"canaries": 1}), "There is no parameter canaries: see sys.doc."),
    ],
)
def test_bad_parameters(
    runner: Runner, there: Minions, arguments: tuple[Any, ...], words: str
) -> None:
    options = arguments[2] if len(arguments) > 2 else {}
    answer = runner("roll", there, *arguments[:2], **options)
    assert answer["result"] is False
    assert answer["comment"].startswith(words), answer
    assert there.did("state.apply") == []


def test_a_bug_is_reported_as_one(
    runner: Runner, there: Minions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("of a kind")

    ask: Callable[..., Any] = fail
    monkeypatch.setattr(there, "ask", ask)
    answer = runner.functions["releases.fleet"]
    monkeypatch.setitem(runner.space, "_ask", ask)
    assert answer(ROOT)["comment"].startswith("Unexpected ZeroDivisionError: of a kind; this is a")


# --- one database ---------------------------------------------------------------------------------


@pytest.fixture
def shared(there: Minions) -> Minions:
    """Minions with one database, which web2 migrates."""
    there.hosts = dict.fromkeys(there.on, "web2")
    return there


def test_the_host_migrates_before_the_first_switch(runner: Runner, shared: Minions) -> None:
    answer = runner("roll", shared, ROOT, 2, batch=2, test=True)
    assert answer["comment"].endswith("; web2 migrates the schema first.")
    assert (answer["host"], shared.migrations) == ("web2", [])
    answer = runner("roll", shared, ROOT, 2, batch=2)
    assert answer["comment"] == "2 was rolled out to 5 minions."
    assert (answer["host"], answer["schema"]) == ("web2", None)
    assert shared.migrations == [("web2", "2")]
    applied = [
        (options["mods"], names) for kind, names, options in shared.jobs if kind == "state.apply"
    ]
    unpack = ["releases.bootstrap", "releases.unpack"]
    assert applied == [
        (unpack, ["web1", "web2"]),
        (["releases.migrate"], ["web2"]),
        (["releases"], ["web1"]),
        (unpack, ["web2", "web3"]),
        (["releases"], ["web2", "web3"]),
        (unpack, ["web4", "web10"]),
        (["releases"], ["web4", "web10"]),
    ]


def test_what_cannot_unpack_stops_it_before_the_migration(runner: Runner, shared: Minions) -> None:
    shared.full = {"web1"}
    answer = runner("roll", shared, ROOT, 2)
    assert answer["comment"] == (
        "The roll-out of 2 has failed on web1: shop is deployed: The disk is full."
    )
    assert (shared.migrations, shared.schema) == ([], "1")
    assert set(shared.on.values()) == {"1"}
    assert (answer["back"], answer["untouched"][0]) == ({}, "web1")
    shared.full = {"web3"}
    answer = runner("roll", shared, ROOT, 2, batch=1)
    assert answer["back"] == {"web1": "1", "web2": "1"}
    assert answer["untouched"] == ["web3", "web4", "web10"]
    assert answer["schema"] == "web2 has migrated the schema down, from shop 2 to shop 1."


def test_the_schema_goes_down_when_all_are_back(runner: Runner, shared: Minions) -> None:
    shared.sick = {("web3", "2")}
    answer = runner("roll", shared, ROOT, 2, batch=2)
    assert answer["schema"] == "web2 has migrated the schema down, from shop 2 to shop 1."
    assert answer["comment"].endswith(f"web1, web2, web3. {answer['schema']}")
    assert shared.migrations == [("web2", "2"), ("web2", "1")]


@pytest.mark.parametrize("case", ["missing", "stuck", "skipped", "mixed", "another"])
def test_the_schema_stays_for_whoever_may_need_it(
    runner: Runner, shared: Minions, case: str
) -> None:
    shared.sick = {("web3", "2")}
    tgt = "web*"
    if case == "missing":
        shared.down = {"web4"}
    elif case == "stuck":
        shared.on["web1"] = None
    elif case == "skipped":
        shared.on["web10"] = "2"
    elif case == "mixed":
        shared.on["web4"] = "0"
    else:
        shared.on["api1"], shared.hosts["api1"] = "2", "web2"
    answer = runner("roll", shared, ROOT, 2, batch=2, tgt=tgt)
    assert answer["result"] is False
    assert answer["schema"].startswith("The schema is left as it is"), answer
    assert answer["comment"].endswith(answer["schema"])
    assert (shared.schema, shared.migrations) == ("2", [("web2", "2")])


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ({"web2": "web2"}, "not all minions have the same host for their schema: none on web1, "),
        ({"*": "web2", "web3": "web3"}, "not all minions have the same host for their schema: "),
        ({"*": "db"}, "db, which migrates the schema for all, is not among the minions of the"),
        ({"*": "web5"}, "web5, which migrates the schema for all, does not answer"),
    ],
)
def test_a_host_that_cannot_be(
    runner: Runner, there: Minions, hosts: dict[str, str], words: str
) -> None:
    there.on["web5"] = "1"
    there.down = {"web5"}
    there.hosts = {name: hosts.get(name, hosts.get("*", "")) for name in there.on}
    there.hosts = {name: host for name, host in there.hosts.items() if host}
    for test in (True, False):
        answer = runner("roll", there, ROOT, 2, test=test)
        assert answer["comment"].startswith(f"Nothing was rolled out: {words}")
        assert there.did("state.apply") == []


def test_a_rollback_of_all(runner: Runner, shared: Minions) -> None:
    shared.on = dict.fromkeys(shared.on, "2")
    shared.schema = "2"
    answer = runner("rollback", shared, ROOT, batch=2, test=True)
    assert answer["comment"] == (
        "5 minions would be rolled back to 1, batch 1: web1, web2; batch 2: web3, web4; "
        "batch 3: web10; web2 migrates the schema last."
    )
    assert shared.did("state.apply") == []
    answer = runner("rollback", shared, ROOT, batch=2, reason="prices are wrong")
    assert (answer["to"], answer["leaving"]) == ("1", "2")
    assert all(marks == {"2": "prices are wrong"} for marks in shared.bad.values())
    assert set(shared.bad) == set(shared.on)
    assert answer["comment"] == (
        "5 minions of 5 back on 1. web2 has migrated the schema down, from shop 2 to shop 1."
    )
    assert (set(shared.on.values()), shared.migrations) == ({"1"}, [("web2", "1")])
    # Not one more step back, however often.
    for _ in range(2):
        answer = runner("rollback", shared, ROOT)
        assert answer["comment"] == (
            "5 minions had been rolled back to 1 already. "
            "To go further back, give the release as `to`."
        )
    assert set(shared.on.values()) == {"1"}
    assert runner("rollback", shared, ROOT, to=0)["result"] is True
    assert set(shared.on.values()) == {"0"}


@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_a_rollback_goes_on_after_an_interruption(
    runner: Runner, shared: Minions, done: int
) -> None:
    """Wherever it was: before, between two batches, and before the schema."""
    shared.on = dict.fromkeys(shared.on, "2")
    shared.schema = "2"
    for name in list(shared.on)[:done]:
        shared.on[name], shared.rolled_from[name] = "1", "2"
    shared.previous = dict.fromkeys(list(shared.on)[:done], "0")
    answer = runner("rollback", shared, ROOT)
    assert (answer["result"], answer["to"], answer["leaving"]) == (True, "1", "2")
    assert (set(shared.on.values()), shared.migrations) == ({"1"}, [("web2", "1")])


def test_a_rollback_with_a_minion_that_is_away(runner: Runner, shared: Minions) -> None:
    shared.on = dict.fromkeys(shared.on, "2")
    shared.schema = "2"
    shared.down = {"web4"}
    answer = runner("rollback", shared, ROOT)
    assert (answer["result"], answer["missing"]) == (False, ["web4"])
    assert answer["schema"] == "The schema is left as it is, as web4 may need it."
    shared.down = {"web2"}
    answer = runner("rollback", shared, ROOT)
    assert (answer["result"], answer["missing"], shared.on["web4"]) == (False, ["web2"], "1")
    assert shared.migrations == []
    shared.down = set()
    assert runner("rollback", shared, ROOT)["result"] is True
    assert shared.migrations == [("web2", "1")]


def test_a_rollback_without_its_host(runner: Runner, shared: Minions) -> None:
    """It goes on, and the schema is left as it is."""
    for hosts, words in (
        ({"*": "db"}, "as db, which migrates it, does not answer or has no release."),
        ({"*": "web2", "web3": "web3"}, "as not all minions have the same host: web2, web3."),
    ):
        shared.on, shared.rolled_from = dict.fromkeys(shared.on, "2"), {}
        shared.hosts = {name: hosts.get(name, hosts["*"]) for name in shared.on}
        answer = runner("rollback", shared, ROOT)
        assert (answer["result"], set(shared.on.values())) == (True, {"1"})
        assert answer["schema"] == f"The schema is left as it is, {words}"
        assert shared.migrations == []


def test_a_rollback_after_a_roll_out_that_has_failed(runner: Runner, shared: Minions) -> None:
    """What that has brought back counts as rolled back; a release that is fixed does not."""
    shared.on = dict.fromkeys(shared.on, "2")
    shared.schema = "2"
    for name in ("web1", "web2"):
        shared.on[name], shared.bad[name] = "1", {"2": "the roll-out has failed on web10"}
        shared.activated_after[name] = "2"
    shared.on["web3"] = "1"  # it was not reached
    answer = runner("rollback", shared, ROOT)
    assert (answer["result"], answer["to"], answer["leaving"]) == (True, "1", "2")
    assert (set(shared.on.values()), shared.migrations) == ({"1"}, [("web2", "1")])

    fixed = Minions(web1="3")
    fixed.bad, fixed.activated_after = {"web1": {"2": "leaks"}}, {"web1": "2"}
    fixed.newest_first = ["3", "2", "1"]
    answer = runner("rollback", fixed, ROOT, test=True)
    assert answer["comment"] == "1 minion would be rolled back to 1, batch 1: web1."


def test_a_rollback_that_fails_on_one(runner: Runner, shared: Minions) -> None:
    shared.on = dict.fromkeys(shared.on, "2")
    shared.schema = "2"
    shared.deaf = {"web1"}
    answer = runner("rollback", shared, ROOT)
    assert answer["failed"] == {
        "web1": "Is on 1, and not all of its states succeed: shop is rolled back: It does not stop."
    }
    assert (answer["result"], shared.migrations) == (False, [])
    shared.deaf = set()
    assert runner("rollback", shared, ROOT)["result"] is True
    assert shared.migrations == [("web2", "1")]


def test_a_rollback_that_is_not_clear(runner: Runner, shared: Minions) -> None:
    shared.on = dict.fromkeys(shared.on, "2")
    shared.previous = {"web3": "0"}
    answer = runner("rollback", shared, ROOT)
    assert answer["comment"] == (
        "Nothing was rolled back: it is not clear what to roll back to from 2 (0, 1); give the "
        "release as `to`."
    )
    shared.on["web10"] = "5"
    assert runner("rollback", shared, ROOT)["comment"] == (
        "Nothing was rolled back: the minions are on several releases, 2, 5; give the one to leave "
        "as `leaving`."
    )
    answer = runner("rollback", shared, ROOT, to=1, leaving=2)
    assert (answer["result"], answer["elsewhere"]) == (True, {"web10": "5"})
    assert answer["comment"].endswith(
        "On another release, and left there: web10. "
        "The schema is left as it is: another release still runs."
    )
    nobody = Minions(web1=None)
    assert "none of 1 minion is on a release" in runner("rollback", nobody, ROOT)["comment"]


def after_each_job(
    call: Callable[[Minions], Any], begin: Callable[[], Minions], jobs: int = 0
) -> Iterator[tuple[int, Minions]]:
    """What is there when the runner is killed after each of its jobs, however many these are.

    Args:
        call: what is killed.
        begin: what there is before it.
        jobs: the number of jobs that the call was known to make at least.
    """
    for number in itertools.count(1):
        there = begin()
        there.last_job = number
        try:
            call(there)
        except Killed:
            there.last_job = None
            yield number, there
        else:
            assert number > jobs
            return


def fleet_of_five(release: str) -> Minions:
    """Five minions on a release, with the schema that it needs."""
    there = Minions(**dict.fromkeys(("web1", "web2", "web3", "web4", "web10"), release))
    there.hosts, there.schema = dict.fromkeys(there.on, "web2"), release
    return there


@pytest.mark.parametrize(
    ("function", "arguments", "before", "after", "jobs"),
    [
        ("roll", {"release": "2"}, "1", "2", 13),
        ("rollback", {}, "2", "1", 10),
    ],
)
def test_killed_after_each_job_and_called_again(
    runner: Runner, function: str, arguments: dict[str, str], before: str, after: str, jobs: int
) -> None:
    """Once, and the second call once more: the last one finishes, and nothing is done twice."""

    def call(there: Minions) -> Any:
        return runner(function, there, ROOT, batch=2, **arguments)

    def again(there: Minions) -> Callable[[], Minions]:
        return lambda: copy.deepcopy(there)

    for number, once in after_each_job(call, lambda: fleet_of_five(before), jobs):
        twice = after_each_job(call, again(once)) if not number % 4 else ()
        for there in [once, *(there for _, there in twice)]:
            answer = call(there)
            assert answer["result"] is True, answer
            assert (set(there.on.values()), there.schema) == ({after}, after)
            assert (there.migrations, there.claims) == ([("web2", after)], {})
            view = runner("fleet", there, ROOT)
            assert (view["stragglers"], view["schemas"][0]["misfits"]) == ({}, {})


def test_killed_in_a_roll_out_that_fails(runner: Runner) -> None:
    """The same call, or where it refuses the bad release, the rollback that it names, ends it."""

    def begin() -> Minions:
        there = fleet_of_five("1")
        there.sick = {("web3", "2")}
        return there

    def call(there: Minions) -> Any:
        return runner("roll", there, ROOT, "2", batch=2)

    refused = 0
    for _, there in after_each_job(call, begin, 15):
        answer = call(there)
        assert answer["result"] is False
        if there.schema != "1" or set(there.on.values()) != {"1"}:
            refused += answer["comment"].startswith("Nothing was rolled out: 2 is marked bad on")
            named = "still on it: releases.rollback rolls back all" in answer["comment"]
            assert named == ("2" in there.on.values())
            assert runner("rollback", there, ROOT)["result"] is True
        assert (set(there.on.values()), there.schema) == ({"1"}, "1")
        assert (there.migrations, there.claims) == ([("web2", "2"), ("web2", "1")], {})
    assert refused > 3


def test_the_fleet_shows_the_schema(runner: Runner, shared: Minions) -> None:
    shared.on["web3"] = "2"
    shared.hosts["web4"] = "web4"
    answer = runner("fleet", shared, ROOT)
    assert answer["comment"] == ("4 of 5 minions are on 1. The schema does not fit web3, web4.")
    first, second = answer["schemas"]
    assert (first["host"], first["version"], first["release"]) == ("web2", "shop 1", "1")
    assert first["since"] == "2026-01-03T00:00:00Z"
    assert first["misfits"] == {
        "web3": "Is on 2, and the schema is not known to fit that.",
        "web4": "Has web4 for the host of the same database.",
    }
    assert second["host"] == "web4"
