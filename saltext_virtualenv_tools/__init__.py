"""Relocate and deploy Python virtualenvs with Salt.

Salt finds the modules, the runners and the states of this package through the `salt.loader` entry
point. The formula comes along as data: see `formula`.
"""

from __future__ import annotations

from pathlib import Path


def formula() -> str:
    """The file root with the formula `releases`, for `file_roots` of a master or masterless minion.

    Returns:
        An absolute path: in the installed package, or in the checkout that this is.
    """
    here = Path(__file__).resolve().parent
    installed = here / "formula"
    return str(installed if installed.is_dir() else here.parent / "formula")
