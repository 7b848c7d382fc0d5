"""Relocating Python virtualenvs: compile once, deploy wherever.

The parts, each on top of those before it: `errors`; `files` (work below a directory descriptor);
`prefix` (what is a reference); `quoting` (how languages spell a path); `artefacts` (a module for
each kind of file); `scanning`, `pool`, `staging`; `virtualenv` (what a folder is); `relocation`;
`survey`, `interpreter`, `reinitialization`, `checking`, `description`; `cli`.

The functions to call are below; everything they raise on purpose is a `RelocateError`.
"""

from __future__ import annotations

from .checking import Problem, Verdict, check
from .description import describe
from .errors import InvalidPath, RelocateError
from .interpreter import Interpreter
from .reinitialization import Reinitialization, reinitialize
from .relocation import Relocation, relocate
from .virtualenv import Virtualenv, inspect

__all__ = [
    "Interpreter",
    "InvalidPath",
    "Problem",
    "Reinitialization",
    "RelocateError",
    "Relocation",
    "Verdict",
    "Virtualenv",
    "check",
    "describe",
    "inspect",
    "reinitialize",
    "relocate",
]
