"""Packing a Python from the archive that its makers publish."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from relocate_core import RelocateError, pack_python
from relocate_core.bundles import reader
from relocate_core.interpreters.install import PythonBundle, provided
from relocate_core.interpreters.place import Place
from relocate_core.interpreters.prefix import inspect
from tests.support import bundles, pythons


def digests(archive: Path) -> dict[str, str]:
    """What an archive hashes to."""
    return {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python as python-build-standalone publishes it."""
    return pythons.published(pythons.require(), tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked; it must be empty afterwards."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def test_it_is_packed_and_deployed(archive: Path, tmp_path: Path, temporary: Path) -> None:
    packed = pack_python(str(archive), str(tmp_path / "python.tar"), digests=digests(archive))
    assert os.listdir(temporary) == []
    with reader.of_archive(packed.archive, reader.require_interpreter) as known:
        assert known.head.prefixes == ("/install",)
    bundle = PythonBundle(packed.archive, {"sha256": packed.sha256})
    with provided(bundle, Place(str(tmp_path / "pythons")), str(tmp_path / "app/x")) as found:
        ask = "import sys, sysconfig; print(sys.prefix, sysconfig.get_config_var('LIBDIR'))"
        printed = subprocess.check_output([found.executable, "-I", "-c", ask], text=True)
    assert printed.split() == [found.path, f"{found.path}/lib"]


@pytest.mark.slow
def test_a_library_that_is_needed_by_its_path_is_its_own(tmp_path: Path) -> None:
    """As python-build-standalone has it where libpython is shared."""
    if shutil.which("patchelf") is None:
        pytest.skip("patchelf is not on this machine")
    archive = pythons.published(pythons.require(), tmp_path)
    top = tmp_path / "published/python"
    library = next(top.glob("lib/libpython3.*.so.*"), None)
    if library is None:
        pytest.skip("this Python has no shared libpython")
    name = library.name
    program = os.path.realpath(inspect(str(top)).executable)
    subprocess.run(
        ["patchelf", "--replace-needed", name, f"$ORIGIN/../lib/{name}", program], check=True
    )
    subprocess.run(["patchelf", "--remove-rpath", program], check=True)
    subprocess.run(["tar", "-czf", archive, "-C", top.parent, "python"], check=True)
    packed = pack_python(str(archive), str(tmp_path / "python.tar"), digests=digests(archive))
    assert not [one for one in packed.libraries if "libpython" in one]
    place = bundles.unpack_by_tar(packed.archive, tmp_path / "unpacked")
    moved = os.path.join(place, os.path.relpath(program, top))
    assert subprocess.run([moved, "-I", "-c", "import json"], check=False).returncode == 0


@pytest.mark.slow
def test_what_it_is_built_for_is_known_where_sysconfig_says_where_it_is(tmp_path: Path) -> None:
    """As that of Python 3.14 does."""
    archive = pythons.published(pythons.require(), tmp_path)
    sysconfig = next((tmp_path / "published").rglob("sysconfig.py"), None)
    sysconfig = sysconfig or next((tmp_path / "published").rglob("sysconfig/__init__.py"))
    text = sysconfig.read_text()
    newer = text.replace("vars.update(build_time_vars)", "vars.update({**build_time_vars, **vars})")
    assert newer != text
    sysconfig.write_text(newer)
    top = str(tmp_path / "published/python")
    assert inspect(top).built == "/install"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "published", "python"], check=True)
    packed = pack_python(str(archive), str(tmp_path / "python.tar"), digests=digests(archive))
    with reader.of_archive(packed.archive, reader.require_interpreter) as known:
        assert known.head.prefixes == ("/install",)


@pytest.mark.slow
def test_the_same_bytes_of_each_form(archive: Path, tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not on this machine")
    first = pack_python(str(archive), str(tmp_path / "python.tar"), digests=digests(archive))
    other = pythons.published("", archive.parent, ".tar.zst")
    again = pack_python(str(other), first.archive, digests=digests(other))
    assert (again.changed, again.manifest) == (False, first.manifest)


def test_root_runs_nothing_of_unknown_hash(archive: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone needs a hash")
    weak = {"md5": hashlib.md5(archive.read_bytes()).hexdigest()}
    for known in (None, {}, weak):
        with pytest.raises(RelocateError, match="root runs nothing from an archive"):
            pack_python(str(archive), str(tmp_path / "python.tar"), digests=known)
    assert not (tmp_path / "python.tar").exists()


def test_what_is_no_published_python_is_refused(
    archive: Path, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "top/python").mkdir(parents=True)
    (tmp_path / "top/python/README").touch()
    strange = tmp_path / "strange.tar.gz"
    subprocess.run(["tar", "-czf", strange, "-C", tmp_path / "top", "."], check=True)
    (tmp_path / "top/python/bin").mkdir()
    (tmp_path / "top/python/bin/python3").symlink_to("/usr/bin/python3")
    outside = tmp_path / "outside.tar"
    subprocess.run(["tar", "-cf", outside, "-C", tmp_path / "top", "python"], check=True)
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(archive.read_bytes()[:100_000])
    bundle = str(tmp_path / "python.tar")
    for path, known, reason in (
        (strange, digests(strange), "there is no Python in"),
        (outside, digests(outside), "points to /usr/bin/python3, out of the interpreter"),
        (damaged, digests(damaged), "damaged.tar.gz"),
        (archive, {"sha256": "0" * 64}, "its sha256 is"),
        (tmp_path / "top", {"sha256": "0" * 64}, "is no archive, which a hash could be of"),
        (tmp_path / "missing.tar", {"sha256": "0" * 64}, "missing.tar: no such file"),
    ):
        with pytest.raises(RelocateError, match=reason) as caught:
            pack_python(str(path), bundle, digests=known)
        assert "\n" not in str(caught.value)
        assert str(temporary) not in str(caught.value)
    assert not os.path.exists(bundle)
    assert os.listdir(temporary) == []


@pytest.mark.slow
def test_a_bundle_is_not_packed_again(archive: Path, tmp_path: Path) -> None:
    packed = pack_python(str(archive), str(tmp_path / "python.tar"), digests=digests(archive))
    for target, reason in ((packed.archive, "would replace"), (f"{packed.archive}.gz", "already")):
        with pytest.raises(RelocateError, match=reason):
            pack_python(packed.archive, target, digests={"sha256": packed.sha256})
    assert not os.path.exists(f"{packed.archive}.gz")
