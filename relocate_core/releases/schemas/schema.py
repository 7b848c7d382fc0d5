"""The schema of a database as a release's own code knows it: read, brought up, brought down.

Nothing here remembers anything; `migrations` does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import CannotMigrate, reason_of
from ...system.processes import Ended, environment, identity, run
from ...system.redact import redact, secrets_in
from .recipe import Recipe

Version = Any
"""What a schema is at, as JSON has it: names by app, a list of revisions, or a text."""

_ASKED = "VIRTUALENV_TOOLS_ASKED"
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key|credential|dsn|auth")
_LONGEST_WORDS = 400
_LONGEST_VERSION = 1000


@dataclass(frozen=True)
class Seen:
    """A schema as it is found.

    Attributes:
        version: what it is at.
        place: the database that it is in; "" where nothing tells.
        pending: the names of the migrations that are still to be applied.
        unknown: those that are applied, and of which the code knows nothing.
    """

    version: Version
    place: str = ""
    pending: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """How a schema comes down to a version.

    Attributes:
        seen: the schema as it is found.
        undone: the names of the migrations that are undone, in this order.
        lacking: those that the version has, and the schema has not.
        obstacle: why it cannot be done.
    """

    seen: Seen
    undone: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    obstacle: str | None = None


class Schema(ABC):
    """A schema, as the code of one release knows it.

    Args:
        release: the release's directory.
        recipe: how to read and change it.
        lock: a descriptor that programs inherit; None where they need not.
    """

    def __init__(self, release: str, recipe: Recipe, lock: int | None = None) -> None:
        self.release = release
        self.recipe = recipe
        self._locks = () if lock is None else (lock,)

    @abstractmethod
    def read(self) -> Seen:
        """What the schema is at.

        Raises:
            CannotMigrate: the release's code cannot tell.
        """

    @abstractmethod
    def way(self, wanted: Version) -> Way:
        """How it would come down to a version."""

    @abstractmethod
    def up(self) -> Seen:
        """Bring it up to what the release needs."""

    @abstractmethod
    def down(self, wanted: Version) -> Seen:
        """Bring it down to a version."""

    @staticmethod
    @abstractmethod
    def told(version: Version, other: Version) -> str:
        """A version in a few words: where it differs from another one."""

    @staticmethod
    @abstractmethod
    def with_all(seen: Seen) -> Version | None:
        """What it is at when all that is pending is applied; None where nothing tells."""

    def _run(
        self, doing: str, command: Sequence[str], *descriptors: int, **variables: str
    ) -> Ended:
        """Run a program of the release.

        Raises:
            CannotMigrate: it cannot be started, or takes too long.
        """
        user, home = identity(self.recipe.owner)
        known = {**environment(self.release, home), **self.recipe.env, **variables}
        try:
            ended = run(
                command,
                self._directory(doing),
                known,
                user=user,
                seconds=self.recipe.timeout,
                descriptors=(*self._locks, *descriptors),
            )
        except OSError as error:
            raise self._failure(doing, f"{command[0]} does not run: {reason_of(error)}") from None
        if ended.code is None:
            raise self._failure(doing, f"it took longer than {self.recipe.timeout:g} seconds")
        return ended

    def _directory(self, doing: str) -> str:
        """Where its programs run."""
        directory = os.path.join(self.release, self.recipe.cwd).rstrip("/")
        if not os.path.isdir(directory):
            raise CannotMigrate(f"cannot {doing} {self.release}: there is no directory {directory}")
        return directory

    def _failure(self, doing: str, words: str) -> CannotMigrate:
        words = self._discreet(" ".join(words.split())).rstrip(".:;")
        words = re.sub(r"\[Errno -?\d+\] ", "", words)
        # A word like `OSError(` looks like a bug of ours.
        words = re.sub(r"\b(\w+Error)\(", r"\1 (", words)
        if len(words) > _LONGEST_WORDS:
            words = f"{words[:_LONGEST_WORDS]}..."
        return CannotMigrate(f"cannot {doing} {self.release}: {words}")

    def _discreet(self, text: str) -> str:
        """`text` without what the recipe has of passwords."""
        env = self.recipe.env
        secrets = {value for name, value in env.items() if _SECRET.search(name)}
        return redact(text, secrets | secrets_in(env.values()))


_READING = "read the schema with"
_GOING_UP = "migrate with"
_GOING_DOWN = "take the schema down with"


# --- Django and Alembic ---------------------------------------------------------------------------


class _Asked(Schema):
    """A schema of which a program in `adapters` knows, that the release's own Python runs."""

    program = ""

    def read(self) -> Seen:
        return _seen(self._ask(_READING, action="read"))

    def way(self, wanted: Version) -> Way:
        return _way(self._ask(_READING, action="way", wanted=wanted))

    def up(self) -> Seen:
        return _seen(self._ask(_GOING_UP, action="up"))

    def down(self, wanted: Version) -> Seen:
        found = self._ask(_GOING_DOWN, action="down", wanted=wanted)
        if found.get("obstacle"):
            raise self._failure(_GOING_DOWN, found["obstacle"])
        return _seen(found)

    def _ask(self, doing: str, **asked: Any) -> dict[str, Any]:
        text = "\n".join(_text(name) for name in ("protocol", self.program))
        with tempfile.TemporaryFile("w+") as file:
            json.dump({**asked, **self._options()}, file)
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            number = file.fileno()
            ended = self._run(doing, self._command(text), number, **{_ASKED: str(number)})
            file.seek(0)
            with suppress(ValueError):
                found = json.load(file)
                if "failure" in found:
                    raise self._failure(doing, found["failure"])
                if "action" not in found:
                    return dict(found)
        raise self._failure(doing, _last_words(ended))

    def _python(self) -> str:
        return os.path.join(self.release, "bin", "python")

    @abstractmethod
    def _command(self, text: str) -> list[str]:
        """What runs a program's text."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """What the program has to know besides."""


def _text(name: str) -> str:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adapters", f"{name}.py")
    with open(path, encoding="utf-8") as file:
        return file.read()


def _seen(found: Mapping[str, Any]) -> Seen:
    pending, unknown = tuple(found["pending"]), tuple(found["unknown"])
    return Seen(found["version"], found["place"], pending, unknown)


def _way(found: Mapping[str, Any]) -> Way:
    undone, lacking = tuple(found["undone"]), tuple(found["lacking"])
    return Way(_seen(found), undone, lacking, found["obstacle"])


def _last_words(ended: Ended) -> str:
    for text in (ended.errors, ended.output):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return f"exit code {ended.code}"


class Django(_Asked):
    """The applied migrations of a Django project, in one of its databases."""

    program = "django"

    def _command(self, text: str) -> list[str]:
        recipe = self.recipe
        manage = recipe.manage
        if recipe.settings is None and "DJANGO_SETTINGS_MODULE" not in recipe.env:
            manage = manage or self._found_manage()
        if manage is None:
            return [self._python(), "-c", text]
        words = shlex.split(manage)
        if words[0].endswith(".py"):
            words.insert(0, self._python())
        # Some shells of Django run a text so that its functions do not find each other.
        return [*words, "shell", "-c", f"exec({text!r}, {{}})"]

    def _found_manage(self) -> str:
        directory = self._directory(_READING)
        if not os.path.isfile(os.path.join(directory, "manage.py")):
            raise CannotMigrate(
                f"cannot {_READING} {self.release}: there is no manage.py in {directory}; name the "
                "settings, or how manage.py is called"
            )
        return "manage.py"

    def _options(self) -> dict[str, Any]:
        return {"database": self.recipe.database}

    def _run(
        self, doing: str, command: Sequence[str], *descriptors: int, **variables: str
    ) -> Ended:
        if self.recipe.settings is not None:
            variables["DJANGO_SETTINGS_MODULE"] = self.recipe.settings
        return super()._run(doing, command, *descriptors, **variables)

    @staticmethod
    def told(version: Version, other: Version) -> str:
        both = sorted({*version, *other})
        differing = [app for app in both if version.get(app) != other.get(app)]
        apps = [f"{app} {(version.get(app) or ['zero'])[-1]}" for app in differing or version]
        return _short(apps) or "zero"

    @staticmethod
    def with_all(seen: Seen) -> Version:
        version = {app: list(names) for app, names in seen.version.items()}
        for pending in seen.pending:
            app, _, name = pending.partition(".")
            version.setdefault(app, []).append(name)
        return version


class Alembic(_Asked):
    """The revisions that a database is at."""

    program = "alembic"

    def _command(self, text: str) -> list[str]:
        return [self._python(), "-c", text]

    def _options(self) -> dict[str, Any]:
        return {"config": self.recipe.config}

    @staticmethod
    def told(version: Version, other: Version) -> str:
        return _short(version) or "base"

    @staticmethod
    def with_all(seen: Seen) -> Version | None:
        return seen.version if not seen.pending else None


def _short(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    most = 8
    names = list(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


# --- commands -------------------------------------------------------------------------------------


class Commands(Schema):
    """A schema that commands of the release know."""

    def read(self) -> Seen:
        assert self.recipe.version is not None
        said = self._call(_READING, self.recipe.version).output.strip()
        if not said or "\n" in said or len(said) > _LONGEST_VERSION:
            what = "nothing" if not said else "more than one short line"
            raise self._failure(_READING, f"the command that tells the version prints {what}")
        return Seen(said)

    def way(self, wanted: Version) -> Way:
        seen = self.read()
        if seen.version == wanted:
            return Way(seen)
        obstacle = None if self.recipe.down else "it has no command that takes it down"
        return Way(seen, (str(seen.version),), obstacle=obstacle)

    def up(self) -> Seen:
        assert self.recipe.up is not None
        self._call(_GOING_UP, self.recipe.up)
        return self.read()

    def down(self, wanted: Version) -> Seen:
        assert self.recipe.down is not None
        self._call(_GOING_DOWN, self.recipe.down.replace("{version}", shlex.quote(wanted)))
        seen = self.read()
        if seen.version != wanted:
            raise self._failure(_GOING_DOWN, f"it is at {seen.version} after that, not at {wanted}")
        return seen

    def _call(self, doing: str, line: str) -> Ended:
        ended = self._run(doing, ["/bin/sh", "-c", line])
        if ended.code:
            raise self._failure(doing, f"{_last_words(ended)} (exit code {ended.code})")
        return ended

    @staticmethod
    def told(version: Version, other: Version) -> str:
        return str(version)

    @staticmethod
    def with_all(seen: Seen) -> Version | None:
        return None


_KINDS: dict[str, type[Schema]] = {"django": Django, "alembic": Alembic, "commands": Commands}


def schema_of(release: str, recipe: Recipe, lock: int | None = None) -> Schema:
    """The schema that a release migrates, as its own code knows it."""
    return _KINDS[recipe.kind](release, recipe, lock)


def told(recipe: Recipe, version: Version, other: Version) -> str:
    """A version in a few words: where it differs from another one."""
    return _KINDS[recipe.kind].told(version, other)
