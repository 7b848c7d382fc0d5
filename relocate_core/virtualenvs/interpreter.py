"""Probing a Python: it is run, and reports its version, ABI and places itself.

A path is no evidence of the program behind it. What a virtualenv has in the place of its Python
may be anything, as it may come from an archive: root runs it as another user, and does not run it
where none can.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

from ..errors import CannotRun, InterpreterNotFound, reason_of
from ..system.ownership import user_name
from ..system.processes import environment as bare_environment
from ..system.processes import identity, run
from .interpreter_info import PROGRAM
from .layout import read_config
from .manifest import PLACE, RECORD

# `python3.11-dbg` (Debian), `platform-python3.6` (RHEL 8), `python3.13-nogil`, `python3.14t`, and
# what venv adds on Python 3.14.
PROGRAM_NAME = re.compile(
    r"(?!.*-config\Z)(?:(?:platform-)?python|pypy|\N{MATHEMATICAL ITALIC SMALL PI}thon)[\w.-]*\Z"
)
"""What the executables of a Python are called."""

_PROBE_SECONDS = 30
_NOBODY = 65534


@dataclass(frozen=True)
class Interpreter:
    """A Python as it describes itself.

    Attributes:
        executable: its path; that of the base Python where a virtualenv's was probed.
        version: (X, Y, Z).
        implementation: `cpython` or `pypy`.
        suffixes: the file name endings of compiled modules that it loads.
        prefix: its `sys.prefix`.
        base_prefix: where its standard library lives.
        machine: the processor's architecture.
        cache_tag: what its bytecode's names have in them; None where it is kept beside the source.
        magic: what its bytecode begins with; empty before Python 3.
        libc: its C library and that one's version, such as `glibc 2.36`; "" where it is no glibc.
        free_threaded: whether it is a build without the GIL, which has packages of its own.
        untried: why it could not be run, where this is from files alone.
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
    free_threaded: bool = False
    untried: str = ""

    @property
    def short_version(self) -> str:
        """`X.Y`."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def long_version(self) -> str:
        """`X.Y.Z`."""
        return ".".join(map(str, self.version))


def probe(executable: str, user: tuple[int, int] | None = None) -> Interpreter:
    """Run the Python at `executable`, and return what it is.

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
            # A virtualenv's: a symlink points to the base; a copy does not, but the newer ones know
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
            free_threaded=answer["free_threaded"],
        )
    except (KeyError, TypeError, ValueError) as error:  # some other program
        raise InterpreterNotFound(
            f"{executable} is no Python that runs here: it does not report what it is"
        ) from error


def probe_own(path: str, base: str | None = None, as_root: bool | None = None) -> Interpreter:
    """Run a virtualenv's own Python, and return what it is.

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
    return probe(os.path.join(path, "bin", "python"), user_for_own(path, base, as_root))


def user_for_carried(path: str, python: str, as_root: bool | None) -> tuple[int, int] | None:
    """Whom to run the Python as that a virtualenv carries, see `probe_own`; None for oneself.

    Args:
        path: the virtualenv's directory.
        python: its Python.
        as_root: whether the operator named root as the owner who should run it.

    Raises:
        CannotRun: only root could run it, and root does not.
    """
    if os.geteuid() != 0:
        return None
    as_root = _is_local(path) if as_root is None else as_root
    return _unprivileged(path, [path, os.path.dirname(python)], as_root)


def _is_local(path: str) -> bool:
    """Whether a virtualenv is neither a release nor a bundle."""
    return not any(os.path.lexists(os.path.join(path, name)) for name in (PLACE, RECORD))


def user_for_own(path: str, base: str | None, as_root: bool | None) -> tuple[int, int] | None:
    """Whom root runs a virtualenv's own Python as, see `probe_own`; None for itself.

    Raises:
        CannotRun: only root could run it, and root does not.
    """
    if os.geteuid() != 0:
        return None
    as_root = _is_local(path) if as_root is None else as_root
    owner = os.stat(path)
    base_alone = _runs_base_alone(path, base)
    if not owner.st_uid and base_alone:
        return None
    known_home = base
    if base is None and not owner.st_uid:
        # Not of another owner, who could name a directory that is closed to them, for root to run
        # it.
        known_home = read_config(path).get("home")
    places = [path, *([known_home] if known_home else [])]
    return _unprivileged(path, places, as_root, trusted=base is not None and base_alone)


def _unprivileged(
    path: str, places: list[str], as_root: bool, trusted: bool = False
) -> tuple[int, int] | None:
    """The owner of a virtualenv, or nobody for root's own; None for root where that may be.

    Args:
        path: the virtualenv.
        places: the directories that the user has to enter.
        as_root: whether root runs its own virtualenv where nobody cannot.
        trusted: whether root runs it where the user cannot.
    """
    owner = os.stat(path)
    user = owner.st_uid or _NOBODY, owner.st_gid or _NOBODY
    closed = next((place for place in places if not _may_enter(place, user)), None)
    if closed is None:
        return user
    if trusted or (as_root and not owner.st_uid):
        return None
    raise CannotRun(
        f"{os.path.join(path, 'bin', 'python')} is not run: root runs nothing from an archive, and "
        f"the user {user_name(user[0])} may not enter {closed}; open it and the directories above "
        "it to that user (chmod o+x), or deploy it with user=root if root should run it"
    )


def _runs_base_alone(path: str, base: str | None) -> bool:
    """Whether nothing of a virtualenv itself is run when its Python starts, without its `site`.

    It is where the executable is a symlink to the base, and nothing makes that look into the
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
        or any(is_in_virtualenv(place) for place in places)
        or (base is not None and os.path.realpath(python) not in _pythons(base))
        or os.path.lexists(os.path.join(path, "bin", "pyvenv.cfg"))
        or _homes(path) - {home}
    )


def is_in_virtualenv(path: str) -> bool:
    """Whether a file belongs to a virtualenv or release, and so maybe to an archive."""
    above = os.path.realpath(path)
    while above != "/":
        if any(os.path.lexists(os.path.join(above, name)) for name in ("pyvenv.cfg", RECORD)):
            return True
        above = os.path.dirname(above)
    return False


def _pythons(directory: str) -> set[str]:
    """The programs that the Pythons in a directory are; a script of such a name is none."""
    paths = (os.path.join(directory, n) for n in os.listdir(directory) if PROGRAM_NAME.match(n))
    return {os.path.realpath(path) for path in paths if is_program(path)}


def is_program(path: str) -> bool:
    """Whether there is a compiled program."""
    try:
        with open(path, "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(4) == b"\x7fELF"
    except OSError:
        return False


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
    return run(command, "/", {}, user=identity(user)[0], seconds=_PROBE_SECONDS).code == 0


def _answer(executable: str, user: tuple[int, int] | None) -> dict[str, Any]:
    who, home = identity(user)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if user is not None:  # what is in root's environment is not for everybody
        variables = bare_environment(os.path.dirname(os.path.dirname(executable)), home)
    # The options that every Python since 2.7 knows: no user's directory, no site-packages, no
    # environment; and a working directory that nobody but root can put a module into.
    command = [executable, "-E", "-s", "-B", "-c", PROGRAM]
    try:
        done = run(
            [executable, "-S", *command[1:]], "/", variables, user=who, seconds=_PROBE_SECONDS
        )
        if done.code:  # virtualenv 16 needs its site.py to find the standard library
            done = run(command, "/", variables, user=who, seconds=_PROBE_SECONDS)
        if done.code is None:
            raise InterpreterNotFound(
                f"{executable} did not answer within {_PROBE_SECONDS} seconds"
            )
        answer = json.loads(done.output)
    except OSError as error:
        raise InterpreterNotFound(f"{executable} does not run: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        lines = done.errors.strip().splitlines()
        reason = f"it ended with code {done.code}"
        if lines:  # a traceback has the error at its end, everything else at its beginning
            reason = lines[-1] if lines[0].startswith("Traceback") else lines[0]
        raise InterpreterNotFound(f"{executable} is no Python that runs here: {reason}") from error
    return answer if isinstance(answer, dict) else {}
