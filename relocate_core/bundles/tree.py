"""What of a virtualenv goes into a bundle.

Bytecode is listed as it should be, not as it is: every source in site-packages gets the file that
the virtualenv's Python would import, and bytecode of other Pythons, or of sources that are gone, is
left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..archives.tar import CONTROL, DIRECTORY, FILE, LINK, printable
from ..artefacts import bytecode
from ..artefacts.prefix import Prefixes
from ..errors import CannotTravel
from ..relocation.needles import Needles
from ..system import files
from ..virtualenvs.evidence import recorded_prefixes
from ..virtualenvs.interpreter import probe
from ..virtualenvs.layout import inspect
from ..virtualenvs.manifest import PLACE, RECORD, directory_mode, file_mode
from ..virtualenvs.requirements import parse
from ..virtualenvs.system_packages import Packages, find_installed
from . import links as linking
from .index import Index, signature

BYTECODE = "bytecode"
# What a directory for bytecode looks like that is not there yet.
_MADE_DIRECTORY = os.stat_result((stat.S_IFDIR | 0o755, *(0,) * 9))


class Entry(NamedTuple):
    """Something to pack."""

    path: str
    kind: str
    """FILE, DIRECTORY, LINK or BYTECODE."""
    mode: int
    source: str = ""
    """The source of bytecode."""
    kept: bool = False
    """Whether the bytecode that is there can be taken."""
    size: int = 0
    """Bytes of the file; of bytecode, of its source."""
    signature: str = ""
    """What its content is known again by; see `index`."""


class Tree:
    """A virtualenv that is to be packed.

    Args:
        root: descriptor of its directory.
        path: that directory.
        name: the path as messages have it.
        exclude: patterns of what is left out.

    Attributes:
        index: what an earlier packing has found; nothing until it is set.
        system_packages: what it needs of the base Python's packages; nothing until it is set.
        newest: the latest time of its files, in seconds, bytecode and its sources aside; known once
            all entries are.
        warnings: {"file", "reason"} of what may not work elsewhere.
    """

    def __init__(self, root: int, path: str, name: str, exclude: Sequence[str]) -> None:
        self.root = root
        self.name = name
        self.exclude = tuple(exclude)
        self.environment = inspect(path)
        self.python = os.path.join(os.path.abspath(path), "bin", "python")
        self.interpreter = probe(self.python)
        self.prefixes = self._find_prefixes()
        old = tuple(map(os.fsencode, self.prefixes))
        self.needles = Needles(old)
        self._portable = Prefixes(old, b"")
        self.descent = files.DirectoryCursor(root)
        self.index = Index("", None)
        self.system_packages: Packages = ()
        self.newest = 0
        self.warnings: list[dict[str, str]] = []

    def close(self) -> None:
        """Close all descriptors but `root`."""
        self.descent.close()

    def _find_prefixes(self) -> tuple[str, ...]:
        recorded = recorded_prefixes(self.root, self.environment)
        return tuple(dict.fromkeys((*self.environment.old_prefixes, *recorded)))

    def find_system_packages(self, asked: Sequence[str]) -> None:
        """Set `system_packages`.

        Args:
            asked: requirements, beside those of what is installed.
        """
        if self.environment.system_site_packages:
            top = self.environment.path
            own = [os.path.join(top, one) for one in self.environment.site_packages]
            installed = find_installed(self.interpreter.executable, own)
            self.system_packages = installed.needed(filter(None, map(parse, asked)))

    def entries(self) -> list[Entry]:
        """Everything to pack, in the order of the manifest."""
        found: list[Entry] = []
        self._add("", False, found)
        return found

    def _add(self, directory: str, in_packages: bool, found: list[Entry]) -> None:
        """Add what is in a directory; in site-packages with the bytecode that its sources should
        have."""
        statuses = dict(self._listed(directory))
        base = f"{directory}/" if directory else ""
        in_packages = in_packages or directory in self.environment.site_packages
        wanted: list[Entry] = []
        if self.interpreter.cache_tag and (in_packages or "__pycache__" in statuses):
            wanted = list(self._bytecode(base, statuses, in_packages))
            if wanted:
                statuses.setdefault("__pycache__", _MADE_DIRECTORY)
        for name, status in sorted(statuses.items()):
            path = base + name
            mode = status.st_mode
            if name == "__pycache__" and wanted:
                found += [Entry(path, DIRECTORY, 0o755), *wanted]
            elif name == "__pycache__" and self.interpreter.cache_tag and stat.S_ISDIR(mode):
                continue  # all of it is of other Pythons, or of sources that are gone
            elif stat.S_ISDIR(mode):
                found.append(Entry(path, DIRECTORY, directory_mode(mode)))
                self._add(path, in_packages, found)
            elif stat.S_ISLNK(mode):
                found.append(Entry(path, LINK, 0))
            elif stat.S_ISREG(mode):
                if not name.endswith((".py", ".pyc")):
                    self.newest = max(self.newest, int(status.st_mtime))
                found.append(self._beside(path, statuses) or self._plain(path, status))
            else:
                raise CannotTravel(
                    f"cannot pack {os.path.join(self.name, path)}: it is a socket, pipe or device; "
                    "remove it, or exclude it"
                )

    def _plain(self, path: str, status: os.stat_result) -> Entry:
        mode = file_mode(status.st_mode)
        return Entry(path, FILE, mode, size=status.st_size, signature=self._signature(status))

    def _signature(self, status: os.stat_result, other: os.stat_result | None = None) -> str:
        return signature(status, other) if self.index.is_kept else ""

    def _beside(self, path: str, statuses: dict[str, os.stat_result]) -> Entry | None:
        """Bytecode beside its source, as Python 2 has it; it is not compiled again."""
        if self.interpreter.cache_tag or not path.endswith((".pyc", ".pyo")):
            return None
        source = statuses.get(path[:-1].rpartition("/")[2])
        if source is None or not self._is_of(self.read(path), source):
            return None
        return Entry(path, BYTECODE, file_mode(source.st_mode & 0o644), path[:-1], True)

    def _listed(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """The names in a directory that are to be packed, and what they are."""
        base = f"{directory}/" if directory else ""
        with os.scandir(self.descent.open(directory)) as entries:
            for entry in entries:
                name = entry.name
                own = not directory and name in (PLACE, RECORD)
                if own or name.startswith(files.TEMPORARY) or self._excluded(base + name):
                    continue
                if not name.isprintable() and CONTROL.search(name):
                    raise CannotTravel(
                        f"cannot pack {os.path.join(self.name, base)}: the name {printable(name)} "
                        "in it has a control character; rename it, or exclude it"
                    )
                yield name, entry.stat(follow_symlinks=False)

    def _excluded(self, path: str) -> bool:
        if not self.exclude:
            return False
        name = path.rpartition("/")[2]
        return any(fnmatchcase(path, one) or fnmatchcase(name, one) for one in self.exclude)

    def _bytecode(
        self, base: str, statuses: dict[str, os.stat_result], complete: bool
    ) -> Iterator[Entry]:
        """The bytecode that the sources in a directory should have, in order.

        Where it is not to be complete, only what is there and fits; a project that was installed
        for editing has some.
        """
        tag = self.interpreter.cache_tag
        directory = f"{base}__pycache__"
        there = dict(self._listed(directory)) if "__pycache__" in statuses else {}
        for name in sorted(name for name in statuses if name.endswith(".py")):
            source = base + name
            if not stat.S_ISREG(statuses[name].st_mode) or self._excluded(f"{directory}/{name}c"):
                continue
            stem = f"{name[:-3]}.{tag}"
            for ending in (".opt-1.pyc", ".opt-2.pyc", ".pyc"):
                path = f"{directory}/{stem}{ending}"
                status, own = statuses[name], there.get(f"{stem}{ending}")
                seen = self._signature(status, own)
                fits = own is not None and self._fits(path, source, status, seen)
                if fits or (complete and ending == ".pyc"):
                    mode = file_mode(status.st_mode & 0o644)
                    yield Entry(path, BYTECODE, mode, source, fits, status.st_size, seen)

    def _fits(self, path: str, source: str, status: os.stat_result, seen: str) -> bool:
        """Whether bytecode that is there is of its source as it is, and can be made portable."""
        known = self.index.get(path, seen)
        if known is not None:
            return known.kept
        try:
            data = self.read(path)
            return (
                self._is_of(data, status)
                and not self.needles.are_in(source, self.read(source))
                and not self.needles.are_in(path, self.portable(path, data))
            )
        except (OSError, bytecode.Unreadable):
            return False

    def _is_of(self, data: bytes, source: os.stat_result) -> bool:
        """Whether bytecode is for this Python, and of a source as it is."""
        try:
            mtime = int(source.st_mtime)
            return bytecode.fits(data, self.interpreter.magic, mtime, source.st_size)
        except bytecode.Unreadable:
            return False

    def target(self, path: str) -> str:
        """What a symlink points to: relative where that is in the virtualenv."""
        with files.directory_of(self.root, path) as (directory, name):
            target = os.readlink(name, dir_fd=directory)
        return linking.relative(path, target, self.prefixes)

    def warn(self, file: str, reason: str) -> None:
        self.warnings.append({"file": file, "reason": reason})

    def read(self, path: str, descent: files.DirectoryCursor | None = None) -> bytes:
        parent, _, name = path.rpartition("/")
        return files.read((descent or self.descent).open(parent), name)[0]

    def portable(self, path: str, data: bytes) -> bytes:
        return bytecode.portable(path, data, self._portable)
