"""Virtualenvs of the systems that have other directories and other names than most."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from relocate_core.bundles.pack import pack
from relocate_core.errors import CannotTravel
from relocate_core.releases.publish import publish
from relocate_core.relocation.check import check
from relocate_core.relocation.reinitialize import reinitialize
from relocate_core.relocation.relocate import relocate
from relocate_core.virtualenvs.layout import inspect
from tests.support import checks, environments
from tests.support.environments import Project, copy, digest, make

PYTHON = os.path.realpath(sys.executable)
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def archive_of(tree: Path, archive: Path) -> str:
    with tarfile.open(archive, "w") as tar:
        tar.add(tree, "app")
    return str(archive)


# --- lib64 ----------------------------------------------------------------------------------------


@pytest.fixture
def lib64(tmp_path: Path) -> Path:
    """What virtualenv makes on Fedora, RHEL and openSUSE, where sys.platlibdir is lib64."""
    base = sysconfig.get_config_var("prefix")
    python = tmp_path / "python"
    (python / "bin").mkdir(parents=True)
    shutil.copy2(PYTHON, python / "bin" / f"python{VERSION}")
    for name, target in (("lib", "lib"), ("lib64", "lib"), ("include", "include")):
        (python / name).symlink_to(f"{base}/{target}")
    host = environments.tool("virtualenv-21")
    platform = {"PYTHONPLATLIBDIR": "lib64"}
    venv = tmp_path / "venv"
    environments.run(
        *(f"{python}/bin/python{VERSION}", "-m", "virtualenv", "-q", "--no-download", str(venv)),
        **{**platform, "PYTHONPATH": host.directory, "VIRTUALENV_APP_DATA": f"{tmp_path}/data"},
    )
    if not (venv / "lib64").is_dir() or (venv / "lib64").is_symlink():
        pytest.skip("virtualenv makes no lib64 here")
    for each in (Project("alpha", entry_points=("alpha",)), Project("omega", mode="regular")):
        # What a compiled package is: its files go to lib64.
        place = Path(each.write(venv / "src" / each.name))
        setup = place / "setup.py"
        setup.write_text(setup.read_text().replace("setup(", "setup(has_ext_modules=lambda: 1,"))
        edit = ["-e"] if each.mode == "default" else []
        pip = (f"{venv}/bin/python", "-m", "pip", "install", "-q")
        environments.run(*pip, "setuptools", "wheel", **platform)
        environments.run(*pip, "--no-build-isolation", *edit, str(place), **platform)
    assert list(venv.glob("lib64/*/site-packages/omega-*/RECORD"))
    return venv


@pytest.mark.slow
def test_lib64(lib64: Path, tmp_path: Path) -> None:
    assert set(inspect(str(lib64)).site_packages) >= {
        f"lib/python{VERSION}/site-packages",
        f"lib64/python{VERSION}/site-packages",
    }
    moved = Path(shutil.move(lib64, tmp_path / "moved"))
    relocate(str(moved))
    assert checks.named(str(moved), str(lib64), str(moved)) == []
    assert check(str(moved), deep=True).problems == ()
    source = next(moved.glob("lib64/*/site-packages/omega/__init__.py"))
    source.write_text(f"{source.read_text()}# changed\n")
    (found,) = check(str(moved), deep=True).problems
    assert (found.kind, found.file) == ("record", str(source.relative_to(moved)))


@pytest.mark.slow
def test_an_editable_install_in_lib64(lib64: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    shutil.move(lib64 / "src" / "alpha", tmp_path / "outside" / "alpha")
    for path in lib64.glob("lib64/*/site-packages/**/*"):
        if path.is_file() and f"{lib64}/src/alpha" in path.read_text(errors="replace"):
            text = path.read_text().replace(f"{lib64}/src", f"{tmp_path}/outside")
            path.write_text(text)
    with pytest.raises(CannotTravel, match=r"lib64/.* refers to .*/outside/alpha"):
        pack(str(lib64), str(tmp_path / "app.tar"))
    shutil.rmtree(tmp_path / "outside")
    found = {one.kind: one for one in check(str(lib64)).problems}
    assert set(found) == {"path"}


def test_debian_and_other_versions(tmp_path: Path) -> None:
    """Debian's `local` scheme, and the packages of a Python without the GIL."""
    made = make("venv-3.11", tmp_path / "venv", packages=("chardet",))
    packages = Path(made.site_packages)
    places = ("local/lib/python3.11/dist-packages", "lib/python3.13t/site-packages")
    for place in places:
        copy(packages, tmp_path / "venv" / place)
    copy(tmp_path / "venv" / "bin", tmp_path / "venv" / "local" / "bin")
    relocate(made.path)
    assert {*places} < {*inspect(made.path).site_packages}
    assert check(made.path, deep=True).problems == ()
    config = Path(made.path, "pyvenv.cfg")
    config.write_text(re.sub(r"(version = )3\.11\S*", r"\g<1>3.13.1", config.read_text()))
    assert inspect(made.path).free_threaded


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["python3-dbg", "platform-python", "python3.13-nogil", "python3.14t", "lib/../python3"]
)
@pytest.mark.few(1)
def test_an_interpreter_of_another_name(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "python"
    (directory / "lib").mkdir(parents=True)
    (directory / os.path.basename(name)).symlink_to(PYTHON)
    venv = tmp_path / "venv"
    command = [f"{directory}/{name}", "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(command, check=True)
    environments.uv("pip", "install", "-q", "-p", str(venv / "bin/python"), "cowsay")
    pack(str(venv), str(tmp_path / "app.tar"))
    for number, archive in enumerate(
        (str(tmp_path / "app.tar"), archive_of(venv, tmp_path / "plain.tar"))
    ):
        done = publish(archive, str(tmp_path / "srv" / str(number)))
        assert done.problems == []
        assert checks.run_script(done.path, "cowsay", "-t", "x")
    shutil.rmtree(directory)
    assert check(str(venv)).problems[0].kind == "interpreter"
    reinitialize(str(venv))
    assert check(str(venv)).problems == ()
    assert not reinitialize(str(venv)).changed


def test_another_program_of_such_a_name_stays(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", without_pip=True)
    os.symlink("/bin/sh", made.bin("python-shell"))
    shutil.copy2("/bin/sh", made.bin("python-tool"))
    os.unlink(made.bin("python"))
    os.symlink("/opt/gone/python3.11", made.bin("python"))
    before = digest(made.path)
    reinitialize(made.path)
    after = digest(made.path)
    for name in ("bin/python-shell", "bin/python-tool"):
        assert after[name] == before[name]
