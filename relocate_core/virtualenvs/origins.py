"""Which places outside of themselves the installed packages refer to: editable installs, mostly.

An editable install is a line in a `.pth` or `.egg-link` file, or a module that a `.pth` file
imports and that finds the packages of the project (setuptools, editables, scikit-build-core,
meson-python); direct_url.json (PEP 610) has the place of the project.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

_IMPORT = re.compile(r"import[ \t]")
_MODULE = re.compile(r"import[ \t]+(\w+)")
_LONGEST = 1 << 20
_LONGEST_PATH = 4096


class Reference(NamedTuple):
    """A place that a file of a package refers to.

    Attributes:
        file: the file, relative to the virtualenv.
        path: the place, absolute.
        needed: whether the package is imported from there; else it was only installed from it.
    """

    file: str
    path: str
    needed: bool = True


def references(top: str, site_packages: Iterable[str]) -> Iterator[Reference]:
    """The places that the packages in a virtualenv refer to, in it or outside.

    Args:
        top: the virtualenv's directory.
        site_packages: its site-packages directories, relative to it.
    """
    top = os.path.abspath(top)
    for base in site_packages:
        names = sorted(os.listdir(os.path.join(top, base)))
        known = frozenset(names)
        for name in names:
            file = f"{base}/{name}"
            if name.endswith(".pth"):
                yield from _path_file(top, base, name, known)
            elif name.endswith(".egg-link"):
                lines = map(str.strip, _text(os.path.join(top, file)).splitlines())
                yield from (Reference(file, line) for line in lines if line.startswith("/"))
            elif name.endswith(".dist-info"):
                yield from _direct_url(top, f"{file}/direct_url.json")


def _path_file(top: str, base: str, name: str, known: frozenset[str]) -> Iterator[Reference]:
    """What the lines of a `.pth` file add to the path, and what its imports refer to."""
    file = f"{base}/{name}"
    for line in map(str.strip, _text(os.path.join(top, file)).splitlines()):
        if _IMPORT.match(line):
            yield from (Reference(file, path) for path in _literals(line))
            module = _MODULE.match(line)
            if module and f"{module[1]}.py" in known:
                finder = f"{base}/{module[1]}.py"
                source = _text(os.path.join(top, finder))
                yield from (Reference(finder, path) for path in _literals(source))
        elif line.startswith("/"):
            yield Reference(file, line)
        elif line and not line.startswith("#"):
            path = os.path.normpath(os.path.join(top, base, line))
            if not f"{path}/".startswith(f"{top}/"):
                yield Reference(file, path)


def missing_imports(top: str, site_packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(file, module) of what the modules need that `.pth` files import, and that is not installed.

    Such as `editables`, which the editable installs of hatchling and pdm-backend may need.

    Args:
        top: the virtualenv's directory.
        site_packages: its site-packages directories, relative to it.
    """
    places = list(site_packages)
    installed = {name.partition(".")[0] for one in places for name in os.listdir(f"{top}/{one}")}
    known = installed | _STANDARD
    for base in places if _STANDARD else ():
        for name in sorted(os.listdir(f"{top}/{base}")):
            lines = _text(f"{top}/{base}/{name}").splitlines() if name.endswith(".pth") else ()
            for module in filter(None, (_MODULE.match(line) for line in lines)):
                finder = f"{base}/{module[1]}.py"
                missing = _imported(_text(f"{top}/{finder}")) - known
                yield from ((finder, one) for one in sorted(missing))


_STANDARD: frozenset[str] = frozenset(getattr(sys, "stdlib_module_names", ())) | (
    {"imp", "distutils", "pkg_resources"} if hasattr(sys, "stdlib_module_names") else set()
)
"""What every Python has, or had; not known before Python 3.10."""


def _imported(source: str) -> set[str]:
    """The packages that a program imports first of all, unless it is ready for their absence."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    whole = (node for node in body if isinstance(node, ast.ImportFrom) and not node.level)
    return {name.partition(".")[0] for name in (*names, *(node.module or "" for node in whole))}


@lru_cache(maxsize=8)  # a deploy asks several times for the same few finders
def _literals(source: str) -> tuple[str, ...]:
    """The absolute paths among the literals in a program, each once."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    literals = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = (text for text in literals if isinstance(text, str) and _is_path(text))
    return tuple(dict.fromkeys(texts))


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.count("/") > 1 and len(text) <= _LONGEST_PATH


def _direct_url(top: str, file: str) -> Iterator[Reference]:
    text = _text(os.path.join(top, file))
    if not text:
        return
    try:
        known = json.loads(text)
        url = str(known["url"])
        needed = known.get("dir_info", {}).get("editable") is True
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    if url.startswith("file://"):
        path = unquote(url[len("file://") :])
        path = path[len("localhost") :] if path.startswith("localhost/") else path
        if path.startswith("/"):
            yield Reference(file, path, needed)


def _text(path: str) -> str:
    """A file's content; empty where there is none, as Python passes over what is no file."""
    try:
        if not os.path.isfile(path):
            return ""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_LONGEST).removeprefix("\ufeff")
    except (FileNotFoundError, NotADirectoryError):
        return ""
