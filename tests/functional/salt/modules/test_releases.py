"""The execution functions about releases, as Salt's own loader gives them to a minion."""

from __future__ import annotations

import ast
import json
import logging
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions
from tests.support.minions import WHICH, Masterless, sentence

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError

NAMES = ("1", "2", "3")
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
FUNCTIONS = {
    *("activate", "active", "build", "check", "diff", "history", "info", "mark_bad"),
    *("claim", "claimed", "unclaim"),
    *(
        "mark_healthy",
        "migrate",
        "migrate_down",
        "pack",
        "pack_python",
        "pin",
        "prune",
        "put_back",
        "reinitialize",
        "reinitialize_others",
        "releases",
        "remove",
    ),
    *("rollback", "run", "schemas", "unmark_bad", "unpack", "unpin", "update_path"),
}
ALIASES = {"mark": "mark_bad", "unmark": "unmark_bad", "prove": "mark_healthy"}


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion that has synced, with archives in its file root."""
    made = Masterless(tmp_path_factory.mktemp("minion"))
    for name in NAMES:
        minions.pack(made.root / "app" / f"{name}.tar", name)
    return made


@dataclass
class Site:
    """A root of releases on the minion."""

    minion: Masterless
    root: str

    def __call__(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function; what it answers can be carried and read."""
        answer = self.minion.functions[f"virtualenv_tools.{function}"](*arguments, **options)
        assert plain(answer), answer
        return answer

    def path(self, name: str) -> str:
        """What is at a name in the root."""
        return os.path.join(self.root, name)

    def archive(self, name: str) -> str:
        """The archive of a release."""
        return str(self.minion.root / "app" / f"{name}.tar")

    def deploy(self, *names: str) -> None:
        """Deploy and activate releases, each in a year of its own."""
        year = 2001 + len(self("releases", self.root))
        for number, name in enumerate(names):
            with minions.in_year(year + number):
                self("unpack", self.archive(name), self.path(name))
                self("activate", self.path(name))

    def world(self) -> tuple[Any, ...]:
        """All that a test run must not touch."""
        return environments.digest(os.path.dirname(self.root)), self.minion.fetched()

    def said(self, function: str, *arguments: Any, **options: Any) -> Any:
        """What a function answers with `test=True`, and by the minion's option; it does nothing."""
        before = self.world()
        answer = self(function, *arguments, test=True, **options)
        assert self.world() == before
        opts = self.minion.functions.opts
        opts["test"] = True
        try:
            assert self(function, *arguments, **options) == answer
        finally:
            opts["test"] = False
        assert self.world() == before
        return answer

    def refused(self, words: str, function: str, *arguments: Any, **options: Any) -> None:
        """A function fails with these words, in one sentence."""
        with pytest.raises(CommandExecutionError, match=words) as caught:
            self(function, *arguments, **options)
        assert sentence(str(caught.value)), caught.value

    def current(self) -> str:
        """What `current` says."""
        return os.readlink(self.path("current"))


def plain(value: Any) -> bool:
    """Whether a value is made of what every outputter of Salt can show."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(plain(inner) for inner in value)
    if isinstance(value, str):
        return "\n" not in value and "object at 0x" not in value
    return value is None or type(value) in (bool, int, float)


@pytest.fixture
def site(minion: Masterless, tmp_path: Path) -> Site:
    """A root without releases yet."""
    (tmp_path / "srv").mkdir()
    return Site(minion, str(tmp_path / "srv" / "app"))


@pytest.fixture
def two(site: Site) -> Site:
    """A root whose release 2 is active, after 1."""
    site.deploy("1", "2")
    return site


# --- unpack ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["PATH", "salt://app/1.tar", "file://PATH"])
@pytest.mark.few(1)
def test_unpack(site: Site, source: str) -> None:
    source = source.replace("PATH", site.archive("1"))
    release = site.path("1")
    said = site.said("unpack", source, release)
    done = site("unpack", source, release)
    keys = (
        *("path", "changed", "dry_run", "repaired", "python", "old_prefixes", "rewritten"),
        "interpreter",
        *("files", "size", "reused", "problems", "old_python"),
    )
    assert tuple(sorted(said)) == tuple(sorted(done)) == tuple(sorted(keys))
    assert (said["path"], said["changed"], said["dry_run"]) == (release, True, True)
    assert (done["path"], done["changed"], done["dry_run"]) == (release, True, False)
    assert (done["repaired"], done["problems"]) == (False, [])
    assert os.access(done["python"], os.X_OK)
    assert done["files"] > 30
    assert done["size"] > 10_000
    assert done["rewritten"]["script"] >= 1
    assert len(done["old_prefixes"]) == 1
    assert environments.references(release, done["old_prefixes"][0]) == [".release.json"]
    assert environments.run(f"{release}/bin/omega").splitlines()[1] == release
    before = site.world()
    again = site("unpack", source, release)
    assert (again["changed"], again["dry_run"]) == (False, False)
    assert site.said("unpack", source, release)["changed"] is False
    assert site.world() == before
    assert site("releases", site.root)["1"]["source"] == source


def test_unpack_fetches_nothing_where_the_release_is_deployed(site: Site) -> None:
    site.deploy("1")
    before = site.world()
    assert site("unpack", "salt://app/nowhere.tar", site.path("1"))["changed"] is False
    assert site.world() == before


def test_unpack_with_all_options(site: Site) -> None:
    file = site.minion.root / "app" / "SHA256SUMS"
    lines = [environments.run("sha256sum", site.archive(name)) for name in NAMES]
    file.write_text("".join(line.replace(f"{site.minion.root}/app/", "") for line in lines))
    options = {
        "source_hash": "salt://app/SHA256SUMS",
        "smoke": ["omega", f"grep -qx 1 {WHICH}"],
        "limits": {"files": 1000, "size": 10**8, "ratio": 10},
        "mode": "0750",
        "source": "build 4711",
        "wait": 5,
    }
    assert site("unpack", "salt://app/1.tar", site.path("1"), **options)["changed"] is True
    assert site("releases", site.root)["1"]["source"] == "build 4711"
    assert os.stat(site.path("1")).st_mode & 0o7777 == 0o750
    python = os.path.realpath(f"{site.path('1')}/bin/python")
    done = site("unpack", "salt://app/2.tar", site.path("2"), python=python, source_hash=None)
    assert done["python"] == python


def test_unpack_repairs_a_release_without_its_python(site: Site) -> None:
    site.deploy("1")
    python = site.path("1/bin/python")
    os.unlink(python)
    os.symlink("/opt/gone/bin/python3", python)
    assert site.said("unpack", site.archive("1"), site.path("1"))["repaired"] is True
    done = site("unpack", site.archive("1"), site.path("1"))
    assert (done["changed"], done["repaired"]) == (True, True)
    assert os.access(done["python"], os.X_OK)
    assert environments.run(site.path("1/bin/omega"))
    again = site("unpack", site.archive("1"), site.path("1"))
    assert (again["changed"], again["repaired"]) == (False, False)


@pytest.mark.parametrize(
    ("archive", "options", "words"),
    [
        ("PATH", {"source_hash": "sha256=" + "0" * 64}, "hash|sha256"),
        ("PATH", {"source_hash": "0" * 32}, "hash|md5"),
        ("PATH", {"source_hash": "nonsense"}, "format is invalid"),
        ("PATH", {"source_hash": "/nowhere/SHA256SUMS"}, "SHA256SUMS"),
        ("PATH", {"python": "/nowhere/python"}, "/nowhere/python"),
        ("PATH", {"python": 9.99}, "9.99"),
        ("PATH", {"smoke": "exit 3"}, "`exit 3` failed .exit code 3"),
        ("PATH", {"smoke": {"a": 1}}, "smoke must be a command or a list of commands"),
        ("PATH", {"limits": {"size": 10}}, "10"),
        ("PATH", {"limits": {"bytes": 10}}, "there is no limit 'bytes'"),
        ("PATH", {"limits": "many"}, "limit"),
        ("PATH", {"mode": "rwx"}, "mode of a release must be octal digits"),
        ("PATH", {"user": "no-such-user"}, "there is no user no-such-user on this machine"),
        ("PATH", {"group": "no-such-group"}, "there is no group no-such-group"),
        ("PATH", {"smoke_user": "no-such-user"}, "there is no user no-such-user on this machine"),
        ("PATH", {"smoke_user": 54321}, "there is no user 54321 on this machine, and so no group"),
        ("PATH", {"smoke_user": ["app"]}, r"a user or group must be a name or a number: \['app'\]"),
        ("PATH", {"wait": "long"}, "wait"),
        ("/nowhere/1.tar", {}, "/nowhere/1.tar"),
        ("salt://app/nowhere.tar", {}, "cannot fetch salt://app/nowhere.tar"),
        ("app/1.tar", {}, "app/1.tar"),
        (5, {}, "5"),
        (None, {}, "None"),
    ],
    ids=str,
)
def test_unpack_refuses(site: Site, archive: Any, options: dict[str, Any], words: str) -> None:
    if isinstance(archive, str):
        archive = archive.replace("PATH", site.archive("1"))
    site.refused(words, "unpack", archive, site.path("1"), **options)
    assert not os.path.exists(site.path("1"))
    staging = site.path(".releases/staging")
    assert not os.path.exists(staging) or os.listdir(staging) == []


# --- activate, active, rollback -------------------------------------------------------------------


def test_activate(two: Site) -> None:
    assert two("active", two.path("current")) == {
        "release": "2",
        "path": two.path("2"),
        "bad": None,
        "proven": False,
        "old_python": None,
    }
    expected = {"link": two.path("current"), "release": "1", "previous": "2", "changed": True}
    assert two.said("activate", two.path("1")) == {**expected, "dry_run": True}
    assert two("activate", two.path("1")) == {**expected, "dry_run": False}
    assert two.current() == "1"
    before = two.world()
    again = two("activate", two.path("1"))
    assert (again["changed"], again["previous"]) == (False, "1")
    assert two.world() == before


def test_activate_another_link(two: Site) -> None:
    for link, name in (("next", "1"), (two.path("last"), "2")):
        done = two("activate", two.path(name), link=link)
        assert done["link"] == two.path(os.path.basename(link))
        assert os.readlink(done["link"]) == name
    assert two("active", two.path("next"))["release"] == "1"
    assert two.current() == "2"


def test_active_without_a_release(site: Site) -> None:
    nothing = {"release": None, "path": None, "bad": None, "proven": False, "old_python": None}
    assert site("active", site.path("current")) == nothing
    assert not os.path.exists(site.root)
    site.deploy("1")
    assert site("active", site.path("next")) == nothing


def test_rollback(two: Site) -> None:
    expected = {
        "link": two.path("current"),
        "release": "1",
        "previous": "2",
        "changed": True,
        "bad": "prices are wrong",
    }
    said = two.said("rollback", two.root, reason="prices are wrong")
    assert said == {**expected, "dry_run": True}
    done = two("rollback", two.root, reason="prices are wrong")
    assert done == {**expected, "dry_run": False}
    assert two.current() == "1"
    assert two("releases", two.root)["2"]["bad"] == "prices are wrong"
    two.refused("is marked bad .prices are wrong.*unmark", "activate", two.path("2"))
    two.refused("there is no good release before 1", "rollback", two.root)
    assert two("unmark_bad", two.path("2")) == f"{two.path('2')} is not marked bad any more."
    assert two("activate", two.path("2"))["changed"] is True


def test_rollback_with_options(two: Site) -> None:
    two("unpack", two.archive("3"), two.path("3"))
    done = two("rollback", two.root, to="3", mark=False)
    assert (done["release"], done["previous"], done["bad"]) == ("3", "2", None)
    assert "bad" not in two("releases", two.root)["2"]
    assert two("rollback", two.root, to=1, mark=False)["release"] == "1"
    left = two("rollback", two.root, leaving="3")
    assert (left["changed"], left["release"]) == (False, "1")
    assert two("rollback", two.root, to="1")["changed"] is False
    two("activate", two.path("2"), link="next")
    two("activate", two.path("3"), link="next")
    done = two("rollback", two.root, link="next", reason="")
    assert (done["link"], done["release"]) == (two.path("next"), "2")
    assert two.current() == "1"


# --- run ------------------------------------------------------------------------------------------


def test_run(two: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the release behind a link, and with nothing of the minion's around."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    done = two("run", two.path("current"), "pwd; echo $SECRET_TOKEN >&2; cat etc/which; omega")
    assert done["code"] == 0
    assert done["output"][:3] == [two.path("2"), "", "2"]
    assert done["output"][4] == two.path("2")
    failed = two("run", two.path("1"), "echo first; echo second >&2; exit 3")
    assert failed == {"code": 3, "output": ["first", "second"]}
    assert two("run", two.path("1"), "sleep 60", timeout=0.2)["code"] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_run_as_another_user(two: Site) -> None:
    done = two("run", two.path("1"), "id -un; echo $HOME", user="nobody")
    entry = pwd.getpwnam("nobody")
    assert done == {"code": 0, "output": [entry.pw_name, entry.pw_dir]}


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (5, {}, "the command must be a text: 5"),
        ("true", {"user": "no-such-user"}, "there is no user no-such-user on this machine"),
        ("true", {"timeout": "long"}, "timeout must be a number of seconds: 'long'"),
    ],
    ids=str,
)
def test_run_refuses(two: Site, command: Any, options: dict[str, Any], words: str) -> None:
    two.refused(words, "run", two.path("1"), command, **options)
    two.refused("/nowhere/1 is not a virtualenv", "run", "/nowhere/1", "true")


# --- marks ----------------------------------------------------------------------------------------


def test_marks(two: Site) -> None:
    one = two.path("1")
    for function, arguments, words in (
        ("mark_bad", ("leaks",), f"{one} is marked bad."),
        ("mark_bad", ("leaks",), f"{one} is marked bad already."),
        ("unmark_bad", (), f"{one} is not marked bad any more."),
        ("unmark_bad", (), f"{one} was not marked bad."),
        ("pin", (), f"{one} is pinned."),
        ("pin", (), f"{one} is pinned already."),
        ("unpin", (), f"{one} is not pinned any more."),
        ("unpin", (), f"{one} was not pinned."),
    ):
        assert two(function, one, *arguments) == words
        facts = two("releases", two.root)["1"]
        assert facts.get("bad") == ("leaks" if function == "mark_bad" else None)
        assert facts.get("pinned", False) is (function == "pin")


def test_mark_healthy(two: Site) -> None:
    link = two.path("current")
    assert two("active", link)["proven"] is False
    assert two("mark_healthy", two.path("2")) is True
    assert two("active", link)["proven"] is True
    assert two("mark_healthy", two.path("2"), link=link) is False
    assert two("mark_healthy", two.path("1")) is False
    two("activate", two.path("1"))
    assert two("active", link)["proven"] is False


def test_a_python_that_is_gone_is_none_to_put_a_release_back_onto(
    two: Site, tmp_path: Path
) -> None:
    """It may be the release that is not healthy, so it is rolled back as any other."""
    link, real = two.path("current"), os.path.realpath(two.path("2/bin/python"))
    pythons = [tmp_path / name / os.path.basename(real) for name in ("one", "other")]
    for python in pythons:
        python.parent.mkdir()
        python.symlink_to(real)
        two("reinitialize", two.path("2"), python=str(python))
        two("mark_healthy", two.path("2"))
    two("reinitialize", two.path("2"), python=str(pythons[0]))
    assert two("active", link)["old_python"] == str(pythons[1])
    pythons[1].unlink()
    known = two("active", link)
    assert (known["old_python"], known["proven"]) == (str(pythons[1]), False)
    for name in ("1", "2"):
        two("activate", two.path(name))
    known = two("active", link)
    assert (known["old_python"], known["proven"]) == (None, False)


# --- releases and history -------------------------------------------------------------------------


def test_releases(two: Site) -> None:
    found = two("releases", two.root)
    assert set(found) == {"1", "2"}
    for name, facts in found.items():
        assert set(facts) - {"active", "job"} == {
            *("published", "source", "python", "python_version", "files", "size"),
        }
        assert not facts.get("job")
        assert UTC.match(facts["published"])
        assert re.fullmatch(r"\d+\.\d+\.\d+", facts["python_version"])
        assert facts["source"] == two.archive(name)
        assert (type(facts["files"]), type(facts["size"])) == (int, int)
    assert found["2"]["active"] == ["current"]
    assert "active" not in found["1"]


@pytest.mark.parametrize("there", [False, True], ids=["no root", "empty"])
def test_no_releases(site: Site, there: bool) -> None:
    if there:
        os.makedirs(site.path("stray"))
    before = site.world()
    assert site("releases", site.root) == {}
    assert site("history", site.root) == []
    assert site("history", site.root, full=True) == []
    assert site("prune", site.root)["removed"] == []
    assert site.world() == before


def intended(event: dict[str, Any]) -> bool:
    """Whether an event reports what was about to be done; another one reports that it was."""
    return event["event"] in ("activating", "rolling_back")


def test_history(two: Site) -> None:
    two("rollback", two.root, reason="prices are wrong")
    two("pin", two.path("1"))
    full = two("history", two.root, limit=0, full=True)
    assert all({"time", "event", "release"} <= set(event) for event in full)
    assert all(UTC.match(event["time"]) for event in full)
    done = [event for event in full if not intended(event)]
    assert [(event["event"], event["release"]) for event in done] == [
        *(("published", "1"), ("activated", "1"), ("published", "2"), ("activated", "2")),
        *(("rolled_back", "1"), ("pinned", "1")),
    ]
    assert done[3] == {**done[3], "previous": "1", "link": "current"}
    assert done[4] == {**done[4], "previous": "2", "reason": "prices are wrong"}
    lines = two("history", two.root)
    assert lines[0].split(" ")[0] == full[0]["time"]
    assert all(UTC.match(line.split(" ")[0]) for line in lines)
    assert [line.partition(" ")[2] for line in lines] == [
        f"published 1 (source {two.archive('1')})",
        "activated 1 (by current)",
        f"published 2 (source {two.archive('2')})",
        "activated 2 (from 1, by current)",
        "rolled back 1 (from 2, by current, reason prices are wrong)",
        "pinned 1",
    ]
    assert two("history", two.root, limit=2) == lines[-2:]
    assert two("history", two.root, limit=2, full=True) == full[-2:]
    assert two("history", two.root, limit=0) == lines
    assert len(two("history", two.root, limit=100)) == len(lines)


def test_history_is_limited_to_twenty(site: Site) -> None:
    site.deploy("1")
    for _ in range(15):
        site("pin", site.path("1"))
        site("unpin", site.path("1"))
    assert len(site("history", site.root)) == 20
    assert len(site("history", site.root, limit=0)) == 32


# --- prune and remove -----------------------------------------------------------------------------


def running(release: str) -> subprocess.Popen[bytes]:
    """A process of a release."""
    command = [f"{release}/bin/python", "-c", "print(1, flush=True); import time; time.sleep(60)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_prune(two: Site) -> None:
    two.deploy("3")
    expected = {
        "root": two.root,
        "removed": ["1"],
        "kept": {"2": "the previous release", "3": "active, by current"},
    }
    assert two.said("prune", two.root, keep=1) == {**expected, "dry_run": True}
    assert two("prune", two.root, keep=1) == {**expected, "dry_run": False}
    again = two("prune", two.root, keep=1)
    assert (again["removed"], set(again["kept"])) == ([], {"2", "3"})
    assert not os.path.exists(two.path("1"))
    assert "pruned 1" in two("history", two.root)[-1]


def test_what_prune_spares(two: Site) -> None:
    two.deploy("3")
    two("pin", two.path("1"))
    assert two("prune", two.root, keep=1)["kept"]["1"] == "pinned"
    two("unpin", two.path("1"))
    process = running(two.path("1"))
    try:
        kept = two("prune", two.root, keep=1)["kept"]
        assert kept["1"] == f"used by process {process.pid}"
        two.refused(f"is used by process {process.pid}", "remove", two.path("1"))
    finally:
        process.kill()
        process.communicate()


def test_a_prune_that_fails(two: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    two.deploy("3")
    rename = os.rename

    def failing(source: Any, *arguments: Any, **options: Any) -> None:
        if source == "1":
            raise PermissionError(1, "Operation not permitted")
        rename(source, *arguments, **options)

    monkeypatch.setattr(os, "rename", failing)
    done = two("prune", two.root, keep=1)
    assert (done["removed"], done["failed"]) == ([], {"1": "operation not permitted"})
    assert os.path.isdir(two.path("1"))


def test_remove(two: Site) -> None:
    assert two.said("remove", two.path("1")) is True
    assert two("remove", two.path("1")) is True
    assert two.said("remove", two.path("1")) is False
    assert two("remove", two.path("1")) is False
    assert set(two("releases", two.root)) == {"2"}
    two.refused("is active, by .*current: activate another one first", "remove", two.path("2"))
    with pytest.raises(CommandExecutionError, match="is active"):
        two("remove", two.path("2"), test=True)


def test_a_claim(two: Site) -> None:
    assert two("claimed", two.root) == {}
    assert two("claim", two.root, "a", "roll-out of 3") == {"claimed": True}
    known = two("claimed", two.root)
    assert UTC.match(known.pop("since"))
    assert known == {"holder": "a", "doing": "roll-out of 3", "living": True}
    refused = two("claim", two.root, "b", "roll-out of 1")
    assert (refused["claimed"], refused["holder"], refused["doing"]) == (
        *(False, "a"),
        "roll-out of 3",
    )
    two("activate", two.path("1"))  # no function looks at it
    assert two("unclaim", two.root, "b") is False
    assert two("unclaim", two.root) is True
    assert two("claimed", two.root) == {}


def test_a_release_compared_with_a_bundle_of_the_master(two: Site) -> None:
    """It does not stay in the cache of the minion, unless it was there before."""
    url = "salt://app/bundle.tar.gz"
    two("pack", two.path("2"), str(two.minion.root / "app" / "bundle.tar.gz"))
    before = two.world()
    assert two("diff", two.path("1"), url)["summary"] == "the same packages"
    assert two.world() == before
    cached = two.minion.functions["cp.cache_file"](url)
    two("diff", two.path("1"), url)
    assert os.path.isfile(cached)
    two.refused("cannot fetch salt://app/none", "diff", two.path("1"), "salt://app/none.tar.gz")


# --- wrong arguments ------------------------------------------------------------------------------

RELATIVE = {
    "pack": ("srv/app/1", "/archive.tar"),
    "pack_python": ("opt/python", "/archive.tar"),
    "unpack": ("/archive.tar", "srv/app/1"),
    "activate": ("srv/app/1",),
    "active": ("srv/app/current",),
    "rollback": ("srv/app",),
    "migrate": ("srv/app/1",),
    "migrate_down": ("srv/app", "1"),
    "diff": ("srv/app/1", "/srv/app/2"),
    "schemas": ("srv/app",),
    "claim": ("srv/app", "a master", "a roll-out"),
    "claimed": ("srv/app",),
    "unclaim": ("srv/app",),
    "releases": ("srv/app",),
    "history": ("srv/app",),
    "prune": ("srv/app",),
    "reinitialize_others": ("srv/app", "/usr/bin/python3"),
    "remove": ("srv/app/1",),
    "mark_bad": ("srv/app/1", "why"),
    "run": ("srv/app/1", "true"),
    "unmark_bad": ("srv/app/1",),
    "pin": ("srv/app/1",),
    "unpin": ("srv/app/1",),
    "mark_healthy": ("srv/app/1",),
    "check": ("srv/app/1",),
    "info": ("srv/app/1",),
    "update_path": ("srv/app/1",),
    "put_back": ("srv/app/1", "why"),
    "reinitialize": ("srv/app/1",),
}


def test_every_function_is_tried_with_a_relative_path() -> None:
    # What names a place to build at is in test_build_functions.
    assert set(RELATIVE) == FUNCTIONS - {"build"}


@pytest.mark.slow
def test_the_names_that_some_had_before(two: Site) -> None:
    for old, new in ALIASES.items():
        documented = two.minion.functions["sys.doc"](f"virtualenv_tools.{old}")
        assert f"virtualenv_tools.{new} /srv" in documented[f"virtualenv_tools.{old}"]
    assert two("mark", two.path("1"), "leaks") == f"{two.path('1')} is marked bad."
    assert two("unmark", two.path("1")) == f"{two.path('1')} is not marked bad any more."
    assert two("prove", two.path("2")) is True


@pytest.mark.parametrize("function", RELATIVE)
def test_a_bad_path(site: Site, function: str) -> None:
    before = site.world()
    arguments = list(RELATIVE[function])
    place = 1 if function == "unpack" else 0
    for bad in (arguments[place], 42, ["/srv/app"], None, ""):
        arguments[place] = bad
        site.refused("must be (an )?absolute", function, *arguments)
    arguments[place] = "/srv/a\nb/c"
    with pytest.raises(CommandExecutionError, match=r"line break|is not a virtualenv"):
        site(function, *arguments)
    assert site.world() == before


@pytest.mark.parametrize(
    ("function", "arguments", "options", "words"),
    [
        ("activate", ("ROOT/9",), {}, "there is no release ROOT/9: deploy it first"),
        ("activate", ("ROOT/stray",), {}, "ROOT/stray is no release"),
        ("activate", ("ROOT/current",), {}, "no release can be called current"),
        ("activate", ("ROOT/1",), {"link": "1"}, "ROOT/1 is a directory and no symlink"),
        ("activate", ("ROOT/1",), {"link": "/srv/current"}, "must be beside its releases"),
        ("activate", ("ROOT/1",), {"link": ".releases"}, "no symlink can be called"),
        ("activate", ("ROOT/1",), {"link": ""}, "no symlink can be called"),
        ("activate", ("ROOT/1",), {"link": 5}, "link"),
        ("rollback", ("ROOT",), {"to": "9"}, "there is no release ROOT/9"),
        ("rollback", ("ROOT",), {"to": "../app/1"}, "release"),
        ("rollback", ("ROOT",), {"link": "next"}, "nothing to roll back"),
        ("rollback", ("ROOT",), {"to": "current"}, "release"),
        ("rollback", ("ROOT",), {"to": "../other/1"}, "release"),
        ("rollback", ("ROOT/nowhere",), {}, "nothing to roll back|no releases"),
        ("rollback", ("/nowhere",), {}, "nothing to roll back|no releases"),
        ("mark_bad", ("ROOT/9", "why"), {}, "there is no release ROOT/9"),
        ("pin", ("ROOT/9",), {}, "there is no release ROOT/9"),
        ("prune", ("ROOT",), {"keep": 0}, "keep must be a whole number of at least 1: 0"),
        ("prune", ("ROOT",), {"keep": "many"}, "keep must be a whole number of at least 1: 'many'"),
        ("prune", ("ROOT",), {"keep": None}, "keep must be a whole number of at least 1"),
        ("remove", ("ROOT/stray",), {}, "ROOT/stray is no release"),
        ("remove", ("ROOT/current",), {}, "no release can be called current"),
        ("remove", ("ROOT/2",), {}, "is active"),
        ("history", ("ROOT",), {"limit": "all"}, "limit"),
        ("history", ("ROOT",), {"limit": None}, "limit"),
        ("history", ("ROOT",), {"limit": -1}, "limit"),
        ("unpack", ("/archive.tar", "/1"), {}, "must be in a directory of releases"),
        ("unpack", ("/archive.tar", "ROOT/stray"), {}, "is no release that was deployed"),
        ("unpack", ("/archive.tar", "ROOT/.hidden"), {}, "no release can be called .hidden"),
    ],
    ids=str,
)
@pytest.mark.few(4)
def test_wrong_arguments(
    two: Site, function: str, arguments: tuple[str, ...], options: dict[str, Any], words: str
) -> None:
    os.mkdir(two.path("stray"))
    if "../other/1" in options.values():
        two("unpack", two.archive("1"), os.path.join(os.path.dirname(two.root), "other", "1"))
    before = two.world()
    given = [value.replace("ROOT", two.root) for value in arguments]
    two.refused(words.replace("ROOT", re.escape(two.root)), function, *given, **options)
    assert (two.current(), set(two("releases", two.root))) == ("2", {"1", "2"})
    touched = set(environments.differences(before[0], two.world()[0]))
    assert touched <= {"app", "app/.releases", "app/.releases/lock", "app/.releases/staging"}


# --- salt-call, logs, documents -------------------------------------------------------------------


@pytest.fixture(scope="module")
def salt_call(minion: Masterless, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command `salt-call` for that minion."""
    directory = tmp_path_factory.mktemp("etc")
    options = {key: minion.opts[key] for key in minions.masterless(directory, directory)}
    (directory / "minion").write_text(json.dumps(options))
    command = [Path(sys.executable).with_name("salt-call"), "--local", "-c", directory]

    def call(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True)

    return call


@pytest.mark.slow
def test_what_an_operator_sees(two: Site, salt_call: Any) -> None:
    """The job's id, readable output and the exit codes, by the command."""
    done = salt_call("--retcode-passthrough", "virtualenv_tools.rollback", two.root, "reason=slow")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search(r"Traceback|object at|\{'", said), said
    assert re.search(r"release:\n +1\n", done.stdout), said
    event = two("history", two.root, full=True)[-1]
    assert re.fullmatch(r"\d{20}", event["job"])
    assert two("history", two.root)[-1].endswith(
        f"rolled back 1 (from 2, by current, reason slow, job {event['job']})"
    )
    done = salt_call("--retcode-passthrough", "virtualenv_tools.prune", two.root, "keep=none")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "keep must be a whole number of at least 1: 'none'" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_return_code_of_a_prune(two: Site, salt_call: Any) -> None:
    """One release that cannot be removed, as its file cannot: the others are, and the code is 1."""
    if shutil.which("chattr") is None or os.geteuid() != 0:
        pytest.skip("needs root and chattr")
    two.deploy("3")
    if subprocess.run(["chattr", "+i", two.path("1")], capture_output=True).returncode:
        pytest.skip("no immutable files on this file system")
    try:
        done = salt_call("--retcode-passthrough", "virtualenv_tools.prune", two.root, "keep=1")
        assert done.returncode == 1, done
        assert "failed:" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
    finally:
        subprocess.run(["chattr", "-i", two.path("1")])
    assert set(two("releases", two.root)) == {"1", "2", "3"}


@pytest.fixture
def job(minion: Masterless) -> Iterator[str]:
    """A job that this process works on, as a minion notes it."""
    import salt.payload

    directory = Path(minion.opts["cachedir"], "proc")
    directory.mkdir(exist_ok=True)
    number = "20240102030405060708"
    (directory / "20230102030405060708").write_bytes(b"torn")
    facts = {"jid": number, "pid": os.getpid(), "fun": "test.ping"}
    (directory / number).write_bytes(salt.payload.dumps(facts))
    yield number
    shutil.rmtree(directory)


def test_the_log_has_each_step_with_the_job(
    site: Site, job: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def told(function: str, *arguments: Any, **options: Any) -> list[str]:
        caplog.clear()
        site(function, *arguments, **options)
        lines = [
            record.getMessage()
            for record in caplog.records
            if "virtualenv_tools" in record.name and record.levelno == logging.INFO
        ]
        assert all(line.endswith(f", job {job}") for line in lines), lines
        assert not any("\n" in line for line in lines)
        place = arguments[1] if function == "unpack" else arguments[0]
        assert all(line.startswith(f"{place}: ") for line in lines), lines
        return [line.removeprefix(f"{place}: ").partition(" (")[0] for line in lines]

    one, two = site.path("1"), site.path("2")
    assert site("history", site.root) == []
    assert told("unpack", site.archive("1"), one, smoke=["omega"]) == [
        *("unpacked", "relocated", "reinitialized", "checked", "tried", "published"),
    ]
    assert told("unpack", site.archive("1"), one) == []
    assert told("activate", one) == ["activated"]
    told("unpack", site.archive("2"), two)
    told("activate", two)
    assert told("rollback", site.root, mark=False) == ["rolled back"]
    assert told("remove", two) == ["removed"]
    site.deploy("2")
    with minions.in_year(2100):
        told("unpack", site.archive("3"), site.path("3"))
        told("activate", site.path("3"))
    assert told("prune", site.root, keep=1) == ["pruned"]
    events = site("history", site.root, limit=0, full=True)
    assert {event["job"] for event in events} == {job}
    assert all(facts["job"] == job for facts in site("releases", site.root).values())


def test_no_job_is_no_job(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.deploy("1")
    assert "job" not in site("history", site.root, full=True)[-1]
    assert any("job unknown" in record.getMessage() for record in caplog.records)


def test_every_function_has_an_example(minion: Masterless) -> None:
    documented = minion.functions["sys.doc"]("virtualenv_tools")
    assert {name.partition(".")[2] for name in documented} == FUNCTIONS | set(ALIASES)
    source = (minion.root / "_modules" / "virtualenv_tools.py").read_text()
    public = {
        node.name: node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
    }
    assert set(public) == FUNCTIONS
    for name, function in public.items():
        text = ast.get_docstring(function) or ""
        assert re.search(r"CLI Example:\n\n\.\. code-block:: bash\n\n    salt ", text), name
        assert f"virtualenv_tools.{name} " in text, name
        assert "Returns " in text, name
        for argument in function.args.args:
            assert re.search(rf"(?m)^(.*, )?{argument.arg}(,|$)", text), (name, argument.arg)
