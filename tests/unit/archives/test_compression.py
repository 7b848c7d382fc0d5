"""What is packed is read by everybody, and is the same whatever the cores and the pieces."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relocate_core.archives import compression
from relocate_core.archives.compression import compress, form_of, require
from relocate_core.archives.decompression import Stream
from relocate_core.errors import InvalidPath, TreeError
from tests.support.fuzz import examples

PIECE = compression._PIECE


def some(size: int) -> bytes:
    """Data that compresses about as well as a virtualenv does."""
    words = random.Random(1)
    text = [
        b"%d self.%x = None\n" % (words.randrange(99), words.getrandbits(40)) for _ in range(999)
    ]
    data = b"".join(words.choices(text, k=size // 20 + 1))
    return (data * (1 + size // max(1, len(data))))[:size]


def packed(data: bytes, form: str, level: int | None = None) -> bytes:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        compress(source, target, form, level)
        target.seek(0)
        return target.read()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data is as much as takes all cores."""
    monkeypatch.setattr(compression, "_LARGE", 0)


def unpacked(data: bytes) -> bytes:
    file = os.memfd_create("archive")
    try:
        os.write(file, data)
        os.lseek(file, 0, 0)
        with Stream(file, {}, 1 << 40, 1 << 20) as stream:
            return b"".join(stream.rest())
    finally:
        os.close(file)


@pytest.fixture(params=["library", "program"])
def zstd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to pack with zstd that this machine has."""
    if request.param == "library":
        if compression._library() is None:
            pytest.skip("this Python has no package for zstd")
        return
    program_only(monkeypatch)


def program_only(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not on this machine")
    monkeypatch.setattr(compression, "_library", lambda: None)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.tar", "tar"),
        ("a.tar.gz", "gzip"),
        ("/b.c/a.tgz", "gzip"),
        ("a.tar.zst", "zstd"),
        ("a.tzst", "zstd"),
    ],
)
def test_the_name_tells_the_form(name: str, form: str) -> None:
    assert form_of(name) == form


@pytest.mark.parametrize("name", ["a", "a.gz", "a.zst", "a.tar.xz", "a.tar.GZ", "tar", ""])
def test_another_ending_is_refused(name: str) -> None:
    with pytest.raises(InvalidPath, match=r"\.tar, \.tar\.gz"):
        form_of(name)


@pytest.mark.parametrize(
    ("form", "level"), [("gzip", 0), ("gzip", 10), ("zstd", 0), ("zstd", 20), ("tar", 1)]
)
def test_a_level_that_the_form_has_not_is_refused(form: str, level: int) -> None:
    with pytest.raises(InvalidPath, match="level"):
        packed(b"", form, level)


SIZES = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 17]


@pytest.mark.parametrize("size", SIZES)
def test_gzip_is_read_by_python_and_by_the_program(size: int) -> None:
    data = some(size)
    made = packed(data, "gzip")
    assert gzip.decompress(made) == data
    assert subprocess.run(["gzip", "-dc"], input=made, capture_output=True).stdout == data


@pytest.mark.parametrize("level", [1, 5, 9])
@pytest.mark.parametrize("size", SIZES)
def test_gzip_is_the_same_whatever_the_cores(
    size: int, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = packed(some(size), "gzip", level)
    monkeypatch.setattr(compression, "_LARGE", 0)
    for cores in (1, 2, 7):
        monkeypatch.setattr(compression, "usable_cores", lambda cores=cores: cores)
        assert packed(some(size), "gzip", level) == once


def test_gzip_says_nothing_of_when_and_where() -> None:
    assert packed(b"x", "gzip")[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


def test_a_block_knows_the_end_of_the_one_before() -> None:
    noise = random.Random(2).randbytes(20 << 10)
    data = some(PIECE - len(noise)) + noise + noise
    assert len(packed(data, "gzip")) < len(packed(data[: -len(noise)], "gzip")) + 1000


def test_several_streams_in_a_row_are_one(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size = 3 * PIECE
        tar.addfile(member, io.BytesIO(some(3 * PIECE)))
    data = inner.getvalue()
    for form, ending in (("gzip", "gz"), ("zstd", "zst")):
        if form == "zstd" and not (compression._library() or shutil.which("zstd")):
            continue
        archive = tmp_path / f"a.tar.{ending}"
        with open(archive, "wb") as file:
            file.writelines(
                packed(data[at : at + PIECE + 512], form) for at in range(0, len(data), PIECE + 512)
            )
        assert unpacked(archive.read_bytes()) == data
        if form == "gzip":
            subprocess.run(["tar", "-xzf", archive, "-C", tmp_path], check=True)
            assert (tmp_path / "a").read_bytes() == some(3 * PIECE)


def test_small_data_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(compression, "ThreadPoolExecutor")
    assert gzip.decompress(packed(some(PIECE), "gzip")) == some(PIECE)


def test_only_a_few_pieces_are_held(monkeypatch: pytest.MonkeyPatch, large: None) -> None:
    monkeypatch.setattr(compression, "usable_cores", lambda: 2)
    taken = given = 0

    class Counting(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            nonlocal taken
            taken += 1
            return len(data)

    class Given(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal given
            given += 1
            assert given - taken <= 2 + 2 + 1
            return super().read(size)

    compress(Given(some(20 * PIECE)), Counting(), "gzip")
    assert given == 21


def test_a_tar_is_written_as_it_is() -> None:
    assert packed(some(99), "tar") == some(99)


@pytest.mark.parametrize("form", ["tar", "gzip", "zstd"])
@pytest.mark.parametrize("all_cores", [False, True])
def test_a_full_disk_is_told(form: str, all_cores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "zstd" and not (compression._library() or shutil.which("zstd")):
        pytest.skip("nothing on this machine packs with zstd")
    monkeypatch.setattr(compression, "_LARGE", 0 if all_cores else 1 << 40)
    threads = len(os.listdir("/proc/self/task"))
    with open("/dev/full", "r+b", 0) as file, tempfile.TemporaryFile() as source:
        source.write(some(20 * PIECE))
        with pytest.raises((OSError, TreeError), match="No space"):
            compress(source, file, form)
    assert len(os.listdir("/proc/self/task")) <= threads


@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=3000), st.booleans(), st.integers(1, 9))
def test_whatever_goes_in_comes_out(data: bytes, all_cores: bool, level: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_PIECE", 100)
        patch.setattr(compression, "_LARGE", 0 if all_cores else 1 << 40)
        assert gzip.decompress(packed(data, "gzip", level)) == data


# --- zstd -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("zstd")
@pytest.mark.parametrize("size", [0, 1, PIECE, 9 * PIECE + 17])
def test_zstd_is_read_by_the_program(size: int) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not on this machine")
    made = packed(some(size), "zstd") + packed(b"more", "zstd")
    done = subprocess.run(["zstd", "-dc"], input=made, capture_output=True)
    assert done.stdout == some(size) + b"more"


@pytest.mark.usefixtures("zstd")
@pytest.mark.parametrize("size", [10, 9 * PIECE])
@pytest.mark.parametrize("all_cores", [False, True])
def test_zstd_is_the_same_whatever_the_cores_and_what_was_before(
    size: int, all_cores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "_LARGE", 0 if all_cores else 1 << 40)
    made = set()
    for cores in (1, 4, 2):
        monkeypatch.setattr(compression, "usable_cores", lambda cores=cores: cores)
        made.add(packed(some(size), "zstd", 3))
        assert packed(some(3 * size)[size:], "zstd", 3)
    assert len(made) == 1


def test_without_zstd_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_library", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidPath, match="install the program zstd"):
        require("zstd", None)


def stand_in(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named zstd in front of all others."""
    program = directory / "zstd"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(compression, "_library", lambda: None)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


def children() -> set[str]:
    """This process's children; other tests' daemons among them."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(file.read().split())


@pytest.fixture
def no_child_left() -> Iterator[None]:
    """Afterwards there is no child that was not there before."""
    before = children()
    yield
    assert children() - before == set()


@pytest.mark.usefixtures("no_child_left")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo zstd: no luck today >&2; exit 3", "no luck today"),
        ("kill -9 $$", "signal 9"),
        ("exit 0", "it ended too soon"),
        ("head -c 100000 >/dev/null; exit 7", "code 7"),
        ("exec <&-; yes no | head -c 200000 >&2; exit 1", "no"),
    ],
)
def test_a_program_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TreeError, match=said) as caught:
        packed(some(8 * PIECE), "zstd")
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_pages_name_the_default_levels() -> None:
    gzip_level, zstd_level = compression._DEFAULTS["gzip"], compression._DEFAULTS["zstd"]
    top = Path(__file__).parents[3]
    page, module = (top / "docs/bundles.md").read_text(), top / "_modules/virtualenv_tools.py"
    assert f"1 to 9 for gzip ({gzip_level}), 1 to 19 for zstd ({zstd_level})" in page
    said = f"1 to 9 for gzip, by default {gzip_level}; 1 to 19 for zstd, by default {zstd_level}."
    assert module.read_text().count(said) == 2
