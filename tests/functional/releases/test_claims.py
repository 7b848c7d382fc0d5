"""A claim on a root: one master's roll-out keeps those of others out, and none stays for good."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from relocate_core import Root, activate, claim, claimed, unclaim
from relocate_core.releases import claims
from relocate_core.releases.root import RECORDS
from tests.support import roots
from tests.support.roots import python

ROLLING = "roll-out of 2"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root that has been used, without a release."""
    roots.without_waiting(monkeypatch.setattr)
    path = tmp_path / "root"
    (path / RECORDS).mkdir(parents=True)
    for directory in (path, path / RECORDS):
        directory.chmod(0o755)
    return str(path)


def test_a_claim(root: str) -> None:
    assert claimed(Root(root)) is None
    assert claim(root, "a", ROLLING) is None
    first = claimed(Root(root))
    assert first is not None
    assert (first.holder, first.doing, first.is_living()) == ("a", ROLLING, True)
    before = roots.everything(root)
    assert claim(root, "b", "rollback to 1") == first
    assert unclaim(root, "b") is False
    assert claimed(Root(root)) == first
    assert claim(root, "a", ROLLING) is None
    renewed = claimed(Root(root))
    assert renewed is not None
    assert (renewed.since, renewed.renewed > first.renewed) == (first.since, True)
    assert unclaim(root, "a") is True
    assert unclaim(root, "a") is False
    assert claim(root, "b", "rollback to 1") is None
    assert unclaim(root) is True
    assert set(roots.everything(root)) == set(before) - {f"{RECORDS}/{claims.NAME}"}


def test_it_does_not_last(root: str) -> None:
    """Neither where its master never comes back, nor where a clock was wrong."""
    file = Path(root, RECORDS, claims.NAME)
    for renewed in (time.time() - claims.LASTS - 1, time.time() + 2 * claims.LASTS):
        file.write_text(json.dumps({"holder": "a", "doing": "", "since": "", "renewed": renewed}))
        found = claimed(Root(root))
        assert found is not None
        assert not found.is_living()
        assert claim(root, "b", ROLLING) is None
        file.unlink()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"holder": 1}', "\udcff"])
def test_a_damaged_one_keeps_nobody_out(root: str, text: str) -> None:
    Path(root, RECORDS, claims.NAME).write_bytes(text.encode(errors="surrogateescape"))
    assert claimed(Root(root)) is None
    assert claim(root, "b", ROLLING) is None


def test_a_root_without_releases_is_nobodys(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    assert (claim(path, "a", ROLLING), claimed(Root(path)), unclaim(path)) == (None, None, False)
    assert not os.path.exists(path)


def test_it_is_no_release(root: str) -> None:
    """What works in the root does not look at it."""
    assert claim(root, "a", ROLLING) is None
    error = roots.tried(lambda: activate(os.path.join(root, "1")))
    assert "there is no release" in str(error)
    assert Root(root).is_tidy()


def test_two_at_once(root: str) -> None:
    """Whoever comes first has it."""
    code = "import sys; from relocate_core import claim; print(claim(*sys.argv[1:]) is None)"
    running = [python(code, root, holder, ROLLING) for holder in "abcd"]
    won = [process.communicate()[0].strip() for process in running]
    assert sorted(won) == ["False"] * 3 + ["True"]
