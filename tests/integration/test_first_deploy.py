"""`docs/first-deploy.md`, executed: its files and its commands, on a machine that was just booted.

What a command prints is compared with the page line by line. `...` there stands for any lines;
hashes, sizes and versions are those of the day.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import systemd
from tests.support.minions import CHECKOUT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGE = CHECKOUT / "docs" / "first-deploy.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# (/\S+)\n")
HASH = re.compile(r"\b[0-9a-f]{7}\b")
# Commands that need a daemon which has just been started, and how long they may take for that.
PATIENT = re.compile(r"salt-key |salt web1 test\.ping")
SECONDS = 120
PORTS = (4505, 4506, 8000)
PROGRAMS = ("salt", "salt-call", "salt-key", "salt-master", "salt-minion", "salt-run")
TIMES = re.compile(r" +(Started|Duration): |Total run time: ")
VARIABLE = (
    (r" - Started: .*", ""),
    (r"\d[\d,]* members, [\d.]+ [kM]?B", "N members"),
    (r"\d[\d,]* files taken", "N files taken"),
    (r"^( +)\d{4,}$", r"\1N"),
    (r"^( +)\d+\.\d+\.\d+$", r"\1X.Y.Z"),
)


class Reader:
    """Somebody who does what the page says.

    Args:
        machine: the machine.

    Attributes:
        hashes: the page's hashes, and those that the same commits have here.
    """

    def __init__(self, machine: systemd.Machine) -> None:
        self._machine = machine
        self._directory = str(CHECKOUT)
        self._printed = list(dict.fromkeys(HASH.findall(_code(PAGE.read_text()))))
        self.hashes: dict[str, str] = {}

    def follow(self, text: str, *, files_only: bool = False) -> None:
        """Write the files and run the commands of a part of the page, in its order."""
        for language, content in BLOCK.findall(text):
            name = FILE.match(content)
            if language == "console":
                if not files_only:
                    self._console(content)
            elif name:
                self._write(name[1], self._here(content))

    def shell(self, command: str) -> tuple[int, str]:
        """Run a command in the working directory; its exit code, and what it printed."""
        environ = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "ignore",
        }
        settings = [f"{name}={value}" for name, value in environ.items()]
        line = f"cd {shlex.quote(self._directory)} && {command}"
        done = self._machine.run("env", "-i", *settings, "bash", "-c", line)
        return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def _console(self, block: str) -> None:
        for part in re.split(r"^(?=# )", block, flags=re.M)[1:]:
            line, _, expected = part.partition("\n")
            self._command(line.removeprefix("# "), self._here(expected).splitlines())

    def _command(self, command: str, expected: list[str]) -> None:
        until = time.monotonic() + SECONDS
        while True:
            code, output = self.shell(command)
            lines = _comparable(output.splitlines())
            wrong = _difference(_comparable(expected), lines)
            if wrong is None or not PATIENT.match(command) or time.monotonic() > until:
                break
            time.sleep(1)
        if wrong is None and code and not expected:
            wrong = ["(nothing, as it succeeds)"]
        if wrong is not None:
            missing = "\n".join(wrong)
            raise AssertionError(
                f"$ {command}\n(exit code {code}) printed:\n{output}\nand the page has:\n{missing}"
            )
        if command.startswith("cd "):
            self._directory = command[3:]
        if command.startswith("git commit"):
            made = self.shell("git rev-parse --short=7 HEAD")[1].strip()
            self.hashes[self._printed[len(self.hashes)]] = made

    def _write(self, path: str, content: str) -> None:
        quoted = shlex.quote(content)
        code, output = self.shell(
            f"mkdir -p {os.path.dirname(path)} && printf %s {quoted} > {path}"
        )
        assert code == 0, output

    def _here(self, text: str) -> str:
        """A text of the page with the hashes that its commits have here."""
        return HASH.sub(lambda found: self.hashes.get(found[0], found[0]), text)


def _code(page: str) -> str:
    return "".join(content for _, content in BLOCK.findall(page))


def _comparable(lines: list[str]) -> list[str]:
    """Lines without what differs from day to day."""
    known = [line.rstrip() for line in lines if not TIMES.match(line)]
    for pattern, name in VARIABLE:
        known = [re.sub(pattern, name, line) for line in known]
    return known


def _difference(expected: list[str], actual: list[str]) -> list[str] | None:
    """The first lines of the page that were not printed where they should be, or None.

    Between two `...` lines follow each other; without one at its end, the output ends there.
    """
    at, anywhere = 0, False
    for chunk in re.split(r"^\.\.\.$\n?", "\n".join([*expected, ""]), flags=re.M):
        wanted = chunk.splitlines()
        last = range(at, len(actual) - len(wanted) + 1)
        places = last if anywhere else last[:1]
        found = next((n for n in places if actual[n : n + len(wanted)] == wanted), None)
        if found is None:
            return wanted
        at, anywhere = found + len(wanted), True
    ends = not expected or expected[-1] == "..." or at == len(actual)
    return None if ends else ["(nothing more)"]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader at a fresh machine: Salt is there, and nothing of this extension."""
    why_not = systemd.missing()
    if why_not:
        pytest.skip(why_not)
    for program in ("git", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")
    for port in PORTS:
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use")
    machine = systemd.Machine(tmp_path / "machine")
    try:
        machine.boot()
        made = Reader(machine)
        _install_salt(made)
        yield made
    finally:
        machine.shut_down()


def _install_salt(reader: Reader) -> None:
    """What Salt's packages would have done, with the Salt of these tests."""
    ours = Path(sys.executable).parent
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    settings = "\n".join(f'Environment="{name}={value}"' for name, value in pip.items())
    steps = [
        f"{sys.executable} -m pip uninstall --quiet --yes saltext-virtualenv-tools",
        "mkdir -p /etc/salt/master.d /etc/salt/minion.d /srv",
        "touch /etc/salt/master /etc/salt/minion",
        *(f"ln -sf {ours / name} /usr/local/bin/{name}" for name in PROGRAMS),
        "git config --global --add safe.directory '*'",
    ]
    for name in ("salt-master", "salt-minion"):
        unit = (
            f"[Service]\nExecStart={ours / name} --log-level=warning\nEnvironment=HOME=/root\n"
            f"{settings}\nEnvironment=PYTHONWARNINGS=ignore\nKillMode=mixed\n"
        )
        steps.append(f"printf %s {shlex.quote(unit)} > /etc/systemd/system/{name}.service")
    steps.append("systemctl daemon-reload")
    for step in steps:
        code, output = reader.shell(step)
        assert code == 0, (step, output)


def parts() -> dict[str, str]:
    """The page's parts, by heading."""
    found = re.split(r"^## (?:\d+\. )?(.*)\n", PAGE.read_text(), flags=re.M)
    return dict(zip(found[1::2], found[2::2]))


def test_with_a_master(reader: Reader) -> None:
    for name, text in parts().items():
        if name != "Without a master":
            reader.follow(text)
    assert len(reader.hashes) == 3
    assert not reader.shell("ls /srv/shop")[1].strip().splitlines()[1:]


def test_without_a_master(reader: Reader) -> None:
    known = parts()
    before, after = known["Without a master"].split("Write the files", 1)
    reader.follow(before)
    reader.follow(known["Something to deploy"])
    reader.follow(known["Describe the app"], files_only=True)
    reader.follow(after)
