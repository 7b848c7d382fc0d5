"""Who can read a virtualenv: those that were built under a strict umask, and what is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocate_core.bundles.pack import pack
from relocate_core.releases.publish import publish
from relocate_core.relocation.check import check
from relocate_core.virtualenvs.verify import Problem

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's files can be of anybody")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that others may enter, as those of pytest are not."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def build(path: Path, umask: int = 0o022) -> Path:
    command = [sys.executable, "-m", "venv", "--without-pip", str(path)]
    subprocess.run(command, check=True, preexec_fn=lambda: os.umask(umask) and None)
    package = path / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/one"
    old = os.umask(umask)
    try:
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__pycache__").mkdir(mode=0o700)
    finally:
        os.umask(old)
    return path


def modes(path: Path, **options: tuple[int, int]) -> list[Problem]:
    return [one for one in check(str(path), **options).problems if one.kind == "mode"]


@pytest.mark.parametrize("umask", [0o077, 0o027])
def test_a_strict_umask(umask: int, directory: Path) -> None:
    venv = build(directory / "venv", umask)
    (found,) = modes(venv)
    assert found.reason.startswith("anybody but root cannot read it, nor ")
    assert "umask 022" in found.reason
    (found,) = modes(venv, user=(NOBODY, NOBODY))
    assert found.reason.startswith("the user nobody cannot read it")
    subprocess.run(["chmod", "-R", "a+rX", str(venv)], check=True)
    assert modes(venv) == modes(venv, user=(NOBODY, NOBODY)) == []


def test_who_can_read_it_all_the_same(directory: Path) -> None:
    venv = build(directory / "venv", 0o027)
    assert modes(venv, user=(0, 0)) == []
    for path in (venv, *venv.rglob("*")):
        os.chown(path, 0, NOBODY, follow_symlinks=False)
    assert modes(venv)
    assert modes(venv, user=(12345, NOBODY)) == []
    for path in (venv, *venv.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    assert modes(venv) == []  # its owner runs it
    assert modes(venv, user=(NOBODY, NOBODY))


def test_a_private_place_is_for_root_alone(directory: Path) -> None:
    venv = build(directory / "venv", 0o077)
    assert modes(venv)
    directory.chmod(0o700)
    assert modes(venv) == []


def test_one_package_and_what_nobody_needs(directory: Path) -> None:
    venv = build(directory / "venv")
    (venv / "etc").mkdir()
    (venv / "etc/key.pem").touch(0o600)
    assert modes(venv) == []
    (file,) = venv.glob("lib/*/site-packages/one/__init__.py")
    file.chmod(0o640)
    assert [(one.file, "nor" in one.reason) for one in modes(venv)] == [
        (str(file.relative_to(venv)), False)
    ]


@pytest.mark.parametrize("owner", [None, (NOBODY, NOBODY), (0, 0)])
def test_it_is_reported_when_packed_and_deployed(
    owner: tuple[int, int] | None, directory: Path
) -> None:
    venv = build(directory / "venv", 0o077)
    bundle = directory / "app.tar.gz"
    (warning,) = pack(str(venv), str(bundle)).warnings
    assert "others than the owner of a release cannot read it, nor" in warning["reason"]
    done = publish(str(bundle), str(directory / "srv/one"), owner=owner)
    found = [one for one in done.problems if "cannot read it" in one["reason"]]
    assert len(found) == (owner is None)
    subprocess.run(["chmod", "-R", "a+rX", str(venv)], check=True)
    assert pack(str(venv), str(bundle)).warnings == []
    assert publish(str(bundle), str(directory / "srv/two"), owner=owner).problems == []


def test_a_file_system_without_programs(directory: Path) -> None:
    script = f"""
        mount -t tmpfs -o noexec none {directory} || exit 9
        {sys.executable} -m venv --without-pip {directory}/venv
        {sys.executable} -m relocate_core --check {directory}/venv
    """
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert f"{directory}/venv: its file system is mounted noexec: no program" in done.stdout
    assert done.returncode == 1
