"""Finding a Python that a virtualenv can run on, and asking it what it is.

It has to be of the same X.Y, implementation and ABI as the one that the virtualenv was built with,
or its bytecode and compiled modules would not load. What a Python is, it is asked itself; a path
proves nothing. What a virtualenv has in the place of its Python may be anything, as it may come out
of an archive: root lets somebody else run that, and does not run it where nobody else can.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import (
    CannotRun,
    InterpreterMismatch,
    InterpreterNotFound,
    InvalidPath,
    UnsafeDirectory,
)
from ..system.ownership import require_trusted, user_name
from ..system.running import environment as bare_environment
from ..system.running import identity, run
from .contents import broken_modules
from .layout import read_config
from .manifest import PLACE, RECORD

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
_USUAL_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/opt/local/bin")
_ASK_SECONDS = 30
_NOBODY = 65534


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


def ask(executable: str, user: tuple[int, int] | None = None) -> Interpreter:
    """What the Python at `executable` says of itself.

    Args:
        executable: its path.
        user: user and group to run it as; None for whoever runs this.

    Raises:
        InterpreterNotFound: it is not there, does not run, or is no Python.
    """
    answer = _answer(executable, user)
    try:
        base = answer["executable"]
        if os.path.exists(os.path.join(os.path.dirname(os.path.dirname(base)), "pyvenv.cfg")):
            # A virtualenv's: a link points to the base; a copy does not, but the newer ones know
            # it.
            known = answer["base_executable"]
            base = known if known and known != base else os.path.realpath(base)
        major, minor, micro = map(int, answer["version"])
        return Interpreter(
            executable=base,
            version=(major, minor, micro),
            implementation=answer["implementation"],
            suffixes=[str(one) for one in answer["suffixes"]],
            prefix=answer["prefix"],
            base_prefix=answer["base_prefix"],
            machine=answer["machine"],
            cache_tag=answer["cache_tag"],
            magic=bytes.fromhex(answer["magic"]),
            libc=answer["libc"],
        )
    except (KeyError, TypeError, ValueError) as error:  # some other program
        raise InterpreterNotFound(
            f"{executable} is no Python that runs here: it does not tell what it is"
        ) from error


def ask_own(path: str, base: str | None = None, as_root: bool | None = None) -> Interpreter:
    """What a virtualenv's own Python says of itself.

    Root runs it as the virtualenv's owner; one of root's own as nobody, where more than the base
    Python would run. Where these users cannot run it, root does only if nothing but the base Python
    would run, or if root made it here, or if the operator asked for that.

    Args:
        path: the virtualenv's directory.
        base: the directory of its base Python, where it is known for sure.
        as_root: whether the operator named root as the owner who should run it. By default that
            is so for a virtualenv that is neither a release nor a bundle.

    Raises:
        InterpreterNotFound: it is not there, does not run, or is no Python.
        CannotRun: only root could run it, and root does not.
    """
    path = os.path.abspath(path)
    if as_root is None:
        as_root = not any(os.path.lexists(os.path.join(path, name)) for name in (PLACE, RECORD))
    return ask(os.path.join(path, "bin", "python"), _other_user(path, base, as_root))


def _other_user(path: str, base: str | None, as_root: bool) -> tuple[int, int] | None:
    """Whom root runs a virtualenv's own Python as; None for itself."""
    if os.geteuid() != 0:
        return None
    owner = os.stat(path)
    base_alone = _runs_base_alone(path, base)
    if not owner.st_uid and base_alone:
        return None
    user = owner.st_uid or _NOBODY, owner.st_gid or _NOBODY
    known_home = base
    if base is None and not owner.st_uid:
        # Not of another owner, who could name a directory that is closed to them, for root to run
        # it.
        known_home = read_config(path).get("home")
    places = [path, *([known_home] if known_home else [])]
    closed = next((place for place in places if not _may_enter(place, user)), None)
    if closed is None:
        return user
    if (base is not None and base_alone) or (as_root and not owner.st_uid):
        return None
    raise CannotRun(
        f"{os.path.join(path, 'bin', 'python')} is not run: root runs nothing from an archive, and "
        f"the user {user_name(user[0])} may not enter {closed}; open it and the directories above "
        "it to that user (chmod o+x), or deploy it with user=root if root should run it"
    )


def _runs_base_alone(path: str, base: str | None) -> bool:
    """Whether nothing of a virtualenv itself is run when its Python starts, without its `site`.

    It is where the executable is a link to the base, and nothing tells that to look into the
    virtualenv for its library. A copy looks there by itself: for a library of C beside it, as
    $ORIGIN in the base's executable may have it, and for that of Python, unless pyvenv.cfg has a
    home; and a pyvenv.cfg in its own directory comes first (Modules/getpath.py of CPython).
    """
    inside = os.path.realpath(path)
    home = read_config(path).get("home")
    python = os.path.join(path, "bin", "python")
    places = [python, *filter(None, [home])]
    return not (
        any(f"{os.path.realpath(place)}/".startswith(f"{inside}/") for place in places)
        or any(_is_in_virtualenv(place) for place in places)
        or (base is not None and os.path.realpath(python) not in _pythons(base))
        or os.path.lexists(os.path.join(path, "bin", "pyvenv.cfg"))
        or _homes(path) - {home}
    )


def _is_in_virtualenv(path: str) -> bool:
    """Whether a file belongs to a virtualenv or release, and so maybe to an archive."""
    above = os.path.realpath(path)
    while above != "/":
        if any(os.path.lexists(os.path.join(above, name)) for name in ("pyvenv.cfg", RECORD)):
            return True
        above = os.path.dirname(above)
    return False


def _pythons(directory: str) -> set[str]:
    """The programs that the Pythons in a directory are."""
    names = filter(_NAME.match, os.listdir(directory))
    return {os.path.realpath(os.path.join(directory, name)) for name in names}


def _homes(path: str) -> set[str]:
    """Whatever a Python may take for the home in pyvenv.cfg, if it is read less strictly."""
    try:
        with open(
            os.path.join(path, "pyvenv.cfg"), encoding="utf-8", errors="surrogateescape"
        ) as f:
            text = f.read()
    except FileNotFoundError:
        return set()
    rows = (line.partition("=") for line in (*text.split("\n"), *text.splitlines()))
    return {value.strip() for key, _, value in rows if key.strip().lower() == "home"}


def _may_enter(path: str, user: tuple[int, int]) -> bool:
    """Whether a user may pass through all the directories on the way to a path, and through it."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", path]
    return run(command, "/", {}, user=identity(user)[0], seconds=_ASK_SECONDS).code == 0


def _answer(executable: str, user: tuple[int, int] | None) -> dict[str, Any]:
    who, home = identity(user)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if user is not None:  # what is in root's environment is not for everybody
        variables = bare_environment(os.path.dirname(os.path.dirname(executable)), home)
    # The options that every Python since 2.7 knows: no user's directory, no site-packages, no
    # environment; and a working directory that nobody but root can put a module into.
    command = [executable, "-E", "-s", "-B", "-c", _QUESTION]
    try:
        done = run([executable, "-S", *command[1:]], "/", variables, user=who, seconds=_ASK_SECONDS)
        if done.code:  # virtualenv 16 needs its site.py to find the standard library
            done = run(command, "/", variables, user=who, seconds=_ASK_SECONDS)
        if done.code is None:
            raise InterpreterNotFound(f"{executable} did not answer within {_ASK_SECONDS} seconds")
        answer = json.loads(done.output)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InterpreterNotFound(f"{executable} does not run: {reason}") from error
    except (ValueError, RecursionError) as error:
        said = done.errors.strip().splitlines()
        reason = f"it ended with code {done.code}"
        if said:  # a traceback tells at its end what is wrong, everything else at its beginning
            reason = said[-1] if said[0].startswith("Traceback") else said[0]
        raise InterpreterNotFound(f"{executable} is no Python that runs here: {reason}") from error
    return answer if isinstance(answer, dict) else {}


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
    for directory in _directories():
        executable = os.path.join(directory, name)
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


def _directories() -> list[str]:
    """Where programs are looked for: the PATH, which a service may have without the usual ones."""
    directories = (*os.get_exec_path(), *_USUAL_DIRECTORIES)
    return [directory for directory in dict.fromkeys(directories) if directory.startswith("/")]


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
        for directory in (*home, *_directories()):
            executable = os.path.join(directory, name)
            if os.path.realpath(directory) != own and os.access(executable, os.X_OK):
                yield executable


def _is_safe(directory: str) -> bool:
    """Whether a program may be run out of a directory that an archive names."""
    if not (directory.startswith("/") and os.path.isdir(directory)):
        return False
    if _is_in_virtualenv(directory):
        return False
    try:
        require_trusted(directory)
    except UnsafeDirectory:
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
        f"machine: install it, or name another Python"
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
        f"name a {wanted}, or build for this one"
    )
