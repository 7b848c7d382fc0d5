"""The schema of a database as a release's own code knows it: read, migrated up, migrated down.

Nothing here is recorded; `migrate` does that.
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

_REQUEST = "VIRTUALENV_TOOLS_REQUEST"
_SECRET = re.compile(r"(?i)pass|pwd|secret|token|key|credential|dsn|auth")
_LONGEST_WORDS = 400
_LONGEST_VERSION = 1000
_LONGEST_WAIT = 300.0


@dataclass(frozen=True)
class Status:
    """A schema as it is found.

    Attributes:
        version: what it is at.
        place: the database that it is in; "" where that is not known.
        server: the machine of that, as the connection has it; "" where it is a file, or not known.
        pending: the names of the migrations that are still to be applied.
        unknown: those that are applied, and of which the code knows nothing.
    """

    version: Version
    place: str = ""
    pending: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    server: str = ""


@dataclass(frozen=True)
class DownPlan:
    """How a schema is migrated down to a version.

    Attributes:
        status: the schema as it is found.
        undone: the names of the migrations that are undone, in this order.
        lacking: those that the version has, and the schema has not.
        obstacle: why it cannot be done.
    """

    status: Status
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
    def read(self) -> Status:
        """What the schema is at.

        Raises:
            CannotMigrate: the release's code cannot read it.
        """

    @abstractmethod
    def plan_down(self, wanted: Version) -> DownPlan:
        """How it would be migrated down to a version."""

    @abstractmethod
    def up(self) -> Status:
        """Migrate it up to what the release needs."""

    @abstractmethod
    def down(self, wanted: Version) -> Status:
        """Migrate it down to a version."""

    @abstractmethod
    def lacking(self, status: Status, ran_before: bool) -> Sequence[str]:
        """What the schema lacks that the release needs, in a few words each.

        Args:
            status: the schema as it was just read.
            ran_before: whether it was once found to lack nothing.
        """

    @staticmethod
    @abstractmethod
    def summary(version: Version, other: Version) -> str:
        """A version in a few words: where it differs from another one."""

    @staticmethod
    @abstractmethod
    def has_all(version: Version, wanted: Version) -> bool:
        """Whether a version certainly has all that another one has."""

    @staticmethod
    @abstractmethod
    def with_all(status: Status) -> Version | None:
        """What it is at when all that is pending is applied; None where that is not known."""

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
        """`text` without the passwords of the recipe."""
        env = self.recipe.env
        secrets = {value for name, value in env.items() if _SECRET.search(name)}
        return redact(text, secrets | secrets_in(env.values()))


_READING = "read the schema with"
_GOING_UP = "migrate with"
_GOING_DOWN = "migrate down with"


# --- Django and Alembic ---------------------------------------------------------------------------


class _WithAdapter(Schema):
    """A schema that a program in `adapters` reads and changes, run by the release's own Python."""

    program = ""

    def read(self) -> Status:
        return _status(self._request(_READING, action="read"))

    def plan_down(self, wanted: Version) -> DownPlan:
        return _down_plan(self._request(_READING, action="plan", wanted=wanted))

    def up(self) -> Status:
        return _status(self._request(_GOING_UP, action="up", seconds=self._patience()))

    def down(self, wanted: Version) -> Status:
        seconds = self._patience()
        found = self._request(_GOING_DOWN, action="down", wanted=wanted, seconds=seconds)
        if found.get("obstacle"):
            raise self._failure(_GOING_DOWN, found["obstacle"])
        return _status(found)

    def _request(self, doing: str, **request: Any) -> dict[str, Any]:
        text = "\n".join(_text(name) for name in ("protocol", self.program))
        with tempfile.TemporaryFile("w+") as file:
            json.dump({**request, **self._options()}, file)
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            number = file.fileno()
            ended = self._run(doing, self._command(text), number, **{_REQUEST: str(number)})
            file.seek(0)
            with suppress(ValueError):
                found = json.load(file)
                if "failure" in found:
                    raise self._failure(doing, found["failure"])
                if "action" not in found:
                    return dict(found)
        raise self._failure(doing, _last_words(ended))

    def _patience(self) -> float:
        """How many seconds another migration of the same database is waited for."""
        return min(_LONGEST_WAIT, self.recipe.timeout / 2)

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


def _status(found: Mapping[str, Any]) -> Status:
    pending, unknown = tuple(found["pending"]), tuple(found["unknown"])
    return Status(found["version"], found["place"], pending, unknown, found["server"])


def _down_plan(found: Mapping[str, Any]) -> DownPlan:
    undone, lacking = tuple(found["undone"]), tuple(found["lacking"])
    return DownPlan(_status(found), undone, lacking, found["obstacle"])


def _last_words(ended: Ended) -> str:
    for text in (ended.errors, ended.output):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return f"exit code {ended.code}"


class Django(_WithAdapter):
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
                f"cannot {_READING} {self.release}: there is no manage.py in {directory}; "
                "set `settings`, or `manage` to how manage.py is called"
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

    def lacking(self, status: Status, ran_before: bool) -> Sequence[str]:
        return status.pending

    @staticmethod
    def summary(version: Version, other: Version) -> str:
        both = sorted({*version, *other})
        differing = [app for app in both if version.get(app) != other.get(app)]
        apps = [f"{app} {(version.get(app) or ['zero'])[-1]}" for app in differing or version]
        return _short(apps) or "zero"

    @staticmethod
    def has_all(version: Version, wanted: Version) -> bool:
        return all(set(names) <= set(version.get(app, ())) for app, names in wanted.items())

    @staticmethod
    def with_all(status: Status) -> Version:
        version = {app: list(names) for app, names in status.version.items()}
        for pending in status.pending:
            app, _, name = pending.partition(".")
            version.setdefault(app, []).append(name)
        return version


class Alembic(_WithAdapter):
    """The revisions that a database is at."""

    program = "alembic"

    def _command(self, text: str) -> list[str]:
        return [self._python(), "-c", text]

    def _options(self) -> dict[str, Any]:
        return {"config": self.recipe.config}

    def lacking(self, status: Status, ran_before: bool) -> Sequence[str]:
        # What is below a revision that the code does not know, only newer code can tell.
        if not status.unknown:
            return status.pending
        return () if ran_before else [f"a way from {status.unknown[0]}, which its code lacks,"]

    @staticmethod
    def summary(version: Version, other: Version) -> str:
        return _short(version) or "base"

    @staticmethod
    def has_all(version: Version, wanted: Version) -> bool:
        return bool(version == wanted)

    @staticmethod
    def with_all(status: Status) -> Version | None:
        return status.version if not status.pending else None


def _short(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    most = 8
    names = list(names)
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


# --- commands -------------------------------------------------------------------------------------


class Commands(Schema):
    """A schema that commands of the release know."""

    def read(self) -> Status:
        assert self.recipe.version is not None
        said = self._call(_READING, self.recipe.version).output.strip()
        if not said or "\n" in said or len(said) > _LONGEST_VERSION:
            what = "nothing" if not said else "more than one short line"
            raise self._failure(_READING, f"the command `version` prints {what}")
        return Status(said)

    def plan_down(self, wanted: Version) -> DownPlan:
        status = self.read()
        if status.version == wanted:
            return DownPlan(status)
        obstacle = None if self.recipe.down else "it has no command for that (`down`)"
        return DownPlan(status, (str(status.version),), obstacle=obstacle)

    def up(self) -> Status:
        assert self.recipe.up is not None
        self._call(_GOING_UP, self.recipe.up)
        return self.read()

    def down(self, wanted: Version) -> Status:
        assert self.recipe.down is not None
        self._call(_GOING_DOWN, self.recipe.down.replace("{version}", shlex.quote(wanted)))
        status = self.read()
        if status.version != wanted:
            raise self._failure(
                _GOING_DOWN, f"it is at {status.version} after that, not at {wanted}"
            )
        return status

    def lacking(self, status: Status, ran_before: bool) -> Sequence[str]:
        assert self.recipe.check is not None
        ended = self._run(_READING, ["/bin/sh", "-c", self.recipe.check])
        return [f"what `check` looks for ({_last_words(ended)})"] if ended.code else ()

    def _call(self, doing: str, line: str) -> Ended:
        ended = self._run(doing, ["/bin/sh", "-c", line])
        if ended.code:
            raise self._failure(doing, f"{_last_words(ended)} (exit code {ended.code})")
        return ended

    @staticmethod
    def summary(version: Version, other: Version) -> str:
        return str(version)

    @staticmethod
    def has_all(version: Version, wanted: Version) -> bool:
        return bool(version == wanted)

    @staticmethod
    def with_all(status: Status) -> Version | None:
        return None


_KINDS: dict[str, type[Schema]] = {"django": Django, "alembic": Alembic, "commands": Commands}


def schema_of(release: str, recipe: Recipe, lock: int | None = None) -> Schema:
    """The schema that a release migrates, as its own code knows it."""
    return _KINDS[recipe.kind](release, recipe, lock)


def has_all(recipe: Recipe, version: Version, wanted: Version) -> bool:
    """Whether a version certainly has all that another one has."""
    return _KINDS[recipe.kind].has_all(version, wanted)


def summary(recipe: Recipe, version: Version, other: Version) -> str:
    """A version in a few words: where it differs from another one."""
    return _KINDS[recipe.kind].summary(version, other)
