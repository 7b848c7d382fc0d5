"""The extension and the formula by salt-ssh, through an sshd that is started for it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions
from tests.support.minions import CHECKOUT

pytest.importorskip("salt", reason="Salt does not run on this Python")

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SSHD = shutil.which("sshd", path=PATH)
PYTHON = shutil.which("python3", path=PATH)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd wants to be started by root"),
    pytest.mark.skipif(SSHD is None, reason="sshd is not on this machine"),
    pytest.mark.skipif(PYTHON is None, reason="there is no python3 outside of virtualenvs"),
]

_SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""


@pytest.fixture
def roster(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A running sshd, as a roster entry for salt-ssh."""
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    (tmp_path / "sshd").write_text(_SSHD.format(port=port, directory=tmp_path))
    known = f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}"
    (tmp_path / "known").write_text(known)
    empty = Path("/run/sshd")  # where it locks in whoever is not known yet
    made = not empty.exists()
    empty.mkdir(exist_ok=True)
    arguments = [str(SSHD), "-D", "-f", str(tmp_path / "sshd"), "-E", str(tmp_path / "log")]
    daemon = subprocess.Popen(arguments)
    try:
        _wait_for(port, daemon)
        yield {
            "host": "127.0.0.1",
            "port": port,
            "user": "root",
            "priv": str(tmp_path / "key"),
            "ssh_options": [f"UserKnownHostsFile={tmp_path}/known"],
            "thin_dir": str(tmp_path / "thin"),
            "set_path": PATH,
        }
    finally:
        daemon.terminate()
        daemon.wait()
        if made:
            empty.rmdir()


def _wait_for(port: int, daemon: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        assert daemon.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("sshd does not listen")


class Ssh:
    """The command `salt-ssh` for one machine.

    Args:
        directory: where all of it is.
        roster: how the machine is reached.
        pillar: its pillar.
    """

    def __init__(self, directory: Path, roster: dict[str, Any], pillar: dict[str, Any]) -> None:
        self.config = directory / "config"
        self.config.mkdir()
        self.options = minions.masterless(
            directory / "master",
            minions.file_root(directory / "root"),
            roster_file=str(self.config / "roster"),
            ssh_log_file=str(directory / "ssh.log"),
            pillar_roots={"base": [str(directory / "pillar")]},
        )
        self.options["file_roots"]["base"].append(str(CHECKOUT / "formula"))
        (directory / "pillar").mkdir()
        (directory / "pillar" / "top.sls").write_text("base: {'*': [shop]}")
        (directory / "pillar" / "shop.sls").write_text(json.dumps(pillar))
        (self.config / "roster").write_text(json.dumps({"web1": roster}))
        self.configure()

    def configure(self, **more: Any) -> None:
        """Write the configuration, with more options."""
        (self.config / "master").write_text(json.dumps({**self.options, **more}))

    def __call__(self, function: str, *arguments: str) -> Any:
        program = Path(sys.executable).with_name("salt-ssh")
        options = ["-c", str(self.config), "-l", "quiet", "--out=json"]
        done = subprocess.run(
            [str(program), *options, "web1", function, *arguments], capture_output=True, text=True
        )
        assert done.stdout, done
        return json.loads(done.stdout)["web1"]


def test_the_formula_by_ssh(roster: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "srv" / "shop"
    app = {
        "release": "1",
        "source": "salt://shop/{release}.tar",
        "root": str(root),
        "user": "root",
        "group": "root",
        "web": {"nginx": {"upstream": "http://127.0.0.1:8000"}},
        "health": {"checks": f"test -e {minions.WHICH}"},
    }
    nginx = {"conf_dir": str(tmp_path / "conf.d"), "reload_command": "true"}
    ssh = Ssh(tmp_path, roster, {"releases": {"apps": {"shop": app}, "nginx": nginx}})
    minions.pack(tmp_path / "root" / "shop" / "1.tar", "1")

    said = ssh("virtualenv_tools.info", "/nowhere")  # the core is not carried by itself
    assert "relocate_core is missing" in said["stderr"]
    ssh.configure(thin_extra_mods="relocate_core")
    said = ssh("-t", "virtualenv_tools.info", "/nowhere")
    assert "/nowhere is not a virtualenv" in said["stderr"]

    for arguments, results in ((["test=True"], {True, None}), ([], {True}), ([], {True})):
        answers = minions.answered(ssh("state.apply", "releases", *arguments))
        assert {one["result"] for one in answers.values()} <= results, answers
        assert {"shop is deployed", "shop answers", str(root)} <= set(answers)
        assert root.exists() == (not arguments)
    assert not [one for one in answers.values() if one["changes"]]
    assert (root / "current" / minions.WHICH).read_text() == "1\n"
    assert "proxy_pass" in (tmp_path / "conf.d" / "shop.conf").read_text()
