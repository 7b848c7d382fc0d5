"""One PostgreSQL and three web servers: it is migrated once, and down when the last one is back."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("saltfactories", reason="pytest-salt-factories is not installed")

from relocate_core import pack
from tests.integration.fleet.conftest import MINIONS, Fleet
from tests.integration.fleet.test_formula import ID, Formula, everywhere
from tests.support import minions, postgres
from tests.support.fuzz import stride
from tests.support.minions import WHICH
from tests.support.projects import alembic_files, column, django_files, libraries, table

pytestmark = pytest.mark.integration

HOST = "web2"
"""Neither the first one that is switched, nor the last one."""
BOTH = pytest.mark.parametrize("kind", ["django", "alembic"])
NEEDED = {
    "django": ("django", "asgiref", "sqlparse", "psycopg", "typing_extensions"),
    "alembic": ("alembic", "mako", "markupsafe", "sqlalchemy", "psycopg", "typing_extensions"),
}
VERSIONS = {
    "django": {"1": "shop 0001_initial", "2": "shop 0002_price"},
    "alembic": {"1": "0001_initial", "2": "0002_price"},
}
"""What the schema is at with a release, in words."""
COLUMNS = {"1": ["id"], "2": ["id", "price"], "3": ["id", "price", "colour"]}
_APP = """
import os, psycopg
directory, _, port = os.environ["SERVER"].partition(" ")
with psycopg.connect(f"postgresql://postgres@/postgres?host={{directory}}&port={{port}}") as one:
    one.execute("select {columns} from shop_item")
"""


class Shop(Formula):
    """The fleet with one app, which has its data in a PostgreSQL that all minions use.

    Attributes:
        server: that PostgreSQL.
        kind: what migrates it.
    """

    def __init__(
        self, fleet: Fleet, managers: Path, server: postgres.Server, kind: str = "django"
    ) -> None:
        super().__init__(fleet, managers)
        self.server = server
        self.kind = kind
        self.env = {"SERVER": f"127.0.0.1 {server.port}", "DATABASE": "none"}
        app = self.apps["shop"]
        self.apps.clear()
        self.apps["shop"] = app
        health = app["health"]
        answers = f"env SERVER='{self.env['SERVER']}' bin/python app.py"
        sick = f"test ! -e {self.base}/{ID}/sick-always"
        app.update(
            source=f"salt://{kind}/{{release}}.tar.gz",
            health={**health, "checks": f"{sick} && {answers} && {health['checks']}"},
            migrations={"kind": kind, "host": self.id(HOST), "env": self.env, "wait": 60},
        )
        if kind == "django":
            app["migrations"]["settings"] = "project.settings"

    def schema(self) -> list[str]:
        """The columns of the table."""
        query = "select column_name from information_schema.columns where table_name = 'shop_item'"
        return sorted(self.server.query(query))

    def altered(self) -> int:
        """How often the table was changed, by the database's own log."""
        columns = 'CREATE TABLE "?shop_item"?|ALTER TABLE "?shop_item"? (ADD|DROP) COLUMN'
        return len(self.server.logged(columns))

    def answers(self) -> dict[str, bool]:
        """Whether the release that each minion is on works with the schema."""
        found = {}
        for short in MINIONS:
            current = self.home(short) / "shop" / "current"
            command = [str(current / "bin" / "python"), "app.py"]
            done = subprocess.run(command, cwd=current, env=self.env, capture_output=True)
            found[short] = done.returncode == 0
        return found

    def all_on(self, release: str) -> None:
        """All minions run a release, and the schema is what that one needs."""
        assert self.on() == dict.fromkeys(MINIONS, release)
        assert self.runs() == everywhere(shop=release)
        assert self.answers() == dict.fromkeys(MINIONS, True)
        assert self.schema() == sorted(COLUMNS[release])

    def down(self, old: str, new: str) -> str:
        """What is reported of a schema that goes down from a release to another one."""
        known = VERSIONS[self.kind]
        return f"web2 has migrated the schema down, from {known[old]} to {known[new]}."

    def back(self, *arguments: str) -> Any:
        """What `releases.rollback` answers."""
        answer, code = self.run("releases.rollback", self.root, *arguments)
        assert minions.sentence(answer["comment"]), answer
        assert code == (1 if answer["result"] is False else 0), answer
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.running("all") as server:
        yield server


@pytest.fixture(scope="module")
def bundles(fleet_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three releases of each kind, each with a column more."""
    python = os.path.realpath(sys.executable)
    with libraries() as installed:
        for kind, needed in NEEDED.items():
            build = tmp_path_factory.mktemp("build") / kind
            subprocess.run([python, "-m", "venv", "--without-pip", str(build)], check=True)
            (packages,) = build.glob("lib/python*/site-packages")
            for found in Path(installed).iterdir():
                if found.name.lower().startswith(needed):
                    _copy(found, packages / found.name)
            (fleet_root / kind).mkdir()
            for name in COLUMNS:
                _pack(build, fleet_root / kind / f"{name}.tar.gz", kind, name)


def _pack(build: Path, archive: Path, kind: str, name: str) -> None:
    """Pack a release, with what the earlier ones have."""
    columns = COLUMNS[name]
    app = _APP.format(columns=", ".join(columns))
    for path, text in {**_project(kind, columns), "app.py": app, WHICH: f"{name}\n"}.items():
        file = build / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    pack(str(build), str(archive))


def _project(kind: str, columns: list[str]) -> dict[str, str]:
    """The files of a project whose migrations bring these columns."""
    names = ["0001_initial", *(f"000{n}_{one}" for n, one in enumerate(columns[1:], 2))]
    if kind == "django":
        more = (column("item", one) for one in columns[1:])
        return django_files({"shop": dict(zip(names, (table("Item"), *more)))})
    first = "op.create_table('shop_item', sa.Column('id', sa.Integer, primary_key=True))"
    steps = [(first, "op.drop_table('shop_item')")]
    for one in columns[1:]:
        up = f"op.add_column('shop_item', sa.Column('{one}', sa.Integer, server_default='0'))"
        steps.append((up, f"op.drop_column('shop_item', '{one}')"))
    below = [None, *names]
    return alembic_files({name: (below[n], *steps[n]) for n, name in enumerate(names)})


def _copy(found: Path, place: Path) -> None:
    """Copy a library without what the tests have no use for."""
    if found.is_dir():
        left_out = shutil.ignore_patterns("*.po", "gis", "admin", "static", "__pycache__")
        shutil.copytree(found, place, ignore=left_out)
    else:
        shutil.copy2(found, place)


@pytest.fixture
def kind() -> str:
    """What migrates the schema."""
    return "django"


@pytest.fixture
def fleet(
    all_minions: Fleet, tmp_path: Path, server: postgres.Server, bundles: None, kind: str
) -> Iterator[Shop]:
    """The fleet with an app that has not been deployed yet, and an empty database."""
    server.query("drop schema public cascade")
    server.query("create schema public")
    made = Shop(all_minions, tmp_path, server, kind)
    made.begin("shop")
    yield made
    for manager in made.managers.values():
        manager.end()


@pytest.fixture
def deployed(fleet: Shop) -> Shop:
    """The fleet with the first release."""
    for states in fleet.by_id().values():
        assert failures(states) == []
    fleet.all_on("1")
    return fleet


def failures(states: dict[str, dict[str, Any]]) -> list[str]:
    """What failed states report."""
    return [state["comment"] for state in states.values() if state["result"] is not True]


@pytest.mark.slow
@BOTH
@pytest.mark.few(slow=1)
def test_all_at_once_and_one_back_by_hand(deployed: Shop) -> None:
    """A highstate on all minions migrates once; one minion's rollback leaves that to the others."""
    fleet = deployed
    before = fleet.altered()
    fleet.want("2")
    for short, states in fleet.by_id("test=True").items():
        said = states["shop is migrated"]
        assert said["result"] is None
        words = "would be migrated for" if short == HOST else "would wait for the schema from web2."
        assert words in said["comment"]
    for short, states in fleet.by_id().items():
        assert failures(states) == []
        assert bool(states["shop is migrated"]["changes"]) == (short == HOST)
    fleet.all_on("2")
    assert fleet.altered() - before == 1
    log = fleet.altered()
    for states in fleet.by_id().values():
        changed = [state for state in states.values() if state["changes"] or not state["result"]]
        assert changed == []

    # By the SLS, on two of three, of which one is the host.
    for short in ("web1", HOST):
        words = "pillar={releases: {run: {from: '2'}}}"
        done = fleet.salt("state.apply", "releases.rollback", words, tgt=fleet.id(short))
        (state,) = (one for one in done[short].values() if one["__id__"] == "shop is rolled back")
        assert state["result"] is True, state
        assert "The schema is left as it is: web2 alone migrates it" in state["comment"]
    assert fleet.on() == {"web1": "1", HOST: "1", "web10": "2"}
    assert (fleet.schema(), fleet.altered()) == (["id", "price"], log)
    assert fleet.answers() == dict.fromkeys(MINIONS, True)
    fleet.want("1")
    for short in ("web1", HOST):
        (states,) = fleet.by_id(tgt=fleet.id(short)).values()
        assert failures(states) == []
        assert states["shop is migrated"]["changes"] == {}
    assert fleet.altered() == log

    # The rest of the fleet, and the schema with the last one.
    answer = fleet.back("leaving=2")
    assert answer["result"] is True, answer
    assert answer["schema"] == fleet.down("2", "1")
    fleet.all_on("1")


@pytest.mark.slow
@BOTH
@pytest.mark.few(slow=1)
def test_a_canary_that_fails(deployed: Shop) -> None:
    """It is rolled back, and only then the host migrates the schema down."""
    fleet = deployed
    fleet.sicken("web1", "2")
    answer = fleet.roll("2")
    assert answer["result"] is False
    assert (answer["host"], answer["back"]) == (HOST, {"web1": "1"})
    assert answer["schema"] == fleet.down("2", "1")
    fleet.all_on("1")


@pytest.mark.slow
def test_a_failure_in_the_second_batch(deployed: Shop) -> None:
    fleet = deployed
    before = fleet.altered()
    fleet.sicken("web10", "2")
    answer = fleet.roll("2", "batch=1")
    assert (answer["result"], answer["back"]) == (False, dict.fromkeys(MINIONS, "1"))
    fleet.all_on("1")
    assert fleet.altered() - before == 2  # once up, once down
    events = fleet.salt("virtualenv_tools.history", fleet.root)
    migrated = {
        short: [one for one in lines if " migrated" in one] for short, lines in events.items()
    }
    assert [short for short, lines in migrated.items() if lines] == [HOST]


@pytest.mark.slow
def test_a_minion_that_vanishes(deployed: Shop) -> None:
    """Nobody knows what it runs: the schema stays, until it is back and all are rolled back."""
    fleet = deployed
    away = fleet.daemons["web10"]
    with ThreadPoolExecutor(1) as pool:
        rolled = pool.submit(fleet.roll, "2", "batch=1", "pause=15", "timeout=5")
        while fleet.on()["web1"] != "2":
            time.sleep(0.2)
        away.terminate()
        answer = rolled.result()
    try:
        assert answer["result"] is False
        assert list(answer["stuck"]) == ["web10"]
        assert answer["schema"] == "The schema is left as it is, as web10 may need it."
        assert (fleet.schema(), fleet.on()["web1"]) == (["id", "price"], "1")
        assert fleet.answers() == dict.fromkeys(MINIONS, True)
        answer = fleet.back("timeout=5")
        assert (answer["result"], answer["missing"]) == (False, ["web10"])
        assert fleet.schema() == ["id", "price"]
    finally:
        away.start()
    answer = fleet.back()
    assert answer["result"] is True, answer
    assert answer["schema"] == fleet.down("2", "1")
    fleet.all_on("1")


@pytest.mark.slow
def test_a_roll_out_and_a_rollback(deployed: Shop) -> None:
    """And what the fleet shows of the schema; two at once are refused."""
    fleet = deployed
    said = fleet.roll("2", "batch=100%", "test=True")
    assert said["comment"].endswith(
        "; web2 migrates the schema first. "
        "On web1, web2, web10: the same packages; migrations shop 0002_price."
    ), said
    answer = fleet.roll("2", "batch=100%")
    assert (answer["result"], answer["schema"]) == (True, None), answer
    fleet.all_on("2")
    (shown,) = fleet.view()["schemas"]
    assert (shown["host"], shown["version"], shown["release"]) == (HOST, "shop 0002_price", "2")
    assert shown["misfits"] == {}
    assert shown["since"].endswith("Z")

    said = fleet.back("batch=1", "test=True")
    assert said["comment"].startswith("3 minions would be rolled back to 1, batch 1: web1;")
    fleet.all_on("2")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fleet.back, "batch=1", "reason=prices are wrong")
        while fleet.on()["web1"] == "2":
            time.sleep(0.2)
        refused, code = fleet.run("releases.roll", fleet.root, "3")
        assert (refused["result"], code) == (False, 1)
        assert f"Another rollback in {fleet.root} is under way" in refused["comment"]
        answer = first.result()
    assert answer["result"] is True, answer
    fleet.all_on("1")
    assert list(fleet.view()["bad"]["2"]) == ["prices are wrong"]
    again = fleet.back()
    assert again["comment"].startswith("3 minions had been rolled back to 1 already.")
    fleet.all_on("1")


@pytest.mark.slow
def test_killed_in_a_job_and_called_again(deployed: Shop) -> None:
    """The runner of a roll-out and of a rollback, in one job of ten, others each time.

    It ends when both are over before they are killed; how many jobs that takes is not known here.
    """
    fleet = deployed
    calls = {
        "2": ("releases.roll", fleet.root, "2", "canary=0", "batch=2"),
        "1": ("releases.rollback", fleet.root, "batch=2"),
    }
    every = stride(10)
    first = random.randint(1, every)
    for number in itertools.count(first, every):
        killed = set()
        for wanted, call in calls.items():
            before = fleet.altered()
            where = random.choice(("KILLED_IN", "KILLED_AFTER"))
            if fleet.is_killed(*call, **{where: number}):
                killed.add(wanted)
            assert fleet.answers() == dict.fromkeys(MINIONS, True)
            answer, code = fleet.run(*call)
            assert (answer["result"], code) == (True, 0), (number, where, answer)
            fleet.all_on(wanted)
            assert fleet.altered() - before == 1, (number, where)
            claims = fleet.salt("virtualenv_tools.claimed", fleet.root)
            assert not any(claims.values()), claims
            view = fleet.view()
            (shown,) = view["schemas"]
            assert (shown["host"], shown["version"]) == (HOST, VERSIONS["django"][wanted])
            assert (view["stragglers"], shown["misfits"]) == ({}, {})
        fleet.salt("virtualenv_tools.unmark_bad", f"{fleet.root}/2")
        if not killed:
            break
    assert number > 10
    events = fleet.salt("virtualenv_tools.history", fleet.root, "limit=1000")
    migrated = {
        short: [line.split()[1] for line in lines if " migrated" in line]
        for short, lines in events.items()
    }
    assert [short for short, lines in migrated.items() if lines] == [HOST]
    assert len(migrated[HOST]) == 1 + 2 * len(range(first, number + 1, every))


@pytest.mark.slow
def test_hosts_that_cannot_be(deployed: Shop) -> None:
    fleet = deployed
    migrations = fleet.apps["shop"]["migrations"]
    for host, words in (
        ("nowhere", "nowhere, which migrates the schema for all, is not among the minions"),
        (ID, "not all minions have the same host for their schema: web1 on web1; "),
    ):
        migrations["host"] = host
        fleet.write()
        answer = fleet.roll("2")
        assert answer["result"] is False
        assert answer["comment"].startswith(f"Nothing was rolled out: {words}"), answer
    migrations["host"] = fleet.id(HOST)
    fleet.write()
    tgt = f"tgt={fleet.id('web1')},{fleet.id('web10')}"
    answer = fleet.roll("2", tgt, "tgt_type=list")
    assert "web2, which migrates the schema for all, is not among the minions" in answer["comment"]
    away = fleet.daemons[HOST]
    away.terminate()
    try:
        answer = fleet.roll("2", "timeout=5")
    finally:
        away.start()
    assert answer["comment"] == (
        "Nothing was rolled out: web2, which migrates the schema for all, does not answer: "
        "see whether that minion is running."
    )
    fleet.all_on("1")

    # A highstate with such a host changes nothing in the database.
    migrations.update(host="nowhere", wait=1)
    fleet.want("2")
    for states in fleet.by_id().values():
        failed = states["shop is migrated"]
        assert failed["result"] is False
        assert "the schema lacks shop.0002_price" in failed["comment"].lower()
        assert "nowhere alone migrates it" in failed["comment"]
    assert fleet.schema() == ["id"]
    assert fleet.on() == dict.fromkeys(MINIONS, "1")
