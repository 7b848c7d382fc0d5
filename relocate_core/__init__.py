"""Relocating Python virtualenvs: compile once, deploy wherever.

The packages, each of which imports only from those before it: `artefacts` (which kind a file is,
and rewriting its bytes), `system` (the operating system), `archives` (tar and compression),
`virtualenvs` (what a virtualenv is), `relocation` (relocating one), `bundles` (a packed one),
`interpreters` (a Python itself, packed and deployed), `releases` (those of an app, with `schemas`)
and `builds` (from requirements to a bundle).

The functions to call are below; everything that they raise on purpose is a `RelocateError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "errors": "InvalidPath RelocateError",
    "system.processes": "Ended run_line",
    "virtualenvs.contents": "describe",
    "virtualenvs.interpreter": "Interpreter",
    "virtualenvs.layout": "Virtualenv inspect",
    "virtualenvs.verify": "Problem",
    "relocation.check": "Verdict",
    "relocation.reinitialize": "Reinitialization",
    "relocation.relocate": "Relocation relocate",
    "bundles.difference": "Difference diff",
    "bundles.pack": "Packing pack",
    "interpreters.check": "check",
    "interpreters.install": "PythonBundle",
    "interpreters.place": "Installed Place containing",
    "interpreters.verify": "verify_python",
    "releases.claims": "Claim claim claimed unclaim",
    "releases.prune": "Pruning prune remove",
    "releases.follow": "Following reinitialize_others",
    "releases.publish": "Publication publish",
    "releases.reinitialize": "put_back reinitialize",
    "releases.root": "Release Root",
    "releases.schemas.host": "migrate_down schemas wait_for_schema",
    "releases.schemas.migrate": "Migration migrate",
    "releases.schemas.recipe": "Recipe",
    "releases.marks": "mark mark_bad mark_healthy pin prove unmark unmark_bad unpin",
    "releases.switch": "Switch activate rollback",
    "builds.build": "Building build",
    "interpreters.pack": "PythonPacking pack_python",
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a name's module when the name is first used: the command starts twice as fast."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
