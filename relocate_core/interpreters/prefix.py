"""An interpreter's prefix: which Python is in it, and whether it can be packed.

The Python is run, and reports where its files are. One that its distribution or another tool has
spread over a shared directory is refused: its files cannot be distinguished from those of others,
and it would be updated below those who use it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CannotTravel, InterpreterNotFound, InvalidPath, reason_of
from ..system.processes import identity, run
from ..virtualenvs.interpreter import Interpreter, probe
from ..virtualenvs.layout import absolute_prefix

TAKE_INSTEAD = (
    "take one with a directory of its own: of `uv python install`, of pyenv, or made by "
    "`configure --prefix=DIRECTORY` and `make install`"
)
PROGRAM = re.compile(r"(?:python|pypy)(?:\d+(?:\.\d+[a-z]*)?)?\Z")
"""What the programs of a Python are called: python, python3, python3.13t, pypy3.9."""
_SHARED = ("/", "/usr", "/usr/local", "/opt")
_NOWHERE = "/nonexistent"
_SECONDS = 30
# The first PyPy that has its library in lib/pypyX.Y.
_OLDEST = {"cpython": (3, 6), "pypy": (3, 9)}
_ONLY = "only CPython 3.6, PyPy 3.9 or later is packed as an interpreter"
_QUESTION = """
import _imp, json, sys, sysconfig
paths, variables = sysconfig.get_paths(), sysconfig.get_config_vars()
try:
    # From 3.14 on, the variable `prefix` is where the Python is, not what it was built for.
    recorded = __import__(sysconfig._get_sysconfigdata_name()).build_time_vars
except (AttributeError, ImportError):
    recorded = variables
print(json.dumps({
    'prefix': sys.prefix,
    'built': recorded.get('prefix') or '',
    'stdlib': paths['stdlib'],
    'platstdlib': paths['platstdlib'],
    'include': paths['include'],
    'soabi': (_imp.extension_suffixes() or [''])[0][1:-3],
    'abiflags': getattr(sys, 'abiflags', ''),
    'program': '%s%d.%d%s' % (sys.implementation.name.replace('cpython', 'python'),
                              sys.version_info[0], sys.version_info[1],
                              getattr(sys, 'abiflags', '').replace('m', '')),
}))
"""


@dataclass(frozen=True)
class Prefix:
    """A Python that can be packed.

    Attributes:
        path: its directory, without symlinks.
        prefixes: all paths that its files may refer to it by.
        built: the directory that it was built for, shared with others or not.
        interpreter: what it is.
        program: its program, relative to the directory.
        libraries: the directories of its standard library, relative to the directory.
        include: that of its headers.
        abiflags: such as `t` for a build without the GIL.
        soabi: what the names of its compiled modules have in them.
    """

    path: str
    prefixes: tuple[str, ...]
    built: str
    interpreter: Interpreter
    program: str
    libraries: tuple[str, ...]
    include: str
    abiflags: str
    soabi: str

    @property
    def is_of_shared(self) -> bool:
        """Whether it was built for a directory that others share, and which is not its own."""
        return os.path.normpath(self.built) in _SHARED

    def published(self) -> Prefix:
        """The same without its directory, where that is a temporary one that nothing refers to."""
        built = os.path.normpath(self.built)
        known = built in self.prefixes and os.path.realpath(built) != self.path
        return replace(self, prefixes=(built if known else _NOWHERE,))

    @property
    def executable(self) -> str:
        """The path of its program."""
        return os.path.join(self.path, self.program)


def inspect(path: str) -> Prefix:
    """The Python whose prefix is the directory at `path`.

    Raises:
        InvalidPath: there is no Python with such a prefix.
        CannotTravel: it is no Python that can be packed.
        InterpreterNotFound: it does not run.
    """
    absolute_prefix(os.path.abspath(path), "the prefix of the Python")
    top = os.path.realpath(path)
    if os.path.exists(os.path.join(top, "pyvenv.cfg")):
        raise CannotTravel(
            f"cannot pack {path} as an interpreter: it is a virtualenv, and has no Python of its "
            f"own; {TAKE_INSTEAD}"
        )
    if top in _SHARED:
        raise CannotTravel(
            f"cannot pack the Python of {path}: its distribution, or whoever installed it, has "
            f"spread it over a directory that it shares with others; {TAKE_INSTEAD}"
        )
    if os.path.exists(os.path.join(top, "conda-meta")):
        raise CannotTravel(f"cannot pack {path}: it is an environment of conda; {TAKE_INSTEAD}")
    first = _program(path, top)
    interpreter = probe(first)
    if interpreter.version < _OLDEST[interpreter.implementation]:
        name = {"cpython": "Python", "pypy": "PyPy"}[interpreter.implementation]
        raise CannotTravel(
            f"cannot pack {path}: it is {name} {interpreter.long_version}, and {_ONLY}"
        )
    answer = _answer(first)
    if os.path.realpath(answer["prefix"]) != top:
        raise CannotTravel(
            f"cannot pack the Python in {path}: its own prefix is {answer['prefix']}; name that "
            "directory, where it is one of its own"
        )
    return _described(top, path, interpreter, answer)


def _described(top: str, path: str, interpreter: Interpreter, answer: dict[str, str]) -> Prefix:
    places = [top, os.path.abspath(path), answer["prefix"], answer["built"]]
    # python-build-standalone is built at /install, and says so; a shared one says nothing of it.
    known = [os.path.normpath(one) for one in places if one.startswith("/")]
    directories = []
    for name in ("stdlib", "platstdlib", "include"):
        below = os.path.relpath(os.path.realpath(answer[name]), top)
        if below == "." or below.startswith(".."):
            raise CannotTravel(
                f"cannot pack {path}: its Python has {answer[name]}, which is outside of it; "
                f"{TAKE_INSTEAD}"
            )
        directories.append(below)
    program = os.path.join("bin", answer["program"])
    if not os.path.isfile(os.path.join(top, program)):
        raise CannotTravel(f"cannot pack {path}: it has no {program}; {TAKE_INSTEAD}")
    return Prefix(
        path=top,
        prefixes=tuple(one for one in dict.fromkeys(known) if one not in _SHARED),
        built=answer["built"],
        interpreter=interpreter,
        program=program,
        libraries=tuple(dict.fromkeys(directories[:2])),
        include=directories[2],
        abiflags=answer["abiflags"],
        soabi=answer["soabi"],
    )


def has_program(top: str) -> bool:
    """Whether a directory has a Python's programs in its `bin`."""
    try:
        return any(map(PROGRAM.match, os.listdir(os.path.join(top, "bin"))))
    except OSError:
        return False


def _program(path: str, top: str) -> str:
    """One of the programs in the prefix."""
    try:
        names = sorted(name for name in os.listdir(os.path.join(top, "bin")) if PROGRAM.match(name))
    except OSError as error:
        raise InvalidPath(
            f"{path} is no prefix of a Python: {os.path.join(path, 'bin')}: {reason_of(error)}; "
            "name the directory that has bin/python3 in it"
        ) from error
    for name in ("python3", "python", *names):
        if name in names:
            return os.path.join(top, "bin", name)
    raise InvalidPath(
        f"{path} is no prefix of a Python: there is no python3 in {os.path.join(path, 'bin')}; "
        "name the directory that has bin/python3 in it"
    )


def _answer(program: str) -> dict[str, str]:
    """What the Python reports of its places."""
    command = [program, "-I", "-S", "-B", "-c", _QUESTION]
    done = run(command, "/", {"PATH": "/usr/bin:/bin"}, user=identity(None)[0], seconds=_SECONDS)
    try:
        answer: Any = json.loads(done.output)
    except ValueError:
        lines = done.errors.strip().splitlines() or ["it printed nothing"]
        raise InterpreterNotFound(
            f"{program} does not report where its standard library is: {lines[-1]}"
        ) from None
    return {key: str(value) for key, value in answer.items()}
