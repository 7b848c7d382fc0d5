"""Bytecode of every Python at hand: written by it, rewritten by us, loaded by it again."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import py_compile
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts import bytecode
from relocate_core.artefacts.bytecode import Source, Unreadable, follow_source
from relocate_core.artefacts.kinds import rewrite
from relocate_core.artefacts.prefix import Prefixes
from tests.support import environments
from tests.support.fuzz import examples

VERSIONS = ("2.7", *environments.VERSIONS, "pypy3.9")

SOURCE = '''# -*- coding: utf-8 -*-
"""Lies in {P}, and below {P}/share."""
import functools
PATH = "{P}"
BELOW = u"{P}/lib/python"
LIST = "{P}/a:{P}/b"
BYTES = b"{B}/bytes"
PAIR = ("{P}/one", "{P}/two", ("{P}/deep", 1.5, 2j, None, True, Ellipsis, -7, 1 << 80))
LONGER = "{P}/{FILL}"
NOT = "{P}2 {P}-old"
FLAG = "-L{P}/lib"
UMLAUT = u"{P}/gr\\u00fcn"


def outer(default="{P}/default"):
    """Documented in {P}."""
    def inner(x={{"{P}/key": b"{B}/value"}}):
        return [lambda: (y, "{P}/lambda") for y in range(3)]
    if default in {{"{P}/set", "b"}}:
        return {{k: "{P}" for k in default}}
    return inner


class Thing(object):
    where = "{P}/class"

    def method(self):
        def generator():
            yield "{P}/generator"
        return generator
'''
MODERN = """

def modern(x, *, keyword="{P}/keyword") -> "{P}/annotation":
    import asyncio
    async def inside():
        return f"{P}/{{x}}/y{{x!r:>10}}"
    return inside
"""

# Prints all file names and constants of a pyc, and of a source compiled at a path.
DUMP = r"""
import json, marshal, sys
HEADER = int(sys.argv[1])
def show(value):
    if hasattr(value, "co_code"):
        return ["code", value.co_name, value.co_filename, show(value.co_consts),
                show(value.co_names)]
    if isinstance(value, (tuple, list)):
        return [type(value).__name__] + [show(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__] + sorted(repr(show(item)) for item in value)
    return [type(value).__name__, ascii(value) if sys.version_info[0] > 2 else repr(value)]
out = []
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        data = file.read()
    out.append(show(marshal.loads(data[HEADER:])))
print(json.dumps(out))
"""

COMPILE = r"""
import py_compile, sys
cfile, file, dfile = sys.argv[1:4]
extra = {}
if len(sys.argv) > 4:
    extra["invalidation_mode"] = getattr(py_compile.PycInvalidationMode, sys.argv[4])
py_compile.compile(file, cfile=cfile, dfile=dfile, doraise=True, **extra)
"""


def headers(version: str) -> int:
    return 8 if version == "2.7" else 12 if version == "3.6" else 16


@functools.cache
def python_of(version: str) -> str:
    return environments.require(version)


def run(python: str, *arguments: str | bytes, **env: str) -> str:
    done = subprocess.run(
        [python, *arguments],
        env=environments.environ(LC_ALL="C.UTF-8", **env),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "surrogateescape")


def source(version: str, prefix: str, fill: int = 300) -> str:
    text = SOURCE + (MODERN if version != "2.7" else "")
    ascii_bytes = "".join(f"\\x{byte:02x}" if byte > 127 else chr(byte) for byte in prefix.encode())
    return text.format(P=prefix, B=ascii_bytes, FILL="f" * fill)


def compiled(
    version: str, directory: Path, prefix: str, text: str | None = None, mode: str = ""
) -> bytes:
    """What that Python compiles a source to, at <prefix>/lib/mod.py."""
    file = directory / "mod.py"
    file.write_text(source(version, prefix) if text is None else text, encoding="utf-8")
    os.utime(file, (1_600_000_000, 1_600_000_000))
    cfile = directory / "out.pyc"
    arguments = [str(cfile), str(file), prefix + "/lib/mod.py", *([mode] if mode else [])]
    # Without columns, which tell how long a literal was.
    run(python_of(version), "-c", COMPILE, *arguments, PYTHONNODEBUGRANGES="1")
    return cfile.read_bytes()


def dump(version: str, directory: Path, *files: bytes) -> list[object]:
    """How that Python reads the constants and names of each file."""
    names = []
    for number, data in enumerate(files):
        names.append(str(directory / f"dump{number}.pyc"))
        Path(names[-1]).write_bytes(data)
    found = json.loads(run(python_of(version), "-c", DUMP, str(headers(version)), *names))
    assert isinstance(found, list)
    return found


def moved(
    data: bytes, old: str, new: str, path: str = "lib/__pycache__/mod.cpython-39.pyc"
) -> bytes:
    prefixes = Prefixes((old.encode(),), new.encode())
    result = rewrite(path, data, prefixes)
    assert not result.problem
    assert rewrite(path, result.data, prefixes).data == result.data, "a second run"
    return result.data


A = "/srv/app"
TARGETS = {
    "shorter": "/x",
    "same-length": "/opt/new",
    "longer": "/srv/somewhere/else",
    "contains-the-old": "/srv/app/v2",
    "long": "/srv/" + "l" * 200,
    "255": "/srv/" + "l" * (255 - 5 - len("/lib/mod.py")),
    "256": "/srv/" + "l" * (256 - 5 - len("/lib/mod.py")),
    "huge": "/srv/" + "l" * 1000,
    "non-ascii": "/srv/grün/中",
    "long-non-ascii": "/srv/ü" + "l" * 300,
    "space": "/srv/my app",
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.few(15)
def test_the_python_reads_what_it_would_have_compiled(
    version: str, name: str, tmp_path: Path
) -> None:
    new = TARGETS[name]
    at_a = compiled(version, tmp_path, A)
    # The prefix with a letter behind it is no reference, and stays.
    text = source(version, new).replace(f"{new}2 {new}-old", f"{A}2 {A}-old")
    at_b = compiled(version, tmp_path, new, text)
    rewritten = moved(at_a, A, new)
    ours, theirs = dump(version, tmp_path, rewritten, at_b)
    assert ours == theirs
    assert moved(rewritten, new, A) == at_a, "the way back"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.few(2)
def test_the_whole_file_is_what_the_python_would_have_written(version: str, tmp_path: Path) -> None:
    """With names and plain constants only: no set, whose order hangs on the strings."""
    text = 'def f():\n    return lambda: "{P}/x"\nclass C(object):\n    y = "{P}"\n'
    for new in TARGETS.values():
        if version in ("2.7", "pypy3.9") and not new.isascii():
            continue  # bytes and text there have other types
        # As long as the new one's, so that the size in the header agrees.
        fill = "#" * 3000
        at_a, at_b = (
            compiled(version, tmp_path, p, (t := text.replace("{P}", p)) + fill[len(t.encode()) :])
            for p in (A, new)
        )
        assert moved(at_a, A, new) == at_b
        assert moved(at_b, new, A) == at_a


# --- the source that a file belongs to ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.few(5)
def test_python_imports_the_new_value_after_a_move_of_the_same_length(
    version: str, mode: str, tmp_path: Path
) -> None:
    if mode != "TIMESTAMP" and version in ("2.7", "3.6"):
        pytest.skip("hash-based bytecode came with Python 3.7")
    new = "/opt/new"
    package = tmp_path / "package"
    package.mkdir()
    file = package / "mod.py"
    old_source = f'VALUE = "{A}/etc"\n'.encode()
    file.write_bytes(old_source)
    os.utime(file, (1_600_000_000, 1_600_000_000))
    python = python_of(version)
    tag = "import imp, sys; sys.stdout.write('mod.pyc')"
    if version != "2.7":
        tag = "import importlib.util; print(importlib.util.cache_from_source('mod.py'), end='')"
    pyc = package / run(python, "-c", tag)
    pyc.parent.mkdir(exist_ok=True)
    extra = [] if mode == "TIMESTAMP" else [mode]
    run(python, "-c", COMPILE, str(pyc), str(file), f"{A}/mod.py", *extra)
    before = pyc.read_bytes()

    show = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import mod; sys.stdout.write(mod.VALUE)"
    )
    assert run(python, "-c", show) == f"{A}/etc"

    new_source = old_source.replace(A.encode(), new.encode())
    file.write_bytes(new_source)
    os.utime(file, (1_600_000_000, 1_600_000_000))
    if mode != "CHECKED_HASH":
        assert run(python, "-c", show) == f"{A}/etc", "the trap that this test is about"
    rewritten = follow_source(
        moved(before, A, new),
        Source(old_source, 1_600_000_000),
        Source(new_source, 1_600_000_000),
    )
    pyc.write_bytes(rewritten)
    status = pyc.stat()
    assert run(python, "-c", show) == f"{new}/etc"
    assert pyc.read_bytes() == rewritten, "the Python took the file for stale"
    assert pyc.stat().st_mtime_ns == status.st_mtime_ns
    run(python, "-c", COMPILE, str(pyc), str(file), f"{new}/mod.py", *extra)
    assert pyc.read_bytes() == rewritten


@pytest.mark.parametrize("version", [v for v in VERSIONS if v not in ("2.7", "3.6")])
def test_the_source_hash_is_the_one_of_that_python(version: str) -> None:
    code = (
        "import importlib.util as u; print(u.MAGIC_NUMBER.hex());"
        "[print(u.source_hash(bytes(range(n)) * 3).hex()) for n in (0, 1, 2, 3, 5, 7, 8, 85, 255)]"
    )
    magic, *hashes = run(python_of(version), "-c", code).split()
    header = bytes.fromhex(magic) + bytes(12)
    rounds = bytecode.layout_of(header).rounds
    for size, expected in zip((0, 1, 2, 3, 5, 7, 8, 85, 255), hashes):
        data = bytes(range(size)) * 3
        assert bytecode.source_hash(header[:4], data, rounds).hex() == expected


@pytest.mark.parametrize("mode", ["TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH"])
def test_a_file_that_was_stale_stays_stale(mode: str, tmp_path: Path) -> None:
    version = "3.11"
    text = f'VALUE = "{A}"\n'
    data = compiled(version, tmp_path, A, text, mode)
    other = Source(b"# something else\n", 1_600_000_001)
    assert follow_source(data, other, Source(b"# new\n", 1_600_000_001)) == data
    if mode == "TIMESTAMP":
        grown = Source(text.encode() + b"#", 1_600_000_000)
        assert follow_source(data, grown, Source(b"", 1_600_000_000)) == data


def test_times_and_sizes_beyond_32_bits_are_cut_as_python_does(tmp_path: Path) -> None:
    late = 1 << 33
    head = struct.pack("<HHIII", 3495, 0x0A0D, 0, late & 0xFFFFFFFF, 3)
    assert follow_source(head, Source(b"old", late), Source(b"newer", late))[12:] == b"\5\0\0\0"


# --- the quick path and the walk ------------------------------------------------------------------


def walked(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """The full walk, without the quick path."""
    quick = bytecode._rewrite_filenames
    bytecode._rewrite_filenames = lambda *_: None  # type: ignore[assignment]
    try:
        return bytecode.rewrite(path, data, prefixes)
    finally:
        bytecode._rewrite_filenames = quick


@pytest.mark.slow
def test_the_quick_path_and_the_walk_agree_on_the_standard_library(tmp_path: Path) -> None:
    library = os.path.dirname(os.__file__)
    names = sorted(glob.glob(f"{library}/*.py") + glob.glob(f"{library}/email/*.py"))
    quick = 0
    for name in names[:300]:
        cfile = str(tmp_path / "out.pyc")
        base = os.path.basename(name)
        try:
            py_compile.compile(name, cfile=cfile, dfile=f"{A}/lib/{base}", doraise=True)
        except py_compile.PyCompileError:
            continue
        data = Path(cfile).read_bytes()
        path = f"lib/__pycache__/{base[:-3]}.cpython-311.pyc"
        for new in (b"/x", b"/srv/" + b"l" * 260, "/srv/grün".encode(), b"/srv/app/v2"):
            prefixes = Prefixes((A.encode(),), new)
            expected = walked(path, data, prefixes)
            assert bytecode.rewrite(path, data, prefixes) == expected
            layout = bytecode.layout_of(data)
            quick += bytecode._rewrite_filenames(path, data, prefixes, layout) is not None
            back = Prefixes((new,), A.encode())
            assert bytecode.rewrite(path, expected, back) == data
    assert quick > len(names), "the quick path is hardly ever taken"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_quick_path_is_not_fooled_by_constants(version: str, tmp_path: Path) -> None:
    """Constants that look like the source's name, and instructions that look like a string."""
    new = "/opt/longer/than/that"
    fakes = [
        f"{A}/lib/mod.py",
        f"{A}/x {A}/lib/mod.py",
        f"{A}/mod.py and {A}/mod.py",
        f"{A}/mod.py\n{A}",
        f"x{A}/mod.py",
    ]
    text = "".join(f"X{n} = {fake!r}; Y{n} = b{fake!r}\n" for n, fake in enumerate(fakes))
    expected = "".join(
        f"X{n} = {want!r}; Y{n} = b{want!r}\n"
        for n, fake in enumerate(fakes)
        for want in [Prefixes((A.encode(),), new.encode()).replace(fake.encode()).decode()]
    )
    at_a = compiled(version, tmp_path, A, text)
    ours, theirs = dump(
        version, tmp_path, moved(at_a, A, new), compiled(version, tmp_path, new, expected)
    )
    assert ours == theirs


@settings(deadline=None, max_examples=examples(200), suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from([A, "/lib/mod.py", "/mod.py", " ", "z\x13", "Z\x13", ":", "x", "\n"]))
)
def test_the_quick_path_agrees_with_the_walk_on_nasty_constants(pieces: list[str]) -> None:
    import importlib.util
    import marshal

    constant = "".join(pieces)
    code = compile(f"X = {constant!r}\nY = {constant.encode()!r}\n", f"{A}/lib/mod.py", "exec")
    data = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)
    prefixes = Prefixes((A.encode(),), b"/opt/longer")
    path = "lib/__pycache__/mod.cpython-311.pyc"
    assert bytecode.rewrite(path, data, prefixes) == walked(path, data, prefixes)


# --- marshal --------------------------------------------------------------------------------------


def test_every_type_that_marshal_writes_is_walked() -> None:
    import importlib.util
    import marshal

    path = A + "/x"
    for version in (0, 1, 2, 3, 4):
        value = [
            path,
            {path: path, "k": [path]},
            {path},
            frozenset([path]),
            (path,) * 300,
            [1, -1, 1 << 200, -(1 << 40), 1.5, 2j, None, True, False, Ellipsis, StopIteration],
            path.encode(),
            path + "ü" * 200,
            path + "l" * 300,
            "\ud800 " + path,
        ]
        data = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(value, version)
        new = moved(data, A, "/opt/longer")
        loaded = marshal.loads(new[16:])
        assert repr(loaded) == repr(value).replace(A, "/opt/longer")
        assert moved(new, "/opt/longer", A) == data


def test_a_frozendict_of_python_3_15_is_walked() -> None:
    """No compiler writes one into a code object yet; by marshal.c it differs in its type alone."""
    import marshal

    header = struct.pack("<H", 3660) + b"\r\n" + bytes(12)
    before, after = ({"k": [f"{prefix}/x"]} for prefix in (A, "/opt/longer"))
    data = header + b"}" + marshal.dumps(before, 2)[1:]
    assert moved(data, A, "/opt/longer") == header + b"}" + marshal.dumps(after, 2)[1:]


# --- broken and hostile files ---------------------------------------------------------------------


@functools.cache
def small(version: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        text = f'X = ("{A}/a", b"{A}")\ndef f(): return {{"{A}"}}\n'
        return compiled(version, Path(directory), A, text)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_that_is_cut_short_is_left_or_goes_back_to_the_byte(version: str) -> None:
    data = small(version)
    prefixes = Prefixes((A.encode(),), b"/opt/longer")
    back = Prefixes((b"/opt/longer",), A.encode())
    for size in range(len(data)):
        cut = data[:size]
        result = rewrite("lib/mod.pyc", cut, prefixes)
        assert result.data == cut if result.problem else A.encode() not in result.data
        assert rewrite("lib/mod.pyc", result.data, back).data == cut
        with pytest.raises(Unreadable):
            walked("lib/mod.pyc", cut, prefixes)


def header(layout: int = 3495) -> bytes:
    return struct.pack("<HH", layout, 0x0A0D) + bytes(12)


@pytest.mark.parametrize(
    "body",
    [
        b"(" + b"\xff\xff\xff\x7f",
        b"(" + b"\xff\xff\xff\xff",
        (b"(" + struct.pack("<i", 60)) * 20,
        b"s" + b"\xff\xff\xff\x7f/srv/app/x",
        b"s" + b"\xff\xff\xff\xff/srv/app/x",
        b"l" + b"\xff\xff\xff\x7f",
        b"l" + b"\x00\x00\x00\x80",
        b"c" * 1000,
        b")\xff" * 1000,
        b"{" * 1000,
        b":" * 1000,
        b"(\x01\0\0\0" * 100_000,
        b")\x01" * 100_000 + b"N",
        b"f\xff",
        b"x\xff",
        b"?",
        b"",
        b"0",
    ],
)
def test_hostile_bytecode_costs_neither_memory_nor_recursion(body: bytes) -> None:
    prefixes = Prefixes((A.encode(),), b"/opt/longer")
    tracemalloc.start()
    try:
        result = rewrite("lib/mod.pyc", header() + body, prefixes)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert result.data == header() + body


@pytest.mark.parametrize("magic", [0, 1, 62210, 3000, 3900, 65535])
def test_an_unknown_magic_number_is_reported(magic: int) -> None:
    result = rewrite(
        "lib/mod.pyc", header(magic) + b"z\x08/srv/app", Prefixes((b"/srv/app",), b"/x")
    )
    assert result.data.endswith(b"/srv/app")
    assert str(magic) in result.problem


@pytest.mark.parametrize("version", VERSIONS)
def test_a_damaged_file_never_raises(version: str) -> None:
    data = small(version)
    prefixes = Prefixes((A.encode(),), b"/opt/longer")

    @settings(deadline=None, max_examples=examples(200))
    @given(
        st.lists(
            st.tuples(st.integers(0, len(data) - 1), st.binary(max_size=5), st.integers(0, 5)),
            min_size=1,
            max_size=4,
        )
    )
    def check(edits: list[tuple[int, bytes, int]]) -> None:
        broken = data
        for at, piece, skip in edits:
            broken = broken[:at] + piece + broken[at + skip :]
        result = rewrite("lib/mod.pyc", broken, prefixes)
        if result.problem:
            assert result.data == broken
        with contextlib.suppress(Unreadable):
            follow_source(broken, Source(b"x", 0), Source(b"y", 0))
        bytecode.recorded_source("lib/mod.pyc", broken)

    check()


@pytest.mark.slow
def test_what_was_loadable_stays_loadable_whatever_is_damaged() -> None:
    """Each single changed byte: where Python still loads the file, it loads the moved one."""
    import marshal

    if sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)):
        pytest.skip("damaged code objects may crash other Pythons' marshal")
    import importlib.util

    data = importlib.util.MAGIC_NUMBER + bytes(12)
    data += marshal.dumps([A, (A + "/x", {A: 1}), A.encode(), 7, 1 << 90, frozenset([A])])
    prefixes = Prefixes((A.encode(),), b"/opt/longer")
    for at in range(16, len(data)):
        for byte in (0, 1, 5, 0x29, 0x5B, 0x7A, 0xFA, 0xDA, data[at] ^ 0x80, data[at] ^ 1):
            broken = data[:at] + bytes((byte,)) + data[at + 1 :]
            try:
                before = marshal.loads(broken[16:])
            except (ValueError, EOFError, TypeError, MemoryError):
                continue
            result = rewrite("lib/mod.pyc", broken, prefixes)
            if result.problem:
                continue
            after = marshal.loads(result.data[16:])
            assert repr(after).count("/opt/longer") <= repr(before).count(A)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lib/a/__pycache__/m.cpython-311.pyc", "lib/a/m.py"),
        ("lib/a/__pycache__/m.cpython-311.opt-1.pyc", "lib/a/m.py"),
        ("__pycache__/m.cpython-311.pyc", "m.py"),
        ("lib/m.pyc", "lib/m.py"),
        ("lib/m.pyo", "lib/m.py"),
        ("lib/m.py", None),
    ],
)
def test_the_source_of_a_bytecode_file(path: str, expected: str | None) -> None:
    assert bytecode.source_of(path) == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recorded_source_is_found(version: str, tmp_path: Path) -> None:
    for prefix in (A, "/srv/" + "l" * 300):
        data = compiled(version, tmp_path, prefix, "def f(): pass\n")
        path = "lib/mod.pyc"
        assert bytecode.recorded_source(path, data) == f"{prefix}/lib/mod.py"
        assert bytecode.recorded_source("lib/other.pyc", data) is None
