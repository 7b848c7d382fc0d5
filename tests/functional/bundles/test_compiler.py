"""Compiled by a Python's own helpers: what it loads, what it does not compile, and always alike."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relocate_core.bundles import compiler as compiling
from relocate_core.bundles.compiler import Compiler, Job
from relocate_core.errors import InterpreterNotFound
from tests.support import pythons
from tests.support.environments import VERSIONS, require, require_any, run

PYTHONS = (*VERSIONS, "pypy3.9")
ALL_MODES = ("timestamp", "checked-hash", "unchecked-hash")


def job(source: bytes = b"x = 1\n", name: str = "/a/b.py", **others: object) -> Job:
    plain = Job(source, name, 0, "timestamp", 1_700_000_000, None)
    return plain._replace(**others)


def made(python: str, jobs: list[Job], count: int = 1) -> list[bytes | None]:
    with Compiler(python, count) as compiler:
        return list(compiler.compile(jobs))


def sources(count: int) -> list[Job]:
    """Sources of the running Python's standard library."""
    directory = os.path.dirname(os.__file__)
    names = sorted(name for name in os.listdir(directory) if name.endswith(".py"))[:count]
    jobs = []
    for name in names:
        path = os.path.join(directory, name)
        with open(path, "rb") as file:
            jobs.append(job(file.read(), path))
    return jobs


@pytest.fixture
def python() -> str:
    return require_any(("3.11", "3.12", "3.10", "3.9", "3.13", "3.14"))


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.few(4)
def test_it_is_what_the_python_itself_writes(version: str, tmp_path: object) -> None:
    python = require(version)
    source = os.path.join(str(tmp_path), "caf\u00e9.py")
    with open(source, "wb") as file:
        file.write(
            b"# -*- coding: latin-1 -*-\ndef f(a):\n    'd\xf6c'\n    assert a\n    return 1\n"
        )
    os.utime(source, (0, 1_700_000_000))
    for optimization in (0, 1, 2):
        for mode in ALL_MODES:
            if version == "3.6" and mode != "timestamp":
                continue
            with open(source, "rb") as file:
                (ours,) = made(
                    python, [job(file.read(), source, optimization=optimization, mode=mode)]
                )
            assert ours is not None
            chosen = mode.upper().replace("-", "_")
            with open(source + "c", "wb") as file:
                file.write(ours)
            size = 12 if version == "3.6" else 16
            theirs = run(
                python,
                "-c",
                "import marshal, os, py_compile, sys\n"
                f"mode = {chosen!r}\n"
                "kind = getattr(py_compile, 'PycInvalidationMode', None)\n"
                "more = {'invalidation_mode': getattr(kind, mode)} if kind else {}\n"
                "py_compile.compile(sys.argv[1], sys.argv[1] + '2', doraise=True, "
                f"optimize={optimization}, **more)\n"
                "one, two = (open(sys.argv[1] + end, 'rb').read() for end in 'c2')\n"
                f"print(one[:{size}] == two[:{size}], "
                f"marshal.loads(one[{size}:]) == marshal.loads(two[{size}:]))\n",
                source,
                PYTHONUTF8="1",
                LC_ALL="C.UTF-8",
            )
            assert theirs.split() == ["True", "True"], (optimization, mode)


@pytest.mark.parametrize("version", PYTHONS)
def test_what_does_not_compile_gives_none(version: str) -> None:
    bad = [
        b"def",
        b"x = '\\N{no such thing}'",
        b"\0",
        b"# coding: no-such-codec\n",
        b"\xff\xfe",
        b"return 1",
        b"x = " + b"-" * 100_000 + b"1",
    ]
    jobs = [job(source) for source in (*bad, b"", b"x = 1")]
    results = made(require(version), jobs)
    # PyPy and some versions of CPython fold all the signs without a word.
    assert results[: len(bad) - 1] == [None] * (len(bad) - 1)
    assert results[-1] is not None
    assert results[-2] is not None


@pytest.mark.parametrize("version", ["3.12", "3.13t", "3.14t", "pypy3.9"])
def test_what_was_compiled_before_changes_nothing(version: str) -> None:
    shared = b"def f(x, a):\n return x in {1, 2}, g(encoding=a)\ndef h(a):\n return g(encoding=a)\n"
    python, jobs = require(version), [job(shared), *sources(40), job(shared)]
    assert len(set(made(python, [jobs[0], jobs[-1]]))) == 1
    assert made(python, jobs) == made(python, jobs[::-1])[::-1]


def test_python_3_6_has_no_hashes() -> None:
    python = require("3.6")
    assert made(python, [job(mode="checked-hash"), job(code=b"N", mode="unchecked-hash")]) == [
        None,
        None,
    ]
    (found,) = made(python, [job(b"abc", code=b"N")])
    assert found is not None
    assert found[4:] == (1_700_000_000).to_bytes(4, "little") + b"\3\0\0\0N"


@pytest.mark.parametrize("mode", ALL_MODES)
def test_code_that_is_there_is_kept(python: str, mode: str) -> None:
    whole, kept, other = made(
        python,
        [
            job(mode=mode),
            job(b"does not compile", code=b"\xe3whatever", mode=mode),
            job(code=b"\xe3whatever", mode=mode),
        ],
    )
    assert whole is not None
    assert kept is not None
    assert other is not None
    assert other == whole[:16] + b"\xe3whatever"
    assert kept[:8] == whole[:8]
    assert kept[16:] == b"\xe3whatever"
    assert kept[8:16] != whole[8:16]


@pytest.mark.parametrize("mtime", [0, -1, 1 << 32, (1 << 40) + 5])
def test_times_of_more_than_32_bits_are_cut(python: str, mtime: int) -> None:
    (found,) = made(python, [job(mtime=mtime)])
    assert found is not None
    assert int.from_bytes(found[8:12], "little") == mtime & 0xFFFFFFFF


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.11", "3.12", "3.13"])
def test_any_name_is_recorded_as_it_is(version: str) -> None:
    for name in ("/\udcff/caf\u00e9 \U0001f600.py", "", "/a\nb.py"):
        (found,) = made(require(version), [job(name=name)])
        assert found is not None
        text = name.encode("utf-8", "surrogatepass")
        assert text in found


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.few(2)
def test_the_order_and_the_helpers_make_no_difference(version: str) -> None:
    python = require(version)
    same = b"def f(a):\n return a in {'426', '225', None, b'x', 1.5, (1, 'q')}\n"
    twice = job(same + same.replace(b"f(a)", b"g(a)"), "/z.py")
    braces = job(b"x = '{', '}', '{{', '}}'", "/x.py")
    written = job(b"from __future__ import annotations\nx: f'{y}{{}}'", "/w.py")
    jobs = [twice, braces, written, *sources(25), job(b"x = '426', '225', '226', 'q'", "/y.py")]
    once = made(python, jobs, 1)
    assert made(python, jobs[::-1], 1)[::-1] == once
    assert made(python, jobs, 3) == once
    shuffled = list(range(len(jobs)))
    random.Random(3).shuffle(shuffled)
    mixed = made(python, [jobs[place] for place in shuffled], 2)
    assert [mixed[shuffled.index(place)] for place in range(len(jobs))] == once


def test_an_import_of_all_makes_no_difference(tmp_path: Path) -> None:
    """It interns "*" for good, as most whole Pythons do already when they start."""
    top = pythons.small(pythons.require("3.12"), tmp_path / "small")
    stars = [job(b"x = '*', '?'", "/s.py"), job(b"from os import *", "/t.py")]
    once = made(f"{top}/bin/python3.12", stars, 1)
    assert made(f"{top}/bin/python3.12", stars[::-1], 1)[::-1] == once


def test_what_a_helper_has_imported_makes_no_difference(
    python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = made(python, sources(25))
    program = compiling.PROGRAM.replace("KEY =", "import argparse, email.message, unittest\nKEY =")
    monkeypatch.setattr(compiling, "PROGRAM", program)
    assert made(python, sources(25)) == once


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers that certain names kill (with SIGSEGV or SIGKILL) or stop."""
    program = compiling.PROGRAM.replace(
        "    if flags and OLD:",
        "    import os\n"
        "    if 'CRASH' in name: os.kill(os.getpid(), 11)\n"
        "    if 'KILL' in name: os.kill(os.getpid(), 9)\n"
        "    if 'HANG' in name: os.kill(os.getpid(), 19)\n"
        "    if flags and OLD:",
    )
    monkeypatch.setattr(compiling, "PROGRAM", program)


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize("count", [1, 3])
def test_a_source_that_crashes_the_compiler_gives_none(python: str, count: int) -> None:
    names = [f"/{number}{'CRASH' if number % 9 == 4 else ''}" for number in range(40)]
    results = made(python, [job(name=name) for name in names], count)
    assert [result is None for result in results] == ["CRASH" in name for name in names]


@pytest.mark.usefixtures("crashing")
def test_a_helper_that_is_killed_is_told(python: str) -> None:
    with pytest.raises(InterpreterNotFound, match=r"signal 9 while it compiled '/KILL'"):
        made(python, [job(), job(name="/KILL"), job()], 2)
    require_no_children()


@pytest.mark.usefixtures("crashing")
def test_a_source_that_takes_for_ever_gives_none(
    python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_SECONDS", 1)
    results = made(python, [job(), job(name="/HANG"), job()])
    assert [result is None for result in results] == [False, True, False]


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.few(3)
def test_a_bomb_of_parentheses_ends_nothing(version: str) -> None:
    bombs = [b"(" * 200_000, b"x = " + b"[" * 90 + b"]" * 90, b"a" + b".a" * 200_000]
    results = made(require(version), [job(), *map(job, bombs), job()])
    assert results[1] is None
    assert results[0] is not None
    assert results[0] == results[-1]


@pytest.mark.parametrize(
    ("script", "said"),
    [("exit 3", "no Python"), ("kill -9 $$", "no Python"), ("echo hello", "no Python")],
)
def test_something_else_than_a_python_is_told(tmp_path: object, script: str, said: str) -> None:
    program = os.path.join(str(tmp_path), "python")
    with open(program, "w") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(program, 0o755)
    with pytest.raises(InterpreterNotFound, match=said):
        made(program, [job()])
    require_no_children()


def test_a_python_that_is_not_there_is_told() -> None:
    with pytest.raises(InterpreterNotFound, match="does not run: no such file"):
        made("/nowhere/python", [job()])


def test_python_2_is_told_to_be_too_old() -> None:
    with pytest.raises(InterpreterNotFound, match=r"Python 2\.7.*needs 3\.6"):
        made(require("2.7"), [job()])


def test_only_so_much_is_taken_ahead(python: str) -> None:
    taken = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield job()

    with Compiler(python, 2) as compiler:
        results = compiler.compile(jobs())
        for given in range(1, 500):
            assert next(results) is not None
            assert taken - given <= compiling._JOBS_AHEAD * 2
        results.close()
        assert list(compiler.compile([job()])) == made(python, [job()])
    require_no_children()


def test_big_sources_and_results_do_not_block(python: str) -> None:
    big = b"".join(b"a%d = 'text %d'\n" % (number, number) for number in range(20_000))
    start = time.monotonic()
    results = made(python, [job(big), job(), job(big)] * 2 + [job(b"#" * (20 << 20))] * 2, 2)
    assert None not in results
    assert time.monotonic() - start < 60


def test_no_jobs_give_nothing(python: str) -> None:
    assert made(python, []) == []


def require_no_children() -> None:
    path = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    with open(path) as file:
        names = [name for name in file.read().split() if is_python(name)]
    assert names == []


def is_python(process: str) -> bool:
    done = subprocess.run(["ps", "-o", "args=", process], capture_output=True, text=True)
    return "marshal" in done.stdout
