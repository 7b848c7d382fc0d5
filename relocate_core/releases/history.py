"""What happened in a root of releases: one line of JSON an event, appended and synced.

A line that a power cut has torn is skipped when read, and closed before the next one is written.
Which releases are bad or pinned, and which one was active before, all follow from the events.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..system import files
from ..system.locks import now

NAME = "history.jsonl"

PUBLISHED = "published"
ACTIVATING = "activating"
ACTIVATED = "activated"
ROLLING_BACK = "rolling_back"
ROLLED_BACK = "rolled_back"
GAVE_UP = "gave_up"
"""A switch was begun, killed, and not finished: the link points elsewhere."""
REINITIALIZED = "reinitialized"
"""A release is being put onto another Python."""
PUT_BACK = "put_back"
"""It is being put back onto its previous Python, as it was not healthy."""
HEALTHY = "healthy"
MARKED_BAD = "marked_bad"
UNMARKED = "unmarked"
PINNED = "pinned"
UNPINNED = "unpinned"
PRUNED = "pruned"
REMOVED = "removed"
MIGRATED = "migrated"
MIGRATED_BACK = "migrated_back"
MIGRATION_FAILED = "migration_failed"
"""A schema was left somewhere on its way up or down."""

Event = dict[str, Any]
"""time (ISO 8601, UTC), event, release, and what else belongs to it: previous, link, reason..."""


def append(directory: int, event: str, release: str, **facts: Any) -> Event:
    """Write an event to the end of the history, and to the disk.

    Args:
        directory: descriptor of `.releases`.
        event: what happened.
        release: the release's name.
        facts: what else belongs to it; None and "" are left out.
    """
    entry = {"time": now(), "event": event, "release": release}
    entry |= {key: value for key, value in facts.items() if value not in (None, "")}
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(NAME, flags, 0o644, dir_fd=directory)
    try:
        size = os.fstat(file).st_size
        if not size:
            os.fchmod(file, 0o644)  # whatever the umask
        torn = size and os.pread(file, 1, size - 1) != b"\n"
        line = json.dumps(entry).encode() + b"\n"
        files.write_all(file, b"\n" + line if torn else line)
        os.fsync(file)
    finally:
        os.close(file)
    if not size:
        os.fsync(directory)
    return entry


def read(path: str) -> list[Event]:
    """All events of the history in the directory `path`, oldest first; none where there is no
    file."""
    try:
        with open(os.path.join(path, NAME), "rb") as file:
            lines = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and all(
            isinstance(event.get(key), str) for key in ("time", "event", "release")
        ):
            events.append(event)
    return events


@dataclass
class Standing:
    """What follows from the events.

    Attributes:
        bad: why a release is marked bad, by name.
        pinned: the pinned releases.
        activations: for each link the releases that it pointed to, the last one at the end; those
            that were rolled back are taken out.
        unfinished: for each link the switch that was begun and not finished.
        proven: for each link the release that was found healthy since it was activated.
        reinitialized: how a release was put onto another Python, by name, as long as it was not
            found healthy since.
        pythons: the Python that a release was put onto since it was published, by name.
        bad_pythons: why a release was put back from a Python, by the release's name and the path of
            that Python.
        rolled_back: for each link the end of the rollback that was the last switch of it.
        used: the number of the last event that published or activated a release, by name.
        published: the number of the last event that published a release, by name.
        present: the releases that were published, and not removed since.
    """

    bad: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    activations: dict[str, list[str]] = field(default_factory=dict)
    unfinished: dict[str, Event] = field(default_factory=dict)
    proven: dict[str, str] = field(default_factory=dict)
    reinitialized: dict[str, Event] = field(default_factory=dict)
    pythons: dict[str, str] = field(default_factory=dict)
    bad_pythons: dict[str, dict[str, str]] = field(default_factory=dict)
    rolled_back: dict[str, Event] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)


def standing(events: Iterable[Event]) -> Standing:
    """Read what holds now from the events."""
    known = Standing()
    for number, entry in enumerate(events):
        kind, release, link = entry["event"], entry["release"], _text(entry, "link", "current")
        previous = _text(entry, "previous")
        if kind in (PUBLISHED, ACTIVATED, ROLLED_BACK):
            known.used[release] = number
        if kind == PUBLISHED:
            known.present.add(release)
            known.published[release] = number
        elif kind in (PRUNED, REMOVED):
            known.present.discard(release)
            for told in (known.reinitialized, known.pythons, known.bad_pythons):
                told.pop(release, None)
        elif kind == ACTIVATING:
            known.unfinished[link] = entry
        elif kind == ACTIVATED:
            activations = known.activations.setdefault(link, [])
            if previous and activations[-1:] != [previous]:  # by hand
                activations.append(previous)
            activations.append(release)
            known.unfinished.pop(link, None)
            known.rolled_back.pop(link, None)
            known.proven.pop(link, None)
        elif kind == ROLLING_BACK:
            known.unfinished[link] = entry
            known.rolled_back.pop(link, None)
            if entry.get("bad"):
                known.bad[previous] = _text(entry, "reason", "rolled back")
        elif kind == ROLLED_BACK:
            _go_back(known.activations.setdefault(link, []), release)
            known.rolled_back[link] = entry
            known.unfinished.pop(link, None)
            known.proven.pop(link, None)
        elif kind == GAVE_UP:
            known.unfinished.pop(link, None)
        elif kind == REINITIALIZED:
            known.reinitialized[release] = entry
            known.pythons[release] = _text(entry, "python")
        elif kind == PUT_BACK:
            reason = _text(entry, "reason")
            known.pythons[release] = _text(entry, "python")
            known.bad_pythons.setdefault(release, {})[previous] = reason
        elif kind == HEALTHY:
            known.proven[link] = release
            known.reinitialized.pop(release, None)
        elif kind == MARKED_BAD:
            known.bad[release] = _text(entry, "reason")
        elif kind == UNMARKED:
            known.bad.pop(release, None)
            known.bad_pythons.pop(release, None)
        elif kind == PINNED:
            known.pinned.add(release)
        elif kind == UNPINNED:
            known.pinned.discard(release)
    return known


def _text(entry: Event, key: str, default: str = "") -> str:
    """A fact of an event; somebody may have edited the file."""
    value = entry.get(key, default)
    return value if isinstance(value, str) else default


def _go_back(activations: list[str], release: str) -> None:
    """Take out what was active since `release` was, or the last one where it never was."""
    if release in activations:
        while activations[-1] != release:
            activations.pop()
    else:
        activations[-1:] = [release]
