"""Virtualenvs that carry their Python: it is used where it is, and root does not run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocate_core import check, publish, reinitialize
from relocate_core.bundles.pack import pack
from relocate_core.errors import RelocateError
from relocate_core.relocation.relocate import relocate
from relocate_core.virtualenvs.carried import carried_python
from relocate_core.virtualenvs.layout import inspect

BASE = os.path.realpath("/usr/bin/python3")
NAME = os.path.basename(BASE)
LIBRARY = Path("/usr/lib", NAME)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (LIBRARY / "os.py").exists(),
    reason="this is about what root runs, and needs a Python in /usr",
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody can enter, with a file that everybody can write to."""
    path = Path(tempfile.mkdtemp(prefix="relocate-test-", dir="/var/lib"))
    path.chmod(0o755)
    (path / "ran").touch()
    (path / "ran").chmod(0o666)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["symlink", "copy"])
def venv(request: pytest.FixtureRequest, directory: Path) -> Path:
    """A virtualenv with its Python in `.python`, which writes down who runs it."""
    venv = directory / "venv"
    own = venv / ".python"
    (own / "bin").mkdir(parents=True)
    shutil.copy2(BASE, own / "bin" / NAME)
    ignored = shutil.ignore_patterns("__pycache__", "test", "idlelib", "lib2to3", "config-*")
    shutil.copytree(LIBRARY, own / "lib" / NAME, ignore=ignored)
    options = ["--copies"] if request.param == "copy" else []
    command = [own / "bin" / NAME, "-m", "venv", "--without-pip", *options, venv]
    subprocess.run(command, check=True)
    with (own / "lib" / NAME / "json/__init__.py").open("a") as file:
        file.write(
            f"\nimport os\nopen({str(directory / 'ran')!r}, 'a').write('%d\\n' % os.geteuid())\n"
        )
    return venv


def who_ran(directory: Path) -> set[str]:
    return set((directory / "ran").read_text().split())


def archive_of(venv: Path) -> str:
    archive = venv.parent / "app.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(venv, "app")
    shutil.rmtree(venv)
    return str(archive)


def prefix_of(venv: str) -> str:
    command = [f"{venv}/bin/python", "-c", "import sys; print(sys.base_prefix)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.few(1)
def test_it_is_deployed_with_its_python(venv: Path, directory: Path) -> None:
    done = publish(archive_of(venv), str(directory / "srv/one"))
    assert done.python == f"{done.path}/.python/bin/{NAME}"
    assert done.problems == []
    assert who_ran(directory) == {"65534"}
    assert prefix_of(done.path) == f"{done.path}/.python"
    assert not reinitialize(done.path).changed
    assert check(done.path).ok


@pytest.mark.few(1)
def test_where_only_root_can_run_it(venv: Path, directory: Path) -> None:
    """As one whose libraries are below /root: it is deployed, and reported."""
    python = venv / ".python/bin" / NAME
    python.chmod(0o700)
    done = publish(archive_of(venv), str(directory / "srv/one"))
    (found,) = [one for one in done.problems if one["file"] == "bin/python"]
    assert found["reason"].startswith(f"as the user nobody, {done.path}/.python/bin/{NAME} ")
    assert "root runs nothing from an archive" in found["reason"]
    assert who_ran(directory) == set()


@pytest.mark.few(1)
def test_a_python_that_cannot_run_is_refused(venv: Path, directory: Path) -> None:
    os.truncate(venv / ".python/bin" / NAME, 4000)
    with pytest.raises(RelocateError, match=rf"srv/one/\.python/bin/{NAME} "):
        publish(archive_of(venv), str(directory / "srv/one"))
    assert not (directory / "srv/one").exists()
    assert who_ran(directory) == set()


@pytest.mark.few(1)
def test_it_is_relocated_in_place(venv: Path) -> None:
    moved = Path(shutil.move(venv, venv.parent / "moved"))
    relocate(str(moved))
    assert carried_python(inspect(str(moved))) == str(moved / ".python/bin" / NAME)
    assert not reinitialize(str(moved)).changed
    assert prefix_of(str(moved)) == str(moved / ".python")


@pytest.mark.few(1)
def test_a_bundle_does_without(venv: Path, directory: Path) -> None:
    bundle = directory / "app.tar"
    warnings = [one["reason"] for one in pack(str(venv), str(bundle)).warnings]
    assert any("carries its own Python" in one for one in warnings)
    shutil.rmtree(venv)
    done = publish(str(bundle), str(directory / "srv/one"), python=BASE)
    assert done.python == BASE
    assert prefix_of(done.path) == "/usr"
