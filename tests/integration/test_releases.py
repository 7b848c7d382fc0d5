"""Highstates of a real minion, its events on the master's bus, and two of them at once."""

from __future__ import annotations

import hashlib
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMES = ("1", "2", "3")

DEPLOY = """
    {root}/{name}:
      virtualenv_relocated.managed:
        - source: {source}
        - source_hash: {digest}
        - smoke: omega; {smoke}

    {root}/current:
      virtualenv_relocated.active:
        - target: {name}
        - require:
          - virtualenv_relocated: {root}/{name}

    app:
      cmd.wait:
        - name: echo restarted >> {root}/../log
        - watch:
          - virtualenv_relocated: {root}/current

    app answers:
      virtualenv_relocated.healthy:
        - link: {root}/current
        - checks: {check}
        - attempts: 2
        - interval: 0.1
        - watch:
          - cmd: app

    {root}:
      virtualenv_relocated.pruned:
        - keep: 2
        - require:
          - virtualenv_relocated: app answers
"""


@pytest.fixture(scope="module")
def archives(root: Path) -> dict[str, Path]:
    """Archives of releases in the master's file root."""
    return {name: minions.pack(root / "app" / f"{name}.tar", name) for name in NAMES}


@pytest.fixture(scope="module")
def synced(salt: Callable[..., Any]) -> Callable[..., Any]:
    """The command `salt`, for a minion that has the states."""
    answer = salt("saltutil.sync_all")
    assert answer.returncode == 0, answer
    return salt


@pytest.fixture(scope="module")
def site(archives: dict[str, Path]) -> Iterator[minions.Web]:
    """A web server that has the archives."""
    with minions.web() as running:
        running.pages = {f"/{name}.tar": file.read_bytes() for name, file in archives.items()}
        yield running


@dataclass
class App:
    """An app on the minion.

    Attributes:
        salt: the command.
        file_root: the master's.
        archives: of its releases.
        site: a web server that has them.
        root: its directory of releases.
        last: the name of the SLS that was applied last.
    """

    salt: Callable[..., Any]
    file_root: Path
    archives: dict[str, Path]
    site: minions.Web
    root: str
    last: str = ""

    def apply(self, name: str, *arguments: str, **more: str) -> dict[str, dict[str, Any]]:
        """Apply the SLS that deploys a release; the answers of its states by ID."""
        values = {
            "root": self.root,
            "name": name,
            "check": f"grep -qx {name} {minions.WHICH}",
            "source": f"salt://app/{name}.tar",
            "smoke": "true",
            "digest": hashlib.sha256(self.archives[name].read_bytes()).hexdigest(),
            **more,
        }
        self.last = f"deploy-{os.urandom(8).hex()}"  # not one that another job is reading
        sls = self.file_root / f"{self.last}.sls"
        sls.write_text(textwrap.dedent(DEPLOY).format(**values))
        data = self.salt("state.apply", sls.stem, *arguments).data
        assert isinstance(data, dict), data
        for tag, answer in data.items():
            assert "Traceback" not in str(answer), answer
            if tag.startswith("virtualenv_relocated"):
                minions.orderly(answer)
        return {answer["__id__"]: answer for answer in data.values()}

    def call(self, function: str, *arguments: str) -> Any:
        """What one of our execution functions answers."""
        return self.salt(f"virtualenv_tools.{function}", *arguments).data

    def current(self) -> str:
        """What `current` says."""
        return os.readlink(f"{self.root}/current")


@pytest.fixture
def app(
    synced: Callable[..., Any],
    root: Path,
    archives: dict[str, Path],
    site: minions.Web,
    tmp_path: Path,
) -> App:
    """An app without releases yet."""
    (tmp_path / "srv").mkdir()
    return App(synced, root, archives, site, str(tmp_path / "srv" / "app"))


def results(answers: dict[str, dict[str, Any]]) -> list[bool | None]:
    """The results, in the order of the SLS."""
    ordered = sorted(answers.values(), key=lambda answer: answer["__run_num__"])
    return [answer["result"] for answer in ordered]


def test_a_highstate(app: App, event_listener: Any, master: Any, minion: Any) -> None:
    tree = environments.digest(os.path.dirname(app.root))
    url = f"{app.site.url}/1.tar"
    said = app.apply("1", "test=True", source=url)
    assert results(said) in ([None, None, None, None, True], [None, None, True, None, True])
    assert said[f"{app.root}/1"]["changes"] == {"release": {"old": None, "new": f"{app.root}/1"}}
    assert environments.digest(os.path.dirname(app.root)) == tree
    assert app.site.requests == []

    begin = time.time()
    done = app.apply("1", source=url)
    deployed = app.last
    assert results(done) == [True] * 5, done
    assert app.current() == "1"
    assert environments.run(f"{app.root}/current/bin/omega").splitlines()[1] == f"{app.root}/1"
    assert app.site.requests == ["GET /1.tar"]
    assert Path(app.root, "../log").read_text() == "restarted\n"

    pattern = (master.id, "virtualenv_tools/activated")
    event_listener.wait_for_events([pattern], after_time=begin, timeout=60)
    (event,) = event_listener.get_events([pattern], after_time=begin)
    facts = event.data["data"]
    assert facts["path"] == f"{app.root}/1"
    assert (facts["release"], facts["previous"]) == ("1", None)
    returned = (master.id, f"salt/job/{facts['job']}/ret/{minion.id}")
    event_listener.wait_for_events([returned], after_time=begin, timeout=60)
    (job,) = event_listener.get_events([returned], after_time=begin)
    assert (job.data["fun"], job.data["fun_args"]) == ("state.apply", [deployed])

    again = app.apply("1", source=url)
    assert results(again) == [True] * 5
    assert not any(answer["changes"] for answer in again.values())
    assert app.site.requests == ["GET /1.tar"]

    history = app.call("history", app.root, "full=True")
    told = [event["event"] for event in history if event["event"] != "activating"]
    assert told == ["published", "activated", "healthy"]
    assert {event["job"] for event in history} == {facts["job"]}


def test_a_bad_release(app: App, event_listener: Any, master: Any) -> None:
    """It is rolled back by its checks; a good one by hand; and neither comes back by itself."""
    assert results(app.apply("1")) == [True] * 5
    failed = app.apply("2", check="grep -qx 1 etc/which")
    assert results(failed) == [True, True, True, False, False]
    answer = failed["app answers"]
    assert answer["changes"]["release"] == {"old": "2", "new": "1"}
    assert answer["changes"]["restarted"] == [f"cmd echo restarted >> {app.root}/../log"]
    assert Path(app.root, "../log").read_text() == "restarted\n" * 3
    assert results(app.apply("3")) == [True] * 5

    begin = time.time()
    switch = app.call("rollback", app.root, "reason=prices are wrong")
    assert (switch["previous"], switch["release"], app.current()) == ("3", "1", "1")
    pattern = (master.id, "virtualenv_tools/rolled_back")
    event_listener.wait_for_events([pattern], after_time=begin, timeout=60)
    (event,) = event_listener.get_events([pattern], after_time=begin)
    assert event.data["data"]["previous"] == "3"

    refused = app.apply("3")
    comment = refused[f"{app.root}/current"]["comment"]
    assert "is marked bad (prices are wrong)" in comment
    assert "unmark" in comment
    assert app.current() == "1"


def test_two_highstates_at_once(app: App) -> None:
    with ThreadPoolExecutor(2) as pool:
        begun = [
            pool.submit(app.apply, name, "concurrent=True", smoke="sleep 1", check="omega")
            for name in ("1", "2")
        ]
        answers = [one.result() for one in begun]
    # Each has deployed its release, and one of the two has been activated last.
    for name, answer in zip(("1", "2"), answers):
        assert answer[f"{app.root}/{name}"]["result"] is True, answer
        assert answer[f"{app.root}/current"]["result"] is True, answer
        assert environments.run(f"{app.root}/{name}/bin/omega").splitlines()[1].endswith(name)
    history = app.call("history", app.root, "full=True")
    told = [(event["event"], event["release"]) for event in history]
    for name in ("1", "2"):
        assert told.count(("published", name)) == 1
        assert told.count(("activated", name)) == 1
    assert len({event["job"] for event in history}) == 2
    assert app.current() == [name for kind, name in told if kind == "activated"][-1]
    assert os.listdir(f"{app.root}/.releases/staging") == []


@pytest.mark.slow
def test_many_at_once_deploy_the_same(app: App) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: app.apply("1", "concurrent=True", check="omega"), range(4))
        )
    for answer in answers:
        assert results(answer) == [True] * 5, answer
    assert sum(bool(answer[f"{app.root}/1"]["changes"]) for answer in answers) == 1
    history = app.call("history", app.root, "full=True")
    assert [event["event"] for event in history].count("published") == 1


def test_a_sync_brings_a_new_state(app: App, minion: Any) -> None:
    state = app.file_root / "_states" / "virtualenv_relocated.py"
    good = state.read_text()
    words, ours = "does not exist.", "was never there, says the new state."
    assert words in good
    pid = minion.pid

    def said() -> str:
        name = f"{app.root}/9"
        data = app.salt("state.single", "virtualenv_relocated.absent", name).data
        (answer,) = data.values()
        assert answer["result"] is True, answer
        return str(answer["comment"])

    assert said().endswith(words)
    try:
        state.write_text(good.replace(words, ours))
        assert app.salt("saltutil.sync_states").data == ["states.virtualenv_relocated"]
        assert said().endswith(ours)
        assert minion.pid == pid
    finally:
        state.write_text(good)
        app.salt("saltutil.sync_states")
