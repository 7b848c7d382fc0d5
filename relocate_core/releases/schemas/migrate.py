"""Migrating a schema to what a release needs: up, or down where a newer release migrated it.

A schema is migrated up by the code of the release that needs it, before that is activated. What it
was at is recorded before anything is changed, so that a kill in the middle loses nothing: the same
call resumes.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field

from ...errors import CannotMigrate
from ...progress import Notify, Report, silent
from ...system import locks
from ...system.addresses import is_elsewhere
from .. import history
from ..root import WAIT, Root, name_of
from ..store import Store, locked
from . import record
from .downgrade import LOCK, Downgrade, current_version, note_failure, plan_downgrade
from .recipe import Recipe
from .record import Attempt, SchemaState
from .schema import Version, schema_of, summary


@dataclass
class Migration(Report):
    """What became of a schema, or in a dry run would.

    Attributes:
        path: the release that it was migrated for.
        schema: which schema: the kind of the migration, and in which of several databases.
        changed: whether it was (in a dry run: would be) changed.
        old: what it was at, in a few words.
        new: what it is at now; None where that is known only afterwards.
        applied: the names of the migrations that were applied, where they are known.
        undone: those that were undone, by the code of a newer release.
        dry_run: whether it was only looked at.
        host: who alone migrates it; "" where each machine has a database of its own.
        left: whether it is newer than what the release ran with, and was left so.
        lacking: what the schema lacks that the release needs, where another one migrates it.
    """

    path: str
    schema: str
    changed: bool = False
    old: str | None = None
    new: str | None = None
    applied: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    dry_run: bool = False
    host: str = ""
    left: bool = False
    lacking: list[str] = field(default_factory=list)


def migrate(
    path: str,
    recipe: Recipe,
    *,
    host: str = "",
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Migration:
    """Migrate the schema to what a release needs: up, or down where it ran with an older version.

    Args:
        path: the release.
        recipe: how its code reads and changes the schema.
        host: who this machine is, where it migrates the schema for all that use the database. The
            schema never goes down then: another one may need it as it is.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called before and after anything is changed.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. Nothing is done where the schema is what the release needs.

    Raises:
        NotARelease: there is no complete release.
        MarkedBad: the release was found bad before.
        CannotMigrate: the schema cannot be read or changed; the message says what it is at. Or the
            database is on another machine, and no host is given.
    """
    require_shareable(recipe, host)
    directory, name = name_of(path)
    root = Root(directory, job)
    root.require_good(name)
    planned = _Plan(root, name, recipe, host)
    if not dry_run and not planned.is_over():
        with (
            locked(root, f"migrating {name}", wait) as store,
            store.program_lock(LOCK, wait) as lock,
        ):
            root.require_good(name)
            planned = _Plan(root, name, recipe, host, lock)
            _Run(store, planned, notify).run()
    planned.done.dry_run = dry_run
    return planned.done


def require_shareable(recipe: Recipe, host: str) -> None:
    """Refuse a schema with a host of which the other machines could not know what it is at.

    Raises:
        CannotMigrate: the recipe lacks a command for that.
    """
    if host and recipe.kind == "commands" and recipe.check is None:
        raise CannotMigrate(
            "check is missing: with a host, the other minions need a command that succeeds where "
            "the schema has all that the release needs"
        )


class _Plan:
    """What there is to do for one release."""

    def __init__(
        self, root: Root, name: str, recipe: Recipe, host: str, lock: int | None = None
    ) -> None:
        self.root = root
        self.name = name
        self.recipe = recipe
        self.host = host
        self.states = record.read(root)
        self.known = self.states.get(recipe.schema, SchemaState())
        self.schema = schema_of(os.path.join(root.path, name), recipe, lock)
        self.done = Migration(os.path.join(root.path, name), recipe.schema, host=host)
        self.status = self.schema.read()
        self._require_own()
        self.downgrade: Downgrade | None = None
        if self._is_too_new() and host:
            self.done.left = recipe.kind != "django" or not self.status.pending
        elif self._is_too_new():
            self.downgrade = plan_downgrade(root, recipe.schema, self.known, name, None, lock=lock)
        self._expect()

    def is_over(self) -> bool:
        """Whether there is nothing to do, and nothing to record."""
        known, ran = self.known, self.known.releases.get(self.name)
        if self.done.left:
            return known.host == self.host
        return not (
            self.done.changed
            or known.host != self.host
            or known.begun is not None
            or ran is None
            or (ran.version, ran.place, ran.recipe)
            != (self.status.version, self.status.place, self.recipe)
            or known.top != self.top(False)
        )

    def has_to_go_up(self) -> bool:
        """Whether migrations are to be applied."""
        if self.done.left:
            return False
        if self.recipe.kind == "commands":  # only running them shows it
            begun = self.known.begun is not None
            return begun or self.known.version(self.name) != self.status.version
        return bool(self.status.pending)

    def top(self, changed: bool) -> str:
        """Whose code knows all that is applied now.

        That is still another release's where this one has added nothing, and knows less.
        """
        known = self.known
        if changed or not self.status.unknown or self.recipe.kind == "commands":
            return self.name
        same = known.begun is not None or known.version(known.top) == self.status.version
        return known.top if known.top and same else self.name

    def describe(self, old: Version, new: Version | None) -> None:
        """Put both versions into the answer."""
        self.done.old = summary(self.recipe, old, old if new is None else new)
        self.done.new = None if new is None else summary(self.recipe, new, old)
        if new is not None:
            self.done.changed = old != new

    def _require_own(self) -> None:
        """Refuse a database that other machines may use as well, unless a host is given."""
        server = self.status.server
        if not self.host and is_elsewhere(server):
            raise CannotMigrate(
                f"the database of {self.done.path} is on another machine, {server}: set `host` to "
                "the ID of the one minion that migrates its schema, on all minions that use it; "
                "nothing was changed"
            )

    def _is_too_new(self) -> bool:
        """Whether the schema has what only the code of a newer release knows.

        That is so where this one ran before, with an older version.
        """
        known, wanted = self.known, self.known.version(self.name)
        if wanted is None or known.top in ("", self.name) or wanted == self.status.version:
            return False
        if self.recipe.kind == "commands":
            numbers = {name: ran.number for name, ran in known.releases.items()}
            return numbers[self.name] < numbers.get(known.top, 0)
        return bool(set(self.status.unknown).difference(_names(wanted)))

    def _expect(self) -> None:
        """Put what would be done into the answer."""
        now = self.status.version
        self.done.changed = self.has_to_go_up() or self.downgrade is not None
        if self.downgrade is not None:
            self.done.undone = list(self.downgrade.plan.undone)
            self.describe(self.downgrade.plan.status.version, self.downgrade.wanted)
        elif self.done.changed:
            self.done.applied = list(self.status.pending)
            self.describe(now, self.schema.with_all(self.status))
        else:
            self.describe(now, now)


class _Run:
    """Carrying a plan out: down by the newer code, up by the release's own."""

    def __init__(self, store: Store, plan: _Plan, notify: Notify) -> None:
        self.store = store
        self.plan = plan
        self.notify = notify
        self.unchanged = copy.deepcopy(plan.known)

    def run(self) -> None:
        """Do it, and record it."""
        plan, downgrade = self.plan, self.plan.downgrade
        plan.known.host = plan.host
        if plan.done.left:
            self._write()
            return
        if downgrade is not None:
            downgrade.run(self.store, plan.states, plan.name, self.notify)
            plan.status = plan.schema.read()
        begun, before = plan.known.begun, plan.status.version
        up = plan.has_to_go_up()
        if up:
            begun = self._begin()
            self._go_up(begun)
        if begun is not None and (up or begun.release == plan.name):
            before = begun.before
        if before != plan.status.version:
            self._note(before, begun)
        self._keep(up)
        old = before if downgrade is None else downgrade.plan.status.version
        plan.describe(old, plan.status.version)

    def _begin(self) -> Attempt:
        """Record what the schema is at, before anything is changed."""
        name, known, status = self.plan.name, self.plan.known, self.plan.status
        if known.begun is None or known.begun.release != name:
            before = status.version if known.begun is None else known.begun.before
            known.begun = Attempt(name, before, locks.now())
        for other in _were_active(self.plan.root):
            if other not in known.releases and other != name:
                known.note(other, known.begun.before, status.place, None)
        # Without a version, as it has none before all is applied.
        known.note(name, known.version(name), status.place, self.plan.recipe)
        known.top = name
        self._write()
        return known.begun

    def _go_up(self, begun: Attempt) -> None:
        plan, old = self.plan, self.plan.status
        self.notify("migrating", {"release": plan.name, "migrations": len(old.pending) or None})
        try:
            new = plan.schema.up()
            if new.pending:
                raise CannotMigrate(
                    f"cannot migrate with {plan.done.path}: {new.pending[0]} is still to be "
                    "applied after that"
                )
        except CannotMigrate as error:
            now = current_version(plan.schema)
            if now == old.version:  # nothing was begun then
                plan.known = self.unchanged
                self._write()
            left_at = note_failure(self.store, plan.recipe, begun.before, now, plan.name, error)
            raise CannotMigrate(f"{error}; {left_at}: fix it, and run again") from None
        plan.done.applied = [one for one in old.pending if one not in new.pending]
        plan.status = new

    def _note(self, before: Version, begun: Attempt | None) -> None:
        """Write the migration to the history, unless a killed run has."""
        plan = self.plan
        facts = {
            "schema": plan.recipe.schema,
            "before": summary(plan.recipe, before, plan.status.version),
            "after": summary(plan.recipe, plan.status.version, before),
        }
        same = {"event": history.MIGRATED, "release": plan.name, **facts}.items()
        for event in plan.root.events():
            if begun is not None and event["time"] >= begun.since and same <= event.items():
                return
        self.store.note(history.MIGRATED, plan.name, **facts)
        self.notify("migrated", {"release": plan.name, **facts})

    def _keep(self, up: bool) -> None:
        plan, known = self.plan, self.plan.known
        known.top = plan.top(up or plan.downgrade is not None)
        known.note(plan.name, plan.status.version, plan.status.place, plan.recipe)
        if known.top == plan.name:
            known.begun = None
        self._write()

    def _write(self) -> None:
        plan = self.plan
        plan.states.pop(plan.recipe.schema, None)
        plan.states[plan.recipe.schema] = plan.known
        record.write(self.store, plan.states)


def _names(version: Version) -> set[str]:
    """The migrations of a version, as `Status.unknown` calls them."""
    if isinstance(version, dict):
        return {f"{app}.{name}" for app, names in version.items() for name in names}
    return set(version)


def _were_active(root: Root) -> set[str]:
    """The releases that any link pointed to, now or before."""
    return {name for names in root.standing().activations.values() for name in names}
