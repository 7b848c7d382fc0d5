"""Prefixes that neither activation nor scripts contain, and that other files give evidence of.

`uv venv --relocatable` writes scripts without a path, somebody may have edited `bin` by hand, and a
build through a symlink leaves its second spelling in other places than its first. What is left is
bytecode, which has the name of its source, and what the packages refer to: editable installs of
projects that are in the virtualenv itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..artefacts import bytecode
from ..system import files
from .layout import Virtualenv, is_installation, is_virtualenv
from .origins import references

_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg")


def recorded_prefixes(root: int, environment: Virtualenv) -> list[str]:
    """The prefixes that files other than those in `bin` give evidence of, each once.

    Args:
        root: descriptor of the virtualenv.
        environment: the virtualenv.

    Returns:
        The prefixes; that where the virtualenv is now is among them where files refer to it.
    """
    found = [
        *_by_packages(root, environment),
        *_by_bytecode(root, environment),
        *_second_spellings(environment.old_prefixes),
    ]
    return list(dict.fromkeys(found))


def all_prefixes(environment: Virtualenv) -> tuple[str, ...]:
    """Every path that a virtualenv was at as far as its files show, most trusted first."""
    root = files.open_root(environment.path)
    try:
        recorded = recorded_prefixes(root, environment)
    finally:
        os.close(root)
    return tuple(dict.fromkeys((*environment.old_prefixes, *recorded)))


def _second_spellings(prefixes: Iterable[str]) -> Iterator[str]:
    """What a prefix is without symlinks, where this is the machine that it was built on."""
    for prefix in prefixes:
        real = os.path.realpath(prefix)
        if real != prefix and not os.path.lexists(real) and os.path.isdir(os.path.dirname(real)):
            yield real


# --- packages -------------------------------------------------------------------------------------


def _by_packages(root: int, environment: Virtualenv) -> Iterator[str]:
    """Prefixes below which the packages refer to something that is in the virtualenv.

    The end of such a path exists in the virtualenv, and either is long enough for that to be no
    coincidence, or is a project.
    """
    known = references(environment.path, environment.site_packages)
    for path in dict.fromkeys(one.path for one in known):
        prefix = _prefix_of(root, environment, os.path.normpath(path))
        if prefix is not None:
            yield prefix


def _prefix_of(root: int, environment: Virtualenv, path: str) -> str | None:
    """What is before the longest end of a path that exists in the virtualenv."""
    parts = path.split("/")
    for cut in range(2, len(parts) + 1):
        prefix, tail = "/".join(parts[:cut]), "/".join(parts[cut:])
        is_certain = len(parts) - cut > 1 or _is_project(root, tail)
        if is_certain and _exists(root, tail):
            return None if _is_elsewhere(environment, path, prefix, tail) else prefix
    return None


def _is_elsewhere(environment: Virtualenv, path: str, prefix: str, tail: str) -> bool:
    """Whether a path refers to something else on this machine, which is right as it is.

    What still exists is the old place only where that is a virtualenv, as after a copy; and the
    site-packages directory of another virtualenv may be looked into on purpose.
    """
    if is_installation(prefix):
        return True
    if any(f"{one}/".startswith(f"{tail}/") for one in environment.site_packages):
        return True
    in_packages = tail.startswith(tuple(f"{one}/" for one in environment.site_packages))
    return os.path.lexists(path) and (in_packages or not is_virtualenv(prefix))


def _exists(root: int, path: str) -> bool:
    try:
        os.stat(path or ".", dir_fd=root, follow_symlinks=False)
    except (OSError, ValueError):
        return False
    return True


def _is_project(root: int, path: str) -> bool:
    return any(_exists(root, f"{path}/{name}".lstrip("/")) for name in _PROJECT)


# --- bytecode -------------------------------------------------------------------------------------


def _by_bytecode(root: int, environment: Virtualenv) -> list[str]:
    """Prefixes that bytecode of at least two packages gives as the place of its own source.

    A package that was shipped with its builder's bytecode does not count, hence two. Nor does
    another name of the place where the virtualenv is, by which some program was started.
    """
    votes: dict[str, set[str]] = {}
    for directory in environment.site_packages:
        for package, path in _sample(root, directory):
            with files.directory_of(root, path) as (parent, name):
                try:
                    data, _ = files.read(parent, name)
                except OSError:
                    continue
            source = bytecode.recorded_source(path, data)
            tail = bytecode.source_of(path)
            if source and tail:
                votes.setdefault(source[: -len(tail) - 1], set()).add(package)
    here = os.path.abspath(environment.path)
    return [
        prefix
        for prefix, packages in votes.items()
        if len(packages) > 1
        and prefix.count("/") > 1
        and not is_installation(prefix)
        and (prefix == here or not _is_same(prefix, here))
    ]


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _sample(root: int, directory: str, most: int = 64) -> Iterator[tuple[str, str]]:
    """One bytecode file of each package in a site-packages directory, up to a number."""
    names = _names(root, directory)
    modules = [name for name in _names(root, f"{directory}/__pycache__") if name.endswith(".pyc")]
    for module in modules[:4]:
        yield module.partition(".")[0], f"{directory}/__pycache__/{module}"
    for name in names:
        cache = f"{directory}/{name}/__pycache__"
        pycs = [pyc for pyc in _names(root, cache) if pyc.endswith(".pyc")]
        if pycs:
            yield name, f"{cache}/{pycs[0]}"
            most -= 1
            if not most:
                return


def _names(root: int, directory: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    try:
        descriptor = files.open_directory(root, directory)
    except OSError:
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)
