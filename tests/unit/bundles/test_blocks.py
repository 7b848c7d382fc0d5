"""Where blocks end, and what is kept of them."""

from __future__ import annotations

import gzip
import tarfile
from contextlib import closing
from io import BytesIO
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocate_core.bundles.blocks import _MOST, LARGE, Body, Store, cut
from relocate_core.bundles.output import end, put
from relocate_core.bundles.tree import Entry
from relocate_core.virtualenvs.manifest import Row

SIZES = st.one_of(
    st.integers(0, 200_000), st.sampled_from([0, LARGE - 1, LARGE, LARGE + 1, 50 * LARGE])
)
TREES = st.lists(st.tuples(st.sampled_from(["directory", "file", "link"]), SIZES), max_size=300)


def entries(tree: list[tuple[str, int]]) -> list[Entry]:
    """Entries of these kinds and sizes, each with a path of its own."""
    return [
        Entry(f"lib/{at:04}", kind, 0o644, size=size if kind == "file" else 0)
        for at, (kind, size) in enumerate(tree)
    ]


@given(TREES)
def test_every_entry_is_in_one_block(tree: list[tuple[str, int]]) -> None:
    there = entries(tree)
    bounds = list(cut(there))
    assert list(chain.from_iterable(range(*one) for one in bounds)) == list(range(len(there)))
    for first, last in bounds:
        sizes = [entry.size for entry in there[first:last]]
        assert sum(sizes[:-1]) < _MOST + LARGE
        if max(sizes) >= LARGE:
            assert len(sizes) == 1, "a large file changes alone"


@given(TREES, st.data())
def test_a_change_moves_no_bounds_but_its_neighbours(
    tree: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Behind the next large file all is as it was, whatever comes before it."""
    there = [*entries(tree), Entry("lib/large", "file", 0o644, size=LARGE), *entries(tree)]
    at = data.draw(st.integers(0, len(tree)))
    changed = [*there[:at], Entry("lib/new", "file", 0o644, size=123_456), *there[at:]]
    before = {tuple(there[first:last]) for first, last in cut(there)}
    after = {tuple(changed[first:last]) for first, last in cut(changed)}
    beyond = [one for one in before if one[0] in there[len(tree) :]]
    assert len(after & before) >= len(set(beyond))


def test_most_blocks_stay_without_large_files() -> None:
    there = entries([("directory" if at % 9 == 0 else "file", 40_000) for at in range(9000)])
    changed = [*there[:50], Entry("lib/new", "file", 0o644, size=99_999), *there[50:]]
    before = {tuple(there[first:last]) for first, last in cut(there)}
    after = {tuple(changed[first:last]) for first, last in cut(changed)}
    assert len(before) > 50
    assert len(after - before) <= 4


def written(body: Body, rows: list[tuple[Row, bytes]], key: str = "") -> None:
    for row, data in rows:
        put([body], row, iter((data,)))
    body.finish(key)


def files(*names: str, size: int = 10) -> list[tuple[Row, bytes]]:
    return [(Row(name, "file", 0o644, size), name[:1].encode() * size) for name in names]


@pytest.mark.parametrize("form", ["gzip", "zstd", "tar"])
@pytest.mark.parametrize("size", [10, 3 << 20, 9 << 20])
def test_kept_blocks_give_the_same_bytes(form: str, size: int, tmp_path: Path) -> None:
    first, second = files("a", "b", size=size), files("c", "d")

    def packed(store: Store | None) -> bytes:
        with closing(Body(str(tmp_path), form, None, store)) as body:
            for rows in (first, second):
                key = store.key(row for row, _ in rows) if store else ""
                path = store.find(key) if store else ""
                if path:
                    body.add(path)
                else:
                    written(body, rows, key)
            end(body)
            return b"".join(body.pieces())

    whole = packed(None)
    if form != "tar":
        assert packed(Store(str(tmp_path), form, None)) == whole
        kept = list(tmp_path.iterdir())
        assert len(kept) == 2
        assert packed(Store(str(tmp_path), form, None)) == whole
        data = bytearray(kept[0].read_bytes())
        data[len(data) // 2] ^= 1
        kept[0].write_bytes(data)
        assert packed(Store(str(tmp_path), form, None)) == whole, "a damaged block is made again"
    if form == "gzip":
        whole = gzip.decompress(whole)
    if form != "zstd":
        with tarfile.open(fileobj=BytesIO(whole)) as tar:
            assert tar.getnames() == ["a", "b", "c", "d"]


def test_a_block_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path), "gzip", None)
    rows = files("a", "b", "c", size=3000)
    body = Body(str(tmp_path), "gzip", None, store)
    key = store.key(row for row, _ in rows)
    written(body, rows, key)
    end(body)
    assert b"".join(body.pieces())
    body.close()
    path = Store(str(tmp_path), "gzip", None).find(key)
    found = []
    for row, pieces in store.read(path, [row for row, _ in rows]):
        if row.path != "b":  # which nobody takes
            found.append((row, b"".join(pieces)))
    assert found == [rows[0], rows[2]]


def test_another_level_or_row_is_another_block(tmp_path: Path) -> None:
    row = Row("a", "file", 0o644, 3, "0" * 64)
    keys = {
        Store(str(tmp_path), form, level).key(rows)
        for form, level in (("gzip", None), ("gzip", 1), ("zstd", None), ("zstd", 3))
        for rows in ([row], [row._replace(mode=0o755)], [row._replace(path="b")], [row, row])
    }
    assert len(keys) == 16
