"""Archives of other tools: GNU tar, bsdtar, venv-pack and pzstd make them, and they are taken.

Each test is skipped by the name of its tool where that is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from relocate_core.bundles.pack import pack
from relocate_core.bundles.unpack import Unpacked, unpack
from relocate_core.errors import BadArchive
from relocate_core.releases.publish import publish
from tests.support import archives
from tests.support.environments import make

SIZE = (20 << 20) + 2
YEAR_1960 = -315_619_200
GNU_FORMS = {
    "gnu": ("--format=gnu",),
    **{f"pax-{v}": ("--format=pax", f"--sparse-version={v}") for v in ("0.0", "0.1", "1.0")},
}


def program(name: str) -> str:
    """A program's path; skips the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on this machine")
    return found


def run(*command: str | os.PathLike[str]) -> None:
    subprocess.run([os.fspath(part) for part in command], check=True, capture_output=True)


def unpacked(archive: Path, target: Path) -> Unpacked:
    """Unpack an archive into a new directory."""
    target.mkdir()
    directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(str(archive), directory)
    finally:
        os.close(directory)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Something that is taken for a virtualenv."""
    made = tmp_path / "tree"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "activate").write_text(f'VIRTUAL_ENV="{made}"\n')
    (made / "pyvenv.cfg").write_text("home = /usr/bin\n")
    return made


# --- sparse files ---------------------------------------------------------------------------------


@pytest.fixture
def holey(tree: Path) -> Path:
    """A tree with files that have one hole, many, only a hole, and one at the end."""
    files = {
        "model.bin": ((0, os.urandom(4096)), (SIZE - 2, b"x\n")),
        "many.bin": tuple((65536 * n, b"part %d" % n) for n in range(60)),
        "end.bin": ((0, b"beginning"),),
        "zeros.bin": (),
    }
    for name, parts in files.items():
        with open(tree / name, "wb") as file:
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
            file.truncate(max(SIZE, file.tell()))
    if os.stat(tree / "model.bin").st_blocks * 512 >= SIZE:
        pytest.skip("this file system has no holes")
    return tree


def require_same(source: Path, target: Path) -> None:
    for path in source.glob("*.bin"):
        ours, theirs = (target / path.name).stat(), path.stat()
        assert ours.st_size == theirs.st_size
        assert ours.st_blocks * 512 < SIZE // 2, "a hole takes no space"
        digests = [hashlib.sha256(one.read_bytes()).digest() for one in (path, target / path.name)]
        assert digests[0] == digests[1], path.name


@pytest.mark.parametrize("form", GNU_FORMS)
def test_sparse_files_of_gnu_tar(form: str, holey: Path, tmp_path: Path) -> None:
    archive = tmp_path / "sparse.tar"
    run(program("tar"), "-S", *GNU_FORMS[form], "-C", holey, "-cf", archive, ".")
    assert archive.stat().st_size < SIZE, "it has looked for holes"
    unpacked(archive, tmp_path / "out")
    require_same(holey, tmp_path / "out")


@pytest.mark.parametrize("compression", ["", "-z"])
def test_sparse_files_of_bsdtar(compression: str, holey: Path, tmp_path: Path) -> None:
    """It looks for holes without being asked."""
    archive = tmp_path / "sparse.tar"
    options = [compression] if compression else []
    run(program("bsdtar"), *options, "-C", holey, "-cf", archive, ".")
    assert archive.stat().st_size < SIZE
    unpacked(archive, tmp_path / "out")
    require_same(holey, tmp_path / "out")


def test_a_sparse_bomb_is_refused_by_its_name(tree: Path, tmp_path: Path) -> None:
    with open(tree / "bomb.bin", "wb") as file:
        file.truncate(15 << 30)
    archive = tmp_path / "sparse.tar"
    run(program("tar"), "-S", "-C", tree, "-cf", archive, ".")
    with pytest.raises(BadArchive, match=r"bomb.bin is a sparse file.* raise the limit"):
        unpacked(archive, tmp_path / "out")


# --- what is in an archive beside a virtualenv ----------------------------------------------------


def test_twice_the_same_is_once(tree: Path, tmp_path: Path) -> None:
    """What `tar --append` makes of files that have not changed."""
    os.symlink("pyvenv.cfg", tree / "link")
    archive = tmp_path / "twice.tar"
    run(program("tar"), "-C", tree, "-cf", archive, ".")
    run(program("tar"), "-C", tree, "-rf", archive, ".")
    unpacked(archive, tmp_path / "out")
    assert (tmp_path / "out" / "pyvenv.cfg").read_text() == "home = /usr/bin\n"
    assert os.readlink(tmp_path / "out" / "link") == "pyvenv.cfg"


def test_twice_and_not_the_same_is_refused(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "twice.tar"
    run(program("tar"), "-C", tree, "-cf", archive, ".")
    (tree / "pyvenv.cfg").write_text("home = /usr/bim\n")
    run(program("tar"), "-C", tree, "-rf", archive, "./pyvenv.cfg")
    with pytest.raises(BadArchive, match=r"pyvenv.cfg is in it twice, and not the same") as caught:
        unpacked(archive, tmp_path / "out")
    assert "find out who" not in str(caught.value)


@pytest.mark.parametrize("compression", ["", "-z"])
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_volume_label(compression: str, form: str, tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "label.tar"
    options = [compression] if compression else []
    run(program("tar"), *options, f"--format={form}", "-V", "w48", "-C", tree, "-cf", archive, ".")
    assert unpacked(archive, tmp_path / "out").top == ""
    assert sorted(os.listdir(tmp_path / "out")) == ["bin", "pyvenv.cfg"]


@pytest.mark.parametrize("tool", ["tar --format=gnu", "tar --format=pax", "bsdtar"])
def test_a_file_of_1960(tool: str, tree: Path, tmp_path: Path) -> None:
    old = tree / "old.txt"
    old.write_text("old")
    os.utime(old, (YEAR_1960, YEAR_1960))
    if old.stat().st_mtime != YEAR_1960:
        pytest.skip("this file system has no such times")
    name, *options = tool.split()
    archive = tmp_path / "old.tar"
    run(program(name), *options, "-C", tree, "-cf", archive, ".")
    unpacked(archive, tmp_path / "out")
    assert (tmp_path / "out" / "old.txt").stat().st_mtime == YEAR_1960


def test_what_macos_puts_beside_a_directory(tree: Path, tmp_path: Path) -> None:
    """It is unpacked beside the virtualenv, which the release is made of alone."""
    top = tree.parent
    for name in ("._tree", ".DS_Store", "__MACOSX"):
        (top / name).write_bytes(b"\0\5\x16\7")
    (top / "._link").symlink_to("/etc/passwd")
    archive = tmp_path / "mac.tar"
    names = ("._tree", ".DS_Store", "__MACOSX", "._link", "tree")
    run(program("tar"), "-C", top, "-cf", archive, *names)
    assert unpacked(archive, tmp_path / "out").top == "tree"
    assert not os.path.lexists(tmp_path / "out" / "._link"), "nobody has looked where it points"


def test_another_directory_beside_is_none_of_that(tree: Path, tmp_path: Path) -> None:
    (tree.parent / "docs").mkdir()
    archive = tmp_path / "two.tar"
    run(program("tar"), "-C", tree.parent, "-cf", archive, "tree", "docs")
    with pytest.raises(BadArchive, match="pack a virtualenv's directory and nothing else"):
        unpacked(archive, tmp_path / "out")


def test_names_that_differ_in_case(tree: Path, tmp_path: Path) -> None:
    for name in ("Crypto", "crypto"):
        (tree / name).mkdir()
        (tree / name / "who").write_text(name)
    if (tree / "Crypto" / "who").read_text() != "Crypto":
        pytest.skip("this file system folds case")
    archive = tmp_path / "twins.tar"
    run(program("tar"), "-C", tree, "-cf", archive, ".")
    unpacked(archive, tmp_path / "out")
    for name in ("Crypto", "crypto"):
        assert (tmp_path / "out" / name / "who").read_text() == name


# --- real virtualenvs, deployed -------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtualenv of this Python, without pip."""
    return make("venv-3.11", tmp_path_factory.mktemp("small") / "made", without_pip=True).path


def zstd_of(tool: str) -> Callable[[Path], Path]:
    def compress(plain: Path) -> Path:
        run(program(tool), "-q", plain, "-o", f"{plain}.zst")
        return Path(f"{plain}.zst")

    return compress


@pytest.mark.parametrize("tool", ["zstd", "pzstd"])
def test_a_release_from_zstd(tool: str, small: str, tmp_path: Path) -> None:
    """pzstd puts a skippable frame in front of each other one."""
    plain = tmp_path / "app.tar"
    run(program("tar"), "-C", small, "-cf", plain, ".")
    archive = zstd_of(tool)(plain)
    assert publish(str(archive), str(tmp_path / "srv" / "one")).changed
    run(tmp_path / "srv" / "one" / "bin" / "python", "-c", "pass")


@pytest.mark.slow
def test_a_release_from_venv_pack(small: str, tmp_path: Path) -> None:
    """It writes pyvenv.cfg twice."""
    tool = tmp_path / "tool"
    run(sys.executable, "-m", "venv", tool)
    installed = subprocess.run([tool / "bin" / "pip", "install", "-q", "venv-pack", "setuptools"])
    if installed.returncode:
        pytest.skip("venv-pack cannot be installed here")
    archive = tmp_path / "packed.tar.gz"
    run(tool / "bin" / "venv-pack", "-q", "-p", small, "-o", archive)
    listed = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True).stdout
    assert listed.split().count("pyvenv.cfg") == 2
    assert publish(str(archive), str(tmp_path / "srv" / "one")).changed


def test_a_bundle_has_no_sparse_files(small: str, tmp_path: Path) -> None:
    """Nobody would have hashed what the map makes of it."""
    bundle = tmp_path / "bundle.tar"
    pack(small, str(bundle))
    data = bundle.read_bytes()
    with tarfile.open(bundle) as archived:
        one = next(m for m in archived if m.isfile() and m.name.endswith("activate"))
    end = one.offset_data + one.size + -one.size % archives.BLOCK
    content = data[one.offset_data : one.offset_data + one.size]
    sparse = archives.pax(
        {
            "GNU.sparse.size": str(one.size),
            "GNU.sparse.numblocks": "1",
            "GNU.sparse.name": one.name,
            "GNU.sparse.map": f"0,{one.size}",
        }
    ) + archives.member(one.name, content, mode=one.mode, mtime=int(one.mtime))
    changed = tmp_path / "changed.tar"
    changed.write_bytes(data[: one.offset] + sparse + data[end:])
    with pytest.raises(BadArchive, match=r"activate is not what its manifest says"):
        unpacked(changed, tmp_path / "out")
