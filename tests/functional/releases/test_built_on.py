"""Releases that were built on an interpreter bundle, and are deployed onto it by their manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Place, RelocateError, build, inspect, publish
from relocate_core.bundles import reader
from relocate_core.interpreters.pack import pack_python
from relocate_core.virtualenvs.contents import describe
from tests.support import packages
from tests.support.bundles import reheaded
from tests.support.pythons import require, small
from tests.support.roots import needs_root, one_sentence


@dataclass(frozen=True)
class Built:
    """What a build machine has put into one directory.

    Attributes:
        app: the release's bundle.
        python: the interpreter bundle that it was built on.
    """

    app: str
    python: str

    @property
    def digests(self) -> dict[str, str]:
        """What the release's bundle hashes to."""
        return {"sha256": hashlib.sha256(Path(self.app).read_bytes()).hexdigest()}

    def copied(self, directory: Path) -> Built:
        """The same in another directory, to be changed."""
        directory.mkdir()
        paths = [shutil.copy(one, directory) for one in (self.app, self.python)]
        return Built(*map(str, paths))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A release's bundle and its interpreter's, as a build leaves them."""
    directory = tmp_path_factory.mktemp("built")
    python = pack_python(small(require(), directory / "small"), str(directory / "mine.tar"))
    (directory / "index").mkdir()
    packages.wheel(directory / "index", "beta")
    (directory / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("PIP_", "UV_")):
                patch.delenv(name)
        patch.setenv("UV_NO_CONFIG", "1")
        done = build(
            str(directory / "out" / "app.tar"),
            cache=str(directory / "cache"),
            pip_packages=["beta"],
            find_links=[str(directory / "index")],
            no_index=True,
            tool="uv",
            installer="uv",
            python=python.archive,
        )
    shutil.rmtree(directory / "cache")  # a server has none of it
    assert done.interpreter is not None
    return Built(done.archive, done.interpreter)


def refused(words: str, app: str, path: str, **options: Any) -> None:
    """A release is refused with these words, in one sentence, and nothing is unpacked."""
    with pytest.raises(RelocateError, match=words) as caught:
        publish(app, path, **options)
    assert one_sentence(caught.value)
    assert not os.path.lexists(path)
    assert Place(f"{os.path.dirname(os.path.dirname(path))}/pythons").installed() == []


def test_it_goes_onto_the_python_that_it_was_built_on(built: Built, tmp_path: Path) -> None:
    here = built.copied(tmp_path / "bundles")
    would = publish(here.app, f"{tmp_path}/srv/shop/1", dry_run=True)
    assert (would.python, would.interpreter) == (None, os.path.basename(built.python))
    done = publish(here.app, f"{tmp_path}/srv/shop/1", digests=here.digests)
    (found,) = Place(f"{tmp_path}/srv/pythons").installed()
    assert (done.python, found.record["source"]) == (found.executable, here.python)

    os.unlink(here.python)  # not needed where it is unpacked, nor is a hash
    would = publish(here.app, f"{tmp_path}/srv/blog/1", dry_run=True)
    assert (would.python, would.interpreter) == (found.executable, None)
    assert publish(here.app, f"{tmp_path}/srv/blog/1").python == found.executable
    known = describe(f"{tmp_path}/srv/blog/1")["built_on"]
    assert known["file"] == os.path.basename(built.python)

    other = inspect(f"{tmp_path}/srv/blog/1").python
    chosen = require(other)
    done = publish(here.app, f"{tmp_path}/srv/blog/2", python=f"{chosen}/bin/python{other}")
    assert done.python is not None
    assert done.python.startswith(chosen), "what an operator gives goes before it"

    shutil.rmtree(f"{tmp_path}/srv/pythons")
    with pytest.raises(RelocateError, match=r"which is not in .*pythons: give python") as caught:
        publish(here.app, f"{tmp_path}/srv/blog/1", digests=here.digests)
    assert one_sentence(caught.value)


def test_without_its_python_it_is_refused(built: Built, tmp_path: Path) -> None:
    here = built.copied(tmp_path / "bundles")
    os.unlink(here.python)
    words = f"there is none at {here.python}: put it there, or give python"
    refused(words, here.app, f"{tmp_path}/srv/shop/1", digests=here.digests)


def test_another_python_under_its_name_is_refused(built: Built, tmp_path: Path) -> None:
    here = built.copied(tmp_path / "bundles")
    reheaded(built.python, here.python, time=1)
    refused("sha256", here.app, f"{tmp_path}/srv/shop/1", digests=here.digests)


def test_nothing_is_run_for_a_release_of_another_hash(built: Built, tmp_path: Path) -> None:
    here = built.copied(tmp_path / "bundles")
    refused("sha256", here.app, f"{tmp_path}/srv/shop/1", digests={"sha256": "0" * 64})


@needs_root
def test_root_runs_it_only_for_a_release_that_is_trusted(built: Built, tmp_path: Path) -> None:
    here, path = built.copied(tmp_path / "bundles"), f"{tmp_path}/srv/shop/1"
    refused("give the release's SHA-256 as source_hash", here.app, path)
    md5 = hashlib.md5(Path(here.app).read_bytes()).hexdigest()
    refused("give the release's SHA-256", here.app, path, digests={"md5": md5})
    assert publish(here.app, path, owner=(0, 0)).changed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../{file}"),
        ("file", "/etc/{file}"),
        ("file", "{file}\n"),
        ("file", "pypy-{file}"),
        ("file", "cpython-3.13.0-000000000000.tar"),
        ("file", None),
        ("manifest", "{manifest}0"),
        ("sha256", "{sha256}0"),
        ("sha256", "{sha256}\n"),
        ("more", "x"),
    ],
)
def test_a_hostile_manifest_is_refused(
    built: Built, tmp_path: Path, key: str, value: str | None
) -> None:
    known = reader.read_head(built.app).built_on
    assert known is not None
    right = dict(known.__dict__)
    wrong = {**right, key: value and value.format(**right)}
    app = reheaded(built.app, tmp_path / "app.tar", built_on=wrong)
    refused("has no head that can be read", app, f"{tmp_path}/srv/shop/1")


def test_a_manifest_names_no_program_of_its_own(built: Built, tmp_path: Path) -> None:
    right = reader.read_head(built.app).built_on
    assert right is not None
    wrong = {**right.__dict__, "sha256": "0" * 64}
    here = built.copied(tmp_path / "bundles")
    app = reheaded(built.app, here.app, built_on=wrong)
    digests = {"sha256": hashlib.sha256(Path(app).read_bytes()).hexdigest()}
    refused("sha256 .* 0000", app, f"{tmp_path}/srv/shop/1", digests=digests)
