"""The main job on a minion that lives on: carried by a master, upgraded by a sync."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def synced(salt: Callable[..., Any]) -> Callable[..., Any]:
    answer = salt("saltutil.sync_all")
    assert answer.returncode == 0, answer
    assert "modules.virtualenv_tools" in answer.data["modules"]
    return salt


def test_the_main_job(synced: Callable[..., Any], tmp_path: Path) -> None:
    version = "{}.{}".format(*sys.version_info)
    environments.require(version)
    carried = environments.make(f"venv-{version}", str(tmp_path / "srv" / "app" / "4f2a9c1"))
    before = environments.digest(carried.path)

    said = synced("virtualenv_tools.update_path", carried.path, "test=True")
    assert said.returncode == 0, said
    assert environments.digest(carried.path) == before

    done = synced("virtualenv_tools.update_path", carried.path)
    assert done.returncode == 0, done
    assert {**said.data, "dry_run": False} == done.data
    assert environments.references(carried.path, carried.old_prefix) == []

    again = synced("virtualenv_tools.update_path", carried.path)
    assert again.data["changed"] is False

    python = synced("virtualenv_tools.reinitialize", carried.path, f"python={sys.executable}")
    assert python.returncode == 0, python
    verdict = synced("virtualenv_tools.check", carried.path)
    assert verdict.data["ok"] is True
    assert environments.run(carried.bin("pip"), "--version").startswith("pip ")


def test_a_failure_is_one_sentence(synced: Callable[..., Any]) -> None:
    answer = synced("virtualenv_tools.update_path", "/nowhere")
    assert answer.returncode == 1
    assert answer.data == ("ERROR: /nowhere is not a virtualenv: not a directory: /nowhere/bin")


def test_a_failed_check_has_its_return_code(synced: Callable[..., Any], tmp_path: Path) -> None:
    version = "{}.{}".format(*sys.version_info)
    carried = environments.make(f"venv-{version}", str(tmp_path / "app"))
    answer = synced("virtualenv_tools.check", carried.path)
    assert answer.returncode == 1
    assert answer.data["ok"] is False


def test_a_sync_upgrades_a_minion_that_lives_on(
    synced: Callable[..., Any], minion: Any, root: Path
) -> None:
    assert minions.NOT_A_VIRTUALENV in synced("virtualenv_tools.info", "/nowhere").data
    pid = minion.pid
    minions.say_otherwise(root / "_utils" / "relocate_core", "is none, says the new core")
    answer = synced("saltutil.sync_all")
    assert "utils.relocate_core.errors" in answer.data["utils"]
    said = synced("virtualenv_tools.info", "/nowhere").data
    assert "is none, says the new core" in said
    assert minion.pid == pid
