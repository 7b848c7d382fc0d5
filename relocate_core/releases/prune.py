"""Removing releases that are not needed any more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidPath, ReleaseInUse, TreeError, reason_of
from ..interpreters import users
from ..interpreters.place import Place
from ..progress import Notify, Report, silent
from ..system.processes import using
from . import history
from .root import WAIT, Release, Root, name_of
from .schemas import record
from .store import locked


@dataclass
class Pruning(Report):
    """What was removed, or in a dry run would be.

    Attributes:
        root: the directory of the releases.
        removed: the names of the releases that are gone.
        kept: why each other one stays, by name.
        failed: why a release could not be removed, or not all of it, by name.
        dry_run: whether it was only looked at.
        pythons: the paths of the interpreters that are gone, as nothing uses them any more.
    """

    root: str
    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    dry_run: bool = False
    pythons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        known = super().as_dict()
        for name in ("failed", "pythons"):
            if not known[name]:
                del known[name]
        return known


def prune(
    directory: str,
    keep: int = 5,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> Pruning:
    """Remove old releases: all but the active one, the previous one, and the latest good ones.

    Spared as well is what is pinned, or used by a process, and whose code alone can migrate a
    schema down. A release that is marked bad does not count as one of those to keep; it stays as
    long as a good one of its age does. What is in the root and is no release is not looked at.

    Removed as well are the interpreters beside the root that no release, virtualenv or process uses
    any more.

    Args:
        directory: the root.
        keep: how many good releases stay, the active one among them.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called after each release.
        wait: seconds to wait for another run in the same root.

    Raises:
        InvalidPath: `keep` is no number of at least one.
        CannotMigrate: the record of the schemas is damaged, so it is not known what they need.
        Busy: another run was at work all the time.
    """
    if not _is_count(keep):
        raise InvalidPath(f"keep must be a whole number of at least 1: {keep!r}")
    root = Root(directory, job)
    found = _plan(root, keep)
    if not dry_run and (found.removed or _is_left(root)):
        found = _carried_out(root, keep, notify, wait)
    found.dry_run = dry_run
    _remove_pythons(root, found, wait)
    return found


def _carried_out(root: Root, keep: int, notify: Notify, wait: float) -> Pruning:
    """Remove the releases that are not needed."""
    with locked(root, "pruning", wait) as store:
        found = _plan(root, keep)
        for name in list(found.removed):
            try:
                left = store.discard(name, history.PRUNED)
            except OSError as error:
                found.removed.remove(name)
                found.failed[name] = reason_of(error)
                continue
            if left is not None:
                found.failed[name] = left
            notify("pruned", {"release": name})
    return found


def _remove_pythons(root: Root, found: Pruning, wait: float) -> None:
    """Remove the interpreters that nothing uses, now that those releases are (or would be) gone."""
    gone = [os.path.join(root.path, name) for name in found.removed]
    place = Place.beside(root.path, root.job)
    unused = users.prune(place, gone, dry_run=found.dry_run, wait=wait)
    found.pythons = unused.removed
    found.failed.update(unused.failed)


def remove(
    path: str,
    *,
    job: str = "",
    dry_run: bool = False,
    notify: Notify = silent,
    wait: float = WAIT,
) -> bool:
    """Remove one release; whether it was there.

    Args:
        path: the release.
        job: what this is done for, such as Salt's job id.
        dry_run: look, and change nothing.
        notify: called when it is done.
        wait: seconds to wait for another run in the same root.

    Raises:
        ReleaseInUse: it is active, pinned, or used by a process.
        NotARelease: something else is there.
        TreeError: it is no release any more, but some of its files could not be removed.
    """
    directory, name = name_of(path)
    root = Root(directory, job)
    there = os.path.lexists(os.path.join(root.path, name))
    if there:
        _require_unused(root, name)
    if dry_run or not (there or _is_left(root)):
        return there
    with locked(root, f"removing {name}", wait) as store:
        if not os.path.lexists(os.path.join(root.path, name)):
            return False
        _require_unused(root, name)
        left = store.discard(name, history.REMOVED)
        notify("removed", {"path": path})
    if left is not None:
        raise TreeError(f"{path} is gone, but not all of it: {left}; see to it and remove that")
    return True


def _is_left(root: Root) -> bool:
    """Whether a killed run has left something to finish, in a root that is one."""
    return os.path.isdir(root.records) and not root.is_tidy()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require_unused(root: Root, name: str) -> None:
    root.require(name)
    path = os.path.join(root.path, name)
    for link, target in root.links().items():
        if target == name:
            raise ReleaseInUse(
                f"{path} is active, by {os.path.join(root.path, link)}: activate another one first"
            )
    if name in root.standing().pinned:
        raise ReleaseInUse(f"{path} is pinned: unpin it first")
    for _, process in using([path]).items():
        raise ReleaseInUse(f"{path} is used by process {process}: stop or restart that first")


def _plan(root: Root, keep: int) -> Pruning:
    """Which releases to remove, and why every other one stays."""
    known = root.standing()
    found = Pruning(root.path)
    latest = sorted(
        root.releases(),
        key=lambda one: (known.used.get(one.name, -1), one.record.get("published", "")),
        reverse=True,
    )
    previous = {next(root.previous(link), None) for link in root.links()}
    migrated = {known.top: schema for schema, known in record.read(root).items()}
    good = 0
    doomed: list[Release] = []
    for release in latest:
        reason = _needed(release, previous, migrated)
        if release.bad is None and (reason or good < keep):
            good += 1
            reason = reason or "one of the latest"
        elif reason is None and good < keep:
            reason = "bad, and kept as evidence"
        if reason is None:
            doomed.append(release)
        else:
            found.kept[release.name] = reason
    busy = using([release.path for release in doomed]) if doomed else {}
    for release in doomed:
        if release.path in busy:
            found.kept[release.name] = f"used by process {busy[release.path]}"
        else:
            found.removed.append(release.name)
    return found


def _needed(release: Release, previous: set[str | None], migrated: Mapping[str, str]) -> str | None:
    """Why a release stays, however old or bad it is.

    Args:
        release: the release.
        previous: the previous release of each link.
        migrated: the schema whose migrations only a release's code knows all, by its name.
    """
    if release.active:
        return f"active, by {', '.join(release.active)}"
    if release.name in previous:
        return "the previous release"
    if release.pinned:
        return "pinned"
    if release.name in migrated:
        return f"only its code can migrate the {migrated[release.name]} schema down"
    return None
