"""Which release is active: activating one, going back to an earlier one, and the marks on them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidPath, NotARelease
from ..progress import Tell, silent
from ..virtualenvs.layout import absolute_prefix
from . import history
from .root import CURRENT, WAIT, Root, name_of
from .schemas import record
from .schemas.migrate import LOCK, TakingDown, leave_as_it_is


@dataclass
class Switch:
    """What became of a link, or in a dry run would.

    Attributes:
        link: its path.
        release: the name of the release that it points to.
        previous: the one that it pointed to before; None where it pointed to none.
        changed: whether it was (in a dry run: would be) another one.
        bad: why the previous one was marked bad; None where it was not.
        dry_run: whether it was only looked at.
        schema: what the schema was at and is at now, as "old" and "new", where it was taken down.
    """

    link: str
    release: str
    previous: str | None
    changed: bool
    bad: str | None = None
    dry_run: bool = False
    schema: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        return asdict(self)


def activate(
    path: str,
    link: str | None = None,
    *,
    job: str = "",
    dry_run: bool = False,
    tell: Tell = silent,
    wait: float = WAIT,
) -> Switch:
    """Let `current` point to a release, in one step: there is no moment without it.

    Args:
        path: the release.
        link: the link's path, in the same directory; by default `current` there.
        job: what this is done for, Salt's job id for one.
        dry_run: look, and change nothing.
        tell: called when it is done.
        wait: seconds to wait for another run in the same root.

    Returns:
        What was done. Nothing is done where it leads there already.

    Raises:
        NotARelease: there is no complete release.
        MarkedBad: the release was found bad before.
        CannotRun: its Python is not there.
        InvalidPath: something that is no link is in the link's place.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    link = _link_name(root, link)
    looked = _look(root, name, link, dry_run)
    if dry_run:
        return looked
    if _is_done(root, name, link):
        return Switch(looked.link, name, name, False)
    with root.locked(f"activating {name}", wait):
        found = _look(root, name, link, False)
        if found.changed or not _is_done(root, name, link):
            previous = found.previous if found.changed else None
            root.switch(history.ACTIVATING, link, name, previous=previous)
        tell("activated", {"release": name, "previous": found.previous})
    return found


def _is_done(root: Root, name: str, link: str) -> bool:
    """Whether the link leads there, and the history says so."""
    known = history.standing(root.events())
    recorded = known.activations.get(link, [])
    told = recorded[-1:] == [name] and link not in root.unfinished(known)
    return told and root.active(link) == name


def _look(root: Root, name: str, link: str, dry_run: bool) -> Switch:
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
    tell: Tell = silent,
    wait: float = WAIT,
) -> Switch:
    """Let `current` point to the release before, and mark the one that it leaves as bad.

    Where the schema was migrated since that one was active, it is taken down first, by the newer
    code; where it cannot be, nothing is done.

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
        to: the name of the release to go to; by default the last good one before.
        link: the link's name or path.
        leaving: the name of the release to leave: nothing is done where another one is active.
        mark: whether to mark the release that is left as bad, so that no highstate brings it back.
        reason: why, for the mark and the history.
        migrate: whether to take the schema down to what the release ran with.
        job: what this is done for, Salt's job id for one.
        dry_run: look, and change nothing.
        tell: called when it is done.
        wait: seconds to wait for another run in the same root.

    Raises:
        NotARelease: there is none to go back to.
        CannotMigrate: the schema cannot be taken down, or was not to its end; no link was changed.
    """
    root = Root(directory, job)
    link = _link_name(root, link)
    if dry_run:
        begun = root.interrupted(link)
        if begun is not None and _is_same(begun, to, leaving):
            return _resumed(root, link, begun, dry_run=True)
        found = _look_back(root, to, link, leaving, mark, reason, dry_run=True)
        if migrate and found.changed:
            found.schema = TakingDown.look(root, found.release, found.previous).told()
        return found
    if not os.path.isdir(root.path):
        raise NotARelease(f"there are no releases in {root.path}")
    _require_active(root, link)
    with root.locked("rolling back", wait):
        begun = root.interrupted(link)
        if begun is not None and _is_same(begun, to, leaving):
            root.reported(link)
            return _resumed(root, link, begun)
        found = _look_back(root, to, link, leaving, mark, reason)
        if found.changed:
            if migrate:
                found.schema = _taken_down(root, found, tell, wait)
            else:
                leave_as_it_is(root, found.release)
            facts = {"previous": found.previous, "bad": mark or None, "reason": reason}
            root.switch(history.ROLLING_BACK, link, found.release, **facts)
            tell("rolled back", {"release": found.release, "previous": found.previous})
    return found


def _resumed(root: Root, link: str, begun: history.Event, dry_run: bool = False) -> Switch:
    """What became of a rollback whose call was killed, for the same call."""
    bad = begun.get("reason", "rolled back") if begun.get("bad") else None
    path = os.path.join(root.path, link)
    return Switch(path, begun["release"], begun.get("previous"), True, bad, dry_run)


def _taken_down(root: Root, switch: Switch, tell: Tell, wait: float) -> dict[str, str] | None:
    """Take the schema down to what a release ran with; what it was at, and is at now."""
    if not record.read(root):
        return None
    with root.only_program(LOCK, wait) as lock:
        work = TakingDown.look(root, switch.release, switch.previous, lock)
        work.go(root, tell)
    return work.told()


def _look_back(
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
        to = next(root.earlier(link), None)
        if to is None:
            raise NotARelease(
                f"there is no good release before {active} in {root.path}: activate one by its name"
            )
    name_of(f"{root.path}/{to}")
    if "/" in to:
        raise InvalidPath(f"the release to go to is named without its directory: {to}")
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


def mark(path: str, reason: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Mark a release as bad, so that it is not activated any more; whether it was not before."""
    return _note(path, history.MARKED_BAD, job, wait, reason=reason)


def unmark(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Take the mark from a release; whether there was one."""
    return _note(path, history.UNMARKED, job, wait)


def pin(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Let prune spare a release; whether it did not before."""
    return _note(path, history.PINNED, job, wait)


def unpin(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Let prune take a release again; whether it spared it before."""
    return _note(path, history.UNPINNED, job, wait)


def prove(path: str, link: str | None = None, *, job: str = "", wait: float = WAIT) -> bool:
    """Write down that the active release was found healthy; whether that was not known."""
    directory, name = name_of(path)
    root = Root(directory, job)
    link = _link_name(root, link)
    if root.active(link) != name or root.standing().proven.get(link) == name:
        return False
    with root.locked(f"noting that {name} is healthy", wait):
        if root.active(link) != name:
            return False
        root.reported(link)  # a rollback after this is a second one
        root.note(history.HEALTHY, name, link=link)
    return True


def _note(path: str, event: str, job: str, wait: float, **facts: Any) -> bool:
    """Write an event about a release, unless it holds already."""
    directory, name = name_of(path)
    root = Root(directory, job)
    if event in (history.MARKED_BAD, history.PINNED):
        root.require(name)
    if _holds(root, name, event):
        return False
    with root.locked(f"{event} {name}", wait):
        if _holds(root, name, event):
            return False
        root.note(event, name, **facts)
    return True


def _holds(root: Root, name: str, event: str) -> bool:
    known = root.standing()
    marked, pinned = name in known.bad, name in known.pinned
    return {
        history.MARKED_BAD: marked,
        history.UNMARKED: not marked,
        history.PINNED: pinned,
        history.UNPINNED: not pinned,
    }[event]


def _link_name(root: Root, link: str | None) -> str:
    """The name of a link in the root.

    Raises:
        InvalidPath: it is not there, or is no link.
    """
    if link is None:
        name = CURRENT
    elif "/" in link:
        directory, _, name = absolute_prefix(link, "the link").rpartition("/")
        if os.path.realpath(directory) != os.path.realpath(root.path):
            raise InvalidPath(f"the link {link} must stand beside its releases, in {root.path}")
    else:
        name = link
    if not name or name[0] == ".":
        raise InvalidPath(f"no link can be called {name!r}: choose a name such as {CURRENT}")
    path = os.path.join(root.path, name)
    if os.path.lexists(path) and not os.path.islink(path):
        what = "directory" if os.path.isdir(path) else "file"
        raise InvalidPath(f"{path} is a {what} and no link: move it away, and run again")
    return name
