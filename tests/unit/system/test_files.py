"""Digests of files, and the cursor that opens one directory after the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocate_core.system import files


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    descriptor = files.open_root(str(tmp_path))
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_digest_is_of_all_pieces(root: int, tmp_path: Path, size: int, algorithm: str) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert files.digest_of(root, "file", algorithm) == hashlib.new(algorithm, data).digest()


def test_a_digest_is_of_what_is_left_of_an_open_file(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"head and rest")
    file = files.open_file(root, "file")
    try:
        os.read(file, 5)
        assert files.digest(file) == hashlib.sha256(b"and rest").digest()
    finally:
        os.close(file)


def test_no_digest_through_a_symlink(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links"):
        files.digest_of(root, "link")


def test_the_cursor_opens_what_is_asked_and_leaves_nothing_open(root: int, tmp_path: Path) -> None:
    for path in ("a/b/c", "a/b/d", "e"):
        (tmp_path / path).mkdir(parents=True)
    opened = len(os.listdir("/proc/self/fd"))
    cursor = files.DirectoryCursor(root)
    for path in ("", "a/b/c", "a/b/d", "e", "a", "a/b/c", ""):
        status = os.fstat(cursor.open(path))
        assert os.path.samestat(status, os.stat(tmp_path / path))
    (tmp_path / "way").symlink_to("a")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        cursor.open("way/b")
    cursor.close()
    assert len(os.listdir("/proc/self/fd")) == opened
