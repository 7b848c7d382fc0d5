"""Which release is active: activating one, and rolling back to a previous one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import InvalidPath, NotARelease
from ..progress import Notify, Report, silent
from . import history
from .root import CURRENT, WAIT, Root, link_name, name_of
from .schemas import record
from .schemas.downgrade import LOCK, Downgrades, leave_as_it_is
from .store import Store, locked


@dataclass
class Switch(Report):
    """What became of a link, or would in a dry run.

    Attributes:
        link: its path.
        release: the name of the release that it points to.
        previous: the one that it pointed to before; None where it pointed to none.
        changed: whether it was (in a dry run: would be) another one.
        bad: why the previous one was marked bad; None where it was not.
        dry_run: whether it was only looked at.
        schema: what the schema was at and is at now ("old" and "new") where it was migrated down.
        schema_left: why the schema was left as it is; None where nothing was to be migrated down.
    """

    link: str
    release: str
    previous: str | None
    changed: bool
    bad: str | None = None
    dry_run: bool = False
    schema: dict[str, str] | None = None
    schema_left: str | None = None

    def note(self, downgrades: Downgrades) -> None:
        """Take over what becomes of the schemas."""
        self.schema = downgrades.described()
        self.note_left(downgrades.left)

    def note_left(self, reasons: list[str]) -> None:
        """Take over why schemas are left as they are."""
        self.schema_left = "; ".join(dict.fromkeys(reasons)) or None


def activate(
    path: str,
    link: str | None = None,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Switch:
    """Let `current` point to a release, in one step: there is no moment without it.

    Args:
        path: the release.
        link: the link's path, in the same directory; by default `current` there.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called when it is done.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. Nothing is done where it points there already.

    Raises:
        NotARelease: there is no complete release.
        MarkedBad: the release was found bad before.
        CannotRun: its Python is not there.
        InvalidPath: something that is no link is in the link's place.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    link = link_name(root, link)
    planned = _plan(root, name, link, dry_run)
    if dry_run:
        return planned
    if _is_done(root, name, link):
        return Switch(planned.link, name, name, False)
    with locked(root, f"activating {name}", wait) as store:
        found = _plan(root, name, link, False)
        if found.changed or not _is_done(root, name, link):
            previous = found.previous if found.changed else None
            store.switch(history.ACTIVATING, link, name, previous=previous)
        notify("activated", {"release": name, "previous": found.previous})
    return found


def _is_done(root: Root, name: str, link: str) -> bool:
    """Whether the link points there, and the history says so."""
    known = history.standing(root.events())
    recorded = known.activations.get(link, [])
    is_recorded = recorded[-1:] == [name] and link not in root.unfinished(known)
    return is_recorded and root.active(link) == name


def _plan(root: Root, name: str, link: str, dry_run: bool) -> Switch:
    """What activating a release would do; refuses what must not be activated."""
    root.require_good(name)
    previous = root.active(link)
    return Switch(os.path.join(root.path, link), name, previous, previous != name, dry_run=dry_run)


def rollback(
    directory: str,
    to: str | None = None,
    *,
    link: str = CURRENT,
    leaving: str | None = None,
    mark: bool = True,
    reason: str = "",
    migrate: bool = True,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Switch:
    """Let `current` point to the previous release again, and mark the one that it leaves bad.

    Where the schema was migrated since that one was active, it is migrated down first, by the newer
    code; where it cannot be, nothing is done. One that other machines may use as well is left as it
    is: see `schemas.host`.

    A call that was killed can be repeated: it finishes the same rollback, and goes no release
    further. From its first change until it returns, a file in the root says that the rollback was
    not reported to anybody. While that file exists, a call that could be the same (the same `to`
    and `leaving`, where they are given) reports that rollback, and removes the file. So does every
    other switch of the link, and marking the active release healthy: whoever rolls back after that
    wants a second rollback. After a call that returned, each further one is a rollback of its own.
    Where only the caller is killed, after the call returned, as a minion may be before it answers,
    nothing on the disk distinguishes the two: use `leaving` where that matters.

    Args:
        directory: the root.
        to: the name of the release to roll back to; by default the last good previous one.
        link: the link's name or path.
        leaving: the name of the release to leave: nothing is done where another one is active.
        mark: whether to mark the release that is left bad, so that no highstate brings it back.
        reason: why, for the mark and the history.
        migrate: whether to migrate the schema down to what the release ran with.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called when it is done.
        wait: seconds to wait for another run in the same root.

    Raises:
        NotARelease: there is none to roll back to.
        CannotMigrate: the schema cannot be migrated down, or not to its end; no symlink was
            changed.
    """
    root = Root(directory, job)
    link = link_name(root, link)
    if dry_run:
        begun = root.interrupted(link)
        if begun is not None and _is_same(begun, to, leaving):
            return _resumed(root, link, begun, dry_run=True)
        found = _plan_rollback(root, to, link, leaving, mark, reason, dry_run=True)
        if migrate and found.changed:
            found.note(Downgrades.plan(root, found.release, found.previous))
        return found
    if not os.path.isdir(root.path):
        raise NotARelease(f"there are no releases in {root.path}")
    _require_active(root, link)
    with locked(root, "rolling back", wait) as store:
        begun = root.interrupted(link)
        if begun is not None and _is_same(begun, to, leaving):
            store.reported(link)
            return _resumed(root, link, begun)
        found = _plan_rollback(root, to, link, leaving, mark, reason)
        if found.changed:
            if migrate:
                _downgrade(store, found, notify, wait)
            else:
                found.note_left(leave_as_it_is(store, found.release, found.previous))
            facts = {"previous": found.previous, "bad": mark or None, "reason": reason}
            store.switch(history.ROLLING_BACK, link, found.release, **facts)
            notify("rolled back", {"release": found.release, "previous": found.previous})
    return found


def _resumed(root: Root, link: str, begun: history.Event, dry_run: bool = False) -> Switch:
    """What became of a rollback whose call was killed, for the same call."""
    bad = begun.get("reason", "rolled back") if begun.get("bad") else None
    path = os.path.join(root.path, link)
    return Switch(path, begun["release"], begun.get("previous"), True, bad, dry_run)


def _downgrade(store: Store, switch: Switch, notify: Notify, wait: float) -> None:
    """Migrate the schemas down to what a release ran with."""
    if not record.read(store.root):
        return
    with store.program_lock(LOCK, wait) as lock:
        downgrades = Downgrades.plan(store.root, switch.release, switch.previous, lock)
        downgrades.run(store, notify)
    switch.note(downgrades)


def _plan_rollback(
    root: Root,
    to: str | None,
    link: str,
    leaving: str | None,
    mark: bool,
    reason: str,
    dry_run: bool = False,
) -> Switch:
    active = _require_active(root, link)
    path = os.path.join(root.path, link)
    if leaving is not None and active != leaving:
        return Switch(path, active, None, False, dry_run=dry_run)
    if to is None:
        to = next(root.previous(link), None)
        if to is None:
            raise NotARelease(
                f"there is no good release before {active} in {root.path}: activate one by its name"
            )
    name_of(f"{root.path}/{to}")
    if "/" in to:
        raise InvalidPath(f"the release to roll back to is given without its directory: {to}")
    if to == active:
        return Switch(path, active, None, False, dry_run=dry_run)
    root.require_good(to)
    bad = (reason or "rolled back") if mark else None
    return Switch(path, to, active, True, bad, dry_run)


def _require_active(root: Root, link: str) -> str:
    active = root.active(link)
    if active is None:
        path = os.path.join(root.path, link)
        raise NotARelease(f"there is nothing to roll back: {path} points to no release")
    return active


def _is_same(begun: history.Event, to: str | None, leaving: str | None) -> bool:
    """Whether a rollback that was begun is the one that is asked for."""
    return to in (None, begun["release"]) and leaving in (None, begun.get("previous"))
