"""For all tests: what pytest-salt-factories opens stays on this machine's loopback."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest
from hypothesis import settings

# A busy machine is no fault of the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Its log server would listen on every address, and Salt log to a closed stream at the end."""
    server = session.config.pluginmanager.get_plugin("saltfactories-log-server")
    if server is not None:
        server.log_host = "127.0.0.1"
    with suppress(ImportError):
        import salt._logging

        salt._logging.shutdown_temp_handler()


def pytest_collection_finish() -> None:
    """What has been collected lasts until the end: it need not be looked through again and again.

    Nor does a process that a test forks copy it by looking.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restart_event_listener() -> None:
    """Its event listener would be started for every test; the integration tests ask for it."""
