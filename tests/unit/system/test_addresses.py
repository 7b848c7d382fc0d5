"""Which servers are on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

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


NETWORK = """
ip link set lo up && ip address add 198.51.100.4/32 dev lo && ip route add default dev lo
echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind
exec "$0" -c 'from relocate_core.system.addresses import is_elsewhere as elsewhere
print(elsewhere("198.51.100.4"), elsewhere("127.0.0.1"), elsewhere("192.0.2.7"))'
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network")
@pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip is not on this machine")
def test_a_kernel_that_binds_to_any_address() -> None:
    """As where keepalived has another machine's address taken over."""
    command = ["unshare", "--net", "sh", "-e", "-c", NETWORK, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Traceback" not in done.stderr:
        pytest.skip(f"no network can be made here: {done.stderr}")
    assert (done.stdout, done.stderr) == ("False False True\n", "")
