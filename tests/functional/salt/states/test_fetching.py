"""What cannot be fetched is reported in one sentence, with what it was, and why."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relocate_core import pack
from tests.support import minions
from tests.support.minions import Masterless, Web
from tests.support.pythons import Pair
from tests.support.sites import free_port
from tests.support.steps import small

pytest.importorskip("salt", reason="Salt does not run on this Python")

from salt.exceptions import CommandExecutionError

SEE = "see that it exists, and that this minion may read it"
NO_HASH = "0" * 64


@pytest.fixture(scope="module")
def site() -> Iterator[Web]:
    """A web server on which one page after the other is missing or broken."""
    with minions.web() as found:
        for page in ("/broken.tar", "/broken.sha256", "/broken.sig"):
            found.answers[page] = [500]
        found.pages["/app.tar"] = b""
        yield found


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    made = Masterless(tmp_path_factory.mktemp("minion"))
    minions.pack(Path(made.root, "app.tar"), "1")
    return made


DEAD = f"http://127.0.0.1:{free_port()}"
REASONS = {
    "WEB/none": "HTTP 404: Not Found",
    "WEB/broken": "HTTP 500: Internal Server Error",
    "DEAD/none": "Connection refused",
    "salt://none": "",
}


def at(site: Web, place: str) -> str:
    """The URL of a place."""
    return place.replace("WEB", site.url).replace("DEAD", DEAD)


@pytest.mark.parametrize("place", REASONS)
@pytest.mark.parametrize("what", ["archive", "hash", "signature", "python"])
def test_what_was_to_be_fetched_and_why_it_was_not(
    what: str, place: str, site: Web, minion: Masterless, tmp_path: Path
) -> None:
    ending = {"archive": ".tar", "hash": ".sha256", "signature": ".sig", "python": ".tar"}[what]
    where = at(site, place) + ending
    arguments: dict[str, Any] = {
        "archive": {"source": where, "skip_verify": True},
        "hash": {"source": "salt://app.tar", "source_hash": where},
        "signature": {"source": "salt://app.tar", "signature": where},
        "python": {
            "source": "salt://app.tar",
            "python": {"source": where, "source_hash": NO_HASH},
        },
    }[what]
    if what == "signature" and "gpg.verify" not in minion.functions:
        pytest.skip("Salt's module gpg is not usable here")
    answer = minion.single("managed", f"{tmp_path}/srv/app/1", **arguments)
    assert answer["result"] is False
    assert where in answer["comment"]
    assert REASONS[place] in answer["comment"]
    if (what, place) != ("hash", "salt://none"):  # that is Salt's own sentence
        assert answer["comment"].endswith(f"; {SEE}.") or answer["comment"].endswith(f": {SEE}.")
    assert not os.path.lexists(f"{tmp_path}/srv/app/1")


@pytest.mark.parametrize("place", REASONS)
@pytest.mark.parametrize("function", ["unpack", "hash", "diff"])
def test_a_function_that_fetches(
    function: str, place: str, site: Web, minion: Masterless, tmp_path: Path
) -> None:
    where = at(site, place) + (".sha256" if function == "hash" else ".tar")
    release = f"{tmp_path}/srv/app/1"
    call = {
        "unpack": ("unpack", where, release),
        "hash": ("unpack", "salt://app.tar", release, where),
        "diff": ("diff", where, where),
    }[function]
    with pytest.raises(CommandExecutionError) as caught:
        minion.functions[f"virtualenv_tools.{call[0]}"](*call[1:])
    assert where in str(caught.value)
    assert REASONS[place] in str(caught.value)
    assert minions.sentence(str(caught.value))


def test_a_delta_bundle_gives_way_to_the_full_one(
    site: Web, minion: Masterless, tmp_path: Path
) -> None:
    bundle = pack(str(small(tmp_path / "build").path), str(tmp_path / "0.tar")).archive
    for place, reason in REASONS.items():
        shutil.rmtree(tmp_path / "srv", ignore_errors=True)
        assert minion.single("managed", f"{tmp_path}/srv/app/0", source=bundle)["result"] is True
        where = f"{at(site, place)}.tar"
        answer = minion.single(
            "managed",
            f"{tmp_path}/srv/app/1",
            source={"full": "salt://app.tar", "from": {"0": where}},
            skip_verify=True,
        )
        assert answer["result"] is True
        (warning,) = answer["warnings"]
        assert warning.startswith(f"{where} could not be used, falling back to the full bundle: ")
        assert f"annot fetch {where}: " in warning
        assert reason in warning
        assert warning.endswith(f"; {SEE}.")


def test_none_of_several_sources(site: Web, minion: Masterless, tmp_path: Path) -> None:
    places = [f"{site.url}/broken.tar", "salt://none.tar", f"{DEAD}/none.tar"]
    answer = minion.single("managed", f"{tmp_path}/app/1", source=places, skip_verify=True)
    assert answer["result"] is False
    assert answer["comment"].startswith(f"None of {', '.join(places)} was found: see that one of")


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([404], ": cannot fetch URL: Error: HTTP 404: Not Found"),
        ([500], ": cannot fetch URL: Error: HTTP 500: Internal Server Error"),
    ],
)
def test_the_python_that_a_release_was_built_on(
    answers: list[int],
    words: str,
    site: Web,
    minion: Masterless,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pair = Pair.make(tmp_path_factory.mktemp("pair"))
    app = pair.naming(tmp_path / "web.tar")
    site.pages["/web.tar"] = Path(app).read_bytes()
    site.answers[f"/{pair.file}"] = answers
    answer = minion.single(
        "managed",
        f"{tmp_path}/srv/app/1",
        source=f"{site.url}/web.tar",
        source_hash=hashlib.sha256(Path(app).read_bytes()).hexdigest(),
    )
    assert answer["result"] is False
    words = words.replace("URL", f"{site.url}/{pair.file}")
    assert (
        f"Cannot deploy {site.url}/web.tar, as it was built on the Python of {pair.file}{words}"
        in answer["comment"]
    )
    assert answer["comment"].endswith(f"; {SEE}, or give python.")
