"""`managed` with bundles: what it takes from a deployed release, and when the full one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions, steps
from tests.support.minions import WHICH, Masterless, Web

pytest.importorskip("salt", reason="Salt does not run on this Python")

from relocate_core import check, pack

FULL, NEXT = "1", "2"
ENDING = ".tar.gz"


class Shop:
    """Bundles in a minion's file root, and a root to deploy them in.

    Attributes:
        minion: the minion.
        directory: where the bundles are.
        root: the directory of the releases.
    """

    def __init__(self, minion: Masterless, root: Path) -> None:
        self.minion = minion
        self.directory = minion.root / "shop"
        self.root = root

    def path(self, name: str) -> str:
        """What is at a name in the root."""
        return str(self.root / name)

    def managed(self, name: str, source: Any = None, **arguments: Any) -> dict[str, Any]:
        """Apply the state to a name in the root; by default from the file root."""
        source = f"salt://shop/{name}{ENDING}" if source is None else source
        return self.minion.single("managed", self.path(name), source=source, **arguments)

    def require(self, name: str) -> None:
        """See that a release is whole, and the right one."""
        assert Path(self.path(name), WHICH).read_text() == f"{name}\n"
        verdict = check(self.path(name), deep=True)
        assert verdict.ok, verdict.problems

    def change(self, name: str) -> None:
        """Change a file of a release in place, so that neither size nor time shows it."""
        ledger = json.loads(Path(self.path(name), ".relocation/ledger.json").read_text())
        file = next(
            file
            for file in sorted(Path(self.path(name), "lib").rglob("*.py"))
            if file.stat().st_size and str(file.relative_to(self.path(name))) not in ledger
        )
        status = file.stat()
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion with two bundles of one app in its file root, and the delta bundle between them."""
    made = Masterless(tmp_path_factory.mktemp("minion"))
    directory = made.root / "shop"
    directory.mkdir()
    build = steps.small(tmp_path_factory.mktemp("build") / "shop").path
    for name in (FULL, NEXT):
        Path(build, WHICH).write_text(f"{name}\n")
        pack(build, str(directory / f"{name}{ENDING}"))
    first = str(directory / f"{FULL}{ENDING}")
    pack(build, str(directory / f"{NEXT}.from-{FULL}{ENDING}"), delta_from=first)
    return made


@pytest.fixture
def shop(minion: Masterless, tmp_path: Path) -> Shop:
    """The app, with its first release deployed."""
    made = Shop(minion, tmp_path / "srv")
    assert made.managed(FULL)["result"] is True
    return made


@pytest.fixture
def served(minion: Masterless) -> Iterator[Web]:
    """The bundles on a web server, with their hashes in a file."""
    with minions.web() as site:
        for file in (minion.root / "shop").iterdir():
            site.pages[f"/{file.name}"] = file.read_bytes()
        sums = [
            f"{hashlib.sha256(page).hexdigest()}  {name[1:]}\n"
            for name, page in site.pages.items()
            if name.endswith(ENDING)
        ]
        site.pages["/SHA256SUMS"] = "".join(sums).encode()
        yield site


def source_of(done: dict[str, Any]) -> str:
    """What a deploy says that it was made of."""
    assert done["result"] is True, done
    return str(done["comment"].partition(" was deployed from ")[2].partition(": ")[0])


@pytest.mark.slow
def test_the_delta_bundle_is_found_by_its_name(shop: Shop) -> None:
    done = shop.managed(NEXT)
    assert source_of(done) == f"salt://shop/{NEXT}.from-{FULL}{ENDING}"
    assert "files taken from another release" in done["comment"]
    shop.require(NEXT)
    shop.require(FULL)
    assert not any("shop" in file for file in shop.minion.fetched()), "the archive is not kept"


def test_so_it_is_of_a_path(shop: Shop) -> None:
    done = shop.managed(NEXT, str(shop.directory / f"{NEXT}{ENDING}"))
    assert source_of(done) == str(shop.directory / f"{NEXT}.from-{FULL}{ENDING}")
    shop.require(NEXT)
    assert (shop.directory / f"{NEXT}.from-{FULL}{ENDING}").exists()


def test_there_is_nothing_to_do_afterwards_whatever_hash_the_full_one_has(shop: Shop) -> None:
    shop.managed(NEXT)
    digest = hashlib.sha256((shop.directory / f"{NEXT}{ENDING}").read_bytes()).hexdigest()
    for source_hash in (None, digest):
        again = shop.managed(NEXT, source_hash=source_hash)
        assert (again["result"], again["changes"]) == (True, {}), again


def test_without_the_earlier_release_the_full_one_is_taken(
    minion: Masterless, tmp_path: Path
) -> None:
    shop = Shop(minion, tmp_path / "srv")
    assert source_of(shop.managed(NEXT)) == f"salt://shop/{NEXT}{ENDING}"
    shop.require(NEXT)


def test_where_the_base_release_was_changed_the_full_one_is_taken_with_a_warning(
    shop: Shop,
) -> None:
    shop.change(FULL)
    done = shop.managed(NEXT)
    assert source_of(done) == f"salt://shop/{NEXT}{ENDING}"
    assert any("is not as it was deployed" in one for one in done["warnings"]), done
    shop.require(NEXT)


def test_a_damaged_delta_bundle_is_reported_and_not_used(shop: Shop) -> None:
    good = shop.directory / f"{NEXT}.from-{FULL}{ENDING}"
    kept = good.read_bytes()
    good.write_bytes(kept[: len(kept) // 2])
    try:
        done = shop.managed(NEXT)
    finally:
        good.write_bytes(kept)
    assert source_of(done) == f"salt://shop/{NEXT}{ENDING}"
    assert any("could not be used" in one for one in done["warnings"]), done
    shop.require(NEXT)


def test_a_hash_of_the_full_one_verifies_no_other(shop: Shop) -> None:
    digest = hashlib.sha256((shop.directory / f"{NEXT}{ENDING}").read_bytes()).hexdigest()
    done = shop.managed(NEXT, source_hash=f"sha256={digest}")
    assert source_of(done) == f"salt://shop/{NEXT}{ENDING}"


def test_a_file_of_hashes_beside_each_verifies_each(shop: Shop) -> None:
    done = shop.managed(NEXT, source_hash=f"salt://shop/{NEXT}{ENDING}.sha256")
    assert source_of(done) == f"salt://shop/{NEXT}.from-{FULL}{ENDING}"


def test_one_that_its_file_of_hashes_does_not_verify_is_not_used(shop: Shop) -> None:
    beside = shop.directory / f"{NEXT}.from-{FULL}{ENDING}.sha256"
    kept = beside.read_text()
    beside.write_text(f"{'0' * 64}  {NEXT}.from-{FULL}{ENDING}\n")
    try:
        done = shop.managed(NEXT, source_hash=f"salt://shop/{NEXT}{ENDING}.sha256")
    finally:
        beside.write_text(kept)
    assert source_of(done) == f"salt://shop/{NEXT}{ENDING}"
    assert len(done["warnings"]) == 1, done


@pytest.mark.parametrize("as_file", [True, False], ids=["in a file of hashes", "of its own"])
def test_it_may_be_named_by_release(shop: Shop, served: Web, as_file: bool) -> None:
    delta = f"{served.url}/{NEXT}.from-{FULL}{ENDING}"
    digest = hashlib.sha256(served.pages[f"/{NEXT}.from-{FULL}{ENDING}"]).hexdigest()
    one: Any = delta if as_file else {"source": delta, "source_hash": digest}
    source = {"full": f"{served.url}/{NEXT}{ENDING}", "from": {FULL: one, "0": delta}}
    done = shop.managed(NEXT, source, source_hash=f"{served.url}/SHA256SUMS")
    assert source_of(done) == delta
    assert not any(request.endswith(f"/{NEXT}{ENDING}") for request in served.requests)
    shop.require(NEXT)


def test_on_a_web_server_none_is_guessed(shop: Shop, served: Web) -> None:
    full = f"{served.url}/{NEXT}{ENDING}"
    done = shop.managed(NEXT, full, source_hash=f"{served.url}/SHA256SUMS")
    assert source_of(done) == full
    assert not any(".from-" in request for request in served.requests)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"full": "salt://a.tar", "to": {}}, "nothing else but from"),
        ({"full": "salt://a.tar", "from": ["b"]}, "nothing else but from"),
        ({"full": "salt://a.tar", "from": {"1": "b.tar"}}, "must be a URL or an absolute path"),
        ({"full": "salt://a.tar", "from": {"1": {}}}, "must be a URL or an absolute path"),
        (
            {"full": "salt://a.tar", "from": {"1": "https://example.org/b.tar"}},
            "annot verify https://example.org/b.tar",
        ),
    ],
    ids=["unknown key", "a list", "relative", "without source", "without hash"],
)
def test_wrong_sources_are_refused_in_one_sentence(shop: Shop, source: Any, words: str) -> None:
    for test in (True, False):
        done = shop.managed(NEXT, source, test=test)
        assert done["result"] is False, done
        assert words in done["comment"]
    assert not os.path.exists(shop.path(NEXT))


def test_second_links_are_made_where_they_are_asked_for(shop: Shop) -> None:
    done = shop.managed(NEXT, hard_links=True)
    assert "taken from another release" in done["comment"]
    shop.require(NEXT)
    shop.require(FULL)
    one, other = (
        {
            file.stat().st_ino
            for file in Path(shop.path(name), "lib").rglob("*.py")
            if not file.is_symlink()
        }
        for name in (FULL, NEXT)
    )
    assert len(one & other) > len(one) / 2, "those that name the release are its own"


def test_a_full_bundle_shares_with_the_deployed_release_too(shop: Shop, minion: Masterless) -> None:
    alone = shop.directory / f"3{ENDING}"
    shutil.copy(shop.directory / f"{NEXT}{ENDING}", alone)
    try:
        done = shop.managed("3", hard_links=True)
    finally:
        alone.unlink()
    assert source_of(done) == f"salt://shop/3{ENDING}"
    assert "taken from another release" in done["comment"]
    assert check(shop.path("3"), deep=True).ok


def test_a_release_that_was_repaired_still_gives_its_files(shop: Shop) -> None:
    for name in ("python", "python3"):
        link = Path(shop.path(FULL), "bin", name)
        if link.is_symlink() and "/" in os.readlink(link):
            link.unlink()
            link.symlink_to("/nowhere/bin/python3")
    assert shop.managed(FULL)["result"] is True
    assert source_of(shop.managed(NEXT)) == f"salt://shop/{NEXT}.from-{FULL}{ENDING}"
    shop.require(NEXT)


def test_the_active_release_is_asked_first(shop: Shop) -> None:
    shop.managed(NEXT)
    shop.minion.functions["virtualenv_tools.activate"](shop.path(NEXT))
    delta = shop.directory / f"3.from-{NEXT}{ENDING}"
    # The first one has no bundle of this name at all, so only the right order finds it.
    shutil.copy(shop.directory / f"{NEXT}{ENDING}", shop.directory / f"3{ENDING}")
    shutil.copy(shop.directory / f"{NEXT}{ENDING}", delta)
    try:
        done = shop.managed("3")
    finally:
        for file in (delta, shop.directory / f"3{ENDING}"):
            file.unlink()
    assert source_of(done) == f"salt://shop/3.from-{NEXT}{ENDING}"


def test_a_test_says_what_it_would_be_made_of_and_does_nothing(shop: Shop) -> None:
    before = environments.digest(str(shop.root))
    said = shop.managed(NEXT, test=True)
    assert said["result"] is None
    assert said["changes"] == {"release": {"old": None, "new": shop.path(NEXT)}}
    assert environments.digest(str(shop.root)) == before
