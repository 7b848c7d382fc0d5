"""A delta and its base are the whole, byte for byte, and nothing else is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocate_core.archives.tar import DIRECTORY, FILE, LINK, Refused
from relocate_core.bundles import delta
from relocate_core.virtualenvs import manifest
from relocate_core.virtualenvs.manifest import Row
from tests.unit.virtualenvs.test_manifest import (
    HEAD,
    ROWS,
    directory_modes,
    file_modes,
    hashes,
    more,
    names,
    sizes,
    targets,
    trees,
)


@st.composite
def changed(draw: Any, rows: list[Row]) -> list[Row]:
    """A tree that was made from another one."""
    found: list[Row] = []
    gone: list[str] = []
    for row in rows:
        if any(row.path.startswith(f"{path}/") for path in gone):
            continue
        what = draw(st.sampled_from(["same"] * 4 + ["gone", "content", "kind"]))
        if what == "same":
            found.append(row)
            continue
        gone.append(row.path)
        if what == "content" and row.kind == FILE:
            found.append(row._replace(sha256=draw(hashes), size=draw(sizes)))
        elif what == "kind":
            kind = draw(st.sampled_from([FILE, LINK, DIRECTORY]))
            mode = draw(directory_modes if kind == DIRECTORY else file_modes)
            if kind == LINK:
                found.append(Row(row.path, LINK, target=draw(targets)))
            elif kind == DIRECTORY:
                found.append(Row(row.path, DIRECTORY, mode))
                inner = draw(names)
                found.append(Row(f"{row.path}/{inner}", FILE, 0o644, draw(sizes), draw(hashes)))
            else:
                found.append(Row(row.path, FILE, mode, draw(sizes), draw(hashes)))
    paths = {row.path for row in found}
    for row in draw(trees(1)):
        top = row.path.partition("/")[0]
        if row.path not in paths and (top == row.path or top not in paths):
            found.append(row)
    known = {row.path: row for row in found}
    # What was in a directory that is none any more is gone.
    kept = [
        row
        for row in known.values()
        if all(above not in known or known[above].kind == DIRECTORY for above in _above(row.path))
    ]
    return sorted(kept, key=lambda row: row.key)


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


@more
@given(st.data())
def test_a_difference_and_its_base_are_the_whole(data: st.DataObject) -> None:
    """For any two trees; and what is written of them is what a full bundle has."""
    old = data.draw(trees())
    new = data.draw(changed(old))
    base = {row.path: row for row in old}
    rows, removed = delta.difference([row.line().encode() for row in old], new)
    paths = {row.path for row in new}
    assert removed == [path for path in base if path not in paths]
    assert [row._replace(source="") for row in rows] == [
        row for row in new if base.get(row.path) != row
    ]
    contents = {row.sha256 for row in old if row.kind == FILE}
    assert [bool(row.source) for row in rows] == [row.sha256 in contents for row in rows]
    for row in rows:
        assert not row.source or base[row.source].sha256 == row.sha256
        if row.path in base and base[row.path].sha256 == row.sha256:
            assert row.source in ("", row.path)
    merged = list(delta.merged(old, removed, rows))
    assert [row._replace(source="") for row in merged] == new
    for row in merged:
        if row.source and row.kind == FILE:
            there = base[row.source]
            assert (there.kind, there.size) == (FILE, row.size) or there.sha256 == row.sha256
    text, digest = manifest.document(HEAD, new)
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(f"{directory}/{manifest.PLACE}")
        root = os.open(directory, os.O_RDONLY)
        try:
            given_on = list(delta.write(root, digest, HEAD, iter(merged), None))
        finally:
            os.close(root)
        assert given_on == merged
        assert Path(directory, manifest.NAME).read_bytes() == text
        assert os.stat(f"{directory}/{manifest.NAME}").st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_base_that_is_out_of_order_is_refused(kept: int) -> None:
    """Whether the new bundle has none of it, some of it, or what is in the wrong place."""
    paths = ("a", "d", "c", "b")
    old = [Row(path, FILE, 0o644, 1, "0" * 64).line().encode() for path in paths]
    new = [Row(path, FILE, 0o644, 1, "0" * 64) for path in sorted(paths[:kept])]
    with pytest.raises(Refused, match=r"its manifest has [bc] in the wrong place"):
        delta.difference(old, new)


def test_another_whole_is_refused(tmp_path: Path) -> None:
    """By the digest, when the last row is written."""
    (tmp_path / manifest.PLACE).mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Refused, match="another whole"):
            list(delta.write(root, "0" * 64, HEAD, iter(ROWS), None))
    finally:
        os.close(root)
