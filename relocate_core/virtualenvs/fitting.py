"""Whether this machine can run a bundle, told by its manifest before anything is unpacked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InterpreterMismatch
from . import interpreter
from .interpreter import Interpreter
from .manifest import Head

# On a kernel of 64 bits, a Python of 32 bits finds itself on a machine of 64.
_ALSO = {
    "x86_64": ("i386", "i486", "i586", "i686"),
    "aarch64": ("armv6l", "armv7l", "armv8l"),
}


@dataclass(frozen=True)
class _Wanted:
    """What a Python is looked for."""

    path: str
    python: str
    implementation: str
    home: str | None


def require_fit(head: Head, path: str, python: str | None) -> Interpreter:
    """The Python of this machine to run a bundle on.

    Args:
        head: what its manifest says.
        path: where it should stand, for messages.
        python: an executable, a command or `X.Y`; by default the first that fits.

    Raises:
        InterpreterNotFound: there is none of its version and implementation.
        InterpreterMismatch: there is, but of another ABI, or the machine is another one.
    """
    wanted = _Wanted(path, head.python, head.implementation, head.home or None)
    compiled = {module: set(endings) for endings, module in head.compiled}
    if python is None:
        found = interpreter.fitting(wanted, compiled)
    else:
        found = interpreter.named(python)
        interpreter.require_fit(wanted, found, compiled)
    _require_machine(head, path, found)
    return found


def _require_machine(head: Head, path: str, found: Interpreter) -> None:
    """Refuse another processor, another C library, or an older one."""
    doing = f"cannot deploy {path}: its compiled files"
    if head.machine and not _runs(head.machine, found.machine):
        raise InterpreterMismatch(
            f"{doing} are for {head.machine}, and this machine is {found.machine}; "
            "build it on a machine of that kind"
        )
    name, _, version = found.libc.partition(" ")
    if head.libc and name and head.libc != name:
        raise InterpreterMismatch(
            f"{doing} are for {head.libc}, and {found.executable} runs with {found.libc}; "
            "build it on a system like this one"
        )
    if head.libc == "glibc" and not name:
        raise InterpreterMismatch(
            f"{doing} are for glibc, and {found.executable} runs without; "
            "build it on a system like this one"
        )
    if head.libc_version and _numbers(version) < _numbers(head.libc_version):
        raise InterpreterMismatch(
            f"{doing} need glibc {head.libc_version}, and this machine has {version}; "
            "build it on the oldest system that it is deployed to"
        )


def _runs(wanted: str, here: str) -> bool:
    """Whether a machine runs what was compiled for another one."""
    return wanted == here or wanted in _ALSO.get(here, ())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
