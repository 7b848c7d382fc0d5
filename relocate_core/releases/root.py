"""A root: the directory of an app's releases, `current` beside them, and the records in
`.releases`.

Here it is only read; `store` changes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CannotRun, InvalidPath, MarkedBad, NotARelease, TreeError
from ..interpreters.place import containing
from ..relocation.reinitialize import final_link
from ..system.ownership import is_own
from ..system.staging import STAGING, record_of
from ..virtualenvs.layout import absolute_prefix, read_config
from ..virtualenvs.manifest import RECORD
from . import history

RECORDS = ".releases"
UNREPORTED = "unreported-{}"
"""A file that is there from the middle of a link's rollback until its call ends."""
CURRENT = "current"
# Long enough for another deploy to end.
WAIT = 300.0
RECORD_FORMAT = 1


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
        interpreter: the directory of the interpreter that it shares with others; None where it runs
            on a Python of the machine.
        python: what its `bin/python` points to; None for a copy.
        python_version: the X.Y.Z that it is on, or was deployed on where that cannot be read.
    """

    name: str
    path: str
    record: dict[str, Any] = field(repr=False)
    active: tuple[str, ...] = ()
    bad: str | None = None
    pinned: bool = False
    interpreter: str | None = None
    python: str | None = None
    python_version: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What an operator wants to see of it, as plain values."""
        seen = {"active": list(self.active)} if self.active else {}
        marks = {"bad": self.bad} if self.bad is not None else {}
        pin = {"pinned": True} if self.pinned else {}
        kept = ("published", "source", "files", "size", "job")
        facts = {key: self.record[key] for key in kept if self.record.get(key) not in (None, "")}
        now = {"python": self.python, "python_version": self.python_version}
        facts |= {key: value for key, value in now.items() if value}
        bundle = {"bundle": True} if self.record.get("manifest") else {}
        shared = {"interpreter": self.interpreter} if self.interpreter else {}
        return {**seen, **marks, **pin, **facts, **bundle, **shared}


class Root:
    """An app's directory of releases.

    Args:
        path: the directory; it need not exist yet.
        job: what this is done for, such as Salt's job id; it is written to lock and history.

    Raises:
        InvalidPath: no releases can be kept there.
    """

    def __init__(self, path: str, job: str = "") -> None:
        self.path = absolute_prefix(path, "the directory of the releases")
        self.job = job

    @property
    def records(self) -> str:
        """The directory of the lock, the staged trees and the history."""
        return os.path.join(self.path, RECORDS)

    @property
    def is_ours(self) -> bool:
        """Whether this user keeps the records here."""
        return is_own(self.records)

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
        return record_of(os.path.join(self.path, name), RECORD, RECORD_FORMAT)

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
                "with unmark_bad"
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
        """What follows from the history, and from the links that were made by hand."""
        known = history.standing(self.events())
        for link, name in self.links().items():
            activations = known.activations.setdefault(link, [])
            if activations[-1:] != [name] and link not in known.unfinished:
                activations.append(name)
        return known

    def reinitialized(self, name: str) -> history.Event | None:
        """How a release was put onto its Python, as long as it was not found healthy on it."""
        entry = self.standing().reinitialized.get(name)
        runs_on = final_link(os.path.join(self.path, name, "bin", "python"))
        return entry if entry is not None and entry.get("python") == runs_on else None

    def previous(self, link: str = CURRENT) -> Iterator[str]:
        """The good previous releases of a link, the latest first."""
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
        """The switches to finish: every rollback, and an activation whose link was changed."""
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
        found = [self._release(name, known, links) for name in self.names()]
        return sorted(
            found,
            key=lambda one: (one.record.get("published", ""), known.published.get(one.name, -1)),
            reverse=True,
        )

    def _release(self, name: str, known: history.Standing, links: Mapping[str, str]) -> Release:
        path, record = os.path.join(self.path, name), self.record(name) or {}
        python = os.path.join(path, "bin", "python")
        shared = containing(python)
        return Release(
            name,
            path,
            record,
            tuple(link for link, target in links.items() if target == name),
            known.bad.get(name),
            name in known.pinned,
            None if shared is None else shared.path,
            final_link(python),
            _python_version(path) or record.get("python_version"),
        )


def _python_version(path: str) -> str | None:
    """The X.Y.Z in a release's pyvenv.cfg, which changes with the Python that it is put onto."""
    try:
        config = read_config(path)
    except OSError:
        return None
    found = re.match(r"\d+\.\d+\.\d+", config.get("version_info") or config.get("version", ""))
    return None if found is None else found[0]


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


def link_name(root: Root, link: str | None) -> str:
    """The name of a link in the root.

    Raises:
        InvalidPath: it is not there, or is no link.
    """
    if link is None:
        name = CURRENT
    elif "/" in link:
        directory, _, name = absolute_prefix(link, "the link").rpartition("/")
        if os.path.realpath(directory) != os.path.realpath(root.path):
            raise InvalidPath(f"the link {link} must be beside its releases, in {root.path}")
    else:
        name = link
    if not name or name[0] == ".":
        raise InvalidPath(f"no symlink can be called {name!r}: choose a name such as {CURRENT}")
    path = os.path.join(root.path, name)
    if os.path.lexists(path) and not os.path.islink(path):
        what = "directory" if os.path.isdir(path) else "file"
        raise InvalidPath(f"{path} is a {what} and no symlink: move it away, and run again")
    return name
