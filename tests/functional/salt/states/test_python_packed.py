"""The state `python_packed`, with a real Python and Salt's own loader and compiler."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.minions import Masterless

pytest.importorskip("salt", reason="Salt does not run on this Python")

from relocate_core.bundles import reader
from tests.functional.interpreters.test_pack import VERSIONS, require
from tests.support import pythons


@pytest.mark.slow
def test_a_python_is_packed_once(tmp_path: Path) -> None:
    minion, prefix = Masterless(tmp_path / "minion"), require(*VERSIONS)
    bundle = str(tmp_path / "python.tar")

    would = minion.single("python_packed", bundle, prefix=prefix, test=True)
    assert would["result"] is None
    assert would["changes"] == {"bundle": {"new": bundle}}
    assert not Path(bundle).exists()

    done = minion.single("python_packed", bundle, prefix=prefix)
    assert done["result"] is True, done["comment"]
    digest = Path(f"{bundle}.sha256").read_text().split()[0]
    assert done["changes"] == {"bundle": {"new": digest}}

    for test in (False, True):
        again = minion.single("python_packed", bundle, prefix=prefix, test=test)
        assert (again["result"], again["changes"]) == (True, {}), again["comment"]

    kept = minion.single("python_packed", bundle, prefix=prefix, keep="headers")
    assert kept["changes"]["bundle"]["new"] != digest
    with reader.of_archive(bundle, reader.require_interpreter) as known:
        assert any(row.path.endswith("/Python.h") for row in known.rows())


def test_a_python_of_the_distribution_is_refused(tmp_path: Path) -> None:
    minion = Masterless(tmp_path / "minion")
    answer = minion.single("python_packed", str(tmp_path / "python.tar"), prefix="/usr")
    assert answer["result"] is False
    assert "its distribution" in answer["comment"]
    answer = minion.single("python_packed", str(tmp_path / "python.tar"), prefix="python")
    assert answer["result"] is False


@pytest.mark.slow
def test_a_published_archive_is_packed(tmp_path: Path) -> None:
    minion = Masterless(tmp_path / "minion")
    archive = pythons.published(pythons.require(), tmp_path)
    bundle, digest = str(tmp_path / "python.tar"), hashlib.sha256(archive.read_bytes()).hexdigest()

    wrong = minion.single("python_packed", bundle, prefix=str(archive), source_hash="0" * 64)
    assert (wrong["result"], wrong["changes"]) == (False, {})
    assert "its sha256 is" in wrong["comment"]

    done = minion.single("python_packed", bundle, prefix=str(archive), source_hash=digest)
    assert done["result"] is True, done["comment"]
    again = minion.single("python_packed", bundle, prefix=f"file://{archive}", source_hash=digest)
    assert (again["result"], again["changes"]) == (True, {}), again["comment"]
