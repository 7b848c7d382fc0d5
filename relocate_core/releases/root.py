"""A root: the directory of an app's releases, `current` beside them, and the records in
`.releases`.

A release is complete as soon as its name is there: it is staged below `.releases/staging` and
renamed. Whoever changes anything holds the root's lock, and finishes first what a killed run left:
staged trees are removed, and a rollback that was begun is brought to its end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import CannotRun, InvalidPath, MarkedBad, NotARelease, TreeError
from ..system import files, locks
from ..system.ownership import require_trusted
from ..virtualenvs.layout import absolute_prefix
from ..virtualenvs.manifest import RECORD
from . import history

RECORDS = ".releases"
STAGING = "staging"
UNREPORTED = "unreported-{}"
"""A file that is there from the middle of a link's rollback until its call ends."""
CURRENT = "current"
# Long enough for another deploy to end.
WAIT = 300.0
_RECORD_FORMAT = 1
_LONGEST_RECORD = 1 << 20


@dataclass(frozen=True)
class Release:
    """A complete release.

    Attributes:
        name: its directory's name, mostly a commit's hash.
        path: its directory.
        record: what `.release.json` says: source, digests, python, counts, published, job.
        active: the links in the root that point to it.
        bad: why it is marked bad; None where it is not.
        pinned: whether prune spares it.
    """

    name: str
    path: str
    record: dict[str, Any] = field(repr=False)
    active: tuple[str, ...] = ()
    bad: str | None = None
    pinned: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What an operator wants to see of it, as plain values."""
        seen = {"active": list(self.active)} if self.active else {}
        marks = {"bad": self.bad} if self.bad is not None else {}
        pin = {"pinned": True} if self.pinned else {}
        kept = ("published", "source", "python_version", "files", "size", "job")
        facts = {key: self.record[key] for key in kept if self.record.get(key) not in (None, "")}
        bundle = {"bundle": True} if self.record.get("manifest") else {}
        return {**seen, **marks, **pin, **facts, **bundle}


class Root:
    """An app's directory of releases.

    Args:
        path: the directory; it need not be there yet.
        job: what this is done for, Salt's job id for one; it stands in lock and history.

    Raises:
        InvalidPath: no releases can be kept there.
    """

    def __init__(self, path: str, job: str = "") -> None:
        self.path = absolute_prefix(path, "the directory of the releases")
        self.job = job
        self._directory = self._records = -1

    # --- reading --------------------------------------------------------------------------------

    @property
    def records(self) -> str:
        """The directory of the lock, the staged trees and the history."""
        return os.path.join(self.path, RECORDS)

    def events(self) -> list[history.Event]:
        """The history, oldest event first."""
        try:
            return history.read(self.records)
        except OSError as error:
            raise TreeError.of(self.records, error, "read the history in") from error

    def names(self) -> list[str]:
        """The names of all complete releases."""
        try:
            entries = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name for name in entries if name[0] != "." and self.record(name) is not None]

    def record(self, name: str) -> dict[str, Any] | None:
        """What `.release.json` of a release says; None where there is no complete release."""
        path = os.path.join(self.path, name)
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return None
            file = os.open(os.path.join(path, RECORD), files.FILE)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_RECORD:
                    return None
                known = json.loads(files.read_whole(file))
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise TreeError.of(os.path.join(path, RECORD), error, "read") from error
        if not isinstance(known, dict) or known.get("format") != _RECORD_FORMAT:
            return None
        return known if known.get("name") == name else None  # else it was copied or moved by hand

    def require(self, name: str) -> dict[str, Any]:
        """The record of a release.

        Raises:
            NotARelease: there is none of that name, or no complete one.
        """
        known = self.record(name)
        if known is None:
            path = os.path.join(self.path, name)
            if not os.path.lexists(path):
                raise NotARelease(f"there is no release {path}: deploy it first")
            raise NotARelease(
                f"{path} is no release: it has no valid {RECORD}, which every deployed one has; "
                "move it away and deploy it"
            )
        return known

    def require_good(self, name: str) -> None:
        """Refuse a release that must not be activated.

        Raises:
            NotARelease: there is none of that name, or no complete one.
            MarkedBad: it was found bad before.
            CannotRun: its Python is not there.
        """
        self.require(name)
        path = os.path.join(self.path, name)
        reason = self.standing().bad.get(name)
        if reason is not None:
            raise MarkedBad(
                f"{path} is marked bad ({reason}): deploy another release, or take the mark away "
                "with unmark"
            )
        python = os.path.join(path, "bin", "python")
        if not os.access(python, os.X_OK):
            raise CannotRun(f"{path} cannot run: {python} is a dangling symlink; reinitialize it")

    def active(self, link: str = CURRENT) -> str | None:
        """The name of the release that a link points to; None where it points to none."""
        try:
            target = os.readlink(os.path.join(self.path, link))
        except OSError:
            return None
        directory, _, name = os.path.normpath(os.path.join(self.path, target)).rpartition("/")
        same = directory == self.path or os.path.realpath(directory) == os.path.realpath(self.path)
        return name if same else None

    def links(self) -> dict[str, str]:
        """Every link in the root that points to a name in it, and that name."""
        try:
            entries = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {link: self.active(link) for link in entries}
        return {link: name for link, name in found.items() if name is not None}

    def standing(self) -> history.Standing:
        """What the history comes to, with what has happened beside it: links made by hand."""
        known = history.standing(self.events())
        for link, name in self.links().items():
            activations = known.activations.setdefault(link, [])
            if activations[-1:] != [name] and link not in known.unfinished:
                activations.append(name)
        return known

    def earlier(self, link: str = CURRENT) -> Iterator[str]:
        """The good releases that a link pointed to before, the latest first."""
        known = self.standing()
        active = self.active(link)
        seen = {active}
        for name in reversed(known.activations.get(link, [])):
            if name not in seen and name not in known.bad and self.record(name) is not None:
                yield name
            seen.add(name)

    def is_tidy(self) -> bool:
        """Whether no killed run has left anything to finish."""
        try:
            left = os.listdir(os.path.join(self.records, STAGING))
        except OSError:  # not there, or somebody else's to tidy up
            left = []
        known = history.standing(self.events())
        return not (left or self.unfinished(known)) and known.present == set(self.names())

    def unfinished(self, known: history.Standing) -> dict[str, history.Event]:
        """The switches to finish: every rollback, and an activation of which only the end lacks."""
        return {
            link: begun
            for link, begun in known.unfinished.items()
            if begun["event"] == history.ROLLING_BACK or self.active(link) == begun["release"]
        }

    def interrupted(self, link: str) -> history.Event | None:
        """The rollback of a link that is under way or done, and that no call has reported."""
        known = history.standing(self.events())
        begun = known.unfinished.get(link)
        if begun is not None and begun["event"] == history.ROLLING_BACK:
            kept = self.active(link) in (begun["release"], begun.get("previous"), None)
            return begun if kept and self.record(begun["release"]) is not None else None
        done = known.rolled_back.get(link)
        unreported = os.path.lexists(os.path.join(self.records, UNREPORTED.format(link)))
        if done is not None and unreported and self.active(link) == done["release"]:
            return done
        return None

    def releases(self) -> list[Release]:
        """All complete releases, the last published one first."""
        known, links = self.standing(), self.links()
        found = [
            Release(
                name,
                os.path.join(self.path, name),
                self.record(name) or {},
                tuple(link for link, target in links.items() if target == name),
                known.bad.get(name),
                name in known.pinned,
            )
            for name in self.names()
        ]
        return sorted(
            found,
            key=lambda one: (one.record.get("published", ""), known.published.get(one.name, -1)),
            reverse=True,
        )

    # --- changing -------------------------------------------------------------------------------

    @contextmanager
    def locked(self, doing: str, wait: float = WAIT, *, create: bool = False) -> Iterator[None]:
        """Hold the root's lock, with everything finished that a killed run has left.

        Args:
            doing: what for, as others are told who have to wait.
            wait: seconds to wait for another holder.
            create: whether to make the root where it is missing.

        Raises:
            Busy: somebody else held it all the time.
            UnsafeDirectory: somebody else could redirect what is written.
        """
        try:
            above = self.path
            while not os.path.lexists(above):
                above = os.path.dirname(above)
            require_trusted(above)
            if create:
                _make_directories(above, self.path)
            require_trusted(self.path)
            self._directory = files.open_root(self.path)
            try:
                self._records = self._own_directory(self._directory, RECORDS, 0o755)
                try:
                    with locks.held(self._records, self.path, f"{doing} {self.job}", wait):
                        self._recover()
                        yield
                finally:
                    os.close(self._records)
            finally:
                os.close(self._directory)
        except OSError as error:
            raise TreeError.of(self.path, error, "work in") from error

    def _own_directory(self, parent: int, name: str, mode: int) -> int:
        """A descriptor of a directory of ours, which is made where it is missing."""
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
            os.chmod(name, mode, dir_fd=parent)  # whatever the umask
        try:
            directory = files.open_directory(parent, name)
        except OSError as error:
            raise InvalidPath(
                f"{os.path.join(self.path, name)} is to be a directory of records and is none: "
                "move it away"
            ) from error
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            os.close(directory)
            raise InvalidPath(
                f"{os.path.join(self.path, name)} is not writable by this user alone: "
                "see who made it, and remove it or chown it"
            )
        return directory

    def _recover(self) -> None:
        """Finish what a killed run has left, and write down what it had no time to."""
        known = history.standing(self.events())
        staging = os.path.join(self.records, STAGING)
        for event, name in _taken_away(staging):
            if name in known.present:
                known.present.discard(name)
                self.note(event, name)
        shutil.rmtree(staging, ignore_errors=True)
        os.close(self._own_directory(self._records, STAGING, 0o700))
        there = self.names()
        for name in sorted(known.present.difference(there)):
            self.note(history.REMOVED, name, reason="by hand")
        for name in there:
            if name not in known.present:
                record = self.record(name) or {}
                facts = {"source": record.get("source"), "job": record.get("job")}
                history.append(self._records, history.PUBLISHED, name, **facts)
        for link, begun in self.unfinished(known).items():
            if begun["event"] == history.ROLLING_BACK:
                self._unreported(link)
            if not self._finish_switch(link, begun):
                self.reported(link)

    def switch(self, event: str, link: str, name: str, **facts: Any) -> None:
        """Let a link point to another release; the history is told before and after it is done.

        The last step is to take it for reported. Until then, the same rollback called again ends
        this one, and is no second one.

        Args:
            event: ACTIVATING or ROLLING_BACK.
            link: the link's name.
            name: the release that it should point to.
            facts: what else belongs to it.
        """
        begun = history.append(self._records, event, name, link=link, job=self.job, **facts)
        if event == history.ROLLING_BACK:
            self._unreported(link)
        if self.active(link) != name:
            self._relink(link, name)
        self._finish_switch(link, begun)
        self.reported(link)

    def _unreported(self, link: str) -> None:
        """Note that no call has reported the rollback of a link yet."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(UNREPORTED.format(link), flags, 0o644, dir_fd=self._records))
        os.fsync(self._records)

    def reported(self, link: str) -> None:
        """Take the last switch of a link for reported.

        This is not synced, so that nothing which takes long comes after it: a power cut is a kill.
        """
        with suppress(FileNotFoundError):
            os.unlink(UNREPORTED.format(link), dir_fd=self._records)

    def _finish_switch(self, link: str, begun: history.Event) -> bool:
        """Write down what has become of a switch; one to an earlier release is done first."""
        name, back = begun["release"], begun["event"] == history.ROLLING_BACK
        left = self.active(link) in (begun.get("previous"), None)
        if back and left and self.record(name) is not None:
            self._relink(link, name)
        done = bool(self.active(link) == name)
        facts = {key: value for key, value in begun.items() if key not in ("time", "event")}
        event = history.ROLLED_BACK if back else history.ACTIVATED
        history.append(
            self._records, event if done else history.GAVE_UP, facts.pop("release"), **facts
        )
        return done

    def _relink(self, link: str, name: str) -> None:
        """Let a link point to a release: a new link, renamed over, so that there is always one."""
        aside = f"{STAGING}/{link}"
        os.symlink(name, aside, dir_fd=self._records)
        os.rename(aside, link, src_dir_fd=self._records, dst_dir_fd=self._directory)
        os.fsync(self._directory)

    def note(self, event: str, release: str, **facts: Any) -> None:
        """Write an event to the history."""
        history.append(self._records, event, release, job=self.job, **facts)

    def keep(self, name: str, content: bytes) -> None:
        """Write a record that is for this user alone, all of it or nothing."""
        aside = f"{STAGING}/{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(aside, flags, 0o600, dir_fd=self._records)
        try:
            os.fchmod(file, 0o600)  # whatever the umask
            files.write_all(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(aside, name, src_dir_fd=self._records, dst_dir_fd=self._records)
        os.fsync(self._records)

    @contextmanager
    def only_program(self, name: str, wait: float) -> Iterator[int]:
        """Hold a lock that programs inherit: one that outlives a killed run is waited for.

        Args:
            name: of the lock's file.
            wait: seconds to wait for such a program.

        Raises:
            Busy: one is still running.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._records)
        try:
            with locks.left(file, self.path, wait):
                yield file
        finally:
            os.close(file)

    @contextmanager
    def staged(self) -> Iterator[str]:
        """The path of a new directory of ours to prepare a release in; removed at the end."""
        # A name that nobody can guess: while a smoke test runs, its user may pass through.
        inner = f"{STAGING}/{os.urandom(8).hex()}"
        os.mkdir(inner, 0o700, dir_fd=self._records)
        path = os.path.join(self.records, inner)
        try:
            directory = os.open(inner, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._records)
            try:
                _drop_default_list(directory)
                os.chmod(directory, 0o700)  # without the setgid bit of the directory above
            finally:
                os.close(directory)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, staged: str, name: str, record: dict[str, Any]) -> None:
        """Give a staged tree its final name, when all of it is on the disk.

        Args:
            staged: the tree's path.
            name: the release's name.
            record: what `.release.json` should say.
        """
        tree = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with suppress(FileNotFoundError):
                os.unlink(RECORD, dir_fd=tree)
            file = os.open(RECORD, flags, 0o644, dir_fd=tree)
            with open(file, "w") as stream:
                os.fchmod(file, 0o644)  # whatever the umask
                json.dump({"format": _RECORD_FORMAT, "name": name, **record}, stream, indent=1)
                stream.write("\n")
            files.flush(tree)
        finally:
            os.close(tree)
        os.rename(staged, name, dst_dir_fd=self._directory)
        os.fsync(self._directory)

    def discard(self, name: str, event: str) -> str | None:
        """Remove a release: its name first, at once, then what is in it.

        Args:
            name: the release's name.
            event: PRUNED or REMOVED.

        Returns:
            Why something of it is left on the disk; None where nothing is.
        """
        aside = os.path.join(self.records, STAGING, f"{event}-{os.urandom(8).hex()}")
        os.mkdir(aside, 0o700)
        os.rename(name, os.path.join(aside, name), src_dir_fd=self._directory)
        os.fsync(self._directory)
        self.note(event, name)
        try:
            shutil.rmtree(aside)
        except OSError as error:
            return f"{error.filename} cannot be removed: {(error.strerror or str(error)).lower()}"
        return None


def name_of(path: str, what: str = "the release") -> tuple[str, str]:
    """The root and the name of a release's path.

    Raises:
        InvalidPath: no release can be there.
    """
    path = absolute_prefix(path, what)
    root, _, name = path.rpartition("/")
    if not root:
        raise InvalidPath(f"{what} must be in a directory of releases, such as /srv/app: {path}")
    if name[0] == "." or name == CURRENT:
        raise InvalidPath(f"no release can be called {name}: choose another name than {path}")
    return root, name


def _taken_away(staging: str) -> Iterator[tuple[str, str]]:
    """The releases that were being removed: by what event, and their names."""
    with suppress(OSError):
        for aside in os.listdir(staging):
            event = aside.partition("-")[0]
            if event in (history.PRUNED, history.REMOVED):
                for name in os.listdir(os.path.join(staging, aside)):
                    yield event, name


def _make_directories(above: str, path: str) -> None:
    """Make the directories from `above`, which is there, down to `path`, whatever the umask."""
    for name in path[len(above.rstrip("/")) + 1 :].split("/") if path != above else ():
        above = os.path.join(above, name)
        with suppress(FileExistsError):
            os.mkdir(above)
            os.chmod(above, 0o755)


def _drop_default_list(directory: int) -> None:
    """Let the directory above hand down no access list."""
    if hasattr(os, "removexattr"):
        with suppress(OSError):
            os.removexattr(directory, "system.posix_acl_default")
