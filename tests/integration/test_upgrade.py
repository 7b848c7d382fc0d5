"""A sync over a core of an older layout: what was one module is a package now."""

from __future__ import annotations

import compileall
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions
from tests.support.minions import CHECKOUT, Masterless

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SAYS_OLD = "is none, says the old core"
OLD_CORE = {
    "__init__": """
        from importlib import import_module

        _MODULES = {"RelocateError": "errors", "describe": "releases"}

        def __getattr__(name):
            return getattr(import_module(f".{_MODULES[name]}", __name__), name)
        """,
    "errors": "class RelocateError(Exception): pass",
    # The modules have the names of packages of the new core.
    "releases": f"""
        from .system import fail

        def describe(path):
            fail(path, {SAYS_OLD!r})
        """,
    "system": """
        from .errors import RelocateError

        def fail(path, words):
            raise RelocateError(f"{path} {words}")
        """,
    "artefacts/__init__": "",
    "artefacts/needs": "LAYOUT = 'old'",
}


def put_old(core: Path) -> None:
    """Replace the core of a file root by one of the old layout."""
    shutil.rmtree(core)
    for name, text in OLD_CORE.items():
        file = core / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))


def put_new(core: Path) -> None:
    """Replace the core of a file root by this checkout's."""
    shutil.rmtree(core)
    shutil.copytree(CHECKOUT / "relocate_core", core, ignore=shutil.ignore_patterns("__pycache__"))


def files_below(directory: Path) -> set[str]:
    """The files in a directory, by their paths in it."""
    return {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}


def sources(core: Path) -> set[str]:
    """What a sync carries of a core."""
    return {name for name in files_below(core) if name.endswith(".py")}


@pytest.fixture
def core(root: Path) -> Iterator[Path]:
    """The core in the master's file root; this checkout's again after the test."""
    core = root / "_utils" / "relocate_core"
    yield core
    put_new(core)


def test_a_minion_that_lives_on(
    salt: Callable[..., Any], minion: Any, core: Path, tmp_path: Path
) -> None:
    synced = Path(minion.config["extension_modules"], "utils", "relocate_core")
    put_old(core)
    salt("saltutil.sync_all")
    assert SAYS_OLD in salt("virtualenv_tools.info", "/nowhere").data
    assert sources(synced) == sources(core)
    assert compileall.compile_dir(synced, quiet=1)
    pid = minion.pid

    put_new(core)
    assert "utils.relocate_core.releases.root" in salt("saltutil.sync_all").data["utils"]
    assert files_below(synced) == sources(core)
    assert minions.NOT_A_VIRTUALENV in salt("virtualenv_tools.info", "/nowhere").data
    assert salt("virtualenv_tools.releases", str(tmp_path)).data == {}
    assert minion.pid == pid


def test_a_masterless_minion(tmp_path: Path) -> None:
    """In one process, as where a minion runs its jobs in threads: both cores stay loaded."""
    others = cores().keys()  # of other tests in this process
    minion = Masterless(tmp_path)
    core = minion.root / "_utils" / "relocate_core"
    synced = Path(minion.opts["extension_modules"], "utils", "relocate_core")
    put_old(core)
    minion.sync()
    with pytest.raises(CommandExecutionError, match=SAYS_OLD):
        minion.functions["virtualenv_tools.info"]("/nowhere")
    assert compileall.compile_dir(synced, quiet=1)
    before = cores()
    (old,) = before.keys() - others
    assert "system" in before[old]
    assert before[old] == {"", "errors", "releases", "system"}

    put_new(core)
    minion.sync()
    assert files_below(synced) == sources(core)
    with pytest.raises(CommandExecutionError, match=minions.NOT_A_VIRTUALENV):
        minion.functions["virtualenv_tools.info"]("/nowhere")
    assert minion.functions["virtualenv_tools.releases"](str(tmp_path)) == {}
    after = cores()
    assert after.pop(old) == before[old]
    (new,) = after.keys() - others
    assert {"releases.root", "system.files"} <= after[new]
    with pytest.raises(sys.modules[old].RelocateError, match=SAYS_OLD):
        sys.modules[old].describe("/nowhere")


def test_old_files_that_a_sync_leaves(tmp_path: Path) -> None:
    """With `clean_dynamic_modules: False` nothing is removed: the packages win."""
    minion = Masterless(tmp_path, clean_dynamic_modules=False)
    synced = Path(minion.opts["extension_modules"], "utils", "relocate_core")
    for name in ("releases", "system"):
        (synced / f"{name}.py").write_text(textwrap.dedent(OLD_CORE[name]))
    minion.sync()
    assert {"releases.py", "releases/root.py"} <= files_below(synced)
    with pytest.raises(CommandExecutionError, match=minions.NOT_A_VIRTUALENV):
        minion.functions["virtualenv_tools.info"]("/nowhere")
    assert minion.functions["virtualenv_tools.releases"](str(tmp_path)) == {}


def cores() -> dict[str, set[str]]:
    """The cores that are loaded in this process, each with its modules."""
    found: dict[str, set[str]] = {}
    for name in sys.modules:
        top, _, module = name.partition(".")
        if top.startswith("relocate_core_"):
            found.setdefault(top, set()).add(module)
    return found
