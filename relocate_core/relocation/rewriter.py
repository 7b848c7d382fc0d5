"""Writing the new content of files that hold a reference, each beside its old one."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from ..artefacts import binaries, bytecode, uneditable
from ..artefacts.kinds import LargeFile, rewrite
from ..artefacts.prefix import Prefixes
from ..system import files
from ..system.transaction import LINK, Transaction
from .hidden import reference_inside
from .needles import Needles
from .packaged import Packaged
from .scan import WHOLE

if TYPE_CHECKING:
    from .relocate import Relocation


class Rewriter:
    """Rewrites files and symlinks of one virtualenv.

    Args:
        root: descriptor of the virtualenv.
        packaged: what is replaced by what, in which file.
        transaction: what the new contents are written into.
        report: lists each rewritten file, and each that could not be.
        done: the bytecode files that were rewritten before.
    """

    def __init__(
        self,
        root: int,
        packaged: Packaged,
        transaction: Transaction,
        report: Relocation,
        done: Collection[str],
    ) -> None:
        self.root = root
        self.packaged = packaged
        self.prefixes = packaged.prefixes
        self.transaction = transaction
        self.report = report
        self.bytecode = done

    def count(self, path: str, kind: str) -> None:
        """Report a file that was rewritten."""
        self.report.rewritten[kind] = self.report.rewritten.get(kind, 0) + 1
        if kind != bytecode.KIND:
            self.report.files.append(path)

    def link(self, path: str) -> None:
        """Make a symlink into the virtualenv point to the new place."""
        with files.directory_of(self.root, path) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            target = os.fsencode(os.readlink(name, dir_fd=directory))
        match = next(self.prefixes.matches(target), None)
        if self._comes_back(path, target):
            reason = (
                f"it points to {os.fsdecode(target)}, which goes out of the virtualenv and back"
            )
            self.report.problems.append((path, f"{reason} by its old name: make it relative"))
        elif match is not None and match.start() == 0:
            moved = os.fsdecode(self.prefixes.new + target[match.end() :])
            self.transaction.link(path, moved, status)
            self.count(path, LINK)

    def _comes_back(self, path: str, target: bytes) -> bool:
        """Whether a symlink reaches the old place by its name from outside, as `../old/lib`."""
        if b"../" not in target:
            return False

        def reached(place: bytes) -> bool:
            parent = os.path.dirname(os.path.join(place, os.fsencode(path)))
            full = os.path.normpath(os.path.join(parent, target))
            return full == place or full.startswith(place + b"/")

        new = self.prefixes.new
        if target.startswith(b"/"):
            here = next((m[1] for m in self.prefixes.matches(target) if not m.start()), b"")
            inside = os.path.normpath(b"." + target[len(here) :]) if here else b"."
            return inside.startswith(b"..") and any(map(reached, self.prefixes.old))
        return any(map(reached, self.prefixes.old)) and not reached(new)

    def file(self, path: str) -> None:
        """Rewrite one hit beside the old file."""
        with files.directory_of(self.root, path) as (directory, name):
            file = files.open_file(directory, name)
            try:
                status = os.fstat(file)
                prefixes = self.packaged.prefixes_for(path, file)
                if status.st_size > WHOLE:
                    self._large(path, file, status, prefixes)
                    return
                data = files.read_whole(file)
            finally:
                os.close(file)
        result = rewrite(path, data, prefixes)
        problem = result.problem
        if problem and result.kind == binaries.KIND:
            runpath = binaries.longer_runpath(data, self.prefixes)
            if runpath is not None:
                problem = self._grow(path, result.data, status, os.fsdecode(runpath), problem)
        if result.kind == uneditable.KIND and not problem:
            problem = self._behind_shebang(result.data)
        if result.data != data and path not in self.transaction.items:
            self.transaction.write(path, result.kind, result.data, status)
        if problem:
            self.report.problems.append((path, problem))
        if path in self.transaction.items:
            self.count(path, result.kind)

    def _behind_shebang(self, data: bytes) -> str:
        """Why a reference is left in an archive of which only the shebang could be rewritten."""
        wanted = Needles(self.prefixes.old).plain
        reason = reference_inside(io.BytesIO(data), wanted)
        if reason is None and next(self.prefixes.occurrences(data), None) is not None:
            reason = f"it is {uneditable.what_is(data)}"
        return reason or ""

    def _grow(
        self, path: str, data: bytes, status: os.stat_result, runpath: str, problem: str
    ) -> str:
        """Let `patchelf` write a RUNPATH that has no room; returns what is still wrong then."""
        program = shutil.which("patchelf")
        if program is None:
            return f"{problem}: its RUNPATH can be given more by patchelf, which is not installed"
        self.transaction.write(path, binaries.KIND, data, status)
        if self.report.dry_run:
            return ""
        if not self.transaction.run(path, [program, "--set-rpath", runpath]):
            self.transaction.drop(path)
            return f"{problem}, and patchelf failed on it"
        return rewrite(path, self.transaction.read(path)[0], self.prefixes).problem

    def _large(self, path: str, file: int, status: os.stat_result, prefixes: Prefixes) -> None:
        large = LargeFile(file, prefixes)
        if large.usable:
            self.transaction.write(path, large.kind, large.pieces(), status)
            if large.changed and large.usable:
                self.count(path, large.kind)
            else:
                self.transaction.drop(path)
        if large.problem:
            self.report.problems.append((path, large.problem))

    def follow_sources(self) -> None:
        """Make the bytecode of each changed source fit the new source."""
        changes = list(self.transaction.items.values())
        for change in changes:
            if change.path.endswith(".py") and change.kind != LINK:
                self._follow_source(change.path)

    def _follow_source(self, path: str) -> None:
        """A source keeps its time, and often its size, so Python would go on using the old one."""
        with files.directory_of(self.root, path) as (directory, name):
            data, status = files.read(directory, name)
        mtime = int(status.st_mtime)
        old = bytecode.Source(data, mtime)
        new = bytecode.Source(self.transaction.read(path)[0], mtime)
        parent, _, name = path.rpartition("/")
        for pyc in self._bytecode_files(parent, name[: -len(".py")]):
            content, status = self.transaction.read(pyc)
            try:
                moved = bytecode.follow_source(content, old, new)
            except bytecode.Unreadable:
                continue  # no Python that is known would load it
            if moved != content:
                known = pyc in self.transaction.items or pyc in self.bytecode
                self.transaction.write(pyc, bytecode.KIND, moved, status)
                if not known:
                    self.count(pyc, bytecode.KIND)

    def _bytecode_files(self, parent: str, stem: str) -> Iterator[str]:
        """The existing bytecode files of a source `parent/stem.py`."""
        beside = re.compile(re.escape(stem) + r"\.py[co]\Z")
        cached = re.compile(re.escape(stem) + r"\.[^/]*\.pyc\Z")
        for directory, pattern in ((parent, beside), (f"{parent}/__pycache__".lstrip("/"), cached)):
            try:
                descriptor = files.open_directory(self.root, directory)
            except OSError:
                continue
            try:
                names = sorted(filter(pattern.match, os.listdir(descriptor)))
            finally:
                os.close(descriptor)
            yield from (f"{directory}/{name}".lstrip("/") for name in names)
