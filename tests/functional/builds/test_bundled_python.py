"""Building on an interpreter bundle, with the very Python that the servers get."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relocate_core import PythonBundle, PythonPacking, RelocateError, build
from relocate_core.builds.build import Building
from relocate_core.bundles import reader
from relocate_core.interpreters.pack import pack_python
from relocate_core.virtualenvs.manifest import BuiltOn
from tests.support import packages
from tests.support.pythons import require, small
from tests.support.roots import one_sentence


@dataclass
class Machine:
    """A build machine with an interpreter bundle.

    Attributes:
        directory: all that it has.
        python: the interpreter bundle.
        index: a directory of wheels.
    """

    directory: Path
    python: PythonPacking
    index: Path

    @property
    def archive(self) -> Path:
        """The bundle."""
        return self.directory / "out" / "shop.tar.gz"

    @property
    def beside(self) -> Path:
        """The interpreter bundle beside it."""
        return self.archive.parent / self.built_on.file

    @property
    def built_on(self) -> BuiltOn:
        """What the bundle's manifest has of its interpreter."""
        built_on = reader.read_head(str(self.archive)).built_on
        assert built_on is not None
        return built_on

    @property
    def pythons(self) -> list[str]:
        """The interpreters in the cache."""
        found = self.directory / "cache" / "pythons"
        return [name for name in os.listdir(found) if name[0] != "."] if found.exists() else []

    def build(self, **options: Any) -> Building:
        """Build the bundle."""
        self.archive.parent.mkdir(exist_ok=True)
        given = {
            "cache": str(self.directory / "cache"),
            "pip_packages": ["beta"],
            "find_links": [str(self.index)],
            "no_index": True,
            "tool": "uv",
            "installer": "uv",
            "python": self.python.archive,
            **options,
        }
        return build(str(self.archive), **given)

    def refused(self, words: str, **options: Any) -> None:
        """A build is refused with these words, in one sentence, and nothing was unpacked."""
        with pytest.raises(RelocateError, match=words) as caught:
            self.build(**options)
        assert one_sentence(caught.value)
        assert self.pythons == []
        assert not self.archive.exists()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PythonPacking:
    """A small Python's bundle."""
    directory = tmp_path_factory.mktemp("python")
    prefix = small(require(), directory / "small")
    return pack_python(prefix, str(directory / "mine.tar.gz"))


@pytest.fixture
def machine(packed: PythonPacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A build machine that has built nothing yet."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "SOURCE_DATE_EPOCH")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    index = tmp_path / "index"
    index.mkdir()
    packages.wheel(index, "beta")
    return Machine(tmp_path, packed, index)


def test_it_is_built_on_the_bundles_python_and_names_it(machine: Machine) -> None:
    would = machine.build(dry_run=True)
    assert (would.changed, would.interpreter_added, machine.pythons) == (True, True, [])

    done = machine.build()
    (name,) = machine.pythons
    digest = machine.python.manifest
    assert machine.built_on == BuiltOn(f"{name}.tar.gz", digest, machine.python.sha256)
    assert (done.interpreter, done.interpreter_added) == (str(machine.beside), True)
    assert machine.beside.read_bytes() == Path(machine.python.archive).read_bytes()
    assert done.python == machine.python.version
    (environment,) = machine.directory.glob("cache/*/environment")
    top = f"{machine.directory}/cache/pythons/{name}/"
    assert os.path.realpath(environment / "bin" / "python").startswith(top)

    again = machine.build()
    assert (again.changed, again.interpreter_added, again.sha256) == (False, False, done.sha256)

    machine.beside.unlink()
    before = machine.archive.stat()
    assert machine.build(dry_run=True).changed
    added = machine.build()
    assert (added.changed, added.reason, added.interpreter_added) == (True, "", True)
    assert machine.archive.stat().st_mtime_ns == before.st_mtime_ns
    assert machine.beside.exists()


def test_an_unpacked_interpreter_changes_neither_the_inputs_nor_the_bytes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # else that of the newest file
    first = machine.build()
    shutil.rmtree(machine.directory / "cache")
    assert not machine.build().changed
    assert machine.pythons == []
    second = machine.build(force=True)
    assert (second.changed, second.sha256) == (True, first.sha256)


@pytest.mark.slow
def test_an_interpreter_that_no_environment_runs_on_is_removed(machine: Machine) -> None:
    machine.build()
    other = require("3.11", "3.10", "3.9")
    prefix = small(other, machine.directory / "other")
    python = pack_python(prefix, str(machine.directory / "other.tar.gz"))
    assert python.version != machine.python.version
    machine.build(python=python.archive)
    assert len(machine.pythons) == 2  # each Python and tool has an environment of its own
    for environment in machine.directory.glob(f"cache/*{python.version}*/environment"):
        shutil.rmtree(environment)
    machine.build(force=True)
    (name,) = machine.pythons
    assert machine.python.version in name


def test_a_bundle_of_another_hash_is_refused(machine: Machine) -> None:
    archive = machine.python.archive
    wrong = PythonBundle(archive, {"sha256": "0" * 64})
    machine.refused("its sha256 is .* where 0000", python=wrong)
    machine.refused("its md5 is .* expected", python=PythonBundle(archive, {"md5": "0" * 32}))
    machine.refused("crc7 is not known", python=PythonBundle(archive, {"crc7": "0"}))
    machine.refused("no such file", python=f"{archive}.missing.tar")
    right = PythonBundle(archive, {"SHA256": machine.python.sha256.upper()})
    assert machine.build(python=right, dry_run=True).changed


def test_the_bundle_of_a_virtualenv_is_no_python(machine: Machine) -> None:
    machine.build()
    app = str(shutil.copy(machine.archive, machine.directory / "app.tar.gz"))
    shutil.rmtree(machine.archive.parent)
    shutil.rmtree(machine.directory / "cache")
    machine.refused("bundle of a virtualenv, and not of an interpreter", python=app)


def test_a_python_without_venv_is_refused_before_it_is_unpacked(machine: Machine) -> None:
    machine.refused("has no venv module", tool="venv")


def test_another_file_in_its_place_is_never_replaced(machine: Machine) -> None:
    machine.build()
    machine.beside.write_bytes(b"another")
    with pytest.raises(RelocateError, match="is another file than") as caught:
        machine.build()
    assert one_sentence(caught.value)
    assert machine.beside.read_bytes() == b"another"


@pytest.mark.slow
def test_with_venv_and_pip_the_inputs_are_known_before_it_is_unpacked(machine: Machine) -> None:
    directory = machine.directory
    prefix = require()
    whole = pack_python(prefix, str(directory / "whole.tar"))
    machine.python = whole
    options = {"tool": "venv", "installer": "pip"}
    first = machine.build(**options)
    shutil.rmtree(directory / "cache")
    assert not machine.build(**options).changed
    assert first.installer.startswith("pip ")
    assert hashlib.sha256(machine.archive.read_bytes()).hexdigest() == first.sha256
