"""Unpacking an interpreter bundle beside the releases: once, whatever number of them uses it.

It is unpacked as any archive, which may be hostile; nothing of it is run before its hash was
compared with the operator's. Nothing exists under its name before all is done; after a failure or a
kill the same call does it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..archives.tar import Refused
from ..bundles import reader
from ..bundles.unpack import STRONG, Unpacked, unpack
from ..errors import BadArchive, CannotRun, InvalidPath, reason_of
from ..progress import Notify, silent
from ..system import locks, staging
from ..system.staging import Staging
from ..virtualenvs.discovery import require_machine
from ..virtualenvs.interpreter import Interpreter
from ..virtualenvs.manifest import Head
from . import users
from .missing import missing
from .place import (
    RECORD,
    RECORD_FORMAT,
    RECORDS,
    Installed,
    Place,
    containing,
    described,
    name_for,
    this_machine,
)
from .proof import prove
from .relocate import relocate

_LIBRARIES = "/etc/ld.so.cache"
"""Where glibc keeps which libraries there are; package managers write it again."""


@dataclass(frozen=True)
class PythonBundle:
    """The bundle of an interpreter that releases are to run on.

    Attributes:
        archive: its path; it is not read where the interpreter is there by its hash.
        digests: what it has to hash to, by algorithm.
        source: what it is called in the records, if not by its path.
        release: the release's archive whose manifest has that hash, where no operator gave it.
        release_digests: what that archive was compared with, by algorithm.
    """

    archive: str
    digests: Mapping[str, str] | None = None
    source: str | None = None
    release: str = ""
    release_digests: Mapping[str, str] | None = None

    def require_trust(self, as_root: bool) -> None:
        """Refuse to run it as root, unless the operator gave its hash, or named root.

        Raises:
            CannotRun: it would be.
        """
        # What a release's manifest says is worth as much as the proof of the release itself.
        given = self.release_digests if self.release else self.digests
        if os.geteuid() != 0 or as_root or STRONG & {name.lower() for name in given or {}}:
            return
        what = f"the Python of {self.source or self.archive} is not unpacked"
        if self.release:
            raise CannotRun(
                f"{what}: root runs nothing from an archive whose SHA-256 was not given, and this "
                f"one is known from {self.release} alone; give the release's SHA-256 as "
                "source_hash, or give python"
            )
        raise CannotRun(
            f"{what}: root runs nothing from an archive whose SHA-256 was not given; give it as "
            "source_hash"
        )


@contextmanager
def provided(
    bundle: PythonBundle,
    place: Place,
    release: str,
    *,
    as_root: bool = False,
    fits: Callable[[Interpreter], None] = lambda _: None,
    notify: Notify = silent,
    wait: float = 300.0,
) -> Iterator[Installed]:
    """Provide the interpreter of a bundle for a release, to be deployed within the block.

    It is unpacked where it is missing. From then on it is not removed, as long as the block lasts
    or the release runs on it.

    Args:
        bundle: the interpreter's bundle.
        place: the directory of the interpreters.
        release: the release's path.
        as_root: whether the operator named root as the user who should run it.
        fits: raises where the release would not run on it; called before it is unpacked.
        notify: called after each step.
        wait: seconds to wait for another run in the same place.

    Raises:
        RelocateError: one of its subclasses, in one sentence; nothing exists under the
            interpreter's name then.
    """
    bundle.require_trust(as_root)
    doing = f"deploying the Python of {release} {place.job}"
    with staging.opened(place.path, RECORDS, doing, wait, create=True) as opened:
        opened.clear()
        found = place.find(bundle.digests)
        if found is None:
            found = _Installation(bundle, place, opened, fits, notify).run()
        if found.record.get("missing") or found.record.get("looked") != _system_libraries():
            found = _looked_again(found, opened)
        registration = users.register(opened, found.name, release)
    try:
        yield found
    except BaseException:
        if not os.path.lexists(release):
            users.unregister(place, found.name, release)
        raise
    finally:
        os.close(registration)


@contextmanager
def kept(executable: str | None, release: str, wait: float = 300.0) -> Iterator[None]:
    """Register a release with the interpreter that it runs on, where that is a shared one of ours.

    Args:
        executable: the Python.
        release: the release's path.
        wait: seconds to wait for another run in the same place.

    Raises:
        CannotRun: it was removed meanwhile.
    """
    found = containing(executable) if executable else None
    place = Place(os.path.dirname(found.path)) if found is not None else None
    if found is None or place is None or not place.is_ours:
        yield
        return
    with staging.opened(place.path, RECORDS, f"registering {release}", wait) as opened:
        if place.get(found.name) is None:
            raise CannotRun(f"{executable} was removed while {release} was deployed: run again")
        registration = users.register(opened, found.name, release)
    try:
        yield
    finally:
        os.close(registration)


def _looked_again(found: Installed, opened: Staging) -> Installed:
    """The same interpreter, with what it misses of the system now: that may have changed since."""
    looked, before = _system_libraries(), found.record.get("missing", [])
    now = _listed(missing(found.executable))
    if (now, looked) == (before, found.record.get("looked")):
        return found
    others = [one for one in found.record["problems"] if one not in before]
    record = {**found.record, "problems": others + now, "missing": now, "looked": looked}
    opened.rewrite(found.name, RECORD, record)
    return Installed(found.path, record)


def _system_libraries() -> int | None:
    """What changes when a library of the system is installed or removed; None where nothing does.

    That is cheaper than letting each interpreter import all its modules for each release.
    """
    try:
        return os.stat(_LIBRARIES).st_mtime_ns
    except OSError:
        return None


def _listed(problems: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"file": file, "reason": reason} for file, reason in problems]


def compared(archive: str, digests: Mapping[str, str], doing: str) -> str:
    """The SHA-256 of an archive, once it was compared with all the hashes that were given.

    Args:
        archive: its path.
        digests: what it has to hash to, by algorithm.
        doing: what is done with it, for the message.

    Raises:
        BadArchive: it is another one, or cannot be read.
    """
    wanted = {name.lower(): value.lower() for name, value in digests.items()}
    try:
        hashes = {name: hashlib.new(name) for name in {"sha256", *wanted}}
        with open(archive, "rb") as file:
            while piece := file.read(1 << 20):
                for one in hashes.values():
                    one.update(piece)
        found = {name: one.hexdigest() for name, one in hashes.items()}
    except (ValueError, TypeError) as error:
        raise BadArchive(
            f"cannot compare {archive} with its hash: {', '.join(wanted)} is not known here; give "
            "its SHA-256"
        ) from error
    except OSError as error:
        raise BadArchive(
            f"cannot read {archive}: {reason_of(error)}; give a readable file"
        ) from error
    for name, value in wanted.items():
        if found[name] != value:
            raise BadArchive(
                f"cannot {doing} {archive}: its {name} is {found[name]}, where {value} was "
                "expected; fetch it again"
            )
    return found["sha256"]


class _Installation:
    """An interpreter on its way from its bundle to its name."""

    def __init__(
        self,
        bundle: PythonBundle,
        place: Place,
        opened: Staging,
        fits: Callable[[Interpreter], None],
        notify: Notify,
    ) -> None:
        self.bundle = bundle
        self.place = place
        self.opened = opened
        self.fits = fits
        self.notify = notify

    def run(self) -> Installed:
        """Unpack it, unless it is there by its manifest."""
        archive = self.bundle.archive
        with reader.of_archive(archive, reader.require_interpreter) as known:
            head, digest = known.head, known.digest
        try:
            name = name_for(head, digest)
        except Refused as refusal:
            raise BadArchive(f"cannot unpack {archive}: {refusal}; {refusal.advice}") from refusal
        path = os.path.join(self.place.path, name)
        found = self.place.get(name)
        if found is not None and found.record.get("manifest") == digest:
            compared(archive, self.bundle.digests or {}, "unpack")  # as nothing of it is unpacked
            return found
        if os.path.lexists(path):
            raise InvalidPath(
                f"{path} exists, and is no interpreter that was deployed: move it away, and run "
                "again"
            )
        require_machine(head, f"unpack the Python of {archive}", this_machine())
        self.fits(described(head, path))
        with self.opened.staged() as directory:
            staged = os.path.join(directory, name)
            record = self._prepare(staged, path, head, digest)
            self.opened.publish(staged, name, RECORD, record)
        self.notify("interpreter", {"interpreter": path, "version": head.version})
        return Installed(path, record)

    def _prepare(self, staged: str, path: str, head: Head, digest: str) -> dict[str, Any]:
        """Unpack, relocate and try it; what is to be recorded."""
        unpacked = self._unpack(staged)
        if unpacked.manifest != digest:
            raise BadArchive(
                f"cannot unpack {self.bundle.archive}: it was replaced meanwhile; run again"
            )
        moved = relocate(staged, head, path)
        prove(staged, head, self.bundle.archive)
        assert head.interpreter is not None
        looked = _system_libraries()
        lacks = _listed(missing(os.path.join(staged, head.interpreter.program)))
        os.chmod(staged, 0o755)
        return {
            "format": RECORD_FORMAT,
            "name": os.path.basename(path),
            "manifest": digest,
            "digests": unpacked.digests,
            "source": self.bundle.source or self.bundle.archive,
            "version": head.version,
            "implementation": head.implementation,
            "program": head.interpreter.program,
            "files": unpacked.files,
            "size": unpacked.size,
            "rewritten": moved.rewritten,
            "problems": _listed(moved.problems) + lacks,
            "missing": lacks,  # of them, what somebody may install
            "looked": looked,
            "installed": locks.now(),
            "job": self.place.job,
        }

    def _unpack(self, staged: str) -> Unpacked:
        os.mkdir(staged, 0o700)
        descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return unpack(
                self.bundle.archive,
                descriptor,
                digests=self.bundle.digests,
                kind=reader.require_interpreter,
                progress=lambda files, size: self.notify(
                    "unpacking", {"files": files, "size": size}
                ),
            )
        finally:
            os.close(descriptor)
