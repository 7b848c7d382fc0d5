"""`virtualenv_tools.build` and the state `packed`, as Salt's own loader gives them to a minion."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from relocate_core.builds.options import Options
from tests.support import environments, minions, packages
from tests.support.minions import Masterless, sentence

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion that has synced, with packages, and requirements in its file root."""
    directory = tmp_path_factory.mktemp("minion")
    made = Masterless(directory)
    packages.wheel(directory / "index", "alpha", requires=["beta"], scripts=["alpha"])
    packages.wheel(directory / "index", "beta")
    (made.root / "shop").mkdir()
    (made.root / "shop" / "requirements.txt").write_text("alpha\n")
    return made


@pytest.fixture
def options(minion: Masterless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each build is given: uv, as it is fast, and a cache of its own."""
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    return {
        "cache": str(tmp_path / "cache"),
        "find_links": str(minion.root.parent / "index"),
        "no_index": True,
        "installer": "uv",
        "python": sys.executable,
    }


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """The path of the bundle."""
    (tmp_path / "bundles").mkdir()
    return str(tmp_path / "bundles" / "shop.tar.gz")


# --- the function ---------------------------------------------------------------------------------


def test_build(minion: Masterless, archive: str, options: dict[str, Any]) -> None:
    build = minion.functions["virtualenv_tools.build"]
    options["requirements"] = "salt://shop/requirements.txt"
    looked = build(archive, test=True, **options)
    assert (looked["changed"], looked["dry_run"], looked["sha256"]) == (True, True, None)
    assert not os.listdir(os.path.dirname(archive))
    made = build(archive, **options)
    json.dumps(made)
    assert made["changed"]
    assert made["installed"] == {"alpha": "1.0", "beta": "1.0"}
    assert made["sha256"] == packages.digest(Path(archive))
    again = build(archive, **options)
    assert (again["changed"], again["reason"]) == (False, "")
    assert build(archive, force=True, **options)["changed"]


def test_a_bundle_is_deployed(
    minion: Masterless, archive: str, options: dict[str, Any], tmp_path: Path
) -> None:
    minion.functions["virtualenv_tools.build"](archive, pip_packages=["beta"], **options)
    done = minion.functions["virtualenv_tools.unpack"](archive, str(tmp_path / "srv" / "1"))
    assert done["changed"]


def test_the_cache_is_the_minions_own_by_default(
    minion: Masterless, archive: str, options: dict[str, Any]
) -> None:
    del options["cache"]
    minion.functions["virtualenv_tools.build"](archive, pip_packages="beta", **options)
    assert os.listdir(os.path.join(minion.opts["cachedir"], "virtualenv_tools"))


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("nothing to build", {}),
        ("the archive must be absolute", {"archive": "shop.tar.gz"}),
        ("requirements must be absolute", {"requirements": "requirements.txt"}),
        ("cannot fetch salt://nowhere", {"requirements": "salt://nowhere"}),
        ("the project must be absolute", {"project": "shop"}),
        ("wheels must be a path or a list of paths", {"wheels": {"a": 1}}),
        ("pip_packages must be a list of texts", {"pip_packages": [1]}),
        ("tool must be one of", {"pip_packages": "a", "tool": "conda"}),
        ("tool must be one of", {"pip_packages": "a", "tool": ["venv"]}),
        ("index must be", {"pip_packages": "a", "index": 1}),
        ("env must be", {"pip_packages": "a", "env": "A=1"}),
        ("env must be", {"pip_packages": "a", "env": ["A"]}),
        ("exclude must be", {"pip_packages": "a", "exclude": 1}),
        ("wait must be a number", {"pip_packages": "a", "wait": "long"}),
        ("level", {"pip_packages": "a", "level": 99}),
        ("level", {"pip_packages": "a", "level": "fast"}),
        ("prefix must be absolute", {"pip_packages": "a", "prefix": 1}),
        ("delta_from must be absolute", {"pip_packages": "a", "delta_from": "x.tar"}),
        ("installing|finding", {"pip_packages": "nowhere"}),
    ],
)
def test_what_is_wrong_is_one_sentence(
    minion: Masterless, archive: str, options: dict[str, Any], words: str, given: dict[str, Any]
) -> None:
    with pytest.raises(CommandExecutionError, match=words) as caught:
        minion.functions["virtualenv_tools.build"](**{"archive": archive, **options, **given})
    assert sentence(str(caught.value)), caught.value


# --- the state ------------------------------------------------------------------------------------


def test_packed(minion: Masterless, archive: str, options: dict[str, Any]) -> None:
    options["pip_packages"] = ["alpha"]
    directory = os.path.dirname(os.path.dirname(archive))
    before = environments.digest(directory)
    answer = minion.single("packed", archive, test=True, **options)
    assert answer["result"] is None
    assert answer["comment"] == f"{archive} would be built, as there is no bundle yet."
    assert answer["changes"] == {"bundle": {"old": None, "new": archive}}
    assert environments.digest(directory) == before
    answer = minion.single("packed", archive, **options)
    first = packages.digest(Path(archive))
    assert answer["result"] is True
    assert answer["changes"] == {
        "bundle": {"old": None, "new": first},
        "installed": {"alpha": "1.0", "beta": "1.0"},
    }
    assert answer["comment"].startswith(f"{archive} was built by uv ")
    for test in (True, False):
        answer = minion.single("packed", archive, test=test, **options)
        assert (answer["result"], answer["changes"]) == (True, {})
        assert answer["comment"].startswith(f"{archive} exists")
    options["pip_packages"] = ["beta"]
    answer = minion.single("packed", archive, test=True, **options)
    assert answer["comment"].endswith("would be built, as its inputs have changed.")
    assert answer["changes"] == {"bundle": {"old": first, "new": archive}}
    answer = minion.single("packed", archive, **options)
    second = packages.digest(Path(archive))
    assert answer["changes"] == {"bundle": {"old": first, "new": second}, "removed": ["alpha"]}


def test_packing_the_same_again_is_no_change(
    minion: Masterless, archive: str, options: dict[str, Any]
) -> None:
    minion.single("packed", archive, pip_packages="beta", **options)
    answer = minion.single("packed", archive, pip_packages="beta", force=True, **options)
    assert (answer["result"], answer["changes"]) == (True, {})
    assert answer["comment"].endswith("and is the same as before.")


def test_packed_fails_in_one_sentence_and_keeps_the_bundle(
    minion: Masterless, archive: str, options: dict[str, Any]
) -> None:
    minion.single("packed", archive, pip_packages="beta", **options)
    before = Path(archive).read_bytes()
    answer = minion.single("packed", archive, pip_packages="nowhere", **options)
    assert (answer["result"], answer["changes"]) == (False, {})
    assert "nowhere" in answer["comment"]
    assert Path(archive).read_bytes() == before
    answer = minion.single("packed", "shop.tar.gz", pip_packages="beta", **options)
    assert answer["comment"] == "The bundle must be an absolute path: shop.tar.gz."
    answer = minion.single("packed", archive, test=True, **options)
    assert (answer["result"], answer["changes"]) == (False, {})


def test_packed_in_a_highstate_with_a_watch(
    minion: Masterless, archive: str, options: dict[str, Any], tmp_path: Path
) -> None:
    given = "".join(f"\n    - {key}: {json.dumps(value)}" for key, value in options.items())
    sls = f"""\
{tmp_path}/requirements.txt:
  file.managed:
    - contents: beta

{archive}:
  virtualenv_relocated.packed:
    - requirements: {tmp_path}/requirements.txt{given}
    - watch:
      - file: {tmp_path}/requirements.txt
"""
    answers = minion.apply(sls)
    assert answers[archive]["result"] is True, answers
    assert answers[archive]["changes"]["bundle"]["new"] == packages.digest(Path(archive))
    assert minion.apply(sls)[archive]["changes"] == {}


def test_an_unknown_option_is_refused(
    minion: Masterless, archive: str, options: dict[str, Any]
) -> None:
    answer = minion.single("packed", archive, pip_package="beta", **options)
    assert (answer["result"], answer["changes"]) == (False, {})
    assert answer["comment"] == (
        "Unknown option pip_package of a build: did you mean pip_packages?"
    )
    assert not os.path.exists(archive)


def test_the_docs_have_every_option() -> None:
    tree = ast.parse((minions.CHECKOUT / "_modules" / "virtualenv_tools.py").read_text())
    (build,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build"
    )
    terms = re.findall(r"^([a-z_, ]+)$", ast.get_docstring(build) or "", re.M)
    documented = {name for term in terms for name in term.split(", ")}
    assert {one.name for one in fields(Options)} <= documented
