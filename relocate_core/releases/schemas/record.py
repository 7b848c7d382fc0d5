"""What is known of the schemas of a root: which version each release ran with, and its recipe.

It stands in a file of its own, for the releases' owner alone: a recipe may hold passwords. What
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
from .recipe import Recipe

NAME = "schemas.json"
_FORMAT = 1


@dataclass(frozen=True)
class Ran:
    """What a release ran with.

    Attributes:
        version: what the schema was at; None where it was not brought up to its end.
        place: the database that it was in.
        number: counts the releases in the order in which they came to be known.
        recipe: how its code reads and changes the schema; None where it never was asked.
    """

    version: Any
    place: str
    number: int
    recipe: Recipe | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Begun:
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
class Known:
    """What is known of one schema.

    Attributes:
        releases: what each release ran with, by name.
        top: the release whose code knows all that is applied; "" before the first migration.
        begun: the migration that was begun, and did not come to its end.
    """

    releases: dict[str, Ran] = field(default_factory=dict)
    top: str = ""
    begun: Begun | None = None

    def note(self, name: str, version: Any, place: str, recipe: Recipe | None) -> None:
        """Note what a release runs with."""
        last = max((one.number for one in self.releases.values()), default=0)
        number = self.releases[name].number if name in self.releases else last + 1
        self.releases[name] = Ran(version, place, number, recipe)

    def version(self, name: str) -> Any:
        """What the schema was at when a release ran; None where that is not known."""
        return self.releases[name].version if name in self.releases else None

    def recipe(self, name: str) -> Recipe | None:
        """How a release's code reads and changes the schema; None where that is not known."""
        return self.releases[name].recipe if name in self.releases else None


Book = dict[str, Known]
"""What is known of each schema of a root, the one that was changed last at the end."""


def read(root: Root) -> Book:
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
            f"{path} is damaged: put it back from a backup, or move it away, and no rollback takes "
            "a schema down before the next migration"
        ) from error


def write(root: Root, book: Book) -> None:
    """Keep what is known, of the releases that are still there."""
    there = set(root.names())
    facts = {schema: _facts(known, there) for schema, known in book.items()}
    root.keep(NAME, json.dumps({"format": _FORMAT, "schemas": facts}).encode())


def _known(facts: dict[str, Any]) -> Known:
    releases = {}
    for name, ran in facts["releases"].items():
        recipe = None if ran["recipe"] is None else Recipe.kept(ran["recipe"])
        releases[name] = Ran(**{**ran, "recipe": recipe})
    begun = facts["begun"]
    return Known(releases, facts["top"], None if begun is None else Begun(**begun))


def _facts(known: Known, there: Iterable[str]) -> dict[str, Any]:
    releases = {name: asdict(ran) for name, ran in known.releases.items() if name in there}
    begun = None if known.begun is None else asdict(known.begun)
    return {"releases": releases, "top": known.top, "begun": begun}
