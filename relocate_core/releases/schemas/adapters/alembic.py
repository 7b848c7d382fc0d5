"""What Alembic knows of its revisions, and migrating up and down."""

import ast
import io
import os
import traceback
from contextlib import contextmanager


def main(request):
    """Answer one question: `read`, `plan`, `up` or `down`."""
    schema = _Schema(request["config"])
    if request["action"] == "up":
        from alembic import command

        with schema.locked(request["seconds"]):
            command.upgrade(_configured(request["config"]), "heads")
            schema = _Schema(request["config"])
    if request["action"] == "plan":
        return {**schema.seen(), **schema.plan(request["wanted"])}
    if request["action"] == "down":
        with schema.locked(request["seconds"]):
            schema = _Schema(request["config"])
            plan = {**schema.seen(), **schema.plan(request["wanted"])}
            if plan["obstacle"]:
                return plan
            if plan["undone"]:
                schema.undo(plan["undone"])
                schema = _Schema(request["config"])
    return schema.seen()


class _Schema:
    """The revisions that a database is at, and the revisions in the code."""

    def __init__(self, config):
        from alembic.script import ScriptDirectory

        self.config = config
        self.script = ScriptDirectory.from_config(_configured(config))
        self.heads = []
        self.place = self.server = ""
        self.engine = None

        def look(heads, context):
            self.heads = sorted(context.get_current_heads())
            url = context.connection.engine.url
            name = url.database or ""
            if url.get_backend_name() == "sqlite" and name not in ("", ":memory:"):
                name = os.path.realpath(name)
            parts = (url.get_backend_name(), url.host, url.port, name)
            self.place = " ".join(str(part) for part in parts if part)
            self.server = _server(context.connection)
            self.engine = context.connection.engine
            return []

        self._run(look, dont_mutate=True)
        # Each before those that need it.
        self.order = [one.revision for one in self.script.walk_revisions()][::-1]

    def seen(self):
        """What the database is at, what is still to be applied, what the code does not know."""
        unknown = [head for head in self.heads if head not in self.order]
        done = self._with_all_below(self.heads)
        return {
            "version": self.heads,
            "place": self.place,
            "server": self.server,
            "pending": [one for one in self.order if one not in done],
            "unknown": unknown,
        }

    def plan(self, wanted):
        """What is to be undone to migrate down to a version, in this order; or the obstacle."""
        unknown = [one for one in self.heads + wanted if one not in self.order]
        if unknown:
            obstacle = f"{unknown[0]} is not among the revisions of the code"
            return {"undone": [], "lacking": [], "obstacle": obstacle}
        done, kept = self._with_all_below(self.heads), self._with_all_below(wanted)
        undone = [one for one in reversed(self.order) if one in done and one not in kept]
        return {
            "undone": undone,
            "lacking": [one for one in self.order if one in kept and one not in done],
            "obstacle": self._obstacle(undone),
        }

    def undo(self, revisions):
        """Undo just these revisions, in this order."""
        steps = self._steps(revisions)
        self._run(lambda heads, context: steps)

    @contextmanager
    def locked(self, seconds):
        """Hold the database's lock for migrations, where it has one that can be held from here."""
        from sqlalchemy import text
        from sqlalchemy.exc import DatabaseError

        dialect = self.engine.dialect
        if dialect.name != "postgresql" or getattr(dialect, "is_async", False):
            yield
            return
        query = text(f"SELECT pg_try_advisory_xact_lock({LOCK})")  # noqa: F821
        with self.engine.connect() as connection:

            def attempt():
                transaction = connection.begin()
                try:
                    if connection.execute(query).scalar():
                        return True
                except DatabaseError:  # it only looks like PostgreSQL
                    return True
                transaction.rollback()
                return False

            acquire(attempt, seconds)  # noqa: F821
            yield

    def _steps(self, revisions):
        from alembic.runtime.migration import MigrationStep

        map_ = self.script.revision_map
        return [
            MigrationStep.downgrade_from_script(map_, self.script.get_revision(one))
            for one in revisions
        ]

    def _obstacle(self, revisions):
        """Which revision cannot be undone: the one that raises where its SQL is only printed."""
        for one in revisions:
            if not hasattr(self.script.get_revision(one).module, "downgrade"):
                return f"{one} is irreversible: it has no downgrade"
        files = {os.path.realpath(self.script.get_revision(one).path): one for one in revisions}
        try:
            steps = self._steps(revisions)
            self._run(lambda heads, context: steps, as_sql=True, starting_rev=self.heads)
        except BaseException as error:
            for frame in reversed(traceback.extract_tb(error.__traceback__)):
                name = files.get(os.path.realpath(frame.filename))
                if name is not None:
                    # All else may come of there being no database in such a run.
                    raised = isinstance(error, NotImplementedError) or _raises(frame)
                    return f"{name} is irreversible" if raised else None
        return None

    def _run(self, function, **options):
        from alembic.runtime.environment import EnvironmentContext

        config = _configured(self.config, io.StringIO())
        with EnvironmentContext(config, self.script, fn=function, **options):
            self.script.run_env()

    def _with_all_below(self, revisions):
        """Revisions, and all that they need."""
        found, left = set(), [one for one in revisions if one in self.order]
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += self.script.get_revision(one)._all_down_revisions
        return found


def _server(connection):
    """The machine that a database is on: of the connection, as variables may choose it."""
    url = connection.engine.url
    if url.get_backend_name() == "sqlite":
        return ""
    fairy = connection.connection
    raw = getattr(fairy, "driver_connection", None) or getattr(fairy, "connection", None)
    found = getattr(getattr(raw, "info", None), "host", None)
    asked = url.query.get("host") or ""
    asked = asked if isinstance(asked, str) else ",".join(asked)
    return str(found or url.host or asked)


def _raises(frame):
    """Whether it is a `raise` that a line in a traceback says."""
    with open(frame.filename, "rb") as file:
        tree = ast.parse(file.read())
    return any(isinstance(one, ast.Raise) and one.lineno == frame.lineno for one in ast.walk(tree))


def _configured(path, output=None):
    from alembic.config import Config

    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {os.path.abspath(path)}")
    return Config(path) if output is None else Config(path, output_buffer=output)


answer(main)  # noqa: F821 - of protocol.py, which goes before this text
