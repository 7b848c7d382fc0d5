"""Changing a root of releases: by one run at a time, after what a killed one left is finished.

A release is complete as soon as its name exists: it is staged below `.releases/staging` and
renamed. Whoever takes the lock finishes first what a killed run left: staged trees are removed, and
a rollback that was begun is brought to its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..system import files, locks, staging
from ..system.staging import STAGING, Staging
from ..virtualenvs.manifest import RECORD
from . import history
from .root import RECORD_FORMAT, RECORDS, UNREPORTED, WAIT, Root


@contextmanager
def locked(root: Root, doing: str, wait: float = WAIT, *, create: bool = False) -> Iterator[Store]:
    """Hold a root's lock; gives what changes the root.

    Args:
        root: the root.
        doing: what for, for the message of others who wait.
        wait: seconds to wait for another holder.
        create: whether to create the root where it is missing.

    Raises:
        Busy: somebody else held it all the time.
        UnsafeDirectory: somebody else could redirect what is written.
    """
    doing = f"{doing} {root.job}"
    with staging.opened(root.path, RECORDS, doing, wait, create=create) as place:
        store = Store(root, place)
        store.recover()
        yield store


class Store:
    """A root whose lock is held.

    Args:
        root: the root.
        place: its directory, whose lock is held.
    """

    def __init__(self, root: Root, place: Staging) -> None:
        self.root = root
        self.staged = place.staged
        self._place = place
        self._directory = place.directory
        self._records = place.records

    def note(self, event: str, release: str, **facts: Any) -> None:
        """Write an event to the history."""
        history.append(self._records, event, release, job=self.root.job, **facts)

    def recover(self) -> None:
        """Finish what a killed run left, and write down what it had no time to."""
        root = self.root
        known = history.standing(root.events())
        for event, name in _taken_away(os.path.join(root.records, STAGING)):
            if name in known.present:
                known.present.discard(name)
                self.note(event, name)
        self._place.clear()
        there = root.names()
        for name in sorted(known.present.difference(there)):
            self.note(history.REMOVED, name, reason="by hand")
        for name in there:
            if name not in known.present:
                record = root.record(name) or {}
                facts = {"source": record.get("source"), "job": record.get("job")}
                history.append(self._records, history.PUBLISHED, name, **facts)
        for link, begun in root.unfinished(known).items():
            if begun["event"] == history.ROLLING_BACK:
                self._unreported(link)
            if not self._finish_switch(link, begun):
                self.reported(link)

    # --- links ----------------------------------------------------------------------------------

    def switch(self, event: str, link: str, name: str, **facts: Any) -> None:
        """Let a link point to another release, with an event in the history before and after it.

        The last step is to note that it was reported. Until then, the same rollback called again
        finishes this one, and is no second one.

        Args:
            event: ACTIVATING or ROLLING_BACK.
            link: the link's name.
            name: the release that it should point to.
            facts: what else belongs to it.
        """
        begun = history.append(self._records, event, name, link=link, job=self.root.job, **facts)
        if event == history.ROLLING_BACK:
            self._unreported(link)
        if self.root.active(link) != name:
            self._relink(link, name)
        self._finish_switch(link, begun)
        self.reported(link)

    def _unreported(self, link: str) -> None:
        """Note that no call has reported the rollback of a link yet."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(UNREPORTED.format(link), flags, 0o644, dir_fd=self._records))
        os.fsync(self._records)

    def reported(self, link: str) -> None:
        """Note that the last switch of a link was reported.

        This is not synced, so that nothing which takes long comes after it: a power cut is a kill.
        """
        with suppress(FileNotFoundError):
            os.unlink(UNREPORTED.format(link), dir_fd=self._records)

    def _finish_switch(self, link: str, begun: history.Event) -> bool:
        """Write down what has become of a switch; a rollback is done first where it was not."""
        root = self.root
        name, is_rollback = begun["release"], begun["event"] == history.ROLLING_BACK
        left = root.active(link) in (begun.get("previous"), None)
        if is_rollback and left and root.record(name) is not None:
            self._relink(link, name)
        done = bool(root.active(link) == name)
        facts = {key: value for key, value in begun.items() if key not in ("time", "event")}
        event = history.ROLLED_BACK if is_rollback else history.ACTIVATED
        history.append(
            self._records, event if done else history.GAVE_UP, facts.pop("release"), **facts
        )
        return done

    def _relink(self, link: str, name: str) -> None:
        """Let a link point to a release: a new link, renamed over, so that there is always one."""
        staged = f"{STAGING}/{link}"
        os.symlink(name, staged, dir_fd=self._records)
        os.rename(staged, link, src_dir_fd=self._records, dst_dir_fd=self._directory)
        os.fsync(self._directory)

    # --- releases -------------------------------------------------------------------------------

    def publish(self, staged: str, name: str, record: dict[str, Any]) -> None:
        """Give a staged tree its final name, when all of it is on the disk.

        Args:
            staged: the tree's path.
            name: the release's name.
            record: what `.release.json` should contain.
        """
        known = {"format": RECORD_FORMAT, "name": name, **record}
        self._place.publish(staged, name, RECORD, known)

    def discard(self, name: str, event: str) -> str | None:
        """Remove a release: its name first, at once, then what is in it.

        Args:
            name: the release's name.
            event: PRUNED or REMOVED.

        Returns:
            Why something of it is left on the disk; None where nothing is.
        """
        doomed = self._place.take_away(name, event)
        self.note(event, name)
        return staging.remove(doomed)

    # --- schemas --------------------------------------------------------------------------------

    def write_private(self, name: str, content: bytes) -> None:
        """Write a record that this user alone may read, all of it or nothing."""
        staged = f"{STAGING}/{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(staged, flags, 0o600, dir_fd=self._records)
        try:
            os.fchmod(file, 0o600)  # whatever the umask
            files.write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(staged, name, src_dir_fd=self._records, dst_dir_fd=self._records)
        os.fsync(self._records)

    @contextmanager
    def program_lock(self, name: str, wait: float) -> Iterator[int]:
        """Hold a lock that programs inherit: what a killed run has left is waited for.

        Args:
            name: of the lock's file.
            wait: seconds to wait for such a program.

        Raises:
            Busy: one is still running.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._records)
        try:
            with locks.inherited(file, self.root.path, wait):
                yield file
        finally:
            os.close(file)


def _taken_away(place: str) -> Iterator[tuple[str, str]]:
    """The releases that were being removed: by what event, and their names."""
    with suppress(OSError):
        for aside in os.listdir(place):
            event = aside.partition("-")[0]
            if event in (history.PRUNED, history.REMOVED):
                for name in os.listdir(os.path.join(place, aside)):
                    yield event, name
