"""A master of its own with three minions, an app that they deploy, and the runner that looks on."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("salt", reason="Salt does not run on this Python")
pytest.importorskip("saltfactories", reason="pytest-salt-factories is not installed")

from saltfactories.utils import random_string

from relocate_core import pack
from tests.integration.conftest import QUIET
from tests.support import minions, steps
from tests.support.minions import WHICH

NAMES = ("1", "2", "3")
MINIONS = ("web1", "web2", "web10")
"""Their natural order; the IDs have to be new ones, so a random part is put before them."""
EACH = "each"
# A call that takes as long has hung; on a machine with much to do, a highstate takes half a minute.
SECONDS = 300

# The minions are on one machine, and a root has one name for all: where a path has EACH in it, each
# minion has its ID instead.
ROOTS = f"""

_absolute_for_all = _absolute


def _absolute(path, what="the path of a virtualenv"):
    if isinstance(path, str):
        path = path.replace("/{EACH}/", "/" + __opts__["id"] + "/")
    return _absolute_for_all(path, what)
"""

# The runner ends where an environment variable says so: KILLED_IN the job of that number, as soon
# as it is published, or KILLED_AFTER it, with its answers.
KILLED = """

import os

_ask_always, _client_always = _ask, _client
_jobs = 0


def _ask(*arguments):
    global _jobs
    _jobs += 1
    answers = _ask_always(*arguments)
    if os.environ.get("KILLED_AFTER") == str(_jobs):
        os._exit(9)
    return answers


@contextlib.contextmanager
def _client():
    with _client_always() as client:
        cmd_iter = client.cmd_iter

        def published(*arguments, **options):
            for part in cmd_iter(*arguments, **options):
                if os.environ.get("KILLED_IN") == str(_jobs):
                    os._exit(9)
                yield part

        client.cmd_iter = published
        yield client
"""

SLS = """
{% set app = pillar["shop"] %}
{% set home = app["base"] ~ "/" ~ grains["id"] %}
{% set root = home ~ "/" ~ app["name"] %}

{{ root }}/{{ app["release"] }}:
  virtualenv_relocated.managed:
    - source: salt://shop/{{ app["release"] }}.tar.gz

{{ root }}/current:
  virtualenv_relocated.active:
    - target: "{{ app["release"] }}"
    - require:
      - virtualenv_relocated: {{ root }}/{{ app["release"] }}

shop:
  cmd.wait:
    - name: echo {{ app["release"] }} >> {{ home }}/restarted
    - watch:
      - virtualenv_relocated: {{ root }}/current

the shop answers:
  virtualenv_relocated.healthy:
    - link: {{ root }}/current
    - checks: read which < etc/which && test ! -e {{ home }}/sick-$which
    - attempts: 2
    - interval: 0.1
    - watch:
      - cmd: shop

{{ root }}:
  virtualenv_relocated.pruned:
    - keep: 3
    - require:
      - virtualenv_relocated: the shop answers
"""


class Fleet:
    """The master, its minions, and one app on them.

    Attributes:
        applied: what a highstate applies; by default what the top file says.
        rolled: what is rolled out.
        master: the master's daemon.
        daemons: the minions' daemons, by short name.
        file_root: the master's file root.
        pillar: the file with the app's pillar.
        base: where each minion has a directory.
        name: the app's.
    """

    applied: tuple[str, ...] = ()
    rolled: tuple[str, ...] = ("sls=shop", "pillar_key=shop:release")

    def __init__(
        self, master: Any, daemons: dict[str, Any], file_root: Path, pillar: Path, base: Path
    ) -> None:
        self.master = master
        self.daemons = daemons
        self.file_root = file_root
        self.pillar = pillar
        self.base = base
        self.name = ""

    @property
    def root(self) -> str:
        """The app's root, as it is called for all minions."""
        return f"{self.base}/{EACH}/{self.name}"

    def id(self, short: str) -> str:
        """A minion's ID."""
        return str(self.daemons[short].id)

    def short(self, answer: Any) -> Any:
        """An answer with the minions' short names for their IDs."""
        text = json.dumps(answer)
        for short, daemon in self.daemons.items():
            text = text.replace(daemon.id, short)
        return json.loads(text)

    def home(self, short: str) -> Path:
        """A minion's own directory."""
        return self.base / self.id(short)

    def begin(self, name: str) -> None:
        """Go on with an app that is not on any minion yet."""
        self.name = name
        for short in self.daemons:
            shutil.rmtree(self.home(short), ignore_errors=True)
            self.home(short).mkdir()
        self.want("1")

    def want(self, release: str) -> None:
        """Write into pillar what a highstate should bring."""
        app = {"base": str(self.base), "name": self.name, "release": release}
        self.pillar.write_text(json.dumps({"shop": app}))

    def sicken(self, short: str, release: str) -> Path:
        """Let a release not be healthy on a minion; the file that has it so."""
        sick = self.home(short) / f"sick-{release}"
        sick.touch()
        return sick

    def on(self) -> dict[str, str | None]:
        """What each minion is on, as its file system shows."""
        links = {short: self.home(short) / self.name / "current" for short in self.daemons}
        return {
            short: str(link.readlink()) if link.is_symlink() else None
            for short, link in links.items()
        }

    def restarts(self, short: str) -> list[str]:
        """The releases that a minion's service was started with."""
        log = self.home(short) / "restarted"
        return log.read_text().split() if log.exists() else []

    def salt(self, function: str, *arguments: str, tgt: str = "*", **options: Any) -> Any:
        """What the minions answer, by short name."""
        cli = self.master.salt_cli(timeout=SECONDS)
        done = cli.run(function, *arguments, minion_tgt=tgt, **options)
        return self.short(done.data if tgt == "*" else {tgt: done.data})

    def highstate(self, *arguments: str, tgt: str = "*") -> dict[str, list[dict[str, Any]]]:
        """The answers of the states on each minion, in their order."""
        answers = self.salt("state.apply", *self.applied, *arguments, tgt=tgt)
        for states in answers.values():
            assert isinstance(states, dict), states
            assert "Traceback" not in str(states), states
        return {
            short: sorted(states.values(), key=lambda state: state["__run_num__"])
            for short, states in answers.items()
        }

    def run(self, function: str, *arguments: str) -> Any:
        """What a runner answers, and the return code."""
        done = self.master.salt_run_cli(timeout=SECONDS).run(function, *arguments)
        assert "Traceback" not in done.stdout, done
        return self.short(done.data), done.returncode

    def is_killed(self, function: str, *arguments: str, **where: int) -> bool:
        """Call a runner that is to end in a job or after it; whether it came to that."""
        env = {key: str(value) for key, value in where.items()}
        done = self.master.salt_run_cli(timeout=SECONDS).run(function, *arguments, env=env)
        assert "Traceback" not in done.stdout, done
        return bool(done.returncode == 9)

    def orchestrate(self, *arguments: str, **wanted: Any) -> tuple[dict[str, Any], int]:
        """The answer of the one state of the orchestration, and the return code."""
        wanted = {"root": self.root, "sls": "shop", "pillar_key": "shop:release", **wanted}
        pillar = json.dumps({"rolling": wanted})
        name = "formula.releases.rolling"
        answer, code = self.run("state.orchestrate", name, f"pillar={pillar}", *arguments)
        if "data" in answer:
            answer = answer["data"]
        ((states),) = answer.values()
        assert isinstance(states, dict), states
        (state,) = states.values()
        return state, code

    def view(self, *arguments: str) -> Any:
        """What `releases.fleet` answers."""
        answer, code = self.run("releases.fleet", self.root, *arguments)
        assert code == 0, answer
        assert minions.sentence(answer["comment"]), answer
        assert all(minions.sentence(told) for told in answer["stragglers"].values()), answer
        return answer

    def roll(self, release: str, *arguments: str) -> Any:
        """What `releases.roll` answers."""
        answer, code = self.run("releases.roll", self.root, release, *self.rolled, *arguments)
        assert minions.sentence(answer["comment"]), answer
        assert code == (1 if answer["result"] is False else 0), answer
        return answer


@pytest.fixture(scope="session")
def fleet_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each minion has a directory by its ID."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="session")
def fleet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The master's file root: the modules, the app's SLS, and its bundles."""
    directory = minions.file_root(tmp_path_factory.mktemp("fleet-root"))
    shutil.copytree(minions.CHECKOUT / "_runners", directory / "_runners", dirs_exist_ok=True)
    shutil.copytree(minions.CHECKOUT / "formula" / "releases", directory / "formula" / "releases")
    for file, more in (("_modules/virtualenv_tools", ROOTS), ("_runners/releases", KILLED)):
        with (directory / f"{file}.py").open("a") as module:
            module.write(more)
    (directory / "top.sls").write_text("base: {'*': [shop]}")
    (directory / "shop.sls").write_text(textwrap.dedent(SLS))
    bundles = directory / "shop"
    bundles.mkdir()
    build = steps.small(tmp_path_factory.mktemp("build") / "shop").path
    before = ""
    for name in NAMES:
        Path(build, WHICH).write_text(f"{name}\n")
        pack(build, str(bundles / f"{name}.tar.gz"))
        if before:
            earlier = str(bundles / f"{before}.tar.gz")
            pack(build, str(bundles / f"{name}.from-{before}.tar.gz"), delta_from=earlier)
        before = name
    return directory


@pytest.fixture(scope="package")
def all_minions(
    salt_factories: Any,
    fleet_root: Path,
    fleet_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """A running master with three running minions, which have the modules."""
    pillar = pillar_root(tmp_path_factory.mktemp("fleet-pillar"))
    master = new_master(salt_factories, fleet_root, pillar)
    with master.started(), running([master], fleet_root, pillar, fleet_base) as (fleet,):
        yield fleet


@pytest.fixture
def one_minion(
    salt_factories: Any, fleet_root: Path, fleet_base: Path, tmp_path: Path
) -> Iterator[Fleet]:
    """A running master with a single minion, which has the first release of an app."""
    pillar = pillar_root(tmp_path)
    master = new_master(salt_factories, fleet_root, pillar)
    only = MINIONS[:1]
    with master.started(), running([master], fleet_root, pillar, fleet_base, only) as (fleet,):
        fleet.begin("alone")
        (states,) = fleet.highstate().values()
        assert states[-1]["result"] is True, states
        yield fleet


def pillar_root(directory: Path) -> Path:
    """A pillar for all minions, which is empty."""
    (directory / "top.sls").write_text("base: {'*': [shop]}")
    (directory / "shop.sls").write_text("{}")
    return directory


def new_master(salt_factories: Any, file_root: Path, pillar: Path) -> Any:
    """A master that is not running yet."""
    return salt_factories.salt_master_daemon(
        random_string("fleet-"),
        defaults={"open_mode": True},
        overrides={
            "interface": "127.0.0.1",
            "log_server_host": "127.0.0.1",
            "file_roots": {"base": [str(file_root), str(file_root / "formula")]},
            "pillar_roots": {"base": [str(pillar)]},
            "fileserver_update_interval": 30,
            "fileserver_list_cache_time": 0,
            **QUIET,
            "worker_threads": 3,
            "timeout": 15,  # on a machine with much to do, a minion that is there takes its time
            "gather_job_timeout": 15,
        },
    )


@contextmanager
def running(
    masters: list[Any],
    file_root: Path,
    pillar: Path,
    base: Path,
    names: tuple[str, ...] = MINIONS,
) -> Iterator[tuple[Fleet, ...]]:
    """Minions of running masters, which have the modules; the fleet of each master."""
    prefix = random_string("", size=4)
    with ExitStack() as running:
        daemons = {
            short: masters[0].salt_minion_daemon(
                f"{prefix}-{short}",
                overrides={
                    "master": [f"127.0.0.1:{one.config['ret_port']}" for one in masters],
                    **QUIET,
                    "autoload_dynamic_modules": False,  # a sync of all files with each highstate
                },
            )
            for short in names
        }
        running.callback(_each, daemons, "terminate")
        _each(daemons, "start")
        fleets = tuple(Fleet(one, daemons, file_root, pillar / "shop.sls", base) for one in masters)
        fleets[0].begin("none")
        synced = fleets[0].salt("saltutil.sync_all")
        assert set(synced) == set(names)
        for fleet in fleets:
            assert fleet.run("saltutil.sync_runners")[0] == ["runners.releases"]
        yield fleets


def _each(daemons: dict[str, Any], what: str) -> None:
    """Start or end all daemons at once."""
    with ThreadPoolExecutor(len(daemons)) as pool:
        list(pool.map(lambda daemon: getattr(daemon, what)(), daemons.values()))


@pytest.fixture
def fleet(all_minions: Fleet, request: pytest.FixtureRequest) -> Fleet:
    """The fleet with an app that has not been deployed yet."""
    all_minions.begin(request.node.name.removeprefix("test_").replace("_", "-")[:20])
    return all_minions


@pytest.fixture
def deployed(fleet: Fleet) -> Fleet:
    """The fleet with the first release of the app on all minions."""
    answers = fleet.highstate()
    assert {short: states[-1]["result"] for short, states in answers.items()} == dict.fromkeys(
        MINIONS, True
    ), answers
    return fleet
