"""Finding the programs that build: virtualenv, uv, venv, and the Python to build for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..errors import BuildFailed, InterpreterNotFound
from ..virtualenvs.discovery import find_named
from ..virtualenvs.interpreter import Interpreter, probe
from .runner import find_program, output_of, search_path

TOOLS = ("venv", "virtualenv", "uv")
"""What creates an environment."""


@dataclass(frozen=True)
class Program:
    """A program that was found.

    Attributes:
        name: what it is called.
        command: the words that run it.
        version: its version; "" where only a build can find it out.
    """

    name: str
    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def find_tool(name: str, interpreter: Interpreter, has_venv: bool | None = None) -> Program:
    """What creates environments for a Python.

    Args:
        name: one of TOOLS.
        interpreter: the Python.
        has_venv: whether it has that module; by default it is run to find that out.

    Raises:
        BuildFailed: it is not installed; the message has how to install it.
    """
    if name == "uv":
        return uv()
    if name == "virtualenv":
        program = virtualenv(interpreter)
        if program is None:
            raise BuildFailed(
                "there is no virtualenv on this machine: install it with the system's package "
                "manager or pip, or let venv or uv create the environment"
            )
        return program
    if has_venv is None:
        has_venv = output_of(interpreter.executable, "-I", "-c", "import venv") is not None
    if not has_venv:
        raise BuildFailed(
            f"{interpreter.executable} has no venv module: install it (on Debian: python3-venv), "
            "or let virtualenv or uv create the environment"
        )
    return Program("venv", (interpreter.executable, "-I", "-m", "venv"), interpreter.long_version)


def virtualenv(interpreter: Interpreter) -> Program | None:
    """virtualenv: a command, or a module of that Python or of the one that runs this."""
    import sys

    commands = [(path,) for path in _paths("virtualenv")]
    modules = [
        (python, "-I", "-m", "virtualenv") for python in (interpreter.executable, sys.executable)
    ]
    return _first("virtualenv", (*commands, *modules))


def uv() -> Program:
    """uv: a command, also beside the Python that runs this.

    Raises:
        BuildFailed: it is not installed; the message has how to install it.
    """
    program = _first("uv", ((path,) for path in _paths("uv")))
    if program is None:
        raise BuildFailed(
            "there is no uv on this machine: install it (see https://docs.astral.sh/uv, or "
            "`pip install uv`), or choose pip and venv"
        )
    return program


def _paths(name: str) -> Iterator[str]:
    """Where a command may be: on the PATH, or where pip puts those of the running Python."""
    import sys
    import sysconfig

    on_path = find_program(name)
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
        output = output_of(*command, "--version") if command[0] else None
        version = re.search(r"\d+(?:\.\w+)+", output or "")
        if version:
            return Program(name, command, version[0])
    return None


def default_python() -> Interpreter:
    """The first `python3` on the PATH that is not Salt's own: servers have none like that.

    Raises:
        InterpreterNotFound: there is none at all.
    """
    first = find_named("python3")
    if not _is_salts(first):
        return first
    for directory in search_path(os.environ).split(":"):
        executable = os.path.join(directory, "python3")
        if os.access(executable, os.X_OK):
            with suppress(InterpreterNotFound):
                other = probe(executable)
                if not _is_salts(other):
                    return other
    return first


def _is_salts(python: Interpreter) -> bool:
    """Whether it is the one in Salt's onedir packages, which have their programs beside `bin`."""
    names = ("salt-call", "salt-minion")
    return any(os.path.exists(os.path.join(python.base_prefix, name)) for name in names)
