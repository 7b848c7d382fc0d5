"""Which names of an archive are taken, and where among them the virtualenv is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relocate_core.archives.tar import DIRECTORY, FILE, LINK, Refused
from relocate_core.bundles.names import Names, folds_names


def names(*paths: str, folds: bool = False) -> Names:
    """These, of which those that end in a slash are directories."""
    made = Names(100, 4000, folds)
    for path in paths:
        plain = path.rstrip("/")
        made.claim(plain, plain.rpartition("/")[2], DIRECTORY if path != plain else FILE)
    return made


def test_a_name_is_taken_once() -> None:
    known = names("a")
    assert not known.claim("a", "a", FILE)
    with pytest.raises(Refused, match="twice, as a file and as a link"):
        known.claim("a", "a", LINK)


@pytest.mark.parametrize("twin", ["CRYPTO", "Crypto", "crypt\u00f6", "crypto\u0301"])
def test_twins(twin: str) -> None:
    """Whether they are, is up to the file system."""
    other = {"crypt\u00f6": "crypto\u0308", "crypto\u0301": "crypt\u00f3"}.get(twin, "crypto")
    assert names(twin).claim(other, other, FILE)
    with pytest.raises(Refused, match="only in case or in the form of its accents"):
        names(twin, folds=True).claim(other, other, FILE)


def test_whether_this_file_system_folds_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert folds_names(directory) == (tmp_path / "A").exists()
    finally:
        os.close(directory)
    assert os.listdir(tmp_path) == ["a"], "nothing is left"


@pytest.mark.parametrize(
    ("paths", "top"),
    [
        (("pyvenv.cfg",), ""),
        (("app/", "app/pyvenv.cfg"), "app"),
        (("srv/", "srv/app/", "srv/app/bin/", "srv/app/bin/activate"), "srv/app"),
        ((".DS_Store", "._app", "__MACOSX/", "app/", "app/pyvenv.cfg"), "app"),
        (("srv/", "srv/._app", "srv/app/", "srv/app/pyvenv.cfg"), "srv/app"),
    ],
)
def test_where_the_virtualenv_is(paths: tuple[str, ...], top: str) -> None:
    assert names(*paths).top() == top


@pytest.mark.parametrize("paths", [("app/", "app/x"), ("app/", "app/pyvenv.cfg", "x"), ("._app",)])
def test_where_there_is_none(paths: tuple[str, ...]) -> None:
    with pytest.raises(Refused, match="contains no virtualenv"):
        names(*paths).top()
