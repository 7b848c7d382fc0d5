"""How a release migrates its schema: with Django, with Alembic, or with commands of its own.

A recipe is kept with the release, so that a rollback needs no arguments. Its variables may hold
passwords: it is never printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import CannotMigrate

SECONDS = 600.0
KINDS = ("django", "alembic", "commands")
_OF_KIND = {
    "manage": "django",
    "settings": "django",
    "config": "alembic",
    "version": "commands",
    "up": "commands",
    "down": "commands",
    "check": "commands",
}
_DATABASE = "default"
_CONFIG = "alembic.ini"


@dataclass(frozen=True)
class Recipe:
    """How to read and change the schema that a release needs.

    Attributes:
        kind: one of KINDS.
        manage: of Django: how its manage.py is called, from the working directory.
        settings: of Django: the settings' module.
        database: of Django: the database's alias.
        config: of Alembic: its ini file, as seen from the working directory.
        version: of commands: prints the version that the schema is at.
        up: of commands: migrates the schema up to what the release needs.
        down: of commands: migrates it down to `{version}`; None where nothing can.
        check: of commands: succeeds where the schema has all that the release needs; None where
            only the one minion that migrates it has to know.
        owner: user and group to run all that as; None for the user who runs this.
        env: more variables for it.
        cwd: its working directory, in the release; "" is the release itself.
        timeout: how many seconds one program may take.
    """

    kind: str = "django"
    manage: str | None = None
    settings: str | None = None
    database: str = _DATABASE
    config: str = _CONFIG
    version: str | None = None
    up: str | None = None
    down: str | None = None
    check: str | None = None
    owner: tuple[int, int] | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    timeout: float = SECONDS

    @classmethod
    def of(cls, kind: str = "django", **options: Any) -> Recipe:
        """A recipe from what an operator wrote; what is None is left to its default.

        Raises:
            CannotMigrate: it makes no sense.
        """
        given = {key: value for key, value in options.items() if value is not None}
        _require(kind in KINDS, f"the kind of a migration is one of {', '.join(KINDS)}: {kind!r}")
        for key, owner in _OF_KIND.items():
            _require(
                key not in given or owner == kind,
                f"{key} belongs to a migration of the kind {owner}, and this one is of {kind}: "
                "leave it out",
            )
        for key in (*_OF_KIND, "database", "cwd"):
            value = given.get(key, "-")
            _require(
                isinstance(value, str) and bool(value.strip()) and "\0" not in value,
                f"{key} must be a text: {value!r}",
            )
        if kind == "commands":
            for key in ("version", "up"):
                _require(key in given, f"{key} is missing: a migration by commands needs it")
            _require(
                "down" not in given or "{version}" in given["down"],
                "down has no {version} in it: put it where the version to migrate down to belongs",
            )
        _require(
            "manage" not in given or "settings" not in given,
            "a migration by Django takes manage or settings, and not both: leave one of them out",
        )
        given["env"] = _variables(given.get("env", {}))
        given["cwd"] = _below(given.get("cwd", ""))
        given["timeout"] = _seconds(given.get("timeout", SECONDS))
        return cls(kind, **given)

    @classmethod
    def kept(cls, known: Mapping[str, Any]) -> Recipe:
        """A recipe as it was kept."""
        owner = known.get("owner")
        return cls(**{**known, "owner": tuple(owner) if owner else None})

    @property
    def schema(self) -> str:
        """Which of an application's schemas it is for: it may have one in each of its databases."""
        if self.kind == "django":
            return f"django {self.database}"
        if self.kind == "alembic":
            return f"alembic {os.path.normpath(os.path.join(self.cwd, self.config))}"
        return "commands"


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise CannotMigrate(words)


def _variables(env: Any) -> dict[str, str]:
    """Variables with their values as texts: YAML has numbers and truths as well."""
    _require(isinstance(env, Mapping), "env must be a dictionary of variables and their values")
    for name, value in env.items():
        _require(
            isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name) is not None,
            f"no variable can be called {name!r}: see to env",
        )
        _require(
            isinstance(value, (str, int, float)) and "\0" not in str(value),
            f"the value of the variable {name} in env must be a text",
        )
    return {name: str(value) for name, value in env.items()}


def _below(cwd: str) -> str:
    """A directory in the release."""
    path = os.path.normpath(cwd) if cwd else ""
    _require(
        not path.startswith(("/", "..")),
        f"cwd must be a directory in the release, named from there: {cwd}",
    )
    return "" if path == "." else path


def _seconds(value: Any) -> float:
    _require(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0,
        f"timeout must be a number of seconds: {value!r}",
    )
    return float(value)
