"""What a virtualenv is, in plain values, and what in it does not travel."""

from __future__ import annotations

import os
from typing import Any

from ..archives.tar import Refused
from ..errors import TreeError
from ..system import files
from . import manifest_reader
from .contents import survey
from .layout import inspect


def describe(path: str) -> dict[str, Any]:
    """Describe the virtualenv at `path`. Nothing in it is run or changed.

    Args:
        path: its directory.

    Returns:
        path, prefix (the path that its files name), old_prefixes (all of them), python (X.Y),
        implementation, builder, interpreter (where `bin/python` leads), home, copies,
        relocatable, system_site_packages, prompt, site_packages, packages (a count),
        compiled_modules (a count), stays_behind (a list of what would not travel), build (what the
        build of a bundle says of itself; empty for all else).

    Raises:
        NotAVirtualenv: there is none.
        TreeError: it cannot be read.
    """
    environment = inspect(path)
    try:
        surveyed = survey(environment)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error) from error
    facts = environment.as_dict()
    del facts["config"]
    facts["interpreter"] = os.path.realpath(os.path.join(path, "bin", "python"))
    facts["packages"] = surveyed.packages
    facts["compiled_modules"] = len(surveyed.compiled)
    facts["stays_behind"] = [
        *(f"{file} names {line}" for file, line in surveyed.outside),
        *(f"{name} points to {target}" for name, target in surveyed.leading_out),
    ]
    facts["build"] = _build(path)
    return facts


def _build(path: str) -> dict[str, str]:
    root = files.open_root(path)
    try:
        known = manifest_reader.of_tree(root)
    except Refused:
        known = None
    finally:
        os.close(root)
    if known is None:
        return {}
    with known:
        return dict(known.head.facts)
