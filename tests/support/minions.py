"""Salt for the tests: a file root of this checkout, and a masterless minion's loader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_A_VIRTUALENV = "is not a virtualenv"


def file_root(folder: Path) -> Path:
    """A file root of one's own with the modules and the core, to be edited at will."""
    shutil.copytree(CHECKOUT / "_modules", folder / "_modules", ignore=_no_bytecode)
    core = folder / "_utils" / "relocate_core"
    shutil.copytree(CHECKOUT / "relocate_core", core, ignore=_no_bytecode)
    return folder


def say_otherwise(core: Path, words: str) -> None:
    """Give a core another way to say that a folder is no virtualenv, to tell versions apart."""
    errors = core / "errors.py"
    text = errors.read_text()
    assert NOT_A_VIRTUALENV in text
    errors.write_text(text.replace(NOT_A_VIRTUALENV, words))


def masterless(folder: Path, root: Path, **more: Any) -> dict[str, Any]:
    """A masterless minion's configuration, with all that it writes below `folder`."""
    return {
        "id": "masterless",
        "file_client": "local",
        "file_roots": {"base": [str(root)]},
        "root_dir": str(folder),
        "cachedir": str(folder / "cache"),
        "pki_dir": str(folder / "pki"),
        "sock_dir": str(folder / "run"),
        "log_file": str(folder / "log"),
        "extension_modules": str(folder / "cache" / "extmods"),
        "enable_fqdns_grains": False,
        **more,
    }


def _no_bytecode(folder: str, names: list[str]) -> set[str]:
    return {"__pycache__"} & set(names)
