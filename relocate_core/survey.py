"""One look over a virtualenv's tree: compiled modules, links that lead out, packages, editables."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from .virtualenv import Virtualenv

# How the name of a compiled module tells the Python it is for: `.cpython-311-x86_64-linux-gnu.so`,
# `.pypy39-pp73-x86_64-linux-gnu.so`, `.abi3.so`. Other shared libraries tell nothing.
_TAGGED = re.compile(r"([^.]+)(\.(?:cpython-\d|pypy\d|abi3)[^/]*\.so)\Z")
_INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*t?\Z")


@dataclass
class Survey:
    """What one walk over a virtualenv's tree tells.

    Attributes:
        compiled: the file name endings that each compiled module comes with, by its dotted name.
        dangling: (link, target) of links to nothing.
        leading_out: (link, target) of absolute links out of the tree, save the interpreter's.
        packages: how many distributions are installed.
        outside: (file, path) of `.pth` and `.egg-link` lines that name a place outside.
    """

    compiled: dict[str, set[str]] = field(default_factory=dict)
    dangling: list[tuple[str, str]] = field(default_factory=list)
    leading_out: list[tuple[str, str]] = field(default_factory=list)
    packages: int = 0
    outside: list[tuple[str, str]] = field(default_factory=list)


def survey(environment: Virtualenv) -> Survey:
    """Walk the tree of a virtualenv; nothing in it is run."""
    result = Survey()
    top = environment.path
    ahead = [""]
    while ahead:
        relative = ahead.pop()
        with os.scandir(os.path.join(top, relative)) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _look_at_link(result, environment, entry.path, relative + entry.name)
                elif entry.is_dir():
                    ahead.append(f"{relative}{entry.name}/")
                elif entry.name.endswith(".so"):
                    match = _TAGGED.match(entry.name)
                    if match:
                        module = _dotted(environment, relative + match[1])
                        result.compiled.setdefault(module, set()).add(match[2])
    for site_packages in environment.site_packages:
        _look_at_metadata(result, environment, site_packages)
    result.dangling.sort()
    result.leading_out.sort()
    return result


def _dotted(environment: Virtualenv, path: str) -> str:
    for site_packages in environment.site_packages:
        path = path[len(site_packages) + 1 :] if path.startswith(site_packages + "/") else path
    return path.replace("/", ".")


def _look_at_link(result: Survey, environment: Virtualenv, path: str, name: str) -> None:
    target = os.readlink(path)
    if not os.path.exists(path):
        result.dangling.append((name, target))
    is_interpreter = name.startswith("bin/") and _INTERPRETER.match(name[len("bin/") :])
    inside = target == environment.prefix or target.startswith(f"{environment.prefix}/")
    if target.startswith("/") and not inside and not is_interpreter:
        result.leading_out.append((name, target))


def _look_at_metadata(result: Survey, environment: Virtualenv, site_packages: str) -> None:
    folder = os.path.join(environment.path, site_packages)
    homes = (environment.prefix or environment.path, os.path.abspath(environment.path))
    for name in sorted(os.listdir(folder)):
        if name.endswith((".dist-info", ".egg-info", ".egg-link")):
            result.packages += 1
        if name.endswith((".pth", ".egg-link")):
            with open(os.path.join(folder, name), errors="surrogateescape") as file:
                lines = [line.strip() for line in file]
            for line in lines:
                outside = not any(line == home or line.startswith(home + "/") for home in homes)
                if line.startswith("/") and outside:
                    result.outside.append((f"{site_packages}/{name}", line))


def broken_modules(compiled: dict[str, set[str]], suffixes: list[str]) -> list[str]:
    """The compiled modules of which a Python with these file name endings would load none."""
    usable = set(suffixes)
    return sorted(module for module, endings in compiled.items() if not endings & usable)
