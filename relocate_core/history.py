"""What happened in a root of releases: one line of JSON an event, appended and synced.

A line that a power cut has torn is skipped when read, and closed before the next one is written.
Which releases are bad or pinned, and which one was active before, all follow from the events.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

NAME = "history.jsonl"

PUBLISHED = "published"
ACTIVATED = "activated"
ROLLING_BACK = "rolling_back"
ROLLED_BACK = "rolled_back"
HEALTHY = "healthy"
MARKED_BAD = "marked_bad"
UNMARKED = "unmarked"
PINNED = "pinned"
UNPINNED = "unpinned"
PRUNED = "pruned"
REMOVED = "removed"

Event = dict[str, Any]
"""time (ISO 8601, UTC), event, release, and what else belongs to it: previous, link, reason..."""


def now() -> str:
    """The time as records have it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def append(folder: int, event: str, release: str, **facts: Any) -> Event:
    """Write an event to the end of the history, and to the disk.

    Args:
        folder: descriptor of `.releases`.
        event: what happened.
        release: the release's name.
        facts: what else belongs to it; None and "" are left out.
    """
    entry = {"time": now(), "event": event, "release": release}
    entry |= {key: value for key, value in facts.items() if value not in (None, "")}
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(NAME, flags, 0o644, dir_fd=folder)
    try:
        size = os.fstat(file).st_size
        torn = size and os.pread(file, 1, size - 1) != b"\n"
        os.write(file, (b"\n" if torn else b"") + json.dumps(entry).encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    if not size:
        os.fsync(folder)
    return entry


def read(path: str) -> list[Event]:
    """All events of the history in the folder `path`, oldest first; none where there is no file."""
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
    """What the events come to.

    Attributes:
        bad: why a release is marked bad, by name.
        pinned: the pinned releases.
        activations: for each link the releases that it led to, the last one at the end; those that
            were rolled back are taken out.
        unfinished: for each link the rollback that was begun and not finished.
        proven: for each link the release that was found healthy since it was activated.
        active_at: when each release was last activated.
    """

    bad: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    activations: dict[str, list[str]] = field(default_factory=dict)
    unfinished: dict[str, Event] = field(default_factory=dict)
    proven: dict[str, str] = field(default_factory=dict)
    active_at: dict[str, str] = field(default_factory=dict)


def standing(events: Iterable[Event]) -> Standing:
    """Read what holds now from the events."""
    known = Standing()
    for entry in events:
        kind, release, link = entry["event"], entry["release"], entry.get("link", "current")
        if kind == ACTIVATED:
            known.activations.setdefault(link, []).append(release)
            known.active_at[release] = entry["time"]
            known.unfinished.pop(link, None)
            known.proven.pop(link, None)
        elif kind == ROLLING_BACK:
            known.unfinished[link] = entry
            if entry.get("bad"):
                known.bad[entry.get("previous", "")] = entry.get("reason", "rolled back")
        elif kind == ROLLED_BACK:
            _go_back(known.activations.setdefault(link, []), release)
            known.active_at[release] = entry["time"]
            known.unfinished.pop(link, None)
            known.proven.pop(link, None)
        elif kind == HEALTHY:
            known.proven[link] = release
        elif kind == MARKED_BAD:
            known.bad[release] = entry.get("reason", "")
        elif kind == UNMARKED:
            known.bad.pop(release, None)
        elif kind == PINNED:
            known.pinned.add(release)
        elif kind == UNPINNED:
            known.pinned.discard(release)
    return known


def _go_back(activations: list[str], release: str) -> None:
    while activations and activations[-1] != release:
        activations.pop()
    if not activations:
        activations.append(release)
