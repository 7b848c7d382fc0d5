"""Minions of two masters, neither of which sees the jobs of the other one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fleet.conftest import MINIONS, Fleet, new_master, pillar_root, running

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def fleets(
    salt_factories: Any,
    fleet_root: Path,
    fleet_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Fleet, ...]]:
    """The same minions, as each of two masters has them; both have one key, as minions need it."""
    pillar = pillar_root(tmp_path_factory.mktemp("pillar"))
    first, second = (new_master(salt_factories, fleet_root, pillar) for _ in range(2))
    with first.started():
        for name in ("master.pem", "master.pub"):
            shutil.copy(Path(first.config["pki_dir"], name), second.config["pki_dir"])
        with (
            second.started(),
            running([first, second], fleet_root, pillar, fleet_base) as both,
        ):
            yield both


def test_two_roll_outs(fleets: tuple[Fleet, Fleet]) -> None:
    """One is refused, also where the other one was killed, until that is finished or given up."""
    first, second = fleets
    for fleet in fleets:
        fleet.begin("two-masters")
    for states in first.highstate().values():
        assert states[-1]["result"] is True
    words = f"Nothing was changed: {first.master.config['id']} is at work in {first.root} on web1, "
    with ThreadPoolExecutor(1) as pool:
        rolled = pool.submit(first.roll, "2", "batch=1", "pause=8")
        while first.on()["web1"] == "1":
            time.sleep(0.2)
        refused = second.roll("3")
        assert refused["comment"].startswith(words), refused
        assert "(roll-out of 2, since 2" in refused["comment"]
        refused, code = second.run("releases.rollback", second.root, "to=1", "sls=shop")
        assert (refused["comment"][: len(words)], code) == (words, 1)
        assert rolled.result()["result"] is True
    assert first.on() == dict.fromkeys(MINIONS, "2")
    assert [first.restarts(short) for short in MINIONS] == [["1", "2"]] * 3

    call = ("releases.roll", first.root, "3", *first.rolled)
    assert first.is_killed(*call, KILLED_AFTER=5)
    refused = second.roll("1")
    assert refused["comment"].startswith(words)
    assert "if that was killed, call it again there, or run virtualenv_" in refused["comment"]
    assert first.roll("3")["result"] is True
    assert first.on() == dict.fromkeys(MINIONS, "3")
    assert first.is_killed("releases.rollback", first.root, "to=1", "sls=shop", KILLED_AFTER=3)
    assert first.salt("virtualenv_tools.unclaim", first.root) == dict.fromkeys(MINIONS, True)
    assert second.roll("2")["result"] is True
    assert second.on() == dict.fromkeys(MINIONS, "2")
