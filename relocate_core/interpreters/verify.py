"""Whether the interpreter that a virtualenv runs on is still what was unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from ..archives.tar import Refused
from ..system import files
from ..virtualenvs import manifest, manifest_reader
from ..virtualenvs.verify import Problem, deviations
from .place import RECORD, containing


def verify_python(path: str) -> Iterator[Problem]:
    """Files of a shared interpreter that are not what they were when it was unpacked.

    Args:
        path: the virtualenv that runs on it; nothing is found where it runs on another Python.

    Raises:
        OSError: it cannot be read.
    """
    found = containing(os.path.join(path, "bin", "python"))
    if found is None:
        return
    place = os.path.join(found.path, manifest.NAME)
    root = files.open_root(found.path)
    try:
        known = manifest_reader.of_tree(root)
        if known is None or known.digest != found.record.get("manifest"):
            yield Problem("manifest", place, "it is not that of the interpreter: deploy it again")
            return
        with known:
            for problem in deviations(root, known, RECORD):
                yield replace(problem, file=os.path.join(found.path, problem.file))
    except Refused as refusal:
        yield Problem("manifest", place, f"{refusal}: deploy the interpreter again")
    finally:
        os.close(root)
