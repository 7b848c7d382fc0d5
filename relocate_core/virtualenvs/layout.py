"""What a directory is: a virtualenv's layout, its Python, and the prefixes that its files name."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..artefacts import metadata, scripts
from ..artefacts.quoting import CSH, FISH, SH, Language
from ..errors import InvalidPath, NotAVirtualenv, TreeError
from ..progress import Report
from .packages import LIBRARIES

_LIB = re.compile(r"(python|pypy)(\d+\.\d+)(t?)\Z")
_PACKAGES = ("site-packages", "dist-packages")
_WORD = rb"((?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|\\.|[^\s;'\"()\\])+)"
_ASSIGNED = re.compile(rb"VIRTUAL_ENV(?:=|[ \t]+)(?:\$\(cygpath )?" + _WORD)
_ACTIVATION: tuple[tuple[str, Language], ...] = (
    ("activate", SH),
    ("activate.csh", CSH),
    ("activate.fish", FISH),
)
# Read of a script to see its shebang: the longest path and the shell form around it.
_HEAD = 4096 + 256
_LONGEST_CONFIG = 1 << 20


@dataclass(frozen=True)
class Virtualenv(Report):
    """A virtualenv as its files describe it; nothing in it is run.

    Attributes:
        path: the directory, as it was given.
        prefix: the path that its activation or else its scripts contain; None if nothing does.
        old_prefixes: all paths that it was built at as far as its files show, most trusted first.
        python: `X.Y` of the Python it is for.
        implementation: `cpython` or `pypy`.
        free_threaded: whether that is a build without the GIL, with packages of its own.
        builder: which tool made it: `venv`, `virtualenv` or `uv`.
        home: the directory of the base Python, as pyvenv.cfg has it; None on virtualenv before 20.
        site_packages: its site-packages directories, relative to it.
        system_site_packages: whether it sees the base Python's packages.
        prompt: the prompt that was chosen by hand, or None.
        copies: whether `bin/python` is a copy of the base Python and no symlink.
        relocatable: whether it was made by `uv venv --relocatable`.
        config: the keys and values of pyvenv.cfg.
    """

    path: str
    prefix: str | None
    old_prefixes: tuple[str, ...]
    python: str
    implementation: str
    free_threaded: bool
    builder: str
    home: str | None
    site_packages: tuple[str, ...]
    system_site_packages: bool
    prompt: str | None
    copies: bool
    relocatable: bool
    config: dict[str, str] = field(repr=False)


def absolute_prefix(path: str, what: str) -> str:
    """`path` in its plain form, checked to be one that a virtualenv can live at.

    Raises:
        InvalidPath: it is relative, the root directory, or holds a newline or NUL.
    """
    if "\0" in path or "\n" in path or "\r" in path:
        raise InvalidPath(f"{what} must not hold a line break or NUL: {path!r}")
    if not path.startswith("/"):
        raise InvalidPath(f"{what} must be absolute: {path}")
    path = "/" + os.path.normpath(path).lstrip("/")
    if path == "/":
        raise InvalidPath(f"{what} must be a directory of its own: {path}")
    return path


def inspect(path: str) -> Virtualenv:
    """Describe the virtualenv at `path` from its files.

    Args:
        path: its directory, absolute or relative to the working directory.

    Returns:
        What was found; see `Virtualenv`.

    Raises:
        InvalidPath: no file system has such a path.
        NotAVirtualenv: it lacks what every virtualenv has.
        TreeError: it cannot be read.
    """
    if "\0" in path or "\n" in path:
        raise InvalidPath(f"the path must not hold a line break or NUL: {path!r}")
    try:
        return _inspect(path)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error) from error


def _inspect(path: str) -> Virtualenv:
    libraries = _libraries(path)
    config = read_config(path)
    library = _library_in_use(libraries, config)
    site_packages = tuple(_site_packages(path, libraries))
    has_marker = bool(config) or os.path.isfile(os.path.join(path, "bin", "activate"))
    if not has_marker:
        raise NotAVirtualenv(path, "file", os.path.join(path, "bin", "activate"))
    prefixes = tuple(_prefixes(path, config, site_packages))
    python = config.get("version_info") or config.get("version") or library.version
    home = config.get("home")
    return Virtualenv(
        path=path,
        prefix=prefixes[0] if prefixes else None,
        old_prefixes=prefixes,
        python=".".join(python.split(".")[:2]),
        implementation=config.get("implementation", library.implementation).lower(),
        free_threaded=library.free_threaded,
        builder=_builder(config),
        home=home,
        site_packages=site_packages,
        system_site_packages=_sees_system(path, library.path, config),
        prompt=config.get("prompt"),
        copies=_is_copy(path),
        relocatable=config.get("relocatable") == "true",
        config=config,
    )


class _Library(NamedTuple):
    """The directory of the standard library or its substitute, and what its name contains."""

    path: str
    implementation: str
    version: str
    free_threaded: bool


def _libraries(path: str) -> list[_Library]:
    """Those of every Python that the virtualenv has packages for; symlinks have none of their own.

    Raises:
        NotAVirtualenv: there is none.
    """
    if not _is_directory(os.path.join(path, "bin")):
        raise NotAVirtualenv(path, "directory", os.path.join(path, "bin"))
    real = os.path.realpath(path)
    places = [one for one in LIBRARIES if _is_directory(os.path.join(path, one))]
    if not places:
        raise NotAVirtualenv(path, "directory", os.path.join(path, "lib"))
    found = []
    for place in places:
        directory = os.path.join(real, place)
        if os.path.realpath(directory) != directory:  # such as lib64, a symlink to lib
            continue
        for name in sorted(os.listdir(directory)):
            match = _LIB.match(name)
            if match and os.path.isdir(os.path.join(directory, name)):
                kind = "pypy" if match[1] == "pypy" else "cpython"
                found.append(_Library(f"{place}/{name}", kind, match[2], bool(match[3])))
    if not found:
        raise NotAVirtualenv(path, "directory", os.path.join(path, "lib", "python#.#"))
    return found


def _library_in_use(found: list[_Library], config: dict[str, str]) -> _Library:
    """That of the version in pyvenv.cfg, else of the latest."""
    wanted = ".".join(config.get("version", "").split(".")[:2])
    return next((one for one in found if one.version == wanted), found[-1])


def _is_directory(path: str) -> bool:
    """Whether there is a directory; an error, and no answer, where that must not be read."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _site_packages(path: str, libraries: list[_Library]) -> Iterator[str]:
    """The site-packages directories below every library directory; PyPy 2 has one at the top."""
    names = [f"{library.path}/{name}" for library in libraries for name in _PACKAGES]
    found = [
        name
        for name in (*names, "site-packages")
        if os.path.isdir(os.path.join(path, name)) and not os.path.islink(os.path.join(path, name))
    ]
    if not found:
        raise NotAVirtualenv(path, "directory", os.path.join(path, names[0]))
    yield from found


def _at_once(path: str, flags: int) -> int:
    """Open a file; not waiting for anybody to write to it, if its owner has made a pipe of it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_config(path: str) -> dict[str, str]:
    """pyvenv.cfg as lower-case keys and their values; empty where there is none."""
    try:
        place = os.path.join(path, "pyvenv.cfg")
        with open(place, encoding="utf-8", errors="surrogateescape", opener=_at_once) as f:
            lines = f.read(_LONGEST_CONFIG).splitlines()
    except FileNotFoundError:
        return {}
    rows = (line.partition("=") for line in lines if "=" in line)
    return {key.strip().lower(): value.strip() for key, _, value in rows}


def _builder(config: dict[str, str]) -> str:
    if "uv" in config:
        return "uv"
    return "virtualenv" if not config or "virtualenv" in config else "venv"


def _sees_system(path: str, library: str, config: dict[str, str]) -> bool:
    if "include-system-site-packages" in config:
        return config["include-system-site-packages"].lower() == "true"
    return not os.path.exists(os.path.join(path, library, "no-global-site-packages.txt"))


def _is_copy(path: str) -> bool:
    """Whether the interpreter is a file of the virtualenv, not a symlink out of it."""
    interpreter = os.path.join(path, "bin", "python")
    bin_directory = os.path.realpath(os.path.join(path, "bin"))
    return (
        os.path.isfile(interpreter)
        and os.path.dirname(os.path.realpath(interpreter)) == bin_directory
    )


# --- prefixes -------------------------------------------------------------------------------------


def _prefixes(path: str, config: dict[str, str], site_packages: tuple[str, ...]) -> Iterator[str]:
    """Every prefix that the files give evidence of, each once, most trusted first.

    A shebang alone is no evidence - a script may be meant to run on another Python - unless a
    package's metadata lists the script, which only its installer into this very place writes.
    """
    known: list[str] = []
    for prefix in (*_activated(path), *_built_by_command(config, path)):
        if prefix not in known:
            known.append(prefix)
            yield prefix
    home = config.get("home", "")
    strangers: dict[str, list[str]] = {}
    for name, prefix in _shebang_prefixes(path):
        if prefix not in known and os.path.join(prefix, "bin") != home:
            strangers.setdefault(prefix, []).append(name)
    if strangers:
        listed = _listed_scripts(path, site_packages)
        for prefix, names in strangers.items():
            if listed.intersection(names) and not is_installation(prefix):
                yield prefix


def _activated(path: str) -> Iterator[str]:
    """What the activation scripts set VIRTUAL_ENV to."""
    for name, language in _ACTIVATION:
        try:
            with open(os.path.join(path, "bin", name), "rb") as file:
                data = file.read(1 << 20)
        except FileNotFoundError:
            continue
        for match in _ASSIGNED.finditer(data):
            prefix = _meaning(match[1], language)
            if prefix.startswith("/"):
                yield prefix


def _meaning(word: bytes, language: Language) -> str:
    return os.fsdecode(b"".join(unit.meaning for unit in language.read(word)))


def _built_by_command(config: dict[str, str], path: str) -> Iterator[str]:
    """The target in pyvenv.cfg's `command`, which is not quoted, where that has only one path."""
    tail = re.search(r" -m (?:venv|virtualenv) (.*)", config.get("command", ""))
    if tail is None:
        return
    starts = [match.start() for match in re.finditer(r"(?:(?<=\s)|\A)/", tail[1])]
    if len(starts) == 1:
        yield tail[1][starts[0] :].rstrip("/") or "/"


def _shebang_prefixes(path: str) -> Iterator[tuple[str, str]]:
    """Each script in `bin` and the prefix of the Python in its shebang."""
    with os.scandir(os.path.join(path, "bin")) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                interpreter = scripts.interpreter_of(_head(entry.path))
                match = re.match(rb"(/.+)/bin/(?:python|pypy)[^/]*\Z", interpreter or b"")
                if match:
                    yield entry.name, os.fsdecode(match[1])


def _head(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(_HEAD) or b""


def _listed_scripts(path: str, site_packages: tuple[str, ...]) -> set[str]:
    """The names in `bin` that installed packages list as their own."""
    names: set[str] = set()
    for directory in site_packages:
        for entry in os.scandir(os.path.join(path, directory)):
            for record in ("RECORD", "installed-files.txt"):
                if not entry.name.endswith((".dist-info", ".egg-info")):
                    continue
                try:
                    with open(os.path.join(entry.path, record), "rb") as file:
                        rows = metadata.record_rows(file.read())
                        names.update(_bin_name(row) for row, _ in rows if b"/bin/" in row)
                except (FileNotFoundError, NotADirectoryError):
                    continue
    # Scripts that `setup.py develop` writes are in no list, but contain who wrote them.
    with os.scandir(os.path.join(path, "bin")) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and b"# EASY-INSTALL" in _head(entry.path):
                names.add(entry.name)
    return names


def _bin_name(row: bytes) -> str:
    return os.fsdecode(row.rpartition(b"/")[2])


def is_installation(prefix: str) -> bool:
    """Whether a Python lives at `prefix` that is no virtualenv: never a prefix to be replaced."""
    if prefix in ("/usr", "/usr/local", "/opt"):
        return True
    return os.path.isdir(os.path.join(prefix, "bin")) and not is_virtualenv(prefix)


def is_virtualenv(path: str) -> bool:
    """Whether a directory has what every virtualenv has one of."""
    return any(os.path.exists(os.path.join(path, name)) for name in ("pyvenv.cfg", "bin/activate"))
