"""Packing real Pythons, and running them where nothing else of them is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocate_core import PythonPacking, RelocateError, check, pack, pack_python, publish
from relocate_core.artefacts import binaries, elf
from relocate_core.bundles import reader
from relocate_core.interpreters import pack as packing
from relocate_core.interpreters.contents import contents
from relocate_core.interpreters.prefix import inspect
from tests.support import bundles, environments, pythons, steps

VERSIONS = ("3.13", "3.12", "3.11", "3.10", "3.9", "3.8", "3.7", "3.6")
USES = """
import asyncio, bz2, ctypes, decimal, json, lzma, os, sqlite3, ssl, subprocess, sys, sysconfig, zlib
assert ssl.create_default_context().get_ca_certs() is not None
assert sqlite3.connect(':memory:').execute('select 6 * 7').fetchone() == (42,)
assert ctypes.CDLL(None).getpid() == os.getpid()
assert subprocess.run([sys.executable, '-c', '']).returncode == 0
here = sys.prefix
paths = sysconfig.get_paths()
for name in ('stdlib', 'platstdlib', 'purelib', 'platlib', 'scripts', 'data'):
    assert paths[name].startswith(here) and os.path.isdir(paths[name]), paths[name]
assert json.__cached__.startswith(here) and os.path.exists(json.__cached__)
assert json.loads.__code__.co_filename == os.path.join(paths['stdlib'], 'json', '__init__.py')
print(here)
"""

PLACES = """
import ctypes, json, sqlite3, ssl, sys
assert json.__file__.startswith(sys.prefix)
print(sys.prefix)
"""


def prefix_of(version: str) -> str | None:
    """The prefix of a Python of that version which can be packed."""
    for executable in environments.interpreters(version):
        known = environments.probe(executable)
        prefix = os.path.dirname(os.path.dirname(os.path.realpath(executable)))
        try:
            if known is not None and inspect(prefix):
                return prefix
        except RelocateError:
            continue
    return None


def require(*versions: str) -> str:
    """The prefix of the first of these that can be packed; skips without any."""
    for version in versions:
        prefix = prefix_of(version)
        if prefix is not None:
            return prefix
    pytest.skip(f"no Python {', '.join(versions)} with a prefix of its own on this machine")


@pytest.fixture(scope="module")
def prefix() -> str:
    """A Python that can be packed."""
    return require(*VERSIONS)


@pytest.fixture(scope="module")
def packed(prefix: str, tmp_path_factory: pytest.TempPathFactory) -> PythonPacking:
    """The bundle of that Python."""
    return pack_python(prefix, str(tmp_path_factory.mktemp("pythons") / "python.tar"))


@pytest.fixture
def unpacked(packed: PythonPacking, tmp_path: Path) -> Iterator[str]:
    """That bundle, unpacked with tar."""
    yield bundles.unpack_by_tar(packed.archive, tmp_path / "python")
    shutil.rmtree(tmp_path / "python")


def program_of(packed: PythonPacking) -> str:
    """The program in a bundle, by its manifest."""
    with reader.of_archive(packed.archive, reader.require_interpreter) as known:
        assert known.head.interpreter is not None
        return known.head.interpreter.program


def run_without(prefix: str, *command: str) -> str:
    """Run a program in a mount namespace where a directory is empty; what it prints."""
    script = 'mount -t tmpfs none "$1" && shift && cd / && exec env -i PATH=/usr/bin:/bin "$@"'
    apart = ("unshare", "--map-root-user", "--mount")
    probe = subprocess.run([*apart, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    if probe.returncode:
        pytest.skip("no mount namespaces on this machine")
    done = subprocess.run(
        [*apart, "sh", "-c", script, "sh", prefix, *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_runs_where_its_prefix_is_gone(
    prefix: str, packed: PythonPacking, unpacked: str
) -> None:
    program = os.path.join(unpacked, program_of(packed))
    assert run_without(prefix, program, "-I", "-c", USES) == unpacked
    virtualenv = os.path.join(os.path.dirname(unpacked), "venv")
    run_without(prefix, program, "-I", "-m", "venv", "--without-pip", virtualenv)
    printed = run_without(
        prefix, f"{virtualenv}/bin/python", "-c", "import ssl, sys; print(sys.prefix)"
    )
    assert printed == virtualenv


def test_the_manifest_says_what_it_is_and_needs(
    prefix: str, packed: PythonPacking, unpacked: str
) -> None:
    with reader.of_archive(packed.archive, reader.require_interpreter) as known:
        head, rows = known.head, list(known.rows())
    ask = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    done = subprocess.run(
        [os.path.join(prefix, program_of(packed)), "-c", ask], capture_output=True, text=True
    )
    assert head.version == packed.version == done.stdout.strip()
    assert head.machine == packed.machine == os.uname().machine
    assert (head.files, head.size) == (packed.files, packed.size) == (
        len(rows), sum(row.size for row in rows),
    )  # fmt: skip
    assert any(name.startswith(("libc.so", "libc.musl")) for name in packed.libraries)
    assert not [name for name in packed.libraries if name.startswith("libpython")]
    # What refers to the prefix is listed, and nothing else does.
    found = environments.references(unpacked, prefix)
    assert set(found) - {bundles.MANIFEST} <= set(head.references)


def test_what_no_server_needs_is_left_out(packed: PythonPacking, unpacked: str) -> None:
    library = next(Path(unpacked, "lib").glob("python3.*"))
    for gone in ("test", "tkinter", "idlelib", "turtle.py"):
        assert not Path(library, gone).exists(), gone
    assert list(Path(library, "site-packages").iterdir()) == []
    assert not list(Path(unpacked).rglob("*.a"))
    assert not Path(unpacked, "include").exists()
    assert {"headers", "tests", "tk"} <= set(packed.left_out)
    assert all(size > 0 for size in packed.left_out.values())


@pytest.mark.slow
def test_a_bundle_that_is_there_already_is_left(prefix: str, packed: PythonPacking) -> None:
    before = os.stat(packed.archive)
    again = pack_python(prefix, packed.archive)
    assert not again.changed
    assert (again.sha256, again.packed_size) == (packed.sha256, packed.packed_size)
    assert os.stat(packed.archive) == before or os.stat(packed.archive).st_mtime == before.st_mtime


@pytest.mark.slow
def test_a_damaged_bundle_is_written_again(prefix: str, packed: PythonPacking) -> None:
    size = os.path.getsize(packed.archive)
    with open(packed.archive, "r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes((byte[0] ^ 1,)))
    again = pack_python(prefix, packed.archive)
    assert again.changed
    assert again.sha256 == packed.sha256


def test_what_cannot_be_packed_is_refused_in_one_sentence(tmp_path: Path) -> None:
    archive = str(tmp_path / "python.tar")
    (tmp_path / "empty").mkdir()
    for path, reason in (
        ("/usr", "its distribution"),
        (sys.prefix, "it is a virtualenv"),
        (str(tmp_path / "empty"), "is no prefix of a Python"),
        (str(tmp_path / "missing"), "is no prefix of a Python"),
    ):
        with pytest.raises(RelocateError, match=reason) as caught:
            pack_python(path, archive)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["empty"]


@pytest.mark.slow
def test_one_with_a_static_libpython_runs_where_it_is_unpacked(tmp_path: Path) -> None:
    """That of Debian is one; here it has a directory of its own."""
    ask = "import sys, sysconfig; print(sys.version[:4].strip('.'), sysconfig.get_path('stdlib'))"
    try:
        done = subprocess.run(["/usr/bin/python3", "-I", "-c", ask], capture_output=True, text=True)
        version, library = done.stdout.split()
        with open(f"/usr/bin/python{version}", "rb") as file:
            needed = elf.libraries(file.fileno())
    except (OSError, ValueError):
        pytest.skip("no Python in /usr on this machine")
    if not needed or any(name.startswith("libpython") for name in needed):
        pytest.skip("the Python in /usr has no static libpython")
    place = tmp_path / "static"
    ignored = shutil.ignore_patterns(
        "sitecustomize.py", "test", "__pycache__", "EXTERNALLY-MANAGED"
    )
    shutil.copytree(library, place / "lib" / f"python{version}", symlinks=True, ignore=ignored)
    for path in list(place.rglob("*")):
        if path.is_symlink() and not path.exists():
            path.unlink()  # to what Debian has elsewhere in /usr
    (place / "bin").mkdir()
    shutil.copy(f"/usr/bin/python{version}", place / "bin")
    (place / "bin/python3").symlink_to(f"python{version}")
    packed = pack_python(str(place), str(tmp_path / "python.tar"))
    assert not any(name.startswith("libpython") for name in packed.libraries)
    assert "its build options refer to /usr," in packed.warnings[0]["reason"]
    unpacked = bundles.unpack_by_tar(packed.archive, tmp_path / "unpacked")
    printed = run_without(str(place), f"{unpacked}/bin/python3", "-I", "-c", PLACES)
    assert printed == unpacked


def test_an_unknown_kind_to_keep_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(RelocateError, match="unknown 'docs' to keep: there are headers"):
        pack_python(prefix, str(tmp_path / "python.tar"), keep=["docs"])


def test_tcl_comes_with_tk(prefix: str, tmp_path: Path) -> None:
    """Some Pythons bring it, in a directory that only tkinter reads."""
    place = pythons.small(prefix, tmp_path / "small")
    (tmp_path / "small/lib/tcl8.6").mkdir()
    (tmp_path / "small/lib/tcl8.6/init.tcl").write_text("package provide Tcl 8.6\n")
    without, whole = (contents(inspect(place), keep) for keep in ((), ("tk",)))
    assert "lib/tcl8.6" not in without.kinds
    assert without.left_out["tk"] == 24
    assert "lib/tcl8.6/init.tcl" in whole.kinds


def test_a_bundle_is_not_taken_for_one_of_the_other_kind(
    packed: PythonPacking, tmp_path: Path
) -> None:
    with pytest.raises(RelocateError, match="the bundle of an interpreter"):
        reader.read_head(packed.archive)
    built = steps.small(tmp_path / "app").path
    pack(str(built), str(tmp_path / "app.tar"))
    with pytest.raises(RelocateError, match="the bundle of a virtualenv"):
        reader.of_archive(str(tmp_path / "app.tar"), reader.require_interpreter)
    with pytest.raises(RelocateError, match="the bundle of an interpreter"):
        pack(str(built), str(tmp_path / "delta.tar"), delta_from=packed.archive)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.few(slow=4)
def test_each_version_runs_elsewhere(version: str, tmp_path: Path) -> None:
    prefix = require(version)
    done = pack_python(prefix, str(tmp_path / "python.tar"))
    place = bundles.unpack_by_tar(done.archive, tmp_path / "python")
    printed = run_without(prefix, os.path.join(place, program_of(done)), "-I", "-c", USES)
    assert printed == place


@pytest.mark.slow
def test_the_same_bytes_at_another_time(
    prefix: str, packed: PythonPacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pack_python(prefix, str(tmp_path / "one.tar.gz"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    previous = os.umask(0o077)
    try:
        again = pack_python(prefix, str(tmp_path / "two.tar.gz"))
    finally:
        os.umask(previous)
    assert again.sha256 == before.sha256
    assert again.manifest == packed.manifest


def made(tmp_path: Path, prefix: str) -> Path:
    """A prefix of symlinks to what another one has, with programs of its own."""
    version = "python" + ".".join(inspect(prefix).interpreter.long_version.split(".")[:2])
    place = tmp_path / "made"
    for name in ("bin", "lib"):
        (place / name).mkdir(parents=True)
    shutil.copy(Path(prefix, "bin", version), place / "bin")
    (place / "bin/python3").symlink_to(version)
    for library in Path(prefix, "lib").glob("libpython*.so*"):
        shutil.copy(library, place / "lib", follow_symlinks=False)
    left_out = shutil.ignore_patterns("test", "site-packages", "config-*", "__pycache__")
    shutil.copytree(Path(prefix, "lib", version), place / "lib" / version, ignore=left_out)
    return place


def test_a_symlink_that_points_outside_is_refused(prefix: str, tmp_path: Path) -> None:
    place = made(tmp_path, prefix)
    (place / "bin/python").symlink_to("/usr/bin/python3")
    with pytest.raises(RelocateError, match="bin/python points to /usr/bin/python3, outside"):
        pack_python(str(place), str(tmp_path / "python.tar"))
    (place / "bin/python").unlink()
    library = next(place.glob("lib/python3*"))
    (library / "away.py").symlink_to("../../../../etc/passwd")
    with pytest.raises(RelocateError, match=r"away\.py"):
        pack_python(str(place), str(tmp_path / "python.tar"))
    assert not (tmp_path / "python.tar").exists()


@pytest.mark.slow
def test_a_dry_run_writes_nothing(
    prefix: str, packed: PythonPacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "Output", lambda archive: pytest.fail("it writes"))
    done = pack_python(prefix, str(tmp_path / "python.tar"), dry_run=True)
    assert (done.changed, done.manifest, done.sha256) == (True, packed.manifest, "")
    assert os.listdir(tmp_path) == []


def test_libpython_that_only_this_machine_finds_is_refused(prefix: str, tmp_path: Path) -> None:
    place = made(tmp_path, prefix)
    program = next(place.glob("bin/python3.*"))
    data = program.read_bytes()
    runpath = binaries.runpath(data)
    if not runpath:
        pytest.skip("this Python has no shared libpython")
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as outside:  # as short as the prefix
        os.symlink(os.path.join(prefix, "lib"), f"{outside}/lib")
        program.write_bytes(binaries.with_runpath(data, f"{outside}/lib".encode()))
        with pytest.raises(RelocateError, match="elsewhere on this machine"):
            pack_python(str(place), str(tmp_path / "python.tar"))
    assert not (tmp_path / "python.tar").exists()


@pytest.mark.slow
def test_a_module_is_compiled_against_it_where_headers_are_kept(
    prefix: str, tmp_path: Path
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    done = pack_python(prefix, str(tmp_path / "python.tar"), keep=["headers"])
    place = bundles.unpack_by_tar(done.archive, tmp_path / "python")
    program = os.path.join(place, program_of(done))
    ask = (
        "import json, sysconfig as s;"
        "print(json.dumps([s.get_path('include'), s.get_config_var('EXT_SUFFIX')]))"
    )
    include, suffix = json.loads(run_without(prefix, program, "-I", "-c", ask))
    assert os.path.isfile(os.path.join(include, "Python.h"))
    (tmp_path / "six.c").write_text(
        "#include <Python.h>\n"
        'static struct PyModuleDef six = {PyModuleDef_HEAD_INIT, "six", 0, -1, 0};\n'
        "PyMODINIT_FUNC PyInit_six(void) { return PyModule_Create(&six); }\n"
    )
    compiled = str(tmp_path / f"six{suffix}")
    command = ["gcc", "-shared", "-fPIC", f"-I{include}", str(tmp_path / "six.c"), "-o", compiled]
    subprocess.run(command, check=True)
    uses = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import six; print(six.__name__)"
    assert run_without(prefix, program, "-I", "-c", uses) == "six"


@pytest.mark.slow
def test_a_release_is_deployed_onto_it(
    prefix: str, packed: PythonPacking, unpacked: str, tmp_path: Path
) -> None:
    build, bundle, release = tmp_path / "build", tmp_path / "app.tar", tmp_path / "app/1"
    program = program_of(packed)
    subprocess.run([os.path.join(prefix, program), "-m", "venv", build], check=True)
    pack(str(build), str(bundle))
    release.parent.mkdir()
    publish(str(bundle), str(release), python=os.path.join(unpacked, program))
    assert check(str(release), deep=True).ok
    ask = "import sys; print(sys.prefix, sys.base_prefix)"
    printed = run_without(prefix, str(release / "bin/python"), "-c", ask)
    assert printed == f"{release} {unpacked}"
    run_without(prefix, str(release / "bin/python"), "-m", "pip", "check")
