"""Compiled files: what they need, compared with readelf; and damaged ones, which are none."""

from __future__ import annotations

import functools
import glob
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts.elf import Needs, libraries, needs
from tests.support.fuzz import examples

# secure_getenv is of glibc 2.17.
CODE = b"""
#define _GNU_SOURCE
#include <stdlib.h>
char *settings(void) { return secure_getenv("HOME"); }
"""


def of(data: bytes) -> Needs | None:
    file = os.memfd_create("needs")
    try:
        os.write(file, data)
        return needs(file)
    finally:
        os.close(file)


def gcc(*arguments: str, code: bytes = CODE) -> bytes:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on this machine")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "code.c").write_bytes(code)
        subprocess.run(
            ["gcc", "-O1", "code.c", *arguments, "-o", "made"], cwd=directory, check=True
        )
        return (directory / "made").read_bytes()


@functools.cache
def library() -> bytes:
    return gcc("-shared", "-fPIC")


def modules() -> list[str]:
    directory = os.path.join(sysconfig.get_path("stdlib"), "lib-dynload")
    return sorted(glob.glob(os.path.join(glob.escape(directory), "*.so")))


def versions(path: str) -> Iterator[tuple[int, ...]]:
    """The versions of glibc that readelf says a file needs, but for the weak ones."""
    done = subprocess.run(["readelf", "-VW", path], capture_output=True, text=True, check=True)
    for name, flags in re.findall(r"Name: GLIBC_([\d.]+)\s+Flags: (\S+)", done.stdout):
        if flags != "WEAK":
            yield tuple(map(int, name.split(".")))


def test_the_shared_libraries_that_a_file_needs() -> None:
    program = gcc("-Wl,--no-as-needed", "-lm", code=b"int main(void) { return 0; }")
    for data, expected in ((program, {"libm.so.6", "libc.so.6"}), (b"#!/bin/sh\n", set())):
        file = os.memfd_create("libraries")
        try:
            os.write(file, data)
            assert set(libraries(file)) == expected
        finally:
            os.close(file)


def test_the_machine_and_the_newest_version_that_a_library_needs() -> None:
    found = of(library())
    assert found is not None
    assert found.machine == platform.machine()
    assert found.libc == "glibc"
    assert found.version >= (2, 17)


def test_a_program_is_read_like_a_library() -> None:
    found = of(gcc(code=b"int main(void) { return 0; }"))
    assert found is not None
    assert found.libc == "glibc"


def test_what_is_not_linked_yet_needs_nothing() -> None:
    assert of(gcc("-c")) is None


def test_a_library_without_a_c_library_needs_none() -> None:
    data = gcc("-shared", "-fPIC", "-nostdlib", code=b"int one(void) { return 1; }")
    assert of(data) == Needs(platform.machine(), "", ())


def test_a_weak_need_may_be_missing() -> None:
    data = tiny(b"libc.so.6\0", b"GLIBC_2.9", b"GLIBC_2.30", flags=2)
    assert of(data) == Needs("x86_64", "glibc", ())


@pytest.mark.parametrize("name", [b"libc.so\0\0", b"libc.musl-x86_64.so.1\0"])
def test_musl_is_known_by_its_library(name: bytes) -> None:
    assert of(tiny(name)) == Needs("x86_64", "musl", ())


def test_a_processor_without_a_name_has_its_number() -> None:
    data = bytearray(tiny(b"libc.so.6\0"))
    data[18:20] = struct.pack("<H", 1234)
    assert of(bytes(data)) == Needs("elf-1234", "glibc", ())


def test_private_versions_and_other_libraries_are_not_counted() -> None:
    assert of(tiny(b"libc.so.6\0", b"GLIBC_2.4", b"GLIBC_PRIVATE", b"OPENSSL_9.9")) == Needs(
        "x86_64", "glibc", (2, 4)
    )


def test_numbers_are_compared_as_numbers() -> None:
    found = of(tiny(b"libc.so.6\0", b"GLIBC_2.9", b"GLIBC_2.17", b"GLIBC_2.2.5"))
    assert found is not None
    assert found.version == (2, 17)


def test_counts_beyond_all_measure_are_refused() -> None:
    assert of(tiny(b"libc.so.6\0", b"GLIBC_2.9", need_count=0xFFFFFFFF)) is None
    assert of(tiny(b"libc.so.6\0", b"GLIBC_2.9", count=0xFFFF)) is None


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" * 20, b"#!/bin/sh\n" * 20])
def test_other_files_need_nothing(data: bytes) -> None:
    assert of(data) is None


def test_a_pipe_and_a_directory_are_no_compiled_file() -> None:
    reading, writing = os.pipe()
    directory = os.open("/", os.O_RDONLY)
    assert [needs(file) for file in (reading, directory)] == [None, None]
    for file in (reading, writing, directory):
        os.close(file)


def test_the_place_in_the_file_stays() -> None:
    with open(sys.executable, "rb") as file:
        file.raw.seek(7)
        assert needs(file.fileno()) is not None
        assert file.raw.tell() == 7


def test_readelf_agrees_on_the_modules_of_this_python() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not on this machine")
    if not modules():
        pytest.skip("this Python has its modules built in")
    for path in modules():
        with open(path, "rb") as file:
            found = needs(file.fileno())
        assert found is not None, path
        assert found.version == max(versions(path), default=()), path


def test_no_end_of_the_file_makes_it_fail() -> None:
    data = library()
    whole = of(data)
    for size in range(0, len(data), 64):
        assert of(data[:size]) in (None, whole)


@settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_change_of_a_file_makes_it_fail(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([tiny(b"libc.so.6\0", b"GLIBC_2.9"), library()]))
    changed = bytearray(base)
    for _ in range(data.draw(st.integers(1, 8))):
        # Most of what is read stands at the beginning.
        at = data.draw(st.integers(0, min(len(base), 2048) - 8))
        value = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))
        width = data.draw(st.sampled_from([1, 2, 4, 8]))
        changed[at : at + width] = bytes([value]) * width
    found = of(bytes(changed))
    assert found is None or isinstance(found, Needs)


def tiny(
    library: bytes,
    *names: bytes,
    flags: int = 0,
    count: int | None = None,
    need_count: int = 1,
) -> bytes:
    """A library of headers and tables alone, for x86_64, that needs those versions."""
    dynamic_at, needs_at, strings_at = 0x180, 0x200, 0x1000
    strings = b"\0" + library
    places = []
    for name in names:
        places.append(len(strings))
        strings += name + b"\0"
    entries = [(1, 1), (5, strings_at), (10, len(strings))]
    if names:
        entries += [(0x6FFFFFFE, needs_at), (0x6FFFFFFF, need_count)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in [*entries, (0, 0)])
    version = struct.pack("<HHIII", 1, len(names) if count is None else count, 1, 16, 0)
    for number, place in enumerate(places):
        # With a count beyond the names, the last one leads on, into what is no entry.
        following = 16 if count or number < len(places) - 1 else 0
        version += struct.pack("<IHHII", 0, flags, 2, place, following)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = strings_at + len(strings)
    head += struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096)
    head += struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, dynamic_at, 0, len(dynamic), 0, 8)
    data = head.ljust(dynamic_at, b"\0") + dynamic
    data = data.ljust(needs_at, b"\0") + version
    return data.ljust(strings_at, b"\0") + strings
