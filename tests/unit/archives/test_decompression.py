"""Decompressing gzip: by zlib, or by the package isal where it is installed, with one result."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relocate_core.archives import decompression
from relocate_core.archives.decompression import Stream
from relocate_core.archives.tar import Refused

CONTENT = b"".join(b"line %d of many\n" % number for number in range(4000)) + bytes(3000)


def found(packed: bytes) -> bytes | str:
    """What a file unpacks to, or why it is refused, but for the words of the library."""
    with tempfile.TemporaryFile() as file:
        file.write(packed)
        file.seek(0)
        with Stream(file.fileno(), {}, 1 << 30, 1 << 20) as stream:
            try:
                return b"".join(stream.rest())
            except Refused as error:
                return str(error).partition(" (")[0]


def found_without_isal(packed: bytes) -> bytes | str:
    """The same by zlib."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "isal.isal_zlib", None)
        assert decompression._inflater() is zlib.decompressobj
        return found(packed)


def test_isal_is_taken_where_it_is_installed() -> None:
    isal = pytest.importorskip("isal.isal_zlib", reason="the package isal is not installed")
    assert decompression._inflater() is isal.decompressobj


@pytest.mark.parametrize("members", [1, 3, 70])
def test_several_members_in_a_row(members: int) -> None:
    step = len(CONTENT) // members + 1
    parts = [CONTENT[at : at + step] for at in range(0, len(CONTENT), step)]
    packed = b"".join(map(gzip.compress, parts))
    assert found(packed) == CONTENT
    assert found(packed + bytes(5000)) == CONTENT


FLAGS = 3
SECOND = len(gzip.compress(CONTENT))
PACKED = gzip.compress(CONTENT) + gzip.compress(os.urandom(300) + CONTENT[:500])


@given(st.integers(0, len(PACKED) - 1), st.integers(0, 7), st.booleans())
def test_isal_and_zlib_agree_on_what_is_damaged(at: int, bit: int, cut: bool) -> None:
    pytest.importorskip("isal.isal_zlib", reason="the package isal is not installed")
    # Of a member's flags, isal ignores the reserved bits that zlib refuses; nothing else differs.
    assume(cut or bit < 5 or at not in (FLAGS, SECOND + FLAGS))
    packed = PACKED[:at] if cut else _flipped(PACKED, at, bit)
    assert found(packed) == found_without_isal(packed)


def _flipped(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)
