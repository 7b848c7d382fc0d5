"""Compiled files: made by the real compiler, rewritten, loaded and run."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts import binaries
from relocate_core.artefacts.kinds import Rewritten, rewrite
from relocate_core.artefacts.prefix import Prefixes

OLD = b"/srv/application"
SHORTER, SAME, LONGER = b"/opt/x", b"/opt/application", b"/srv/some/other/application"

LIBRARY = b"""
const char *config(void) { return "/srv/application/etc/foo.conf:/srv/application/share/foo"; }
const char *flag(void) { return "-L/srv/application/lib"; }
const char *other(void) { return "/srv/application2/lib"; }
const char *behind(void) { return "behind"; }
"""
PROGRAM = b"""
#include <stdio.h>
const char *config(void);
int main(void) { printf("%s|/srv/application/main\\n", config()); return 0; }
"""
RPATH = b"/srv/application/lib:/srv/application/lib/foo"


def gcc(directory: Path, code: bytes, *arguments: str) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    (directory / "code.c").write_bytes(code)
    subprocess.run(["gcc", "-O1", "code.c", *arguments], cwd=directory, check=True)


@functools.cache
def library() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gcc(directory, LIBRARY, "-shared", "-fPIC", "-o", "lib.so", f"-Wl,-rpath,{RPATH.decode()}")
        return (directory / "lib.so").read_bytes()


def moved(data: bytes, new: bytes, old: bytes = OLD) -> Rewritten:
    prefixes = Prefixes((old,), new)
    result = rewrite("lib/x.so", data, prefixes)
    assert len(result.data) == len(data)
    assert rewrite("lib/x.so", result.data, prefixes) == result, "a second run"
    return result


def call(directory: Path, data: bytes) -> list[str]:
    """What the functions of a library return, in a process of their own."""
    (directory / "lib.so").write_bytes(data)
    code = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1])\n"
        "for name in ('config', 'flag', 'other', 'behind'):\n"
        "    f = getattr(lib, name); f.restype = ctypes.c_char_p; print(f().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, directory / "lib.so"],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.split("\n")[:-1]


def runpath(directory: Path, data: bytes) -> bytes:
    """RUNPATH as binutils read it."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not on this machine")
    (directory / "read.so").write_bytes(data)
    done = subprocess.run(
        ["readelf", "-dW", "read.so"], cwd=directory, capture_output=True, check=True
    )
    (line,) = [
        line for line in done.stdout.split(b"\n") if b"(RUNPATH)" in line or b"(RPATH)" in line
    ]
    return line.partition(b"[")[2].rpartition(b"]")[0]


@pytest.mark.parametrize("new", [SHORTER, SAME, b"/x", b"/opt/my app", "/opt/grün".encode()])
def test_a_library_loads_and_has_the_new_path(new: bytes, tmp_path: Path) -> None:
    result = moved(library(), new)
    assert not result.problem
    path = new.decode()
    assert call(tmp_path, result.data) == [
        f"{path}/etc/foo.conf:{path}/share/foo",
        f"-L{path}/lib",
        "/srv/application2/lib",
        "behind",
    ]
    assert runpath(tmp_path, result.data) == RPATH.replace(OLD, new)


def test_a_longer_path_is_reported_and_changes_nothing_but_what_has_room(tmp_path: Path) -> None:
    data = library()
    result = moved(data, LONGER)
    assert result.problem
    assert result.data == data
    wanted = binaries.longer_runpath(data, Prefixes((OLD,), LONGER))
    assert wanted == RPATH.replace(OLD, LONGER)


def test_the_runpath_goes_there_and_back(tmp_path: Path) -> None:
    gcc(tmp_path, b"int x;", "-shared", "-o", "x.so", f"-Wl,-rpath,{RPATH.decode()}")
    data = (tmp_path / "x.so").read_bytes()
    for new in (SHORTER, SAME, b"/x"):
        there = moved(data, new)
        assert not there.problem
        back = moved(there.data, OLD, new)
        assert not back.problem
        assert back.data == data


def test_after_a_shorter_path_the_old_runpath_is_the_limit(tmp_path: Path) -> None:
    gcc(tmp_path, b"int x;", "-shared", "-o", "x.so", f"-Wl,-rpath,{RPATH.decode()}")
    there = moved((tmp_path / "x.so").read_bytes(), SHORTER)
    beyond = moved(there.data, LONGER, SHORTER)
    assert beyond.problem
    assert beyond.data == there.data
    middle = moved(there.data, b"/opt/middle", SHORTER)
    assert not middle.problem
    assert runpath(tmp_path, middle.data) == RPATH.replace(OLD, b"/opt/middle")


@pytest.mark.skipif(shutil.which("patchelf") is None, reason="patchelf is not on this machine")
def test_what_patchelf_made_longer_is_moved_too(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    gcc(tmp_path, b"int x;", "-shared", "-o", "x.so", f"-Wl,-rpath,{RPATH.decode()}")
    subprocess.run(["patchelf", "--set-rpath", RPATH.replace(OLD, LONGER), file], check=True)
    there = moved(file.read_bytes(), OLD, LONGER)
    assert runpath(tmp_path, there.data) == RPATH
    assert runpath(tmp_path, moved(there.data, LONGER).data) == RPATH.replace(OLD, LONGER)


@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
def test_a_program_runs_with_the_library_of_the_new_place(tag: str, tmp_path: Path) -> None:
    old, new = f"{tmp_path}/the-old-one", f"{tmp_path}/new"
    (tmp_path / "new/lib").mkdir(parents=True)
    gcc(tmp_path, LIBRARY, "-shared", "-fPIC", "-o", "new/lib/libconfig.so")
    gcc(
        tmp_path,
        PROGRAM.replace(OLD, old.encode()),
        *("-o", "program", "-Lnew/lib", "-lconfig", f"-Wl,{tag},-rpath,{old}/lib"),
    )
    program = tmp_path / "program"
    assert subprocess.run([program], capture_output=True).returncode == 127
    result = moved(program.read_bytes(), new.encode(), old.encode())
    assert not result.problem
    program.write_bytes(result.data)
    done = subprocess.run([program], capture_output=True, check=True, text=True)
    assert done.stdout.endswith(f"|{new}/main\n")


def test_a_symbol_that_shares_the_end_of_the_runpath_keeps_its_name(tmp_path: Path) -> None:
    """Linkers merge strings that end alike: `foo` may live in the tail of `/srv/.../foo`."""
    code = LIBRARY + b'const char *foo(void) { return "foo"; }\n'
    rpath = "/srv/application/lib/foo"
    gcc(tmp_path, code, "-shared", "-fPIC", "-O2", "-Wl,-O2", "-o", "lib.so", f"-Wl,-rpath,{rpath}")
    data = (tmp_path / "lib.so").read_bytes()
    merged = data.count(b"foo\0") - data.count(b"share/foo\0")
    result = moved(data, SHORTER)
    (tmp_path / "out.so").write_bytes(result.data)
    code_ = (
        "import ctypes,sys; f=ctypes.CDLL(sys.argv[1]).foo; f.restype=ctypes.c_char_p; print(f())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code_, tmp_path / "out.so"], capture_output=True, text=True
    )
    assert done.stdout == "b'foo'\n", (merged, result.problem, done.stderr)
    if not result.problem:
        assert runpath(tmp_path, result.data) == b"/opt/x/lib/foo"


def test_a_static_archive_still_links(tmp_path: Path) -> None:
    gcc(tmp_path, LIBRARY, "-c", "-o", "config.o")
    subprocess.run(["ar", "rcs", "libconfig.a", "config.o"], cwd=tmp_path, check=True)
    archive = tmp_path / "libconfig.a"
    result = moved(archive.read_bytes(), SHORTER)
    assert not result.problem
    archive.write_bytes(result.data)
    gcc(tmp_path, PROGRAM, "-o", "program", "libconfig.a")
    done = subprocess.run([tmp_path / "program"], capture_output=True, check=True, text=True)
    assert done.stdout.startswith("/opt/x/etc/foo.conf:/opt/x/share/foo|")


def test_a_string_without_an_end_mark_is_left() -> None:
    rust = b"\x7fELF" + bytes(60) + b"/rustc/" + b"0" * 40 + b"/x\0/srv/application/binnext\0"
    result = moved(rust.replace(b"binnext", b"bin next"), SHORTER)
    assert "Rust" in result.problem
    assert b"/srv/application" in result.data


@pytest.mark.parametrize("new", [SHORTER, LONGER])
def test_a_library_cut_anywhere_never_raises(new: bytes) -> None:
    data = library()
    prefixes = Prefixes((OLD,), new)
    for size in [*range(200), *range(200, len(data), 97)]:
        result = rewrite("lib/x.so", data[:size], prefixes)
        assert len(result.data) == size
        binaries.longer_runpath(data[:size], prefixes)


def test_an_offset_that_no_file_has() -> None:
    """The table of segments beyond what even an address can be."""
    data = bytearray(library())
    data[39] = 128
    assert len(rewrite("lib/x.so", bytes(data), Prefixes((OLD,), SHORTER)).data) == len(data)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_library_never_raises(draws: st.DataObject) -> None:
    data = bytearray(library())
    # The headers, and the dynamic section behind them, are where the offsets are.
    dynamic = bytes(data).find(b"\x1d\0\0\0\0\0\0\0")
    places = st.one_of(st.integers(0, 0x400), st.integers(dynamic - 400, dynamic + 200))
    for at, byte in draws.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        data[at] = byte
    data[:4] = b"\x7fELF"
    for new in (SHORTER, LONGER):
        prefixes = Prefixes((OLD,), new)
        result = rewrite("lib/x.so", bytes(data), prefixes)
        assert len(result.data) == len(data)
        binaries.longer_runpath(bytes(data), prefixes)
