"""Pythons without the GIL: packed, deployed, and never confused with the others."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from relocate_core import check, pack_python, publish
from relocate_core.errors import InterpreterMismatch
from relocate_core.interpreters.install import PythonBundle
from tests.support import pythons

pytestmark = pytest.mark.slow
VERSIONS = ("3.14t", "3.13t")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[pythons.Pair, pythons.Pair]:
    """A Python without the GIL and one of the same version with it, each with a virtualenv."""
    prefix = pythons.require(*VERSIONS)
    version = next(one for one in VERSIONS if pythons.prefix_of(one) == prefix)
    without, usual = tmp_path_factory.mktemp("without"), tmp_path_factory.mktemp("usual")
    return pythons.Pair.make(without, version), pythons.Pair.make(usual, version.rstrip("t"))


def bundle_of(pair: pythons.Pair) -> PythonBundle:
    """The Python's bundle."""
    return PythonBundle(pair.python.archive, pair.digests)


def deployed(pair: pythons.Pair, other: pythons.Pair, path: Path) -> None:
    """Deploy the virtualenv of one pair onto the Python of another one."""
    digest = hashlib.sha256(Path(pair.app).read_bytes()).hexdigest()
    publish(pair.app, str(path), digests={"sha256": digest}, python=bundle_of(other))


def test_a_release_runs_on_it(pairs: tuple[pythons.Pair, pythons.Pair], tmp_path: Path) -> None:
    path = tmp_path / "app/one"
    path.parent.mkdir()
    deployed(pairs[0], pairs[0], path)
    ask = "import sys; print(sys._is_gil_enabled(), sys.base_prefix)"
    printed = subprocess.check_output([path / "bin/python", "-c", ask], text=True).split()
    assert printed[0] == "False"
    assert printed[1].startswith(str(tmp_path / "pythons/cpython-3."))
    assert "t-" in Path(printed[1]).name
    assert check(str(path)).ok


@pytest.mark.parametrize("app", [0, 1])
def test_a_release_of_the_other_abi_is_refused_before_it_is_unpacked(
    app: int, pairs: tuple[pythons.Pair, pythons.Pair], tmp_path: Path
) -> None:
    path = tmp_path / "app/one"
    path.parent.mkdir()
    with pytest.raises(InterpreterMismatch, match=r"and the virtualenv is for Python 3\.\d+"):
        deployed(pairs[app], pairs[1 - app], path)
    assert not list((tmp_path / "pythons").glob("cpython-*"))
    assert not path.exists()


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    prefix = pythons.require(*VERSIONS)
    packed = {pack_python(prefix, str(tmp_path / f"{n}.tar")).manifest for n in range(3)}
    assert len(packed) == 1
