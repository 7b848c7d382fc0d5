"""The installed distributions of an environment, and which of its files each of them owns.

All paths are relative to the environment, unless noted otherwise.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress

from ..artefacts.metadata import record_rows
from ..virtualenvs.requirements import normal_name

_INFO = re.compile(r"(.+?)-[^-]+\.dist-info\Z")
# What uv writes of a local wheel for itself: the time of that file.
_PRIVATE = "uv_cache.json"


def tree(environment: str) -> tuple[set[str], set[str]]:
    """The directories of an environment, and everything else in it."""
    directories: set[str] = set()
    files: set[str] = set()
    left = [""]
    while left:
        start = left.pop()
        with os.scandir(os.path.join(environment, start)) as entries:
            for entry in entries:
                path = f"{start}/{entry.name}" if start else entry.name
                if entry.is_dir(follow_symlinks=False):
                    directories.add(path)
                    left.append(path)
                else:
                    files.add(path)
    return directories, files


def site_packages(environment: str) -> list[str]:
    """The site-packages directories of an environment."""
    names = os.listdir(os.path.join(environment, "lib"))
    directories = [f"lib/{name}/site-packages" for name in names]
    return [one for one in directories if os.path.isdir(os.path.join(environment, one))]


def owned_files(environment: str) -> dict[str, set[str]]:
    """The files of each distribution, by its name, as its RECORD lists them."""
    owned: dict[str, set[str]] = {}
    for name, directory, info in _infos(environment):
        record = os.path.join(environment, directory, info, "RECORD")
        paths = {_inside(environment, directory, row) for row in _rows(record)}
        owned.setdefault(name, set()).update(paths - {""})
    return owned


def hide_private_files(environment: str) -> None:
    """Remove what uv writes about the file of a wheel, which differs between two builds."""
    for _, directory, info in _infos(environment):
        path = os.path.join(environment, directory, info)
        if os.path.exists(os.path.join(path, _PRIVATE)):
            _drop_row(os.path.join(path, "RECORD"), f"{info}/{_PRIVATE}")
            os.unlink(os.path.join(path, _PRIVATE))


def _infos(environment: str) -> Iterator[tuple[str, str, str]]:
    """Each distribution: its name, its site-packages, and its `.dist-info` directory in there."""
    for directory in site_packages(environment):
        for info in sorted(os.listdir(os.path.join(environment, directory))):
            match = _INFO.match(info)
            if match:
                yield normal_name(match[1]), directory, info


def _rows(record: str) -> Iterator[str]:
    """The paths that a RECORD lists, as it spells them; none where it does not exist."""
    with suppress(FileNotFoundError), open(record, "rb") as file:
        for path, _ in record_rows(file.read()):
            if path.strip():
                yield path.strip().decode("utf-8", "surrogateescape")


def _inside(environment: str, directory: str, row: str) -> str:
    """The path of a row relative to the environment; "" where it is outside."""
    if ".." not in row and not row.startswith(("/", ".")):
        return f"{directory}/{row}"
    path = os.path.normpath(os.path.join(environment, directory, row))
    return path[len(environment) + 1 :] if path.startswith(f"{environment}/") else ""


def _drop_row(record: str, path: str) -> None:
    """Remove a row from a RECORD; a new file, as uv's cache may have a hard link to the old one."""
    with open(record, "rb") as file:
        rows = list(record_rows(file.read()))
    with open(f"{record}.new", "wb") as file:
        os.fchmod(file.fileno(), stat.S_IMODE(os.stat(record).st_mode))
        file.writelines(line for name, line in rows if name != os.fsencode(path))
    os.replace(f"{record}.new", record)
