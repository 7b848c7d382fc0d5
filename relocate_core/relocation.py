"""Relocating a virtualenv: one walk, every reference rewritten, safe to kill and to run again.

The order is what makes a kill harmless. Whatever describes a file is brought up to date before the
file: RECORD rows, then the bytecode of a changed source, then the source. A run that was killed in
between finds the source still naming the old prefix and does the same once more. The files that say
where the virtualenv was built - scripts, pyvenv.cfg, `activate` as the very last - are renamed into
place after everything else is on disk; once they name the new prefix, the work is done, and telling
so costs no walk.

A failure puts everything back: bytecode by the opposite rewrite, all other files from a second link
that is kept to the old content until the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from . import files, pool
from .artefacts import binaries, bytecode, metadata, rewrite
from .errors import Busy, RelocateError, TreeChanged, TreeError, UnknownPrefix
from .large import LargeFile
from .prefix import Prefixes
from .scanning import WHOLE, Findings, Folder, Scanner
from .virtualenv import Virtualenv, absolute_prefix, inspect, recorded_prefixes

Progress = Callable[[int, int], None]
"""Called with the number of files done and the number known so far."""

# Kept free for putting things back on a disk that runs full.
_RESERVE = 1 << 20
_DEEPEST = 200


@dataclass
class Relocation:
    """What a relocation did, or in a dry run would do.

    Attributes:
        path: the virtualenv, as it was given.
        prefix: the path that its files name now.
        old_prefixes: the paths that they named before; empty where nothing was to be done.
        dry_run: whether it was only looked at.
        rewritten: how many files were rewritten, by kind.
        files: the rewritten files that are no bytecode, relative to the virtualenv, sorted.
        problems: (file, reason) of each reference that had to be left, and of bytecode that was
            skipped.
        seen: how many files were looked at.
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
        return {
            "path": self.path,
            "prefix": self.prefix,
            "old_prefixes": self.old_prefixes,
            "changed": self.changed,
            "dry_run": self.dry_run,
            "rewritten": self.rewritten,
            "files": self.files,
            "problems": [{"file": path, "reason": reason} for path, reason in self.problems],
            "seen": self.seen,
        }


def relocate(
    path: str,
    new_path: str = "auto",
    old_path: str | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    wait: float = 30.0,
) -> Relocation:
    """Make the virtualenv at `path` at home under `new_path`.

    Args:
        path: the virtualenv's folder, as it stands on this machine.
        new_path: the absolute path that its files shall name; "auto" is where it stands.
        old_path: one more path to look for, where the virtualenv itself does not tell.
        dry_run: look, and change nothing.
        progress: called now and then.
        wait: seconds to wait for another run on the same virtualenv.

    Returns:
        What was done. Nothing is done where all files name the new path already.

    Raises:
        RelocateError: one of its subclasses, in one sentence; the virtualenv is as it was before.
    """
    new = absolute_prefix(
        os.path.abspath(path) if new_path == "auto" else new_path,
        "the path" if new_path == "auto" else "--update-path",
    )
    given = [absolute_prefix(old_path, "the old path")] if old_path else []
    environment = inspect(path)
    root = files.open_root(path)
    try:
        with _locked(root, path, wait):
            environment = inspect(path)  # what another run has done meanwhile counts
            old = [p for p in dict.fromkeys((*given, *environment.old_prefixes)) if p != new]
            if not old:
                return _nothing_to_do(environment, new)
            recorded = recorded_prefixes(root, environment.site_packages)
            old += [prefix for prefix in recorded if prefix != new and prefix not in old]
            run = _Run(root, environment, old, new, dry_run, progress)
            return run.relocate()
    except OSError as error:
        raise TreeError.of(path, error) from error
    finally:
        os.close(root)


def _nothing_to_do(environment: Virtualenv, new: str) -> Relocation:
    if environment.prefix is None and not environment.relocatable:
        raise UnknownPrefix(
            f"{environment.path} does not say where it was built: its activation scripts, "
            "pyvenv.cfg and console scripts name no path; tell the old path"
        )
    return Relocation(environment.path, new, [])


@contextmanager
def _locked(root: int, path: str, wait: float) -> Iterator[None]:
    """Hold the virtualenv's folder itself as the lock, which leaves no file behind."""
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                raise Busy(
                    f"cannot relocate {path}: another run has been at work on it for "
                    f"{wait:g} seconds; wait for it to end and run again"
                ) from None
            time.sleep(0.05)
        except OSError:
            break  # a file system without locks
    yield


@dataclass
class _Staged:
    """A new file or link, written beside the old one and not yet in its place."""

    path: str
    kind: str
    status: os.stat_result
    temporary: str
    backup: str | None = None
    """The second link to the old content, once the new one is in place."""


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
    ) -> None:
        self.root = root
        self.environment = environment
        self.report = Relocation(environment.path, new, old, dry_run)
        self.write = not dry_run
        self.progress = progress
        old_bytes = tuple(map(os.fsencode, old))
        new_bytes = os.fsencode(new)
        names = (old_bytes[0].rpartition(b"/")[2], new_bytes.rpartition(b"/")[2])
        prompt = names if names[0] != names[1] and environment.prompt is None else None
        self.prefixes = Prefixes(old_bytes, new_bytes, prompt)
        self.failure: RelocateError | None = None
        self.known = 0
        self.links: list[str] = []
        self.bytecode: dict[str, int] = {}
        self.hits: list[str] = []
        self.staged: dict[str, _Staged] = {}

    def relocate(self) -> Relocation:
        reserve = self._reserve() if self.write else None
        try:
            self._scan()
            self._stage()
            self._commit()
        except BaseException as error:
            if reserve is not None:
                os.close(reserve)
                reserve = None
            self._put_back(error)
            raise
        finally:
            if reserve is not None:
                os.close(reserve)
        self.report.files.sort()
        self.report.problems.sort()
        return self.report

    def _reserve(self) -> int:
        """Take some room on the disk; fails at once on a full or read-only one."""
        name = files.temporary_name()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            reserve = os.open(name, flags, 0o600, dir_fd=self.root)
            try:
                os.unlink(name, dir_fd=self.root)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(reserve, 0, _RESERVE)
            except BaseException:
                os.close(reserve)
                raise
        except OSError as error:
            raise TreeError.of(self.environment.path, error) from error
        return reserve

    # --- finding --------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Walk the tree; bytecode is rewritten on the way, other hits are collected."""
        scanner = Scanner(self.root, self.prefixes, self.write, self._hashed_bytecode())
        for findings in pool.scan(scanner, self._walk()):
            self.report.seen += findings.seen
            self.bytecode.update(findings.rewritten)
            self.hits += findings.hits
            self.report.problems += findings.hidden
            if findings.failure and self.failure is None:
                self.failure = self._failure(findings)
            if self.progress is not None:
                self.progress(self.report.seen, self.known)
        if self.failure is not None:
            raise self.failure
        if self.bytecode:
            self.report.rewritten[bytecode.KIND] = len(self.bytecode)

    def _failure(self, findings: Findings) -> RelocateError:
        assert findings.failure is not None
        path, kind, number, text = findings.failure
        if kind == "TreeChanged":
            return TreeChanged(text)
        return TreeError.of(self._full(path), OSError(number, text))

    def _full(self, path: str) -> str:
        return os.path.join(self.environment.path, path)

    def _walk(self) -> Iterator[Folder]:
        """Every folder with its regular files; stops early once something has failed."""
        device = os.fstat(self.root).st_dev
        folder = os.dup(self.root)
        try:
            yield from self._walk_folder(folder, "", device, 0)
        finally:
            os.close(folder)

    def _walk_folder(self, folder: int, path: str, device: int, depth: int) -> Iterator[Folder]:
        names, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_symlink():
                    self.links.append(f"{path}/{name}" if path else name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif entry.is_file(follow_symlinks=False):
                    if name.startswith(files.TEMPORARY):
                        self._clear(folder, name)
                    else:
                        names.append(name)
        self.known += len(names)
        if names:
            yield path, names
        for name in folders:
            below = f"{path}/{name}" if path else name
            if self.failure is not None:
                return
            if depth >= _DEEPEST:
                raise TreeError(
                    f"cannot relocate {self._full(below)}: folders are nested more than "
                    f"{_DEEPEST} deep; this is no virtualenv that a tool has made"
                )
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            try:
                if os.fstat(inner).st_dev != device:
                    self.report.problems.append((below, "it is another file system"))
                    continue
                yield from self._walk_folder(inner, below, device, depth + 1)
            finally:
                os.close(inner)

    def _clear(self, folder: int, name: str) -> None:
        """Remove what a killed run has left: under the lock, nobody else is using it."""
        if self.write:
            os.unlink(name, dir_fd=folder)

    def _hashed_bytecode(self) -> frozenset[str]:
        """Bytecode whose hash a RECORD lists: rare, and to be rewritten after that RECORD."""
        found = []
        for record, rows in self._records(lambda data: b".pyc,sha" in data):
            base = os.path.dirname(os.path.dirname(record))
            for row, line in rows:
                if row.endswith(b".pyc") and line.rstrip().count(b"=") and b",," not in line:
                    found.append(os.path.normpath(os.path.join(base, os.fsdecode(row))))
        return frozenset(found)

    def _records(
        self, wanted: Callable[[bytes], bool]
    ) -> Iterator[tuple[str, Iterator[tuple[bytes, bytes]]]]:
        """The path and the rows of each RECORD whose content is `wanted`."""
        for site_packages in self.environment.site_packages:
            folder = files.open_folder(self.root, site_packages)
            try:
                for name in sorted(os.listdir(folder)):
                    if not name.endswith(".dist-info"):
                        continue
                    path = f"{site_packages}/{name}/RECORD"
                    try:
                        inner = os.open(
                            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder
                        )
                    except OSError:
                        continue
                    try:
                        data, _ = files.read(inner, "RECORD")
                    except FileNotFoundError:
                        continue
                    finally:
                        os.close(inner)
                    if wanted(data):
                        yield path, metadata.record_rows(data)
            finally:
                os.close(folder)

    # --- writing aside --------------------------------------------------------------------------

    def _stage(self) -> None:
        """Write every other new file beside its old one; nothing is in place yet."""
        for path in self.links:
            self._stage_link(path)
        changed = [path for path in self.hits if self._stage_file(path)]
        for path in changed:
            if path.endswith(".py"):
                self._stage_bytecode_of(path)
        self._stage_records()

    def _count(self, path: str, kind: str) -> None:
        self.report.rewritten[kind] = self.report.rewritten.get(kind, 0) + 1
        if kind != bytecode.KIND:
            self.report.files.append(path)

    def _stage_link(self, path: str) -> None:
        with files.folder_of(self.root, path) as (folder, name):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            target = os.fsencode(os.readlink(name, dir_fd=folder))
            new = self.prefixes.replace(target) if target.startswith(b"/") else target
            # Only the beginning of a target is a place in the virtualenv.
            if new == target or not new.startswith(self.prefixes.new):
                return
            if self.write:
                temporary = files.link_aside(folder, name, status, os.fsdecode(new))
                self.staged[path] = _Staged(path, "link", status, temporary)
        self._count(path, "link")

    def _stage_file(self, path: str) -> bool:
        """Rewrite one hit beside the old file; whether there was anything to rewrite."""
        with files.folder_of(self.root, path) as (folder, name):
            file = files.open_file(folder, name)
            try:
                status = os.fstat(file)
                if status.st_size > WHOLE:
                    return self._stage_large(path, folder, name, file, status)
                data = files.read_whole(file)
            finally:
                os.close(file)
            result = rewrite(path, data, self.prefixes)
            problem = result.problem
            if self.write and (problem or result.data != data):
                temporary = _write_aside(folder, name, status, result.data)
                if problem and result.kind == binaries.KIND:
                    problem = self._grow(folder, temporary, status, data, problem)
                if problem and result.data == data:
                    os.unlink(temporary, dir_fd=folder)
                else:
                    self.staged[path] = _Staged(path, result.kind, status, temporary)
            elif problem and result.kind == binaries.KIND and self._can_grow(data):
                problem = ""
        if problem:
            self.report.problems.append((path, problem))
            if result.data == data:
                return False
        elif result.data == data and result.kind != binaries.KIND:
            return False
        self._count(path, result.kind)
        return True

    def _can_grow(self, data: bytes) -> bool:
        return (
            shutil.which("patchelf") is not None
            and binaries.longer_runpath(data, self.prefixes) is not None
        )

    def _grow(
        self, folder: int, temporary: str, status: os.stat_result, data: bytes, problem: str
    ) -> str:
        """Let `patchelf` write a RUNPATH that has no room; what is still wrong then."""
        runpath = binaries.longer_runpath(data, self.prefixes)
        program = shutil.which("patchelf")
        if runpath is None or program is None:
            return problem + ("; install patchelf" if runpath is not None else "")
        try:
            subprocess.run(
                [program, "--set-rpath", os.fsdecode(runpath), temporary],
                cwd=f"/proc/self/fd/{folder}",
                check=True,
                capture_output=True,
                timeout=60,
            )
        except (OSError, subprocess.SubprocessError):
            return problem + "; patchelf failed on it"
        grown, _ = files.read(folder, temporary)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=folder)
        return rewrite("", grown, self.prefixes).problem

    def _stage_large(
        self, path: str, folder: int, name: str, file: int, status: os.stat_result
    ) -> bool:
        large = LargeFile(file, self.prefixes)
        if large.problem:
            self.report.problems.append((path, large.problem))
            return False
        if self.write:
            temporary = files.write_aside(folder, file, status, large.pieces())
            self.staged[path] = _Staged(path, large.kind, status, temporary)
        else:
            for _ in large.pieces():
                pass
        if large.problem:
            self.report.problems.append((path, large.problem))
        self._count(path, large.kind)
        return True

    def _stage_bytecode_of(self, path: str) -> None:
        """Make the bytecode of a changed source fit the new source.

        The source keeps its time, and often its size, so Python would go on using the old one.
        """
        source = self.staged.get(path)
        if source is None:
            return
        with files.folder_of(self.root, path) as (folder, name):
            old, status = files.read(folder, name)
            new, _ = files.read(folder, source.temporary)
        mtime = int(status.st_mtime)
        parent, _, name = path.rpartition("/")
        stem = name[: -len(".py")]
        for pyc in self._bytecode_files(parent, stem):
            self._stage_followed(
                pyc, bytecode.Source(old, mtime), bytecode.Source(new, mtime)
            )

    def _bytecode_files(self, parent: str, stem: str) -> Iterator[str]:
        """The existing bytecode files of a source `parent/stem.py`."""
        places = (
            (parent, (f"{stem}.pyc", f"{stem}.pyo"), None),
            (f"{parent}/__pycache__" if parent else "__pycache__", (), f"{stem}."),
        )
        for folder, names, start in places:
            try:
                descriptor = files.open_folder(self.root, folder)
            except OSError:
                continue
            try:
                for name in sorted(os.listdir(descriptor)):
                    if name in names or (start and name.startswith(start) and name[-4:] == ".pyc"):
                        yield f"{folder}/{name}" if folder else name
            finally:
                os.close(descriptor)

    def _stage_followed(self, path: str, old: bytecode.Source, new: bytecode.Source) -> None:
        staged = self.staged.get(path)
        with files.folder_of(self.root, path) as (folder, name):
            data, status = files.read(folder, name)
            if staged is not None:
                data, _ = files.read(folder, staged.temporary)
            try:
                moved = bytecode.follow_source(data, old, new)
            except bytecode.Unreadable:
                return  # no Python that is known would load it
            if moved == data:
                return
            temporary = _write_aside(folder, name, status, moved)
            if staged is not None:
                os.unlink(staged.temporary, dir_fd=folder)
                staged.temporary = temporary
                return
        self.staged[path] = _Staged(path, bytecode.KIND, status, temporary)
        if path not in self.bytecode:
            self._count(path, bytecode.KIND)

    def _stage_records(self) -> None:
        """Bring the RECORD rows of all rewritten files up to date."""
        if not self.staged:
            return
        names = {os.fsencode(path.rpartition("/")[2]) for path in self.staged}
        for record, rows in self._records(lambda data: True):
            base = os.path.dirname(os.path.dirname(record))
            changed: dict[bytes, Callable[[str], metadata.Digests]] = {}
            for row, _ in rows:
                if row.rpartition(b"/")[2] not in names:
                    continue
                item = self.staged.get(os.path.normpath(os.path.join(base, os.fsdecode(row))))
                if item is not None and item.kind != "link":
                    changed[row] = self._digests(item)
            if changed:
                self._stage_record(record, self.staged.get(record), changed)

    def _stage_record(
        self,
        path: str,
        staged: _Staged | None,
        changed: dict[bytes, Callable[[str], metadata.Digests]],
    ) -> None:
        with files.folder_of(self.root, path) as (folder, name):
            data, status = files.read(folder, name)
            if staged is not None:
                data, _ = files.read(folder, staged.temporary)
            new = metadata.update_record(data, changed)
            if new == data:
                return
            temporary = _write_aside(folder, name, status, new)
            if staged is not None:
                os.unlink(staged.temporary, dir_fd=folder)
                staged.temporary = temporary
                return
        self.staged[path] = _Staged(path, metadata.KIND, status, temporary)
        self._count(path, metadata.KIND)

    def _digests(self, item: _Staged) -> Callable[[str], metadata.Digests]:
        def digests(algorithm: str) -> metadata.Digests:
            with files.folder_of(self.root, item.path) as (folder, name):
                old, _ = _digest(folder, name, algorithm)
                new, size = _digest(folder, item.temporary, algorithm)
            return metadata.Digests(old, new, size)

        return digests

    # --- putting in place -----------------------------------------------------------------------

    def _commit(self) -> None:
        """Rename everything into place, what describes a file before the file itself."""
        if not self.write:
            return
        order = sorted(self.staged.values(), key=_rank)
        durable = False
        for item in order:
            if not durable and _rank(item)[0] >= _IDENTITY:
                files.flush(self.root)
                durable = True
            with files.folder_of(self.root, item.path) as (folder, name):
                item.backup = _second_link(folder, name)
                files.put_in_place(
                    folder, item.temporary, name, item.status, path=self._full(item.path)
                )
        files.flush(self.root)
        for item in order:
            self._remove(item.path, item.backup)

    def _put_back(self, error: BaseException) -> None:
        """Undo what was done so far, as far as the same trouble does not forbid it."""
        if not self.write:
            return
        try:
            for item in sorted(self.staged.values(), key=_rank, reverse=True):
                if item.backup is not None:
                    with files.folder_of(self.root, item.path) as (folder, name):
                        os.rename(item.backup, name, src_dir_fd=folder, dst_dir_fd=folder)
                self._remove(item.path, item.temporary)
            self._rewrite_back()
        except OSError as second:
            raise TreeError(
                f"{error}; putting back what was done failed as well "
                f"({(second.strerror or str(second)).lower()}): see to it and run the same again"
            ) from error

    def _rewrite_back(self) -> None:
        for which, old in enumerate(self.prefixes.old):
            folders: dict[str, list[str]] = {}
            for path, named in self.bytecode.items():
                if named == which:
                    folder, _, name = path.rpartition("/")
                    folders.setdefault(folder, []).append(name)
            scanner = Scanner(self.root, Prefixes((self.prefixes.new,), old), True, frozenset())
            for findings in pool.scan(scanner, iter(folders.items())):
                if findings.failure:
                    path, _, number, text = findings.failure
                    raise OSError(number, text, path)

    def _remove(self, path: str, name: str | None) -> None:
        if name is not None:
            with suppress(FileNotFoundError), files.folder_of(self.root, path) as (folder, _):
                os.unlink(name, dir_fd=folder)


_IDENTITY = 3


def _rank(item: _Staged) -> tuple[int, str]:
    """The order of the renames; see the module's first lines."""
    if item.path.endswith(".dist-info/RECORD"):
        rank = 0
    elif item.kind == bytecode.KIND:
        rank = 1
    elif item.path == "bin/activate":
        rank = 6
    elif item.path.startswith("bin/activate."):
        rank = 5
    elif item.path == "pyvenv.cfg":
        rank = 4
    else:
        rank = _IDENTITY if item.path.startswith("bin/") else 2
    return rank, item.path


def _write_aside(folder: int, name: str, status: os.stat_result, data: bytes) -> str:
    original = files.open_file(folder, name)
    try:
        return files.write_aside(folder, original, status, (data,))
    finally:
        os.close(original)


def _second_link(folder: int, name: str) -> str | None:
    """Another name for a file's old content, to put it back from; None where that cannot be had."""
    backup = files.temporary_name()
    try:
        os.link(name, backup, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return backup


def _digest(folder: int, name: str, algorithm: str) -> tuple[bytes, int]:
    """A file's digest as RECORD spells it, and its size."""
    digest, size = hashlib.new(algorithm), 0
    file = files.open_file(folder, name)
    try:
        while True:
            piece = os.read(file, 1 << 20)
            if not piece:
                return metadata.encoded(digest.digest()), size
            digest.update(piece)
            size += len(piece)
    finally:
        os.close(file)
