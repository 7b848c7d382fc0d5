"""One database, many servers: its host migrates it, and the others wait; down when all are back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relocate_core import (
    Migration,
    Recipe,
    activate,
    migrate,
    migrate_down,
    prune,
    rollback,
    schemas,
    wait_for_schema,
)
from relocate_core.errors import CannotMigrate
from relocate_core.releases.schemas import host as host_module
from tests.support import postgres, roots
from tests.support.projects import Migrated, code, column, libraries, table
from tests.support.roots import one_sentence

FIRST = {"0001_initial": table("Item")}
SECOND = {**FIRST, "0002_price": column("item", "price")}
HOST = "web1"


@pytest.fixture(scope="session")
def installed() -> Iterator[str]:
    """Django and Alembic."""
    with libraries() as directory:
        yield directory


class Servers:
    """Two servers, each with a root of its own, and one database.

    Attributes:
        web1: the host.
        web2: the other one.
    """

    def __init__(self, directory: Path, installed: str) -> None:
        self.web1 = Migrated(directory / "web1", installed)
        self.web2 = Migrated(directory / "web2", installed, env=self.web1.env)

    def django(self, name: str, migrations: dict[str, Any]) -> None:
        for site in (self.web1, self.web2):
            site.django(name, {"shop": migrations})

    def alembic(self, name: str, revisions: dict[str, tuple[Any, str, str]]) -> None:
        for site in (self.web1, self.web2):
            site.alembic(name, revisions)

    def up(self, name: str, kind: str = "django", **options: Any) -> Migration:
        """What the host does in a highstate."""
        site = self.web1
        done = migrate(site.path(name), site.recipe(kind), host=HOST, **options)
        if not options.get("dry_run"):
            activate(site.path(name))
        return done

    def wait(self, name: str, kind: str = "django", **options: Any) -> Migration:
        """What the other one does in a highstate."""
        site = self.web2
        done = wait_for_schema(site.path(name), site.recipe(kind), HOST, **{"wait": 0, **options})
        if not options.get("dry_run"):
            activate(site.path(name))
        return done

    def on(self) -> tuple[str | None, str | None]:
        return self.web1.current(), self.web2.current()

    def columns(self) -> set[str]:
        return self.web1.columns("shop_item")


@pytest.fixture
def servers(installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    roots.without_waiting(monkeypatch.setattr)
    monkeypatch.setattr(host_module, "_POLL_SECONDS", 0.1)
    return Servers(tmp_path, installed)


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(CannotMigrate) as found:
        function(*arguments, **options)
    assert one_sentence(found.value), found.value
    return str(found.value)


@pytest.mark.slow
def test_one_servers_rollback_leaves_the_schema_to_the_others(servers: Servers) -> None:
    """The trial of two roots on one database; and down with the last of them."""
    servers.django("A", FIRST)
    servers.django("B", SECOND)
    servers.up("A")
    servers.wait("A")
    words = refusal(servers.wait, "B")
    assert words == (
        f"the schema lacks shop.0002_price for {servers.web2.path('B')}, and web1 alone migrates "
        "it, and has not within 0 seconds: see what keeps web1 from that, and run again"
    )
    assert servers.up("B").applied == ["shop.0002_price"]
    assert servers.wait("B").changed is False
    before = roots.everything(servers.web2.root)
    assert servers.wait("B").lacking == []
    assert roots.everything(servers.web2.root) == before

    looked = rollback(servers.web2.root, dry_run=True)
    back = rollback(servers.web2.root, reason="slow")
    assert (back.schema, looked.schema) == (None, None)
    words = "web1 alone migrates it, for all that use its database"
    assert (back.schema_left, looked.schema_left) == (words, words)
    assert (servers.on(), servers.columns()) == (("B", "A"), {"id", "price"})
    servers.wait("A")  # its next highstate
    words = refusal(migrate_down, servers.web1.root, "A", HOST)
    assert "B is active" in words
    assert rollback(servers.web1.root, reason="slow").schema_left
    assert (servers.on(), servers.columns()) == (("A", "A"), {"id", "price"})

    # By pillar neither, and nothing is written for it.
    before = roots.everything(servers.web1.root)
    again = servers.up("A")
    assert (again.changed, again.left) == (False, True)
    assert roots.everything(servers.web1.root) == before

    down = (servers.web1.root, "A", HOST)
    words = refusal(migrate_down, *down, running=["A", "B"])
    assert words.startswith("the schema is left as it is: B still runs")
    assert "C still runs" in refusal(migrate_down, *down, running=["A", "C"])
    assert migrate_down(servers.web2.root, "A", "web2").changed is False
    looked_down = migrate_down(*down, running=["A"], dry_run=True)
    assert (looked_down.changed, servers.columns()) == (True, {"id", "price"})
    done = migrate_down(*down, running=["A"])
    assert done.as_dict() == {**looked_down.as_dict(), "dry_run": False}
    assert (done.undone, servers.columns()) == (["shop.0002_price"], {"id"})
    assert migrate_down(*down, running=["A"]).changed is False
    assert servers.web1.events()[-1].startswith("migrated_back A ")


@pytest.mark.slow
def test_prune_leaves_the_host_what_migrates_down(servers: Servers) -> None:
    """Between a rollback of each server and that of the schema, which is the last."""
    for name, migrations in (("A", FIRST), ("B", SECOND)):
        servers.django(name, migrations)
        servers.up(name)
        servers.wait(name)
    for site in (servers.web1, servers.web2):
        rollback(site.root, reason="slow")
        done = prune(site.root, 1)
        assert (done.removed, set(done.kept)) == ([], {"A", "B"})
        assert done.kept["B"] == "only its code can migrate the django default schema down"
    done = migrate_down(servers.web1.root, "A", HOST, running=["A"])
    assert (done.changed, servers.columns()) == (True, {"id"})
    assert prune(servers.web1.root, 1).removed == ["B"]
    assert servers.wait("A").lacking == []
    assert prune(servers.web2.root, 1).removed == ["B"]


def test_what_is_recorded(servers: Servers) -> None:
    """Who migrates, what it is at, and which releases it has all for."""
    assert schemas(servers.web1.root) == {}
    servers.django("A", FIRST)
    servers.django("B", SECOND)
    servers.up("A")
    servers.up("B")
    servers.wait("B")
    (found,) = schemas(servers.web1.root).values()
    assert (found["host"], found["version"], found["release"]) == (HOST, "shop 0002_price", "B")
    assert (found["fits"], found["by"], found["event"]) == (["A", "B"], "B", "migrated")
    (other,) = schemas(servers.web2.root).values()
    assert (other["host"], other["place"], other["fits"]) == (HOST, found["place"], ["B"])
    rollback(servers.web1.root)
    migrate_down(servers.web1.root, "A", HOST)
    (found,) = schemas(servers.web1.root).values()
    assert (found["version"], found["fits"]) == ("shop 0001_initial", ["A"])


@pytest.mark.slow
def test_it_waits_for_the_host(servers: Servers) -> None:
    servers.django("A", FIRST)
    looked = servers.wait("A", dry_run=True)
    assert (looked.lacking, looked.dry_run) == (["shop.0001_initial"], True)
    assert not os.path.exists(servers.web1.database)
    steps: list[str] = []
    begun = threading.Event()

    def notify(step: str, facts: dict[str, Any]) -> None:
        steps.append(step)
        begun.set()

    other = threading.Thread(target=lambda: (begun.wait(60), servers.up("A")))
    other.start()
    try:
        servers.wait("A", wait=60, notify=notify)
    finally:
        begun.set()
        other.join()
    assert (servers.on(), steps) == (("A", "A"), ["waiting for the schema"])


@pytest.mark.slow
def test_a_host_that_is_named_later(servers: Servers) -> None:
    """What each of them has recorded for itself does not count any more."""
    servers.django("A", FIRST)
    servers.django("B", SECOND)
    for site in (servers.web1, servers.web2):
        site.deploy("A")
    for site in (servers.web1, servers.web2):
        site.deploy("B")
    assert (servers.up("B").changed, servers.wait("B").changed) == (False, False)
    for site in (servers.web2, servers.web1):
        assert rollback(site.root).schema_left
        assert servers.columns() == {"id", "price"}
    assert migrate_down(servers.web1.root, "A", HOST).undone == ["shop.0002_price"]


@pytest.mark.slow
def test_alembic_with_a_host(servers: Servers) -> None:
    """Code that does not know what is applied is satisfied where it has run before, or not."""
    one = {"a1": (None, "op.create_table('item', sa.Column('id', sa.Integer))", "pass")}
    add = "op.add_column('item', sa.Column('price', sa.Integer))"
    servers.alembic("A", one)
    servers.alembic("B", {**one, "b2": ("a1", add, "op.drop_column('item', 'price')")})
    servers.alembic("C", {**one, "c2": ("a1", "pass", "pass")})
    servers.up("A", "alembic")
    servers.wait("A", "alembic")
    servers.up("B", "alembic")
    words = refusal(servers.wait, "C", "alembic")
    assert "the schema lacks a way from b2, which its code lacks, for" in words
    assert servers.wait("B", "alembic").changed is False
    rollback(servers.web2.root)
    assert servers.wait("A", "alembic").changed is False
    rollback(servers.web1.root)
    assert servers.up("A", "alembic").left is True
    assert migrate_down(servers.web1.root, "A", HOST).undone == ["b2"]


def test_commands_need_a_check(servers: Servers) -> None:
    recipe = Recipe.of("commands", version="cat ../number", up="echo 1 > ../number")
    path = servers.web1.release("A", {})
    other = servers.web2.release("A", {})
    for function in (
        lambda: migrate(path, recipe, host=HOST),
        lambda: wait_for_schema(other, recipe, HOST, wait=0),
    ):
        assert refusal(function).startswith("check is missing: with a host, ")
    number = os.path.join(servers.web1.root, "number")
    recipe = Recipe.of(
        "commands",
        version=f"cat {number} || echo 0",
        up=f"echo 1 > {number}",
        check=f"grep -q 1 {number}",
    )
    words = refusal(wait_for_schema, other, recipe, HOST, wait=0)
    assert "the schema lacks what `check` looks for (" in words
    migrate(path, recipe, host=HOST)
    assert wait_for_schema(other, recipe, HOST, wait=0).lacking == []


# --- PostgreSQL -----------------------------------------------------------------------------------

ELSEWHERE = """
import os
from project.here import *
DATABASES["default"].update(HOST="db.example.org", OPTIONS={"hostaddr": "127.0.0.1"})
"""


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    with postgres.running("all") as server:
        yield server


@pytest.mark.slow
def test_a_database_on_another_machine_needs_a_host(
    servers: Servers, server: postgres.Server
) -> None:
    """It has that name for the connection, though here it is the loopback."""
    site = servers.web1
    site.env.update(SERVER=f"localhost {server.port}")
    servers.django("A", FIRST)
    here = Path(site.path("A"), "project", "settings.py")
    here.rename(here.with_name("here.py"))
    here.write_text(ELSEWHERE)
    for dry_run in (True, False):
        words = refusal(site.migrate, "A", dry_run=dry_run)
        assert words == (
            f"the database of {site.path('A')} is on another machine, db.example.org: set `host` "
            "to the ID of the one minion that migrates its schema, on all minions that use it; "
            "nothing was changed"
        )
    assert server.query("select count(*) from pg_tables where schemaname = 'public'") == ["0"]
    assert servers.up("A").applied == ["shop.0001_initial"]
    servers.wait("A")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["django", "alembic"])
def test_waiting_only_reads(servers: Servers, server: postgres.Server, kind: str) -> None:
    """In a database that takes no writes, empty and migrated."""
    site = servers.web1
    site.env.update(SERVER=f"localhost {server.port}")
    servers.django("A", FIRST)
    site.alembic("B", {"a1": (None, "op.create_table('item')", "pass")})
    servers.web2.alembic("B", {"a1": (None, "op.create_table('item')", "pass")})
    name = "A" if kind == "django" else "B"
    read_only = "alter system set default_transaction_read_only = {}"
    for lacking in (True, False):
        server.query(read_only.format("on"))
        server.query("select pg_reload_conf()")
        time.sleep(0.5)
        looked = servers.wait(name, kind, dry_run=True)
        assert bool(looked.lacking) is lacking
        if lacking:
            refusal(servers.wait, name, kind)
        else:
            servers.wait(name, kind)
        server.query(read_only.format("off"))
        server.query("select pg_reload_conf()")
        time.sleep(0.5)
        servers.up(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["django", "alembic"])
def test_two_hosts_at_once(servers: Servers, server: postgres.Server, kind: str) -> None:
    """A mistake in pillar, two masters: the database's own lock lets one migrate."""
    site = servers.web1
    site.env.update(SERVER=f"localhost {server.port}")
    slow = code("__import__('time').sleep(3)", "None")
    servers.django("A", {**FIRST, "0002_slow": slow})
    up = "op.create_table('item', sa.Column('id', sa.Integer)); __import__('time').sleep(3)"
    for one in (servers.web1, servers.web2):
        one.alembic("B", {"a1": (None, up, "pass")})
    name = "A" if kind == "django" else "B"
    failures: list[BaseException] = []

    def run(one: Migrated, host: str) -> None:
        try:
            migrate(one.path(name), one.recipe(kind), host=host)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(one, host))
        for one, host in ((servers.web1, "web1"), (servers.web2, "web2"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    table_name = "shop_item" if kind == "django" else "item"
    assert len(server.logged(f'CREATE TABLE "?{table_name}"?')) == 1
    assert server.query("select count(*) from pg_locks where locktype = 'advisory'") == ["0"]
