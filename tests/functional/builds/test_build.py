"""Building bundles with real tools, from small packages that need no index."""

from __future__ import annotations

import base64
import functools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from relocate_core import publish
from relocate_core.builds import runner, sources
from relocate_core.builds.build import Building, build
from relocate_core.builds.failures import summary
from relocate_core.bundles import reader
from relocate_core.errors import Busy, RelocateError
from relocate_core.virtualenvs import manifest
from tests.support import packages
from tests.support.environments import copy
from tests.support.minions import sentence

INSTALLERS = ("pip", "uv")
SECRET = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests changes what is built."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "SOURCE_DATE_EPOCH")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CONFIG", "1")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of wheels: alpha needs beta, and gamma needs nothing."""
    directory = tmp_path_factory.mktemp("index")
    packages.wheel(directory, "alpha", requires=["beta"], scripts=["alpha"])
    packages.wheel(directory, "beta")
    packages.wheel(directory, "gamma")
    return directory


@pytest.fixture(scope="module")
def pips(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Callable[[], Path]:
    """pip's own environment, which takes a few seconds to make: made when one asks for it."""

    @functools.cache
    def made() -> Path:
        directory = tmp_path_factory.mktemp("pips")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PIP_CONFIG_FILE", os.devnull)
            build(
                str(directory / "a.tar.gz"),
                cache=str(directory / "cache"),
                pip_packages=["gamma"],
                no_index=True,
                find_links=[str(index)],
                python=sys.executable,
            )
        (environment,) = (directory / "cache").glob("*/pip")
        return environment

    return made


@dataclass
class Shop:
    """A build machine.

    Attributes:
        directory: all that it has.
        index: its packages.
        pips: makes pip's own environment, once; None where no build comes to that.
        options: what each build has.
    """

    directory: Path
    index: Path
    pips: Callable[[], Path] | None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def archive(self) -> Path:
        """The bundle."""
        return self.directory / "shop.tar.gz"

    @property
    def kept(self) -> Path:
        """The environment that is kept."""
        (found,) = self.directory.glob("cache/*/environment")
        return found

    @property
    def site_packages(self) -> Path:
        """Where its packages are."""
        (found,) = self.kept.glob("lib/*/site-packages")
        return found

    def build(self, *wanted: str, **options: Any) -> Building:
        """Build a bundle of some packages."""
        given = {
            "cache": str(self.directory / "cache"),
            "pip_packages": wanted,
            "find_links": [str(self.index)],
            "no_index": True,
            "python": sys.executable,
            **self.options,
            **options,
        }
        archive = str(given.pop("archive", self.archive))
        self._lend_pip(archive, given)
        made = build(archive, **given)
        assert isinstance(made.as_dict(), dict)
        return made

    def _lend_pip(self, archive: str, given: dict[str, Any]) -> None:
        if not self.pips or given.get("installer", "pip") != "pip" or given.get("dry_run"):
            return
        lent = self.pips()
        name = lent.parent.name.replace("venv-pip", f"{given.get('tool', 'venv')}-pip")
        place = Path(given["cache"]) / name / "pip"
        if not place.exists() and Path(given["cache"]).parent.exists():
            copy(lent, place)

    def refused(self, words: str, *wanted: str, **options: Any) -> str:
        """A build fails with these words, in one sentence."""
        with pytest.raises(RelocateError, match=words) as caught:
            self.build(*wanted, **options)
        message = str(caught.value)
        assert sentence(message), message
        return message

    def state(self) -> dict[str, tuple[int, int]]:
        """Inode and time of each file of the packages."""
        return {
            str(path.relative_to(self.site_packages)): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in sorted(self.site_packages.rglob("*"))
            if path.is_file()
        }

    def deployed(self, name: str = "1", **options: Any) -> Path:
        """Deploy the bundle; the release's directory."""
        path = self.directory / "srv" / name
        publish(str(options.pop("archive", self.archive)), str(path), **options)
        return path

    def bundle(self) -> tuple[bytes, bytes]:
        """The bundle, and what is written beside it."""
        return self.archive.read_bytes(), Path(f"{self.archive}.sha256").read_bytes()


@pytest.fixture
def shop(tmp_path: Path, index: Path, pips: Callable[[], Path]) -> Shop:
    """A build machine with pip and venv."""
    return Shop(tmp_path, index, pips)


@pytest.fixture(params=INSTALLERS)
def both(request: pytest.FixtureRequest, shop: Shop) -> Shop:
    """A build machine with pip, and one with uv."""
    shop.options["installer"] = request.param
    return shop


@pytest.fixture(params=[pytest.param("pip", marks=pytest.mark.slow), "uv"])
def each(request: pytest.FixtureRequest, shop: Shop) -> Shop:
    """The same, of which the one with pip may wait."""
    shop.options["installer"] = request.param
    return shop


def names(directory: Path) -> set[str]:
    """The names of what is installed in site-packages."""
    found = {path.name.split("-")[0] for path in directory.glob("*.dist-info")}
    assert all(
        (directory / name).is_dir() or (directory / f"{name}.py").is_file() for name in found
    )
    return found


def git(directory: Path, *words: str) -> str:
    """Run git; what it prints."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, "-C", str(directory), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project in a checkout, with one commit."""
    directory = packages.project(tmp_path / "src" / "shop")
    (directory / ".gitignore").write_text("*.log\nbuild/\n")
    (directory / "src" / "more.py").write_text("VALUE = 1\n")
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "commit", "-q", "-m", "first")
    return directory


# --- what is built --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "installer"),
    [
        ("venv", "pip"),
        ("uv", "uv"),
        pytest.param("venv", "uv", marks=pytest.mark.slow),
        pytest.param("virtualenv", "uv", marks=pytest.mark.slow),
        pytest.param("virtualenv", "pip", marks=pytest.mark.slow),
        pytest.param("uv", "pip", marks=pytest.mark.slow),
    ],
)
@pytest.mark.few(1)
def test_a_bundle_is_built_and_runs(shop: Shop, tool: str, installer: str) -> None:
    made = shop.build("alpha", tool=tool, installer=installer)
    assert made.changed
    assert made.reason == "there is no bundle yet"
    assert made.installed == {"alpha": "1.0", "beta": "1.0"}
    assert made.sha256 == packages.digest(shop.archive)
    facts = reader.read_head(str(shop.archive)).facts
    assert facts["builder"].startswith(f"{tool} ")
    assert facts["installer"].startswith(f"{installer} ")
    release = shop.deployed()
    assert names(next(release.glob("lib/*/site-packages"))) == {"alpha", "beta"}
    message = subprocess.run(
        [release / "bin" / "alpha"], capture_output=True, text=True, check=True
    )
    assert message.stdout == "alpha 1.0\n"
    assert not list(release.glob("bin/pip*"))
    for text in release.rglob("*"):
        assert text.name not in ("CACHEDIR.TAG", ".gitignore", "direct_url.json", "uv_cache.json")
    again = shop.build("alpha", tool=tool, installer=installer)
    assert not again.changed
    assert again.sha256 == made.sha256


def test_nothing_is_done_where_nothing_has_changed(each: Shop) -> None:
    each.build("alpha")
    before, state = each.bundle(), each.archive.stat()
    begun = time.monotonic()
    made = each.build("alpha")
    assert time.monotonic() - begun < 2
    assert (made.changed, made.reason, made.log) == (False, "", None)
    assert made.sha256 == made.old_sha256 == packages.digest(each.archive)
    now = each.archive.stat()
    assert each.bundle() == before
    assert (now.st_ino, now.st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


@pytest.mark.slow
def test_only_what_is_no_longer_wanted_is_removed(both: Shop) -> None:
    both.build("alpha", "gamma")
    before = both.state()
    made = both.build("gamma")
    assert (made.installed, made.removed, made.kept) == ({}, ["alpha", "beta"], 1)
    assert names(both.site_packages) == {"gamma"}
    assert not (both.kept / "bin" / "alpha").exists()
    after = both.state()
    assert after == {path: known for path, known in before.items() if path in after}
    assert not any(path.startswith(("alpha", "beta")) for path in after)
    again = both.build("alpha", "gamma")
    assert (sorted(again.installed), again.removed, again.kept) == (["alpha", "beta"], [], 1)
    gamma = {path: known for path, known in both.state().items() if path.startswith("gamma")}
    assert gamma == {path: known for path, known in before.items() if path.startswith("gamma")}


def test_another_version_is_installed_alone(each: Shop, tmp_path: Path) -> None:
    each.build("alpha")
    before = each.state()
    newer = tmp_path / "newer"
    packages.wheel(newer, "beta", "2.0")
    made = each.build("alpha", find_links=[str(each.index), str(newer)])
    assert (made.installed, made.removed, made.kept) == ({"beta": "2.0"}, [], 1)
    assert not list(each.site_packages.glob("beta-1*"))
    alpha = {path: known for path, known in each.state().items() if path.startswith("alpha")}
    assert alpha == {path: known for path, known in before.items() if path.startswith("alpha")}


def test_other_content_of_the_same_version_is_installed(each: Shop, tmp_path: Path) -> None:
    links = tmp_path / "links"
    packages.wheel(links, "delta", value="old")
    each.build("delta", find_links=[str(links)])
    packages.wheel(links, "delta", value="new")
    made = each.build("delta", find_links=[str(links)])
    assert made.installed == {"delta": "1.0"}
    assert "new" in (each.site_packages / "delta" / "__init__.py").read_text()


def test_files_without_an_owner_are_removed(each: Shop) -> None:
    each.build("alpha")
    strays = ["stray.py", "alpha/stray.txt", "alpha/__pycache__/gone.cpython-39.pyc", "empty/x/y"]
    for stray in strays:
        path = each.site_packages / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    each.build("alpha", "gamma")
    assert not any((each.site_packages / stray).exists() for stray in (*strays, "empty"))


def test_a_damaged_environment_is_created_again(each: Shop) -> None:
    each.build("alpha")
    (each.site_packages / "beta" / "other.py").unlink()
    made = each.build("alpha", force=True)
    assert sorted(made.installed) == ["alpha", "beta"]
    assert (each.site_packages / "beta" / "other.py").exists()


def test_packages_with_a_shared_file_are_as_in_a_new_environment(
    each: Shop, tmp_path: Path
) -> None:
    links = tmp_path / "links"
    for name in ("one", "two"):
        packages.wheel(links, name, files={"common/__init__.py": "OWNER = 'any'\n"})
    options = {"find_links": [str(links)]}
    each.build("one", "two", **options)
    each.build("two", **options)
    assert (each.site_packages / "common" / "__init__.py").exists()
    assert names(each.site_packages) == {"two"}


def test_pip_is_installed_when_it_is_asked_for(shop: Shop, tmp_path: Path) -> None:
    packages.wheel(tmp_path / "links", "pip", "99.0")
    made = shop.build("pip", find_links=[str(tmp_path / "links")], installer="uv")
    assert made.installed == {"pip": "99.0"}


def test_all_sources_are_compiled(each: Shop) -> None:
    each.build("alpha")
    sources = [path for path in each.site_packages.rglob("*.py") if path.name != "_virtualenv.py"]
    assert sources
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"))


# --- the same bytes -------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes(each: Shop) -> None:
    each.build("alpha", "gamma")
    before = each.bundle()
    assert each.build("alpha", "gamma", force=True).changed
    assert each.bundle() == before
    each.build("gamma")
    each.build("alpha", "gamma")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool",
    ["venv", *(pytest.param(one, marks=pytest.mark.slow) for one in ("virtualenv", "uv"))],
)
@pytest.mark.few(slow=2)
def test_a_new_cache_gives_the_same_bytes(
    each: Shop, tool: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    each.options.update(tool=tool, project=str(checkout))
    each.build("alpha", "gamma")
    before = each.bundle()
    shutil.rmtree(each.directory / "cache")
    time.sleep(1.1)  # files get another time
    each.build("alpha", "gamma", force=True)
    assert each.bundle() == before
    each.build("beta")
    each.build("alpha", "gamma")
    assert each.bundle() == before


# --- requirement files and hashes -----------------------------------------------------------------


def test_requirement_files_and_what_they_include_count(each: Shop, tmp_path: Path) -> None:
    (tmp_path / "inner.txt").write_text("gamma # a comment\n")
    main = tmp_path / "requirements.txt"
    main.write_text("-r inner.txt\nalpha\n")
    options = {"requirements": [str(main)]}
    assert sorted(each.build(**options).installed) == ["alpha", "beta", "gamma"]
    assert not each.build(**options).changed
    (tmp_path / "inner.txt").write_text("# nothing\n")
    made = each.build(**options)
    assert made.reason == "its inputs have changed"
    assert made.removed == ["gamma"]


def test_a_wheel_that_a_requirement_refers_to_counts(each: Shop, tmp_path: Path) -> None:
    links = tmp_path / "links"
    wheel = packages.wheel(links, "delta", value="old")
    wanted = f"delta @ file://{wheel}"
    each.build(wanted)
    assert not each.build(wanted).changed
    packages.wheel(links, "delta", value="new")
    assert each.build(wanted).changed
    assert "new" in (each.site_packages / "delta" / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("requirement", "is_there"),
    [
        ("shop @ file://{}/my%20wheels/a.whl", True),
        ("shop @ file://localhost{}/my%20wheels/a.whl#sha256=1", True),
        ("file:{}/my%20wheels/a.whl ; python_version > '3'", True),
        ("shop @ file://{}/my%20wheels/b.whl", False),
        ("shop @ https://localhost/my%20wheels/a.whl", False),
        ("shop", False),
        ("shop @ ", False),
        (" ; python_version > '3'", False),
    ],
)
def test_what_a_requirement_refers_to(requirement: str, is_there: bool, tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "a.whl"
    wheel.parent.mkdir()
    wheel.touch()
    found = sources.place_of(requirement.format(tmp_path), str(tmp_path))
    assert found == (str(wheel) if is_there else None)


def test_constraints_count(each: Shop, tmp_path: Path) -> None:
    links = tmp_path / "links"
    packages.wheel(links, "beta", "2.0")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("beta<2\n")
    options = {"constraints": [str(constraints)], "find_links": [str(each.index), str(links)]}
    assert each.build("beta", **options).installed == {"beta": "1.0"}
    constraints.write_text("beta>1\n")
    assert each.build("beta", **options).installed == {"beta": "2.0"}


@pytest.mark.few(1)
def test_the_hashes_of_a_lock_are_checked(both: Shop, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    right = {
        name: packages.digest(both.index / f"{name}-1.0-py3-none-any.whl")
        for name in ("alpha", "beta")
    }
    text = "".join(f"{name}==1.0 \\\n    --hash=sha256:{one}\n" for name, one in right.items())
    lock.write_text(text)
    options = {"requirements": [str(lock)], "require_hashes": True}
    both.build(**options)
    before = both.bundle()
    lock.write_text(text.replace(right["beta"], "0" * 64))
    message = both.refused("(?i)hash", **options)
    assert "beta" in message
    assert both.bundle() == before
    lock.write_text("alpha==1.0\n")
    both.refused("(?i)hash", **options)
    assert both.bundle() == before
    lock.write_text(text)
    made = both.build(force=True, **options)
    assert (made.installed, made.kept) == ({}, 2)  # nothing of it was lost by the failures


def test_a_project_with_a_lock(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    lock = tmp_path / "lock.txt"
    one = packages.digest(each.index / "beta-1.0-py3-none-any.whl")
    lock.write_text(f"beta==1.0 --hash=sha256:{one}\n")
    made = each.build(project=str(directory), requirements=[str(lock)], require_hashes=True)
    assert made.installed == {"shop": "1.0", "beta": "1.0"}


def test_own_wheels_win_over_those_of_the_same_name(each: Shop, tmp_path: Path) -> None:
    own = packages.wheel(tmp_path / "own", "beta", value="own")
    each.build("alpha", wheels=[str(own)])
    assert "own" in (each.site_packages / "beta" / "__init__.py").read_text()
    packages.wheel(tmp_path / "own", "beta", value="new")
    each.build("alpha", wheels=[str(own)])
    assert "new" in (each.site_packages / "beta" / "__init__.py").read_text()
    assert not list(each.site_packages.glob("*/direct_url.json"))


def test_an_editable_is_refused(each: Shop, tmp_path: Path) -> None:
    packages.project(tmp_path / "src")
    (tmp_path / "requirements.txt").write_text("-e ./src\n")
    options = {"requirements": [str(tmp_path / "requirements.txt")]}
    each.refused("as editable", **options)
    (tmp_path / "requirements.txt").write_text("./src\n")
    if each.options["installer"] == "uv":  # it looks at the times of a few files only
        each.refused("and uv does not notice every change", **options)
        each.refused("and uv does not notice every change", pip_packages=[str(tmp_path / "src")])
        return
    each.build(**options)
    (tmp_path / "src" / "src" / "shop.py").write_text("VALUE = 2\n")
    assert each.build(**options).installed == {"shop": "1.0"}
    assert (each.site_packages / "shop.py").read_text() == "VALUE = 2\n"


# --- a project ------------------------------------------------------------------------------------


def test_a_project_is_built_in_a_copy(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    (directory / "src" / "old.py").write_text("")
    before = sorted(directory.rglob("*"))
    assert sorted(each.build(project=str(directory)).installed) == ["beta", "shop"]
    assert sorted(directory.rglob("*")) == before
    (directory / "src" / "old.py").unlink()
    made = each.build(project=str(directory))
    assert (made.installed, made.kept) == ({"shop": "1.0"}, 1)
    assert not (each.site_packages / "old.py").exists()
    assert not list(each.site_packages.glob("*/direct_url.json"))


@pytest.mark.slow
def test_a_project_with_the_same_wheel_is_not_installed_again(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    each.build(project=str(directory))
    before = each.state()
    (directory / "README").write_text("new\n")
    time.sleep(2.1)  # the backend writes the time into the wheel, in steps of two seconds
    made = each.build(project=str(directory))
    assert made.changed
    assert (made.installed, each.state()) == ({}, before)


def test_extras_of_a_project(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    made = each.build(project=f"{directory}[more]")
    assert sorted(made.installed) == ["beta", "gamma", "shop"]
    assert each.build(project=str(directory)).removed == ["gamma"]


def test_products_of_a_build_do_not_count(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    each.build(project=str(directory))
    for product in ("build/lib/x.py", "src/__pycache__/x.pyc", "shop.egg-info/PKG-INFO"):
        path = directory / product
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (directory / ".venv").mkdir()
    (directory / ".venv" / "pyvenv.cfg").write_text("")
    assert not each.build(project=str(directory)).changed


# --- the commit -----------------------------------------------------------------------------------


def test_a_bundle_is_named_by_its_commit(shop: Shop, checkout: Path) -> None:
    shop.options["installer"] = "uv"
    archive = shop.directory / "shop-{commit}.tar.gz"
    made = shop.build(project=str(checkout), archive=archive)
    commit = git(checkout, "rev-parse", "HEAD")
    assert made.archive == str(archive).replace("{commit}", commit)
    assert made.commit == reader.read_head(made.archive).facts["commit"] == commit
    (checkout / "new.log").write_text("ignored")
    assert not shop.build(project=str(checkout), archive=archive).changed
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.parametrize("change", ["changed", "new", "staged", "removed"])
@pytest.mark.few(1, slow=2)
def test_a_bundle_of_a_dirty_tree_is_not_named_by_its_commit(
    shop: Shop, checkout: Path, change: str
) -> None:
    shop.options["installer"] = "uv"
    file = checkout / "src" / ("new.py" if change == "new" else "more.py")
    if change == "removed":
        file.unlink()
    else:
        file.write_text("VALUE = 2\n")
    if change == "staged":
        git(checkout, "add", ".")
    archive = shop.directory / "shop-{commit}.tar.gz"
    message = shop.refused("differs from its commit", project=str(checkout), archive=archive)
    assert file.name in message
    made = shop.build(project=str(checkout))
    assert made.commit == f"{git(checkout, 'rev-parse', 'HEAD')}-dirty"
    assert (shop.site_packages / file.name).exists() == file.exists()
    made = shop.build(project=str(checkout), archive=archive, commit="r1")
    assert made.archive.endswith("shop-r1.tar.gz")


def test_a_backend_may_ask_git(each: Shop, checkout: Path) -> None:
    (checkout / "src" / "ask_git").write_text("")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "second")
    index = (checkout / ".git" / "index").stat().st_mtime_ns
    if os.geteuid() == 0:
        for path in [checkout, *checkout.rglob("*")]:
            os.chown(path, 65534, 65534)
    each.build(project=str(checkout))
    commit = (each.site_packages / "revision.txt").read_text()
    assert commit == git(checkout, "-c", "safe.directory=*", "rev-parse", "HEAD")
    assert (checkout / ".git" / "index").stat().st_mtime_ns == index


def test_another_commit_is_another_bundle(shop: Shop, checkout: Path) -> None:
    shop.options["installer"] = "uv"
    shop.build(project=str(checkout))
    git(checkout, "commit", "-q", "--allow-empty", "-m", "second")
    assert shop.build(project=str(checkout)).changed


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failure_keeps_the_bundle_and_a_usable_cache(each: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    each.build(project=str(directory))
    bundle, state = each.bundle(), each.state()
    message = each.refused("nowhere", "nowhere", project=str(directory))
    log = Path(message.rpartition(" ")[2])
    assert "nowhere" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    (directory / "broken").write_text("gears missing")
    assert "gears missing" in each.refused("building the project failed", project=str(directory))
    assert each.bundle() == bundle
    (directory / "broken").unlink()
    (directory / "src" / "shop.py").write_text("VALUE = 2\n")
    made = each.build(project=str(directory))
    assert (made.installed, made.kept) == ({"shop": "1.0"}, 1)
    beta = {path: known for path, known in each.state().items() if path.startswith("beta")}
    assert beta == {path: known for path, known in state.items() if path.startswith("beta")}


def test_an_unreachable_index_is_reported(each: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    options = {"index": f"http://user:{SECRET}@127.0.0.1:9/simple", "no_index": False}
    message = each.refused("nowhere|index", "nowhere", **options)
    assert SECRET not in message


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("nothing to build", {}),
        ("ends in none of", {"pip_packages": ["a"], "archive": "/tmp/a.zip"}),
        ("must be absolute", {"pip_packages": ["a"], "archive": "a.tar"}),
        ("no directory /nowhere", {"pip_packages": ["a"], "archive": "/nowhere/a.tar"}),
        ("cache must be absolute", {"pip_packages": ["a"], "cache": "cache"}),
        ("tool must be one of", {"pip_packages": ["a"], "tool": "conda"}),
        ("installer must be one of", {"pip_packages": ["a"], "installer": "easy_install"}),
        ("bytecode must be one of", {"pip_packages": ["a"], "bytecode": "none"}),
        ("cannot read the requirement file", {"requirements": ["/nowhere.txt"]}),
        (
            "cannot read the constraint file",
            {"pip_packages": ["a"], "constraints": ["/nowhere.txt"]},
        ),
        ("there is no directory /nowhere", {"project": "/nowhere"}),
        ("is no Python project", {"project": "/etc"}),
        ("not named as a wheel", {"wheels": ["/etc/passwd"]}),
        ("cannot read the wheel", {"wheels": ["/nowhere-1.0-py3-none-any.whl"]}),
        ("must be a requirement", {"pip_packages": ["--index-url=http://x"]}),
        ("must be a requirement", {"pip_packages": ["a\n-e /etc"]}),
        ("pip_packages must be a list", {"pip_packages": [" "]}),
        ("pip_packages must be a list", {"pip_packages": [1]}),
        ("pip_packages must be a list", {"pip_packages": 5}),
        ("there is no /nowhere to find", {"pip_packages": ["a"], "find_links": ["/nowhere"]}),
        ("there is no python9.9", {"pip_packages": ["a"], "python": "9.9"}),
        (
            "there is no commit|there is none",
            {"pip_packages": ["a"], "archive": "/tmp/{commit}.tar.gz"},
        ),
        ("must be letters", {"pip_packages": ["a"], "commit": "../x"}),
        ("to make a delta bundle from", {"pip_packages": ["a"], "delta_from": "/nowhere.tar"}),
        ("must be a text", {"pip_packages": ["a"], "env": {"A": 1}}),
        ("name of a variable", {"pip_packages": ["a"], "env": {"A B": "1"}}),
        ("env must be", {"pip_packages": ["a"], "env": ["A"]}),
        ("the prefix must be absolute", {"pip_packages": ["a"], "prefix": "srv"}),
    ],
)
def test_bad_arguments_are_refused(shop: Shop, words: str, options: dict[str, Any]) -> None:
    shop.refused(words, **{"pip_packages": (), "installer": "uv", **options})
    assert not shop.archive.exists()
    assert not (shop.directory / "cache").exists()


@pytest.mark.parametrize(
    ("tool", "installer"), [("virtualenv", "pip"), ("uv", "pip"), ("venv", "uv")]
)
def test_a_missing_tool_is_reported(
    shop: Shop, tool: str, installer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = runner.output_of

    def without(*command: str, **options: Any) -> str | None:
        gone = tool if tool != "venv" else installer
        return (
            None
            if any(gone in os.path.basename(word) for word in command)
            else known(*command, **options)
        )

    monkeypatch.setattr("relocate_core.builds.tools.output_of", without)
    shop.pips = None
    shop.refused("install it", "alpha", tool=tool, installer=installer)


def test_a_dry_run_does_nothing(each: Shop) -> None:
    made = each.build("alpha", dry_run=True)
    assert (made.changed, made.dry_run, made.sha256) == (True, True, None)
    assert not list(each.directory.iterdir())
    each.build("alpha")
    before = sorted(each.directory.rglob("*")), each.bundle()
    assert not each.build("alpha", dry_run=True).changed
    made = each.build("gamma", dry_run=True)
    assert (made.changed, made.reason) == (True, "its inputs have changed")
    assert (sorted(each.directory.rglob("*")), each.bundle()) == before


def test_an_existing_file_that_is_no_bundle_is_replaced(shop: Shop) -> None:
    shop.archive.write_text("no bundle")
    Path(f"{shop.archive}.sha256").write_text("0" * 64)
    assert shop.build("alpha", installer="uv").reason == "the existing file is no bundle"
    Path(f"{shop.archive}.sha256").unlink()
    assert shop.build("alpha", installer="uv").reason == "its digest is missing"


# --- variables and credentials --------------------------------------------------------------------


@pytest.mark.slow
def test_misleading_variables_do_not_mislead(both: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = both.directory / "elsewhere"
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "UV_TARGET", "PYTHONPATH", "PYTHONHOME"):
        monkeypatch.setenv(name, str(elsewhere))
    for name in ("PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_NO_DEPS", "UV_SYSTEM_PYTHON"):
        monkeypatch.setenv(name, "1")
    for name in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_CACHE_DIR", "PIP_CACHE_DIR"):
        monkeypatch.setenv(name, str(elsewhere))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert sorted(both.build("alpha").installed) == ["alpha", "beta"]
    assert not elsewhere.exists()


def test_all_files_are_readable_whatever_the_umask(each: Shop) -> None:
    before = os.umask(0o077)
    try:
        each.build("alpha")
    finally:
        os.umask(before)
    for path in each.site_packages.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path


class _Index(BaseHTTPRequestHandler):
    """A package index that wants a password."""

    directory: Path

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
        name = self.path.rstrip("/").rpartition("/")[2]
        file = self.directory / name
        files = sorted(one.name for one in self.directory.glob(f"{name}-*.whl"))
        if self.headers.get("Authorization") != wanted:
            code, kind, page = 401, "text/html", b"no"
        elif file.is_file():
            code, kind, page = 200, "application/octet-stream", file.read_bytes()
        elif files:
            links = "".join(f'<a href="/simple/{one}">{one}</a>' for one in files)
            code, kind, page = 200, "text/html", f"<html><body>{links}</body></html>".encode()
        else:
            code, kind, page = 404, "text/html", b"none"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(page)))
        if code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.end_headers()
        self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def private_index(index: Path) -> Iterator[str]:
    """Where a package index is that wants a password."""
    handler = type("Handler", (_Index,), {"directory": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("way", ["argument", "variable", "env", "file", "direct"])
@pytest.mark.few(2, slow=4)
def test_credentials_are_used_and_never_printed(
    each: Shop, private_index: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://user:{SECRET}@{private_index}/simple"
    name = "PIP_INDEX_URL" if each.options["installer"] == "pip" else "UV_DEFAULT_INDEX"
    each.options.update(no_index=False, find_links=[])
    if way == "argument":
        each.options["index"] = url
    elif way == "variable":
        monkeypatch.setenv(name, url)
    elif way == "env":
        each.options["env"] = {name: url}
    elif way == "direct":
        each.options["index"] = url
        file = each.directory / "requirements.txt"
        file.write_text(f"gamma @ {url}/gamma-1.0-py3-none-any.whl\n")
        each.options["requirements"] = [str(file)]
    else:
        file = each.directory / "requirements.txt"
        file.write_text(f"--index-url {url}\ngamma\n")
        each.options["requirements"] = [str(file)]
    made = each.build("alpha")
    assert {"alpha", "beta"} <= set(made.installed)
    message = each.refused("nowhere", "alpha", "nowhere")
    assert SECRET not in message
    assert SECRET not in repr(made)
    assert SECRET not in str(reader.read_head(made.archive).facts)
    for path in [*each.kept.rglob("*"), *each.kept.parent.glob("*")]:
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_change_during_the_build_is_reported(shop: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")

    def change(step: str, facts: dict[str, Any]) -> None:
        if step == "installed":
            (directory / "src" / "shop.py").write_text("VALUE = 2\n")

    options = {"project": str(directory), "installer": "uv"}
    shop.refused("have changed since this build began", notify=change, **options)
    assert not shop.archive.exists()
    assert shop.build(**options).kept == 1


# --- several builds, and kills --------------------------------------------------------------------


def _build_in_process(shop: Shop, wanted: tuple[str, ...], options: dict[str, Any]) -> None:
    shop.build(*wanted, **options)


def start(shop: Shop, *wanted: str, **options: Any) -> multiprocessing.Process:
    """Build in a process of its own."""
    process = multiprocessing.get_context("fork").Process(
        target=_build_in_process, args=(shop, wanted, options)
    )
    process.start()
    return process


@pytest.mark.slow
def test_builds_of_one_cache_take_turns(shop: Shop) -> None:
    shop.options["installer"] = "uv"
    wanted = (["alpha"], ["gamma"], ["alpha", "gamma"], ["beta"])
    archives = [shop.directory / f"{number}.tar.gz" for number in range(len(wanted))]
    with ThreadPoolExecutor() as pool:
        made = list(
            pool.map(lambda one: shop.build(*one[0], archive=one[1]), zip(wanted, archives))
        )
    expected = [{"alpha", "beta"}, {"gamma"}, {"alpha", "beta", "gamma"}, {"beta"}]
    assert all(one.changed for one in made)
    for number, (archive, packed) in enumerate(zip(archives, expected)):
        release = shop.deployed(str(number), archive=archive)
        assert names(next(release.glob("lib/*/site-packages"))) == packed


def test_the_same_build_twice_at_once_is_done_once(shop: Shop) -> None:
    shop.options["installer"] = "uv"
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: shop.build("alpha"), range(3)))
    assert sorted(one.changed for one in made) == [False, False, True]


def test_a_build_that_waits_too_long_reports_the_other_one(shop: Shop, tmp_path: Path) -> None:
    directory = packages.project(tmp_path / "src")
    (directory / "slow").write_text(str(tmp_path / "done"))
    shop.options["installer"] = "uv"
    process = start(shop, project=str(directory))
    try:
        _until(lambda: list(shop.directory.glob("cache/*/source/*/slow")))
        with pytest.raises(Busy, match=r"building shop\.tar\.gz") as caught:
            shop.build("alpha", wait=0.2)
        assert sentence(str(caught.value))
    finally:
        process.kill()
        process.join()
    # What the killed build has started holds the lock for as long as it lives.
    with pytest.raises(Busy, match="killed build"):
        shop.build("alpha", wait=0.2)
    (tmp_path / "done").touch()
    assert shop.build("alpha", wait=30).changed


def _until(condition: Any) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.few(slow=4)
@pytest.mark.parametrize("part", range(12))
def test_the_next_build_recovers_from_a_killed_one(each: Shop, part: int) -> None:
    each.build("gamma")
    before = each.bundle()
    process = start(each, "alpha")
    time.sleep(part * (0.12 if each.options["installer"] == "pip" else 0.06))
    process.kill()
    process.join()
    done = each.bundle() != before
    made = each.build("alpha", wait=60)
    assert made.changed is not done or each.bundle()[0] != before[0]
    assert names(each.site_packages) == {"alpha", "beta"}
    assert made.sha256 == packages.digest(each.archive)
    release = each.deployed()
    assert names(next(release.glob("lib/*/site-packages"))) == {"alpha", "beta"}


def test_a_kill_in_the_middle_of_installing_is_noticed(
    each: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    each.build("gamma")
    bundle = each.bundle()
    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(
                "relocate_core.builds.environment.Environment._compile",
                lambda self: os.kill(os.getpid(), signal.SIGKILL),
            )
            each.build("alpha")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert each.bundle() == bundle
    made = each.build("alpha")
    assert sorted(made.installed) == ["alpha", "beta"]
    assert names(each.site_packages) == {"alpha", "beta"}


# --- why tools fail -------------------------------------------------------------------------------

PIP = """\
ERROR: Could not find a version that satisfies the requirement nope
ERROR: No matching distribution found for nope
"""
COMPILER = """\
  building 'x' extension
  x.c:1:10: fatal error: no.h: No such file or directory
  error: command '/usr/bin/gcc' failed with exit code 1
  [end of output]
  ERROR: Failed building wheel for x
ERROR: Failed to build one or more wheels
"""
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
OLD_UV = """\
  \u00d7 No solution found when resolving dependencies:
  ╰─▶ Because nope was not found and you require
      nope, we can conclude that.
"""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (PIP, "No matching distribution found for nope"),
        (COMPILER, "Failed to build .*: x.c:1:10: fatal error: no.h: No such file or directory"),
        (FULL, "Could not install .* No space left on device"),
        (OLD_UV, "No solution found .*: Because nope .* require nope, we can conclude that"),
        ("Segmentation fault\n\n", "Segmentation fault"),
        ("", ""),
    ],
)
def test_the_reason_from_the_output_of_a_tool(output: str, expected: str) -> None:
    assert re.fullmatch(expected, summary(output.splitlines()))


# --- delta bundles --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_latest_bundles_are_packed_against(shop: Shop, tmp_path: Path) -> None:
    for commit, wanted in (("a", ["gamma"]), ("b", ["gamma"]), ("c", ["alpha", "gamma"])):
        template = str(shop.directory / "shop-{commit}.tar.gz")
        made = shop.build(*wanted, archive=template, commit=commit, delta_from=1)
        os.utime(made.archive, ns=(time.time_ns(), time.time_ns() + ord(commit) * 10**9))
    shutil.copy(made.archive, shop.directory / "other-z.tar.gz")
    made = shop.build("alpha", archive=template, commit="d", delta_from=2)
    names = ["shop-d.from-shop-b.tar.gz", "shop-d.from-shop-c.tar.gz"]
    assert sorted(os.path.basename(one) for one in made.deltas) == names
    for name in (*names, "shop-d.tar.gz"):
        assert (shop.directory / f"{name}.sha256").exists()
    root = tmp_path / "srv"
    publish(str(shop.directory / "shop-c.tar.gz"), str(root / "c"))
    done = publish(str(shop.directory / names[1]), str(root / "d"))
    assert done.reused
    publish(made.archive, str(root / "e"))
    kept = [(root / name / manifest.NAME).read_bytes() for name in ("d", "e")]
    assert kept[0] == kept[1]
    again = shop.build("alpha", archive=template, commit="d", delta_from=2)
    assert not again.changed


@pytest.mark.slow
def test_bundles_to_pack_against_may_be_given(shop: Shop) -> None:
    first = shop.build("gamma", archive=shop.directory / "1.tar.gz")
    made = shop.build("alpha", archive=shop.directory / "2.tar.gz", delta_from=[first.archive])
    delta = str(shop.directory / "2.from-1.tar.gz")
    assert list(made.deltas) == [delta]
    shop.refused("give a full one", "beta", archive=shop.directory / "3.tar.gz", delta_from=[delta])
    assert not (shop.directory / "3.tar.gz").exists()
