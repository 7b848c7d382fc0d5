"""For all tests: where they write, and what Salt does in each of them."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.fuzz import EVERYTHING, THOROUGH

# A busy machine is no fault of the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


MEMORY = "/dev/shm"
ROOM = 6 << 30
"""Bytes; several times what the tests need at a time."""
OURS = "rt-"
"""What a run's own directory there is called, with its process after it: short, as the path of a
socket may have 107 bytes."""
FLEETS = "tests/integration/fleet/"
BETWEEN_FLEETS = 8
"""How many other files are begun between two of them."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let all that tests write be in memory, where there is room: a quarter of the time.

    The workers of pytest-xdist, and all programs, inherit it. Virtualenvs are built in a place that
    is the same for each run, as they are kept for the next one.
    """
    # A shell without job control lets background jobs ignore Control-C, which tests send.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "TMPDIR" in os.environ or not _has_room(MEMORY):
        return
    for name in os.listdir(MEMORY):
        owner = name[len(OURS) :]
        if name.startswith(OURS) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(f"{MEMORY}/{name}", ignore_errors=True)  # of a run that was killed
    directory = f"{MEMORY}/{OURS}{os.getpid()}"
    os.mkdir(directory, 0o711)
    os.environ["TMPDIR"] = directory
    os.environ.setdefault("RELOCATE_TEST_BUILD", MEMORY)
    tempfile.tempdir = None
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def _has_room(memory: str) -> bool:
    """Whether programs may be run there, and enough of the machine's memory is free."""
    if not os.access(memory, os.W_OK) or os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return False
    with open("/proc/meminfo") as lines:
        facts = dict(line.split(":") for line in lines)
    available = int(facts["MemAvailable"].split()[0]) << 10
    return min(shutil.disk_usage(memory).free, available) > ROOM


def pytest_report_header() -> str:
    """Where the tests write."""
    return f"temporary files: {tempfile.gettempdir()}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Its log server would listen on every address, and Salt log to a closed stream at the end."""
    server = session.config.pluginmanager.get_plugin("saltfactories-log-server")
    if server is not None:
        server.log_host = "127.0.0.1"
    with suppress(ImportError):
        import salt._logging

        salt._logging.shutdown_temp_handler()
        # Salt asks for each of its thousands of messages a test, which nobody reads here.
        logging.root.setLevel(logging.WARNING)
        _list_directories_of_modules_once()


def _list_directories_of_modules_once() -> None:
    """Let Salt's loaders, of which each state run makes many, share what they found on the disk.

    A directory that has changed is looked at again.
    """
    import salt.loader.lazy

    looked = salt.loader.lazy.LazyLoader._refresh_file_mapping
    known: dict[Any, Any] = {}

    def refresh(loader: Any) -> None:
        shared = None if loader.static_modules or loader.disabled else _seen(loader.module_dirs)
        if shared in known:
            loader.suffix_map, loader.suffix_order, found = known[shared]
            loader.file_mapping = dict(found)
            return
        looked(loader)
        if shared is not None:
            known[shared] = (loader.suffix_map, loader.suffix_order, dict(loader.file_mapping))

    salt.loader.lazy.LazyLoader._refresh_file_mapping = refresh


def _seen(directories: Iterable[str]) -> tuple[tuple[str, int, int], ...]:
    """When directories and their bytecode were changed last; 0 for one that is not there."""
    return tuple(
        (directory, _changed(directory), _changed(os.path.join(directory, "__pycache__")))
        for directory in directories
    )


def _changed(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose what is run, and in which order."""
    _spread(items)
    if not EVERYTHING:
        _thin(config, items)


def _spread(items: list[pytest.Item]) -> None:
    """Put other files between those that have a fleet: several at once starve each other."""
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.nodeid.partition("::")[0], []).append(item)
    fleets = [file for file in by_file if file.startswith(FLEETS)]
    order: list[str] = []
    for number, file in enumerate(file for file in by_file if not file.startswith(FLEETS)):
        if fleets and number % BETWEEN_FLEETS == 0:
            order.append(fleets.pop(0))
        order.append(file)
    items[:] = [item for file in (*order, *fleets) for item in by_file[file]]


def _thin(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave cases out of the tests that are marked `few`; all workers choose the same ones."""
    run = getattr(config, "workerinput", {}).get("testrunuid") or str(time.time_ns())
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if bool(item.get_closest_marker("slow")) == THOROUGH:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    out: set[pytest.Item] = set()
    for test, all_of_it in cases.items():
        marker = all_of_it[0].get_closest_marker("few")
        count = marker and (
            marker.kwargs.get("slow") if THOROUGH else next(iter(marker.args), None)
        )
        if count is None:
            continue
        chance = random.Random(run + test)
        out.update(chance.sample(all_of_it, max(0, len(all_of_it) - count)))
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


def pytest_collection_finish() -> None:
    """What has been collected lasts until the end: it need not be looked through again and again.

    Nor does a process that a test forks copy it by looking.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _others_may_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let other users pass through the directories that all tests share, from the beginning.

    Tests that open and close them for themselves would get in each other's way.
    """
    base, top = tmp_path_factory.getbasetemp(), Path(tempfile.gettempdir()).resolve()
    for shared in (base, *base.parents) if top in base.parents else ():
        if shared == top:
            break
        shared.chmod(shared.stat().st_mode | 0o011)


@pytest.fixture(autouse=True)
def _restart_event_listener() -> None:
    """Its event listener would be started for every test; the integration tests ask for it."""
