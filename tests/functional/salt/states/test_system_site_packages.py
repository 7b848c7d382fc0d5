"""A virtualenv that sees its Python's packages, built and deployed by a masterless minion."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("salt", reason="Salt does not run on this Python")

from tests.support import packages, pythons
from tests.support.minions import Masterless

pytestmark = pytest.mark.slow


@dataclass
class Servers:
    """A minion, and Pythons that servers may have.

    Attributes:
        minion: its file root has the bundle `app.tar`, of alpha in a virtualenv and delta 1.5,
            which alpha needs, on the system level.
        same: a Python that has delta 1.5.
        older: one that has delta 1.4.
        bare: one without any package.
    """

    minion: Masterless
    same: str
    older: str
    bare: str

    def managed(self, release: str, test: bool = False, **more: Any) -> dict[str, Any]:
        """What `managed` answers."""
        known = {"source": "salt://app.tar", **more}
        return self.minion.single("managed", release, test=test, **known)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Servers:
    top = tmp_path_factory.mktemp("servers")
    prefix, index, system = pythons.require(), top / "index", top / "system"
    packages.wheel(index, "alpha", requires=["delta >= 1"])
    has = packages.wheel(system, "delta", "1.5")
    minion = Masterless(top / "minion")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("PIP_", "UV_")):
                patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        built = minion.single(
            "packed",
            f"{minion.root}/app.tar",
            pip_packages=["alpha"],
            find_links=[str(index)],
            no_index=True,
            cache=str(top / "cache"),
            python=pythons.extended(prefix, top / "builder", has),
            system_site_packages=True,
        )
    assert built["result"] is True, built["comment"]
    shutil.rmtree(top / "builder")  # no server has it
    shutil.rmtree(top / "cache")
    return Servers(
        minion,
        pythons.extended(prefix, top / "same", has),
        pythons.extended(prefix, top / "older", packages.wheel(system, "delta", "1.4")),
        pythons.extended(prefix, top / "bare"),
    )


@pytest.mark.parametrize("named", [True, False], ids=["python", "PATH"])
def test_it_is_deployed_where_the_python_has_what_it_needs(
    named: bool, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = f"{tmp_path}/srv/app/1"
    python = {"python": servers.same} if named else {}
    if not named:
        bins = (os.path.dirname(one) for one in (servers.older, servers.bare, servers.same))
        monkeypatch.setenv("PATH", ":".join([*bins, os.environ["PATH"]]))
    smoke = "python -c 'import alpha, delta'"
    done = servers.managed(release, smoke=smoke, **python)
    assert done["result"] is True, done["comment"]
    assert done["changes"]["python"] == servers.same
    code = "import alpha, delta; print(delta.__file__)"
    shown = subprocess.check_output([f"{release}/bin/python", "-c", code], text=True)
    assert shown.startswith(os.path.dirname(os.path.dirname(servers.same)))
    assert servers.managed(release, **python)["changes"] == {}
    assert servers.minion.functions["virtualenv_tools.check"](release, deep=True)["ok"] is True


LACKS = {
    "older": "delta 1.5, and 1.4 is installed",
    "bare": "delta 1.5, which is not installed there",
}


@pytest.mark.parametrize("test", [False, True], ids=["", "test"])
@pytest.mark.parametrize("kind", LACKS)
def test_it_is_refused_where_the_python_has_not(
    kind: str, test: bool, servers: Servers, tmp_path: Path
) -> None:
    root = tmp_path / "srv/app"
    whole = Path(servers.minion.root, "app.tar").read_bytes()
    cut = tmp_path / "app.tar"
    cut.write_bytes(whole[: len(whole) // 2])  # to unpack it would be refused as well
    answer = servers.managed(f"{root}/1", test=test, source=str(cut), python=getattr(servers, kind))
    assert (answer["result"], answer["changes"]) == (False, {})
    assert LACKS[kind] in answer["comment"]
    assert getattr(servers, kind) in answer["comment"]
    assert not os.path.lexists(root / "1")
    assert not [file for file in root.rglob("*") if "site-packages" in file.parts]


def test_it_is_refused_where_no_python_has(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{os.path.dirname(servers.bare)}:{os.environ['PATH']}")
    answer = servers.managed(f"{tmp_path}/srv/app/1")
    assert answer["result"] is False
    assert LACKS["bare"] in answer["comment"]


def test_it_is_not_put_onto_a_python_that_has_not(servers: Servers, tmp_path: Path) -> None:
    release = f"{tmp_path}/srv/app/1"
    assert servers.managed(release, python=servers.same)["result"] is True
    for kind, words in LACKS.items():
        answer = servers.minion.single("reinitialized", release, python=getattr(servers, kind))
        assert (answer["result"], answer["changes"]) == (False, {})
        assert words in answer["comment"]
    assert os.path.realpath(f"{release}/bin/python") == servers.same
