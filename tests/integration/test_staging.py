"""Staging and production from one formula: each environment has its releases, its pillar, and the
formula as it stands there."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import minions
from tests.support.minions import CHECKOUT, Masterless

pytest.importorskip("salt", reason="Salt does not run on this Python")

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ENVIRONMENTS = {"base": "shop", "staging": "shop-staging"}
"""The app of each."""


@pytest.fixture
def minion(tmp_path: Path) -> Masterless:
    """A minion whose staging has other releases, and a formula with other defaults."""
    directories = {name: tmp_path / name for name in ENVIRONMENTS}
    made = Masterless(
        tmp_path,
        file_roots={
            "base": [str(tmp_path / "root"), str(directories["base"])],
            "staging": [str(directories["staging"])],
        },
        pillar_roots={name: [str(directory / "pillar")] for name, directory in directories.items()},
    )
    for name, directory in directories.items():
        shutil.copytree(CHECKOUT / "formula", directory, dirs_exist_ok=True)
        minions.pack(directory / "shop" / "1.tar", f"1 of {name}")
        app = {
            "release": "1",
            "source": "salt://shop/{release}.tar",
            "root": str(tmp_path / "srv" / name),
            "user": pwd.getpwuid(os.geteuid()).pw_name,
            "group": grp.getgrgid(os.getegid()).gr_name,
            "web": {"nginx": {"upstream": "http://127.0.0.1:8000"}},
        }
        # One directory for both: neither environment knows the app of the other one.
        servers = {"nginx": {"conf_dir": str(tmp_path / "conf.d"), "reload_command": "true"}}
        (directory / "pillar").mkdir()
        (directory / "pillar" / "top.sls").write_text(f"{name}: {{'*': [shop]}}")
        pillar = {"releases": {"apps": {ENVIRONMENTS[name]: app}, **servers}}
        (directory / "pillar" / "shop.sls").write_text(json.dumps(pillar))
    staging = directories["staging"] / "releases"
    defaults = staging / "defaults.yaml"
    assert "keep_releases: 5" in defaults.read_text()
    defaults.write_text(defaults.read_text().replace("keep_releases: 5", "keep_releases: 1"))
    with (staging / "files" / "nginx.conf.jinja").open("a") as template:
        template.write("# of staging\n")
    return made


def apply(minion: Masterless, name: str) -> dict[str, Any]:
    """What has changed, by the formula of an environment; without `pillarenv`, Salt merges all."""
    answers = minions.answered(
        minion.functions["state.apply"]("releases", saltenv=name, pillarenv=name)
    )
    failed = {key: one for key, one in answers.items() if one["result"] is not True}
    assert not failed, failed
    return {key: one["changes"] for key, one in answers.items() if one["changes"]}


def test_each_environment_has_its_own(minion: Masterless, tmp_path: Path) -> None:
    assert apply(minion, "staging")
    assert not (tmp_path / "srv" / "base").exists()
    assert apply(minion, "base")
    for name, keep in (("base", 5), ("staging", 1)):
        root = tmp_path / "srv" / name
        assert (root / "current" / minions.WHICH).read_text() == f"1 of {name}\n"
        written = (tmp_path / "conf.d" / f"{ENVIRONMENTS[name]}.conf").read_text()
        assert ("of staging" in written) == (name == "staging")
        assert apply(minion, name) == {}
        shown = minion.functions["state.show_sls"]("releases", saltenv=name, pillarenv=name)
        assert {"keep": keep} in shown[str(root)]["virtualenv_relocated"]
