"""The marks on releases: bad, pinned, healthy."""

from __future__ import annotations

from typing import Any

from . import history
from .root import WAIT, Root, link_name, name_of
from .store import locked


def mark_bad(path: str, reason: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Mark a release bad, so that it is not activated any more; whether it was not before."""
    return _note(path, history.MARKED_BAD, job, wait, reason=reason)


def unmark_bad(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Take the mark of a bad release away; whether there was one."""
    return _note(path, history.UNMARKED, job, wait)


def pin(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Let prune spare a release; whether it did not before."""
    return _note(path, history.PINNED, job, wait)


def unpin(path: str, *, job: str = "", wait: float = WAIT) -> bool:
    """Let prune remove a release again; whether it spared it before."""
    return _note(path, history.UNPINNED, job, wait)


def mark_healthy(path: str, link: str | None = None, *, job: str = "", wait: float = WAIT) -> bool:
    """Mark the active release healthy: its checks succeeded; whether it was not marked before.

    Where another release is active, nothing is done.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    link = link_name(root, link)
    known = root.standing().proven.get(link) == name and root.reinitialized(name) is None
    if known or root.active(link) != name:
        return False
    with locked(root, f"marking {name} healthy", wait) as store:
        if root.active(link) != name:
            return False
        store.reported(link)  # a rollback after this is a second one
        store.note(history.HEALTHY, name, link=link)
    return True


# The names that these had before.
mark, unmark, prove = mark_bad, unmark_bad, mark_healthy


def _note(path: str, event: str, job: str, wait: float, **facts: Any) -> bool:
    """Write an event about a release, unless it holds already."""
    directory, name = name_of(path)
    root = Root(directory, job)
    if event in (history.MARKED_BAD, history.PINNED):
        root.require(name)
    if _holds(root, name, event):
        return False
    with locked(root, f"{event} {name}", wait) as store:
        if _holds(root, name, event):
            return False
        store.note(event, name, **facts)
    return True


def _holds(root: Root, name: str, event: str) -> bool:
    known = root.standing()
    marked, pinned = name in known.bad, name in known.pinned
    bad = marked or name in known.bad_pythons
    return {
        history.MARKED_BAD: marked,
        history.UNMARKED: not bad,
        history.PINNED: pinned,
        history.UNPINNED: not pinned,
    }[event]
