"""Compiled files: made by the real compiler, rewritten, loaded and run."""

from __future__ import annotations

import functools
import os
import platform
import re
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
from tests.support.fuzz import examples

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


def filled(new: bytes, rest: bytes, old: bytes = OLD) -> bytes:
    """A path below the new prefix, as long as it was below the old one."""
    return new + b"/" * (len(old) - len(new)) + rest


def moved(data: bytes, new: bytes, old: bytes = OLD) -> Rewritten:
    prefixes = Prefixes((old,), new)
    result = rewrite("lib/x.so", data, prefixes)
    assert len(result.data) == len(data)
    again = rewrite("lib/x.so", result.data, prefixes)
    assert (again.data, bool(again.problem)) == (result.data, bool(result.problem))
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
    path = filled(new, b"").decode()
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
    place = filled(new.encode(), b"/main", old.encode()).decode()
    assert done.stdout.endswith(f"|{place}\n")


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
    assert not result.problem
    assert os.path.normpath(runpath(tmp_path, result.data)) == b"/opt/x/lib/foo"


def test_a_static_archive_still_links(tmp_path: Path) -> None:
    gcc(tmp_path, LIBRARY, "-c", "-o", "config.o")
    subprocess.run(["ar", "rcs", "libconfig.a", "config.o"], cwd=tmp_path, check=True)
    archive = tmp_path / "libconfig.a"
    result = moved(archive.read_bytes(), SHORTER)
    assert not result.problem
    archive.write_bytes(result.data)
    gcc(tmp_path, PROGRAM, "-o", "program", "libconfig.a")
    done = subprocess.run([tmp_path / "program"], capture_output=True, check=True, text=True)
    place = filled(b"/opt/x", b"").decode()
    assert done.stdout.startswith(f"{place}/etc/foo.conf:{place}/share/foo|")


def test_a_string_without_an_end_mark_is_left() -> None:
    rust = b"\x7fELF" + bytes(60) + b"/rustc/" + b"0" * 40 + b"/x\0/srv/application/binnext\0"
    result = moved(rust.replace(b"binnext", b"bin next"), SHORTER)
    assert "Rust" in result.problem
    assert b"/srv/application" in result.data


# --- text whose end or length is known elsewhere --------------------------------------------------

MERGED = b"""
const char *where(void) { return "/srv/app/share/app"; }
const char *what(void) { return "share/app"; }
const char *slash(void) { return "/share/app"; }
const char *name(void) { return "app"; }
"""


def returned(directory: Path, data: bytes, *names: str) -> list[str]:
    """What functions of a library return, in a process of their own."""
    (directory / "lib.so").write_bytes(data)
    code = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    f = getattr(lib, name); f.restype = ctypes.c_char_p; print(f().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, directory / "lib.so", *names],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("flags", [["-Os"], ["-O2", "-fmerge-constants"], ["-O0"]])
def test_a_literal_that_shares_the_end_of_a_path_stays(flags: list[str], tmp_path: Path) -> None:
    gcc(tmp_path, MERGED, *flags, "-shared", "-fPIC", "-o", "made.so")
    data = (tmp_path / "made.so").read_bytes()
    old = b"/srv/app"
    result = moved(data, b"/x", old)
    assert not result.problem
    assert returned(tmp_path, result.data, "where", "what", "slash", "name") == [
        "/x///////share/app",
        "share/app",
        "/share/app",
        "app",
    ]
    assert moved(result.data, old, b"/x").data == data
    between = moved(result.data, b"/opt/y", b"/x")
    assert returned(tmp_path, between.data, "where") == ["/opt/y///share/app"]
    assert moved(between.data, old, b"/opt/y").data == data


INSIDE = b"""
const char *where(void) { return "/srv/app/share/x"; }
const char *what(void) { return "app/share/x"; }
static const char *table[] = { "/srv/app/etc/one.conf", "pp/etc/one.conf" };
const char *first(int n) { return table[n & 0]; }
const char *second(int n) { return table[n | 1]; }
const char *alone(void) { return "/srv/app/lib/alone"; }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 is looked through")
@pytest.mark.parametrize("flags", [["-shared", "-fPIC"], ["-no-pie"], ["-pie", "-fPIE"]])
def test_a_literal_that_begins_inside_the_prefix_stays(flags: list[str], tmp_path: Path) -> None:
    main = b"int main(void) { puts(where()); puts(what()); puts(first(1)); puts(second(0));"
    code = b"#include <stdio.h>\n" + INSIDE + main + b" puts(alone()); return 0; }\n"
    gcc(tmp_path, code, "-Os", *flags, "-o", "made")
    data = (tmp_path / "made").read_bytes()
    assert data.count(b"app/share/x\0") == 1, "the linker has merged nothing"
    result = moved(data, b"/x", b"/srv/app")
    assert "begins inside" in result.problem
    assert data.replace(b"/srv/app/lib", b"/x//////" + b"/lib") == result.data
    assert moved(result.data, b"/srv/app", b"/x").data == data


def test_the_bare_prefix_is_left_and_reported(tmp_path: Path) -> None:
    code = b'const char *prefix(void) { return "/srv/application"; }'
    gcc(tmp_path, code, "-shared", "-fPIC", "-o", "made.so")
    data = (tmp_path / "made.so").read_bytes()
    for new in (SHORTER, SAME, LONGER):
        result = moved(data, new)
        assert "all of a string" in result.problem
        assert result.data == data


IN_PIECES = {
    "copied": "static char text[199];"
    " const char *f() { strcpy(text, P); strcat(text, R); return text; }",
    "made": "const char *f() { static std::string all; std::string one = P R; all = one;"
    " return all.c_str(); }",
    "same": "int f(const char *one) { return memcmp(one, P R, sizeof P R - 1) == 0; }",
    "below": 'int f(const char *one) { return memcmp(one, P "/", sizeof P) == 0; }',
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 is looked through")
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("use", IN_PIECES)
@pytest.mark.parametrize(
    "path", ["/srv/app", "/srv/app/x1", "/srv/app/4f2a9c1", "/srv/an/app/4f2a9c1"]
)
@pytest.mark.few(2)
def test_a_path_that_is_used_in_pieces(path: str, use: str, compiler: str, tmp_path: Path) -> None:
    """It is moved as a whole, or left as a whole and reported."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on this machine")
    code = f'#include <cstring>\n#include <string>\nextern "C" {{ {IN_PIECES[use]} }}\n'
    (tmp_path / "code.cpp").write_text(code)
    for rest in ("/a", "/etc/x.conf"):
        defined = [f'-DP="{path}"', f'-DR="{rest}"']
        command = [compiler, "-O2", "-shared", "-fPIC", *defined, "code.cpp", "-o", "made.so"]
        subprocess.run(command, cwd=tmp_path, check=True)
        data = (tmp_path / "made.so").read_bytes()
        assert any(piece in data for piece in binaries.first_pieces((path.encode(),)))
        result = moved(data, b"/x", path.encode())
        new = filled(b"/x", rest.encode(), path.encode()).decode()
        expected = f"{path}{rest}" if result.problem else new
        if use in ("copied", "made"):
            assert returned(tmp_path, result.data, "f") == [expected]
        else:
            (tmp_path / "lib.so").write_bytes(result.data)
            program = f"import ctypes; print(ctypes.CDLL('./lib.so').f({expected.encode()!r}))"
            run = [sys.executable, "-c", program]
            done = subprocess.run(run, cwd=tmp_path, capture_output=True, check=True, text=True)
            assert done.stdout == "1\n"


VIEWS = b"""
#include <string>
#include <string_view>
static constexpr std::string_view place = "/srv/application/share/x", bare = "/srv/application";
static std::string text = "/srv/application/etc/a";
extern "C" const char *config() { static std::string made; made = std::string(place) + "|" + text;
    return made.c_str(); }
extern "C" const char *prefix() { static std::string made(bare); return made.c_str(); }
"""


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_cpp_strings_keep_the_lengths_that_are_compiled_in(level: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not on this machine")
    (tmp_path / "code.cpp").write_bytes(VIEWS)
    command = ["g++", "-std=c++17", level, "-shared", "-fPIC", "code.cpp", "-o", "made.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "made.so").read_bytes()
    result = moved(data, SHORTER)
    config, prefix = returned(tmp_path, result.data, "config", "prefix")
    for path, end in zip(config.split("|"), ("share/x", "etc/a")):
        assert os.path.normpath(path) in (f"/opt/x/{end}", f"/srv/application/{end}")
    assert prefix == "/srv/application"
    assert "all of a string" in result.problem
    assert moved(result.data, OLD, SHORTER).data == data


@pytest.mark.parametrize(
    ("compiler", "name", "code", "arguments"),
    [
        (
            "rustc",
            "code.rs",
            'fn main() { println!("{}|{}", "/srv/application", "/share/x"); }',
            ["-o", "program"],
        ),
        (
            "go",
            "code.go",
            'package main\n\nfunc main() { println("/srv/application", "/share/x") }\n',
            ["-o", "program"],
        ),
        (
            "gfortran",
            "code.f90",
            "program p\nprint *, '/srv/application', '/share/x'\nend program\n",
            ["-o", "program"],
        ),
    ],
)
def test_strings_without_an_end_mark_are_left_and_reported(
    compiler: str, name: str, code: str, arguments: list[str], tmp_path: Path
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not on this machine")
    (tmp_path / name).write_text(code)
    command = [compiler, *(["build"] if compiler == "go" else []), *arguments, name]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "GO111MODULE": "off"})
    data = (tmp_path / "program").read_bytes()
    result = moved(data, SHORTER)
    assert result.data == data
    assert "no end mark" in result.problem


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (b"\0TAG/srv/application/x\0", True),
        (b"\0\xff/srv/application/x\0", False),
        (b"\0/srv/application/x\x01", True),
        (b"\0/srv/application%s\0", True),
        (b"\0%s/srv/application%s\0", False),
        (b"\0/srv/application2/x\0", False),
        (b"\0/srv/application:/usr\0", True),
    ],
)
def test_what_is_not_sure_is_reported(text: bytes, left: bool) -> None:
    result = moved(b"\x7fELF" + bytes(60) + text, SHORTER)
    assert bool(result.problem) == left
    if left:
        assert text in result.data


texts = st.lists(
    st.one_of(
        st.sampled_from([OLD, OLD + b"/", OLD + b"//", b"/x", b"\0", b":", b"-L", b"a", b"\xff"]),
        st.binary(max_size=3),
    ),
    max_size=12,
).map(b"".join)


@settings(deadline=None, max_examples=examples(400))
@given(texts, st.sampled_from([SHORTER, SAME, LONGER, b"/x", "/grün".encode()]))
def test_nothing_but_prefixes_changes_and_the_way_back_gives_every_byte(
    text: bytes, new: bytes
) -> None:
    data = b"\x7fELF" + bytes(60) + text
    there = moved(data, new)
    # With each run of slashes taken for one, nothing but the prefix is another text.
    plain = re.compile(b"/+").sub
    assert plain(b"/", there.data).replace(new, OLD) == plain(b"/", data).replace(new, OLD)
    if new not in data:
        assert moved(there.data, OLD, new).data == data


def test_the_work_is_proportional_to_the_size() -> None:
    """Each byte is looked at a few times, however many paths there are."""

    def steps(count: int) -> int:
        data = (
            b"\x7fELF"
            + bytes(60)
            + b"".join(b"/srv/application/src/file%d.c\0" % number for number in range(count))
        )
        calls = 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count_call)
        try:
            rewrite("lib/x.so", data, Prefixes((OLD,), SHORTER))
        finally:
            sys.setprofile(None)
        return calls

    steps(1)  # patterns are compiled by the first call
    assert steps(800) < 2.1 * steps(400)


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


def test_a_segment_of_any_size_takes_no_longer(tmp_path: Path) -> None:
    gcc(tmp_path, INSIDE.replace(b"/srv/app", OLD), "-Os", "-shared", "-fPIC", "-o", "made")
    data = bytearray((tmp_path / "made").read_bytes())
    table, count = int.from_bytes(data[32:40], "little"), int.from_bytes(data[56:58], "little")
    for number in range(count):
        at = table + 56 * number + 32
        data[at : at + 8] = (1 << 62).to_bytes(8, "little")
    assert len(rewrite("lib/x.so", bytes(data), Prefixes((OLD,), SHORTER)).data) == len(data)


@settings(deadline=None, max_examples=examples(300), suppress_health_check=list(HealthCheck))
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


def test_a_runpath_is_replaced_where_it_fits_and_has_its_room_back(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    old = b"/opt/python/3.13.0/lib"
    made = tmp_path / "made.so"
    command = ["gcc", "-shared", "-x", "c", "/dev/null", f"-Wl,-rpath,{old.decode()}", "-o", made]
    subprocess.run(command, check=True)
    data = made.read_bytes()
    assert binaries.runpath(data) == old
    shorter = binaries.with_runpath(data, b"$ORIGIN/../lib")
    assert (len(shorter), binaries.runpath(shorter)) == (len(data), b"$ORIGIN/../lib")
    assert binaries.with_runpath(shorter, old) == data
    with pytest.raises(binaries.NoRoom):
        binaries.with_runpath(data, old + b"/longer")
    assert binaries.runpath(b"#!/bin/sh\n") == b""
