"""Bringing a schema up to what a release needs, and down again when that release is left.

A schema goes up by the code of the release that needs it, before that is activated, and down by the
code that took it up, as no older code knows of what was applied since. What it was at is written
down before anything is changed, so that a kill in the middle loses nothing: the same call goes on.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field

from ...errors import CannotMigrate
from ...progress import Report, Tell, silent
from ...system import locks
from .. import history
from ..root import WAIT, Root, name_of
from . import record
from .recipe import Recipe
from .record import Begun, Book, Known
from .schema import Schema, Version, Way, schema_of, told

LOCK = "migrating"


@dataclass
class Migration(Report):
    """What became of a schema, or in a dry run would.

    Attributes:
        path: the release that it was migrated for.
        schema: which schema: the kind of the migration, and in which of several databases.
        changed: whether it was (in a dry run: would be) changed.
        old: what it was at, in a few words.
        new: what it is at now; None where only doing it would tell.
        applied: the names of the migrations that were applied, where they are known.
        undone: those that were undone, by the code of a newer release.
        dry_run: whether it was only looked at.
    """

    path: str
    schema: str
    changed: bool = False
    old: str | None = None
    new: str | None = None
    applied: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    dry_run: bool = False


def migrate(
    path: str,
    recipe: Recipe,
    *,
    job: str = "",
    dry_run: bool = False,
    tell: Tell = silent,
    wait: float = WAIT,
) -> Migration:
    """Bring the schema to what a release needs: up, or down where it ran with an earlier version.

    Args:
        path: the release.
        recipe: how its code reads and changes the schema.
        job: what this is done for, Salt's job id for one.
        dry_run: look, and change nothing.
        tell: called before and after anything is changed.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. Nothing is done where the schema is what the release needs.

    Raises:
        NotARelease: there is no complete release.
        MarkedBad: the release was found bad before.
        CannotMigrate: the schema cannot be read or changed; tells where it stands.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    root.require_good(name)
    work = _Work(root, name, recipe, tell)
    work.look()
    if not dry_run and not work.is_over():
        with root.locked(f"migrating {name}", wait), root.only_program(LOCK, wait) as lock:
            root.require_good(name)
            work = _Work(root, name, recipe, tell, lock)
            work.look()
            work.do()
    work.done.dry_run = dry_run
    return work.done


# --- for a release --------------------------------------------------------------------------------


class _Work:
    """Migrating for one release: looking what there is to do, and doing it."""

    def __init__(
        self, root: Root, name: str, recipe: Recipe, tell: Tell, lock: int | None = None
    ) -> None:
        self.root = root
        self.name = name
        self.recipe = recipe
        self.tell = tell
        self.lock = lock
        self.book = record.read(root)
        self.known = self.book.get(recipe.schema, Known())
        self.earlier = copy.deepcopy(self.known)
        self.schema = schema_of(os.path.join(root.path, name), recipe, lock)
        self.back: Descent | None = None
        self.done = Migration(os.path.join(root.path, name), recipe.schema)

    def look(self) -> None:
        """See what the schema is at, and what has to be done."""
        self.seen = self.schema.read()
        if self._is_too_high():
            self.back = descent(
                self.root, self.recipe.schema, self.known, self.name, None, lock=self.lock
            )
        self._expect()

    def is_over(self) -> bool:
        """Whether there is nothing to do, and nothing to write down."""
        known, ran = self.known, self.known.releases.get(self.name)
        return not (
            self.done.changed
            or known.begun is not None
            or ran is None
            or (ran.version, ran.place, ran.recipe)
            != (self.seen.version, self.seen.place, self.recipe)
            or known.top != self._top(False)
        )

    def do(self) -> None:
        """Do it: down by the newer code, up by the release's own, and write it down."""
        if self.back is not None:
            self.back.go(self.root, self.book, self.name, self.tell)
            self.seen = self.schema.read()
        begun, before = self.known.begun, self.seen.version
        up = self._has_to_go_up()
        if up:
            begun = self._begin()
            self._go_up(begun)
        if begun is not None and (up or begun.release == self.name):
            before = begun.before
        if before != self.seen.version:
            self._tell_history(before, begun)
        self._keep(up)
        old = before if self.back is None else self.back.way.seen.version
        self._describe(old, self.seen.version)

    def _is_too_high(self) -> bool:
        """Whether the schema has what only the code of a newer release knows of.

        That is so where this one ran before, with an earlier version.
        """
        known, wanted = self.known, self.known.version(self.name)
        if wanted is None or known.top in ("", self.name) or wanted == self.seen.version:
            return False
        if self.recipe.kind == "commands":
            numbers = {name: ran.number for name, ran in known.releases.items()}
            return numbers[self.name] < numbers.get(known.top, 0)
        return bool(set(self.seen.unknown).difference(_names(wanted)))

    def _has_to_go_up(self) -> bool:
        if self.recipe.kind == "commands":  # only trying tells
            begun = self.known.begun is not None
            return begun or self.known.version(self.name) != self.seen.version
        return bool(self.seen.pending)

    def _expect(self) -> None:
        """Say what would be done."""
        now = self.seen.version
        self.done.changed = self._has_to_go_up() or self.back is not None
        if self.back is not None:
            self.done.undone = list(self.back.way.undone)
            self._describe(self.back.way.seen.version, self.back.wanted)
        elif self.done.changed:
            self.done.applied = list(self.seen.pending)
            then = self.schema.with_all(self.seen)
            self._describe(now, then)
        else:
            self._describe(now, now)

    def _describe(self, old: Version, new: Version | None) -> None:
        self.done.old = told(self.recipe, old, old if new is None else new)
        self.done.new = None if new is None else told(self.recipe, new, old)
        if new is not None:
            self.done.changed = old != new

    def _begin(self) -> Begun:
        """Write down what the schema is at, before anything is changed."""
        known, seen = self.known, self.seen
        if known.begun is None or known.begun.release != self.name:
            before = seen.version if known.begun is None else known.begun.before
            known.begun = Begun(self.name, before, locks.now())
        for name in _were_active(self.root):
            if name not in known.releases and name != self.name:
                known.note(name, known.begun.before, seen.place, None)
        # Without a version, as it has none before all is applied.
        known.note(self.name, known.version(self.name), seen.place, self.recipe)
        known.top = self.name
        self._write()
        return known.begun

    def _go_up(self, begun: Begun) -> None:
        self.tell("migrating", {"release": self.name, "migrations": len(self.seen.pending) or None})
        try:
            seen = self.schema.up()
            if seen.pending:
                raise CannotMigrate(
                    f"cannot migrate with {self.done.path}: {seen.pending[0]} is still to be "
                    "applied after that"
                )
        except CannotMigrate as error:
            now = _now(self.schema)
            if now == self.seen.version:  # nothing was begun then
                self.known = self.earlier
                self._write()
            stands = _stands(self.root, self.schema.recipe, begun.before, now, self.name, error)
            raise CannotMigrate(f"{error}; {stands}: fix it, and run again") from None
        self.done.applied = [one for one in self.seen.pending if one not in seen.pending]
        self.seen = seen

    def _tell_history(self, before: Version, begun: Begun | None) -> None:
        """Write the migration to the history, unless a killed run has."""
        facts = {
            "schema": self.recipe.schema,
            "before": told(self.recipe, before, self.seen.version),
            "after": told(self.recipe, self.seen.version, before),
        }
        same = {"event": history.MIGRATED, "release": self.name, **facts}.items()
        for event in self.root.events():
            if begun is not None and event["time"] >= begun.since and same <= event.items():
                return
        self.root.note(history.MIGRATED, self.name, **facts)
        self.tell("migrated", {"release": self.name, **facts})

    def _keep(self, up: bool) -> None:
        known = self.known
        known.top = self._top(up or self.back is not None)
        known.note(self.name, self.seen.version, self.seen.place, self.recipe)
        if known.top == self.name:
            known.begun = None
        self._write()

    def _top(self, changed: bool) -> str:
        """Whose code knows all that is applied now.

        That is still another release's where this one has added nothing, and knows less.
        """
        known = self.known
        if changed or not self.seen.unknown or self.recipe.kind == "commands":
            return self.name
        same = known.begun is not None or known.version(known.top) == self.seen.version
        return known.top if known.top and same else self.name

    def _write(self) -> None:
        self.book.pop(self.recipe.schema, None)
        self.book[self.recipe.schema] = self.known
        record.write(self.root, self.book)


def _names(version: Version) -> set[str]:
    """The migrations of a version, as `Seen.unknown` calls them."""
    if isinstance(version, dict):
        return {f"{app}.{name}" for app, names in version.items() for name in names}
    return set(version)


def _were_active(root: Root) -> set[str]:
    """The releases that any link pointed to, now or before."""
    return {name for names in root.standing().activations.values() for name in names}


def _now(schema: Schema) -> Version | None:
    """What a schema is at after a migration failed; None where it cannot be read."""
    try:
        return schema.read().version
    except CannotMigrate:
        return None


def _stands(
    root: Root,
    recipe: Recipe,
    before: Version,
    now: Version | None,
    name: str,
    error: CannotMigrate,
) -> str:
    """Write down that a migration failed; where the schema stands now, in words."""
    after = None if now is None else told(recipe, now, before)
    facts = {
        "schema": recipe.schema,
        "before": told(recipe, before, before if now is None else now),
        "after": after,
    }
    root.note(history.MIGRATION_FAILED, name, **facts, reason=str(error))
    if now is None:
        return "nothing tells where the schema stands now"
    return "the schema is as it was before" if now == before else f"the schema is at {after} now"


# --- down -----------------------------------------------------------------------------------------


@dataclass
class Descent:
    """A schema that can be taken down to what a release ran with.

    Attributes:
        schema: as the code knows it that takes it down.
        known: what is known of it.
        upper: the release of that code.
        wanted: the version to come down to.
        way: how.
    """

    schema: Schema
    known: Known
    upper: str
    wanted: Version
    way: Way

    def told(self) -> tuple[str, str]:
        """What the schema is at, and what it comes to, in a few words."""
        recipe, now = self.schema.recipe, self.way.seen.version
        return told(recipe, now, self.wanted), told(recipe, self.wanted, now)

    def go(self, root: Root, book: Book, to: str, tell: Tell) -> None:
        """Take it down for the release `to`, and write it down."""
        recipe, known = self.schema.recipe, self.known
        before = known.version(self.upper) or self.way.seen.version
        if self.way.undone:
            tell("migrating back", {"release": to, "migrations": len(self.way.undone)})
            try:
                self.schema.down(self.wanted)
            except CannotMigrate as error:
                was, now = self.way.seen.version, _now(self.schema)
                stands = _stands(root, recipe, was, now, self.upper, error)
                raise CannotMigrate(
                    f"{error}; {stands}, and no link was changed: fix it, and run again"
                ) from None
            before = self.way.seen.version
        if before != self.wanted:
            facts = {
                "schema": recipe.schema,
                "before": told(recipe, before, self.wanted),
                "after": told(recipe, self.wanted, before),
            }
            root.note(history.MIGRATED_BACK, to, previous=self.upper, **facts)
            tell("migrated back", {"release": to, "previous": self.upper, **facts})
        known.top, known.begun = to, None
        book.pop(recipe.schema, None)
        book[recipe.schema] = known
        record.write(root, book)


def descent(
    root: Root, schema: str, known: Known, to: str, leaving: str | None, *, lock: int | None = None
) -> Descent | None:
    """How a schema comes down to what a release ran with; None where it is there.

    Args:
        root: the root.
        schema: which schema.
        known: what is known of it.
        to: the release.
        leaving: the active one, whose code is taken where the one that migrated last is gone.
        lock: a descriptor for the programs to inherit.

    Raises:
        CannotMigrate: it cannot come down; nothing was changed.
    """
    wanted = known.version(to)
    if wanted is None or (known.begun is None and known.version(known.top) == wanted):
        return None
    trying = f"cannot take the {schema} schema of {root.path} down to what {to} ran with"
    found = _upper(root, known, leaving)
    if found is None:
        raise CannotMigrate(
            f"{trying}: the release {known.top}, whose code has migrated it, is gone; nothing was "
            "changed: deploy that one again, or roll back with migrate=False"
        )
    upper, recipe = found
    code = schema_of(os.path.join(root.path, upper), recipe, lock)
    way = code.way(wanted)
    obstacle = way.obstacle
    if known.releases[to].place != way.seen.place:
        obstacle = f"that was another database, and {upper} uses {way.seen.place or 'none'}"
    elif way.lacking:
        obstacle = f"{way.lacking[0]}, which that needs, is not applied"
    if obstacle is not None:
        raise CannotMigrate(
            f"{trying}: {obstacle}; nothing was changed: fix that in a new release, or roll back "
            "with migrate=False, which leaves the schema as it is"
        )
    return Descent(code, known, upper, wanted, way)


def _upper(root: Root, known: Known, leaving: str | None) -> tuple[str, Recipe] | None:
    """The release whose code takes a schema down, and how."""
    for name in (known.top, leaving):
        recipe = known.recipe(name) if name else None
        if name and recipe is not None and root.record(name) is not None:
            return name, recipe
    return None


@dataclass
class TakingDown:
    """All schemas of a root, on their way to what a release ran with.

    Attributes:
        to: the release.
        book: what is known of the schemas.
        descents: of those that are elsewhere.
    """

    to: str
    book: Book
    descents: list[Descent]

    @classmethod
    def look(cls, root: Root, to: str, leaving: str | None, lock: int | None = None) -> TakingDown:
        """See how they can be taken down.

        Raises:
            CannotMigrate: one of them cannot; nothing was changed.
        """
        book = record.read(root)
        found = [
            descent(root, schema, known, to, leaving, lock=lock)
            for schema, known in reversed(list(book.items()))
        ]
        return cls(to, book, [one for one in found if one is not None])

    def go(self, root: Root, tell: Tell) -> None:
        """Take them down, the one that was migrated last first."""
        for one in self.descents:
            one.go(root, self.book, self.to, tell)

    def told(self) -> dict[str, str] | None:
        """What they are at, and what they come to, in a few words; None where nothing is done."""
        pairs = [one.told() for one in self.descents if one.way.undone]
        if not pairs:
            return None
        olds, news = zip(*pairs)
        return {"old": "; ".join(olds), "new": "; ".join(news)}


def leave_as_it_is(root: Root, to: str) -> None:
    """Write down that a release is to run with the schemas as they are.

    Otherwise the next highstate would take them down for it, or fail as they cannot be.
    """
    try:
        book = record.read(root)
    except CannotMigrate:  # damaged: the rollback goes on, as it is to leave the schema alone
        return
    for known in book.values():
        ran = known.releases.get(known.top)
        if ran is not None and ran.version is not None and known.begun is None:
            known.note(to, ran.version, ran.place, known.recipe(to))
    if book:
        record.write(root, book)
