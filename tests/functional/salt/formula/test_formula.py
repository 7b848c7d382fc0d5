"""The formula `releases`: each of its SLS files, and all of it, on a masterless minion."""

from __future__ import annotations

import copy
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions, sites
from tests.support.managers import Manager
from tests.support.minions import Masterless
from tests.support.pythons import Pair
from tests.support.sites import ME

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError

NAMES = ("1", "2", "3")
SLEEPS = "bin/python -c 'import time; time.sleep(600)'"
PARTS = ("bootstrap", "deploy", "enable", "service", "healthy")


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion with the formula and archives."""
    made = sites.minion(tmp_path_factory.mktemp("minion"))
    for name in NAMES:
        minions.pack(made.root / "shop" / f"{name}.tar.gz", name)
    return made


@dataclass
class Shop:
    """An app in a scratch directory, and its process manager.

    Attributes:
        minion: the minion.
        directory: where all of it is.
        manager: the process manager.
        app: what stands in the pillar of the app.
        more: what stands there beside the apps.
    """

    minion: Masterless
    directory: Path
    manager: Manager
    app: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The directory of the releases."""
        return self.directory / "srv" / "shop"

    def pillar(self, **changes: Any) -> dict[str, Any]:
        """The pillar, with changes to the app; None takes a key away."""
        app = {**self.app, **changes}
        app = {key: value for key, value in app.items() if value is not None}
        return {"releases": {**self.more, "apps": {"shop": app, **self.more.get("apps", {})}}}

    def apply(self, sls: str = "releases", test: bool = False, **changes: Any) -> dict[str, Any]:
        """What the states of one of the SLS files answer, by ID."""
        return self.given(self.pillar(**changes), sls, test)

    def given(self, pillar: Any, sls: str = "releases", test: bool = False) -> dict[str, Any]:
        """The same, for a whole pillar."""
        return sites.applied(self.minion, sls, pillar, test)

    def done(self, sls: str = "releases", **changes: Any) -> dict[str, Any]:
        """Apply an SLS that has to succeed; what has changed, by ID."""
        answers = self.apply(sls, **changes)
        failed = {key: one for key, one in answers.items() if one["result"] is not True}
        assert not failed, failed
        return {key: one["changes"] for key, one in answers.items() if one["changes"]}

    def pythons(self) -> set[str]:
        """What the programs run on."""
        return {os.readlink(f"/proc/{pid}/exe") for pid in self.manager.pids().values()}

    def active(self) -> str:
        """The name of the active release."""
        return os.readlink(self.root / "current")


@pytest.fixture(params=["supervisor"])
def shop(request: pytest.FixtureRequest, minion: Masterless, tmp_path: Path) -> Iterator[Shop]:
    """An app that is not deployed yet."""
    kind = request.param
    manager = Manager(kind, tmp_path / kind)
    made = Shop(minion, tmp_path, manager)
    made.app = {
        "release": "1",
        "source": "salt://shop/{release}.tar.gz",
        "root": str(made.root),
        "user": ME,
        "group": "root" if ME == "root" else None,
        "smoke_tests": "python -c 'import omega'",
        "shared_dirs": ["media"],
        "programs": {
            "web": {"command": SLEEPS, "reload_signal": "HUP"},
            "worker": {"command": SLEEPS},
        },
        "process_manager": kind,
        "health": {"checks": f"grep -v 2 {minions.WHICH}", "attempts": 1, "interval": 0},
        "keep_releases": 2,
    }
    made.more = {kind: {"command": str(manager.command), "conf_dir": str(manager.configs)}}
    if kind == "supervisor":
        made.more[kind]["log_dir"] = str(tmp_path)
    yield made
    manager.end()


# What systemd does otherwise, the tests of it and of `test_from_bare_to_running` show at once.
both_managers = pytest.mark.parametrize(
    "shop",
    ["supervisor", pytest.param("systemd", marks=pytest.mark.slow)],
    indirect=True,
)


def world(shop: Shop) -> Any:
    """All that a test must not touch."""
    return environments.digest(str(shop.directory)), shop.manager.known()


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shop", "sls"),
    [
        ("supervisor", "formula.releases"),
        pytest.param("supervisor", "releases", marks=pytest.mark.slow),
        pytest.param("systemd", "formula.releases", marks=pytest.mark.slow),
        pytest.param("systemd", "releases", marks=pytest.mark.slow),
    ],
    indirect=["shop"],
)
def test_from_bare_to_running(shop: Shop, sls: str) -> None:
    before = [path.name for path in shop.root.parent.parent.rglob("*")]
    said = shop.apply(sls, test=True)
    wanted = {"shop has a directory", "shop is deployed", "shop runs", "shop answers"}
    assert wanted <= {key for key, one in said.items() if one["result"] is None}
    assert {one["result"] for one in said.values()} == {True, None}
    left = {path.name for path in shop.root.parent.parent.rglob("*")} - set(before)
    assert left <= {"state.json", "state.json.calls"}

    changed = shop.done(sls)
    assert "shop has a user" not in changed
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("1", {"1"})
    assert len(shop.manager.runs_on()) == 2
    assert os.readlink(shop.root / "1" / "media") == str(shop.root / "shared" / "media")
    before = world(shop)
    assert shop.done(sls) == {}
    assert {one["result"] for one in shop.apply(sls, test=True).values()} == {True}
    assert shop.manager.known() == before[1]


@both_managers
def test_a_switch_restarts_and_a_bad_release_is_left_again(shop: Shop) -> None:
    shop.done()
    said = shop.apply(test=True, release="3")
    assert said["shop runs"]["result"] is None
    assert said["shop runs"]["comment"].startswith("Would be restarted: shop")
    changed = shop.done(release="3")
    assert set(changed) == {"shop is deployed", str(shop.root / "current"), "shop runs"}
    assert set(shop.manager.runs_on().values()) == {"3"}

    answers = shop.apply(release="2")
    assert answers["shop answers"]["result"] is False
    assert answers["shop answers"]["changes"]["restarted"] == ["release_programs shop runs"]
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("3", {"3"})
    again = shop.apply(release="2")
    assert "is marked bad" in again[str(shop.root / "current")]["comment"]
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("3", {"3"})


@pytest.mark.slow
def test_old_releases_go(shop: Shop) -> None:
    for name in ("1", "3"):
        shop.done(release=name)
    changed = shop.done(release="2", health={"checks": "true"}, keep_releases=1)
    assert changed[str(shop.root)] == {"removed": ["1"]}


def test_nobody_who_is_there_is_changed(shop: Shop) -> None:
    before = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes()
    shop.done("releases.bootstrap", root=str(shop.directory / "home"))
    assert (Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories of other users")
def test_what_is_shared_is_the_programs_and_nothing_above_it(shop: Shop) -> None:
    """Else the program could put a link in its place, for root to give away what that points to."""
    directory = shop.root / "shared" / "deep" / "media"
    changes: dict[str, Any] = {"shared_dirs": ["deep/media"], "user": "nobody", "group": None}
    shop.done("releases.bootstrap", **changes)
    assert directory.owner() == "nobody"
    assert {path.owner() for path in directory.parents if path.is_relative_to(shop.root)} == {
        "root"
    }
    assert shop.done("releases.bootstrap", **changes) == {}
    directory.rmdir()
    directory.symlink_to(shop.directory)
    answers = shop.apply("releases.bootstrap", **changes)
    assert answers[f"shop shares {directory}"]["result"] is False
    assert shop.directory.owner() == "root"


def test_who_is_not_there_would_be_made(shop: Shop) -> None:
    said = shop.apply("releases.bootstrap", test=True, user="surely-nobody", group=None)
    assert said["shop has a user"]["result"] is None
    assert said["shop has a group"]["name"] == "surely-nobody"


def test_a_smoke_test_is_run_by_the_user_of_the_app(shop: Shop) -> None:
    """Who is not there yet where a bare machine is asked what would be done."""
    bare: dict[str, Any] = {"user": "surely-nobody", "group": None}
    said = shop.apply(test=True, **bare)
    assert said["shop is deployed"]["result"] is None
    assert {one["result"] for one in said.values()} == {True, None}
    refused = shop.apply("releases.deploy", **bare, shared_dirs=None)["shop is deployed"]
    assert refused["result"] is False
    assert "no user surely-nobody on this machine" in refused["comment"]
    home = pwd.getpwnam(ME).pw_dir
    shop.done(
        "releases.deploy", shared_dirs=None, smoke_tests=f'test "$(id -un) $HOME" = "{ME} {home}"'
    )


def test_the_directories_of_persistent_files_and_of_logs_are_made(shop: Shop) -> None:
    changes: dict[str, Any] = {"shared_files": ["etc/local.py"]}
    shop.done("releases.bootstrap", **changes)
    assert (shop.root / "shared" / "etc").is_dir()
    shop.more["supervisor"]["log_dir"] = str(shop.directory / "deep" / "log")
    said = shop.apply("releases.enable", test=True, **changes)
    assert said["supervisor has a directory for logs"]["result"] is None
    shop.done("releases.enable", **changes)
    assert (shop.directory / "deep" / "log").is_dir()


def test_where_the_release_is_put_in(shop: Shop) -> None:
    """In all that `managed` and `migrated` take, and not in what stays through a switch."""
    text = "a {release} b"
    known = shop.minion.functions.pack["__pillar__"]
    known.clear()
    changes = {
        "smoke_tests": text,
        "signature": text,
        "shared_dirs": {"media": "/data/{release}"},
        "migrations": {"kind": "alembic", "config": text, "env": {"A": text}},
    }
    pillar = shop.pillar(**changes)
    pillar["releases"]["apps"]["shop"]["shared_dirs"] = {"media": "/data/media"}
    pillar["releases"]["apps"]["shop"]["programs"]["web"]["env"] = {"A": text}
    known.update(copy.deepcopy(pillar))
    app = shop.minion.functions["releases_pillar.settings"]()["apps"]["shop"]
    managed = {key: one for setting in app["managed"] for key, one in setting.items()}
    assert managed["source"] == "salt://shop/1.tar.gz"
    assert (managed["smoke"], managed["signature"]) == (["a 1 b"], ["a 1 b"])
    migrated = {key: one for setting in app["migrations"] for key, one in setting.items()}
    assert (migrated["config"], migrated["env"]) == ("a 1 b", {"A": "a 1 b"})
    assert app["programs"]["web"]["env"] == {"A": f'"{text}"'}


@pytest.mark.parametrize("shop", ["supervisor", "systemd"], indirect=True)
def test_a_manager_that_is_to_be_installed_yet(shop: Shop) -> None:
    """As on a bare machine, where `os_packages` brings it in the same run."""
    shop.more[shop.manager.kind]["command"] = "surely-not-installed --some option"
    said = shop.apply(test=True)
    assert {one["result"] for one in said.values()} == {True, None}
    (first, second) = said["shop runs"]["changes"]["started"]
    assert said["shop runs"]["comment"] == (
        f"Would be started: {first}, {second}, once surely-not-installed is installed."
    )
    refused = shop.apply()["shop runs"]
    assert (refused["result"], minions.sentence(refused["comment"])) == (False, True)
    assert "surely-not-installed" in refused["comment"]


@pytest.mark.parametrize("python", ["9.9"])
def test_a_python_is_installed_where_it_is_not_there(shop: Shop, python: str) -> None:
    shown = shop.minion.functions["state.show_sls"](
        "releases.bootstrap", pillar=shop.pillar(python=python, os_packages=["libpq5"])
    )
    assert {"pkgs": ["libpq5"]} in shown["shop has its packages"]["pkg"]
    if shop.minion.opts["grains"]["os_family"] == "Debian":
        assert {"name": "python9.9"} in shown["shop has a Python"]["pkg"]


# --- each SLS alone -------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_part_alone_one_after_the_other(shop: Shop) -> None:
    for part in PARTS:
        changed = shop.done(f"releases.{part}")
        assert ("shop runs" in changed) == (part == "enable")
        assert changed or part in ("service", "healthy")
    assert shop.done() == {}


@both_managers
def test_a_run_killed_after_the_switch_is_healed_by_the_next(shop: Shop) -> None:
    shop.done()
    shop.done("releases.deploy", release="3")
    assert set(shop.manager.runs_on().values()) == {"1"}
    assert set(shop.done(release="3")) == {"shop runs"}
    assert set(shop.manager.runs_on().values()) == {"3"}


@pytest.mark.slow
@both_managers
def test_changed_settings_restart(shop: Shop) -> None:
    shop.done()
    old = {key: one["pid"] for key, one in shop.manager.known().items()}
    programs = {**shop.app["programs"], "worker": {"command": f"{SLEEPS} more"}}
    assert "shop runs" in shop.done(programs=programs)
    new = {key: one["pid"] for key, one in shop.manager.known().items()}
    changed = {key for key in new if new[key] != old[key]}
    assert any("worker" in key for key in changed)
    assert shop.done(programs=programs) == {}


@both_managers
def test_rollback(shop: Shop) -> None:
    shop.done()
    shop.done(release="3")
    said = shop.apply("releases.rollback", test=True)
    assert said["shop is rolled back"]["result"] is None
    assert shop.active() == "3"
    shop.done("releases.rollback")
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("1", {"1"})
    shop.minion.functions["virtualenv_tools.unmark_bad"](str(shop.root / "3"))
    shop.more["run"] = {"to": "3"}
    shop.done("releases.rollback")
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("3", {"3"})
    assert shop.done("releases.rollback") == {}  # it is there
    shop.more = {**shop.more, "run": {"from": "1"}}
    assert shop.done("releases.rollback") == {}  # another one is active
    shop.more["run"] = {"from": "3"}
    answers = shop.apply("releases.rollback")  # the one before is marked bad
    assert answers["shop is rolled back"]["result"] is False
    assert minions.sentence(answers["shop is rolled back"]["comment"])
    assert (shop.active(), set(shop.manager.runs_on().values())) == ("3", {"3"})


@pytest.mark.slow
@both_managers
def test_reload(shop: Shop) -> None:
    app = {"programs": {"web": {"command": SLEEPS}, "worker": {"command": SLEEPS}}}
    app["programs"]["web"] = {
        "command": "bin/python -c 'import signal, time; signal.signal(1, print); time.sleep(600)'",
        "reload_signal": "HUP",
    }
    shop.done(**app)
    shop.manager.calls()
    changed = shop.done("releases.reload", **app)["shop is reloaded"]
    assert {key: len(units) for key, units in changed.items()} == {"reloaded": 1, "restarted": 1}
    shop.done("releases.deploy", release="3", **app)  # on another release a signal is not enough
    changed = shop.done("releases.reload", release="3", **app)["shop is reloaded"]
    assert {key: len(units) for key, units in changed.items()} == {"restarted": 2}
    assert set(shop.manager.runs_on().values()) == {"3"}


@pytest.mark.slow
@both_managers
def test_clean(shop: Shop) -> None:
    shop.done()
    (shop.root / "shared" / "media" / "upload").write_text("kept")
    before = world(shop)
    assert {one["result"] for one in shop.apply("releases.clean", test=True).values()} == {None}
    assert world(shop)[1] == before[1]
    assert shop.active() == "1"
    pids = [one["pid"] for one in shop.manager.known().values()]
    shop.done("releases.clean")
    assert os.listdir(shop.root) == ["shared"]
    assert (shop.root / "shared" / "media" / "upload").read_text() == "kept"
    assert os.listdir(shop.manager.configs) == []
    assert not any(Path(f"/proc/{pid}/cwd").exists() for pid in pids if pid)
    assert shop.done("releases.clean") == {}
    shop.more["run"] = {"purge_data": True}
    shop.done("releases.clean")
    assert not shop.root.exists()


def served(minion: Masterless, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Put the bundles of a small Python and of an app on it into the file root; that Python."""
    pair = Pair.make(tmp_path_factory.mktemp("pair"))
    for path in (pair.python.archive, pair.app):
        shutil.copy(path, minion.root)
    return {"source": "salt://python.tar", "source_hash": pair.python.sha256}


@pytest.mark.slow
def test_releases_bring_their_own_python(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shop.app |= {
        "source": "salt://app.tar",
        "python": served(shop.minion, tmp_path_factory),
        "smoke_tests": "python -c 'import json, zlib'",
        "health": None,
    }
    shop.done()
    (name,) = (one for one in os.listdir(shop.root.parent / "pythons") if one[0] != ".")
    top = shop.root.parent / "pythons" / name
    assert os.path.realpath(shop.root / "current/bin/python").startswith(f"{top}/bin/")
    assert shop.done() == {}
    assert set(shop.manager.runs_on().values()) == {"1"}
    shop.apply("releases.clean", test=True)
    assert top.is_dir()
    changed = shop.done("releases.clean")
    assert changed["shop needs no interpreter"] == {"pythons": [str(top)]}
    assert not top.exists()
    assert shop.done("releases.clean") == {}


@pytest.mark.slow
def test_another_python_is_taken_where_the_release_is_healthy_on_it(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = served(shop.minion, tmp_path_factory)
    shop.app |= {"source": "salt://app.tar", "smoke_tests": None}
    shop.app["health"]["checks"] = "python -c 'import sys; print(sys.base_prefix)'"
    shop.done(release="0")
    shop.done()
    before = shop.pythons()
    others = "shop's other releases are on its Python"
    older = shop.root / "0/bin/python"

    said = shop.apply(test=True, python=python)
    assert said["shop is on its Python"]["result"] is None
    assert said[others]["result"] is None
    assert said[others]["comment"].endswith("salt://python.tar, once 1 is healthy on it.")
    fails = "python -c 'import sys; sys.exit(\"/pythons/\" in sys.base_prefix)'"
    bad = {**shop.app["health"], "checks": fails}
    answers = shop.apply(python=python, health=bad)
    assert answers["shop runs"]["changes"].keys() == {"restarted"}
    failed = answers["shop answers"]
    assert failed["result"] is False
    assert failed["changes"].keys() == {"python", "restarted"}
    assert failed["comment"].endswith("again. 1 is healthy.")
    assert answers[others]["result"] is False, "it required a healthy release"
    assert shop.pythons() == before == {os.path.realpath(older)}

    answers = shop.apply(python=python, health=bad)
    assert answers["shop is on its Python"]["result"] is False
    assert "was not healthy on" in answers["shop is on its Python"]["comment"]
    assert answers["shop runs"]["result"] is True
    assert answers["shop answers"]["result"] is True
    assert (answers[others]["result"], answers[others]["changes"]) == (True, {})
    assert "0: 1, which is active, is not on that Python" in answers[others]["comment"]
    assert shop.pythons() == before == {os.path.realpath(older)}
    assert not [name for name in os.listdir(shop.root.parent / "pythons") if name[0] != "."]

    shop.minion.functions["virtualenv_tools.unmark_bad"](str(shop.root / "1"))
    changed = shop.done(python=python)
    assert changed.keys() == {"shop is on its Python", "shop runs", others}
    assert changed[others]["pythons"].keys() == {"0"}
    (now,) = shop.pythons()
    assert now.startswith(str(shop.root.parent / "pythons"))
    assert shop.done(python=python) == {}

    answers = shop.apply("releases.rollback", python=python)
    assert answers["shop runs"]["changes"].keys() == {"restarted"}
    assert {one["result"] for one in answers.values()} == {True}
    assert (shop.active(), shop.pythons()) == ("0", {now})


@pytest.mark.slow
def test_a_build_machine_packs(shop: Shop) -> None:
    bundle = str(shop.directory / "deep" / "shop.tar.gz")
    pillar = {"releases": {"builds": {bundle: {"pip_packages": ["nothing-of-that-name"]}}}}
    said = shop.given(pillar, "releases.build", test=True)
    assert said[bundle]["result"] is None, said[bundle]
    assert said[bundle]["comment"].startswith(f"{bundle} would be built")
    shop.given(pillar, "releases.build")
    assert os.listdir(shop.directory / "deep") == []


@pytest.mark.slow
def test_a_socket_is_held_while_its_programs_are_restarted_in_turn(shop: Shop) -> None:
    shop.app["programs"] = {"web": {"command": SLEEPS, "socket": "127.0.0.1:1"}}
    shop.done()
    shop.manager.calls()
    shop.done(release="3")
    assert shop.manager.calls() == ["restart shop-web:web0", "restart shop-web:web1"]


# --- what is no longer in the pillar --------------------------------------------------------------

RETIRED = "programs that are no longer in the pillar are stopped"


def stopped(shop: Shop, pids: dict[str, int], *names: str) -> bool:
    """Whether of the processes those have ended whose names have a word, and no other one."""
    return {key for key, pid in pids.items() if not Path(f"/proc/{pid}/cwd").exists()} == {
        key for key in pids if any(name in key for name in names)
    }


def processes(shop: Shop) -> dict[str, int]:
    return {key: one["pid"] for key, one in shop.manager.known().items() if one["pid"]}


@pytest.mark.slow
@both_managers
def test_a_program_that_is_removed_is_stopped(shop: Shop) -> None:
    shop.done()
    before, calls = processes(shop), world(shop)[1]
    programs = {"web": shop.app["programs"]["web"]}
    said = shop.apply(test=True, programs=programs)
    where = "shop runs" if shop.manager.kind == "supervisor" else RETIRED
    assert said[where]["result"] is None
    (unit,) = said[where]["changes"]["stopped"]
    assert "worker" in unit
    assert world(shop)[1] == calls
    changed = shop.done(programs=programs)
    assert changed[where]["stopped"] == [unit]
    assert not Path(f"/proc/{before[unit]}/cwd").exists()
    assert not [key for key in shop.manager.runs_on() if "worker" in key]
    assert not list(shop.manager.configs.glob("*worker*"))
    assert shop.done(programs=programs) == {}


@pytest.mark.slow
@both_managers
def test_a_socket_that_is_removed_is_closed(shop: Shop) -> None:
    web = shop.app["programs"]["web"]
    programs = {"web": {**web, "socket": "127.0.0.1:1"}}
    shop.done(programs=programs)
    before = processes(shop)
    programs = {"web": web}
    said = shop.apply(test=True, programs=programs)
    assert any("stopped" in one["changes"] for one in said.values())
    shop.done(programs=programs)
    assert stopped(shop, before, "web")
    assert list(shop.manager.runs_on().values()) == ["1"]
    assert not list(shop.manager.configs.glob("*.socket"))
    assert shop.done(programs=programs) == {}
    shop.done(programs={"web": {**web, "socket": "127.0.0.1:1"}})
    assert "shop:web" not in shop.manager.runs_on()


@pytest.mark.slow
@both_managers
def test_an_app_that_is_removed_is_stopped(shop: Shop) -> None:
    other = {**shop.app, "root": str(shop.directory / "srv" / "blog")}
    shop.more["apps"] = {"blog": other}
    shop.done()
    foreign = shop.manager.configs / "shop.conf.bak"
    foreign.write_text("; shop: written by Salt, by the formula releases (base).\n")
    staging = shop.manager.configs / "store.conf"  # of an app that this pillar cannot know
    staging.write_text("; store: written by Salt, by the formula releases (staging).\n")
    before = processes(shop)
    only_blog = {"releases": {**shop.more, "apps": {"blog": other}}}

    for pillar in (  # a run for the other app, or a pillar that has not arrived
        {"releases": {**only_blog["releases"], "run": {"app": "blog"}}},
        {"releases": {key: one for key, one in shop.more.items() if key != "apps"}},
    ):
        answers = shop.given(pillar)
        assert not [one for one in answers.values() if one["changes"]]
    said = shop.given(only_blog, test=True)[RETIRED]
    assert said["result"] is None
    assert len(said["changes"]["stopped"]) == 2
    assert stopped(shop, before)
    done = shop.given(only_blog)
    assert {one["result"] for one in done.values()} == {True}
    assert done[RETIRED]["changes"] == said["changes"]
    assert stopped(shop, before, "shop")
    assert (shop.active(), foreign.exists(), staging.exists()) == ("1", True, True)
    assert not (shop.manager.configs / "shop.conf").exists()
    assert not [one for one in shop.given(only_blog).values() if one["changes"]]

    foreign.unlink()
    staging.unlink()
    nothing = {"releases": {**shop.more, "apps": {}}}
    assert shop.given(nothing)[RETIRED]["result"] is True
    assert (shop.manager.runs_on(), os.listdir(shop.manager.configs)) == ({}, [])


@pytest.mark.slow
def test_another_process_manager_takes_over(shop: Shop) -> None:
    shop.done()
    before = processes(shop)
    systemd = Manager("systemd", shop.directory / "systemd")
    shop.more["systemd"] = {"command": str(systemd.command), "conf_dir": str(systemd.configs)}
    try:
        changed = shop.done(process_manager="systemd")
        assert len(changed[RETIRED]["stopped"]) == 2
        assert stopped(shop, before, "web", "worker")
        assert set(systemd.runs_on().values()) == {"1"}
        assert os.listdir(shop.manager.configs) == []
        assert shop.done(process_manager="systemd") == {}
        shop.done()
        assert (systemd.runs_on(), os.listdir(systemd.configs)) == ({}, [])
    finally:
        systemd.end()


@pytest.mark.slow
def test_a_web_server_that_is_removed(shop: Shop) -> None:
    loaded = shop.directory / "loaded"
    for server in ("nginx", "apache"):
        shop.more[server] = {
            "conf_dir": str(shop.directory / server),
            "reload_command": f"echo {server} >> {loaded}",
        }
    web = {**WEB, "apache": {"wsgi_module": "omega"}}
    shop.done(web=web)
    said = shop.apply(test=True)[RETIRED]
    files = [f"{shop.directory}/nginx/shop.conf", f"{shop.directory}/apache/shop.conf"]
    files.append(f"{shop.root}/shop.wsgi")
    assert sorted(said["changes"]["removed"]) == sorted(files)
    assert loaded.read_text() == "nginx\napache\n"
    shop.more["nginx"]["reload_command"] = "echo it is broken; exit 1"
    refused = shop.apply()[RETIRED]
    assert (refused["result"], Path(files[0]).exists()) == (False, True)
    assert refused["comment"] == (
        "`echo it is broken; exit 1` failed: it is broken. The files are as before."
    )
    shop.more["nginx"]["reload_command"] = f"echo nginx >> {loaded}"
    shop.done()
    assert not [path for path in files if Path(path).exists()]
    assert sorted(loaded.read_text().split()) == ["apache", "apache", "nginx", "nginx"]
    assert shop.done() == {}


@pytest.mark.slow
@both_managers
def test_disable_and_enable(shop: Shop) -> None:
    shop.done()
    before = world(shop)
    assert {one["result"] for one in shop.apply("releases.disable", test=True).values()} == {None}
    assert world(shop)[1] == before[1]
    pids = processes(shop)
    shop.done("releases.disable")
    assert stopped(shop, pids, "web", "worker")
    assert os.listdir(shop.manager.configs) == []
    assert (shop.active(), (shop.root / "shared" / "media").is_dir()) == ("1", True)
    assert shop.done("releases.disable") == {}
    assert "shop runs" in shop.done("releases.enable")
    assert set(shop.manager.runs_on().values()) == {"1"}
    assert shop.done() == {}


# --- several apps ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_apps(shop: Shop) -> None:
    other = {
        "release": "2",
        "source": "salt://shop/{release}.tar.gz",
        "root": str(shop.directory / "srv" / "blog"),
        "user": ME,
        "group": shop.app["group"],
        "programs": {"web": {"command": SLEEPS}},
        "process_manager": shop.app["process_manager"],
    }
    shop.more["apps"] = {"blog": other}
    shop.done()
    runs = shop.manager.runs_on()
    assert runs == {"shop:web": "1", "shop:worker": "1", "blog:web": "2"}
    for sls in ("releases.rollback", "releases.clean", "releases.disable"):
        answers = shop.apply(sls)
        (refused,) = [one["comment"] for one in answers.values() if one["result"] is False]
        assert refused.startswith("Which of shop, blog? Name it: ")
    assert shop.manager.runs_on() == runs
    shop.more["run"] = {"app": "blog"}
    shop.done("releases.clean")
    assert shop.manager.runs_on() == {"shop:web": "1", "shop:worker": "1"}
    assert (shop.root / "1").is_dir()


@pytest.mark.parametrize("part", ["", *PARTS, "reload", "rollback", "clean"])
@pytest.mark.few(2)
def test_only_one_of_two_apps(shop: Shop, part: str) -> None:
    """Whatever is to be done; and what is wrong with the other one in the pillar does not count."""
    blog = {**shop.app, "root": str(shop.directory / "srv" / "blog")}
    shop.more.update(apps={"blog": blog}, run={"app": "blog"})
    shown = shop.minion.functions["state.show_sls"](
        f"releases.{part}".rstrip("."), pillar=shop.pillar(relase="1")
    )
    assert shown
    about_it = ("shop", str(shop.root), "the pillar of releases")
    assert not [key for key in shown if key.startswith(about_it)]


def test_only_selects_an_app(shop: Shop) -> None:
    """A release alone, as a roll-out puts it into the pillar, makes no app."""
    for name in ("store", "blog"):
        shop.more.update(run={"app": name}, apps={"blog": {"release": "1"}})
        answers = shop.apply()
        assert [(one["result"], one["comment"]) for one in answers.values()] == [
            (False, f"releases:run:app: {name} is no app of this minion: there are shop")
        ]


# --- a pillar that is wrong -----------------------------------------------------------------------

APP = "releases:apps:shop"
WRONG: dict[str, tuple[Any, str]] = {
    "no release": ({"release": None}, f"{APP}:release is missing: set it to the release"),
    "a number": ({"release": 12345}, f"{APP}:release is read as the number 12345: put it into"),
    "a path": ({"release": "../1"}, f"{APP}:release must be a name, of letters, digits and . _ +"),
    "a typing error": ({"relase": "1"}, f"unknown key {APP}:relase, did you mean release?"),
    "unknown": (
        {"zzz": "1"},
        f"unknown key {APP}:zzz: there are file_group, file_owner, gnupghome, group",
    ),
    "no source": ({"source": None}, f"{APP}:source is missing: set it to the archive"),
    "a hash alone": (
        {"source": None, "source_hash": "abc"},
        f"{APP}:source_hash verifies nothing, as source is missing",
    ),
    "no hash": (
        {"source": "https://example.org/{release}.tar"},
        f"{APP}:source_hash is missing: nothing verifies https://example.org/1.tar",
    ),
    "no full one": ({"source": {"from": {}}}, f"{APP}:source:full is missing"),
    "a relative root": ({"root": "srv"}, f"{APP}:root must be an absolute path"),
    "keep": ({"keep_releases": "all"}, f"{APP}:keep_releases must be a number: 'all'"),
    "manager": (
        {"process_manager": "runit"},
        f"{APP}:process_manager must be supervisor or systemd: 'runit'",
    ),
    "programs": ({"programs": ["web"]}, f"{APP}:programs must be a dictionary: ['web']"),
    "no command": ({"programs": {"web": {}}}, f"{APP}:programs:web:command is missing"),
    "a command on the PATH": (
        {"programs": {"web": {"command": "gunicorn shop.wsgi"}}},
        f"{APP}:programs:web:command must begin with a path in the release, such as bin/gunicorn",
    ),
    "a command by current": (
        {"programs": {"web": {"command": "/srv/shop/current/bin/gunicorn"}}},
        f"{APP}:programs:web:command must begin with a path in the release",
    ),
    "an open quote": (
        {"programs": {"web": {"command": "bin/a '"}}},
        f"{APP}:programs:web:command must be a command: no closing quotation",
    ),
    "two lines": (
        {"programs": {"web": {"command": "bin/a", "env": {"A": "1\nuser=root"}}}},
        f"{APP}:programs:web:env:A must be one line of printable characters",
    ),
    "a remark": (
        {"programs": {"web": {"command": "bin/a ' ; b'"}}},
        f"{APP}:programs:web cannot contain a ; or # after a space",
    ),
    "a boolean": (
        {"programs": {"web": {"command": "bin/a", "env": {"DEBUG": True}}}},
        f"{APP}:programs:web:env:DEBUG is read as True: put it into quotes",
    ),
    "quotes": (
        {"programs": {"web": {"command": "bin/a", "env": {"A": "'b\" c"}}}},
        f"{APP}:programs:web:env cannot have both kinds of quotes in a value",
    ),
    "no kind": ({"migrations": {"settings": "a"}}, f"{APP}:migrations:kind is missing"),
    "a web server": ({"web": {"ngix": {}}}, f"unknown key {APP}:web:ngix, did you mean nginx?"),
    "no upstream": ({"web": {"nginx": {"listen": 80}}}, f"{APP}:web:nginx:upstream is missing"),
    "a URL without a slash": (
        {"web": {"nginx": {"upstream": "http://a:1", "static": {"/static": "static/"}}}},
        f"{APP}:web:nginx:static:/static must be a URL such as /static/ and a directory",
    ),
    "a way out": (
        {"web": {"apache": {"wsgi_module": "a", "static": {"/static/": "../x/"}}}},
        f"{APP}:web:apache:static:/static/ must be a URL such as /static/ and a directory",
    ),
    "a size": (
        {"web": {"nginx": {"upstream": "http://a:1", "client_max_body_size": "1; }"}}},
        f"{APP}:web:nginx:client_max_body_size must be a size such as 10m",
    ),
    "a host": (
        {"web": {"apache": {"wsgi_module": "a", "server_names": "a b"}}},
        f"{APP}:web:apache:server_names must be a host's name: 'a b'",
    ),
    "an upstream": (
        {"web": {"nginx": {"upstream": "http://a; }"}}},
        f"{APP}:web:nginx:upstream must be http:// or uwsgi:// with a host and a port",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_pillar_is_one_sentence(shop: Shop, kind: str) -> None:
    changes, words = WRONG[kind]
    known = shop.minion.functions.pack["__pillar__"]
    known.clear()
    known.update(copy.deepcopy(shop.pillar(**changes)))
    found = shop.minion.functions["releases_pillar.settings"]()
    assert (found["apps"], found["builds"]) == ({}, {})
    assert found["problem"].startswith(words), found["problem"]
    assert minions.sentence(found["problem"])
    with pytest.raises(CommandExecutionError) as raised:
        shop.minion.functions["releases_pillar.check"]()
    assert str(raised.value) == found["problem"]


@pytest.mark.parametrize("part", [*PARTS, "reload", "rollback", "clean", "build", ""])
@pytest.mark.few(2)
def test_every_sls_refuses_it(shop: Shop, part: str) -> None:
    before = world(shop)
    answers = shop.apply(f"releases.{part}".rstrip("."), relase="1")
    assert list(answers) == ["the pillar of releases"]
    assert answers["the pillar of releases"]["result"] is False
    assert answers["the pillar of releases"]["comment"] == WRONG["a typing error"][1]
    assert world(shop) == before


def test_a_wrong_top(shop: Shop) -> None:
    for pillar, words in (
        ({"releases": {"app": {}}}, "unknown key releases:app, did you mean apps?"),
        ({"releases": {"apps": []}}, "releases:apps must be a dictionary: []"),
        ({"releases": ["shop"]}, "releases must be a dictionary: ['shop']"),
        (
            {"releases": {"run": {"app": "a"}}},
            "releases:run:app: a is no app of this minion: there are ",
        ),
        ({"releases": {"apps": {"a b": {}}}}, "releases:apps:a b must be a name"),
    ):
        answers = shop.given(pillar)
        assert answers["the pillar of releases"]["comment"].startswith(words)


def test_programs_that_would_be_called_the_same(shop: Shop) -> None:
    other = {
        **shop.app,
        "root": str(shop.directory / "other"),
        "programs": {"web": {"command": "bin/b"}},
    }
    shop.more["apps"] = {"shop-blog": other}
    answers = shop.apply(programs={"blog-web": {"command": "bin/a"}})
    assert answers["the pillar of releases"]["comment"] == (
        "releases:apps:shop-blog:programs:web would be called shop-blog-web, as one of shop is: "
        "rename one of them"
    )


def test_no_pillar_at_all_is_nothing_to_do(shop: Shop) -> None:
    for sls in ("releases", "releases.deploy", "releases.clean", "releases.rollback"):
        assert not {one["comment"] for one in shop.given({}, sls).values() if not one["result"]}


# --- what is written ------------------------------------------------------------------------------


def test_the_example_renders_unchanged(minion: Masterless) -> None:
    shown = minion.functions["state.show_sls"]("releases", pillar=sites.example())
    assert isinstance(shown, dict), shown
    assert {"shop is deployed", "shop is migrated", "shop runs", "shop answers"} <= set(shown)
    assert {"name": "/srv/shop/5787e00143"} in shown["shop is deployed"]["virtualenv_relocated"]
    assert "/etc/supervisor/conf.d/shop.conf" in shown


FAMILIES = {
    "Debian": (
        "/etc/supervisor/conf.d/shop.conf",
        "/etc/nginx/conf.d/shop.conf",
        "/etc/apache2/sites-enabled/shop.conf",
        "apache2ctl configtest && systemctl reload-or-restart apache2",
        "python9.9",
    ),
    "RedHat": (
        "/etc/supervisord.d/shop.ini",
        "/etc/nginx/conf.d/shop.conf",
        "/etc/httpd/conf.d/shop.conf",
        "apachectl configtest && systemctl reload-or-restart httpd",
        "python9.9",
    ),
    "Suse": (
        "/etc/supervisord.d/shop.conf",
        "/etc/nginx/vhosts.d/shop.conf",
        "/etc/apache2/vhosts.d/shop.conf",
        "apachectl configtest && systemctl reload-or-restart apache2",
        "python99",
    ),
    "Arch": (
        "/etc/supervisor.d/shop.ini",
        "/etc/nginx/conf.d/shop.conf",
        "/etc/httpd/conf/vhosts/shop.conf",
        "apachectl configtest && systemctl reload-or-restart httpd",
        None,
    ),
}
FAMILIES["Gentoo"] = (*FAMILIES["Debian"][:4], "python9.9")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.few(2)
def test_the_defaults_of_a_family_of_operating_systems(
    minion: Masterless, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grains = minion.functions.opts["grains"]
    monkeypatch.setitem(grains, "os_family", family)
    app = {
        "release": "1",
        "source": "salt://shop/1.tar",
        "python": "9.9",
        "programs": {"web": {"command": "bin/a"}},
        "web": {**WEB, "apache": {"wsgi_module": "a"}},
    }
    pillar = {"releases": {"apps": {"shop": app}}}
    shown = minion.functions["state.show_sls"]("releases", pillar=pillar)
    supervisor, nginx, apache, command, python = FAMILIES[family]
    assert supervisor in shown

    def loaded(server: str) -> dict[str, Any]:
        states = shown[f"shop is loaded by {server}"]["release_programs"]
        return {
            key: one for state in states if isinstance(state, dict) for key, one in state.items()
        }

    assert loaded("nginx")["files"] == [nginx]
    assert loaded("nginx")["command"] == "nginx -t && systemctl reload-or-restart nginx"
    assert loaded("apache")["files"] == [apache]
    assert loaded("apache")["command"] == command
    assert ("shop has a Python" in shown) == (python is not None)
    if python:
        assert {"name": python} in shown["shop has a Python"]["pkg"]


def test_each_process_of_supervisor_has_a_log(shop: Shop) -> None:
    """Two that share one would corrupt it at its rotation."""
    programs = {**shop.app["programs"], "web": {"command": SLEEPS, "socket": "127.0.0.1:1"}}
    shop.done("releases.enable", programs=programs)
    text = (shop.manager.configs / "shop.conf").read_text()
    assert f"stdout_logfile={shop.directory}/shop-web-%(process_num)d.log\n" in text
    assert f"stdout_logfile={shop.directory}/shop-worker.log\n" in text


WEB = {
    "nginx": {
        "listen": [8080, "127.0.0.1:8081"],
        "server_names": ["shop.example.org"],
        "upstream": "http://127.0.0.1:8000",
        "static": {"/static/": "static/", "/media/": "/srv/shop/shared/media/"},
    },
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("shop", ["systemd"], indirect=True)
def test_units_are_right_for_systemd(shop: Shop) -> None:
    odd = "100% of $HOME \"and\" 'more' \\ é"
    web = {"command": f"{SLEEPS} '$HOME 5%'", "socket": "127.0.0.1:1", "reload_signal": "HUP"}
    shop.app["programs"]["web"] = {**web, "env": {"ODD": odd, "EMPTY": ""}}
    shop.done("releases.enable")
    secret = shop.manager.configs / "shop-web.env"
    assert oct(secret.stat().st_mode)[-3:] == "600"
    units = shop.manager.configs.glob("*.service")
    assert not [path for path in units if "ODD" in path.read_text()]
    secret.unlink()
    units = sorted(str(path) for path in shop.manager.configs.iterdir())
    assert [os.path.basename(path) for path in units] == [
        "shop-web.service",
        "shop-web.socket",
        "shop-worker.service",
    ]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    about_ours = [line for line in verified.stderr.splitlines() if "shop" in line]
    assert not about_ours, verified.stderr


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not on this machine")
@pytest.mark.parametrize("upstream", ["http://127.0.0.1:8000", "uwsgi://127.0.0.1:8000"])
def test_the_configuration_is_right_for_nginx(shop: Shop, upstream: str) -> None:
    directory = shop.directory / "nginx"
    (directory / "conf.d").mkdir(parents=True)
    Path(directory, "nginx.conf").write_text(
        f"pid {directory}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; include {directory}/conf.d/*.conf; }}\n"
    )
    params = Path("/etc/nginx/uwsgi_params")
    if params.exists():
        shutil.copy(params, directory)
    loaded = directory / "loaded"
    shop.more["nginx"] = {
        "conf_dir": str(directory / "conf.d"),
        "reload_command": f"nginx -t -c {directory}/nginx.conf && touch {loaded}",
    }
    web = {"nginx": {**WEB["nginx"], "upstream": upstream}}
    answers = shop.apply("releases.enable", web=web)
    assert answers["shop is loaded by nginx"]["result"] is True, answers["shop is loaded by nginx"]
    assert loaded.exists()
    assert shop.done("releases.enable", web=web) == {}
    before = Path(directory, "conf.d", "shop.conf").read_text()
    files = {"ssl_certificate": "/nowhere.pem", "ssl_certificate_key": "/nowhere.key"}
    wrong = {"nginx": {**web["nginx"], **files}}
    refused = shop.apply("releases.enable", web=wrong)["shop is loaded by nginx"]
    assert refused["result"] is False
    assert 'cannot load certificate "/nowhere.pem"' in refused["comment"]
    assert refused["comment"].endswith("has its previous content again.")
    assert Path(directory, "conf.d", "shop.conf").read_text() == before


def test_a_web_server_that_refused_its_files_loads_them_again(shop: Shop) -> None:
    loaded, broken = shop.directory / "loaded", shop.directory / "broken"
    shop.more["nginx"] = {
        "conf_dir": str(shop.directory / "nginx"),
        "reload_command": (
            f"if [ -e {broken} ]; then echo it is broken; exit 1; fi; echo >> {loaded}"
        ),
    }
    broken.touch()
    said = shop.apply("releases.enable", test=True, web=WEB)["shop is loaded by nginx"]
    assert (said["result"], said["comment"][:14]) == (None, "Would be run: ")
    for _ in range(2):
        refused = shop.apply("releases.enable", web=WEB)["shop is loaded by nginx"]
        assert (refused["result"], refused["changes"]) == (False, {})
        assert refused["comment"].endswith(
            f"` failed: it is broken. {shop.directory}/nginx/shop.conf was removed again."
        )
        assert not Path(shop.directory, "nginx", "shop.conf").exists()
    broken.unlink()
    assert set(shop.done("releases.enable", web=WEB)) == {"shop is loaded by nginx"}
    assert shop.done("releases.enable", web=WEB) == {}
    assert "shop is removed from nginx" in shop.done("releases.clean", web=WEB)
    assert len(loaded.read_text()) == 2


def test_a_configuration_that_is_refused_does_not_stay(shop: Shop) -> None:
    file = shop.directory / "nginx" / "shop.conf"
    check = f"! grep -s refused {file} || {{ echo unknown host in line 3; exit 1; }}"
    shop.more["nginx"] = {"conf_dir": str(shop.directory / "nginx"), "reload_command": check}
    shop.done("releases.enable", web=WEB)
    file.chmod(0o640)
    before = file.read_text()
    bad = {"nginx": {**WEB["nginx"], "server_names": ["refused.example.org"]}}
    said = shop.apply("releases.enable", test=True, web=bad)["shop is loaded by nginx"]
    assert said["result"] is None
    assert "refused.example.org" in said["changes"]["diff"]
    assert file.read_text() == before
    for _ in range(2):
        refused = shop.apply("releases.enable", web=bad)["shop is loaded by nginx"]
        assert (refused["result"], refused["changes"]) == (False, {})
        assert refused["comment"].endswith(
            f"unknown host in line 3. {file} has its previous content again."
        )
        assert minions.sentence(refused["comment"])
        assert file.read_text() == before
        assert os.listdir(file.parent) == ["shop.conf"]
    assert oct(file.stat().st_mode)[-3:] == "640"
    shop.done("releases.enable", web=WEB)
    assert shop.done("releases.enable", web=WEB) == {}


@pytest.mark.slow
def test_mod_wsgi_notices_a_switch(shop: Shop) -> None:
    shop.more["apache"] = {"conf_dir": str(shop.directory / "apache"), "reload_command": "true"}
    web = {"apache": {"listen": "127.0.0.1:8001", "wsgi_module": "omega"}}
    shop.app["programs"] = None
    shop.done(web=web)
    script = shop.root / "shop.wsgi"
    compile(script.read_text(), str(script), "exec")
    os.utime(script, (1, 1))
    assert shop.done(web=web, release="3")["shop runs"] == {"touched": [str(script)]}
    assert shop.done(web=web, release="3") == {}
