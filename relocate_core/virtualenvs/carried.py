"""A Python that a virtualenv carries in its own directory, such as `.python/bin/python3.12`.

It goes where the virtualenv goes, so it is used where it is. As it comes from wherever the
virtualenv comes from, root does not run it: where no other user can, its files have to do.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

from ..artefacts import elf
from ..errors import InterpreterNotFound
from ..system.ownership import user_name
from .interpreter import PROGRAM_NAME, Interpreter, is_program, probe, user_for_carried
from .layout import Virtualenv

_MOST_HOPS = 40


class Place:
    """Where a virtualenv is, and where its files expect it.

    Args:
        path: its directory.
        homes: the paths that its files may have instead, such as the one it is going to get.
    """

    def __init__(self, path: str, *homes: str | None) -> None:
        self.path = os.path.abspath(path)
        self.homes = tuple(home for home in homes if home is not None)

    def now(self, path: str) -> str:
        """Where something is now that its files refer to as `path`."""
        for home in self.homes:
            if f"{path}/".startswith(f"{home}/"):
                return self.path + path[len(home) :]
        return path

    def resolved(self, path: str) -> str:
        """What is behind the symlinks at `path`, those to where it is going to be included."""
        path = self.now(path)
        for _ in range(_MOST_HOPS):
            if not os.path.islink(path):
                break
            target = os.path.join(os.path.dirname(path), os.readlink(path))
            path = self.now(os.path.normpath(target))
        return path


def carried_python(environment: Virtualenv, home: str | None = None) -> str | None:
    """The Python that a virtualenv has in its own directory, as its path now; None without one.

    Args:
        environment: the virtualenv.
        home: the path that it is going to be renamed to.
    """
    place = Place(environment.path, home, *environment.old_prefixes)
    library = place.now(environment.home or "")
    directory = os.path.join(place.path, "bin")
    if not library.startswith(f"{place.path}/") or library == directory:
        return None
    python = place.resolved(os.path.join(directory, "python"))
    if os.path.dirname(python) == directory:  # a copy
        names = filter(PROGRAM_NAME.match, _names(library))
        python = next((os.path.join(library, name) for name in names), "")
    top = os.path.realpath(place.path)
    inside = os.path.realpath(python).startswith(f"{top}/")
    return python if inside and is_program(python) else None


def probe_carried(environment: Virtualenv, python: str, as_root: bool | None = None) -> Interpreter:
    """Run the Python that a virtualenv carries, and return what it is.

    Args:
        environment: the virtualenv.
        python: its Python; see `carried_python`.
        as_root: whether the operator named root as the owner who should run it; see `probe_own`.

    Raises:
        InterpreterNotFound: it does not run, or is no Python.
        CannotRun: only root could run it, and root does not.
    """
    user = user_for_carried(environment.path, python, as_root)
    try:
        return probe(python, user)
    except InterpreterNotFound as error:
        found = None if user is None else _described(environment, python)
        if user is None or found is None:
            raise
        reason = f"as the user {user_name(user[0])}, {error}; root runs nothing from an archive"
        return replace(found, untried=f"{reason}, so see whether those who run it can")


def _described(environment: Virtualenv, python: str) -> Interpreter | None:
    """What the files have about a Python: none where it is for another machine, or incomplete."""
    prefix = os.path.dirname(os.path.dirname(python))
    config = environment.config.get("version_info") or environment.config.get("version", "")
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", config)
    library = os.path.join(prefix, "lib", f"python{environment.python}", "os.py")
    with open(python, "rb") as file:
        needs = elf.needs(file.fileno())
    machine = os.uname().machine
    if version is None or not os.path.isfile(library) or needs is None or needs.machine != machine:
        return None
    major, minor, micro = map(int, version.groups())
    return Interpreter(
        executable=python,
        version=(major, minor, micro),
        implementation=environment.implementation,
        suffixes=[],
        prefix=prefix,
        base_prefix=prefix,
        machine=machine,
        free_threaded=environment.free_threaded,
    )


def _names(directory: str) -> list[str]:
    """The longest names first: `python3.12` is more certain than `python`."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(names, key=lambda name: (-len(name), name))
