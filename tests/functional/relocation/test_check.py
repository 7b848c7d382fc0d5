"""What `check` and `info` report of real virtualenvs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from relocate_core.errors import NotAVirtualenv
from relocate_core.relocation.check import check
from relocate_core.relocation.relocate import relocate
from relocate_core.virtualenvs.contents import describe
from relocate_core.virtualenvs.verify import Problem
from tests.support.environments import Environment, Project, digest, make


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    """A relocated virtualenv."""
    made = make("venv-3.11", tmp_path / "venv", packages=("chardet", "markupsafe"))
    relocate(made.path)
    return made


def problems(made: Environment, deep: bool = False) -> list[Problem]:
    """What is wrong; asking changes nothing."""
    before = digest(made.path)
    verdict = check(made.path, deep)
    assert digest(made.path) == before
    assert verdict.ok == (not verdict.problems)
    return list(verdict.problems)


@pytest.mark.parametrize("kind", ["venv-3.12", "virtualenv-16", "virtualenv-20", "uv", "pypy3.9"])
@pytest.mark.few(2)
def test_nothing_is_wrong_once_it_is_relocated(kind: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "venv")
    assert any("refer" in problem.reason for problem in check(made.path, deep=True).problems)
    relocate(made.path)
    verdict = check(made.path, deep=True)
    assert verdict.problems == ()
    assert verdict.python == made.version


def test_stale_references(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "venv")
    found = {problem.kind: problem for problem in problems(made)}
    assert set(found) == {"script", "reference"}
    assert made.old_prefix in found["reference"].reason
    assert f"update the path to {made.path}" in found["reference"].reason
    assert f"its interpreter {made.old_prefix}/bin/python" in found["script"].reason


def test_a_dangling_interpreter(venv: Environment) -> None:
    name = os.readlink(venv.executable)
    final = os.path.join(venv.path, "bin", name)
    while os.path.islink(final) and "/" not in os.readlink(final):
        final = os.path.join(venv.path, "bin", os.readlink(final))
    os.unlink(final)
    os.symlink("/opt/gone/bin/python3.11", final)
    found = problems(venv)
    assert found[0].kind == "interpreter"
    assert "/opt/gone/bin/python3.11, which is not on this machine: reinitialize" in found[0].reason
    assert not [problem for problem in found if problem.kind == "link"]


def test_another_version_and_abi(venv: Environment) -> None:
    config = Path(venv.path, "pyvenv.cfg")
    config.write_text(config.read_text().replace("version = 3.11", "version = 3.10"))
    Path(venv.site_packages, "other.cpython-310-x86_64-linux-gnu.so").touch()
    reasons = [problem.reason for problem in problems(venv) if problem.kind == "interpreter"]
    assert "it is Python 3.11, the virtualenv is for 3.10: reinitialize" in reasons
    assert "it cannot load other: built for another ABI" in reasons


def test_scripts_links_and_paths(venv: Environment, tmp_path: Path) -> None:
    Path(venv.bin("dead")).write_text("#!/opt/gone/bin/python\n")
    Path(venv.bin("long")).write_text(f"#!/{'x/../' * 50}bin/sh\n".replace("/x/", "/usr/"))
    Path(venv.bin("fine")).write_text("#!/bin/sh\n")
    os.symlink("/opt/gone/lib.so", f"{venv.path}/lib/libgone.so")
    os.symlink("/usr/bin/env", f"{venv.path}/lib/fine")
    Path(venv.site_packages, "outside.pth").write_text(f"/opt/gone/src\n{tmp_path}\nimport os\n")
    found = {problem.file: problem for problem in problems(venv)}
    assert found.pop("bin/dead") == Problem(
        "script", "bin/dead", "its interpreter /opt/gone/bin/python is not there"
    )
    assert found.pop("lib/libgone.so").kind == "link"
    pth = found.pop(f"{os.path.relpath(venv.site_packages, venv.path)}/outside.pth")
    assert pth.kind == "path"
    assert "/opt/gone/src" in pth.reason
    assert set(found) <= {"bin/long"}


def test_a_configuration_that_python_does_not_read(venv: Environment) -> None:
    """Python runs all the same, or does not start: probing it without `site` shows neither."""
    config = Path(venv.path, "pyvenv.cfg")
    content = config.read_text()
    config.unlink()
    (missing,) = problems(venv)
    assert (missing.kind, missing.file) == ("interpreter", "pyvenv.cfg")
    assert "sees none of the packages" in missing.reason
    assert venv.run("-c", "import sys; print(sys.prefix)").strip() != venv.path
    config.write_bytes(content.encode("utf-16"))
    assert "pyvenv.cfg" in [problem.file for problem in problems(venv)]
    config.write_text(content)
    assert problems(venv) == []


def test_a_first_line_with_a_carriage_return(venv: Environment) -> None:
    script = Path(venv.bin("tool"))
    script.write_bytes(f"#!{venv.executable}\r\nprint(1)\r\n".encode())
    script.chmod(0o755)
    with pytest.raises(OSError, match="tool"):
        subprocess.run([str(script)], check=True)
    (found,) = problems(venv)
    assert (found.kind, found.file) == ("script", "bin/tool")
    assert "carriage return" in found.reason


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_path_behind_a_mark_of_utf_8(mark: str, venv: Environment) -> None:
    Path(venv.site_packages, "other.pth").write_text(f"{mark}/nowhere/src\n")
    (found,) = problems(venv)
    assert (found.kind, found.file) == ("path", f"{site(venv)}/other.pth")


def test_a_finder_that_needs_what_is_not_installed(venv: Environment) -> None:
    """As hatchling and pdm-backend write it, with the package `editables`."""
    Path(venv.site_packages, "_shop.pth").write_text("import _shop")
    finder = Path(venv.site_packages, "_shop.py")
    lines = "from editables.redirector import RedirectingFinder as F\nF.install()\n"
    finder.write_text(f"import sys, importlib.util\n{lines}")
    (found,) = problems(venv)
    assert (found.kind, found.file) == ("path", f"{site(venv)}/_shop.py")
    assert "it imports editables, which is not installed" in found.reason
    Path(venv.site_packages, "editables").mkdir()
    assert problems(venv) == []


def site(venv: Environment) -> str:
    return os.path.relpath(venv.site_packages, venv.path)


def test_deep_compares_with_record(venv: Environment) -> None:
    assert problems(venv, deep=True) == []
    changed, missing = (f"{venv.site_packages}/chardet/{n}.py" for n in ("__init__", "__main__"))
    if not os.path.exists(missing):
        pytest.skip("chardet has changed its files")
    with open(changed, "a") as file:
        file.write("# patched\n")
    os.unlink(missing)
    assert problems(venv) == []
    found = {
        os.path.join(venv.path, problem.file): problem for problem in problems(venv, deep=True)
    }
    assert set(found) == {changed, missing}
    assert {problem.kind for problem in found.values()} == {"record"}
    assert "changed" in found[changed].reason
    assert "not on disk" in found[missing].reason


def test_no_virtualenv(tmp_path: Path) -> None:
    for function in (check, describe):
        with pytest.raises(NotAVirtualenv, match="not a directory"):
            function(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "builder", "implementation"),
    [
        ("venv-3.11", "venv", "cpython"),
        ("venv-3.13", "venv", "cpython"),
        ("virtualenv-16", "virtualenv", "cpython"),
        ("virtualenv-20", "virtualenv", "cpython"),
        ("virtualenv-21", "virtualenv", "cpython"),
        ("uv", "uv", "cpython"),
        ("pypy3.9", "venv", "pypy"),
    ],
)
def test_facts(kind: str, builder: str, implementation: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path / "venv")
    before = digest(made.path)
    facts = describe(made.path)
    assert digest(made.path) == before
    assert (facts["builder"], facts["implementation"]) == (builder, implementation)
    assert made.version.startswith(facts["python"] + ".")
    assert facts["prefix"] == made.old_prefix
    assert facts["old_prefixes"] == [made.old_prefix]
    assert os.path.samefile(facts["interpreter"], made.executable)
    assert facts["site_packages"] == [os.path.relpath(made.site_packages, made.path)]
    assert (facts["copies"], facts["relocatable"], facts["system_site_packages"]) == (
        *(kind == "virtualenv-16", False, False),  # that one always makes a copy
    )
    assert facts["prompt"] is None
    installed = [n for n in os.listdir(made.site_packages) if n.endswith(".dist-info")]
    assert facts["packages"] == len(installed)


def test_facts_of_the_variants(tmp_path: Path) -> None:
    made = make("venv-3.11", tmp_path / "a", copies=True, prompt="mine", system_site_packages=True)
    facts = describe(made.path)
    assert (facts["copies"], facts["system_site_packages"]) == (True, True)
    assert facts["prompt"].strip("'") == "mine"
    relocatable = make("uv", tmp_path / "b", relocatable=True, seed=True)
    facts = describe(relocatable.path)
    assert (facts["relocatable"], facts["prefix"]) == (True, None)
    assert not relocate(relocatable.path).changed


def test_what_stays_behind(tmp_path: Path) -> None:
    project = Project("away", mode="compat", inside=False)
    made = make("venv-3.11", tmp_path / "venv", projects=(project,), packages=("markupsafe",))
    os.symlink("/etc/hostname", f"{made.path}/lib/hostname")
    facts = describe(made.path)
    assert facts["compiled_modules"] == 1
    assert "lib/hostname points to /etc/hostname" in facts["stays_behind"]
    assert [row for row in facts["stays_behind"] if f"refers to {made.outside}/away/src" in row]
    assert [p for p in check(made.path).problems if p.kind == "path" and made.outside in p.reason]
    shutil.rmtree(made.path)
    assert stat.S_ISDIR(os.stat(tmp_path).st_mode)


# --- editable installs of projects that are gone --------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "project"),
    [
        ("uv", Project("alpha", inside=False)),
        ("uv", Project("beta", layout="mapped", inside=False)),
        ("venv-3.12", Project("gamma", layout="flat", inside=False)),
        ("venv-3.11", Project("delta", mode="compat", inside=False)),
        ("virtualenv-16", Project("epsilon", mode="develop", inside=False)),
    ],
)
@pytest.mark.few(2)
def test_an_editable_install_from_a_place_that_is_gone(
    kind: str, project: Project, tmp_path: Path
) -> None:
    made = make(kind, tmp_path / "venv", projects=(project,))
    relocate(made.path)
    found = [problem for problem in problems(made) if problem.kind == "path"]
    assert found
    assert all(f"refers to {made.outside}/{project.name}" in one.reason for one in found)
    names = {os.path.basename(one.file) for one in found}
    if project.layout != "src" and project.mode == "default":
        assert {"direct_url.json"} < names
        assert any(name.endswith("_finder.py") for name in names)


@pytest.mark.parametrize("layout", ["src", "mapped"])
def test_an_editable_install_from_inside(layout: str, tmp_path: Path) -> None:
    made = make("uv", tmp_path / "venv", projects=(Project("alpha", layout=layout),))
    relocate(made.path)
    assert problems(made) == []
    shutil.rmtree(f"{made.path}/src/alpha")
    assert {problem.kind for problem in problems(made)} == {"path"}
