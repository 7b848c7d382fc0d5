"""The wheel and the sdist, on each Salt that is supported: what an installation brings, at work.

Each of them is built as `python -m build` does it, and installed into a fresh virtualenv with that
Salt. What cannot be had here is skipped with its name: a Python that fits, an index with that Salt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments
from tests.support.minions import CHECKOUT, masterless

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# 3008.0, and 3007 before .15, were published without their requirements. What Salt 3006 needs is
# built by pip, with a setuptools of its time.
SALTS = {
    "3006": ("salt==3006.*", "3.10", "setuptools<70", "sdist"),
    "3007": ("salt==3007.*,>=3007.15", "3.12", "setuptools", "wheel"),
    "3008": ("salt==3008.*,!=3008.0", "3.13", "setuptools", "wheel"),
}
"""Of each: what is installed, on which Python, built by what, and which of our packages."""
ENTRY = "import sys; from salt.scripts import {0}; sys.exit({0}())"
APP = {"shop": {"release": "1", "source": "salt://shop/{release}.tar.gz"}}


def run(*command: str | Path, **environ: str) -> str:
    """What a command prints; it has to succeed."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env={**known, **environ}, cwd="/"
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, made of a clean copy of the checkout, and the wheel, made of the sdist."""
    directory = tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
    shutil.copytree(CHECKOUT, directory / "checkout", symlinks=True, ignore=unwanted)
    run(sys.executable, "-m", "venv", directory / "tools")
    python = directory / "tools" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "build")
    run(python, "-m", "build", "--outdir", directory / "dist", directory / "checkout")
    (wheel,) = (directory / "dist").glob("*.whl")
    (sdist,) = (directory / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_sdist_has_the_sources_and_the_pages_for_developers(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "pillar.example"}
    assert wanted <= names
    code = [path.relative_to(CHECKOUT) for path in (CHECKOUT / "relocate_core").rglob("*.py")]
    assert {str(path) for path in code} <= names


class Installed:
    """A fresh virtualenv with a Salt and this package, and a minion without a master.

    Args:
        directory: where all of it is.
        salt: which of `SALTS`.
        built: the wheel and the sdist.
    """

    def __init__(self, directory: Path, salt: str, built: dict[str, Path]) -> None:
        wanted, version, setuptools, kind = SALTS[salt]
        python = environments.require(version)
        self.bin = directory / "venv" / "bin"
        run(python, "-m", "venv", directory / "venv")
        constraint = directory / "constraints"
        constraint.write_text(f"{setuptools}\n")
        pip = (self.bin / "python", "-m", "pip", "install", "--quiet")
        try:
            run(*pip, wanted, PIP_CONSTRAINT=str(constraint))
        except AssertionError as error:
            if "No matching distribution" not in str(error):
                raise
            pytest.skip(f"{wanted} cannot be installed on Python {version}: {error}")
        run(*pip, built[kind])
        self._etc = directory / "etc"
        self._etc.mkdir()
        root = directory / "root"
        root.mkdir()
        options = masterless(directory / "minion", root)
        options["file_roots"] = {"base": [str(root), self.formula()]}
        (self._etc / "minion").write_text(json.dumps(options))
        (self._etc / "master").write_text(json.dumps({**options, "user": "root"}))

    def formula(self) -> str:
        """The file root that `docs/salt.md` has for this."""
        code = "import saltext_virtualenv_tools as ext; print(ext.formula())"
        return run(self.bin / "python", "-c", code).strip()

    def program(self, entry: str, *words: str) -> str:
        """What a program of Salt's prints."""
        where = ("--config-dir", str(self._etc), "--log-level=quiet")
        return run(
            *(self.bin / "python", "-c", ENTRY.format(entry), *where, *words),
            PYTHONWARNINGS="ignore",
        )

    def call(self, *words: str) -> Any:
        """What a function answers."""
        return json.loads(self.program("salt_call", "--local", "--out=json", *words))["local"]


@pytest.mark.parametrize("salt", SALTS)
@pytest.mark.few(slow=1)
def test_an_installation(salt: str, built: dict[str, Path], tmp_path: Path) -> None:
    installed = Installed(tmp_path, salt, built)
    assert installed.call("grains.get", "saltversion").startswith(salt)
    version = re.search(r'^version = "(.*)"$', (CHECKOUT / "pyproject.toml").read_text(), re.M)
    assert version
    printed = run(installed.bin / "virtualenv-tools", "--version")
    assert printed.startswith(f"virtualenv-tools {version[1]} from {installed.bin.parent}/lib")
    modules = installed.call("sys.list_functions", "virtualenv_tools", "releases_pillar")
    assert {"virtualenv_tools.pack", "releases_pillar.check"} <= set(modules)
    states = installed.call("sys.list_state_functions", "virtualenv_relocated", "release_programs")
    assert {"virtualenv_relocated.managed", "release_programs.running"} <= set(states)
    if os.geteuid() == 0:  # whom salt-run wants to be
        assert "releases.fleet" in installed.program("salt_run", "--doc", "releases")
    pillar = json.dumps({"releases": {"apps": APP}})
    shown = installed.call("state.show_sls", "releases", f"pillar={pillar}")
    assert shown["shop is deployed"]["__env__"] == "base"

    build, archive, release = (tmp_path / name for name in ("build", "1.tar.gz", "srv/1"))
    run(sys.executable, "-m", "venv", "--without-pip", build)
    (build / "bin" / "hello").write_text(f"#!{build}/bin/python\nprint('hello')\n")
    (build / "bin" / "hello").chmod(0o755)
    assert installed.call("virtualenv_tools.pack", str(build), str(archive))["changed"]
    shutil.rmtree(build)
    state = ("state.single", "virtualenv_relocated.managed", str(release), f"source={archive}")
    for changes in (True, False):
        (answer,) = installed.call(*state, "skip_verify=True").values()
        assert (answer["result"], bool(answer["changes"])) == (True, changes), answer
    assert run(release / "bin" / "hello") == "hello\n"
