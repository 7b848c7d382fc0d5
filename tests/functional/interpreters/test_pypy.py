"""A PyPy with a prefix of its own, as its portable archives have one: packed and deployed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from relocate_core import PythonPacking, check, pack, pack_python, publish
from relocate_core.errors import InterpreterMismatch
from relocate_core.interpreters.install import PythonBundle
from relocate_core.interpreters.prefix import inspect
from tests.functional.interpreters.test_pack import run_without
from tests.support import bundles, environments, pythons

pytestmark = pytest.mark.slow
VERSIONS = ("pypy3.11", "pypy3.10", "pypy3.9")
USES = """
import ctypes, json, lzma, sqlite3, ssl, sys, zlib
assert sqlite3.connect(':memory:').execute('select 6 * 7').fetchone() == (42,)
assert json.__cached__.startswith(sys.prefix) and json.__cached__.endswith('.pyc')
assert json.loads.__code__.co_filename == json.__file__
print(sys.prefix)
"""


@pytest.fixture(scope="module")
def prefix() -> str:
    """That of a PyPy."""
    return pythons.require(*VERSIONS)


@pytest.fixture(scope="module")
def packed(prefix: str, tmp_path_factory: pytest.TempPathFactory) -> PythonPacking:
    """The bundle of that PyPy."""
    return pack_python(prefix, str(tmp_path_factory.mktemp("pythons") / "pypy.tar"))


def test_it_runs_where_its_prefix_is_gone(
    prefix: str, packed: PythonPacking, tmp_path: Path
) -> None:
    unpacked = bundles.unpack_by_tar(packed.archive, tmp_path / "pypy")
    program = os.path.join(unpacked, inspect(prefix).program)
    assert os.path.basename(program).startswith("pypy3.")
    assert run_without(prefix, program, "-I", "-c", USES) == unpacked
    assert packed.implementation == "pypy"
    assert not [name for name in packed.libraries if name.startswith("libpypy")]


def contents(archive: str | os.PathLike[str]) -> dict[str, bytes]:
    """All of it but bytecode, in which PyPy may mark a string as interned or not."""
    with tarfile.open(archive) as tar:
        found = {one.name: tar.extractfile(one) for one in tar if one.isfile()}
        return {
            name: file.read()
            for name, file in found.items()
            if file is not None and not name.endswith((".pyc", "manifest.json"))
        }


def test_the_same_each_time(prefix: str, packed: PythonPacking, tmp_path: Path) -> None:
    again = pack_python(prefix, str(tmp_path / "again.tar"))
    assert contents(again.archive) == contents(packed.archive)


def test_its_published_archive_is_packed(prefix: str, tmp_path: Path) -> None:
    archive = tmp_path / "pypy3.9-v7.3.11-linux64.tar.gz"
    top, name = os.path.split(prefix)
    subprocess.run(["tar", "-czf", archive, "-C", top, name], check=True)
    digests = {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    for one in (first, second):
        pack_python(str(archive), str(one), digests=digests)
    assert contents(first) == contents(second)


def test_a_release_runs_on_it_and_on_no_cpython(
    prefix: str, packed: PythonPacking, tmp_path: Path
) -> None:
    build, app = tmp_path / "build", tmp_path / "app.tar"
    program = inspect(prefix).executable
    subprocess.run([program, "-m", "venv", "--without-pip", build], check=True)
    pack(str(build), str(app))
    shutil.rmtree(build)
    digests = {"sha256": hashlib.sha256(app.read_bytes()).hexdigest()}
    path = tmp_path / "shop/one"
    path.parent.mkdir()
    with pytest.raises(InterpreterMismatch, match="and the virtualenv is for PyPy"):
        publish(str(app), str(path), digests=digests, python=environments.require("3.9"))
    bundle = PythonBundle(packed.archive, {"sha256": packed.sha256})
    publish(str(app), str(path), digests=digests, python=bundle)
    ask = "import ssl, sys; print(sys.prefix, sys.base_prefix)"
    printed = subprocess.check_output([path / "bin/python", "-c", ask], text=True).split()
    assert printed[0] == str(path)
    assert printed[1].startswith(str(tmp_path / "pythons/pypy-3."))
    assert check(str(path), deep=True).ok
