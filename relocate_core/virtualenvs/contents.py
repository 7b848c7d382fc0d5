"""What a virtualenv contains: compiled modules, symlinks to the outside, packages, editables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import TreeError
from ..system import files
from . import manifest_reader
from .evidence import all_prefixes
from .interpreter import PROGRAM_NAME
from .layout import Virtualenv, inspect
from .origins import references

# How the name of a compiled module shows the Python it is for: `.cpython-311-x86_64-linux-gnu.so`,
# `.pypy39-pp73-x86_64-linux-gnu.so`, `.abi3.so`. Other shared libraries do not.
_TAGGED = re.compile(r"([^.]+)(\.(?:cpython-\d|pypy\d|abi3)[^/]*\.so)\Z")


@dataclass
class Contents:
    """What one walk over a virtualenv's tree finds.

    Attributes:
        compiled: the file name endings that each compiled module comes with, by its dotted name.
        dangling: (symlink, target) of those to nothing.
        pointing_out: (symlink, target) of absolute ones out of the tree, but the interpreter's.
        packages: how many distributions are installed.
        outside: (file, path) of what packages are imported from that is outside, and
        inside: of what is in the virtualenv; see `references`.
    """

    compiled: dict[str, set[str]] = field(default_factory=dict)
    dangling: list[tuple[str, str]] = field(default_factory=list)
    pointing_out: list[tuple[str, str]] = field(default_factory=list)
    packages: int = 0
    outside: list[tuple[str, str]] = field(default_factory=list)
    inside: list[tuple[str, str]] = field(default_factory=list)


def read_contents(
    environment: Virtualenv,
    compiled: dict[str, set[str]] | None = None,
    links: Mapping[str, str] | None = None,
    prefixes: tuple[str, ...] = (),
) -> Contents:
    """Walk the tree of a virtualenv; nothing in it is run.

    Args:
        environment: the virtualenv.
        compiled: its compiled modules, where they are known.
        links: its symlinks and their targets; with both there is no walk.
        prefixes: more paths that it was at than `inspect` finds.
    """
    result = Contents(compiled or {})
    top = environment.path
    if compiled is not None and links is not None:
        for name, target in links.items():
            _read_link(result, environment, os.path.join(top, name), name, target)
    else:
        _walk(result, environment)
    _read_packages(result, environment, prefixes)
    result.dangling.sort()
    result.pointing_out.sort()
    return result


def _walk(result: Contents, environment: Virtualenv) -> None:
    top = environment.path
    ahead = [""]
    while ahead:
        relative = ahead.pop()
        with os.scandir(os.path.join(top, relative)) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = os.readlink(entry.path)
                    _read_link(result, environment, entry.path, relative + entry.name, target)
                elif entry.is_dir():
                    ahead.append(f"{relative}{entry.name}/")
                elif entry.name.endswith(".so"):
                    module = compiled_module(environment, relative + entry.name)
                    if module is not None:
                        result.compiled.setdefault(module[0], set()).add(module[1])


def compiled_module(environment: Virtualenv, path: str) -> tuple[str, str] | None:
    """The dotted name and the file name's ending of a compiled module; None for other files."""
    directory, _, name = path.rpartition("/")
    match = _TAGGED.match(name)
    if match is None:
        return None
    return _dotted(environment, f"{directory}/{match[1]}" if directory else match[1]), match[2]


def _dotted(environment: Virtualenv, path: str) -> str:
    for site_packages in environment.site_packages:
        path = path[len(site_packages) + 1 :] if path.startswith(site_packages + "/") else path
    return path.replace("/", ".")


def _read_link(
    result: Contents, environment: Virtualenv, path: str, name: str, target: str
) -> None:
    if not os.path.exists(path):
        result.dangling.append((name, target))
    is_interpreter = name.startswith("bin/") and PROGRAM_NAME.match(name[len("bin/") :])
    inside = target == environment.prefix or target.startswith(f"{environment.prefix}/")
    if target.startswith("/") and not inside and not is_interpreter:
        result.pointing_out.append((name, target))


def _read_packages(result: Contents, environment: Virtualenv, prefixes: tuple[str, ...]) -> None:
    for site_packages in environment.site_packages:
        names = os.listdir(os.path.join(environment.path, site_packages))
        result.packages += sum(map(_is_package, names))
    homes = (*environment.old_prefixes, *prefixes, os.path.abspath(environment.path))
    for file, path, needed in references(environment.path, environment.site_packages):
        if needed:
            outside = not any(f"{path}/".startswith(f"{home}/") for home in homes)
            (result.outside if outside else result.inside).append((file, path))


def _is_package(name: str) -> bool:
    return name.endswith((".dist-info", ".egg-info", ".egg-link"))


def broken_modules(compiled: dict[str, set[str]], suffixes: list[str]) -> list[str]:
    """The compiled modules of which a Python with these file name endings would load none."""
    usable = set(suffixes)
    return sorted(module for module, endings in compiled.items() if not endings & usable)


def describe(path: str) -> dict[str, Any]:
    """Describe the virtualenv at `path`. Nothing in it is run or changed.

    Args:
        path: its directory.

    Returns:
        path, prefix (the path that its files refer to), old_prefixes (all of them), python (X.Y),
        implementation, builder, interpreter (what `bin/python` points to), home, copies,
        relocatable, system_site_packages, prompt, site_packages, packages (a count),
        compiled_modules (a count), stays_behind (a list of what is not portable), build (the
        metadata of the build of a bundle; empty for all else), built_on (the interpreter bundle
        that it was built on: file, manifest and sha256; None for all else).

    Raises:
        NotAVirtualenv: there is none.
        TreeError: it cannot be read.
    """
    environment = inspect(path)
    try:
        prefixes = all_prefixes(environment)
        contents = read_contents(environment, prefixes=prefixes)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error) from error
    facts = environment.as_dict()
    del facts["config"]
    facts["old_prefixes"] = list(prefixes)
    facts["interpreter"] = os.path.realpath(os.path.join(path, "bin", "python"))
    facts["packages"] = contents.packages
    facts["compiled_modules"] = len(contents.compiled)
    facts["stays_behind"] = [
        *(f"{file} refers to {line}" for file, line in contents.outside),
        *(f"{name} points to {target}" for name, target in contents.pointing_out),
    ]
    facts["build"], facts["built_on"] = _build(path)
    return facts


def _build(path: str) -> tuple[dict[str, str], dict[str, str] | None]:
    """The metadata of the build of a bundle, and the interpreter bundle that it was built on."""
    root = files.open_root(path)
    try:
        head = manifest_reader.head_in(root)
    finally:
        os.close(root)
    if head is None:
        return {}, None
    return dict(head.facts), None if head.built_on is None else asdict(head.built_on)
