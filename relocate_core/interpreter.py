"""Finding a Python that a virtualenv can run on, and asking it what it is.

It has to be of the same X.Y, implementation and ABI as the one that the virtualenv was built with,
or its bytecode and compiled modules would not load. What a Python is, it is asked itself; a path
proves nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import InterpreterMismatch, InterpreterNotFound, InvalidPath, UnsafeFolder
from .survey import broken_modules

_QUESTION = """
import json, os, sys
try:
    import _imp
    suffixes = _imp.extension_suffixes()
except ImportError:
    import imp
    suffixes = [s for s, _, kind in imp.get_suffixes() if kind == imp.C_EXTENSION]
try:
    from _frozen_importlib_external import MAGIC_NUMBER
    magic = ''.join('%02x' % byte for byte in MAGIC_NUMBER)
except ImportError:
    magic = ''
try:
    libc = os.confstr(2 if sys.version_info[0] == 2 else 'CS_GNU_LIBC_VERSION') or ''
except (AttributeError, ValueError, OSError):
    libc = ''
pypy = hasattr(sys, 'pypy_version_info')
print(json.dumps({
    'version': list(sys.version_info[:3]),
    'implementation': 'pypy' if pypy else 'cpython',
    'suffixes': suffixes,
    'prefix': sys.prefix,
    'base_prefix': getattr(sys, 'base_prefix', getattr(sys, 'real_prefix', sys.prefix)),
    'executable': sys.executable,
    'base_executable': getattr(sys, '_base_executable', None),
    'machine': os.uname()[4],
    'cache_tag': getattr(getattr(sys, 'implementation', None), 'cache_tag', None),
    'magic': magic,
    'libc': libc,
}))
"""
_NAME = re.compile(r"(?:python|pypy)[\d.]*t?\Z")
_USUAL_FOLDERS = ("/usr/local/bin", "/usr/bin", "/opt/local/bin")
_ASK_SECONDS = 30


@dataclass(frozen=True)
class Interpreter:
    """A Python as it describes itself.

    Attributes:
        executable: its path; that of the base Python where a virtualenv's was asked.
        version: (X, Y, Z).
        implementation: `cpython` or `pypy`.
        suffixes: the file name endings of compiled modules that it loads.
        prefix: its `sys.prefix`.
        base_prefix: where its standard library lives.
        machine: the processor's architecture.
        cache_tag: what its bytecode's names have in them; None where it is kept beside the source.
        magic: what its bytecode begins with; empty before Python 3.
        libc: its C library and that one's version, such as `glibc 2.36`; "" where it is no glibc.
    """

    executable: str
    version: tuple[int, int, int]
    implementation: str
    suffixes: list[str] = field(repr=False)
    prefix: str
    base_prefix: str
    machine: str
    cache_tag: str | None = None
    magic: bytes = b""
    libc: str = ""

    @property
    def short_version(self) -> str:
        """`X.Y`."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def long_version(self) -> str:
        """`X.Y.Z`."""
        return ".".join(map(str, self.version))


def ask(executable: str) -> Interpreter:
    """What the Python at `executable` says of itself.

    Raises:
        InterpreterNotFound: it is not there, does not run, or is no Python.
    """
    answer = _answer(executable)
    base = answer["executable"]
    if os.path.exists(os.path.join(os.path.dirname(os.path.dirname(base)), "pyvenv.cfg")):
        # A virtualenv's: a link leads to the base; a copy does not, but the newer ones know it.
        known = answer["base_executable"]
        base = known if known and known != base else os.path.realpath(base)
    return Interpreter(
        executable=base,
        version=tuple(answer["version"]),
        implementation=answer["implementation"],
        suffixes=answer["suffixes"],
        prefix=answer["prefix"],
        base_prefix=answer["base_prefix"],
        machine=answer["machine"],
        cache_tag=answer["cache_tag"],
        magic=bytes.fromhex(answer["magic"]),
        libc=answer["libc"],
    )


def _answer(executable: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    # The options that every Python since 2.7 knows: no user's folder, no site-packages, no
    # environment; and a working folder that nobody but root can put a module into.
    command = [executable, "-E", "-s", "-B", "-c", _QUESTION]

    def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command, capture_output=True, cwd="/", env=environment, timeout=_ASK_SECONDS
        )

    try:
        done = run([executable, "-S", *command[1:]])
        if done.returncode:  # virtualenv 16 needs its site.py to find the standard library
            done = run(command)
        answer = json.loads(done.stdout)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InterpreterNotFound(f"{executable} does not run: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise InterpreterNotFound(
            f"{executable} did not answer within {_ASK_SECONDS} seconds"
        ) from error
    except ValueError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"it ended with code {done.returncode}"
        if said:  # a traceback tells at its end what is wrong, everything else at its beginning
            reason = said[-1] if said[0].startswith("Traceback") else said[0]
        raise InterpreterNotFound(f"{executable} is no Python that runs here: {reason}") from error
    return dict(answer)


def named(python: str) -> Interpreter:
    """The Python that an operator named: a path, a command, or a version.

    Raises:
        InvalidPath: it holds a line break or NUL.
        InterpreterNotFound: it is not there, or does not run.
    """
    if "\0" in python or "\n" in python:
        raise InvalidPath(f"the Python must not hold a line break or NUL: {python!r}")
    if "/" in python:
        return ask(os.path.abspath(python))
    name = f"python{python}" if re.match(r"\d+\.\d+t?\Z", python) else python
    failure: InterpreterNotFound | None = None
    for folder in _folders():
        executable = os.path.join(folder, name)
        if os.access(executable, os.X_OK) and not os.path.isdir(executable):
            try:
                return ask(executable)
            except InterpreterNotFound as error:  # a version manager's stand-in, say
                failure = failure or error
    if failure is not None:
        raise failure
    raise InterpreterNotFound(
        f"there is no {name} on this machine's PATH: install it, or name another Python"
    )


def _folders() -> list[str]:
    """Where programs are looked for: the PATH, which a service may have without the usual ones."""
    folders = (*os.get_exec_path(), *_USUAL_FOLDERS)
    return [folder for folder in dict.fromkeys(folders) if folder.startswith("/")]


class Wanted(Protocol):
    """What a Python is looked for: a virtualenv, or a bundle of one."""

    @property
    def path(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def implementation(self) -> str: ...
    @property
    def home(self) -> str | None: ...


def _candidates(environment: Wanted) -> Iterator[str]:
    """Where a Python of the right version may be, the one that the virtualenv names first."""
    kind = "pypy" if environment.implementation == "pypy" else "python"
    names = (f"{kind}{environment.python}", f"{kind}{environment.python[0]}", kind)
    own = os.path.realpath(os.path.join(environment.path, "bin"))
    home = [environment.home] if environment.home and _is_safe(environment.home) else []
    for name in names:
        for folder in (*home, *_folders()):
            executable = os.path.join(folder, name)
            if os.path.realpath(folder) != own and os.access(executable, os.X_OK):
                yield executable


def _is_safe(folder: str) -> bool:
    """Whether a program may be run out of a folder that an archive names."""
    from .trust import require_trusted

    if not (folder.startswith("/") and os.path.isdir(folder)):
        return False
    try:
        require_trusted(folder)
    except UnsafeFolder:
        return False
    return True


def fitting(environment: Wanted, compiled: dict[str, set[str]]) -> Interpreter:
    """The first Python on this machine that the virtualenv can run on.

    Args:
        environment: the virtualenv.
        compiled: the file name endings of each of its compiled modules; see `survey`.

    Raises:
        InterpreterNotFound: there is none of that version and implementation.
        InterpreterMismatch: there is, but it would not load the compiled modules.
    """
    refusal: InterpreterMismatch | None = None
    asked = set()
    for candidate in _candidates(environment):
        real = os.path.realpath(candidate)
        if real in asked:
            continue
        asked.add(real)
        try:
            interpreter = ask(candidate)
            require_fit(environment, interpreter, compiled)
        except InterpreterNotFound:
            continue
        except InterpreterMismatch as error:
            same_version = interpreter.short_version == environment.python
            refusal = error if same_version else refusal
            continue
        return interpreter
    if refusal is not None:
        raise refusal
    what = "PyPy" if environment.implementation == "pypy" else "Python"
    raise InterpreterNotFound(
        f"{environment.path} needs {what} {environment.python}, and none was found on this "
        f"machine: install it, or name one with --python"
    )


def require_fit(
    environment: Wanted, interpreter: Interpreter, compiled: dict[str, set[str]]
) -> None:
    """Refuse a Python that would not run the virtualenv.

    Raises:
        InterpreterMismatch: says why, and which compiled modules would not load.
    """
    broken = broken_modules(compiled, interpreter.suffixes)
    wrong = (
        interpreter.short_version != environment.python
        or interpreter.implementation != environment.implementation
    )
    if not wrong and not broken:
        return
    names = {"cpython": "Python", "pypy": "PyPy"}
    here = f"{names[interpreter.implementation]} {interpreter.short_version}"
    wanted = f"{names.get(environment.implementation, 'Python')} {environment.python}"
    reason = f"it is {here} and the virtualenv is for {wanted}" if wrong else "its ABI is another"
    if broken:
        shown = ", ".join(broken[:3])
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reason += f"; these compiled modules would not load: {shown}{more}"
    raise InterpreterMismatch(
        f"cannot put {environment.path} onto {interpreter.executable}: {reason}; "
        f"name a {wanted} with --python, or build for this one"
    )
