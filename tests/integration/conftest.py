"""A real master and minion, run by pytest-salt-factories, all of it on the loopback."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions

pytest.importorskip("salt", reason="Salt does not run on this Python")
factories = pytest.importorskip("saltfactories", reason="pytest-salt-factories is not installed")

from saltfactories.plugins.event_listener import EventListener  # noqa: E402
from saltfactories.utils import random_string  # noqa: E402


@pytest.fixture(scope="session")
def event_listener() -> Iterator[EventListener]:
    """The listener for the daemons' events; by default it would listen on every address."""
    listener = EventListener()
    listener.host = "127.0.0.1"
    listener.address = f"tcp://127.0.0.1:{listener.port}"
    with listener:
        yield listener


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """A directory with a short name: the daemons' sockets allow for no more than 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="salt-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def salt_factories_config(short_directory: Path) -> dict[str, Any]:
    """Keep everything below one directory, and add nothing to the daemons' start."""
    return {
        "root_dir": str(short_directory),
        "inject_sitecustomize": False,
    }


QUIET = {
    "enable_fqdns_grains": False,
    "log_level_logfile": "error",
    "pytest-master": {"log": {"level": "error"}},
    "pytest-minion": {"log": {"level": "error"}},
}
"""Options of all daemons. What they would log otherwise takes a third of their time."""


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The master's file root: this checkout's modules, to be edited by the tests."""
    return minions.file_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="package")
def master(salt_factories: Any, root: Path) -> Iterator[Any]:
    """A running master; it ends with these tests, as one that waits takes its time as well."""
    daemon = salt_factories.salt_master_daemon(
        random_string("master-"),
        defaults={"open_mode": True},
        overrides={
            "interface": "127.0.0.1",
            "log_server_host": "127.0.0.1",
            "file_roots": {"base": [str(root)]},
            "fileserver_update_interval": 1,
            **QUIET,
        },
    )
    with daemon.started():
        yield daemon


@pytest.fixture(scope="package")
def minion(master: Any) -> Iterator[Any]:
    """A running minion of that master."""
    daemon = master.salt_minion_daemon(
        random_string("minion-"),
        overrides={"master": "127.0.0.1", **QUIET},
    )
    with daemon.started():
        yield daemon


@pytest.fixture(scope="package")
def salt(master: Any, minion: Any) -> Any:
    """The command `salt`, for that minion; several threads may call it at once."""

    def call(function: str, *arguments: Any, **options: Any) -> Any:
        cli = master.salt_cli(timeout=120)
        return cli.run(function, *arguments, minion_tgt=minion.id, **options)

    return call
