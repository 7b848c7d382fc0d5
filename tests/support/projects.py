"""Releases with a database: small Django and Alembic projects, and the libraries that they need."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Migration, Recipe, Root, activate, migrate
from relocate_core.releases import history
from relocate_core.releases.store import locked
from relocate_core.system import locks
from tests.support.environments import BuildError, copy, installed

LIBRARIES = ("django>=4.2", "alembic>=1.13", "psycopg[binary]>=3.1")
_SETTINGS = """
import os
SECRET_KEY = "none"
INSTALLED_APPS = {apps!r}
ENGINE = "django.db.backends.sqlite3"
DATABASES = {{"default": {{"ENGINE": ENGINE, "NAME": os.environ["DATABASE"]}}}}
if os.environ.get("SERVER"):
    directory, _, port = os.environ["SERVER"].partition(" ")
    DATABASES["default"] = {{
        "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "HOST": directory,
        "PORT": port, "USER": "postgres", "PASSWORD": os.environ.get("PGPASSWORD", ""),
    }}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True
"""
_MANAGE = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
_MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = {needs!r}
    replaces = {replaces!r}
    operations = [{operations}]
"""
_ENVIRONMENT = """
import os
from alembic import context
from sqlalchemy import create_engine, pool

url = "sqlite:///" + os.environ["DATABASE"]
if os.environ.get("SERVER"):
    directory, _, port = os.environ["SERVER"].partition(" ")
    url = f"postgresql+psycopg://postgres@/postgres?host={directory}&port={port}"
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
"""
_REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = {name!r}, {below!r}, None, None

def upgrade():
    {up}

def downgrade():
    {down}
"""


@contextmanager
def libraries() -> Iterator[str]:
    """A directory with Django and Alembic, that every user may read; skips where there is no
    index."""
    try:
        kept = installed(LIBRARIES)
    except BuildError as error:
        pytest.skip(f"no Django and Alembic: {str(error).strip().splitlines()[-1:]}")
    directory = tempfile.mkdtemp(prefix="relocate-libraries-", dir="/var/tmp")
    os.chmod(directory, 0o755)
    try:
        yield copy(kept, os.path.join(directory, "libraries"))
    finally:
        shutil.rmtree(directory)


def table(name: str, **columns: str) -> str:
    """An operation of Django that makes a model."""
    fields = ["('id', models.AutoField(primary_key=True))"]
    fields += [f"({column!r}, models.{kind})" for column, kind in columns.items()]
    return f"migrations.CreateModel({name!r}, [{', '.join(fields)}]),"


def column(model: str, name: str) -> str:
    """An operation of Django that adds a column."""
    return f"migrations.AddField({model!r}, {name!r}, models.IntegerField(default=0)),"


def code(forward: str, back: str | None = None) -> str:
    """An operation of Django that runs Python, and can be undone where `back` says how."""
    more = "" if back is None else f", lambda apps, editor: {back}"
    return f"migrations.RunPython(lambda apps, editor: {forward}{more}),"


def django_files(apps: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The files of a Django project, by path.

    Args:
        apps: operations by migration by app; or (operations, what it needs, what it replaces).
    """
    files = {
        "project/__init__.py": "",
        "project/settings.py": _SETTINGS.format(apps=list(apps)),
        "manage.py": _MANAGE,
    }
    for app, migrations in apps.items():
        files[f"{app}/__init__.py"] = files[f"{app}/migrations/__init__.py"] = ""
        before: list[tuple[str, str]] = []
        for migration, what in migrations.items():
            operations, needs, replaces = what if isinstance(what, tuple) else (what, None, ())
            files[f"{app}/migrations/{migration}.py"] = _MIGRATION.format(
                needs=before if needs is None else needs,
                replaces=list(replaces),
                operations=operations,
            )
            before = [(app, migration)]
    return files


def alembic_files(revisions: Mapping[str, tuple[Any, str, str]]) -> dict[str, str]:
    """The files of an Alembic project, by path: what is below, up and down, by revision."""
    files = {
        "alembic.ini": "[alembic]\nscript_location = %(here)s/versions\n"
        "path_separator = os\nversion_locations = %(here)s/versions/versions\n",
        "versions/env.py": _ENVIRONMENT,
    }
    for revision, (below, up, down) in revisions.items():
        text = _REVISION.format(name=revision, below=below, up=up, down=down)
        files[f"versions/versions/{revision}.py"] = text
    return files


@dataclass
class Migrated:
    """A root of releases that share a database.

    Attributes:
        directory: where all of it is.
        libraries: where Django and Alembic are.
        python: the interpreter of the releases.
        env: the variables that the releases need.
    """

    directory: Path
    libraries: str
    python: str = sys.executable
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.directory / "data").mkdir(parents=True)
        self.env.setdefault("DATABASE", self.database)

    @property
    def root(self) -> str:
        """The root."""
        return str(self.directory / "root")

    @property
    def database(self) -> str:
        """The database's file."""
        return str(self.directory / "data" / "db")

    def path(self, name: str) -> str:
        """A release's path."""
        return os.path.join(self.root, name)

    def release(self, name: str, files: Mapping[str, str]) -> str:
        """Deploy a release with some files; its path."""
        root = Root(self.root)
        with locked(root, "a test", create=True) as store, store.staged() as directory:
            staged = os.path.join(directory, name)
            os.makedirs(os.path.join(staged, "bin"))
            os.symlink(os.path.realpath(self.python), os.path.join(staged, "bin", "python"))
            home = os.path.dirname(os.path.realpath(self.python))
            version = _version(self.python)
            Path(staged, "pyvenv.cfg").write_text(f"home = {home}\nversion = {version}\n")
            packages = Path(staged, "lib", f"python{version}", "site-packages")
            packages.mkdir(parents=True)
            (packages / "libraries.pth").write_text(f"{self.libraries}\n")
            for path, text in files.items():
                file = Path(staged, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
                file.chmod(0o755 if path.startswith("bin/") else 0o644)
            store.publish(staged, name, {"published": locks.now()})
            store.note(history.PUBLISHED, name)
        return self.path(name)

    def django(self, name: str, apps: Mapping[str, Mapping[str, Any]], **more: str) -> str:
        """Deploy a Django project.

        Args:
            name: of the release.
            apps: operations by migration by app; or (operations, what it needs, what it replaces).
            more: more files, by path.
        """
        return self.release(name, {**django_files(apps), **more})

    def alembic(self, name: str, revisions: Mapping[str, tuple[Any, str, str]]) -> str:
        """Deploy an Alembic project: what is below, up and down, by revision."""
        return self.release(name, alembic_files(revisions))

    def recipe(self, kind: str = "django", **options: Any) -> Recipe:
        """How they are migrated, with the variables that they need."""
        quick = {} if kind != "django" or "manage" in options else {"settings": "project.settings"}
        return Recipe.of(kind, **{"env": self.env, **quick, **options})

    def migrate(self, name: str, kind: str = "django", **options: Any) -> Migration:
        """Migrate for a release."""
        dry_run = options.pop("dry_run", False)
        return migrate(self.path(name), self.recipe(kind, **options), dry_run=dry_run)

    def deploy(self, name: str, kind: str = "django", **options: Any) -> Migration:
        """Migrate for a release, and activate it, as a highstate does."""
        done = self.migrate(name, kind, **options)
        activate(self.path(name))
        return done

    def tables(self) -> set[str]:
        """The tables in the database, but those of the libraries."""
        return {name for (name,) in self.rows("select name from sqlite_master where type='table'")}

    def rows(self, query: str) -> list[Sequence[Any]]:
        """What a query finds."""
        if not os.path.exists(self.database):
            return []
        with closing(sqlite3.connect(self.database)) as connection:
            return list(connection.execute(query))

    def columns(self, name: str) -> set[str]:
        """The columns of a table."""
        return {row[1] for row in self.rows(f"pragma table_info({name})")}

    def applied(self) -> list[str]:
        """The migrations that Django has noted."""
        if "django_migrations" not in self.tables():
            return []
        rows = self.rows("select app, name from django_migrations order by app, name")
        return [f"{app}.{name}" for app, name in rows]

    def current(self) -> str | None:
        """The active release."""
        return Root(self.root).active("current")

    def events(self) -> list[str]:
        """What the history tells of migrations, in a few words."""
        return [
            f"{one['event']} {one['release']} {one.get('before')} > {one.get('after')}"
            for one in Root(self.root).events()
            if one["event"].startswith("migrat")
        ]


def _version(python: str) -> str:
    done = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
