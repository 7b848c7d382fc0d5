"""Which servers are on this machine."""

from __future__ import annotations

import socket

import pytest

from relocate_core.system.addresses import is_elsewhere


@pytest.mark.parametrize(
    "server",
    [
        *("", "localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "/run/postgresql", "@abstract"),
        *("localhost,127.0.0.1", "/tmp, localhost", "0.0.0.0", socket.gethostname()),
    ],
)
def test_this_machine(server: str) -> None:
    assert not is_elsewhere(server)


@pytest.mark.parametrize(
    "server",
    ["192.0.2.7", "2001:db8::7", "localhost,192.0.2.7", "db.invalid", "x" * 300, "[2001:db8::7]"],
)
def test_another_machine(server: str) -> None:
    assert is_elsewhere(server)
