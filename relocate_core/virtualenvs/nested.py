"""Virtualenvs inside a virtualenv, such as `envs/tool`: their packages are looked at as well."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..errors import NotAVirtualenv
from .layout import Virtualenv, inspect

# So deep below the top, or another one, they are looked for by a walk.
_DEEPEST = 8


def packages_above(environment: Virtualenv, paths: Iterable[str]) -> tuple[str, ...]:
    """The site-packages of all virtualenvs inside of which one of some files is.

    Args:
        environment: the outer one.
        paths: the files, relative to it.
    """
    own = tuple(f"{one}/" for one in environment.site_packages)
    above: set[str] = set()
    for path in paths:
        # In packages there is one only where something like its programs is.
        is_other = not path.startswith(own) or "/bin/" in path
        directory = os.path.dirname(path) if is_other else ""
        while directory and directory not in above:
            above.add(directory)
            directory = os.path.dirname(directory)
    return tuple(_packages(environment, sorted(above)))


def packages_below(environment: Virtualenv) -> tuple[str, ...]:
    """The site-packages of all virtualenvs inside another one, found by a walk."""
    return tuple(_packages(environment, sorted(_directories(environment))))


def _directories(environment: Virtualenv) -> Iterator[str]:
    for directory, names, _ in os.walk(environment.path):
        relative = os.path.relpath(directory, environment.path)
        if relative.count("/") >= _DEEPEST:
            names.clear()
        if relative != ".":
            yield relative


def _packages(environment: Virtualenv, directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        path = os.path.join(environment.path, directory)
        if not os.path.isfile(os.path.join(path, "pyvenv.cfg")):
            continue
        try:
            inner = inspect(path)
        except NotAVirtualenv:
            continue
        yield from (f"{directory}/{one}" for one in inner.site_packages)
