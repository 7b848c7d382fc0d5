"""The environment that is kept between builds: made once, changed as little as a build needs.

It stands at one path, so that two builds of the same content name the same prefix. What is in it is
known to the last file: those that its maker wrote, those in a distribution's RECORD, and their
bytecode; all else goes. While it is changed its record is away, so that one that a killed build
left half done is noticed, and made again.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..artefacts import bytecode
from ..bundles.compiler import Compiler, Job
from ..errors import BuildFailed, InterpreterNotFound
from ..virtualenvs.interpreter import Interpreter
from .runner import Runner, found, output_of
from .sources import normal_name

TOOLS = ("venv", "virtualenv", "uv")
"""What makes an environment."""

_RECORD = "state.json"
_FORMAT = 1
_INFO = re.compile(r"(.+?)-[^-]+\.dist-info\Z")
# What keeps backups and version control out of a directory: a release is wanted in both.
_UNWANTED = (".gitignore", "CACHEDIR.TAG", ".lock")
# What uv writes of a local wheel for itself: the time of that file.
_PRIVATE = "uv_cache.json"
_HEADER = 16


@dataclass(frozen=True)
class Program:
    """A tool that was found.

    Attributes:
        name: what it is called.
        command: the words that run it.
        version: its version; "" where only a build tells.
    """

    name: str
    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def find_tool(name: str, interpreter: Interpreter) -> Program:
    """What makes environments for a Python.

    Raises:
        BuildFailed: it is not on this machine; tells how to install it.
    """
    if name == "uv":
        return uv()
    if name == "virtualenv":
        known = virtualenv(interpreter)
        if known is None:
            raise BuildFailed(
                "there is no virtualenv on this machine: install it with the system's package "
                "manager or pip, or let venv or uv make the environment"
            )
        return known
    if output_of(interpreter.executable, "-I", "-c", "import venv") is None:
        raise BuildFailed(
            f"{interpreter.executable} has no venv module: install it (on Debian: python3-venv), "
            "or let virtualenv or uv make the environment"
        )
    return Program("venv", (interpreter.executable, "-I", "-m", "venv"), interpreter.long_version)


def virtualenv(interpreter: Interpreter) -> Program | None:
    """virtualenv: a command, or a module of that Python or of the one that runs this."""
    import sys

    commands = [(path,) for path in _places("virtualenv")]
    modules = [
        (python, "-I", "-m", "virtualenv") for python in (interpreter.executable, sys.executable)
    ]
    return _first("virtualenv", (*commands, *modules))


def uv() -> Program:
    """uv: a command, also beside the Python that runs this.

    Raises:
        BuildFailed: it is not on this machine; tells how to install it.
    """
    known = _first("uv", ((path,) for path in _places("uv")))
    if known is None:
        raise BuildFailed(
            "there is no uv on this machine: install it (see https://docs.astral.sh/uv, or "
            "`pip install uv`), or name pip and venv"
        )
    return known


def _places(name: str) -> Iterator[str]:
    """Where a command may be: on the PATH, or where pip puts those of the running Python."""
    import sys
    import sysconfig

    on_path = found(name)
    if on_path is not None:
        yield on_path
    schemes = [scheme for scheme in ("posix_user",) if scheme in sysconfig.get_scheme_names()]
    directories = [os.path.dirname(sys.executable or ""), sysconfig.get_path("scripts")]
    directories += [sysconfig.get_path("scripts", scheme) for scheme in schemes]
    for directory in directories:
        path = os.path.join(directory, name)
        if directory and path != on_path and os.access(path, os.X_OK):
            yield path


def _first(name: str, commands: Iterable[tuple[str, ...]]) -> Program | None:
    """The first of some commands that runs."""
    for command in commands:
        said = output_of(*command, "--version") if command[0] else None
        version = re.search(r"\d+(?:\.\w+)+", said or "")
        if version:
            return Program(name, command, version[0])
    return None


@dataclass
class _Known:
    """What the record of an environment says.

    Attributes:
        maker: what made it, for which Python.
        base: what that wrote, relative to the environment.
        packages: what tells the content of each distribution, by its name.
        missing: files that a RECORD lists, and that were not there from the beginning.
    """

    maker: list[str] = field(default_factory=list)
    base: list[str] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class Environment:
    """The environment in a directory of the build cache.

    Args:
        directory: that directory; the environment is `<directory>/environment`.
        interpreter: the Python that it is for.
        maker: what makes it.
        runner: runs that.
        caches: where virtualenv may keep what it needs.
    """

    def __init__(
        self, directory: str, interpreter: Interpreter, maker: Program, runner: Runner, caches: str
    ) -> None:
        self.path = os.path.join(directory, "environment")
        self.python = os.path.join(self.path, "bin", "python")
        self.made = False
        """Whether it was made again by this build."""
        self._record = os.path.join(directory, _RECORD)
        self._interpreter = interpreter
        self._maker = maker
        self._runner = runner
        self._caches = caches
        self._known = _Known()

    @property
    def packages(self) -> dict[str, str]:
        """What tells the content of each distribution in it, by its name."""
        return self._known.packages

    def prepare(self) -> None:
        """Have it there and whole; made again, and empty, where it is not."""
        known = self._read()
        if known is None or known.maker != self._made_by():
            self.make()
            return
        self._known = known
        if not self.is_whole(known.packages):
            self.make()

    def make(self) -> None:
        """Make it again, with no package in it."""
        self._forget()
        shutil.rmtree(self.path, ignore_errors=True)
        self._runner.run(
            "making the environment",
            self._command(),
            os.path.dirname(self.path),
            VIRTUALENV_OVERRIDE_APP_DATA=os.path.join(self._caches, "virtualenv"),
        )
        for name in _UNWANTED:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))
        directories, files = self._tree()
        self._known = _Known(self._made_by(), sorted((*directories, *files)))
        self.made = True

    def _command(self) -> list[str]:
        command, python = list(self._maker.command), self._interpreter.executable
        if self._maker.name == "venv":
            return [*command, "--without-pip", "--symlinks", self.path]
        if self._maker.name == "uv":
            return [*command, "venv", "--no-project", "--no-config", "--python", python, self.path]
        quiet = ["--no-download", "--no-periodic-update", "--no-seed"]
        return [*command, *quiet, "--python", python, self.path]

    def _made_by(self) -> list[str]:
        python = self._interpreter
        return [str(self._maker), python.executable, python.long_version, *python.suffixes]

    # --- its record -----------------------------------------------------------------------------

    def _read(self) -> _Known | None:
        try:
            with open(self._record, encoding="utf-8", errors="surrogateescape") as file:
                text = json.load(file)
            if text.pop("format") != _FORMAT:
                return None
            return _Known(**text)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._record)

    def _write(self) -> None:
        aside = f"{self._record}.new"
        with open(aside, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump({"format": _FORMAT, **self._known.__dict__}, file, indent=1)
        os.replace(aside, self._record)

    @contextmanager
    def changing(self, packages: Mapping[str, str]) -> Iterator[None]:
        """Change it; at the end it has these packages, and nothing else.

        A failure that has left it as it was costs nothing; after any other it is made again by the
        next build.

        Args:
            packages: what tells the content of each distribution that it has then, by its name.
        """
        recorded, before = os.path.exists(self._record), self._snapshot()
        self._forget()
        try:
            yield
        except BuildFailed:
            if recorded and self._snapshot() == before:
                self._write()
            raise
        self._hide_private_files()
        self._sweep()
        self._compile()
        files = self._tree()[1]
        self._known.packages = dict(packages)
        self._known.missing = sorted(set().union(*self.owned().values()) - files)
        self._write()

    def _snapshot(self) -> set[tuple[str, int, int]]:
        statuses = ((name, os.lstat(os.path.join(self.path, name))) for name in self._tree()[1])
        return {
            (name, status.st_ino, status.st_mtime_ns)
            for name, status in statuses
            if name not in _UNWANTED
        }

    # --- its files ------------------------------------------------------------------------------

    def _tree(self) -> tuple[set[str], set[str]]:
        """Its directories, and all else in it, as paths relative to it."""
        directories: set[str] = set()
        files: set[str] = set()
        left = [""]
        while left:
            start = left.pop()
            with os.scandir(os.path.join(self.path, start)) as entries:
                for entry in entries:
                    path = f"{start}/{entry.name}" if start else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        directories.add(path)
                        left.append(path)
                    else:
                        files.add(path)
        return directories, files

    def _site_packages(self) -> list[str]:
        """Its site-packages directories, relative to it."""
        library = "lib"
        directories = (f"{library}/{name}" for name in os.listdir(os.path.join(self.path, library)))
        known = [f"{directory}/site-packages" for directory in directories]
        return [one for one in known if os.path.isdir(os.path.join(self.path, one))]

    def owned(self) -> dict[str, set[str]]:
        """The files of each installed distribution, by its name, as its RECORD has them."""
        known: dict[str, set[str]] = {}
        for directory in self._site_packages():
            for name in sorted(os.listdir(os.path.join(self.path, directory))):
                match = _INFO.match(name)
                if match:
                    record = os.path.join(self.path, directory, name, "RECORD")
                    paths = known.setdefault(normal_name(match[1]), set())
                    paths |= {_inside(self.path, directory, row) for row in _rows(record)} - {""}
        return known

    def is_whole(self, names: Iterable[str]) -> bool:
        """Whether it has exactly these distributions, and each has all of its files."""
        try:
            owned, (directories, files) = self.owned(), self._tree()
        except OSError:
            return False
        there = directories | files
        base = set(self._known.base) <= there and os.access(self.python, os.X_OK)
        missing = set(self._known.missing)
        whole = all(paths - files <= missing for paths in owned.values())
        return base and set(owned) == set(names) and whole

    def is_shared(self) -> bool:
        """Whether two distributions have a file of one name: which one's it is, order decides."""
        counts = Counter(path for paths in self.owned().values() for path in paths)
        return any(count > 1 for count in counts.values())

    def remove(self, names: Iterable[str]) -> None:
        """Remove the files of some distributions."""
        owned = self.owned()
        for name in names:
            for path in owned.get(name, ()):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, path))

    def _hide_private_files(self) -> None:
        """Remove what uv remembers of a wheel's file, which no two builds have in common."""
        for directory in self._site_packages():
            for name in os.listdir(os.path.join(self.path, directory)):
                info = os.path.join(self.path, directory, name)
                if _INFO.match(name) and os.path.exists(os.path.join(info, _PRIVATE)):
                    _drop_row(os.path.join(info, "RECORD"), f"{name}/{_PRIVATE}")
                    os.unlink(os.path.join(info, _PRIVATE))

    def _sweep(self) -> None:
        """Remove what belongs to nobody."""
        wanted = set(self._known.base)
        for paths in self.owned().values():
            wanted |= paths
        directories, files = self._tree()
        for path in files - wanted:
            if _source_of(path) not in wanted:
                os.unlink(os.path.join(self.path, path))
        for path in sorted(directories - wanted, reverse=True):
            with suppress(OSError):  # there is something in it
                os.rmdir(os.path.join(self.path, path))

    def _compile(self) -> None:
        """Compile each source whose bytecode is not there, or not of it."""
        tag = self._interpreter.cache_tag
        if tag is None:
            return
        sources = list(self._uncompiled(tag))
        jobs = (
            Job(_content(source), source, 0, "timestamp", int(os.stat(source).st_mtime), None)
            for source, _ in sources
        )
        try:
            with Compiler(self._interpreter.executable) as compiler:
                for (source, target), data in zip(sources, compiler.compile(jobs)):
                    with suppress(FileNotFoundError):
                        os.unlink(target)
                    if data is not None:  # else it is a source of another Python
                        _write_like(target, data, source)
        except InterpreterNotFound as error:
            raise BuildFailed(str(error)) from error

    def _uncompiled(self, tag: str) -> Iterator[tuple[str, str]]:
        """The sources that need to be compiled, and where the bytecode goes."""
        for directory in self._site_packages():
            for parent, inner, names in os.walk(os.path.join(self.path, directory)):
                inner.sort()
                for name in sorted(names):
                    source = os.path.join(parent, name)
                    if name.endswith(".py") and os.path.isfile(source):
                        target = os.path.join(parent, "__pycache__", f"{name[:-3]}.{tag}.pyc")
                        if not self._fits(source, target):
                            yield source, target

    def _fits(self, source: str, target: str) -> bool:
        try:
            with open(target, "rb") as file:
                header = file.read(_HEADER)
        except OSError:
            return False
        status = os.stat(source)
        return bytecode.fits(header, self._interpreter.magic, int(status.st_mtime), status.st_size)


def _rows(record: str) -> Iterator[str]:
    """The paths that a RECORD lists."""
    try:
        with open(record, newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.reader(file):
                if row:
                    yield row[0]
    except FileNotFoundError:
        return


def _inside(top: str, directory: str, row: str) -> str:
    """A row's path relative to the environment; "" where it leads out of it."""
    if ".." not in row and not row.startswith(("/", ".")):
        return f"{directory}/{row}"
    path = os.path.normpath(os.path.join(top, directory, row))
    return path[len(top) + 1 :] if path.startswith(f"{top}/") else ""


def _drop_row(record: str, path: str) -> None:
    """Take a row out of a RECORD; a new file, as uv's cache may have a link to the old one."""
    with open(record, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(os.fsencode(path) + b",")]
    with open(f"{record}.new", "wb") as file:
        os.fchmod(file.fileno(), stat.S_IMODE(os.stat(record).st_mode))
        file.write(b"".join(kept))
    os.replace(f"{record}.new", record)


def _source_of(path: str) -> str | None:
    """The source that bytecode is of; None for what is no bytecode."""
    directory, _, name = path.rpartition("/")
    parent, _, last = directory.rpartition("/")
    if last != "__pycache__" or not name.endswith(".pyc"):
        return None
    return f"{parent}/{name.split('.')[0]}.py"


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write_like(target: str, data: bytes, source: str) -> None:
    """Write bytecode with its source's time: it is no newer than that."""
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        os.mkdir(directory)
        os.chmod(directory, 0o755)
    with open(target, "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(data)
    times = os.stat(source)
    os.utime(target, ns=(times.st_mtime_ns, times.st_mtime_ns))
