"""The headers that we write are those of `tarfile`, and every reader finds the member in them."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocate_core.archives.header import header

TYPES = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
WORDS = st.text("abc-._", min_size=1, max_size=60).filter(lambda word: word.strip("."))
NAMES = st.lists(st.one_of(WORDS, st.just("é"), st.just("\udcff")), min_size=1, max_size=9)
TARGETS = st.one_of(st.just("x" * 100), st.just("y" * 101), st.just("../é"), WORDS)


def as_tarfile(
    name: str, kind: str, numbers: tuple[int, int, int], target: str, form: int
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = TYPES[kind], target
    info.mode, info.size, info.mtime = numbers
    return info.tobuf(form, "utf-8", "surrogateescape")


@given(
    NAMES.map("/".join),
    st.sampled_from(sorted(TYPES)),
    st.sampled_from([0o644, 0o755, 0o777]),
    st.one_of(st.integers(0, 1 << 20), st.sampled_from([8**11 - 1, 8**11, 8**12])),
    st.integers(0, 8**11 - 1),
    TARGETS,
)
def test_any_member(name: str, kind: str, mode: int, size: int, mtime: int, target: str) -> None:
    size, target = (size, "") if kind == "file" else (0, target if kind == "link" else "")
    made = header(name, kind, mode, size, mtime, target)
    pax = as_tarfile(name, kind, (mode, size, mtime), target, tarfile.PAX_FORMAT)
    if len(made) == 512 and len(pax) > 512:
        assert made == as_tarfile(name, kind, (mode, size, mtime), target, tarfile.USTAR_FORMAT)
    else:
        assert made == pax
    with tarfile.open(fileobj=io.BytesIO(made + bytes(1024)), errors="surrogateescape") as tar:
        found = tar.next()
    assert found is not None
    assert (found.name, found.type, found.linkname) == (name, TYPES[kind], target)
    assert (found.mode, found.size, found.mtime) == (mode, size, mtime)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("a" * 100, 1),
        ("a" * 101, 3),
        ("a" * 155 + "/" + "b" * 100, 1),
        ("a" * 156 + "/" + "b" * 100, 3),
        ("a" * 155 + "/" + "b" * 101, 3),
        ("a/" * 49 + "b", 1),
        ("a/" * 127 + "b", 1),
        ("a/" * 128 + "b", 3),
    ],
)
def test_a_long_path_takes_one_block_where_it_can(name: str, blocks: int) -> None:
    assert len(header(name, "file", 0o644, 0, 0)) == blocks * 512
