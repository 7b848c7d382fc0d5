"""The members of a bundle in their order: the row of each for the manifest, and its content.

Bytecode is compiled where it is missing, and made portable: it refers to its sources relative to
the virtualenv, which Python corrects when it imports them, and its time is that which the bundle
gives them. On the way it is found out which files refer to the prefix, and what the compiled ones
need of a machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import closing

from ..archives.tar import DIRECTORY, FILE, LINK
from ..artefacts import bytecode, metadata
from ..artefacts.elf import Needs, needs
from ..errors import InvalidPath, TreeChanged
from ..relocation.hidden import hidden_reference, may_hide
from ..relocation.scan import WHOLE
from ..system import files
from ..virtualenvs import manifest
from ..virtualenvs.contents import compiled_module
from ..virtualenvs.manifest import Head, Row
from ..virtualenvs.packages import holds_packages
from .compiler import Compiler, Job
from .tree import BYTECODE, Entry, Tree

_ELF = b"\x7fELF"
_PIECE = 1 << 20


class Members:
    """What becomes of the entries of a tree, and what is known of them once all have been read.

    Args:
        tree: the virtualenv.
        entries: what of it is packed, in order.
        mode: how bytecode knows whether it fits its source: one of MODES.

    Attributes:
        rows: the rows so far.
        size: bytes in their files.
        references: the files so far that refer to the prefix.
        compiled: how many bytecode files were compiled.

    Raises:
        InvalidPath: the virtualenv's Python has no such mode.
    """

    def __init__(self, tree: Tree, entries: list[Entry], mode: str) -> None:
        if mode != "timestamp" and tree.interpreter.version < (3, 7):
            raise InvalidPath(
                f"Python {tree.interpreter.long_version} checks its bytecode by the time alone, "
                f"and {mode} was asked for: take timestamp"
            )
        self.tree = tree
        self.entries = entries
        self.mode = mode
        self.rows: list[Row] = []
        self.references: list[str] = []
        self.size = self.compiled = 0
        self._uneditable: list[tuple[str, str]] = []
        self._endings: dict[str, set[str]] = {}
        self._machines: list[Needs] = []

    def __iter__(self) -> Iterator[tuple[Row, Iterator[bytes]]]:
        """The row of each member, and its content in pieces, to be taken before the next one."""
        with closing(self._compile()) as compiled:
            for entry in self.entries:
                member = self._member(entry, compiled)
                if member is not None:
                    self.rows.append(member[0])
                    self.size += member[0].size
                    yield member

    def _member(
        self, entry: Entry, compiled: Iterator[bytes | None]
    ) -> tuple[Row, Iterator[bytes]] | None:
        if entry.kind == DIRECTORY:
            return Row(entry.path, DIRECTORY, entry.mode), iter(())
        if entry.kind == LINK:
            return Row(entry.path, LINK, target=self.tree.target(entry.path)), iter(())
        if entry.kind == FILE:
            return self._file(entry)
        data = self._kept(entry) if self._is_kept(entry) else next(compiled)
        if data is None:
            return None  # it is no source that this Python understands
        self.compiled += not entry.kept
        return self._whole(entry, data)

    def _compile(self) -> Generator[bytes | None, None, None]:
        """What the virtualenv's Python makes of the jobs; it is started for the first one."""
        with Compiler(self.tree.python) as compiler:
            yield from compiler.compile(self._jobs())

    def _is_kept(self, entry: Entry) -> bool:
        """Whether bytecode needs nothing of the virtualenv's Python."""
        return entry.kept and (self.mode == "timestamp" or not self.tree.interpreter.cache_tag)

    def _jobs(self) -> Iterator[Job]:
        """What the virtualenv's Python has to do, in the order of the entries."""
        descent = files.DirectoryCursor(self.tree.root)
        try:
            for entry in self.entries:
                if entry.kind == BYTECODE and not self._is_kept(entry):
                    source = self.tree.read(entry.source, descent)
                    code = None
                    if entry.kept:
                        data = self.tree.portable(entry.path, self.tree.read(entry.path, descent))
                        code = data[bytecode.layout_of(data).header :]
                    optimization = 0
                    if ".opt-" in entry.path:
                        optimization = int(entry.path[-len("1.pyc")])
                    yield Job(
                        source, entry.source, optimization, self.mode, manifest.FIXED_TIME, code
                    )
        finally:
            descent.close()

    def _kept(self, entry: Entry) -> bytes:
        data = self.tree.portable(entry.path, self.tree.read(entry.path))
        parent, _, name = entry.source.rpartition("/")
        source = os.stat(name, dir_fd=self.tree.descent.open(parent), follow_symlinks=False)
        return bytecode.stamped(data, manifest.FIXED_TIME, source.st_size)

    def _file(self, entry: Entry) -> tuple[Row, Iterator[bytes]]:
        parent, _, name = entry.path.rpartition("/")
        file = files.open_file(self.tree.descent.open(parent), name)
        try:
            status = os.fstat(file)
            if status.st_size > WHOLE:
                return self._large(entry, file)
            data = files.read_whole(file)
            if data.startswith(_ELF):
                self._look_at_compiled(entry.path, file)
            member = self._whole(entry, data)
            if entry.path not in self.references[-1:]:
                self._look_inside(entry.path, data[:8], file)
            return member
        finally:
            os.close(file)

    def _whole(self, entry: Entry, data: bytes) -> tuple[Row, Iterator[bytes]]:
        if self.tree.needles.are_in(entry.path, data):
            self.references.append(entry.path)
        digest = hashlib.sha256(data).hexdigest()
        return Row(entry.path, FILE, entry.mode, len(data), digest), iter((data,))

    def _large(self, entry: Entry, file: int) -> tuple[Row, Iterator[bytes]]:
        """A file too large to hold in memory: read once to know it, and once more to pack it."""
        digest, size, found, tail = hashlib.sha256(), 0, False, b""
        head = os.pread(file, 8, 0)
        wanted = self.tree.needles.of(entry.path, head)
        keep = max(map(len, wanted), default=1) - 1
        for piece in _pieces(file):
            digest.update(piece)
            size += len(piece)
            found = found or any(needle in tail + piece for needle in wanted)
            tail = piece[-keep:] if keep else b""
        if head.startswith(_ELF):
            self._look_at_compiled(entry.path, file)
        if found:
            self.references.append(entry.path)
        else:
            self._look_inside(entry.path, head, file)
        row = Row(entry.path, FILE, entry.mode, size, digest.hexdigest())
        return row, self._again(row)

    def _again(self, row: Row) -> Iterator[bytes]:
        found = hashlib.sha256()
        with files.directory_of(self.tree.root, row.path) as (directory, name):
            file = files.open_file(directory, name)
        try:
            for piece in _pieces(file):
                found.update(piece)
                yield piece
        finally:
            os.close(file)
        if found.hexdigest() != row.sha256:
            raise TreeChanged(
                f"cannot pack {os.path.join(self.tree.name, row.path)}: it changed meanwhile; "
                "stop what writes into the virtualenv and run again"
            )

    def _look_inside(self, path: str, head: bytes, file: int) -> None:
        """Note a reference that cannot be edited, for example in a compressed file."""
        in_packages = holds_packages(path.rpartition("/")[0])
        if not (self.tree.needles.plain and head and may_hide(head[0], in_packages)):
            return
        reason = hidden_reference(file, self.tree.needles.plain)
        if reason:
            self._uneditable.append((path, reason))
            self.tree.warn(path, f"it refers to the place where it was built, and {reason}")

    def _look_at_compiled(self, path: str, file: int) -> None:
        found = needs(file)
        if found is not None:
            self._machines.append(found)
        module = compiled_module(self.tree.environment, path)
        if module is not None:
            self._endings.setdefault(module[0], set()).add(module[1])

    def _add_records(self) -> None:
        """Add the RECORDs that list a file which is to be relocated: they change with it."""
        listed = set(self.references)
        marks = {b"/bin/"} | {
            os.fsencode(path.rpartition("/")[2])
            for path in listed
            if not path.startswith("bin/")
        }  # fmt: skip
        for row in self.rows:
            if row.path.endswith(".dist-info/RECORD") and row.path not in listed:
                base = os.path.dirname(os.path.dirname(row.path))
                for named, _ in metadata.record_rows(self.tree.read(row.path), marks):
                    if os.path.normpath(os.path.join(base, os.fsdecode(named))) in listed:
                        self.references.append(row.path)
                        break
        self.references.sort(key=manifest.order)

    def head(self, build_metadata: dict[str, str], time: int) -> Head:
        """The head of the manifest, once all members were taken.

        Args:
            build_metadata: what the build recorded of itself.
            time: of data files in a release, in seconds.
        """
        self._add_records()
        environment, interpreter = self.tree.environment, self.tree.interpreter
        # Some packages bring programs for other processors along.
        own = [one for one in self._machines if one.machine == interpreter.machine]
        version = max((one.version for one in own), default=())
        endings = {tuple(sorted(found)): module for module, found in self._endings.items()}
        return Head(
            prefix=environment.prefix or "",
            prefixes=self.tree.prefixes,
            python=environment.python,
            version=interpreter.long_version,
            implementation=environment.implementation,
            home=environment.home or "",
            compiled=tuple(sorted(endings.items())),
            machine=own[0].machine if own else "",
            libc=next((one.libc for one in own if one.libc), ""),
            libc_version=".".join(map(str, version)),
            time=time,
            files=len(self.rows),
            size=self.size,
            references=tuple(self.references),
            uneditable=tuple(self._uneditable),
            facts=build_metadata,
        )


def _pieces(file: int) -> Iterator[bytes]:
    """The whole of an open file."""
    os.lseek(file, 0, os.SEEK_SET)
    while piece := os.read(file, _PIECE):
        yield piece
