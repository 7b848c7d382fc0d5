"""Finding a Python on this machine that a virtualenv, or a bundle of one, can run on.

It has to be of the same X.Y, implementation and ABI as the one that the virtualenv was built with,
or its bytecode and compiled modules would not load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import InterpreterMismatch, InterpreterNotFound, InvalidPath, UnsafeDirectory
from ..system.ownership import require_trusted
from ..system.processes import USUAL_DIRECTORIES
from .contents import broken_modules
from .interpreter import PROGRAM_NAME, Interpreter, is_in_virtualenv, is_program, probe
from .manifest import Head
from .system_packages import Packages, require


def find_named(python: str) -> Interpreter:
    """The Python that an operator chose: a path, a command, or a version.

    Raises:
        InvalidPath: it holds a line break or NUL.
        InterpreterNotFound: it is not there, or does not run.
    """
    if "\0" in python or "\n" in python:
        raise InvalidPath(f"the Python must not hold a line break or NUL: {python!r}")
    if "/" in python:
        return probe(os.path.abspath(python))
    name = f"python{python}" if re.match(r"\d+\.\d+t?\Z", python) else python
    failure: InterpreterNotFound | None = None
    for directory in program_directories():
        executable = os.path.join(directory, name)
        if os.access(executable, os.X_OK) and not os.path.isdir(executable):
            try:
                return probe(executable)
            except InterpreterNotFound as error:  # such as the shim of a version manager
                failure = failure or error
    if failure is not None:
        raise failure
    raise InterpreterNotFound(
        f"there is no {name} on this machine's PATH: install it, or name another Python"
    )


def program_directories() -> list[str]:
    """Where programs are looked for: the PATH, and the usual directories that it may lack."""
    directories = (*os.get_exec_path(), *USUAL_DIRECTORIES, "/opt/local/bin")
    return [directory for directory in dict.fromkeys(directories) if directory.startswith("/")]


class PythonSpec(Protocol):
    """What is needed of a Python, by a virtualenv or by a bundle of one."""

    @property
    def path(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def implementation(self) -> str: ...
    @property
    def home(self) -> str | None: ...
    @property
    def free_threaded(self) -> bool | None: ...


def _candidates(environment: PythonSpec) -> Iterator[str]:
    """Where a Python of the right version may be, the one that the virtualenv refers to first."""
    kind = "pypy" if environment.implementation == "pypy" else "python"
    version = f"{environment.python}{'t' if environment.free_threaded else ''}"
    names = [f"{kind}{version}", f"{kind}{environment.python}", f"{kind}{version[0]}", kind]
    own = os.path.realpath(os.path.join(environment.path, "bin"))
    home = [environment.home] if environment.home and _is_safe(environment.home) else []
    for name in dict.fromkeys(names):
        for directory in (*home, *program_directories()):
            executable = os.path.join(directory, name)
            if os.path.realpath(directory) != own and os.access(executable, os.X_OK):
                yield executable
    for directory in (*home, *program_directories()):  # of another name, such as python3.11-dbg
        if os.path.isdir(directory) and os.path.realpath(directory) != own:
            for name in sorted(filter(PROGRAM_NAME.match, os.listdir(directory))):
                if is_program(os.path.join(directory, name)):
                    yield os.path.join(directory, name)


def _is_safe(directory: str) -> bool:
    """Whether a program may be run from a directory that an archive refers to."""
    if not (directory.startswith("/") and os.path.isdir(directory)):
        return False
    if is_in_virtualenv(directory):
        return False
    try:
        require_trusted(directory)
    except UnsafeDirectory:
        return False
    return True


def find_fitting(
    environment: PythonSpec, compiled: dict[str, set[str]], system: Packages = ()
) -> Interpreter:
    """The first Python on this machine that the virtualenv can run on.

    Args:
        environment: the virtualenv.
        compiled: the file name endings of each of its compiled modules; see `read_contents`.
        system: which of the Python's packages it needs.

    Raises:
        InterpreterNotFound: there is none of that version and implementation.
        InterpreterMismatch: there is, but it would not load the compiled modules.
    """
    refusal: InterpreterMismatch | None = None
    probed = set()
    for candidate in _candidates(environment):
        real = os.path.realpath(candidate)
        if real in probed:
            continue
        probed.add(real)
        try:
            interpreter = probe(candidate)
            require_fit(environment, interpreter, compiled, system)
        except InterpreterNotFound:
            continue
        except InterpreterMismatch as error:
            found = interpreter.implementation, interpreter.short_version
            same = found == (environment.implementation, environment.python)
            refusal = error if same else refusal
            continue
        return interpreter
    if refusal is not None:
        raise refusal
    what = "PyPy" if environment.implementation == "pypy" else "Python"
    raise InterpreterNotFound(
        f"{environment.path} needs {what} {environment.python}, and none was found on this "
        f"machine: install it, or name another Python"
    )


def require_fit(
    environment: PythonSpec,
    interpreter: Interpreter,
    compiled: dict[str, set[str]],
    system: Packages = (),
) -> None:
    """Refuse a Python that would not run the virtualenv.

    Raises:
        InterpreterMismatch: with the reason, and which compiled modules would not load, or which
            packages it lacks.
    """
    broken = broken_modules(compiled, interpreter.suffixes)
    wrong = (
        interpreter.short_version != environment.python
        or interpreter.implementation != environment.implementation
        or environment.free_threaded not in (None, interpreter.free_threaded)
    )
    if not wrong and not broken:
        require(system, f"put {environment.path} onto this Python", interpreter.executable)
        return
    names = {"cpython": "Python", "pypy": "PyPy"}
    here = f"{names[interpreter.implementation]} {interpreter.short_version}"
    here += "t" if interpreter.free_threaded else ""
    wanted = f"{names.get(environment.implementation, 'Python')} {environment.python}"
    wanted += "t" if environment.free_threaded else ""
    reason = f"it is {here} and the virtualenv is for {wanted}" if wrong else "its ABI is another"
    if broken:
        shown = ", ".join(broken[:3])
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reason += f"; these compiled modules would not load: {shown}{more}"
    raise InterpreterMismatch(
        f"cannot put {environment.path} onto {interpreter.executable}: {reason}; "
        f"name a {wanted}, or build for this one"
    )


# On a kernel of 64 bits, a Python of 32 bits finds itself on a machine of 64.
_ALSO = {
    "x86_64": ("i386", "i486", "i586", "i686"),
    "aarch64": ("armv6l", "armv7l", "armv8l"),
}


@dataclass(frozen=True)
class _BundleSpec:
    """What a bundle needs of a Python: a `PythonSpec`."""

    path: str
    python: str
    implementation: str
    home: str | None
    free_threaded: bool | None


def for_bundle(head: Head, path: str, python: str | Interpreter | None) -> Interpreter:
    """The Python of this machine to run a bundle on.

    Args:
        head: that of its manifest.
        path: where it is deployed, for messages.
        python: an executable, a command or `X.Y`, or what one is known to be; by default the first
            that fits.

    Raises:
        InterpreterNotFound: there is none of its version and implementation.
        InterpreterMismatch: there is, but of another ABI or without the packages that the bundle
            needs of it, or the machine is another one.
    """
    home, threads = head.home or None, head.free_threaded
    spec = _BundleSpec(path, head.python, head.implementation, home, threads)
    compiled = {module: set(endings) for endings, module in head.compiled}
    if python is None:
        found = find_fitting(spec, compiled, head.system_packages)
    else:
        found = find_named(python) if isinstance(python, str) else python
        # The Python of a bundle that is not unpacked yet has its packages compared once it is.
        known = os.path.exists(found.executable)
        require_fit(spec, found, compiled, head.system_packages if known else ())
    require_machine(head, f"deploy {path}", found)
    return found


def require_machine(head: Head, doing: str, found: Interpreter) -> None:
    """Refuse another processor, another C library, or an older one.

    Args:
        head: that of a bundle's manifest.
        doing: what cannot be done then, such as `deploy /srv/app/4f2a9c1`.
        found: a Python of this machine.

    Raises:
        InterpreterMismatch: with what the bundle needs, and what there is.
    """
    doing = f"cannot {doing}: its compiled files"
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
