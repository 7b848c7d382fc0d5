"""Whether a virtualenv can run where it is, together with the interpreter that it shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from ..errors import CannotRun, TreeError
from ..relocation.check import Verdict
from ..relocation.check import check as check_alone
from ..virtualenvs.interpreter import user_for_own
from ..virtualenvs.verify import Problem
from .missing import missing
from .place import containing
from .verify import verify_python


def check(path: str, deep: bool = False) -> Verdict:
    """Report whether the virtualenv at `path` can run here. Nothing is changed.

    It is `relocation.check`, and looks at the interpreter that the virtualenv shares with others:
    what that misses of the system now, as installing it reports it too.

    Args:
        path: its directory.
        deep: compare every file as well, those of that interpreter included.

    Returns:
        The verdict, with every problem that was found.

    Raises:
        NotAVirtualenv: there is none.
        TreeError: it cannot be read.
    """
    verdict = check_alone(path, deep)
    try:
        more = list(missing_of(path)) if verdict.python is not None else []
        more += verify_python(path) if deep else ()
    except OSError as error:
        raise TreeError.of(path, error) from error
    return replace(verdict, problems=(*verdict.problems, *more))


def missing_of(path: str) -> Iterator[Problem]:
    """What the shared interpreter of a virtualenv needs of the system and does not find.

    Args:
        path: the virtualenv's directory; nothing is found where it runs on another Python.
    """
    python = os.path.join(path, "bin", "python")
    found = containing(python)
    if found is None:
        return
    try:
        # What is there is run by whoever may run the virtualenv's own, as it belongs to the same.
        user = user_for_own(os.path.abspath(path), None, None)
        for file, reason in missing(os.path.realpath(python), user):
            yield Problem("system", os.path.join(found.path, file), reason)
    except CannotRun as error:
        yield Problem("interpreter", "bin/python", str(error))
