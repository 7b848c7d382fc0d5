"""Relocating a virtualenv: one walk, every reference rewritten, safe to kill and to run again.

The order is what makes a kill harmless. Whatever describes a file is brought up to date before the
file: RECORD rows, then the bytecode of a changed source, then the source. A run that was killed in
between finds that the source still contains the old prefix and does the same once more. The files
that record where the virtualenv was built - scripts, pyvenv.cfg, `activate` as the very last - are
renamed into place after everything else is on disk; once they contain the new prefix, the work is
done, and seeing that takes no walk.

A failure puts everything back: bytecode by the opposite rewrite, all other files from a second link
that is kept to the old content until the end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..archives.tar import Refused
from ..artefacts import bytecode, metadata
from ..artefacts.prefix import Prefixes
from ..errors import InvalidPath, RelocateError, TreeChanged, TreeError, UnknownPrefix, reason_of
from ..progress import Report
from ..system import files
from ..system.interrupts import deferred
from ..system.locks import locked
from ..system.transaction import Change, DryRun, Transaction, reserve
from ..virtualenvs import manifest, manifest_reader, rewritten
from ..virtualenvs.evidence import recorded_prefixes
from ..virtualenvs.layout import Virtualenv, absolute_prefix, inspect
from ..virtualenvs.manifest import Head
from ..virtualenvs.nested import packages_above
from . import workers
from .packaged import Packaged
from .records import Records
from .rewriter import Rewriter
from .scan import Findings, Scanner
from .untouched import Times, times
from .walk import Walk

Progress = Callable[[int, int], None]
"""Called with the number of files done and the number known so far."""


@dataclass
class Relocation(Report):
    """What a relocation did, or in a dry run would do.

    Attributes:
        path: the virtualenv, as it was given.
        prefix: the path that its files refer to now.
        old_prefixes: the paths that they referred to before; empty where nothing was to be done.
        dry_run: whether nothing was changed.
        rewritten: how many files were rewritten, by kind.
        files: the rewritten files that are no bytecode, relative to the virtualenv, sorted.
        problems: (file, reason) of each reference that had to be left, and of bytecode that was
            skipped.
        seen: how many files were read.
    """

    path: str
    prefix: str
    old_prefixes: list[str]
    dry_run: bool = False
    rewritten: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    seen: int = 0

    @property
    def changed(self) -> bool:
        """Whether anything was (in a dry run: would be) rewritten."""
        return bool(self.rewritten)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        problems = [{"file": path, "reason": reason} for path, reason in self.problems]
        return {**super().as_dict(), "changed": self.changed, "problems": problems}


def relocate(
    path: str,
    new_path: str = "auto",
    old_path: str | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    wait: float = 30.0,
    unpublished: bool = False,
    as_packed: bool = False,
) -> Relocation:
    """Relocate the virtualenv at `path` to `new_path`.

    Of an unpacked bundle only the files are read that its manifest lists, unless something was
    installed into it since.

    Args:
        path: the virtualenv's directory, as it is on this machine.
        new_path: the absolute path that its files should refer to; "auto" is where it is, with no
            symlink on the way.
        old_path: one more path to look for, which the virtualenv itself does not record.
        dry_run: look, and change nothing.
        progress: called now and then.
        wait: seconds to wait for another run on the same virtualenv.
        unpublished: whether nobody relies on the tree yet: it is then not synced, as whoever
            publishes it syncs all of it, nor put back after a failure.
        as_packed: whether the tree is known to be just what its manifest lists.

    Returns:
        What was done. Nothing is done where all files refer to the new path already.

    Raises:
        RelocateError: one of its subclasses, in one sentence; the virtualenv is as it was before.
    """
    if new_path == "auto":
        new = absolute_prefix(_location(path), "the path")
    else:
        new = absolute_prefix(new_path, "the new path")
    given = [absolute_prefix(old_path, "the old path")] if old_path else []
    environment = inspect(path)
    if environment.python.startswith("2.") and not new.isascii():
        raise InvalidPath(
            f"Python {environment.python} reads no script whose first line is not in ASCII: "
            f"choose another path than {new}"
        )
    root = files.open_root(path)
    try:
        with locked(root, path, wait):
            environment = inspect(path)  # what another run has done meanwhile counts
            head, found = _manifest(root, True) if as_packed else (None, Times(False))
            known = recorded_prefixes(root, environment) if head is None else head.prefixes
            old = [
                p for p in dict.fromkeys((*given, *environment.old_prefixes, *known)) if p != new
            ]
            if not old:
                if not dry_run and has_leftovers(path):
                    files.clear_leftovers(root)
                return _nothing_to_do(environment, new, known)
            if head is None:
                head, found = _manifest(root, as_packed)
            if head is not None and not {*head.prefixes}.isdisjoint(old):
                old += [p for p in head.prefixes if p != new and p not in old]
            run = _Run(root, environment, old, new, dry_run, progress, unpublished, head, found)
            return run.relocate()
    except OSError as error:
        raise TreeError.of(path, error) from error
    finally:
        os.close(root)


def _manifest(root: int, as_packed: bool) -> tuple[Head | None, Times]:
    """The head of an unpacked bundle's manifest, and what the times of its files show.

    There is no head where it may not be true any more.
    """
    try:
        known = manifest_reader.of_tree(root)
        if known is None:
            return None, Times(False)
        with known:
            head = known.head
            found = Times(True) if as_packed else times(root, known)
    except Refused:
        return None, Times(False)
    there = found.untouched and all(_exists(root, path) for path in head.references)
    return head if there else None, found


def _exists(root: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _location(path: str) -> str:
    """Where the virtualenv is: a symlink on the way to it is no place to relocate to.

    Programs started through one, like `current`, would find another release behind it after the
    next switch.
    """
    return os.path.realpath(path)


def has_leftovers(path: str) -> bool:
    """Whether a run was killed while it removed the old contents: the last one is in `bin`."""
    return any(
        name.startswith(files.TEMPORARY)
        for directory in (path, os.path.join(path, "bin"))
        for name in os.listdir(directory)
    )


def _nothing_to_do(environment: Virtualenv, new: str, known: Sequence[str]) -> Relocation:
    if environment.prefix is None and not environment.relocatable and new not in known:
        raise UnknownPrefix(
            f"{environment.path} does not say where it was built: its activation scripts, "
            "pyvenv.cfg and console scripts contain no path; give it (--old-path, in Salt old_path)"
        )
    return Relocation(environment.path, new, [])


class _Run:
    """One relocation, from the walk to the last rename."""

    def __init__(
        self,
        root: int,
        environment: Virtualenv,
        old: list[str],
        new: str,
        dry_run: bool,
        progress: Progress | None,
        unpublished: bool,
        head: Head | None,
        times: Times,
    ) -> None:
        self.root = root
        self.unpublished = unpublished
        self.head = head
        self.times = times
        self.environment = environment
        self.report = Relocation(environment.path, new, old, dry_run)
        self.progress = progress
        old_bytes = tuple(map(os.fsencode, old))
        new_bytes = os.fsencode(new)
        names = (old_bytes[0].rpartition(b"/")[2], new_bytes.rpartition(b"/")[2])
        prompt = names if names[0] != names[1] and environment.prompt is None else None
        self.prefixes = Prefixes(old_bytes, new_bytes, prompt)
        self.failure: RelocateError | None = None
        self.walk = Walk(root, environment.path, clear=not dry_run)
        self.bytecode: dict[str, int] = {}
        self.hits: list[str] = []
        self.transaction = (DryRun if dry_run else Transaction)(
            root, environment.path, durable=not unpublished
        )

    def relocate(self) -> Relocation:
        if self.report.dry_run:
            self._scan()
            self._write()
        else:
            with reserve(self.root) as release:
                try:
                    self._scan()
                    self._write()
                    self.transaction.commit(_rank, _IDENTITY)
                except BaseException as error:
                    release()
                    if not self.unpublished:
                        with deferred():
                            self._put_back(error)
                    raise
        if ":" in self.report.prefix:
            reason = "PATH is split at the colon in the new path: to activate it has no effect"
            self.report.problems.append(("bin/activate", reason))
        self.report.files.sort()
        self.report.problems.sort()
        return self.report

    def _put_back(self, error: BaseException) -> None:
        """Undo what was done so far, as far as the same trouble does not forbid it."""
        try:
            self.transaction.put_back()
            self._rewrite_back()
            files.clear_leftovers(self.root)  # an interrupt may come between any two steps
        except OSError as second:
            if isinstance(error, OSError):
                error = TreeError.of(self.environment.path, error)
            raise TreeError(
                f"{error}; putting back what was done failed as well "
                f"({reason_of(second)}): see to it and run the same again"
            ) from error

    def _rewrite_back(self) -> None:
        """Give rewritten bytecode its old prefix again."""
        for which, old in enumerate(self.prefixes.old):
            directories: dict[str, list[str]] = {}
            for path, number in self.bytecode.items():
                if number == which:
                    directory, _, name = path.rpartition("/")
                    directories.setdefault(directory, []).append(name)
            back = Prefixes((self.prefixes.new,), old, certain=True)
            scanner = Scanner(self.root, back, write=True)
            workers.scan(scanner, iter(directories.items()), _require_success)

    # --- finding --------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Find what contains a prefix; a walk, if it takes one, rewrites bytecode on the way."""
        listed = self.head.references if self.head is not None else ()
        if not self.report.dry_run:
            parents = {path.rpartition("/")[0] for path in listed}
            files.clear_directories(self.root, {"", manifest.PLACE, *parents})
            self.times.settle(self.root)
        if self.head is not None:
            self._take_listed(self.head)
            return
        account = _exists(self.root, rewritten.NAME)
        scanner = Scanner(self.root, self.prefixes, not self.report.dry_run, account)
        workers.scan(scanner, self.walk.directories(), self._take)
        if self.failure is not None:
            raise self.failure
        self.report.problems += [(path, "it is another file system") for path in self.walk.foreign]
        if self.bytecode:
            self.report.rewritten[bytecode.KIND] = len(self.bytecode)

    def _take_listed(self, head: Head) -> None:
        """Take for found what the manifest of a bundle lists."""
        for path in head.references:
            status = os.stat(path, dir_fd=self.root, follow_symlinks=False)
            (self.walk.links if stat.S_ISLNK(status.st_mode) else self.hits).append(path)
        self.report.problems += head.uneditable
        self.report.seen = head.files

    def _take(self, findings: Findings) -> None:
        self.report.seen += findings.seen
        self.bytecode.update(findings.rewritten)
        self.hits += findings.hits
        self.report.problems += findings.hidden
        if findings.failure and self.failure is None:
            self.failure = self._failure(findings)
            self.walk.stop()
        if self.progress is not None:
            self.progress(self.report.seen, self.walk.known)

    def _failure(self, findings: Findings) -> RelocateError:
        assert findings.failure is not None
        path, kind, number, text = findings.failure
        if kind == "TreeChanged":
            return TreeChanged(text)
        return TreeError.of(self._full(path), OSError(number, text))

    def _full(self, path: str) -> str:
        return os.path.join(self.environment.path, path)

    # --- writing --------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write every other new file beside its old one; nothing is in place yet."""
        nested = packages_above(self.environment, self.hits)
        places = (*self.environment.site_packages, *nested)
        records = Records(self.root, places, self.prefixes)
        packaged = Packaged(self.root, records, self.prefixes)
        rewriter = Rewriter(self.root, packaged, self.transaction, self.report, self.bytecode)
        for path in self.walk.links:
            rewriter.link(path)
        for path in self.hits:
            rewriter.file(path)
        rewriter.follow_sources()
        listed = None
        if self.head is not None:
            listed = [path for path in self.head.references if path.endswith("/RECORD")]
            inner = tuple(f"{place}/" for place in nested)
            listed += [path for path, _ in records if path.startswith(inner)] if inner else []
            listed = list(dict.fromkeys(listed))
        for record, known in records.update(self.transaction, listed):
            if not known:
                rewriter.count(record, metadata.KIND)
        rewritten.update(self.root, self.transaction)


def _require_success(findings: Findings) -> None:
    if findings.failure:
        path, _, number, text = findings.failure
        raise OSError(number, text, path)


_IDENTITY = 3


def _rank(item: Change) -> int:
    """The order of the renames; see the module's first lines."""
    if item.path.endswith(".dist-info/RECORD") or item.kind == rewritten.KIND:
        return 0
    if item.kind == bytecode.KIND:
        return 1
    if item.path == "bin/activate":
        return 6
    if item.path.startswith("bin/activate."):
        return 5
    if item.path == "pyvenv.cfg":
        return 4
    return _IDENTITY if item.path.startswith("bin/") else 2
