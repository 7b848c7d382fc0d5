"""Where nothing in `bin` contains the old path: what else is evidence of it, and what is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from relocate_core.relocation.check import check
from relocate_core.relocation.relocate import relocate
from relocate_core.virtualenvs.contents import describe
from relocate_core.virtualenvs.evidence import all_prefixes
from relocate_core.virtualenvs.layout import inspect
from tests.support import checks, environments
from tests.support.environments import Environment, Project, digest, make

PROJECTS = (
    Project("alpha", entry_points=("alpha",)),
    Project("beta", entry_points=("beta",), layout="mapped"),
    Project("gamma", entry_points=("gamma",), mode="strict"),
)


def without_bytecode(made: Environment) -> None:
    for directory, names, _ in os.walk(made.path):
        if "__pycache__" in names:
            shutil.rmtree(os.path.join(directory, "__pycache__"))


def edit_programs(made: Environment, new: str) -> None:
    """What `sed -i s#OLD#NEW#g bin/*` does."""
    for path in Path(made.path, "bin").iterdir():
        if not path.is_symlink() and made.old_prefix in path.read_text():
            path.write_text(path.read_text().replace(made.old_prefix, new))


def assert_follows(made: Environment) -> None:
    found = check(made.path).problems
    assert [one.kind for one in found if made.old_prefix in one.reason].count("reference") == 1
    assert made.old_prefix in describe(made.path)["old_prefixes"]
    report = relocate(made.path)
    assert made.old_prefix in report.old_prefixes
    assert checks.named(made.path, made.old_prefix, made.path) == []
    after = digest(made.path)
    again = relocate(made.path)
    assert (again.changed, again.old_prefixes) == (False, [])
    assert digest(made.path) == after
    for name in ("alpha", "beta", "gamma"):
        here, prefix = checks.run_script(made.path, name).splitlines()
        assert here.startswith(f"{made.path}/")
        assert prefix == made.path
    assert check(made.path).problems == ()


@pytest.mark.parametrize("bytecode", [True, False])
def test_relocatable_scripts(bytecode: bool, tmp_path: Path) -> None:
    made = make("uv", tmp_path / "venv", projects=PROJECTS, relocatable=True)
    for name in ("activate.csh", "activate.nu"):  # uv has the path in these all the same
        Path(made.bin(name)).unlink(missing_ok=True)
    if not bytecode:
        without_bytecode(made)
    assert_follows(made)


@pytest.mark.parametrize("kind", ["venv-3.11", "virtualenv-20", "uv"])
@pytest.mark.few(1)
def test_programs_edited_by_hand(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "venv", projects=PROJECTS)
    edit_programs(made, made.path)
    config = Path(made.path, "pyvenv.cfg")
    config.write_text(config.read_text().replace(made.old_prefix, made.path))
    assert inspect(made.path).old_prefixes == (made.path,)
    assert_follows(made)


def test_bytecode_alone_is_evidence(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv", packages=("chardet", "six"))
    edit_programs(made, made.path)
    assert relocate(made.path).old_prefixes == [made.old_prefix]
    assert checks.named(made.path, made.old_prefix, made.path) == []


@pytest.mark.slow
def test_two_spellings(tmp_path: Path) -> None:
    """Built through a symlink: scripts have that path, an editable install has the real one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    old = tmp_path / "link" / "venv"
    environments.uv("venv", "-q", str(old))
    for each in PROJECTS[:2]:
        place = each.write(os.path.join(os.path.realpath(old), "src", each.name))
        environments.uv("pip", "install", "-q", "-p", str(old / "bin/python"), "-e", place)
    new = tmp_path / "new"
    shutil.move(tmp_path / "real" / "venv", new)
    report = relocate(str(new))
    assert set(report.old_prefixes) == {str(old), str(tmp_path / "real" / "venv")}
    assert environments.references(new, str(tmp_path / "real")) == []
    assert environments.references(new, str(tmp_path / "link")) == []
    for each in PROJECTS[:2]:
        here = checks.run_script(str(new), each.name).splitlines()[0]
        assert here.startswith(f"{new}/")


def test_a_symlink_on_the_way_is_not_the_path(tmp_path: Path) -> None:
    """What is started from `current` would find another release there after the next switch."""
    made = make("venv-3.11", tmp_path / "releases" / "4f2a9c1" / "venv", without_pip=True)
    current = tmp_path / "current"
    current.symlink_to("releases/4f2a9c1")
    assert relocate(str(current / "venv")).prefix == made.path
    assert checks.named(made.path, str(current), made.path) == []
    assert not relocate(str(current / "venv")).changed
    assert check(str(current / "venv")).problems == ()


# --- what is no evidence --------------------------------------------------------------------------


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    """A relocated virtualenv that has something in `src`."""
    made = make("venv-3.11", tmp_path / "venv", projects=(PROJECTS[0],))
    relocate(made.path)
    return made


def other_prefixes(made: Environment) -> list[str]:
    return [one for one in all_prefixes(inspect(made.path)) if one != made.path]


def test_a_project_outside_that_exists(venv: Environment, tmp_path: Path) -> None:
    """It is like the one inside, and the virtualenv uses it on purpose."""
    outside = PROJECTS[0].write(tmp_path / "work" / "src" / "alpha")
    Path(venv.site_packages, "other.pth").write_text(f"{outside}/src\n")
    assert other_prefixes(venv) == []
    assert relocate(venv.path).old_prefixes == []


@pytest.mark.parametrize("exists", [True, False])
def test_packages_of_another_virtualenv(venv: Environment, exists: bool, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    if exists:
        environments.copy(venv.path, other)
    packages = venv.site_packages.replace(venv.path, other)
    Path(venv.site_packages, "other.pth").write_text(f"{packages}\n")
    assert other_prefixes(venv) == []


def test_another_name_of_the_same_place_in_bytecode(venv: Environment, tmp_path: Path) -> None:
    """A program that was started through a symlink compiles what it imports under that name."""
    without_bytecode(venv)
    (tmp_path / "current").symlink_to("venv")
    for package in ("pip", "setuptools"):
        there = f"{tmp_path}/current/{os.path.relpath(venv.site_packages, venv.path)}"
        venv.run("-m", "compileall", "-q", f"{there}/{package}/__init__.py")
    assert environments.references(venv.path, f"{tmp_path}/current/lib")
    assert other_prefixes(venv) == []
    assert check(venv.path).problems == ()


def test_bytecode_of_one_package_is_no_evidence(venv: Environment, tmp_path: Path) -> None:
    """It may have been shipped with its builder's."""
    without_bytecode(venv)
    built = tmp_path / "builder" / os.path.relpath(venv.site_packages, venv.path) / "pip"
    shutil.copytree(f"{venv.site_packages}/pip", built)
    venv.run("-m", "compileall", "-q", "-l", str(built))
    shutil.copytree(built / "__pycache__", f"{venv.site_packages}/pip/__pycache__")
    assert environments.references(venv.path, str(tmp_path / "builder"))
    assert other_prefixes(venv) == []
