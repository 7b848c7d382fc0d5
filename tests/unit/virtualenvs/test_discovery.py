"""Which Python fits a virtualenv."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from relocate_core.errors import InterpreterMismatch
from relocate_core.virtualenvs.discovery import require_fit
from relocate_core.virtualenvs.interpreter import PROGRAM_NAME, Interpreter


@dataclass(frozen=True)
class Spec:
    path: str = "/srv/app"
    python: str = "3.13"
    implementation: str = "cpython"
    home: str | None = None
    free_threaded: bool | None = False


PYTHON = Interpreter(
    "/usr/bin/python3.13", (3, 13, 1), "cpython", [".so"], "/usr", "/usr", "x86_64"
)


def test_the_packages_of_a_python_without_the_gil_are_its_own() -> None:
    """It looks for them in lib/python3.13t, and every other in lib/python3.13."""
    without = replace(PYTHON, executable="/usr/bin/python3.13t", free_threaded=True)
    require_fit(Spec(), PYTHON, {})
    require_fit(Spec(free_threaded=True), without, {})
    require_fit(Spec(free_threaded=None), without, {})
    with pytest.raises(
        InterpreterMismatch, match=r"it is Python 3\.13 and .* is for Python 3\.13t"
    ):
        require_fit(Spec(free_threaded=True), PYTHON, {})
    with pytest.raises(InterpreterMismatch, match=r"it is Python 3\.13t and .* for Python 3\.13;"):
        require_fit(Spec(), without, {})


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        *((name, True) for name in ("python", "python3.14t", "pypy3.10", "python3.11-dbg")),
        *((name, True) for name in ("platform-python3.6", "python3.13-nogil", "python3.6m")),
        ("\N{MATHEMATICAL ITALIC SMALL PI}thon", True),
        *((name, False) for name in ("python3-config", "python3.11-dbg-config", "pip", "ipython")),
        *((name, False) for name in ("python\n", "python/x", "thon", "platform")),
    ],
)
def test_what_a_python_is_called(name: str, matches: bool) -> None:
    assert bool(PROGRAM_NAME.match(name)) == matches
