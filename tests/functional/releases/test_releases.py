"""What the functions on releases do, refuse and leave alone."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relocate_core import (
    Root,
    activate,
    mark_bad,
    mark_healthy,
    pin,
    prune,
    publish,
    remove,
    rollback,
    unmark_bad,
    unpin,
)
from relocate_core.errors import (
    BadArchive,
    CannotRun,
    InterpreterNotFound,
    InvalidPath,
    MarkedBad,
    NotARelease,
    ReleaseInUse,
    RelocateError,
    UnsafeDirectory,
)
from relocate_core.releases import history, smoke
from relocate_core.releases.root import CURRENT, RECORD, RECORDS
from relocate_core.system import locks
from relocate_core.system.processes import using
from relocate_core.system.staging import STAGING
from tests.support import roots
from tests.support.environments import digest
from tests.support.roots import (
    NOBODY,
    Site,
    by_hand,
    everything,
    left_behind,
    needs_root,
    packed,
    refused,
    shape,
)
from tests.support.steps import ROOT

SCRIPT = "#!{prefix}/bin/python\nimport os, sys\n"
SCRIPTS = {
    "bin/fine": f"{SCRIPT}print(sys.prefix, sys.argv[1:])\n",
    "bin/broken": f"{SCRIPT}print('first')\nprint('no database  ')\nsys.exit(3)\n",
    "bin/environment": f"{SCRIPT}print(sorted(os.environ))\n"
    "sys.exit(bool({name for name in os.environ if name.startswith(('SECRET', 'PYTHONPATH'))}))\n",
    "bin/imports": f"{SCRIPT}import zipfile\n",
    "bin/whoami": f"{SCRIPT}print(os.getuid(), os.getgid(), os.getgroups())\n"
    f"sys.exit((os.getuid(), os.getgid()) != ({NOBODY}, {NOBODY}))\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Five releases to be deployed, and what comes of each."""
    return Site.make(tmp_path_factory.mktemp("site"), "ABCDE")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive with scripts to be tried."""
    return packed(tmp_path_factory.mktemp("scripted"), "S", extra=SCRIPTS)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same for an interpreter that every user may run."""
    directory = tmp_path_factory.mktemp("public")
    return packed(directory, "S", extra=SCRIPTS, python=roots.python_for_all())


@pytest.fixture
def site(built: Site) -> Site:
    """The same with an empty root."""
    built.clear()
    return built


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    roots.fast_clock(monkeypatch.setattr)
    roots.without_waiting(monkeypatch.setattr)


def kept(root: str) -> list[str]:
    """The names of the releases that are left."""
    return Root(root).names()


# --- publishing ----------------------------------------------------------------------------------


def test_a_release_is_what_was_asked_for(site: Site) -> None:
    """Complete, relocated, recorded; the second time nothing is touched."""
    told: list[str] = []
    done = site.publish(
        "A", job="job-7", source="salt://A.tar", notify=lambda step, _: told.append(step)
    )
    assert done.changed
    assert done.path == site.path("A")
    assert told == ["unpacked", "relocated", "reinitialized", "checked", "published"]
    record = Root(site.root).record("A")
    assert record is not None
    assert (record["job"], record["source"]) == ("job-7", "salt://A.tar")
    assert record["files"] == done.files > 100
    assert site.faults() == []
    assert left_behind(site.root) == []
    assert Path(site.root, RECORDS, "lock").read_text() == ""
    assert [release.name for release in Root(site.root).releases()] == ["A"]
    before = everything(site.root)
    assert not site.publish("A").changed
    assert everything(site.root) == before
    assert os.listdir(site.root).count(CURRENT) == 0


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o700])
def test_the_mode_of_a_release(mode: int, site: Site) -> None:
    site.publish("A", mode=mode)
    assert stat.S_IMODE(os.stat(site.path("A")).st_mode) == mode


def test_the_umask_does_not_matter(site: Site) -> None:
    """What is deployed with umask 077 is what is deployed with any other one, records included."""
    old = os.umask(0o077)
    try:
        site.deploy("A")
    finally:
        os.umask(old)
    assert site.faults() == []
    modes = {path: facts.mode for path, facts in everything(site.root).items()}
    assert modes["."] == 0o755
    assert modes[RECORDS] == 0o755
    assert modes[f"{RECORDS}/{history.NAME}"] == 0o644


@needs_root
def test_the_owner_of_a_release(site: Site) -> None:
    """All that is in it, and nothing around it."""
    site.publish("A", owner=(NOBODY, NOBODY))
    owners = {path: facts.owner for path, facts in everything(site.root).items()}
    for path, owner in owners.items():
        inside = path == "A" or path.startswith("A/")
        if path != f"A/{RECORD}":
            assert owner == ((NOBODY, NOBODY) if inside else (0, 0)), path


def test_a_root_with_the_setgid_bit(site: Site) -> None:
    """It is not handed down into releases."""
    os.makedirs(site.root)
    group = next((g for g in os.getgroups() if g != os.getegid()), None)
    if os.geteuid() == 0:
        group = NOBODY
    if group is not None:
        os.chown(site.root, -1, group)
    os.chmod(site.root, 0o2755)
    site.publish("A")
    for path, facts in digest(site.path("A")).items():
        assert not facts.mode & 0o6000, path
        assert facts.owner == (os.geteuid(), os.getegid()), path
    assert site.faults() == []
    assert activate(site.path("A")).changed


@pytest.mark.parametrize("what", ["directory", "file", "link"])
def test_what_is_in_a_release_s_place_is_left_alone(what: str, site: Site) -> None:
    site.publish("B")
    if what == "directory":
        shutil.copytree(site.path("B"), site.path("A"), symlinks=True)
        os.unlink(site.path(f"A/{RECORD}"))
    elif what == "file":
        Path(site.path("A")).write_text("mine\n")
    else:
        os.symlink("B", site.path("A"))
    refused(lambda: site.publish("A"), NotARelease, "is no release that was deployed", site)


def test_another_archive_for_a_release_that_exists(site: Site) -> None:
    """Refused; the same one is fine, whatever the digest's case and name."""
    import hashlib

    digests = {
        name: hashlib.sha256(Path(site.archives[name]).read_bytes()).hexdigest() for name in "AB"
    }
    site.publish("A", digests={"sha256": digests["A"]})
    assert not site.publish("A", digests={"SHA256": digests["A"].upper()}).changed
    refused(
        lambda: site.publish("A", digests={"sha256": digests["B"]}),
        InvalidPath,
        "is deployed, and from another archive .*deploy this one under another name",
        site,
    )


def test_an_archive_of_another_hash(site: Site) -> None:
    site.publish("B")
    refused(lambda: site.publish("A", digests={"sha256": "0" * 64}), BadArchive, "sha256", site)
    assert kept(site.root) == ["B"]
    assert left_behind(site.root) == []


def test_a_dry_run_changes_nothing(site: Site) -> None:
    """Neither where there is no root yet, nor where there is one."""
    assert site.publish("A", dry_run=True).changed
    assert not os.path.lexists(site.root)
    site.deploy("A", "B")
    site.publish("C")
    before = everything(site.root)
    assert site.publish("D", dry_run=True).changed
    assert not site.publish("A", dry_run=True).changed
    assert activate(site.path("C"), dry_run=True).changed
    assert not activate(site.path("B"), dry_run=True).changed
    back = rollback(site.root, dry_run=True, reason="slow")
    assert (back.release, back.previous, back.changed, back.bad) == ("A", "B", True, "slow")
    assert prune(site.root, 1, dry_run=True).removed == []
    assert remove(site.path("C"), dry_run=True)
    assert everything(site.root) == before


@pytest.mark.parametrize(
    ("python", "error", "text"),
    [
        ("/nonexistent/python", InterpreterNotFound, "does not run"),
        ("no-such-python", InterpreterNotFound, "there is no no-such-python"),
        ("/bin/true", InterpreterNotFound, "is no Python"),
        ("python3 -E", RelocateError, "python"),
    ],
)
def test_a_python_that_is_none(
    python: str, error: type[RelocateError], text: str, site: Site
) -> None:
    site.publish("B")
    refused(lambda: site.publish("A", python=python), error, text, site)
    assert left_behind(site.root) == []


@pytest.mark.parametrize(
    "path", ["relative/A", "/A", "/srv/.releases", "/srv/current", "/srv/.hidden", "/srv/a\nb"]
)
def test_no_release_can_be_there(path: str, site: Site) -> None:
    with pytest.raises(InvalidPath) as caught:
        publish(site.archives["A"], path)
    assert roots.one_sentence(caught.value)


def test_a_release_whose_python_is_gone(site: Site) -> None:
    """As after an upgrade of the host: the same deploy puts it onto another one, once."""
    site.deploy("A", "B")
    roots.lose_python(site.path("B"))
    before = everything(site.root)
    foretold = site.publish("B", dry_run=True)
    assert (foretold.changed, foretold.repaired, foretold.dry_run) == (True, True, True)
    assert everything(site.root) == before
    done = site.publish("B")
    assert (done.changed, done.repaired) == (True, True)
    assert site.faults() == []
    assert not site.publish("B").changed


def test_a_copy_by_hand_is_no_release(site: Site) -> None:
    """Its files name another directory, which may be removed any time."""
    site.deploy("A", "B")
    shutil.copytree(site.path("A"), site.path("X"), symlinks=True)
    assert kept(site.root) == ["A", "B"]
    refused(lambda: activate(site.path("X")), NotARelease, "is no release", site)


# --- smoke tests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "fine",
        "fine one two",
        "bin/fine",
        "./bin/fine one",
        "python -c 'import omega'",
        "bin/python -c 'import omega'",
        "imports && imports",
        "test -f pyvenv.cfg",
        'test "$(fine)" = "$VIRTUAL_ENV []"',
        "environment",
        "bin/omega",
    ],
)
@pytest.mark.few(2)
def test_a_smoke_test_that_succeeds(
    command: str, site: Site, scripted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name or path, without the caller's variables; and the tree stays as it is."""
    assert publish(scripted, site.path("S")).changed
    plain = roots.tree(site.path("S"))
    remove(site.path("S"))
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    assert publish(scripted, site.path("S"), smoke_tests=[command]).changed
    assert roots.tree(site.path("S")) == plain
    assert left_behind(site.root) == []


@pytest.mark.parametrize("owner", [None, pytest.param((NOBODY, NOBODY), marks=needs_root)])
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("broken", r"`broken` failed \(exit code 3: no database\)"),
        ("bin/broken", r"`bin/broken` failed \(exit code 3: no database\)"),
        ("exit 7", r"`exit 7` failed \(exit code 7\)"),
        ("no-such-program", r"failed \(exit code 127: .*not found\)"),
        ("kill -9 $$", r"failed \(exit code -9\)"),
    ],
    ids=["by-name", "by-path", "a-code", "missing", "a-signal"],
)
@pytest.mark.few(2)
def test_a_smoke_test_that_fails(
    command: str,
    text: str,
    owner: tuple[int, int] | None,
    site: Site,
    request: pytest.FixtureRequest,
) -> None:
    """One sentence with the last line that it said; nothing is deployed."""
    archive = request.getfixturevalue("scripted" if owner is None else "public")
    site.deploy("A")
    with open_to_all(site.root):
        refused(
            lambda: publish(archive, site.path("S"), smoke_tests=["fine", command], owner=owner),
            CannotRun,
            text,
            site,
        )
    assert left_behind(site.root) == []
    assert site.current() == "A"


@needs_root
@pytest.mark.parametrize("top", [".", "shop", "deep/shop"])
@pytest.mark.parametrize("number", [NOBODY, 54321], ids=["nobody", "a-number-without-a-name"])
@pytest.mark.few(2)
def test_a_smoke_test_as_the_owner(top: str, number: int, site: Site, tmp_path: Path) -> None:
    """It is that user who runs it, and wherever the virtualenv is in the archive."""
    python = roots.python_for_all()
    archive = packed(tmp_path / "archive", "S", top=top, extra=SCRIPTS, python=python)
    test = f'test "$(id -u):$(id -g)" = {number}:{number} && fine'
    who = "bin/whoami" if number == NOBODY else "bin/fine"
    with open_to_all(site.root):
        done = publish(archive, site.path("S"), owner=(number, number), smoke_tests=[test, who])
    assert done.changed
    assert os.lstat(site.path("S/bin/fine")).st_uid == number
    assert os.listdir(site.path()).count("S") == 1
    assert left_behind(site.root) == []


@contextmanager
def open_to_all(path: str) -> Iterator[None]:
    """Let other users pass through the directories of this test, which pytest keeps from them."""
    os.makedirs(path, exist_ok=True)
    changed = []
    while path != "/":
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if not mode & 0o001:
            changed.append((path, mode))
            os.chmod(path, mode | 0o011)
        path = os.path.dirname(path)
    try:
        yield
    finally:
        for path, mode in changed:
            os.chmod(path, mode)


@needs_root
@pytest.mark.parametrize("top", [".", "shop"])
def test_a_smoke_test_cannot_lead_root_elsewhere(top: str, site: Site, tmp_path: Path) -> None:
    """Not even one that replaces the whole staged tree by a link, where it has the right to."""
    python = roots.python_for_all()
    archive = packed(tmp_path / "archive", "S", top=top, extra=SCRIPTS, python=python)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    before = digest(victim)
    attacks = [
        f"cd ..; mv S moved; mv shop moved; ln -s {victim} S; ln -s {victim} shop; true",
        f"rm -rf bin etc; ln -s {victim} bin; ln -s {victim} etc; ln -s {victim}/x {RECORD}; true",
    ]
    with open_to_all(site.root):
        for number, attack in enumerate(attacks):
            path = site.path(f"S{number}")
            tests = [attack]
            roots.tried(lambda: publish(archive, path, owner=(NOBODY, NOBODY), smoke_tests=tests))  # noqa: B023
            assert not os.path.islink(path)
            assert digest(victim) == before


# Python leaves its variables alone with -I, the one that keeps it from writing bytecode as well.
WRITES = "python -I -c 'import sys; sys.path[:0] = [\"etc\"]; import fresh; print(fresh)'"


@needs_root
@pytest.mark.parametrize("number", [NOBODY, 54321], ids=["nobody", "a-number-without-a-name"])
@pytest.mark.few(1)
def test_a_smoke_test_as_another_user(number: int, site: Site, tmp_path: Path) -> None:
    """Who reads root's release, and cannot write to it, nor look around beside it."""
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, number, number)
    extra = {**SCRIPTS, "etc/fresh.py": "VALUE = 1\n"}
    archive = packed(tmp_path, "S", extra=extra, python=roots.python_for_all())
    home = pwd.getpwuid(number).pw_dir if number == NOBODY else "/"
    tests = [
        f'test "$(id -u) $(id -g) $(id -G)" = "{number} {number} {number}"',
        f'test "$HOME" = "{home}"',
        "environment && fine && imports",
        "bin/fine",
        f"grep -q S {roots.MARKER} && {WRITES}",
        f"! touch new && ! touch bin/new && ! echo >> {roots.MARKER} && ! rm bin/fine",
        "! ls .. && ! ls ../.. && ! touch ../new && ! mv ../S ../T",
        "echo row > var/db",
    ]
    modes: dict[str, set[int]] = {}

    def notify(step: str, _: object) -> None:
        staging = Path(site.path(f"{RECORDS}/{STAGING}"))
        seen = (stat.S_IMODE(one.stat().st_mode) for one in (staging, *staging.iterdir()))
        modes[step] = set(seen)

    options = {"shared": {"var": str(data)}, "smoke_user": (number, number)}
    with open_to_all(site.root), open_to_all(str(data)):
        assert publish(archive, site.path("S"), **options).changed
        plain = roots.tree(site.path("S"))
        remove(site.path("S"))
        umask = os.umask(0o077)
        try:
            assert publish(
                archive, site.path("S"), smoke_tests=tests, notify=notify, **options
            ).changed
        finally:
            os.umask(umask)
    assert roots.tree(site.path("S")) == plain
    assert {facts.owner[0] for facts in plain.values()} == {0}
    assert (data / "db").stat().st_uid == number
    assert modes["unpacked"] == {0o700}
    assert modes["tried"] == {0o711}
    assert left_behind(site.root) == []
    remove(site.path("S"))
    with open_to_all(site.root):
        assert publish(archive, site.path("S"), smoke_tests=[WRITES]).changed
    assert roots.tree(site.path("S")) != plain, "nothing would have been written anyway"


@needs_root
@pytest.mark.parametrize("top", [".", "shop"])
def test_a_smoke_test_of_a_user_who_may_not_read_it(top: str, site: Site, tmp_path: Path) -> None:
    """The mode that the release will have holds already: it is closed to that user then, too."""
    archive = packed(tmp_path, "S", top=top, extra=SCRIPTS, python=roots.python_for_all())
    site.deploy("A")
    options = {"mode": 0o750, "smoke_tests": ["fine"], "smoke_user": (NOBODY, NOBODY)}
    with open_to_all(site.root):
        refused(
            lambda: publish(archive, site.path("S"), **options),
            CannotRun,
            r"the user nobody of its smoke test may not enter it, or not run /.*python3",
            site,
        )
        assert publish(archive, site.path("S"), owner=(0, NOBODY), **options).changed


AS_ANOTHER = """
import os, pwd, sys
from relocate_core import publish
from relocate_core.errors import CannotRun
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for dry_run in (True, False):
    try:
        publish("/nowhere.tar", sys.argv[1], smoke_user=(0, 0), dry_run=dry_run)
    except CannotRun as error:
        print(error)
print(publish("/nowhere.tar", sys.argv[1], smoke_user=(65534, 65534), dry_run=True).changed)
"""


@needs_root
def test_only_root_runs_a_smoke_test_as_another_user(site: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", AS_ANOTHER, site.path("S")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    words = "only root may run programs as the user root: run this as root, or leave that user out"
    assert done.stdout.splitlines() == [words, words, "True"], done.stderr


def test_what_a_smoke_test_leaves_running_does_not_matter(
    site: Site, scripted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in the background: the test ends with its shell, and the server with it."""
    monkeypatch.setattr(smoke, "SECONDS", 120.0)
    note = Path(site.archives["A"]).parent / "pid"
    begin = time.monotonic()
    command = f"sleep 600 & echo $! > {note}; fine"
    assert publish(scripted, site.path("S"), smoke_tests=[command]).changed
    assert time.monotonic() - begin < 60
    until = time.monotonic() + 30
    while os.path.exists(f"/proc/{note.read_text().strip()}") and time.monotonic() < until:
        time.sleep(0.05)
    state = Path(f"/proc/{note.read_text().strip()}/status")
    assert not state.exists() or "\nState:\tZ" in state.read_text()


def test_a_smoke_test_that_takes_too_long(
    site: Site, scripted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deploy("A")
    monkeypatch.setattr(smoke, "SECONDS", 0.5)
    refused(
        lambda: publish(scripted, site.path("S"), smoke_tests=["sleep 60"]),
        CannotRun,
        r"`sleep 60` failed \(it took longer than 0\.5 seconds",
        site,
    )
    assert left_behind(site.root) == []


# --- switching -----------------------------------------------------------------------------------


def test_activating_makes_a_relative_link(site: Site) -> None:
    """And once more changes nothing at all."""
    site.publish("A")
    done = activate(site.path("A"), job="job-7")
    assert (done.release, done.previous, done.changed) == ("A", None, True)
    assert site.current() == "A"
    before = everything(site.root)
    assert not activate(site.path("A")).changed
    assert everything(site.root) == before
    assert [event.get("job") for event in shape(site.root)] == [None, "job-7", "job-7"]


@pytest.mark.parametrize(
    "link", ["stage", "{root}/stage", "{root}/./stage"], ids=["name", "path", "odd-path"]
)
def test_another_link(link: str, site: Site) -> None:
    """It has its own history, and keeps its release from being removed."""
    site.deploy("A", "B")
    activate(site.path("A"), link.format(root=site.root))
    assert os.readlink(site.path("stage")) == "A"
    assert site.current() == "B"
    with pytest.raises(ReleaseInUse, match=r"is active, by .*/stage"):
        remove(site.path("A"))
    with pytest.raises(NotARelease, match="no good release before A"):
        rollback(site.root, link="stage")
    activate(site.path("B"), link="stage")
    assert rollback(site.root, link="stage", mark=False).release == "A"
    assert site.current() == "B"


@pytest.mark.parametrize(
    "link", ["/tmp/current", ".hidden", ".releases", "A", "{root}/sub/current", "", "a/b"]
)
@pytest.mark.few(3)
def test_no_link_can_be_there(link: str, site: Site) -> None:
    site.deploy("A", "B")
    refused(
        lambda: activate(site.path("A"), link.format(root=site.root)), InvalidPath, "link", site
    )


def test_activating_what_must_not_be(site: Site) -> None:
    """Missing, incomplete, marked bad, or without a Python: refused, and `current` stays."""
    site.deploy("A", "B")
    site.publish("C")
    refused(lambda: activate(site.path("X")), NotARelease, "there is no release .*deploy it", site)
    os.mkdir(site.path("X"))
    refused(lambda: activate(site.path("X")), NotARelease, "is no release: it has no valid", site)
    mark_bad(site.path("A"), "it is slow")
    refused(lambda: activate(site.path("A")), MarkedBad, r"is marked bad \(it is slow\)", site)
    python = site.path("C/bin/python")
    os.unlink(python)
    os.symlink("/nonexistent/python", python)
    refused(lambda: activate(site.path("C")), CannotRun, "is a dangling symlink", site)
    assert site.current() == "B"
    assert unmark_bad(site.path("A"))
    assert not unmark_bad(site.path("A"))
    assert activate(site.path("A")).changed


@pytest.mark.parametrize(
    "call",
    [
        lambda path: activate(f"{path}/A"),
        rollback,
        prune,
        lambda path: mark_bad(f"{path}/A", "slow"),
        lambda path: unmark_bad(f"{path}/A"),
        lambda path: pin(f"{path}/A"),
        lambda path: mark_healthy(f"{path}/A"),
        lambda path: remove(f"{path}/A"),
    ],
    ids=["activate", "rollback", "prune", "mark", "unmark", "pin", "prove", "remove"],
)
@pytest.mark.parametrize(
    "there", [False, True], ids=["no-directory", "a-directory-of-something-else"]
)
def test_a_mistyped_root_is_not_made_one(
    there: bool, call: Callable[[str], object], tmp_path: Path
) -> None:
    """Where there are no releases, nothing but a deploy leaves anything."""
    path = tmp_path / "else"
    if there:
        (path / "directory").mkdir(parents=True)
    before = everything(str(path))
    roots.tried(lambda: call(str(path)))
    assert everything(str(path)) == before


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_is_no_link_in_the_link_s_place(what: str, site: Site) -> None:
    """Refused, and untouched."""
    site.publish("A")
    if what == "directory":
        os.makedirs(site.path("current/data"))
    else:
        Path(site.path("current")).write_text("mine\n")
    text = rf"current is a {what} and no symlink: move it away"
    refused(lambda: activate(site.path("A")), InvalidPath, text, site)
    refused(lambda: rollback(site.root), InvalidPath, text, site)


def test_an_absolute_link_of_old(site: Site) -> None:
    """Understood as active, kept by prune, gone back to - and replaced by a relative one."""
    for name in "ABCD":
        site.publish(name)
    os.symlink(site.path("A"), site.path(CURRENT))
    assert Root(site.root).active() == "A"
    assert "A" not in prune(site.root, 1, dry_run=True).removed
    with pytest.raises(ReleaseInUse):
        remove(site.path("A"))
    done = activate(site.path("B"))
    assert (done.previous, done.changed) == ("A", True)
    assert site.current() == "B"
    assert "A" in prune(site.root, 1).kept
    assert rollback(site.root).release == "A"
    assert site.current() == "A"


def test_back_step_by_step(site: Site) -> None:
    """A, B, C: to B, to A, and no further."""
    site.deploy("A", "B", "C")
    first = rollback(site.root, reason="slow")
    assert (first.release, first.previous, first.bad) == ("B", "C", "slow")
    second = rollback(site.root)
    assert (second.release, second.previous, second.bad) == ("A", "B", "rolled back")
    refused(lambda: rollback(site.root), NotARelease, "there is no good release before A", site)
    assert Root(site.root).standing().bad == {"C": "slow", "B": "rolled back"}
    with pytest.raises(MarkedBad):
        activate(site.path("C"))
    # Onwards from there with a new one.
    site.deploy("D")
    assert rollback(site.root).release == "A"


def test_the_last_published_release_comes_first(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within one second, and whichever was activated last."""
    monkeypatch.setattr(locks, "now", lambda: "2026-01-02T03:04:05Z")
    for name in "CADB":
        site.publish(name)
    for name in "BACD":
        activate(site.path(name))
        assert [release.name for release in Root(site.root).releases()] == ["B", "D", "A", "C"]
    rollback(site.root)
    assert [release.name for release in Root(site.root).releases()] == ["B", "D", "A", "C"]


def test_back_without_a_mark(site: Site) -> None:
    site.deploy("A", "B")
    assert rollback(site.root, mark=False).bad is None
    assert Root(site.root).standing().bad == {}
    assert activate(site.path("B")).changed


@pytest.mark.parametrize("how", ["bad", "removed", "removed by hand", "incomplete"])
def test_back_past_what_cannot_be_gone_to(how: str, site: Site) -> None:
    site.deploy("A", "B", "C")
    if how == "bad":
        mark_bad(site.path("B"), "slow")
    elif how == "removed":
        remove(site.path("B"))
    elif how == "removed by hand":
        shutil.rmtree(site.path("B"))
    else:
        os.unlink(site.path(f"B/{RECORD}"))
    assert rollback(site.root).release == "A"
    assert site.current() == "A"


def test_leaving_another_one(site: Site) -> None:
    """Where another release is active by now, nothing is done: a second call of the same job."""
    site.deploy("A", "B", "C")
    assert rollback(site.root, leaving="C").changed
    before = everything(site.root)
    done = rollback(site.root, leaving="C")
    assert (done.changed, done.release) == (False, "B")
    assert roots._without_lock(everything(site.root)) == roots._without_lock(before)


def test_back_to_a_certain_one(site: Site) -> None:
    site.deploy("A", "B", "C")
    assert rollback(site.root, "A").release == "A"
    assert Root(site.root).standing().bad == {"C": "rolled back"}
    refused(lambda: rollback(site.root, "X"), NotARelease, "there is no release", site)
    assert not rollback(site.root, "A").changed


def test_back_to_one_that_was_never_active(site: Site) -> None:
    """It is no dead end: those that were active before it are still there to go back to."""
    site.publish("D")
    site.deploy("A", "B", "C")
    assert rollback(site.root, "D").release == "D"
    assert rollback(site.root).release == "B"


def test_back_to_a_bad_one(site: Site) -> None:
    """A release marked bad is not activated again until unmarked: not by its name either."""
    site.deploy("A", "B", "C")
    mark_bad(site.path("A"), "slow")
    refused(lambda: rollback(site.root, "A"), MarkedBad, r"is marked bad \(slow\)", site)


def test_nothing_to_roll_back(site: Site) -> None:
    with pytest.raises(NotARelease, match="there are no releases"):
        rollback(site.root)
    site.publish("A")
    refused(lambda: rollback(site.root), NotARelease, "there is nothing to roll back", site)


class TestByHand:
    """Links that an operator has made with `ln -sfn`."""

    def test_back_from_it(self, site: Site) -> None:
        site.deploy("A", "B")
        site.publish("C")
        by_hand(site, "C")
        assert Root(site.root).active() == "C"
        done = rollback(site.root)
        assert (done.release, done.previous) == ("B", "C")

    def test_back_to_it(self, site: Site) -> None:
        """It was active right before the one that is left."""
        site.deploy("A")
        site.publish("B")
        site.publish("C")
        by_hand(site, "B")
        activate(site.path("C"))
        assert rollback(site.root).release == "B"

    def test_back_to_the_first_one(self, site: Site) -> None:
        """A root that was switched by hand until now."""
        for name in "AB":
            site.publish(name)
        by_hand(site, "A")
        activate(site.path("B"))
        assert rollback(site.root).release == "A"

    def test_kept_by_prune(self, site: Site) -> None:
        """Both the active one, and the one before."""
        for name in "BAC":
            site.publish(name)
        site.deploy("D", "E")
        by_hand(site, "B")
        assert "active" in prune(site.root, 1, dry_run=True).kept["B"]
        activate(site.path("C"))
        assert prune(site.root, 1).kept["B"] == "the previous release"
        by_hand(site, "B", "stage")
        assert "stage" in prune(site.root, 1).kept["B"]

    def test_activated_once_more(self, site: Site) -> None:
        """What leads there already is written down."""
        site.publish("A")
        by_hand(site, "A")
        assert not activate(site.path("A")).changed
        assert shape(site.root)[-1]["event"] == history.ACTIVATED

    def test_to_nothing(self, site: Site) -> None:
        """A dangling link stops nobody from activating a release."""
        site.deploy("A", "B")
        by_hand(site, "gone")
        assert prune(site.root, 2).removed == []
        assert activate(site.path("A")).changed
        assert site.current() == "A"

    def test_a_rollback_by_hand_while_one_was_begun(self, site: Site) -> None:
        """A link that was made by hand after a kill is not moved by what finishes the rollback."""
        from tests.support.steps import Steps, in_child

        site.deploy("A", "B", "C")
        for step in range(1, 30):
            assert in_child(lambda: rollback(site.root), Steps(step)) == 9
            if shape(site.root)[-1]["event"] == history.ROLLING_BACK:
                break
        assert site.current() == "C"
        by_hand(site, "A")
        site.publish("D")
        assert site.current() == "A"


@pytest.mark.slow
def test_a_recovered_rollback_is_not_reported_for_another_call(site: Site) -> None:
    """One that was killed is finished; then the call does what it was asked for."""
    from tests.support.steps import Steps, in_child

    def begun() -> None:
        site.clear()
        site.deploy("A", "B", "C")
        for step in range(1, 30):
            assert in_child(lambda: rollback(site.root, reason="slow"), Steps(step)) == 9
            if shape(site.root)[-1]["event"] == history.ROLLING_BACK:
                return

    begun()
    same = rollback(site.root, reason="slow")
    assert (same.release, same.previous, same.changed, same.bad) == ("B", "C", True, "slow")
    begun()
    assert rollback(site.root, "A").release == "A"
    assert site.current() == "A"
    begun()
    assert rollback(site.root, leaving="B").release == "A"
    assert site.current() == "A"
    begun()
    assert rollback(site.root, leaving="A").changed is False
    assert site.current() == "B"
    begun()
    assert rollback(site.root).bad == "slow"
    begun()
    shutil.rmtree(site.path("B"))
    done = rollback(site.root)
    assert done.release == site.current() == "A"


def test_a_release_that_was_found_healthy(site: Site) -> None:
    """It is so until the next switch."""
    site.deploy("A", "B")
    assert not mark_healthy(site.path("A"))
    assert mark_healthy(site.path("B"))
    assert not mark_healthy(site.path("B"))
    assert Root(site.root).standing().proven == {CURRENT: "B"}
    rollback(site.root)
    assert Root(site.root).standing().proven == {}


# --- pruning -------------------------------------------------------------------------------------


def test_prune_keeps_the_latest(site: Site) -> None:
    for name in "ABCDE":
        site.publish(name)
    activate(site.path("E"))
    done = prune(site.root, 2)
    assert sorted(done.removed) == ["A", "B", "C"]
    assert done.kept == {"E": "active, by current", "D": "one of the latest"}
    assert kept(site.root) == ["D", "E"]
    assert site.faults() == []
    assert left_behind(site.root) == []
    events = [event["release"] for event in shape(site.root) if event["event"] == history.PRUNED]
    assert sorted(events) == ["A", "B", "C"]
    before = everything(site.root)
    assert prune(site.root, 2).removed == []
    assert everything(site.root) == before


def test_prune_goes_by_when_a_release_was_last_used(site: Site) -> None:
    """An old one that was activated again is not an old one."""
    for name in "ABCD":
        site.publish(name)
    for name in "DCBA":
        activate(site.path(name))
    assert sorted(prune(site.root, 3).removed) == ["D"]


def test_prune_goes_by_the_order_of_events_within_a_second(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the history is no finer: what was deployed last stays."""
    monkeypatch.setattr(history, "now", lambda: "2026-01-01T00:00:00Z")
    for name in "ABCDE":
        site.publish(name)
    assert sorted(prune(site.root, 2).removed) == ["A", "B", "C"]


def test_prune_spares_the_one_before_and_the_pinned(site: Site) -> None:
    site.publish("A")
    site.deploy("B", "C")
    site.publish("D")
    site.publish("E")
    assert pin(site.path("A"))
    assert not pin(site.path("A"))
    done = prune(site.root, 1)
    assert done.removed == ["D"]
    assert done.kept["A"] == "pinned"
    assert done.kept["B"] == "the previous release"
    assert unpin(site.path("A"))
    assert prune(site.root, 1).removed == ["A"]


def test_bad_ones_do_not_count(site: Site) -> None:
    """As many good ones stay as were asked for; a bad one of their age stays as evidence."""
    site.deploy("A", "B", "C", "D", "E")
    mark_bad(site.path("D"), "slow")
    mark_bad(site.path("B"), "slow")
    done = prune(site.root, 2)
    assert sorted(done.removed) == ["A", "B"]
    assert done.kept["C"] == "the previous release"
    assert done.kept["D"] == "bad, and kept as evidence"


@contextmanager
def running(*command: str, cwd: str = "/") -> Iterator[int]:
    """A process that runs for as long as this lasts."""
    process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while "sleep" not in Path(f"/proc/{process.pid}/cmdline").read_text():
            assert time.monotonic() < until
        yield process.pid
    finally:
        process.kill()
        process.wait()


SLEEP = "import time; time.sleep(60)"


@pytest.mark.parametrize("how", ["interpreter", "through current", "cwd", "open file"])
@pytest.mark.few(2)
def test_what_a_process_uses_is_spared(how: str, site: Site) -> None:
    """Its interpreter, its working directory, or a file that it has open."""
    site.publish("A")
    for name in "BCD":
        site.deploy(name)
    if how == "through current":
        # Nothing but a module of compiled code tells of a release that was started by its link:
        # the scripts of a release name the release itself.
        command = [site.path("A/bin/omega-sleep")]
        script = Path(command[0])
        up = Path(site.archives["A"]).parent / "up"
        script.write_text(f"#!{site.path('A/bin/python')} -B\nopen({str(up)!r}, 'w')\n{SLEEP}\n")
        script.chmod(0o755)
        by_hand(site, "A")
        command = [site.path("current/bin/omega-sleep")]
    else:
        command = {
            "interpreter": [site.path("A/bin/python"), "-B", "-c", SLEEP],
            "cwd": ["sleep", "60"],
            "open file": ["sh", "-c", f"exec 5<{site.path('A/pyvenv.cfg')}; exec sleep 60"],
        }[how]
    cwd = site.path("A/lib") if how == "cwd" else "/"
    with running(*command, cwd=cwd) as pid:
        until = time.monotonic() + 30
        while time.monotonic() < until and not (
            up.exists() if how == "through current" else using([site.path("A")])
        ):
            time.sleep(0.05)  # it is still starting
        by_hand(site, "D")
        done = prune(site.root, 1)
        assert done.kept["A"] == f"used by process {pid}"
        assert done.removed == ["B"]
        with pytest.raises(ReleaseInUse, match=f"is used by process {pid}: stop") as caught:
            remove(site.path("A"))
        assert roots.one_sentence(caught.value)
    assert prune(site.root, 1).removed == ["A"]


def test_a_name_that_only_begins_the_same_is_not_used(site: Site) -> None:
    site.publish("A")
    site.deploy("B", "C")
    os.makedirs(site.path("A2"))
    with running("sleep", "60", cwd=site.path("A2")):
        assert prune(site.root, 1).removed == ["A"]


def strange(site: Site) -> None:
    """What else may be in a root: none of it is a release."""
    Path(site.path("notes.txt")).write_text("mine\n")
    os.makedirs(site.path("data/inner"))
    os.makedirs(site.path("empty"))
    Path(site.path("data/file")).write_text("mine\n")
    os.symlink("/nonexistent", site.path("dangling"))
    os.symlink(".", site.path("self"))
    os.symlink("loop", site.path("loop"))
    os.mkfifo(site.path("pipe"))
    os.makedirs(site.path(".hidden"))
    for name, text in (
        ("torn", "{"),
        ("other", "[]"),
        ("old", '{"format": 0}'),
        ("binary", "\udcff\udcfe"),
        ("void", ""),
    ):
        os.makedirs(site.path(name))
        Path(site.path(f"{name}/{RECORD}")).write_text(text, errors="surrogateescape")


STRANGERS = (
    *("notes.txt", "data", "empty", "dangling", "self", "loop", "pipe", ".hidden"),
    *("torn", "other", "old", "binary", "void"),
)


def test_strangers_do_not_matter_and_stay(site: Site) -> None:
    for name in "AB":
        site.publish(name)
    strange(site)
    site.deploy("C", "D")
    before = {p: f for p, f in everything(site.root).items() if p.split("/")[0] in STRANGERS}
    assert len(before) > len(STRANGERS)
    assert kept(site.root) == ["A", "B", "C", "D"]
    assert sorted(prune(site.root, 1).removed) == ["A", "B"]
    assert rollback(site.root).release == "C"
    assert [release.name for release in Root(site.root).releases()] == ["D", "C"]
    for name in STRANGERS:
        with pytest.raises(RelocateError) as caught:
            remove(site.path(name))
        assert roots.one_sentence(caught.value)
    after = {p: f for p, f in everything(site.root).items() if p.split("/")[0] in STRANGERS}
    assert after == before
    assert site.faults(STRANGERS) == []


ASK = """
import signal, sys
from relocate_core import Root, activate
from relocate_core.errors import RelocateError
signal.alarm(5)
try:
    print(Root(sys.argv[1]).names())
    activate(sys.argv[1] + "/B")
except RelocateError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("what", ["directory", "pipe", "loop", "link to a record"])
@pytest.mark.few(2)
def test_a_record_that_is_no_file(what: str, site: Site) -> None:
    """Whoever owns a release may put anything there; the other releases do not suffer from it."""
    site.deploy("A", "B", "A")
    path = site.path(f"C/{RECORD}")
    os.mkdir(site.path("C"))
    if what == "directory":
        os.mkdir(path)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "loop":
        os.symlink(RECORD, path)
    else:
        os.symlink(f"../A/{RECORD}", path)
    process = roots.python(ASK, site.root)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, f"{process.returncode}: {said}"
    assert said == "['A', 'B']\n"
    assert site.current() == "B"


@pytest.mark.parametrize("keep", [0, -1, True, "3", 2.0, None])
@pytest.mark.few(2)
def test_a_keep_that_is_no_count(keep: object, site: Site) -> None:
    site.deploy("A", "B")
    refused(
        lambda: prune(site.root, keep),  # type: ignore[arg-type]
        InvalidPath,
        "keep must be a whole number of at least 1",
        site,
    )


def test_removing_one(site: Site) -> None:
    """Not the active or a pinned one; what is not there is no error."""
    site.deploy("A", "B")
    site.publish("C")
    refused(lambda: remove(site.path("B")), ReleaseInUse, "is active, by .*/current", site)
    pin(site.path("C"))
    refused(lambda: remove(site.path("C")), ReleaseInUse, "is pinned: unpin it first", site)
    unpin(site.path("C"))
    assert remove(site.path("C"))
    assert not remove(site.path("C"))
    assert kept(site.root) == ["A", "B"]
    assert left_behind(site.root) == []
    assert shape(site.root)[-1] == {"event": history.REMOVED, "release": "C"}


# --- the history ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        b'{"time": "2026-01-01T00:00:00Z", "event": "activa',
        b"\x00" * 512,
        b"not json\n\n[1, 2]\nnull\n\xff\xfe\n",
        b'{"event": "activated", "release": "A"}\n{"time": 1, "event": 2, "release": 3}\n',
        b'{"time": "2026-01-01T00:00:00Z", "event": "of the future", "release": "A"}\n',
    ],
    ids=["torn", "zeros", "garbage", "incomplete", "unknown"],
)
@pytest.mark.few(2)
def test_a_damaged_history(damage: bytes, site: Site) -> None:
    """What can be read of it counts, and what is written next is whole."""
    site.deploy("A", "B", "C")
    mark_bad(site.path("B"), "slow")
    path = Path(site.root, RECORDS, history.NAME)
    path.write_bytes(path.read_bytes() + damage)
    assert Root(site.root).standing().bad == {"B": "slow"}
    assert rollback(site.root).release == "A"
    with pytest.raises(MarkedBad):
        activate(site.path("B"))
    kinds = [event["event"] for event in history.read(f"{site.root}/{RECORDS}")]
    assert kinds[-2:] == [history.ROLLING_BACK, history.ROLLED_BACK]
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[-1])["event"] == history.ROLLED_BACK


def test_no_history_at_all(site: Site) -> None:
    """The releases stand, and the active one is the one that the link names."""
    site.deploy("A", "B")
    shutil.rmtree(site.path(RECORDS))
    assert Root(site.root).active() == "B"
    assert kept(site.root) == ["A", "B"]
    assert not site.publish("A").changed
    refused_before = site.current()
    with pytest.raises(NotARelease, match="no good release before B"):
        rollback(site.root)
    assert site.current() == refused_before
    assert rollback(site.root, "A").changed
    assert site.faults() == []


# --- trust ---------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A directory that only root can have touched; skips where the one of pytest is none."""
    from relocate_core.system.ownership import require_trusted

    if os.geteuid() != 0:
        pytest.skip("only root is at risk")
    try:
        require_trusted(str(tmp_path))
    except UnsafeDirectory as error:
        pytest.skip(f"the directory for temporary files will not do: {error}")
    return tmp_path


def chown(path: Path, user: int, group: int = 0, mode: int = 0o755) -> None:
    """Owner, group and mode of a directory."""
    os.chown(path, user, group)
    os.chmod(path, mode)


UNSAFE = {
    "of another user": (NOBODY, 0, 0o755, "belongs to nobody"),
    "of a number without a name": (54321, 0, 0o755, "belongs to 54321"),
    "writable by all": (0, 0, 0o777, "is writable by everybody"),
    "writable by another group": (0, NOBODY, 0o775, "is writable by the group"),
}


@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
@pytest.mark.parametrize("how", UNSAFE)
@pytest.mark.parametrize("below", ["", "inner/"], ids=["in-it", "below-it"])
def test_a_directory_that_others_can_change(
    how: str, there: bool, below: str, site: Site, ours: Path
) -> None:
    """Refused with its name and what to do, and nothing is written, not even the root itself."""
    user, group, mode, text = UNSAFE[how]
    shared = ours / "shared"
    shared.mkdir()
    if below:
        (shared / "inner").mkdir()
    root = shared / f"{below}app"
    if there:
        root.mkdir()
    chown(shared, user, group, mode)
    before = everything(str(ours))
    with pytest.raises(UnsafeDirectory, match=f"{shared} {text}") as caught:
        publish(site.archives["A"], str(root / "A"))
    assert roots.one_sentence(caught.value)
    assert everything(str(ours)) == before


@pytest.mark.parametrize("where", ["unsafe", "sticky", "sticky-missing"])
def test_a_link_that_others_can_swap(where: str, site: Site, ours: Path) -> None:
    """A root that is reached by a link in a directory of somebody else's, or by a link of
    theirs."""
    shared, real = ours / "shared", ours / "real"
    shared.mkdir()
    real.mkdir()
    if where != "sticky-missing":
        (real / "app").mkdir()
    os.symlink(real, shared / "link")
    if where == "unsafe":
        chown(shared, NOBODY)
    else:
        chown(shared, 0, 0, 0o1777)
        os.lchown(shared / "link", NOBODY, NOBODY)
    before = everything(str(ours))
    with pytest.raises(UnsafeDirectory, match=str(shared)) as caught:
        publish(site.archives["A"], str(shared / "link/app/A"))
    assert roots.one_sentence(caught.value)
    assert everything(str(ours)) == before


@pytest.mark.parametrize("how", ["sticky", "own-group", "own-link", "root-of-its-own"])
def test_directories_that_are_fine(how: str, site: Site, ours: Path) -> None:
    """A sticky directory such as /tmp, root's own group, root's own link."""
    shared = ours / "shared"
    shared.mkdir()
    path = shared / "app"
    if how == "sticky":
        chown(shared, 0, 0, 0o1777)
    elif how == "own-group":
        chown(shared, 0, 0, 0o775)
    elif how == "own-link":
        (ours / "real").mkdir()
        os.symlink("../real", shared / "link")
        path = shared / "link" / "app"
    assert publish(site.archives["A"], str(path / "A")).changed
    activate(str(path / "A"))
    assert roots.runs(str(path / CURRENT))


def test_the_release_itself_may_belong_to_anybody(site: Site, ours: Path) -> None:
    """It is the directories above that matter."""
    root = str(ours / "app")
    publish(site.archives["A"], f"{root}/A", owner=(NOBODY, NOBODY))
    publish(site.archives["B"], f"{root}/B", owner=(NOBODY, NOBODY))
    activate(f"{root}/A")
    activate(f"{root}/B")
    assert rollback(root).release == "A"
    assert remove(f"{root}/B")


@pytest.mark.parametrize("what", ["directory-of-another", "writable", "link", "file"])
def test_records_that_are_not_ours(what: str, site: Site, ours: Path) -> None:
    """`.releases` that somebody else has put there: refused, and not written to."""
    root = ours / "app"
    records = root / RECORDS
    root.mkdir()
    if what == "link":
        (ours / "elsewhere").mkdir()
        os.symlink("../elsewhere", records)
    elif what == "file":
        records.write_text("")
    else:
        records.mkdir()
        chown(
            records,
            NOBODY if what == "directory-of-another" else 0,
            0,
            0o755 if what != "writable" else 0o777,
        )
    before = everything(str(ours))
    with pytest.raises(RelocateError, match=str(records)) as caught:
        publish(site.archives["A"], str(root / "A"))
    assert roots.one_sentence(caught.value)
    assert everything(str(ours)) == before


AS_NOBODY = """
import os, sys
from relocate_core import Root, activate, prune, publish, rollback
from relocate_core.errors import RelocateError
os.setgroups([]); os.setgid(65534); os.setuid(65534)
root, archive = sys.argv[1:]
for act in (
    lambda: Root(root).releases(),
    lambda: activate(root + "/A"),
    lambda: activate(root + "/A", dry_run=True),
    lambda: rollback(root),
    lambda: rollback(root, dry_run=True),
    lambda: prune(root, 1),
    lambda: prune(root, 1, dry_run=True),
    lambda: publish(archive, root + "/C"),
    lambda: publish(archive, root + "/C", dry_run=True),
):
    try:
        act()
    except RelocateError as error:
        assert "\\n" not in str(error)
print("done")
"""


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["readable", "closed"])
@pytest.mark.parametrize("record", [0o644, 0o600], ids=["", "closed-records"])
@pytest.mark.few(2)
def test_another_user_gets_a_sentence(mode: int, record: int, site: Site) -> None:
    """Whoever may not read or write a root is told so, and not by a traceback."""
    site.deploy("A", "B", "C")
    for name in "ABC":
        os.chmod(site.path(f"{name}/{RECORD}"), record)
    os.chmod(site.path(f"{RECORDS}/{history.NAME}"), record)
    with open_to_all(site.root):
        os.chmod(site.root, mode)
        before = everything(site.root)
        done = subprocess.run(
            [sys.executable, "-B", "-c", AS_NOBODY, site.root, site.archives["A"]],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        after = everything(site.root)
    if "ModuleNotFoundError" in done.stderr or "can't open" in done.stderr:
        pytest.skip("nobody may read this checkout")
    assert done.stdout == "done\n", done.stderr
    assert after == before
