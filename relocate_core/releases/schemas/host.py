"""A schema that many machines use: its host alone migrates it, and the others wait for that.

Up before the first machine switches, down after the last one is back: who knows all machines calls
`migrate` and `migrate_down` on the host, and no rollback of one machine touches the schema.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import CannotMigrate
from ...progress import Notify, silent
from .. import history
from ..root import CURRENT, WAIT, Root, link_name, name_of
from ..store import locked
from . import record
from .downgrade import LOCK, Downgrade, Downgrades
from .migrate import Migration, require_shareable
from .recipe import Recipe
from .record import SchemaState
from .schema import Status, has_all, schema_of, summary

_POLL_SECONDS = 2.0
_MOST_SHOWN = 3


def wait_for_schema(
    path: str,
    recipe: Recipe,
    host: str,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Migration:
    """Wait until the schema has what a release needs. In the database, it is only read.

    Args:
        path: the release.
        recipe: how its code reads the schema.
        host: who migrates it.
        job: what this is done for, such as Salt's job id.
        dry_run: look once, and record nothing.
        notify: called when it has to wait.
        wait: seconds to wait for the host.

    Returns:
        What was found: nothing is ever changed. In a dry run `lacking` is what it would wait for.

    Raises:
        NotARelease: there is no complete release.
        MarkedBad: the release was found bad before.
        CannotMigrate: the schema cannot be read, or lacked something all the time.
    """
    require_shareable(recipe, host)
    directory, name = name_of(path)
    root = Root(directory, job)
    root.require_good(name)
    schema = schema_of(os.path.join(root.path, name), recipe)
    ran_before = _known(root, recipe).version(name) is not None
    until = time.monotonic() + wait
    is_waiting = False
    while True:
        status = schema.read()
        lacking = list(schema.lacking(status, ran_before))
        left = until - time.monotonic()
        if not lacking or dry_run or left <= 0:
            break
        if not is_waiting:
            notify("waiting for the schema", {"release": name, "host": host})
            is_waiting = True
        time.sleep(min(_POLL_SECONDS, left))
    if lacking and not dry_run:
        raise CannotMigrate(
            f"the schema lacks {_few(lacking)} for {path}, and {host} alone migrates it, and has "
            f"not within {wait:g} seconds: see what keeps {host} from that, and run again"
        )
    if not dry_run:
        _note(root, name, recipe, host, status, wait)
    at = summary(recipe, status.version, status.version)
    where = os.path.join(root.path, name)
    return Migration(
        where, recipe.schema, old=at, new=at, dry_run=dry_run, host=host, lacking=lacking
    )


def _known(root: Root, recipe: Recipe) -> SchemaState:
    return record.read(root).get(recipe.schema, SchemaState())


def _note(root: Root, name: str, recipe: Recipe, host: str, status: Status, wait: float) -> None:
    """Record who migrates the schema, and what it was at when it had all for a release."""
    if _is_noted(_known(root, recipe), name, recipe, host, status):
        return
    with locked(root, f"recording the schema of {name}", wait) as store:
        states = record.read(root)
        known = states.setdefault(recipe.schema, SchemaState())
        known.host = host
        if not status.unknown:  # else it is what a newer release needs
            known.note(name, status.version, status.place, recipe)
            known.top, known.begun = name, None
        record.write(store, states)


def _is_noted(known: SchemaState, name: str, recipe: Recipe, host: str, status: Status) -> bool:
    ran = known.releases.get(name)
    if status.unknown:
        return known.host == host
    noted = None if ran is None else (ran.version, ran.place, ran.recipe)
    return (known.host, known.top, noted) == (
        host,
        name,
        (status.version, status.place, recipe),
    )


def _few(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def migrate_down(
    directory: str,
    to: str,
    host: str,
    *,
    running: Iterable[str] = (),
    link: str = CURRENT,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Migration:
    """Migrate the schemas that this machine migrates for all down to what a release ran with.

    It is the end of a rollback of all machines. The newer code does it, as in every rollback; a
    call that was killed can be repeated.

    Args:
        directory: the root.
        to: the release's name; it has to be active here.
        host: who this machine is.
        running: the names of the releases that still run on any machine with the same database.
        link: the link that has to point to it.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called when something was changed.
        wait: seconds to wait for another run in the root.

    Raises:
        NotARelease: there is no complete release.
        CannotMigrate: it cannot be migrated down, or a release runs that needs it as it is.
    """
    root = Root(directory, job)
    root.require(to)
    active = root.active(link_name(root, link))
    if active != to:
        raise CannotMigrate(
            f"the schema is left as it is: {active or 'no release'} is active in {root.path} on "
            f"{host}, and not {to}; roll that back first"
        )
    names = sorted(set(running))
    if dry_run:
        return _answer(root, to, host, _planned(root, to, host, names), dry_run)
    with (
        locked(root, f"migrating down to {to}", wait) as store,
        store.program_lock(LOCK, wait) as lock,
    ):
        planned = _planned(root, to, host, names, lock)
        planned.run(store, notify)
    return _answer(root, to, host, planned, dry_run)


def _planned(
    root: Root, to: str, host: str, running: Sequence[str], lock: int | None = None
) -> Downgrades:
    planned = Downgrades.plan(root, to, None, lock, host)
    for one in planned.downgrades:
        for name in running:
            if not _fits(one.known, one.wanted, to, name):
                raise CannotMigrate(
                    f"the schema is left as it is: {name} still runs, and it is not known to work "
                    f"with what {to} ran with"
                )
    return planned


def _fits(known: SchemaState, version: Any, of: str, name: str) -> bool:
    """Whether a version, which a release ran with, has all that another release needs."""
    ran = known.releases.get(name)
    if name == of:
        return True
    if ran is None or ran.version is None or ran.recipe is None:
        return False
    if has_all(ran.recipe, version, ran.version):
        return True
    # The names of revisions, or a text, only tell by their order.
    ordered = ran.recipe.kind != "django" and of in known.releases
    return ordered and ran.number < known.releases[of].number


def _answer(root: Root, to: str, host: str, planned: Downgrades, dry_run: bool) -> Migration:
    done = [one for one in planned.downgrades if one.plan.undone]
    described = planned.described() or {}
    return Migration(
        os.path.join(root.path, to),
        ", ".join(_schema_of(one) for one in done),
        changed=bool(done),
        old=described.get("old"),
        new=described.get("new"),
        undone=[name for one in done for name in one.plan.undone],
        dry_run=dry_run,
        host=host,
    )


def _schema_of(downgrade: Downgrade) -> str:
    return downgrade.schema.recipe.schema


def schemas(directory: str) -> dict[str, dict[str, Any]]:
    """What is recorded of the schemas of a root; no code of a release is run for it.

    Returns:
        For each schema: `host`, `place` (the database), `version` (in a few words; None where a
        migration did not come to its end), `release` (whose code knows all of it), `fits` (the
        releases that it has all for), and of its last change `event`, `time`, `job` and `by` (the
        release that it was made for).
    """
    root = Root(directory)
    states = record.read(root)
    changes = _changes(root) if states else {}
    return {
        schema: {"host": known.host, **_facts(known), **changes.get(schema, {})}
        for schema, known in states.items()
    }


def _facts(known: SchemaState) -> dict[str, Any]:
    top = known.releases.get(known.top)
    if top is None:
        return {"place": "", "version": None, "release": known.top, "fits": []}
    version, recipe = top.version, top.recipe
    there = version is not None and known.begun is None
    return {
        "place": top.place,
        "version": summary(recipe, version, version) if there and recipe else None,
        "release": known.top,
        "fits": [
            name for name in known.releases if there and _fits(known, version, known.top, name)
        ],
    }


def _changes(root: Root) -> dict[str, dict[str, Any]]:
    """The last change of each schema."""
    kinds = (history.MIGRATED, history.MIGRATED_BACK, history.MIGRATION_FAILED)
    found = {}
    for event in root.events():
        if event["event"] in kinds and isinstance(event.get("schema"), str):
            facts = {key: event.get(key) for key in ("event", "time", "job")}
            found[event["schema"]] = {**facts, "by": event["release"]}
    return found
