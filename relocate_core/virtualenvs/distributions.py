"""The installed distributions of a virtualenv, and the files that their RECORD lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..system import files


def records(root: int, site_packages: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The path and the content of each distribution's RECORD, in order.

    Args:
        root: descriptor of the virtualenv.
        site_packages: its site-packages directories, relative to it.
    """
    for base in site_packages:
        directory = files.open_directory(root, base)
        try:
            for name in sorted(os.listdir(directory)):
                if not name.endswith(".dist-info"):
                    continue
                try:
                    with files.directory_of(directory, f"{name}/RECORD") as (inner, record):
                        data, _ = files.read(inner, record)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                yield f"{base}/{name}/RECORD", data
        finally:
            os.close(directory)


def listed_path(record: str, row: bytes) -> str:
    """The path, relative to the virtualenv, of what a row of a RECORD lists.

    Args:
        record: the RECORD's path.
        row: the path as the row spells it.
    """
    base = os.path.dirname(os.path.dirname(record))
    return os.path.normpath(os.path.join(base, os.fsdecode(row)))
