"""The members of a bundle in their order: the row of each for the manifest, and its content.

Bytecode is compiled where it is missing, and made portable: it refers to its sources relative to
the virtualenv, which Python corrects when it imports them, and its time is that which the bundle
gives them. On the way it is noted which files refer to the prefix, and what the compiled ones
need of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing

from ..archives.tar import DIRECTORY, FILE, LINK
from ..artefacts import bytecode, metadata
from ..artefacts.elf import Needs
from ..errors import InvalidPath
from ..system import files
from ..virtualenvs import manifest
from ..virtualenvs.contents import compiled_module
from ..virtualenvs.manifest import BuiltOn, Head, Row
from .blocks import Store
from .compiler import Compiler, Job
from .earlier import Earlier
from .index import Found
from .reading import found_in, read
from .tree import BYTECODE, Entry, Tree


class Members:
    """What becomes of the entries of a tree, and what is known of them once all have been read.

    Args:
        tree: the virtualenv.
        entries: what of it is packed, in order.
        mode: how bytecode knows whether it fits its source: one of MODES.
        store: has the blocks of earlier packings.

    Attributes:
        known: what an earlier packing has found in each entry; None where that is not known.
        wanted: whether the content of each entry is wanted; all of what is not known.
        rows: the rows so far.
        size: bytes in their files.
        references: the files so far that refer to the prefix.
        compiled: how many bytecode files were compiled.

    Raises:
        InvalidPath: the virtualenv's Python has no such mode.
    """

    def __init__(
        self, tree: Tree, entries: list[Entry], mode: str, store: Store | None = None
    ) -> None:
        if mode != "timestamp" and tree.interpreter.version < (3, 7):
            raise InvalidPath(
                f"Python {tree.interpreter.long_version} checks its bytecode by the time alone, "
                f"and {mode} was asked for: take timestamp"
            )
        self.tree = tree
        self.entries = entries
        self.mode = mode
        recall = tree.index.take
        self.known = [recall(one.path, one.signature) if one.signature else None for one in entries]
        self.wanted = [True] * len(entries)
        self._planned: list[Row | None] = [None] * len(entries)
        self._earlier = Earlier(store)
        self.rows: list[Row] = []
        self.references: list[str] = []
        self.size = self.compiled = 0
        self._uneditable: list[tuple[str, str]] = []
        self._endings: dict[str, set[str]] = {}
        self._machines: list[Needs] = []

    def planned(self, first: int, last: int) -> list[Row] | None:
        """The rows of some entries, if they are known without reading any file."""
        for at in range(first, last):
            if self.known[at] is None and self.entries[at].kind in (FILE, BYTECODE):
                return None
        rows = []
        for at in range(first, last):
            known = self.known[at]
            row = self._planned[at] = self._row(self.entries[at], known.found if known else None)
            if row is not None:
                rows.append(row)
        return rows

    def __iter__(self) -> Iterator[tuple[Row | None, Iterator[bytes]]]:
        """The row of each entry, and its content in pieces, to be taken before the next one.

        There is no row for bytecode of what is no source that this Python understands, and no
        content of what is not wanted.
        """
        with closing(self._earlier), closing(self._compile()) as compiled:
            for at, entry in enumerate(self.entries):
                known = self.known[at]
                found = known.found if known else None
                pieces: Iterator[bytes] = iter(())
                if not self.wanted[at]:
                    row = self._planned[at]
                else:
                    if entry.kind in (FILE, BYTECODE):
                        found, pieces = self._read(at, compiled)
                    row = self._row(entry, found)
                if entry.kind in (FILE, BYTECODE):
                    self.tree.index.note(entry.path, entry.signature, entry.kept, found)
                    self._note(entry, found)
                if row is not None:
                    self.rows.append(row)
                    self.size += row.size
                yield row, pieces

    def _row(self, entry: Entry, found: Found | None) -> Row | None:
        if entry.kind == DIRECTORY:
            return Row(entry.path, DIRECTORY, entry.mode)
        if entry.kind == LINK:
            return Row(entry.path, LINK, target=self.tree.target(entry.path))
        return found and Row(entry.path, FILE, entry.mode, found.size, found.sha256)

    def _note(self, entry: Entry, found: Found | None) -> None:
        """Take what was found in a file into account."""
        if found is None:
            return
        self.compiled += entry.kind == BYTECODE and not entry.kept
        if found.reference:
            self.references.append(entry.path)
        if found.hidden:
            self._uneditable.append((entry.path, found.hidden))
            reason = f"it refers to the place where it was built, and {found.hidden}"
            self.tree.warn(entry.path, reason)
        if found.needs is not None:
            self._machines.append(found.needs)
        module = compiled_module(self.tree.environment, entry.path) if found.compiled else None
        if module is not None:
            self._endings.setdefault(module[0], set()).add(module[1])

    def _read(
        self, at: int, compiled: Iterator[bytes | None]
    ) -> tuple[Found | None, Iterator[bytes]]:
        """What is in a file, and its content; nothing of a source that does not compile."""
        entry, known = self.entries[at], self.known[at]
        if entry.kind == FILE:
            return read(self.tree, entry.path)
        if self._is_kept(entry):
            data: bytes | None = self._kept(entry)
        elif known is not None and self._earlier.has(known):
            data = self._earlier.take(entry.path, known)
        else:
            data = next(compiled)
        if data is None:
            return None, iter(())
        return found_in(self.tree, entry.path, data), iter((data,))

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
            for entry, wanted, known in zip(self.entries, self.wanted, self.known):
                there = self._is_kept(entry) or self._earlier.has(known)
                if entry.kind == BYTECODE and wanted and not there:
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

    def head(
        self, build_metadata: dict[str, str], time: int, built_on: BuiltOn | None = None
    ) -> Head:
        """The head of the manifest, once all members were taken.

        Args:
            build_metadata: what the build recorded of itself.
            time: of data files in a release, in seconds.
            built_on: the interpreter bundle that it was built on.
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
            system_packages=self.tree.system_packages,
            built_on=built_on,
            free_threaded=environment.free_threaded,
        )
