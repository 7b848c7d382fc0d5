"""What of an interpreter's prefix is packed, and what is left out.

Taken is what belongs to the Python: its programs, its library, its shared libraries, its terminal
descriptions. All else in the prefix is of packages that somebody has installed into it, and of
their programs. Left out is also what no server needs; `keep` brings it back, kind by kind.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..archives.tar import DIRECTORY, FILE, LINK
from ..artefacts import elf
from ..bundles import links as linking
from ..errors import CannotTravel, InvalidPath
from .prefix import PROGRAM, Prefix

KEEP = ("headers", "static", "tests", "tk")
"""What is left out unless it is asked for."""
BYTECODE = "bytecode"

_DIRECTORIES = {
    "test": "tests",
    "tests": "tests",
    "idlelib": "tk",
    "tkinter": "tk",
    "_tkinter": "tk",
    "turtledemo": "tk",
    "site-packages": "packages",
}
_FILES = (
    (re.compile(r"(?:_test\w*|_ctypes_test|_xxtestfuzz|xxlimited\w*|xxsubtype)\..*so\Z"), "tests"),
    (re.compile(r"_tkinter\..*so\Z|turtle\.py\Z"), "tk"),
    (re.compile(r".*\.[ao]\Z"), "static"),
)
_CONFIG_DIRECTORY = re.compile(r"config(?:-.*)?\Z")
_CONFIG_PROGRAM = re.compile(r"python(?:\d+(?:\.\d+[a-z]*)?)?-config\Z")
_SHARED_LIBRARY = re.compile(r"lib(?:python|pypy)\d.*\.so(?:\..*)?\Z")
_STATIC_LIBRARY = re.compile(r"libpython\d.*\.a\Z")
_TCL_LIBRARY = re.compile(r"(?:i?tcl|tk|thread)\d[\d.]*\Z")
_TERMINALS = "share/terminfo"


@dataclass
class Contents:
    """What is packed of a prefix.

    Attributes:
        kinds: FILE, DIRECTORY, LINK or BYTECODE, by path; `ordered` has them in order.
        modes: of files and directories, by path; everybody may read and run them.
        targets: of symlinks, by path.
        sources: of bytecode, by path.
        left_out: how many bytes were left out, by what they are.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def ordered(self) -> list[str]:
        """All paths, each directory before what is in it."""
        return sorted(self.kinds, key=lambda path: path.replace("/", "\0"))


def contents(prefix: Prefix, keep: Collection[str]) -> Contents:
    """What is packed of a prefix.

    Args:
        prefix: the Python's.
        keep: which of KEEP are not left out.

    Raises:
        InvalidPath: `keep` has something else in it.
        CannotTravel: a symlink points outside, or a file is no file.
    """
    unknown = sorted(set(keep) - set(KEEP))
    if unknown:
        raise InvalidPath(f"unknown {unknown[0]!r} to keep: there are {', '.join(KEEP)}")
    walk = _Walk(prefix, keep)
    walk.take_all()
    walk.take_needed_libraries()
    walk.drop_dangling()
    if prefix.program not in walk.found.kinds:
        raise CannotTravel(f"cannot pack {prefix.path}: {prefix.program} is no program of its own")
    walk.add_bytecode()
    return walk.found


class _Walk:
    def __init__(self, prefix: Prefix, keep: Collection[str]) -> None:
        self.prefix = prefix
        self.keep = keep
        self.found = Contents()

    def take_all(self) -> None:
        """Take what belongs to the Python, but the shared libraries of others that it needs."""
        for library in self.prefix.libraries:
            self._library(library)
        for name in self._names("bin"):
            if PROGRAM.match(name) or _SHARED_LIBRARY.match(name):  # PyPy has its library there
                self._take(f"bin/{name}")
            elif _CONFIG_PROGRAM.match(name):
                self._take_if("headers", f"bin/{name}")
        for name in self._names("lib"):
            if _SHARED_LIBRARY.match(name):
                self._take(f"lib/{name}")
            elif _STATIC_LIBRARY.match(name):
                self._take_if("static", f"lib/{name}")
            elif _TCL_LIBRARY.match(name):
                self._tree_if("tk", f"lib/{name}")
        if os.path.islink(self._at("lib64")):  # to lib; some Pythons have a part of it there
            self._take("lib64")
        for name in self._names("lib/pkgconfig"):
            if name.startswith("python"):
                self._take_if("headers", f"lib/pkgconfig/{name}")
        self._tree_if("headers", self.prefix.include)
        if os.path.isdir(self._at(_TERMINALS)):
            self._tree(_TERMINALS)

    def take_needed_libraries(self) -> None:
        """Take the shared libraries in the prefix that something in it needs."""
        left = [path for path, kind in self.found.kinds.items() if kind == FILE]
        while left:
            path = left.pop()
            for name in libraries(self._at(path)):
                needed = f"lib/{name}"
                while needed not in self.found.kinds and os.path.lexists(self._at(needed)):
                    self._take(needed)
                    if self.found.kinds[needed] != LINK:
                        left.append(needed)
                        break
                    needed = os.path.normpath(f"lib/{self.found.targets[needed]}")

    def drop_dangling(self) -> None:
        """Leave out the symlinks to what was left out; refuse those that point outside."""
        targets = self.found.targets
        work = linking.Work()
        for path, target in targets.items():
            fault = linking.fault(path, targets, (), work)
            if target.startswith("/"):  # which a virtualenv's Python may be
                fault = f"points to {target}, outside of it"
            if fault is not None:
                raise CannotTravel(
                    f"cannot pack {self.prefix.path}: {path} {fault}; remove the symlink"
                )
        while dangling := [path for path in targets if not self._has(self._target_of(path))]:
            for path in dangling:
                del targets[path], self.found.kinds[path]

    def add_bytecode(self) -> None:
        """Add the bytecode of every source of the library."""
        tag, found = self.prefix.interpreter.cache_tag, self.found
        for path, kind in list(found.kinds.items()):
            if kind == FILE and path.endswith(".py") and self._is_library(path):
                directory, _, name = path.rpartition("/")
                cache = f"{directory}/__pycache__"
                found.kinds[cache], found.modes[cache] = DIRECTORY, 0o755
                bytecode = f"{cache}/{name[:-3]}.{tag}.pyc"
                found.kinds[bytecode] = BYTECODE
                found.sources[bytecode] = path
                found.modes[bytecode] = 0o644

    def _is_library(self, path: str) -> bool:
        return any(path.startswith(f"{library}/") for library in self.prefix.libraries)

    def _has(self, path: str) -> bool:
        return path in self.found.kinds

    def _target_of(self, path: str) -> str:
        return os.path.normpath(os.path.join(os.path.dirname(path), self.found.targets[path]))

    def _library(self, top: str) -> None:
        """Take a directory of the standard library, without what is left out."""
        self._directory(top)
        for name, status in self._listed(top):
            path = f"{top}/{name}"
            kind = _left_out(name, stat.S_ISDIR(status.st_mode), top in self.prefix.libraries)
            if name == "__pycache__":
                continue  # compiled again, as it refers to where it was made
            if kind is not None and kind not in self.keep:
                self._leave(kind, path)
                if kind == "packages":
                    self._directory(path)  # empty: packages belong into virtualenvs
            elif stat.S_ISDIR(status.st_mode):
                self._library(path)
            else:
                self._take(path)

    def _tree(self, top: str) -> None:
        """Take a directory with all that is in it."""
        self._directory(top)
        for name, status in self._listed(top):
            if stat.S_ISDIR(status.st_mode):
                self._tree(f"{top}/{name}")
            else:
                self._take(f"{top}/{name}")

    def _tree_if(self, kind: str, top: str) -> None:
        if os.path.isdir(self._at(top)):
            if kind in self.keep:
                self._tree(top)
            else:
                self._leave(kind, top)

    def _take_if(self, kind: str, path: str) -> None:
        if kind in self.keep:
            self._take(path)
        else:
            self._leave(kind, path)

    def _take(self, path: str) -> None:
        """Take a file or symlink, and the directories above it."""
        status = os.lstat(self._at(path))
        if stat.S_ISLNK(status.st_mode):
            target = linking.relative(path, os.readlink(self._at(path)), self.prefix.prefixes)
            self.found.kinds[path], self.found.targets[path] = LINK, target
        elif stat.S_ISREG(status.st_mode):
            mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            self.found.kinds[path], self.found.modes[path] = FILE, mode
        else:
            raise CannotTravel(
                f"cannot pack {self._at(path)}: it is no file, and no symlink to one; remove it"
            )
        self._directory(os.path.dirname(path))

    def _directory(self, path: str) -> None:
        while path and path not in self.found.kinds:
            self.found.kinds[path], self.found.modes[path] = DIRECTORY, 0o755
            path = os.path.dirname(path)

    def _leave(self, kind: str, path: str) -> None:
        """Count what is left out; static archives apart, wherever they are."""
        for name, size in _sizes(self._at(path)):
            of = "static" if name.endswith(".a") else kind
            self.found.left_out[of] = self.found.left_out.get(of, 0) + size

    def _at(self, path: str) -> str:
        return os.path.join(self.prefix.path, path)

    def _names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(self._at(directory)))
        except FileNotFoundError:
            return []

    def _listed(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        for name in self._names(directory):
            yield name, os.lstat(os.path.join(self._at(directory), name))


def libraries(path: str) -> tuple[str, ...]:
    """The names of the shared libraries that a file needs; none where it is no ELF file."""
    with open(path, "rb") as file:
        return elf.libraries(file.fileno()) if file.read(4) == elf.MAGIC else ()


def _left_out(name: str, is_directory: bool, at_top: bool) -> str | None:
    """What kind something in the standard library is of that may be left out, else None."""
    if is_directory:
        is_config = at_top and _CONFIG_DIRECTORY.match(name)
        return "headers" if is_config else _DIRECTORIES.get(name)
    return next((kind for pattern, kind in _FILES if pattern.match(name)), None)


def _sizes(path: str) -> Iterator[tuple[str, int]]:
    """The name and size of a file, or of all files in a directory."""
    if not os.path.isdir(path) or os.path.islink(path):
        yield path, os.lstat(path).st_size
        return
    for directory, _, names in os.walk(path):
        for name in names:
            yield name, os.lstat(os.path.join(directory, name)).st_size
