"""What comes into an unpacked bundle later follows when it is relocated, as in a plain tree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relocate_core import reinitialize, relocate
from relocate_core.bundles import reader
from relocate_core.bundles.pack import pack
from relocate_core.relocation.untouched import times
from relocate_core.virtualenvs import manifest_reader
from relocate_core.virtualenvs.manifest import FIXED_TIME
from tests.support.bundles import unpack_by_tar
from tests.support.environments import make


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv with files below share and etc, as a bundle."""
    directory = tmp_path_factory.mktemp("bundle")
    tree = Path(make("uv", directory / "made", packages=("markupsafe",)).path)
    for name in ("share/kernels/python3", "etc"):
        (tree / name).mkdir(parents=True)
        (tree / name / "kernel.json").write_text(f'["{tree}/bin/python"]\n')
    (tree / "etc" / "plain.conf").write_text("debug = no\n")
    archive = directory / "one.tar.gz"
    pack(str(tree), str(archive))
    return archive


@pytest.fixture
def place(bundle: Path, tmp_path: Path) -> Path:
    """It, unpacked and relocated."""
    made = Path(unpack_by_tar(bundle, tmp_path / "one"))
    relocate(str(made), str(made))
    return made


def untouched(place: Path) -> bool:
    root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        known = manifest_reader.of_tree(root)
        assert known is not None
        with known:
            return times(root, known).untouched
    finally:
        os.close(root)


def moved(place: Path) -> Path:
    """The place after a move and a relocation."""
    new = place.parent / "two"
    place.rename(new)
    relocate(str(new), str(new))
    return new


def test_nothing_of_ours_is_a_touch(place: Path) -> None:
    """Else every further relocation would be a walk."""
    assert untouched(place)
    place = moved(place)
    assert untouched(place)
    reinitialize(str(place))
    assert untouched(place)
    subprocess.run([place / "bin" / "python", "-c", "import json, this"], check=True)
    assert untouched(place)


def test_data_files_get_the_time_of_the_build(bundle: Path, tmp_path: Path) -> None:
    """A web server would call the last release's copy of a file right, for the same old time."""
    place = Path(unpack_by_tar(bundle, tmp_path / "one"))
    with reader.of_archive(str(bundle)) as known:
        time = known.head.time
    assert (place / "etc/plain.conf").stat().st_mtime == FIXED_TIME
    relocate(str(place), str(place), dry_run=True)
    assert (place / "etc/plain.conf").stat().st_mtime == FIXED_TIME
    relocate(str(place), str(place))
    for file in ("etc/plain.conf", "etc/kernel.json", "pyvenv.cfg"):
        assert (place / file).stat().st_mtime == time, file
    (source,) = place.glob("lib/python*/site-packages/markupsafe/__init__.py")
    assert source.stat().st_mtime == FIXED_TIME


def in_a_directory(place: Path) -> Path:
    return place / "share" / "kernels" / "python3" / "late.json"


def in_a_new_directory(place: Path) -> Path:
    (place / "share" / "kernels" / "late").mkdir()
    return place / "share" / "kernels" / "late" / "kernel.json"


def in_etc(place: Path) -> Path:
    return place / "etc" / "late.conf"


def at_the_top(place: Path) -> Path:
    return place / "late.conf"


def in_a_package(place: Path) -> Path:
    version = f"python3.{sys.version_info[1]}"
    found = next(place.glob("lib/python3*/site-packages"), place / "lib" / version)
    (found / "late").mkdir()
    return found / "late" / "settings.py"


def written_over(place: Path) -> Path:
    return place / "etc" / "plain.conf"


@pytest.mark.parametrize(
    "where",
    [in_a_directory, in_a_new_directory, in_etc, at_the_top, in_a_package, written_over],
    ids=lambda where: where.__name__,
)
def test_a_later_file_follows(where: Callable[[Path], Path], place: Path) -> None:
    late = where(place)
    with open(late, "w") as file:
        file.write(f'PYTHON = "{place}/bin/python"\n')
    assert not untouched(place)
    new = moved(place)
    text = (new / late.relative_to(place)).read_text()
    assert text == f'PYTHON = "{new}/bin/python"\n'


def test_a_file_that_has_become_a_link(place: Path) -> None:
    (place / "etc" / "plain.conf").unlink()
    (place / "etc" / "plain.conf").symlink_to(place / "etc" / "kernel.json")
    new = moved(place)
    assert os.readlink(new / "etc" / "plain.conf") == str(new / "etc" / "kernel.json")
