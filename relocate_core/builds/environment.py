"""The environment that is kept between builds: created once, changed as little as a build needs.

It has one path, so that two builds of the same content contain the same prefix. Every file in it is
accounted for: those that its tool wrote, those in the RECORD of a distribution, and their bytecode;
all others are removed. While it is changed its state file is missing, so that an environment that a
killed build has left incomplete is noticed, and created again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ..errors import BuildFailed
from ..virtualenvs.interpreter import Interpreter
from .compilation import compile_sources, source_of
from .distributions import hide_private_files, owned_files, site_packages, tree
from .runner import Runner
from .tools import Program

_STATE = "state.json"
_FORMAT = 2
# What keeps backups and version control out of a directory: a release is wanted in both.
_UNWANTED = (".gitignore", "CACHEDIR.TAG", ".lock")


@dataclass
class _State:
    """What is stored about an environment.

    Attributes:
        creator: what created it, for which Python.
        base: the paths that this wrote, relative to the environment.
        contents: a description of the content of each distribution, by its name.
        missing: files that a RECORD lists, and that never existed.
    """

    creator: list[str] = field(default_factory=list)
    base: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class Environment:
    """The environment in a directory of the build cache.

    Args:
        directory: that directory; the environment is `<directory>/environment`.
        interpreter: the Python that it is for.
        tool: what creates it.
        runner: runs that.
        caches: where virtualenv may keep what it needs.
        system_site_packages: whether it sees the packages of the Python.
    """

    def __init__(
        self,
        directory: str,
        interpreter: Interpreter,
        tool: Program,
        runner: Runner,
        caches: str,
        system_site_packages: bool = False,
    ) -> None:
        self.path = os.path.join(directory, "environment")
        self.python = os.path.join(self.path, "bin", "python")
        self.is_new = False
        """Whether this build has created it."""
        self.system_site_packages = system_site_packages
        self._state_file = os.path.join(directory, _STATE)
        self._interpreter = interpreter
        self._tool = tool
        self._runner = runner
        self._caches = caches
        self._state = _State()

    @property
    def contents(self) -> dict[str, str]:
        """A description of the content of each distribution in it, by its name."""
        return self._state.contents

    def prepare(self) -> None:
        """Have it complete; where it is not, it is created again, and empty."""
        state = self._read()
        if state is None or state.creator != self._creator():
            self.create()
            return
        self._state = state
        if not self.is_complete(state.contents):
            self.create()

    def create(self) -> None:
        """Create it again, without any package."""
        self._forget()
        shutil.rmtree(self.path, ignore_errors=True)
        self._runner.run(
            "creating the environment",
            self._command(),
            os.path.dirname(self.path),
            VIRTUALENV_OVERRIDE_APP_DATA=os.path.join(self._caches, "virtualenv"),
        )
        for name in _UNWANTED:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))
        directories, files = tree(self.path)
        self._state = _State(self._creator(), sorted((*directories, *files)))
        self.is_new = True

    def _command(self) -> list[str]:
        command, python = list(self._tool.command), self._interpreter.executable
        last = ["--system-site-packages"] if self.system_site_packages else []
        last.append(self.path)
        if self._tool.name == "venv":
            return [*command, "--without-pip", "--symlinks", *last]
        if self._tool.name == "uv":
            return [*command, "venv", "--no-project", "--no-config", "--python", python, *last]
        quiet = ["--no-download", "--no-periodic-update", "--no-seed"]
        return [*command, *quiet, "--python", python, *last]

    def _creator(self) -> list[str]:
        python = self._interpreter
        return [str(self._tool), python.executable, python.long_version, *python.suffixes]

    # --- its state file -------------------------------------------------------------------------

    def _read(self) -> _State | None:
        try:
            with open(self._state_file, encoding="utf-8", errors="surrogateescape") as file:
                stored = json.load(file)
            if stored.pop("format") != _FORMAT:
                return None
            return _State(**stored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._state_file)

    def _write(self) -> None:
        new = f"{self._state_file}.new"
        with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump({"format": _FORMAT, **self._state.__dict__}, file, indent=1)
        os.replace(new, self._state_file)

    @contextmanager
    def changing(self, contents: Mapping[str, str]) -> Iterator[None]:
        """Change it; at the end it has these distributions, and nothing else.

        After a failure that has changed nothing it is used again; after any other it is created
        again by the next build.

        Args:
            contents: a description of the content of each distribution that it has then, by name.
        """
        recorded, before = os.path.exists(self._state_file), self._snapshot()
        self._forget()
        try:
            yield
        except BuildFailed:
            if recorded and self._snapshot() == before:
                self._write()
            raise
        hide_private_files(self.path)
        self._sweep()
        self._compile()
        files = tree(self.path)[1]
        self._state.contents = dict(contents)
        self._state.missing = sorted(set().union(*owned_files(self.path).values()) - files)
        self._write()

    def _snapshot(self) -> set[tuple[str, int, int]]:
        statuses = ((name, os.lstat(os.path.join(self.path, name))) for name in tree(self.path)[1])
        return {
            (name, status.st_ino, status.st_mtime_ns)
            for name, status in statuses
            if name not in _UNWANTED
        }

    # --- its files ------------------------------------------------------------------------------

    def is_complete(self, names: Iterable[str]) -> bool:
        """Whether it has exactly these distributions, and each has all of its files."""
        try:
            owned, (directories, files) = owned_files(self.path), tree(self.path)
        except OSError:
            return False
        existing, missing = directories | files, set(self._state.missing)
        has_base = set(self._state.base) <= existing and os.access(self.python, os.X_OK)
        has_files = all(paths - files <= missing for paths in owned.values())
        return has_base and set(owned) == set(names) and has_files

    def has_shared_files(self) -> bool:
        """Whether two distributions have a file of one path: the last installed wins."""
        counts = Counter(path for paths in owned_files(self.path).values() for path in paths)
        return any(count > 1 for count in counts.values())

    def remove(self, names: Iterable[str]) -> None:
        """Remove the files of some distributions."""
        owned = owned_files(self.path)
        for name in names:
            for path in owned.get(name, ()):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, path))

    def _sweep(self) -> None:
        """Remove what neither the tool nor a distribution owns."""
        wanted = set(self._state.base).union(*owned_files(self.path).values())
        directories, files = tree(self.path)
        for path in files - wanted:
            if source_of(path) not in wanted:
                os.unlink(os.path.join(self.path, path))
        for path in sorted(directories - wanted, reverse=True):
            with suppress(OSError):  # it is not empty
                os.rmdir(os.path.join(self.path, path))

    def _compile(self) -> None:
        directories = (os.path.join(self.path, one) for one in site_packages(self.path))
        compile_sources(directories, self._interpreter)
