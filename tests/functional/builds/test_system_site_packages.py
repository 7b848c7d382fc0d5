"""Virtualenvs that see the packages of their Python: built, packed, and deployed where these are.

On the system level of the Python that builds are delta, which needs epsilon, and zeta; in the index
are later versions of some, alpha, which needs delta, and what nobody needs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Packing, check, pack, publish, reinitialize
from relocate_core.builds.build import Building, build
from relocate_core.bundles import reader
from relocate_core.errors import InterpreterMismatch, InvalidPath
from tests.support import packages, pythons
from tests.support.minions import sentence


@dataclass
class Machines:
    """Pythons of one version, with other packages on the system level, and a build cache.

    Attributes:
        top: where they are.
        builder: the Python that builds.
        same: one of another prefix with the same packages.
        other: one that has epsilon in another version, and no delta.
        bare: one without any.
        wheels: an index.
    """

    top: Path
    builder: str
    same: str
    other: str
    bare: str
    wheels: Path

    def site_packages(self, prefix: Path) -> Path:
        return prefix / "lib" / os.path.basename(self.builder) / "site-packages"

    def build(self, archive: str, *wanted: str, **options: Any) -> Building:
        return build(
            str(self.top / archive),
            cache=str(self.top / "cache"),
            pip_packages=list(wanted),
            no_index=True,
            find_links=[str(self.wheels)],
            **{"python": self.builder, "system_site_packages": True, **options},
        )


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(InterpreterMismatch) as refused:
        function(*arguments)
    assert sentence(str(refused.value))
    return str(refused.value)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    top = tmp_path_factory.mktemp("machines")
    prefix, wheels, system = pythons.require(), top / "wheels", top / "system"
    packages.wheel(wheels, "alpha", requires=["Delta >= 1", "beta"])
    packages.wheel(wheels, "beta", requires=["zeta; python_version < '3'", "eta; extra == 'x'"])
    packages.wheel(wheels, "delta", "2.0")
    has = [
        packages.wheel(system, "delta", "1.5", requires=["epsilon"]),
        packages.wheel(system, "epsilon", "1.0"),
        packages.wheel(system, "zeta", "1.0"),
        packages.wheel(system, "eta", "1.0"),
    ]
    older = packages.wheel(system, "epsilon", "0.9")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("PIP_", "UV_", "SOURCE_DATE_EPOCH")):
                patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield Machines(
            top,
            pythons.extended(prefix, top / "builder", *has),
            pythons.extended(prefix, top / "same", *has),
            pythons.extended(prefix, top / "other", older),
            pythons.extended(prefix, top / "bare"),
            wheels,
        )


@pytest.fixture(scope="module")
def packed(machines: Machines) -> Packing:
    """A virtualenv that was made by hand, with alpha and beta in it."""
    venv = machines.top / "venv"
    options = ("--system-site-packages", "--without-pip")
    subprocess.run([machines.builder, "-m", "venv", *options, venv], check=True)
    for wheel in machines.wheels.glob("[ab]*.whl"):
        packages.unpacked(wheel, machines.site_packages(venv))
    return pack(str(venv), str(machines.top / "venv.tar.gz"))


@pytest.fixture(scope="module")
def bundle(packed: Packing) -> str:
    return packed.archive


def test_what_it_needs_of_the_system_is_recorded(packed: Packing) -> None:
    wanted = (("delta", "1.5"), ("epsilon", "1.0"))
    assert reader.read_head(packed.archive).system_packages == wanted
    assert any("asked for delta 1.5, epsilon 1.0" in one["reason"] for one in packed.warnings)


def test_it_is_deployed_onto_another_python_with_the_same_packages(
    machines: Machines, bundle: str, tmp_path: Path
) -> None:
    release = str(tmp_path / "root/1")
    assert publish(bundle, release, python=machines.same).changed
    code = "import alpha, delta; print(delta.__file__)"
    shown = subprocess.check_output([f"{release}/bin/python", "-c", code], text=True)
    assert shown.startswith(str(machines.top / "same"))
    assert check(release, deep=True).ok
    onto = partial(reinitialize, dry_run=True)
    wrong = refusal(onto, release, machines.other)
    assert "delta 1.5, which is not installed there; epsilon 1.0, and 0.9 is installed" in wrong


@pytest.mark.parametrize("dry_run", [False, True])
def test_it_is_refused_before_it_is_unpacked_where_they_are_others(
    machines: Machines, bundle: str, tmp_path: Path, dry_run: bool
) -> None:
    path = str(tmp_path / "root/1")
    deploy = partial(publish, python=machines.other, dry_run=dry_run)
    wrong = refusal(deploy, bundle, path)
    assert machines.other in wrong
    assert "delta 1.5, which is not installed there" in wrong
    assert "epsilon 1.0, and 0.9 is installed there: install these versions" in wrong
    assert not os.path.exists(path)


def test_a_python_that_has_the_packages_is_found_behind_one_that_has_not(
    machines: Machines, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [os.path.dirname(one) for one in (machines.bare, machines.same)]
    monkeypatch.setenv("PATH", os.pathsep.join([*directories, os.environ["PATH"]]))
    os.rename(machines.top / "builder", machines.top / "away")  # pyvenv.cfg refers to it
    try:
        assert publish(bundle, str(tmp_path / "root/1")).python == machines.same
    finally:
        os.rename(machines.top / "away", machines.top / "builder")


def test_a_deep_check_reports_what_has_changed_on_the_system(
    machines: Machines, bundle: str, tmp_path: Path
) -> None:
    release = str(tmp_path / "root/1")
    publish(bundle, release, python=machines.same)
    found = machines.site_packages(machines.top / "same")
    os.rename(found / "epsilon-1.0.dist-info", found / "kept")
    try:
        (problem,) = check(release, deep=True).problems
        assert (problem.kind, problem.file) == ("system", "pyvenv.cfg")
        assert "epsilon 1.0, which is not installed there" in problem.reason
        assert check(release).ok
    finally:
        os.rename(found / "kept", found / "epsilon-1.0.dist-info")


@pytest.mark.slow
def test_a_build_installs_what_the_system_lacks(machines: Machines) -> None:
    done = machines.build("a.tar.gz", "alpha")
    assert done.installed == {"alpha": "1.0", "beta": "1.0"}
    first = (("delta", "1.5"), ("epsilon", "1.0"))
    assert reader.read_head(done.archive).system_packages == first
    assert not machines.build("a.tar.gz", "alpha").changed
    metadata = machines.site_packages(machines.top / "builder") / "epsilon-1.0.dist-info/METADATA"
    text = metadata.read_text()
    metadata.write_text(text.replace("1.0", "1.1"))
    try:
        changed = machines.build("a.tar.gz", "alpha", dry_run=True)
        assert (changed.changed, changed.reason) == (True, "its inputs have changed")
    finally:
        metadata.write_text(text)
    assert machines.build("a.tar.gz", "alpha", force=True).sha256 == done.sha256


@pytest.mark.slow
def test_what_is_asked_for_and_met_by_the_system_alone_is_recorded(machines: Machines) -> None:
    done = machines.build("b.tar.gz", "delta", 'zeta; python_version > "3.1"')
    assert done.installed == {}
    recorded = reader.read_head(done.archive).system_packages
    assert recorded == (("delta", "1.5"), ("epsilon", "1.0"), ("zeta", "1.0"))


@pytest.mark.slow
def test_a_later_version_that_is_asked_for_is_installed(machines: Machines) -> None:
    done = machines.build("c.tar.gz", "delta>=2")
    assert done.installed == {"delta": "2.0"}
    assert reader.read_head(done.archive).system_packages == ()


def test_uv_as_installer_is_refused(machines: Machines) -> None:
    with pytest.raises(InvalidPath, match="uv installs again what the system has"):
        machines.build("d.tar", "alpha", installer="uv")
