"""Migrating the schemas of a root down to what a release ran with.

The code that migrated a schema up migrates it down, as no older code knows what was applied since.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...errors import CannotMigrate
from ...progress import Notify
from ...system.addresses import is_elsewhere
from .. import history
from ..root import Root
from ..store import Store
from . import record
from .recipe import Recipe
from .record import SchemaState, SchemaStates
from .schema import DownPlan, Schema, Version, schema_of, summary

LOCK = "migrating"


@dataclass
class Downgrade:
    """A schema that can be migrated down to what a release ran with.

    Attributes:
        schema: as the code knows it that migrates it down.
        known: what is known of it.
        newer: the release of that code.
        wanted: the version to come down to.
        plan: how.
    """

    schema: Schema
    known: SchemaState
    newer: str
    wanted: Version
    plan: DownPlan

    def described(self) -> tuple[str, str]:
        """What the schema is at, and what it comes to, in a few words."""
        recipe, now = self.schema.recipe, self.plan.status.version
        return summary(recipe, now, self.wanted), summary(recipe, self.wanted, now)

    def run(self, store: Store, states: SchemaStates, to: str, notify: Notify) -> None:
        """Migrate it down for the release `to`, and write that to the record."""
        recipe, known = self.schema.recipe, self.known
        before = known.version(self.newer) or self.plan.status.version
        if self.plan.undone:
            notify("migrating back", {"release": to, "migrations": len(self.plan.undone)})
            try:
                self.schema.down(self.wanted)
            except CannotMigrate as error:
                was, now = self.plan.status.version, current_version(self.schema)
                left_at = note_failure(store, recipe, was, now, self.newer, error)
                raise CannotMigrate(
                    f"{error}; {left_at}, and no symlink was changed: fix it, and run again"
                ) from None
            before = self.plan.status.version
        if before != self.wanted:
            facts = {
                "schema": recipe.schema,
                "before": summary(recipe, before, self.wanted),
                "after": summary(recipe, self.wanted, before),
            }
            store.note(history.MIGRATED_BACK, to, previous=self.newer, **facts)
            notify("migrated back", {"release": to, "previous": self.newer, **facts})
        known.top, known.begun = to, None
        states.pop(recipe.schema, None)
        states[recipe.schema] = known
        record.write(store, states)


def plan_downgrade(
    root: Root,
    schema: str,
    known: SchemaState,
    to: str,
    leaving: str | None,
    *,
    lock: int | None = None,
) -> Downgrade | None:
    """How a schema is migrated down to what a release ran with; None where it is there.

    Args:
        root: the root.
        schema: which schema.
        known: what is known of it.
        to: the release.
        leaving: the active one, whose code is taken where the one that migrated last is gone.
        lock: a descriptor for the programs to inherit.

    Raises:
        CannotMigrate: it cannot be migrated down; nothing was changed.
    """
    wanted = known.version(to)
    if wanted is None or (known.begun is None and known.version(known.top) == wanted):
        return None
    trying = f"cannot migrate the {schema} schema of {root.path} down to what {to} ran with"
    found = _newer_release(root, known, leaving)
    if found is None:
        raise CannotMigrate(
            f"{trying}: the release {known.top}, whose code has migrated it, is gone; nothing was "
            "changed: deploy that one again, or roll back with migrate=False"
        )
    newer, recipe = found
    code = schema_of(os.path.join(root.path, newer), recipe, lock)
    plan = code.plan_down(wanted)
    obstacle = plan.obstacle
    if known.releases[to].place != plan.status.place:
        obstacle = f"that was another database, and {newer} uses {plan.status.place or 'none'}"
    elif plan.lacking:
        obstacle = f"{plan.lacking[0]}, which that needs, is not applied"
    if obstacle is not None:
        raise CannotMigrate(
            f"{trying}: {obstacle}; nothing was changed: fix that in a new release, or roll back "
            "with migrate=False, which leaves the schema as it is"
        )
    return Downgrade(code, known, newer, wanted, plan)


def _newer_release(
    root: Root, known: SchemaState, leaving: str | None
) -> tuple[str, Recipe] | None:
    """The release whose code migrates a schema down, and how."""
    for name in (known.top, leaving):
        recipe = known.recipe(name) if name else None
        if name and recipe is not None and root.record(name) is not None:
            return name, recipe
    return None


@dataclass
class Downgrades:
    """The downgrades of all schemas of a root to what a release ran with.

    Attributes:
        to: the release.
        states: what is known of the schemas.
        downgrades: of those that are at another version.
        left: why schemas are left as they are, which other machines may need so.
    """

    to: str
    states: SchemaStates
    downgrades: list[Downgrade]
    left: list[str]

    @classmethod
    def plan(
        cls, root: Root, to: str, leaving: str | None, lock: int | None = None, host: str = ""
    ) -> Downgrades:
        """Find out how they can be migrated down.

        Args:
            root: the root.
            to: the release.
            leaving: the one that is active until then.
            lock: a descriptor for the programs to inherit.
            host: whose schemas: what one migrates for all is left alone by everybody else, and
                by that one's own rollback.

        Raises:
            CannotMigrate: one of them cannot; nothing was changed.
        """
        states = record.read(root)
        found = []
        left = [] if host else left_to_hosts(states, to, leaving)
        for schema, known in reversed(list(states.items())):
            if known.host != host:
                continue
            one = plan_downgrade(root, schema, known, to, leaving, lock=lock)
            server = "" if one is None else one.plan.status.server
            if not host and is_elsewhere(server):
                left.append(f"its database is on another machine, {server}")
            elif one is not None:
                found.append(one)
        return cls(to, states, found, left)

    def run(self, store: Store, notify: Notify) -> None:
        """Migrate them down, the one that was migrated last first."""
        for one in self.downgrades:
            one.run(store, self.states, self.to, notify)

    def described(self) -> dict[str, str] | None:
        """What they are at, and what they come to, in a few words; None where nothing is done."""
        pairs = [one.described() for one in self.downgrades if one.plan.undone]
        if not pairs:
            return None
        olds, news = zip(*pairs)
        return {"old": "; ".join(olds), "new": "; ".join(news)}


def left_to_hosts(states: SchemaStates, to: str, leaving: str | None) -> list[str]:
    """Why a rollback of this machine leaves schemas as they are, which may be too new for it."""
    return [
        f"{known.host} alone migrates it, for all that use its database"
        for known in states.values()
        if known.host and _may_differ(known, to, leaving)
    ]


def _may_differ(known: SchemaState, to: str, leaving: str | None) -> bool:
    """Whether the schema may be at another version than a release ran with."""
    wanted = known.version(to)
    return (
        wanted is None or known.begun is not None or wanted != known.version(leaving or known.top)
    )


def leave_as_it_is(store: Store, to: str, leaving: str | None) -> list[str]:
    """Note that a release should run with the schemas as they are; what hosts have to do with it.

    Otherwise the next highstate would migrate them down for it, or fail as they cannot be.
    """
    try:
        states = record.read(store.root)
    except CannotMigrate:  # damaged: the rollback goes on, as it is to leave the schema alone
        return []
    for known in states.values():
        if known.host:  # what all machines run with is not for one of them to say
            continue
        ran = known.releases.get(known.top)
        if ran is not None and ran.version is not None and known.begun is None:
            known.note(to, ran.version, ran.place, known.recipe(to))
    if states:
        record.write(store, states)
    return left_to_hosts(states, to, leaving)


def current_version(schema: Schema) -> Version | None:
    """What a schema is at after a migration failed; None where it cannot be read."""
    try:
        return schema.read().version
    except CannotMigrate:
        return None


def note_failure(
    store: Store,
    recipe: Recipe,
    before: Version,
    now: Version | None,
    name: str,
    error: CannotMigrate,
) -> str:
    """Write to the history that a migration failed; what the schema is at now, in words."""
    after = None if now is None else summary(recipe, now, before)
    facts = {
        "schema": recipe.schema,
        "before": summary(recipe, before, before if now is None else now),
        "after": after,
    }
    store.note(history.MIGRATION_FAILED, name, **facts, reason=str(error))
    if now is None:
        return "it is not known what the schema is at now"
    return "the schema is as it was before" if now == before else f"the schema is at {after} now"
