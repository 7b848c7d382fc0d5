"""The three ways to decompress zstd behave alike, whatever is made of a stream."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import pytest

from relocate_core.archives import zstd
from relocate_core.archives.tar import Refused

SKIPPABLE = b"\x53\x2a\x4d\x18\x05\0\0\0hello"
PLAIN = os.urandom(300_000) + bytes(2_000_000)


def compressed(*options: str, tool: str = "zstd") -> bytes:
    """The plain text, compressed by a program."""
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not on this machine")
    done = subprocess.run([program, "-qc", *options], input=PLAIN, capture_output=True, check=True)
    return done.stdout


@pytest.fixture(params=["compression.zstd", "zstandard", "the program"])
def decompressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the three, and none of the others; `backports.zstd` is the first one for old
    Pythons."""
    found = None
    if request.param == "the program":
        if shutil.which("zstd") is None:
            pytest.skip("zstd is not on this machine")
    else:
        for name in (request.param, request.param.replace("compression", "backports")):
            with suppress(ImportError):
                found = found or importlib.import_module(name)
        if found is None:
            pytest.skip(f"{request.param} is not in this Python")

    def imported(name: str) -> Any:
        return found if name == request.param else None

    monkeypatch.setattr(zstd, "_imported", imported)


def decompressed(data: bytes, piece: int = 5000) -> bytes:
    file = io.BytesIO(data)
    return b"".join(zstd.unpacked(file.read(piece), lambda: file.read(piece)))


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize("piece", [1, 4097, 1 << 20])
@pytest.mark.parametrize("options", [(), ("--no-check",), ("--no-content-size", "-19")])
def test_a_stream(options: tuple[str, ...], piece: int) -> None:
    data = compressed(*options)
    assert zstd.begins(data)
    assert decompressed(data, piece) == PLAIN


@pytest.mark.usefixtures("decompressor")
def test_what_pzstd_writes() -> None:
    data = compressed("-p", "4", tool="pzstd")
    assert not data.startswith(compressed()[:4]), "it begins with a skippable frame"
    assert zstd.begins(data)
    assert decompressed(data) == PLAIN


@pytest.mark.usefixtures("decompressor")
def test_skippable_frames_and_zeros() -> None:
    data = compressed()
    whole = SKIPPABLE + data + SKIPPABLE + SKIPPABLE + data + SKIPPABLE + bytes(1000)
    assert decompressed(whole, 7) == PLAIN + PLAIN


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 30, 1000])
def test_a_stream_that_is_cut(cut: int) -> None:
    with pytest.raises(Refused, match="ends too soon"):
        decompressed(compressed()[:-cut])


@pytest.mark.usefixtures("decompressor")
def test_a_skippable_frame_that_is_cut() -> None:
    with pytest.raises(Refused, match="ends too soon"):
        decompressed(compressed() + SKIPPABLE[:-1])


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize("behind", [b"x", bytes(700) + b"x", b"\x28\xb5\x2f", SKIPPABLE[:3]])
def test_something_behind_the_last_frame(behind: bytes) -> None:
    with pytest.raises(Refused, match="follows the end"):
        decompressed(compressed() + behind)


@pytest.mark.usefixtures("decompressor")
def test_a_wrong_checksum() -> None:
    data = compressed()
    # Of the libraries, `Stream` makes a refusal of their own errors.
    with pytest.raises(Exception, match="checksum"):
        decompressed(data[:-2] + bytes(byte ^ 1 for byte in data[-2:]))


def test_many_small_blocks_are_walked_in_linear_time() -> None:
    """A bomb of blocks that are one byte, many times."""
    block, last = (((1 << 17) << 3 | kind).to_bytes(3, "little") + b"a" for kind in (2, 3))
    bomb = b"\x28\xb5\x2f\xfd\0\x58" + block * 300_000 + last
    file = io.BytesIO(bomb)
    seen = sum(map(len, zstd._Frames(b"", lambda: file.read(1 << 20))))
    assert seen == len(bomb)
