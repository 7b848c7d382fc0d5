"""What is known of the schemas of a root: which version each release ran with, and its recipe.

It is in a file of its own, for the user alone who deploys: a recipe may hold passwords. What
everybody may read of it is in the history.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import CannotMigrate, TreeError
from ..root import Root
from ..store import Store
from .recipe import Recipe

NAME = "schemas.json"
_FORMAT = 1


@dataclass(frozen=True)
class ReleaseSchema:
    """What a release ran with.

    Attributes:
        version: what the schema was at; None where its migration did not end.
        place: the database that it was in.
        number: counts the releases in the order in which they came to be known.
        recipe: how its code reads and changes the schema; None where it was never used.
    """

    version: Any
    place: str
    number: int
    recipe: Recipe | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Attempt:
    """A migration that has not come to its end yet.

    Attributes:
        release: whose.
        before: what the schema was at when the first attempt began.
        since: when that was.
    """

    release: str
    before: Any
    since: str


@dataclass
class SchemaState:
    """What is known of one schema.

    Attributes:
        releases: what each release ran with, by name.
        top: the release whose code knows all that is applied; "" before the first migration.
        begun: the migration that was begun, and did not come to its end.
        host: the one minion that migrates it for all that use the database; "" where this machine
            alone does.
    """

    releases: dict[str, ReleaseSchema] = field(default_factory=dict)
    top: str = ""
    begun: Attempt | None = None
    host: str = ""

    def note(self, name: str, version: Any, place: str, recipe: Recipe | None) -> None:
        """Note what a release runs with."""
        last = max((one.number for one in self.releases.values()), default=0)
        number = self.releases[name].number if name in self.releases else last + 1
        self.releases[name] = ReleaseSchema(version, place, number, recipe)

    def version(self, name: str) -> Any:
        """What the schema was at when a release ran; None where that is not known."""
        return self.releases[name].version if name in self.releases else None

    def recipe(self, name: str) -> Recipe | None:
        """How a release's code reads and changes the schema; None where that is not known."""
        return self.releases[name].recipe if name in self.releases else None


SchemaStates = dict[str, SchemaState]
"""What is known of each schema of a root, the one that was changed last at the end."""


def read(root: Root) -> SchemaStates:
    """What is known of the schemas of a root; nothing where none was ever migrated.

    Raises:
        CannotMigrate: the record is damaged.
    """
    path = os.path.join(root.records, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        if known["format"] != _FORMAT:
            raise ValueError(known["format"])
        return {schema: _known(facts) for schema, facts in known["schemas"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise TreeError.of(path, error, "read") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CannotMigrate(
            f"{path} is damaged: put it back from a backup, or move it away, and no rollback "
            "migrates a schema down before the next migration"
        ) from error


def write(store: Store, states: SchemaStates) -> None:
    """Write what is known, of the releases that still exist."""
    there = set(store.root.names())
    facts = {schema: _facts(known, there) for schema, known in states.items()}
    store.write_private(NAME, json.dumps({"format": _FORMAT, "schemas": facts}).encode())


def _known(facts: dict[str, Any]) -> SchemaState:
    releases = {}
    for name, ran in facts["releases"].items():
        recipe = None if ran["recipe"] is None else Recipe.kept(ran["recipe"])
        releases[name] = ReleaseSchema(**{**ran, "recipe": recipe})
    begun = facts["begun"]
    attempt = None if begun is None else Attempt(**begun)
    return SchemaState(releases, facts["top"], attempt, facts.get("host", ""))


def _facts(known: SchemaState, there: Iterable[str]) -> dict[str, Any]:
    releases = {name: asdict(ran) for name, ran in known.releases.items() if name in there}
    begun = None if known.begun is None else asdict(known.begun)
    return {"releases": releases, "top": known.top, "begun": begun, "host": known.host}
