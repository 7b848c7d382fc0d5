"""Relocating Python virtualenvs: compile once, deploy wherever.

The parts, each on top of those before it: `errors`; `files` and `locking` (work below a directory
descriptor); `prefix` (what is a reference); `quoting` (how languages spell a path); `artefacts` (a
module for each kind of file); `scanning` with `pool`, `worker` and `messages` (finding references,
in several processes); `large`; `staging` (new files, put in place together); `records`; `walking`;
`virtualenv` (what a folder is); `relocation`; `survey`, `interpreter`, `reinitialization`,
`checking`, `description`; `cli`.

The functions to call are below; everything they raise on purpose is a `RelocateError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "Interpreter": "interpreter",
    "InvalidPath": "errors",
    "Problem": "checking",
    "Reinitialization": "reinitialization",
    "RelocateError": "errors",
    "Relocation": "relocation",
    "Verdict": "checking",
    "Virtualenv": "virtualenv",
    "check": "checking",
    "describe": "description",
    "inspect": "virtualenv",
    "reinitialize": "reinitialization",
    "relocate": "relocation",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first asked for: the command starts twice as fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
