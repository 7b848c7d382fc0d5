"""The history against a plain model of it, and on disk with whatever a power cut leaves there."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relocate_core.releases import history
from relocate_core.releases.history import Event, append, read, standing

NAMES = st.sampled_from(["A", "B", "C", "D"])
LINKS = st.sampled_from(["current", "stage"])


class Model(RuleBasedStateMachine):
    """What an operator would note down on paper, and what the events come to."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.bad: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.paths: dict[str, list[str]] = {}
        self.begun: dict[str, Event] = {}
        self.proven: dict[str, str] = {}
        self.used: dict[str, int] = {}

    def notify(self, event: str, release: str, **facts: Any) -> Event:
        """Add an event, a second after the last one."""
        time = f"2026-01-01T{len(self.events) // 60:02d}:{len(self.events) % 60:02d}:00Z"
        self.events.append({"time": time, "event": event, "release": release, **facts})
        return self.events[-1]

    @initialize()
    def nothing(self) -> None:
        """Of nothing comes nothing."""
        assert standing([]) == history.Standing()

    @rule(name=NAMES, link=LINKS, by_hand=st.one_of(st.none(), NAMES))
    def activate(self, name: str, link: str, by_hand: str | None) -> None:
        """Let a link point to a release; somebody may have moved it by hand since the last time."""
        path = self.paths.setdefault(link, [])
        if by_hand is not None and path[-1:] != [by_hand]:
            path.append(by_hand)
        extra = {"previous": path[-1]} if path else {}
        self.notify(history.ACTIVATED, name, link=link, **extra)
        path.append(name)
        self.used[name] = len(self.events) - 1
        self.begun.pop(link, None)
        self.proven.pop(link, None)

    @precondition(lambda self: any(self.paths.values()))
    @rule(data=st.data(), reason=st.sampled_from(["", "slow"]), bad=st.booleans(), to=NAMES)
    def begin(self, data: st.DataObject, reason: str, bad: bool, to: str) -> None:
        """Begin to go back along the path of a link, or to where it has never led."""
        link = data.draw(st.sampled_from([key for key, path in self.paths.items() if path]))
        path = self.paths[link]
        facts: dict[str, Any] = {"link": link, "previous": path[-1]}
        facts |= {"bad": True} if bad else {}
        facts |= {"reason": reason} if reason else {}
        self.begun[link] = self.notify(history.ROLLING_BACK, to, **facts)
        if bad:
            self.bad[path[-1]] = reason or "rolled back"

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), done=st.booleans())
    def finish(self, data: st.DataObject, done: bool) -> None:
        """Finish what was begun: the latest of that name is where the path ends; or give up."""
        link = data.draw(st.sampled_from(sorted(self.begun)))
        begun = self.begun.pop(link)
        to = begun["release"]
        facts = {key: value for key, value in begun.items() if key not in ("time", "event")}
        kind = history.ROLLED_BACK if done else history.GAVE_UP
        self.notify(kind, facts.pop("release"), **facts)
        if not done:
            return
        path = self.paths[link]
        if to in path:
            del path[len(path) - path[::-1].index(to) :]
        else:
            path[-1] = to
        self.used[to] = len(self.events) - 1
        self.proven.pop(link, None)

    @rule(name=NAMES)
    def publish(self, name: str) -> None:
        self.notify(history.PUBLISHED, name)
        self.used[name] = len(self.events) - 1

    @rule(name=NAMES, link=LINKS)
    def prove(self, name: str, link: str) -> None:
        self.notify(history.HEALTHY, name, link=link)
        self.proven[link] = name

    @rule(name=NAMES)
    def mark(self, name: str) -> None:
        self.notify(history.MARKED_BAD, name, reason="slow")
        self.bad[name] = "slow"

    @rule(name=NAMES)
    def unmark(self, name: str) -> None:
        self.notify(history.UNMARKED, name)
        self.bad.pop(name, None)

    @rule(name=NAMES)
    def pin(self, name: str) -> None:
        self.notify(history.PINNED, name)
        self.pinned.add(name)

    @rule(name=NAMES)
    def unpin(self, name: str) -> None:
        self.notify(history.UNPINNED, name)
        self.pinned.discard(name)

    @rule(name=NAMES, kind=st.sampled_from([history.PRUNED, history.REMOVED, "of the future"]))
    def something_else(self, name: str, kind: str) -> None:
        self.notify(kind, name)

    @invariant()
    def the_same(self) -> None:
        """Both have come to the same."""
        known = standing(self.events)
        assert known.bad == self.bad
        assert known.pinned == self.pinned
        assert known.activations == self.paths
        assert known.unfinished == self.begun
        assert known.proven == self.proven
        assert known.used == self.used


TestStanding = Model.TestCase


# --- on disk -------------------------------------------------------------------------------------

TEXT = st.text(max_size=20)
FACTS = st.dictionaries(
    st.sampled_from(["link", "previous", "reason", "job", "bad", "source"]),
    st.one_of(TEXT, st.none(), st.booleans()),
    max_size=4,
)
EVENTS = st.tuples(st.sampled_from(["activated", "published", "pinned"]), TEXT, FACTS)
CUT: Event = {"time": "t", "event": "activated", "release": "cut"}
# What a power cut or a hand may leave behind; a line of the history itself is cut somewhere.
TAILS = st.one_of(
    st.binary(max_size=40).map(lambda data: data.replace(b"{", b"(")),
    st.integers(1, 60).map(lambda cut: json.dumps(CUT).encode()[:cut]),
    st.integers(1, 600).map(bytes),
    st.sampled_from([b"null", b"[]\n", b'{"event": 1}\n', b"\n\n", b"\xff\xfe", b'"text"\n']),
)


@contextlib.contextmanager
def directory() -> Iterator[tuple[str, int]]:
    """An empty directory of records, and its descriptor."""
    with tempfile.TemporaryDirectory() as path:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)


@given(steps=st.lists(st.tuples(st.one_of(st.just(b""), TAILS), EVENTS), max_size=8), last=TAILS)
def test_what_is_appended_is_read_whatever_stands_between(
    steps: list[tuple[bytes, tuple[str, str, dict[str, Any]]]], last: bytes
) -> None:
    """In its order, with all its facts; a torn tail costs itself and nothing else."""
    wanted: list[Event] = []
    with directory() as (path, descriptor):
        file = Path(path, history.NAME)
        for tail, (kind, release, facts) in steps:
            wanted += _spoil(file, tail)
            entry = append(descriptor, kind, release, **facts)
            kept = {key: value for key, value in facts.items() if value not in (None, "")}
            assert {key: entry[key] for key in kept} == kept
            assert set(entry) == {"time", "event", "release", *kept}
            wanted.append(entry)
            assert file.read_bytes().endswith(b"\n")
        wanted += _spoil(file, last)
        assert read(path) == wanted


def _spoil(file: Path, tail: bytes) -> list[Event]:
    """Put a tail behind the last line; the event in it, where only its line's end is missing."""
    with open(file, "ab") as stream:
        stream.write(tail)
    return [CUT] if tail == json.dumps(CUT).encode() else []


@given(data=st.data())
def test_a_cut_anywhere_costs_no_more_than_the_last_event(data: st.DataObject) -> None:
    """What was synced before it stays, and the next event is read."""
    count = data.draw(st.integers(1, 5))
    with directory() as (path, descriptor):
        sizes = [0]
        for number in range(count):
            append(descriptor, history.ACTIVATED, f"r{number}", link="current", reason="é\n☃")
            sizes.append(os.path.getsize(os.path.join(path, history.NAME)))
        cut = data.draw(st.integers(sizes[-2], sizes[-1]))
        os.truncate(os.path.join(path, history.NAME), cut)
        append(descriptor, history.PINNED, "next")
        found = [event["release"] for event in read(path)]
        whole = [f"r{number}" for number in range(count - 1 + (cut >= sizes[-1] - 1))]
        assert found == [*whole, "next"]


def test_nothing_to_read(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == []
    assert read(str(tmp_path / "missing")) == []


def test_a_history_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    records = tmp_path / "records"
    records.mkdir()
    os.symlink("../victim", records / history.NAME)
    descriptor = os.open(records, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="symbolic links"):
            append(descriptor, history.PINNED, "A")
    finally:
        os.close(descriptor)
    assert victim.read_text() == "mine\n"


def test_a_disk_that_takes_only_a_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is written as well, or it is an error: no event is lost without a word."""
    real = os.write
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:10]))
            with contextlib.suppress(OSError):
                append(descriptor, history.PINNED, "A")
                assert [event["release"] for event in read(str(tmp_path))] == ["A"]
        append(descriptor, history.PINNED, "B")
        assert read(str(tmp_path))[-1]["release"] == "B"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("value", [[], {}, 1, None, True], ids=repr)
@pytest.mark.parametrize("key", ["link", "previous", "reason"])
def test_facts_of_another_type_do_no_harm(key: str, value: object) -> None:
    """A line that somebody has edited is read as well as it can be."""
    for kind in (history.ACTIVATED, history.ROLLING_BACK, history.ROLLED_BACK, history.MARKED_BAD):
        event = {"time": "t", "event": kind, "release": "A", "bad": True, key: value}
        standing([event])
