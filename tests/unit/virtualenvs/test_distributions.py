"""The RECORDs of installed distributions, and the paths that they list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relocate_core.system import files
from relocate_core.virtualenvs.distributions import listed_path, records

SITE = "lib/python3.12/site-packages"


def test_every_record_that_is_there(tmp_path: Path) -> None:
    site = tmp_path / SITE
    for name, content in (("b-1.dist-info", b"b"), ("a-1.dist-info", b"a"), ("c.egg-info", b"c")):
        (site / name).mkdir(parents=True)
        (site / name / "RECORD").write_bytes(content)
    (site / "none-1.dist-info").mkdir()
    (site / "file-1.dist-info").write_text("not a directory")
    root = files.open_root(str(tmp_path))
    try:
        assert list(records(root, (SITE,))) == [
            (f"{SITE}/a-1.dist-info/RECORD", b"a"),
            (f"{SITE}/b-1.dist-info/RECORD", b"b"),
        ]
    finally:
        os.close(root)


@pytest.mark.parametrize(
    ("row", "path"),
    [
        (b"pkg/__init__.py", f"{SITE}/pkg/__init__.py"),
        (b"../../../bin/tool", "bin/tool"),
        (b"../../../../outside", "../outside"),
        (b"/etc/passwd", "/etc/passwd"),
        (b"caf\xff.py", f"{SITE}/caf\udcff.py"),
    ],
)
def test_what_a_row_lists(row: bytes, path: str) -> None:
    assert listed_path(f"{SITE}/pkg-1.dist-info/RECORD", row) == path
