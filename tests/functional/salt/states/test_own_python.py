"""Releases that bring their own Python, by a masterless minion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import reheaded
from tests.support.minions import Masterless

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError

from tests.support import packages, signing
from tests.support.pythons import Pair
from tests.support.roots import needs_root
from tests.support.signing import Keys


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small Python's bundle, and one of a virtualenv for it."""
    return Pair.make(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion for all tests."""
    return Masterless(tmp_path_factory.mktemp("minion"))


@pytest.fixture
def minion(pair: Pair, lasting: Masterless) -> Masterless:
    """It, its file root with both bundles, and none of them fetched."""
    for fetched in lasting.fetched():
        os.unlink(fetched)
    for path in (pair.python.archive, pair.app):
        shutil.copy(path, lasting.root)
    return lasting


def given(pair: Pair, **more: Any) -> dict[str, Any]:
    """The arguments of `managed`."""
    python = {"source": "salt://python.tar", "source_hash": pair.python.sha256}
    return {"source": "salt://app.tar", "python": {**python, **more}}


@pytest.mark.slow
def test_two_apps_share_a_python_until_nobody_needs_it(
    pair: Pair, minion: Masterless, tmp_path: Path
) -> None:
    srv = tmp_path / "srv"
    would = minion.single("managed", f"{srv}/shop/1", test=True, **given(pair))
    assert would["result"] is None
    assert "onto the Python of salt://python.tar, which would be unpacked" in would["comment"]
    assert not srv.exists()
    assert not [name for name in minion.fetched() if name.endswith("python.tar")]

    done = minion.single("managed", f"{srv}/shop/1", **given(pair))
    assert done["result"] is True, done["comment"]
    (name,) = [name for name in os.listdir(srv / "pythons") if name[0] != "."]
    python = done["changes"]["python"]
    assert python.startswith(f"{srv}/pythons/{name}/bin/python3")
    assert not [name for name in minion.fetched() if name.endswith("python.tar")], "it is kept"

    os.unlink(Path(minion.root, "python.tar"))  # it is not needed any more
    would = minion.single("managed", f"{srv}/blog/1", test=True, **given(pair))
    assert would["comment"].endswith(f"app.tar, onto {python}.")
    done = minion.single("managed", f"{srv}/blog/1", **given(pair))
    assert (done["result"], done["changes"]["python"]) == (True, python), done["comment"]
    for test in (False, True):
        again = minion.single("managed", f"{srv}/blog/1", test=test, **given(pair))
        assert (again["result"], again["changes"]) == (True, {}), again["comment"]

    call = minion.functions
    top = f"{srv}/pythons/{name}"
    assert call["virtualenv_tools.releases"](f"{srv}/blog")["1"]["interpreter"] == top
    known = call["virtualenv_tools.info"](f"{srv}/blog/1")["shared_python"]
    assert (known["path"], known["version"]) == (top, pair.python.version)
    assert known["source"] == "salt://python.tar"
    assert call["virtualenv_tools.check"](f"{srv}/blog/1", deep=True)["problems"] == []
    with open(f"{top}/lib/added.py", "w") as file:
        file.write("evil\n")
    (problem,) = call["virtualenv_tools.check"](f"{srv}/blog/1", deep=True)["problems"]
    assert problem["file"] == f"{top}/lib/added.py"

    shutil.rmtree(f"{srv}/shop/1")
    assert minion.single("pruned", f"{srv}/shop")["changes"] == {}
    shutil.rmtree(f"{srv}/blog/1")
    would = minion.single("pruned", f"{srv}/shop", test=True)
    assert (would["result"], would["changes"]) == (None, {"pythons": [top]})
    assert would["comment"] == "0 releases and 1 interpreter would be removed."
    done = minion.single("pruned", f"{srv}/shop")
    assert (done["result"], done["changes"]) == (True, {"pythons": [top]})
    assert not os.path.lexists(top)


@needs_root
def test_a_python_that_root_must_not_run_is_not_fetched(
    pair: Pair, minion: Masterless, tmp_path: Path
) -> None:
    for test in (False, True):
        answer = minion.single(
            "managed", f"{tmp_path}/srv/shop/1", test=test, **given(pair, source_hash=None)
        )
        assert answer["result"] is False
        assert "give it as source_hash" in answer["comment"]
    assert not (tmp_path / "srv").exists()
    assert not [name for name in minion.fetched() if name.endswith(".tar")]


@pytest.mark.parametrize(
    "python",
    [
        {"source": "python.tar", "source_hash": "0" * 64},
        {"source": "salt://python.tar", "source_hash": "0" * 64, "version": "3.13"},
        {"source_hash": "0" * 64},
    ],
)
@pytest.mark.few(1)
def test_a_python_that_is_none_is_refused(
    python: dict[str, str], minion: Masterless, tmp_path: Path
) -> None:
    answer = minion.single(
        "managed", f"{tmp_path}/srv/shop/1", source="salt://app.tar", python=python
    )
    assert answer["result"] is False
    assert "source and source_hash of the bundle" in answer["comment"]


@pytest.mark.slow
def test_the_active_release_is_put_onto_it(pair: Pair, minion: Masterless, tmp_path: Path) -> None:
    root = f"{tmp_path}/srv/shop"
    python = given(pair)["python"]
    early = minion.single("reinitialized", f"{root}/current", test=True, python=python)
    assert (early["result"], early["changes"]) == (None, {})
    assert minion.single("managed", f"{root}/1", source="salt://app.tar")["result"] is True
    assert minion.single("active", f"{root}/current", target="1")["result"] is True
    old = os.path.realpath(f"{root}/1/bin/python")

    would = minion.single("reinitialized", f"{root}/current", test=True, python=python)
    assert would["result"] is None
    assert would["changes"]["python"] == {"old": old, "new": "salt://python.tar"}
    assert os.path.realpath(f"{root}/1/bin/python") == old
    done = minion.single("reinitialized", f"{root}/current", python=python)
    new = os.path.realpath(f"{root}/1/bin/python")
    assert new.startswith(f"{tmp_path}/srv/pythons/cpython-")
    assert done["result"] is True, done["comment"]
    assert os.path.realpath(done["changes"]["python"]["new"]) == new
    assert done["comment"].startswith(f"{root}/1 was put onto ")
    for test in (True, False):
        again = minion.single("reinitialized", f"{root}/current", test=test, python=python)
        assert (again["result"], again["changes"]) == (True, {}), again["comment"]
    back = minion.single("reinitialized", f"{root}/current", python=old)
    assert os.path.realpath(back["changes"]["python"]["new"]) == old

    wrong = {**python, "source_hash": "0" * 64}
    refused = minion.single("reinitialized", f"{root}/current", python=wrong)
    assert refused["result"] is False
    assert os.path.realpath(f"{root}/1/bin/python") == old
    gone = minion.single("reinitialized", f"{root}/2", python=python)
    assert gone["result"] is False


@pytest.mark.slow
def test_other_releases_follow_the_active_one(minion: Masterless, tmp_path: Path) -> None:
    root = f"{tmp_path}/srv/shop"
    link = f"{root}/current"
    early = minion.single("others_reinitialized", link, test=True, python="/opt/py/bin/python3")
    assert (early["result"], early["changes"]) == (True, {})
    for name in "1234":
        assert minion.single("managed", f"{root}/{name}", source="salt://app.tar")["result"]
    minion.single("active", link, target="4")
    old = os.readlink(f"{root}/1/bin/python")
    python = f"{tmp_path}/other/{os.path.basename(old)}"
    os.mkdir(os.path.dirname(python))
    os.symlink(os.path.realpath(old), python)

    waits = minion.single("others_reinitialized", link, python=python)
    assert (waits["result"], waits["changes"]) == (True, {})
    reason = "4, which is active, is not on that Python"
    assert waits["comment"].endswith(f"As they were: 1, 2, 3: {reason}.")
    assert minion.single("reinitialized", link, python=python)["changes"]
    call = minion.functions
    call["virtualenv_tools.mark_healthy"](f"{root}/4")
    call["virtualenv_tools.reinitialize"](f"{root}/2", python=python)
    call["virtualenv_tools.put_back"](f"{root}/2", reason="it is slow")
    shutil.rmtree(f"{root}/3/bin")
    would = minion.single("others_reinitialized", link, test=True, python=python)
    assert would["changes"]["pythons"] == {"1": {"old": old, "new": python}}
    done = minion.single("others_reinitialized", link, python=python)
    assert done["result"] is False
    assert done["changes"] == {"pythons": {"1": {"old": old, "new": python}}}
    assert done["comment"].startswith(f"Not put onto {python}: 3: {root}/3 ")
    assert "As they were: 2: it was not healthy on that Python (it is slow)." in done["comment"]
    call["virtualenv_tools.remove"](f"{root}/3")
    done = minion.single("others_reinitialized", link, python=python)
    assert (done["result"], done["changes"]) == (True, {})
    known = call["virtualenv_tools.releases"](root)
    assert {name: one["python"] for name, one in known.items()} == {
        "1": python,
        "2": old,
        "4": python,
    }
    wrong = minion.single("others_reinitialized", link)
    assert "Python is missing" in wrong["comment"]


@pytest.mark.slow
def test_a_release_is_put_onto_it(pair: Pair, minion: Masterless, tmp_path: Path) -> None:
    release = f"{tmp_path}/srv/shop/1"
    assert minion.single("managed", release, source="salt://app.tar")["result"] is True
    call, python = minion.functions, given(pair)["python"]
    would = call["virtualenv_tools.reinitialize"](release, python=python, test=True)
    assert (would["changed"], would["python"]) == (True, "salt://python.tar")
    done = call["virtualenv_tools.reinitialize"](release, python=python)
    assert done["python"].startswith(f"{tmp_path}/srv/pythons/cpython-")
    assert minion.single("pruned", f"{tmp_path}/srv/shop")["changes"] == {}
    assert not call["virtualenv_tools.reinitialize"](release, python=python)["changed"]
    assert call["virtualenv_tools.check"](release, deep=True)["ok"] is True


@pytest.mark.slow
def test_a_release_whose_interpreter_is_gone_gets_it_again(
    pair: Pair, minion: Masterless, tmp_path: Path
) -> None:
    release = f"{tmp_path}/srv/shop/1"
    python = minion.single("managed", release, **given(pair))["changes"]["python"]
    shutil.rmtree(os.path.dirname(os.path.dirname(python)))
    would = minion.single("managed", release, test=True, **given(pair))
    assert would["result"] is None
    assert would["changes"]["python"]["new"] == "salt://python.tar"
    assert not os.path.lexists(python)
    done = minion.single("managed", release, **given(pair))
    assert (done["result"], done["changes"]) == (True, {"python": {"old": python, "new": python}})
    assert minion.functions["virtualenv_tools.check"](release, deep=True)["ok"] is True


@pytest.mark.slow
def test_its_hash_may_be_in_a_file_of_hashes(
    pair: Pair, minion: Masterless, tmp_path: Path
) -> None:
    Path(minion.root, "SHA256SUMS").write_text(f"{pair.python.sha256}  python.tar\n")
    arguments = given(pair, source_hash="salt://SHA256SUMS")
    for name in ("shop/1", "blog/1"):
        done = minion.single("managed", f"{tmp_path}/srv/{name}", **arguments)
        assert done["result"] is True, done["comment"]
    assert len([name for name in os.listdir(tmp_path / "srv/pythons") if name[0] != "."]) == 1
    Path(minion.root, "SHA256SUMS").write_text(f"{'0' * 64}  python.tar\n")
    answer = minion.single("managed", f"{tmp_path}/srv/shop/2", **arguments)
    assert answer["result"] is False
    assert "0" * 64 in answer["comment"]


@pytest.mark.slow
def test_a_release_finds_the_python_that_it_was_built_on(
    minion: Masterless, pair: Pair, tmp_path: Path
) -> None:
    index, out, srv = tmp_path / "index", tmp_path / "out", tmp_path / "srv"
    for directory in (index, out):
        directory.mkdir()
    packages.wheel(index, "beta")
    order: dict[str, Any] = {
        "cache": str(tmp_path / "cache"),
        "pip_packages": ["beta"],
        "find_links": [str(index)],
        "no_index": True,
        "tool": "uv",
        "installer": "uv",
        "env": {"UV_NO_CONFIG": "1"},
        "python": {"source": "salt://python.tar", "source_hash": pair.python.sha256},
    }
    built = minion.single("packed", f"{out}/web.tar", **order)
    assert built["result"] is True, built["comment"]
    beside = built["changes"]["interpreter"]["new"]
    assert built["comment"].endswith(f" {beside} was put beside it.")
    assert minion.single("packed", f"{out}/web.tar", **order)["changes"] == {}
    os.unlink(beside)
    would = minion.single("packed", f"{out}/web.tar", test=True, **order)
    assert would["comment"] == f"{beside} would be put beside {out}/web.tar."
    again = minion.single("packed", f"{out}/web.tar", **order)
    assert again["changes"] == {"interpreter": {"old": None, "new": beside}}
    wrong = {**order, "python": {"source": "salt://python.tar", "source_hash": "0" * 64}}
    assert "expected" in minion.single("packed", f"{out}/web.tar", **wrong)["comment"]

    sha256 = Path(out, "web.tar.sha256").read_text().split()[0]
    web: dict[str, Any] = {"source": "salt://web.tar", "source_hash": sha256}
    shutil.copy(out / "web.tar", minion.root)
    missing = minion.single("managed", f"{srv}/web/1", **web)
    name = os.path.basename(beside)
    assert missing["result"] is False
    words = f"there is none at salt://{name}: put it there, or give python"
    assert words in missing["comment"]
    shutil.copy(beside, minion.root)
    would = minion.single("managed", f"{srv}/web/1", test=True, source=f"{out}/web.tar")
    assert f"onto the Python of {name}, which would be unpacked" in would["comment"]
    done = minion.single("managed", f"{srv}/web/1", **web)
    assert done["result"] is True, done["comment"]
    (python,) = [one for one in os.listdir(srv / "pythons") if one[0] != "."]
    assert name.startswith(python)
    assert done["changes"]["python"].startswith(f"{srv}/pythons/{python}/bin/")
    assert not [one for one in minion.fetched() if one.endswith(name)], "it is kept"
    assert minion.single("managed", f"{srv}/web/1", **web)["changes"] == {}


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    """Keys of gpg."""
    with signing.keys() as made:
        yield made


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "salt"])
def test_a_signature_is_a_proof_of_the_python_that_a_release_names(
    kind: str, pair: Pair, keys: Keys, minion: Masterless, tmp_path: Path
) -> None:
    app = Path(pair.naming(minion.root / "web.tar"))
    shutil.copy(pair.python.archive, minion.root / pair.file)
    source = "salt://web.tar" if kind == "salt" else str(app)
    release = f"{tmp_path}/srv/web/1"
    alone = minion.single("managed", release, source=source)
    assert alone["result"] is False
    assert "known from" in alone["comment"]
    assert not (tmp_path / "srv/pythons").exists()
    known = {"source": source, "signature": str(keys.sign(app)), "gnupghome": keys.home}
    done = minion.single("managed", release, **known)
    assert done["result"] is True, done["comment"]
    assert done["changes"]["python"].startswith(f"{tmp_path}/srv/pythons/cpython-")
    assert (
        minion.functions["virtualenv_tools.releases"](f"{tmp_path}/srv/web")["1"]["source"]
        == source
    )
    assert not [name for name in os.listdir(minion.opts["cachedir"]) if "signed" in name]
    app.write_bytes(app.read_bytes() + bytes(512))
    wrong = minion.single("managed", f"{tmp_path}/srv/web/2", **known)
    assert wrong["result"] is False
    assert wrong["comment"].startswith(f"The signature of {source} is not accepted")


@pytest.mark.slow
def test_what_is_signed_is_what_is_unpacked(
    pair: Pair, keys: Keys, minion: Masterless, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to an archive lets gpg see another one."""
    good, evil = tmp_path / "good.tar", tmp_path / "evil.tar"
    shutil.copy(pair.app, good)
    evil.write_bytes(good.read_bytes() + bytes(512))
    signature, gpg = keys.sign(good), shutil.which("gpg")
    archive, program = tmp_path / "app.tar", tmp_path / "bin" / "gpg"
    shutil.copy(evil, archive)
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncp {good} {archive}\n{gpg} "$@"\nx=$?\ncp {evil} {archive}\nexit $x\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    answer = minion.single(
        "managed",
        f"{tmp_path}/srv/app/1",
        source=str(archive),
        signature=str(signature),
        gnupghome=keys.home,
    )
    assert answer["result"] is False
    assert answer["comment"].startswith(f"The signature of {archive} is not accepted")


@pytest.mark.parametrize("source", ["salt://elsewhere.tar", "PATH"])
@pytest.mark.few(1)
def test_no_python_of_this_machine_has_to_fit(
    source: str,
    pair: Pair,
    minion: Masterless,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pair.python.version.startswith("3.11."):
        pytest.skip("the Python in /usr/bin may be another 3.11, which fits")
    monkeypatch.setenv("PATH", "/nowhere")
    app = reheaded(pair.app, f"{minion.root}/elsewhere.tar", home="/nowhere/bin")
    archive, path = source.replace("PATH", app), f"{tmp_path}/srv/shop/1"
    unpack, python = minion.functions["virtualenv_tools.unpack"], given(pair)["python"]
    assert unpack(archive, path, python=python, test=True)["changed"]
    assert unpack(archive, path, python=python)["changed"]
    for test in (False, *([True] if source == "PATH" else ())):
        with pytest.raises(CommandExecutionError, match="none was found on this machine"):
            unpack(archive, f"{path}-alone", test=test)
