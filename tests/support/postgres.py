"""A PostgreSQL of the tests' own: on the loopback, with all of it in a directory that goes."""

from __future__ import annotations

import glob
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.roots import NOBODY


@dataclass
class Server:
    """A running PostgreSQL; its superuser is `postgres`, and needs no password.

    Attributes:
        directory: of its socket, and of all else.
        port: where it listens on 127.0.0.1 too.
        programs: where its programs are.
    """

    directory: str
    port: int
    programs: str

    def log(self) -> str:
        """What it was asked for, if `running` was told to log that."""
        with open(os.path.join(self.directory, "log"), encoding="utf-8") as file:
            return file.read()

    def logged(self, pattern: str) -> list[str]:
        """The statements that a pattern matches, in their order."""
        entries = re.split(r"(?m)^(?=\d{4}-\d\d-\d\d )", self.log())
        return [one for one in entries if "statement: " in one and re.search(pattern, one)]

    def query(self, text: str, database: str = "postgres") -> list[str]:
        """The lines that a query gives."""
        done = subprocess.run(
            [
                *(f"{self.programs}/psql", "-h", self.directory, "-p", str(self.port)),
                *("-U", "postgres", "-d", database, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.splitlines()


@contextmanager
def running(logs: str = "none") -> Iterator[Server]:
    """A server for as long as the block runs; skips where there is none to run.

    Args:
        logs: which statements it logs, as its `log_statement` has it.
    """
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not on this machine")
    if os.geteuid() != 0:
        pytest.skip("needs root, to run PostgreSQL as another user")
    directory = tempfile.mkdtemp(prefix="relocate-postgres-", dir="/var/tmp")
    os.chown(directory, NOBODY, NOBODY)
    process = None
    try:
        server = Server(directory, _free_port(), os.path.dirname(programs[-1]))
        process = _started(server, logs)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait()
        subprocess.run(["rm", "-rf", "--", directory], check=True)


def _started(server: Server, logs: str) -> subprocess.Popen[bytes]:
    directory, port = server.directory, str(server.port)
    as_nobody: dict[str, Any] = {
        "user": NOBODY,
        "group": NOBODY,
        "extra_groups": [],
        "cwd": directory,
    }
    data = os.path.join(directory, "data")
    subprocess.run(
        [f"{server.programs}/initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N"],
        check=True,
        capture_output=True,
        **as_nobody,
    )
    with open(os.path.join(directory, "log"), "wb") as log:
        process = subprocess.Popen(
            [
                *(f"{server.programs}/postgres", "-D", data, "-k", directory, "-p", port),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                *("-c", f"log_statement={logs}"),
            ],
            stderr=log,
            **as_nobody,
        )
    ready = [f"{server.programs}/pg_isready", "-q", "-h", directory, "-p", port]
    until = time.monotonic() + 30
    while subprocess.run(ready).returncode:
        assert time.monotonic() < until, server.log()
        time.sleep(0.1)
    return process


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
