"""Migrations: up before a release is activated, down by its code before an earlier one is."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Root, activate, migrate, prune, rollback
from relocate_core.errors import Busy, CannotMigrate, MarkedBad, NotARelease, RelocateError
from relocate_core.releases.root import RECORDS
from relocate_core.releases.schemas.record import NAME
from tests.support import postgres, roots
from tests.support.projects import Migrated, code, column, libraries, table
from tests.support.roots import NOBODY, needs_root, one_sentence
from tests.support.steps import ROOT

FIRST = {"0001_initial": table("Item")}
SECOND = {**FIRST, "0002_price": column("item", "price")}
THIRD = {**SECOND, "0003_colour": column("item", "colour")}
IRREVERSIBLE = {**SECOND, "0003_prices": code("None")}


@pytest.fixture(scope="session")
def installed() -> Iterator[str]:
    """Django and Alembic."""
    with libraries() as directory:
        yield directory


@pytest.fixture
def site(installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrated:
    """An empty root, and no database yet."""
    roots.without_waiting(monkeypatch.setattr)
    return Migrated(tmp_path, installed)


@pytest.fixture(scope="module")
def prepared(installed: str, tmp_path_factory: pytest.TempPathFactory) -> Migrated:
    """Two releases, of which the second has a migration more; kept aside."""
    site = Migrated(tmp_path_factory.mktemp("two") / "site", installed)
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": SECOND})
    site.deploy("A")
    site.deploy("B")
    site.directory.rename(site.directory.with_name("kept"))
    return site


@pytest.fixture
def two(prepared: Migrated, monkeypatch: pytest.MonkeyPatch) -> Migrated:
    """Two releases, of which the second has a migration more; the second is active."""
    roots.without_waiting(monkeypatch.setattr)
    directory = str(prepared.directory)
    subprocess.run(["rm", "-rf", "--", directory], check=True)
    subprocess.run(
        ["cp", "-a", "--", str(prepared.directory.with_name("kept")), directory], check=True
    )
    prepared.env = {"DATABASE": prepared.database}
    return prepared


def refused(function: Callable[[], object], words: str, site: Migrated) -> str:
    """A call is refused in one sentence, and neither the link nor the schema has changed."""
    before = site.current(), site.applied(), site.tables()
    with pytest.raises(RelocateError, match=words) as found:
        function()
    assert one_sentence(found.value), found.value
    assert (site.current(), site.applied(), site.tables()) == before
    return str(found.value)


# --- up -------------------------------------------------------------------------------------------


def test_a_schema_goes_up_and_back(site: Migrated) -> None:
    """Told before it is done, done once, and undone by a rollback without any argument."""
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": THIRD})
    looked = site.migrate("A", dry_run=True)
    assert (looked.old, looked.new) == ("shop zero", "shop 0001_initial")
    assert (looked.changed, looked.applied) == (True, ["shop.0001_initial"])
    assert not os.path.exists(site.database)
    assert not os.path.exists(os.path.join(site.root, RECORDS, NAME))
    done = site.deploy("A")
    assert (done.changed, done.dry_run) == (True, False)
    assert done.as_dict() == {**looked.as_dict(), "dry_run": False}
    done = site.deploy("B")
    assert done.applied == ["shop.0002_price", "shop.0003_colour"]
    assert (done.old, done.new) == ("shop 0001_initial", "shop 0003_colour")
    kept = roots.everything(site.root)
    assert site.migrate("B").changed is False
    assert roots.everything(site.root) == kept
    looked_back = rollback(site.root, dry_run=True)
    assert looked_back.schema == {"old": "shop 0003_colour", "new": "shop 0001_initial"}
    assert site.columns("shop_item") == {"id", "price", "colour"}
    assert roots.everything(site.root) == kept
    back = rollback(site.root, reason="slow")
    assert (back.schema, site.current()) == (looked_back.schema, "A")
    assert site.columns("shop_item") == {"id"}
    assert site.events() == [
        "migrated A shop zero > shop 0001_initial",
        "migrated B shop 0001_initial > shop 0003_colour",
        "migrated_back A shop 0003_colour > shop 0001_initial",
    ]


@pytest.mark.slow
def test_what_was_there_before_the_first_migration_is_known(site: Migrated) -> None:
    """Though the release that was active then was never migrated: it ran with what was found."""
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": SECOND})
    site.migrate("A")
    os.unlink(os.path.join(site.root, RECORDS, NAME))
    activate(site.path("A"))
    site.deploy("B")
    assert rollback(site.root).schema == {"old": "shop 0002_price", "new": "shop 0001_initial"}
    assert site.columns("shop_item") == {"id"}


@pytest.mark.slow
def test_a_release_without_migrations_costs_a_rollback_nothing(two: Migrated) -> None:
    """Its code is not even started: it may be what is broken."""
    path = two.django("C", {"shop": SECOND})
    assert two.deploy("C").changed is False
    Path(path, "project", "settings.py").write_text("import nowhere\n")
    assert rollback(two.root).schema is None
    assert two.columns("shop_item") == {"id", "price"}


@pytest.mark.slow
def test_several_apps_come_down_in_order(site: Migrated) -> None:
    """What needs another one goes first, across apps; unmigrated and removed apps do not matter."""
    user = {"0001_initial": table("User")}
    key = "ForeignKey('users.User', models.CASCADE)"
    order = (table("Order", user=key), [("users", "0002_group")], ())
    site.django("A", {"users": user, "old": {"0001_initial": table("Old")}})
    grown = {**user, "0002_group": table("Group"), "0003_role": column("group", "role")}
    needed = [("shop", "0001_initial"), ("users", "0003_role")]
    shop = {"0001_initial": order, "0002_more": (column("order", "more"), needed, ())}
    site.django("B", {"shop": shop, "users": grown, "empty": {}})
    site.deploy("A")
    done = site.deploy("B")
    assert done.new == "shop 0002_more, users 0003_role"
    looked = site.migrate("A", dry_run=True).undone
    assert len(looked) == 4
    for first, then in (
        ("shop.0002_more", "users.0003_role"),
        ("shop.0002_more", "shop.0001_initial"),
        ("users.0003_role", "users.0002_group"),
        ("shop.0001_initial", "users.0002_group"),
    ):
        assert looked.index(first) < looked.index(then)
    rollback(site.root)
    assert site.applied() == ["old.0001_initial", "users.0001_initial"]
    assert site.tables() >= {"users_user", "old_old"}
    assert not site.tables() & {"shop_order", "users_group"}


@pytest.mark.slow
def test_a_branch_that_was_merged_comes_down(site: Migrated) -> None:
    """Just what the release did not have, though it stands beside what it had."""
    left = {"0002_left": (column("item", "left"), [("shop", "0001_initial")], ())}
    right = {"0002_right": (column("item", "right"), [("shop", "0001_initial")], ())}
    merge = {"0003_merge": ("", [("shop", "0002_left"), ("shop", "0002_right")], ())}
    site.django("A", {"shop": {**FIRST, **left}})
    site.django("B", {"shop": {**FIRST, **left, **right, **merge}})
    site.deploy("A")
    site.deploy("B")
    rollback(site.root)
    assert site.columns("shop_item") == {"id", "left"}
    assert site.applied() == ["shop.0001_initial", "shop.0002_left"]


@pytest.mark.slow
def test_what_was_squashed_is_not_undone(site: Migrated) -> None:
    """A squashed migration is what it stands for: to undo it would drop the table."""
    both = table("Item", price="IntegerField(default=0)")
    replaced = [("shop", "0001_initial"), ("shop", "0002_price")]
    squashed = {"0001_squashed": (both, [], replaced)}
    more = {"0003_colour": (column("item", "colour"), [("shop", "0001_squashed")], ())}
    site.django("A", {"shop": SECOND})
    site.django("B", {"shop": {**squashed, **more}})
    site.django("C", {"shop": {**FIRST, "0001_squashed_0003": (both, [], replaced)}})
    site.deploy("A")
    assert site.deploy("B").applied == ["shop.0003_colour"]
    assert site.migrate("B").changed is False
    assert rollback(site.root).schema is not None
    assert site.columns("shop_item") == {"id", "price"}
    assert site.migrate("A").changed is False


@pytest.mark.slow
def test_a_squash_that_stands_for_some_of_it_is_refused(site: Migrated) -> None:
    replaced = [("shop", name) for name in THIRD]
    whole = table("Item", price="IntegerField(default=0)", colour="IntegerField(default=0)")
    site.django("A", {"shop": SECOND})
    site.django("B", {"shop": {**THIRD, "0001_squashed": (whole, [], replaced)}})
    site.deploy("A")
    site.deploy("B")
    words = "shop.0001_squashed replaces several migrations, of which some are to stay"
    refused(lambda: rollback(site.root), words, site)


# --- what cannot be undone ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(code("None"), marks=pytest.mark.slow),
        pytest.param("migrations.RunSQL('select 1'),", marks=pytest.mark.slow),
        f"migrations.SeparateDatabaseAndState(database_operations=[{code('None')}]),",
    ],
    ids=["python", "sql", "separate"],
)
@pytest.mark.few(1, slow=2)
def test_an_irreversible_migration_stops_a_rollback(site: Migrated, operation: str) -> None:
    """Before anything has changed, be it by pillar as well; without the schema it goes."""
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": {**SECOND, "0003_x": operation, "0004_y": column("item", "y")}})
    site.deploy("A")
    site.deploy("B")
    kept = roots.everything(site.root)
    for call in (
        lambda: rollback(site.root, dry_run=True),
        lambda: site.migrate("A", dry_run=True),
    ):
        refused(call, "shop.0003_x is irreversible; nothing was changed", site)
    assert roots.everything(site.root) == kept
    for call in (lambda: rollback(site.root), lambda: site.migrate("A")):
        refused(call, "shop.0003_x is irreversible; nothing was changed", site)
    assert rollback(site.root, migrate=False).schema is None
    assert site.current() == "A"
    assert site.migrate("A").changed is False  # it was wanted so
    assert "shop.0004_y" in site.applied()


@pytest.mark.slow
def test_a_migration_that_is_not_in_the_code_any_more(two: Migrated) -> None:
    two.django("C", {"shop": FIRST, "more": {"0001_initial": table("More")}})
    two.deploy("C")
    words = "shop.0002_price is applied, and not in the code any more"
    refused(lambda: rollback(two.root, "A"), words, two)
    assert rollback(two.root).schema == {"old": "more 0001_initial", "new": "more zero"}
    rollback(two.root, "A", mark=False)
    assert two.applied() == ["shop.0001_initial"]


@pytest.mark.slow
def test_the_code_that_migrated_is_gone(two: Migrated) -> None:
    """The one that is left takes the schema down instead, if it knows how."""
    two.django("C", {"shop": THIRD})
    two.migrate("C")
    subprocess.run(["rm", "-rf", two.path("C")], check=True)
    words = "shop.0003_colour is applied, and not in the code any more"
    refused(lambda: rollback(two.root), words, two)
    rollback(two.root, migrate=False)
    assert two.current() == "A"


@pytest.mark.slow
def test_prune_keeps_the_code_that_migrates_down(two: Migrated) -> None:
    """However bad that release is, as long as the schema is at what it has made of it."""
    two.django("C", {"shop": THIRD})
    two.deploy("C")
    rollback(two.root, migrate=False)
    done = prune(two.root, 1)
    assert (two.current(), done.removed) == ("B", [])
    assert done.kept["C"] == "only its code can migrate the django default schema down"
    rollback(two.root)
    assert (two.current(), two.columns("shop_item")) == ("A", {"id"})
    assert sorted(prune(two.root, 1).removed) == ["B", "C"]


@pytest.mark.slow
def test_another_database(two: Migrated) -> None:
    """What a release ran with somewhere else says nothing of this one."""
    two.django("C", {"shop": THIRD})
    elsewhere = {"DATABASE": f"{two.database}2"}
    two.deploy("C", env=elsewhere)
    refused(lambda: rollback(two.root, "A"), "another database", two)
    assert rollback(two.root, migrate=False).release == "B"


def test_a_rollback_to_what_needs_more(two: Migrated) -> None:
    """Nothing goes up in a rollback."""
    rollback(two.root, mark=False)
    words = "shop.0002_price, which that needs, is not applied"
    refused(lambda: rollback(two.root, "B"), words, two)


# --- by pillar ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_release_that_is_set_back(two: Migrated) -> None:
    """Its own code knows nothing of what is applied; the newer code takes it down, and up again."""
    two.django("C", {"shop": THIRD})
    two.deploy("C")
    for name, wanted in (("A", {"id"}), ("C", {"id", "price", "colour"}), ("B", {"id", "price"})):
        looked = two.migrate(name, dry_run=True)
        assert looked.changed, name
        done = two.migrate(name)
        assert (done.old, done.new, done.undone) == (looked.old, looked.new, looked.undone)
        assert two.columns("shop_item") == wanted
        assert two.migrate(name).changed is False
        activate(two.path(name))


def test_a_bad_release_does_not_migrate_again(two: Migrated) -> None:
    """After a rollback the pillar still names it."""
    rollback(two.root, reason="it is slow")
    with pytest.raises(MarkedBad, match="it is slow"):
        two.migrate("B")
    assert two.columns("shop_item") == {"id"}
    with pytest.raises(NotARelease):
        two.migrate("nowhere")


@pytest.mark.slow
def test_a_branch_that_knows_less_is_left_alone(two: Migrated) -> None:
    """It never ran here, so nothing tells that the schema has to go down; and B takes it down."""
    two.django("C", {"shop": FIRST})
    done = two.deploy("C")
    assert (done.changed, done.undone) == (False, [])
    assert rollback(two.root, "A").schema == {"old": "shop 0002_price", "new": "shop 0001_initial"}


# --- failures -------------------------------------------------------------------------------------


def broken(words: str = "1 / 0") -> str:
    """A migration that fails."""
    return code(words, "None")


@pytest.mark.slow
def test_a_migration_that_fails(two: Migrated) -> None:
    """The sentence tells where the schema stands; a rollback knows what it was at before."""
    two.django("C", {"shop": {**THIRD, "0004_broken": broken()}})
    with pytest.raises(CannotMigrate) as found:
        two.migrate("C")
    assert one_sentence(found.value)
    assert str(found.value) == (
        f"cannot migrate with {two.path('C')}: ZeroDivisionError: division by zero; the schema is "
        "at shop 0003_colour now: fix it, and run again"
    )
    assert two.current() == "B"
    assert two.events()[-1] == "migration_failed C shop 0002_price > shop 0003_colour"
    two.django("D", {"shop": {**THIRD, "0004_fine": column("item", "fine")}})
    done = two.deploy("D")
    assert done.applied == ["shop.0004_fine"]
    assert two.events()[-1] == "migrated D shop 0002_price > shop 0004_fine"
    rollback(two.root)
    assert (two.current(), two.columns("shop_item")) == ("B", {"id", "price"})


@pytest.mark.slow
def test_back_from_a_migration_that_failed(two: Migrated) -> None:
    """By pillar to the one that is still active, and by hand to the one before that."""
    for name, going in (("C", lambda: two.migrate("B")), ("D", lambda: rollback(two.root))):
        two.django(name, {"shop": {**THIRD, "0004_broken": broken()}})
        with pytest.raises(CannotMigrate):
            two.migrate(name)
        going()
        wanted = {"id", "price"} if name == "C" else {"id"}
        assert two.columns("shop_item") == wanted
        assert two.migrate(two.current() or "").changed is False


@pytest.mark.slow
def test_a_rollback_that_fails_midway(two: Migrated) -> None:
    """The link stays, and the sentence tells where the schema stands; fixed, it goes on."""
    late = f"open({two.database + '.flag'!r})"
    more = {"0003_stuck": code("None", late), "0004_last": column("item", "last")}
    two.django("C", {"shop": {**SECOND, **more}})
    two.deploy("C")
    with pytest.raises(CannotMigrate) as found:
        rollback(two.root)
    assert one_sentence(found.value)
    said = str(found.value)
    assert "No such file" in said
    assert "the schema is at shop 0003_stuck now, and no symlink was changed" in said
    assert (two.current(), Root(two.root).standing().bad) == ("C", {})
    assert two.events()[-1] == "migration_failed C shop 0004_last > shop 0003_stuck"
    Path(f"{two.database}.flag").touch()
    rollback(two.root)
    assert (two.current(), two.columns("shop_item")) == ("B", {"id", "price"})
    assert two.events()[-1].startswith("migrated_back B")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": "nowhere"}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"env": {}}, "KeyError: 'DATABASE'"),
        ({"database": "other"}, "other"),
        ({"manage": "nowhere"}, "nowhere does not run: no such file"),
        ({"manage": "nowhere.py"}, "nowhere.py"),
        ({"cwd": "nowhere"}, "there is no directory"),
        ({"cwd": "shop", "settings": None}, "there is no manage.py in"),
        ({"timeout": 0.01}, "longer than 0.01 seconds"),
        ({"kind": "alembic"}, "there is no .*alembic.ini"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.few(4)
def test_what_cannot_be_read(site: Migrated, options: dict[str, Any], words: str) -> None:
    """One sentence with the words that tell."""
    site.django("A", {"shop": FIRST})
    said = refused(lambda: site.migrate("A", **options), words, site)
    assert site.path("A") in said
    assert not os.path.exists(os.path.join(site.root, RECORDS, NAME))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "flyway"}, "one of django, alembic, commands: 'flyway'"),
        ({"kind": "alembic", "settings": "x"}, "settings belongs to .* django"),
        ({"manage": "x", "settings": "y"}, "not both"),
        ({"kind": "commands"}, "version is missing"),
        ({"kind": "commands", "version": "x"}, "up is missing"),
        ({"kind": "commands", "version": "x", "up": "y", "down": "z"}, r"no \{version\}"),
        ({"cwd": "/etc"}, "a directory in the release"),
        ({"cwd": "a/../.."}, "a directory in the release"),
        ({"timeout": 0}, "timeout must be a number"),
        ({"env": ["x"]}, "env must be a dictionary"),
        ({"env": {"A B": "x"}}, "no variable can be called 'A B'"),
        ({"env": {"A": ["geheim"]}}, "value of the variable A in env must be a text"),
        ({"database": 7}, "database must be a text"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.few(6)
def test_a_recipe_that_makes_no_sense(site: Migrated, options: dict[str, Any], words: str) -> None:
    said = refused(lambda: site.recipe(**options), words, site)
    assert "geheim" not in said


def test_passwords_are_told_nowhere(site: Migrated) -> None:
    """They are kept for a rollback, for this user alone, and in no message."""
    secrets = {"PGPASSWORD": "geheim1", "URL": "postgres://shop:geheim2@db/shop"}
    site.env.update(secrets)
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": {**FIRST, "0002_broken": broken("print(1 / 0, 'geheim1')")}})
    told: list[object] = []
    site.deploy("A")
    path = Path(site.root, RECORDS, NAME)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "geheim1" in path.read_text()
    words = "raise ValueError(__import__('os').environ['PGPASSWORD'])"
    Path(site.path("B"), "shop", "migrations", "0002_broken.py").write_text(words)
    said = refused(lambda: site.migrate("B"), r"ValueError: \*\*\*\*", site)
    recipe = site.recipe()
    events = Path(site.root, RECORDS, "history.jsonl").read_text()
    for text in (said, repr(recipe), events, *map(str, told)):
        assert "geheim" not in text


def test_a_damaged_record(two: Migrated) -> None:
    path = Path(two.root, RECORDS, NAME)
    path.write_text("{")
    refused(lambda: rollback(two.root), "is damaged", two)
    assert rollback(two.root, migrate=False).release == "A"


def test_the_record_forgets_releases_that_are_gone(two: Migrated) -> None:
    two.django("C", {"shop": THIRD})
    subprocess.run(["rm", "-rf", two.path("A")], check=True)
    two.deploy("C")
    known = json.loads(Path(two.root, RECORDS, NAME).read_text())
    assert set(known["schemas"]["django default"]["releases"]) == {"B", "C"}


# --- killed ---------------------------------------------------------------------------------------

_CHILD = """
import json, sys
from relocate_core import Recipe, migrate, rollback
what, path, env = json.loads(sys.argv[1])
if what == "migrate":
    migrate(path, Recipe.of(settings="project.settings", env=env))
else:
    rollback(path)
"""


def slow(site: Migrated) -> str:
    """A migration that says which process it is in, and then waits for a sign."""
    directory = os.path.dirname(site.database)
    wait = (
        f"(open({directory + '/pid'!r}, 'w').write(str(__import__('os').getpid())), "
        f"[__import__('time').sleep(0.02) for _ in iter(lambda: "
        f"__import__('os').path.exists({directory + '/go'!r}), True)])"
    )
    return code(wait, wait)


def killed(site: Migrated, what: str, path: str) -> int:
    """Kill a run while its slow migration goes on; the number of the process that does it."""
    flag = Path(site.database).with_name("pid")
    flag.unlink(missing_ok=True)
    asked = json.dumps([what, path, site.env])
    child = subprocess.Popen([sys.executable, "-c", _CHILD, asked], cwd=ROOT)
    until = time.monotonic() + 20
    while not (flag.exists() and flag.read_text()):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    child.kill()
    child.wait()
    return int(flag.read_text())


@pytest.mark.parametrize(
    "also", [False, pytest.param(True, marks=pytest.mark.slow, id="with its program")]
)
def test_killed_while_it_goes_up(two: Migrated, also: bool) -> None:
    """What it was at before is known; a program that lives on is waited for; once more ends it."""
    two.django("C", {"shop": {**THIRD, "0004_slow": slow(two), "0005_e": column("item", "e")}})
    program = killed(two, "migrate", two.path("C"))
    if also:
        os.kill(program, signal.SIGKILL)
    else:
        with pytest.raises(Busy, match="a migration is still running"):
            migrate(two.path("C"), two.recipe(), wait=0.2)
    Path(two.database).with_name("go").touch()
    done = two.migrate("C")
    assert (done.old, done.new) == ("shop 0002_price", "shop 0005_e")
    assert two.events()[2:] == ["migrated C shop 0002_price > shop 0005_e"]
    activate(two.path("C"))
    rollback(two.root)
    assert two.columns("shop_item") == {"id", "price"}


@pytest.mark.slow
def test_killed_while_it_goes_up_and_given_up(two: Migrated) -> None:
    """The earlier release is set in the pillar again: what was applied so far is undone."""
    two.django("C", {"shop": {**THIRD, "0004_slow": slow(two)}})
    os.kill(killed(two, "migrate", two.path("C")), signal.SIGKILL)
    assert two.columns("shop_item") == {"id", "price", "colour"}
    assert two.migrate("B").undone == ["shop.0003_colour"]
    assert two.columns("shop_item") == {"id", "price"}
    assert two.migrate("B").changed is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "also", [pytest.param(False, id="alone"), pytest.param(True, id="with its program")]
)
def test_killed_while_it_goes_down(two: Migrated, also: bool) -> None:
    """The link stays until the schema is down; the same call once more ends it."""
    two.django("C", {"shop": {**SECOND, "0003_slow": slow(two), "0004_d": column("item", "d")}})
    go = Path(two.database).with_name("go")
    go.touch()
    two.deploy("C")
    go.unlink()
    program = killed(two, "rollback", two.root)
    assert two.current() == "C"
    if also:
        os.kill(program, signal.SIGKILL)
    go.touch()
    assert rollback(two.root).release == "B"
    assert two.columns("shop_item") == {"id", "price"}
    assert two.events()[-1].startswith("migrated_back B shop 000")


# --- Alembic --------------------------------------------------------------------------------------

NOTHING = "pass"
ITEM = (None, "op.create_table('item', sa.Column('id', sa.Integer))", "op.drop_table('item')")


def add(name: str, below: str, table: str = "item") -> tuple[Any, str, str]:
    """A revision that adds a column."""
    column = f"op.add_column({table!r}, sa.Column({name!r}, sa.Integer))"
    return below, column, f"op.drop_column({table!r}, {name!r})"


@pytest.mark.slow
def test_alembic(site: Migrated) -> None:
    """Told before, done once, undone by a rollback and by pillar."""
    one = {"a1": ITEM}
    site.alembic("A", one)
    site.alembic("B", {**one, "b2": add("price", "a1"), "c3": add("colour", "b2")})
    looked = site.migrate("A", "alembic", dry_run=True)
    assert (looked.old, looked.new, looked.applied) == ("base", None, ["a1"])
    assert site.deploy("A", "alembic").new == "a1"
    assert site.migrate("A", "alembic").changed is False
    done = site.deploy("B", "alembic")
    assert (done.old, done.new, done.applied) == ("a1", "c3", ["b2", "c3"])
    assert site.migrate("A", "alembic", dry_run=True).undone == ["c3", "b2"]
    assert rollback(site.root, mark=False).schema == {"old": "c3", "new": "a1"}
    assert site.columns("item") == {"id"}
    site.deploy("B", "alembic")
    assert site.deploy("A", "alembic").undone == ["c3", "b2"]
    assert site.columns("item") == {"id"}


@pytest.mark.slow
def test_alembic_with_several_heads(site: Migrated) -> None:
    """A branch more, and the one that was there goes on: just what is new is undone."""
    one = {"a1": ITEM, "l1": add("left", "a1")}
    two = {**one, "l2": add("left2", "l1"), "r1": add("right", "a1")}
    site.alembic("A", one)
    site.alembic("B", two)
    site.alembic("C", {**two, "m1": (("l2", "r1"), NOTHING, NOTHING)})
    for name, new in (("A", "l1"), ("B", "l2, r1"), ("C", "m1")):
        assert site.deploy(name, "alembic").new == new
    assert rollback(site.root).schema == {"old": "m1", "new": "l2, r1"}
    assert rollback(site.root).schema == {"old": "l2, r1", "new": "l1"}
    assert site.columns("item") == {"id", "left"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "down",
    [
        pytest.param("raise NotImplementedError('no way back')", marks=pytest.mark.slow),
        pytest.param("raise ValueError('no way back')", marks=pytest.mark.slow),
        "if op.get_context().dialect.name == 'sqlite': raise RuntimeError",
    ],
    ids=["not implemented", "value", "by dialect"],
)
def test_alembic_that_cannot_go_down(site: Migrated, down: str) -> None:
    site.alembic("A", {"a1": ITEM})
    site.alembic("B", {"a1": ITEM, "b2": ("a1", NOTHING, down), "c3": add("x", "b2")})
    site.deploy("A", "alembic")
    site.deploy("B", "alembic")
    words = "b2 is irreversible; nothing was changed"
    refused(lambda: rollback(site.root, dry_run=True), words, site)
    refused(lambda: rollback(site.root), words, site)
    assert site.columns("item") == {"id", "x"}


@pytest.mark.slow
def test_alembic_that_needs_a_database_to_go_down(site: Migrated) -> None:
    """What does not work where the SQL is only printed is no obstacle."""
    down = "assert op.get_bind().execute(sa.text('select 1')).scalar() == 1"
    batch = "with op.batch_alter_table('item') as batch: batch.drop_column('x')"
    up = "op.add_column('item', sa.Column('x', sa.Integer))"
    site.alembic("A", {"a1": ITEM})
    site.alembic("B", {"a1": ITEM, "b2": ("a1", up, batch), "c3": ("b2", NOTHING, down)})
    site.deploy("A", "alembic")
    site.deploy("B", "alembic")
    rollback(site.root)
    assert site.columns("item") == {"id"}


@pytest.mark.slow
def test_alembic_that_fails_on_its_way(site: Migrated) -> None:
    """Up and down: where it stands, and no link changed."""
    site.alembic("A", {"a1": ITEM})
    site.alembic("B", {"a1": ITEM, "b2": add("x", "a1"), "c3": ("b2", "1 / 0", NOTHING)})
    site.deploy("A", "alembic")
    with pytest.raises(CannotMigrate, match=r"ZeroDivisionError.*the schema is at b2 now"):
        site.migrate("B", "alembic")
    site.alembic("C", {"a1": ITEM, "d2": add("y", "a1")})
    with pytest.raises(CannotMigrate, match=r"(?i)b2"):
        site.migrate("C", "alembic")
    assert site.migrate("A", "alembic").undone == ["b2"]
    assert site.columns("item") == {"id"}


# --- commands -------------------------------------------------------------------------------------

_TOOL = """#!/bin/sh
# A schema is a number in a file, and every step a line in another one.
cd "$(dirname "$DATABASE")" && touch steps && test -f number || echo "v 0" > number
case $1 in
version) cat number;;
up) echo "up $2" >> steps; echo "v $2" > number;;
down) echo "down $2" >> steps; echo "$2" > number;;
esac
"""


def tool(site: Migrated, name: str) -> str:
    """Deploy a release with a tool of its own."""
    return site.release(name, {"bin/tool": _TOOL})


def commands(number: int, down: str | None = "tool down {version}") -> dict[str, Any]:
    """How that tool migrates."""
    return {"kind": "commands", "version": "tool version", "up": f"tool up {number}", "down": down}


def steps(site: Migrated) -> list[str]:
    """What the tools have done."""
    return Path(site.database).with_name("steps").read_text().splitlines()


def test_commands(site: Migrated) -> None:
    """A version is one word for the shell, whatever is in it; `up` runs once a release."""
    for number, name in enumerate("ABC", 1):
        tool(site, name)
        looked = site.migrate(name, **commands(number), dry_run=True)
        assert (looked.changed, looked.new) == (True, None)
        done = site.deploy(name, **commands(number))
        assert (done.old, done.new) == (f"v {number - 1}", f"v {number}")
        assert site.migrate(name, **commands(number)).changed is False
    assert steps(site) == ["up 1", "up 2", "up 3"]
    assert rollback(site.root, mark=False).schema == {"old": "v 3", "new": "v 2"}
    site.deploy("C", **commands(3))
    assert site.deploy("A", **commands(1)).new == "v 1"
    assert steps(site)[3:] == ["down v 2", "up 3", "down v 1"]


def test_commands_without_a_way_down(site: Migrated) -> None:
    for number, name in enumerate("AB", 1):
        tool(site, name)
        site.deploy(name, **commands(number, None))
    refused(lambda: rollback(site.root), "no command for that .`down`.; nothing was", site)
    assert steps(site) == ["up 1", "up 2"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"version": "echo no; exit 3"}, r"no \(exit code 3\)"),
        ({"version": "true"}, "prints nothing"),
        ({"version": "echo a; echo b"}, "more than one short line"),
        ({"up": "echo lost >&2; exit 1"}, r"lost \(exit code 1\); the schema is as it was before"),
        ({"up": "sleep 60", "timeout": 0.3}, "longer than 0.3 seconds; the schema is as it was"),
    ],
    ids=["fails", "empty", "long", "up", "slow"],
)
def test_commands_that_fail(site: Migrated, wrong: dict[str, Any], words: str) -> None:
    tool(site, "A")
    refused(lambda: site.migrate("A", **{**commands(1), **wrong}), words, site)


@pytest.mark.slow
def test_a_command_that_does_not_come_down_to_it(site: Migrated) -> None:
    for number, name in enumerate("AB", 1):
        tool(site, name)
        site.deploy(name, **commands(number, "true {version}"))
    words = "it is at v 2 after that, not at v 1; the schema is as it was before, and no symlink"
    refused(lambda: rollback(site.root), words, site)


# --- another user ---------------------------------------------------------------------------------


@pytest.mark.slow
@needs_root
def test_as_another_user(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's file is that user's, up and down; a release is not written to."""
    python = roots.python_for_all()
    roots.without_waiting(monkeypatch.setattr)
    directory = Path(tempfile.mkdtemp(prefix="relocate-test-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)
        site = Migrated(directory, installed, python)
        os.chown(directory / "data", NOBODY, NOBODY)
        who = code("__import__('os').getuid() == 65534 or 1 / 0", "None")
        site.django("A", {"shop": FIRST})
        site.django("B", {"shop": {**SECOND, "0003_who": who}})
        site.deploy("A", owner=(NOBODY, NOBODY))
        assert os.stat(site.database).st_uid == NOBODY
        site.deploy("B", owner=(NOBODY, NOBODY))
        assert os.stat(os.path.join(site.root, RECORDS, NAME)).st_uid == os.geteuid()
        rollback(site.root)
        assert site.columns("shop_item") == {"id"}
    finally:
        subprocess.run(["rm", "-rf", "--", str(directory)], check=True)


# --- states ---------------------------------------------------------------------------------------

QUICK = {"attempts": 1, "interval": 0}


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A minion that has synced."""
    pytest.importorskip("salt", reason="Salt does not run on this Python")
    from tests.support.minions import Masterless

    return Masterless(tmp_path_factory.mktemp("minion"))


def thrice(minion: Any, site: Migrated, name: str, **arguments: Any) -> dict[str, Any]:
    """Apply the state as a test, for real, and twice in vain; what it answered for real."""
    options = {"settings": "project.settings", "env": site.env, **arguments}
    before = roots.everything(str(site.directory))
    said = minion.single("migrated", site.path(name), test=True, **options)
    assert said["result"] is None, said
    assert said["comment"].startswith("The schema would be "), said
    assert roots.everything(str(site.directory)) == before
    done = minion.single("migrated", site.path(name), **options)
    assert done["result"] is True, done
    assert done["changes"] == said["changes"]
    before = roots.everything(str(site.directory))
    for test in (True, False):
        again = minion.single("migrated", site.path(name), test=test, **options)
        assert (again["result"], again["changes"]) == (True, {}), again
    assert roots.everything(str(site.directory)) == before
    return dict(done)


@pytest.mark.slow
def test_the_state(site: Migrated, minion: Any) -> None:
    """Up, up again, and back by pillar."""
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": SECOND})
    assert thrice(minion, site, "A")["changes"] == {
        "schema": {"old": "shop zero", "new": "shop 0001_initial"},
        "applied": ["shop.0001_initial"],
    }
    activate(site.path("A"))
    done = thrice(minion, site, "B")
    assert done["comment"] == f"The schema was migrated for {site.path('B')}."
    activate(site.path("B"))
    back = thrice(minion, site, "A")
    assert back["changes"] == {
        "schema": {"old": "shop 0002_price", "new": "shop 0001_initial"},
        "undone": ["shop.0002_price"],
    }
    assert back["comment"] == f"The schema was migrated down to what {site.path('A')} ran with."


def test_the_state_of_a_release_that_is_not_there_yet(site: Migrated, minion: Any) -> None:
    said = minion.single("migrated", site.path("A"), test=True)
    assert (said["result"], list(said["changes"])) == (None, ["schema"])
    assert minion.single("migrated", site.path("A"))["result"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"settings": "nowhere"}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"user": "no-such-user"}, "there is no user no-such-user"),
        ({"kind": "commands"}, "version is missing"),
        ({"timeout": "long"}, "timeout must be a number"),
        ({"wait": "long"}, "wait must be a number"),
        ({"env": "long"}, "env must be a dictionary"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_the_state_with_wrong_arguments(
    site: Migrated, minion: Any, arguments: dict[str, Any], words: str
) -> None:
    site.django("A", {"shop": FIRST})
    for test in (True, False):
        answer = minion.single("migrated", site.path("A"), test=test, **arguments)
        assert (answer["result"], answer["changes"]) == (False, {}), answer
        assert words.lower() in answer["comment"].lower()


def test_a_migration_that_fails_stops_the_highstate(two: Migrated, minion: Any) -> None:
    """The link stays, as the state that relinks requires the schema."""
    two.django("C", {"shop": {**THIRD, "0004_broken": broken()}})
    answers = minion.apply(
        f"""
        the schema:
          virtualenv_relocated.migrated:
            - name: {two.path("C")}
            - settings: project.settings
            - env:
              - DATABASE: {two.database}
        {two.root}/current:
          virtualenv_relocated.active:
            - target: C
            - require:
              - the schema
        """
    )
    failed = answers["the schema"]
    assert failed["result"] is False
    assert "the schema is at shop 0003_colour now" in failed["comment"]
    assert answers[f"{two.root}/current"]["result"] is False
    assert two.current() == "B"


def test_healthy_takes_the_schema_down(two: Migrated, minion: Any) -> None:
    """And says so; the bad release does not bring it up again."""
    answer = minion.single("healthy", f"{two.root}/current", checks="exit 1", **QUICK)
    assert (answer["result"], two.current()) == (False, "A")
    assert "It is marked bad, the schema was migrated down, and " in answer["comment"]
    assert answer["changes"]["schema"] == {"old": "shop 0002_price", "new": "shop 0001_initial"}
    assert two.columns("shop_item") == {"id"}
    answer = minion.single("migrated", two.path("B"), settings="project.settings", env=two.env)
    assert answer["result"] is False
    assert "is marked bad" in answer["comment"]
    assert two.columns("shop_item") == {"id"}


@pytest.mark.slow
def test_healthy_stays_where_the_schema_cannot_go_down(site: Migrated, minion: Any) -> None:
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": IRREVERSIBLE})
    site.deploy("A")
    site.deploy("B")
    answer = minion.single("healthy", f"{site.root}/current", checks="exit 1", **QUICK)
    assert (answer["result"], answer["changes"], site.current()) == (False, {}, "B")
    assert "It stays: cannot migrate the django default schema of " in answer["comment"]
    assert "shop.0003_prices is irreversible; nothing was changed" in answer["comment"]


def test_the_functions(two: Migrated, minion: Any) -> None:
    """A rollback by hand tells of the schema, as does the history."""
    call = minion.functions
    looked = call["virtualenv_tools.rollback"](two.root, test=True)
    assert looked["schema"] == {"old": "shop 0002_price", "new": "shop 0001_initial"}
    done = call["virtualenv_tools.rollback"](two.root, reason="slow", migrate=False)
    assert "schema" not in done
    lines = call["virtualenv_tools.history"](two.root)
    assert any(
        "migrated B (schema django default, before shop 0001_initial" in one for one in lines
    )
    options = {"settings": "project.settings", "env": two.env}
    back = call["virtualenv_tools.migrate"](two.path("A"), **options)
    assert (back["changed"], back["undone"]) == (False, [])  # the schema was to stay
    assert two.columns("shop_item") == {"id", "price"}


# --- PostgreSQL -----------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """A PostgreSQL of our own: the directory of its socket, and its port."""
    with postgres.running() as server:
        yield f"{server.directory} {server.port}"


@pytest.mark.slow
def test_django_with_postgresql(site: Migrated, server: str) -> None:
    """A migration that fails leaves nothing of itself; back by the newer code."""
    site.env.update(SERVER=server, PGPASSWORD="geheim")
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": {**THIRD, "0004_broken": column("item", "x") + broken()}})
    site.django("C", {"shop": {**THIRD, "0004_fine": column("item", "fine")}})
    site.deploy("A")
    with pytest.raises(CannotMigrate, match="the schema is at shop 0003_colour now"):
        site.migrate("B")
    assert site.deploy("C").applied == ["shop.0004_fine"]
    assert site.migrate("C").changed is False
    looked = rollback(site.root, dry_run=True)
    assert looked.schema == {"old": "shop 0004_fine", "new": "shop 0001_initial"}
    assert rollback(site.root).schema == looked.schema
    assert site.migrate("A").changed is False
    with pytest.raises(CannotMigrate, match=r"(?i)connection") as found:
        site.migrate("A", env={**site.env, "SERVER": "/nonexistent 1"})
    assert one_sentence(found.value)


@pytest.mark.slow
def test_alembic_with_postgresql(site: Migrated, server: str) -> None:
    site.env.update(SERVER=server)
    one = {"a1": ITEM, "b2": add("price", "a1")}
    site.alembic("A", {"a1": ITEM})
    site.alembic("B", one)
    site.alembic("C", {**one, "c3": ("b2", NOTHING, "raise NotImplementedError")})
    for name, new in (("A", "a1"), ("B", "b2"), ("C", "c3")):
        assert site.deploy(name, "alembic").new == new
        assert site.migrate(name, "alembic").changed is False
    with pytest.raises(CannotMigrate, match="c3 is irreversible"):
        rollback(site.root)
    rollback(site.root, migrate=False)
    assert site.current() == "B"


@pytest.mark.slow
def test_killed_with_postgresql(site: Migrated, server: str) -> None:
    """Its transaction is undone by the server, and the same call goes on."""
    site.env.update(SERVER=server)
    site.django("A", {"shop": FIRST})
    site.django("B", {"shop": {**SECOND, "0003_slow": column("item", "y") + slow(site)}})
    site.deploy("A")
    os.kill(killed(site, "migrate", site.path("B")), signal.SIGKILL)
    Path(site.database).with_name("go").touch()
    done = site.deploy("B")
    assert (done.old, done.new) == ("shop 0001_initial", "shop 0003_slow")
    assert rollback(site.root).schema == {"old": "shop 0003_slow", "new": "shop 0001_initial"}
