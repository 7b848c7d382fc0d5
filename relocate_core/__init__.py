"""Relocating Python virtualenvs: compile once, deploy wherever.

The parts, each on top of those before it: `errors`; `files`; `prefix` (what is a reference);
`quoting` (how languages spell a path); `artefacts` (a module for each kind of file); `scanning`
with `pool`, `worker` and `messages` (finding references, in several processes); `large`; `staging`
(new files, put in place together); `records`; `walking`; `history` and `locking`; `virtualenv`
(what a folder is); `tar` and `decompression` (an archive that may be hostile); `manifest` (what a
bundle holds) and `ledger` (what was rewritten since); `relocation`; `trust` and `running` (whose
folders and programs root may use, and how); `survey`, `interpreter`, `reinitialization`,
`checking`, `description`. For releases: `linking`, `earlier` (a release that gives its files),
`bundle` and `unpacking`; `releases` (a root and its records); `fitting` (whether a machine can run
a bundle), `sharing` (what outlives releases), `smoke` and `publishing`; `recipes`, `schemas` (with
the scripts in `inside`, which a release's own Python runs), `schema_records` and `migrations`;
`switching`; `processes` and `pruning`. For builds: `compression`, `output`, `compiling` and
`packing`; `commands`, `sources` (what a build is made of), `environments` (the one that is kept),
`installers` and `building`. And `cli`.

The functions to call are below; everything they raise on purpose is a `RelocateError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .building import Building, build
    from .checking import Problem, Verdict, check
    from .description import describe
    from .errors import InvalidPath, RelocateError
    from .interpreter import Interpreter
    from .migrations import Migration, migrate
    from .packing import Packing, pack
    from .pruning import Pruning, prune, remove
    from .publishing import Publication, publish
    from .recipes import Recipe
    from .reinitialization import Reinitialization, reinitialize
    from .releases import Release, Root
    from .relocation import Relocation, relocate
    from .running import Ended, run_line
    from .switching import Switch, activate, mark, pin, prove, rollback, unmark, unpin
    from .virtualenv import Virtualenv, inspect

__all__ = [
    "Building",
    "Ended",
    "Interpreter",
    "InvalidPath",
    "Migration",
    "Packing",
    "Problem",
    "Pruning",
    "Publication",
    "Recipe",
    "Reinitialization",
    "Release",
    "RelocateError",
    "Relocation",
    "Root",
    "Switch",
    "Verdict",
    "Virtualenv",
    "activate",
    "build",
    "check",
    "describe",
    "inspect",
    "mark",
    "migrate",
    "pack",
    "pin",
    "prove",
    "prune",
    "publish",
    "reinitialize",
    "relocate",
    "remove",
    "rollback",
    "run_line",
    "unmark",
    "unpin",
]

_HOMES = {
    "Building": "building",
    "Ended": "running",
    "Interpreter": "interpreter",
    "InvalidPath": "errors",
    "Migration": "migrations",
    "Packing": "packing",
    "Problem": "checking",
    "Pruning": "pruning",
    "Publication": "publishing",
    "Recipe": "recipes",
    "Reinitialization": "reinitialization",
    "Release": "releases",
    "RelocateError": "errors",
    "Relocation": "relocation",
    "Root": "releases",
    "Switch": "switching",
    "Verdict": "checking",
    "Virtualenv": "virtualenv",
    "activate": "switching",
    "build": "building",
    "check": "checking",
    "describe": "description",
    "inspect": "virtualenv",
    "mark": "switching",
    "migrate": "migrations",
    "pack": "packing",
    "pin": "switching",
    "prove": "switching",
    "prune": "pruning",
    "publish": "publishing",
    "reinitialize": "reinitialization",
    "relocate": "relocation",
    "remove": "pruning",
    "rollback": "switching",
    "run_line": "running",
    "unmark": "switching",
    "unpin": "switching",
}


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first asked for: the command starts twice as fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
