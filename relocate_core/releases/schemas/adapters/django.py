"""What Django knows of its migrations, and migrating up and down."""

import os
from contextlib import contextmanager


def main(request):
    """Answer one question: `read`, `plan`, `up` or `down`."""
    import django
    from django.apps import apps

    if not apps.ready:  # by `manage.py shell` they are
        django.setup()
    alias = request["database"]
    if request["action"] == "up":
        with _locked(alias, request["seconds"]):
            _up(alias)
    schema = _Schema(alias)
    if request["action"] == "plan":
        return {**schema.seen(), **schema.plan(request["wanted"])}
    if request["action"] == "down":
        with _locked(alias, request["seconds"]):
            schema = _Schema(alias)
            plan = {**schema.seen(), **schema.plan(request["wanted"])}
            if plan["obstacle"]:
                return plan
            if plan["undone"]:
                _down(alias, plan["undone"])
                schema = _Schema(alias)
    return schema.seen()


class _Schema:
    """The applied migrations of a database, and the migrations in the code."""

    def __init__(self, alias):
        from django.db import connections
        from django.db.migrations.loader import MigrationLoader
        from django.db.migrations.recorder import MigrationRecorder

        self.connection = connections[alias]
        if self._is_missing():  # to connect would make it
            self.loader = MigrationLoader(None)
            self.applied = set()
        else:
            self.loader = MigrationLoader(self.connection)
            self.loader.check_consistent_history(self.connection)
            self.applied = set(MigrationRecorder(self.connection).applied_migrations())
        self.nodes = self.loader.graph.nodes

    def _is_missing(self):
        if self.connection.vendor != "sqlite":
            return False
        name = str(self.connection.settings_dict["NAME"])
        return not (":memory:" in name or name.startswith("file:") or os.path.exists(name))

    def seen(self):
        """What the database is at, what is still to be applied, what the code does not know."""
        known = {one for key in self.nodes for one in self._covered(key)}
        return {
            "version": _by_app(self.applied),
            "place": self._place(),
            "server": self._server(),
            "pending": [_dotted(key) for key in self._forward() if key not in self._done()],
            "unknown": [_dotted(key) for key in sorted(self.applied - known)],
        }

    def plan(self, wanted):
        """What is to be undone to migrate down to a version, in this order; or the obstacle."""
        wanted = {(app, name) for app, names in wanted.items() for name in names}
        extra = self.applied - wanted
        undone, obstacle = [], None
        for key in reversed(self._forward()):
            covered = self._covered(key)
            if key not in self._done() or not covered & extra or self._is_squashed(key, wanted):
                continue
            undone.append(key)
            obstacle = obstacle or self._obstacle(key, covered, wanted)
        known = {one for key in self.nodes for one in self._covered(key)}
        for key in sorted(extra - known):
            obstacle = obstacle or f"{_dotted(key)} is applied, and not in the code any more"
        for key in undone:
            for child in self.loader.graph.node_map[key].children:
                if child.key in self._done() and child.key not in undone:
                    words = f"{_dotted(child.key)} needs {_dotted(key)}, and is to stay"
                    obstacle = obstacle or words
        return {
            "undone": [_dotted(key) for key in undone],
            "lacking": [_dotted(key) for key in sorted(self._lacking(wanted))],
            "obstacle": obstacle,
        }

    def _obstacle(self, key, covered, wanted):
        """Why a migration cannot be undone."""
        if covered & wanted:
            return f"{_dotted(key)} replaces several migrations, of which some are to stay"
        if not all(_is_reversible(one) for one in self.nodes[key].operations):
            return f"{_dotted(key)} is irreversible"
        return None

    def _lacking(self, wanted):
        """What a version has that is not applied; a squashed migration counts as what it is."""
        lacking = wanted - self.applied
        done = {one for key in self._done() if key in self.nodes for one in self._covered(key)}
        return lacking - done

    def _is_squashed(self, key, wanted):
        """Whether a version has what a migration replaces."""
        replaced = {tuple(one) for one in self.nodes[key].replaces}
        return bool(replaced) and replaced <= wanted

    def _covered(self, key):
        """A migration, and those that it replaces."""
        return {key} | {tuple(one) for one in self.nodes[key].replaces}

    def _done(self):
        return self.loader.applied_migrations

    def _forward(self):
        """All migrations in the code, each after those that it needs."""
        order = []
        for leaf in self.loader.graph.leaf_nodes():
            order += [key for key in self.loader.graph.forwards_plan(leaf) if key not in order]
        return order

    def _place(self):
        """Which database it is, without how to get into it."""
        known = self.connection.settings_dict
        name = known["NAME"]
        if self.connection.vendor == "sqlite":
            name = os.path.realpath(str(name))
        parts = (self.connection.vendor, known.get("HOST"), known.get("PORT"), name)
        return " ".join(str(part) for part in parts if part)

    def _server(self):
        """The machine that it is on: of the connection, as variables and services may choose it."""
        if self.connection.vendor == "sqlite":
            return ""
        found = getattr(getattr(self.connection.connection, "info", None), "host", None)
        return str(found or self.connection.settings_dict.get("HOST") or "")


@contextmanager
def _locked(alias, seconds):
    """Hold the database's lock for migrations, where it has one."""
    from django.db import DatabaseError, connections

    if connections[alias].vendor != "postgresql":
        yield
        return
    connection = connections[alias].copy()
    connection.settings_dict.get("OPTIONS", {}).pop("pool", None)

    def attempt():
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])  # noqa: F821
                if cursor.fetchone()[0]:
                    return True
        except DatabaseError:  # it only looks like PostgreSQL
            return True
        connection.rollback()
        return False

    try:
        connection.set_autocommit(False)
        acquire(attempt, seconds)  # noqa: F821
        yield
    finally:
        connection.close()


def _is_reversible(operation):
    inner = getattr(operation, "database_operations", None) or ()
    return operation.reversible and all(_is_reversible(one) for one in inner)


def _up(alias):
    from django.core.management import call_command

    call_command("migrate", database=alias, interactive=False, skip_checks=False)


def _down(alias, undone):
    """Undo just these migrations, in this order, with all that Django's own command does."""
    from django.core.management import call_command
    from django.core.management.commands import migrate

    class Exactly(migrate.MigrationExecutor):
        def migration_plan(self, targets, clean_start=False):
            if clean_start:
                return super().migration_plan(targets, clean_start=True)
            keys = [tuple(name.split(".", 1)) for name in undone]
            return [(self.loader.graph.nodes[key], True) for key in keys]

    migrate.MigrationExecutor = Exactly
    # A name that it looks up; what is undone says the plan above.
    call_command("migrate", undone[0].split(".")[0], "zero", database=alias, interactive=False)


def _by_app(keys):
    apps = {}
    for app, name in sorted(keys):
        apps.setdefault(app, []).append(name)
    return apps


def _dotted(key):
    return "{}.{}".format(*key)


answer(main)  # noqa: F821 - of protocol.py, which goes before this text
