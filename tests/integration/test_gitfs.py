"""The extension and the formula from a git repository, with the `gitfs_remotes` of docs/salt.md."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions
from tests.support.minions import CHECKOUT

pytest.importorskip("salt", reason="Salt does not run on this Python")
pytest.importorskip("git", reason="GitPython is not installed")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine"),
]

BRANCH = "main"


def remotes(url: str) -> Any:
    """What docs/salt.md has operators write, with another address."""
    import yaml

    (text,) = re.findall(
        r"```yaml\n( *gitfs_remotes:.*?)```", (CHECKOUT / "docs" / "salt.md").read_text(), re.S
    )
    given = textwrap.dedent(text).replace("https://git.example.org/virtualenv-tools.git", url)
    assert url in given
    return yaml.safe_load(given)["gitfs_remotes"]


class Git:
    """A masterless minion, and a master without minions, whose files are in a git repository.

    Args:
        directory: where all of it is.
        remotes: the `gitfs_remotes`.
    """

    def __init__(self, directory: Path, remotes: Any) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.config.mkdir()
        app = {
            "release": "1",
            "source": "salt://shop/{release}.tar",
            "root": str(directory / "srv" / "shop"),
            "user": pwd.getpwuid(os.geteuid()).pw_name,
            "group": grp.getgrgid(os.getegid()).gr_name,
            "web": {"nginx": {"upstream": "http://127.0.0.1:8000"}},
        }
        nginx = {"conf_dir": str(directory / "conf.d"), "reload_command": "true"}
        options = minions.masterless(
            directory / "minion",
            directory / "files",
            fileserver_backend=["gitfs", "roots"],
            gitfs_provider="gitpython",
            gitfs_remotes=remotes,
        )
        pillar = {"releases": {"apps": {"shop": app}, "nginx": nginx}}
        for name in ("minion", "master"):
            (self.config / name).write_text(json.dumps({**options, "pillar": pillar}))

    def call(self, function: str, *arguments: str) -> Any:
        """What `salt-call --local` says."""
        return self._run("salt-call", "--local", function, *arguments)["local"]

    def run(self, function: str) -> Any:
        """What `salt-run` says."""
        return self._run("salt-run", function)

    def _run(self, command: str, *arguments: str) -> Any:
        program = Path(sys.executable).with_name(command)
        done = subprocess.run(
            [str(program), "-c", str(self.config), "-l", "quiet", "--out=json", *arguments],
            capture_output=True,
            text=True,
        )
        assert done.stdout, done
        return json.loads(done.stdout)


def commit(repository: Path) -> None:
    """Put this checkout's committed tree into a new bare repository."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("this checkout has no history")
    for arguments in (
        ["init", "-q", "--bare", str(repository)],
        ["push", "-q", str(repository), f"HEAD:refs/heads/{BRANCH}"],
    ):
        subprocess.run(["git", "-C", str(CHECKOUT), *arguments], check=True)


def test_the_formula_from_a_repository(tmp_path: Path) -> None:
    repository = tmp_path / "virtualenv-tools.git"
    commit(repository)
    minions.pack(tmp_path / "files" / "shop" / "1.tar", "1")
    git = Git(tmp_path, remotes(f"file://{repository}"))

    synced = git.call("saltutil.sync_all")
    assert synced["modules"] == [
        "modules.releases_pillar",
        "modules.releases_schema",
        "modules.virtualenv_tools",
    ]
    assert synced["states"] == ["states.release_programs", "states.virtualenv_relocated"]
    assert {"utils.relocate_core.errors", "utils.relocate_core.releases.root"} <= set(
        synced["utils"]
    )
    assert git.run("saltutil.sync_runners") == ["runners.releases"]

    for sls in ("releases", "formula.releases"):
        answers = minions.answered(git.call("state.apply", sls))
        failed = [one for one in answers.values() if one["result"] is not True]
        assert not failed, failed
        changed = {key for key, one in answers.items() if one["changes"]}
        if sls == "releases":  # the template is found too
            assert {"shop is deployed", "shop is loaded by nginx"} <= changed
    assert changed == set()
    assert (tmp_path / "srv" / "shop" / "current" / minions.WHICH).read_text() == "1\n"
    text = (tmp_path / "conf.d" / "shop.conf").read_text()
    assert "proxy_pass http://127.0.0.1:8000;" in text
