"""Bytecode of Pythons that few machines have: 3.14, 3.15, and free-threaded builds.

`compiled/` has what they have written, for machines without them; where one is installed, it writes
again. See `compiled/write.py`.
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from relocate_core.artefacts import bytecode
from relocate_core.artefacts.bytecode import Source, follow_source
from relocate_core.artefacts.prefix import Prefixes
from tests.support import environments
from tests.unit.artefacts.compiled.write import MTIME, PREFIXES

DIRECTORY = Path(__file__).with_name("compiled")
RECORDED = sorted(file.stem for file in DIRECTORY.glob("*.json"))
LIVE = ("3.11", "3.12", "3.13", "3.14", "3.15", "3.13t", "3.14t", "3.15t")
MODES = ("TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH")
PATH = "lib/__pycache__/mod.cpython-315.pyc"


@functools.cache
def output(case: str) -> dict[str, Any]:
    """What a Python has written: when the file was recorded, or just now."""
    kind, _, version = case.partition(" ")
    if kind == "recorded":
        text = (DIRECTORY / f"{version}.json").read_text()
    else:
        python = environments.require(version)
        write = str(DIRECTORY / "write.py")
        text = environments.run(python, write, PYTHONNODEBUGRANGES="1")
    result = json.loads(text)
    assert isinstance(result, dict)
    return result


def data(packed: str) -> bytes:
    return zlib.decompress(base64.b64decode(packed))


@pytest.fixture(
    params=[*(f"recorded {name}" for name in RECORDED), *(f"live {version}" for version in LIVE)]
)
def written(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The output of one Python."""
    return output(request.param)


def test_all_new_versions_are_recorded() -> None:
    assert {"3.13t", "3.14", "3.15"} <= set(RECORDED)
    for name in RECORDED:
        result = output(f"recorded {name}")
        minor = ".".join(result["version"].split(".")[:2])
        assert name == minor + "t" * result["free_threaded"]


@pytest.mark.parametrize("mode", MODES)
def test_moved_bytecode_is_what_the_python_would_have_written(
    written: dict[str, Any], mode: str
) -> None:
    files = {prefix: data(written["files"][f"{mode} {prefix}"]) for prefix in PREFIXES}
    sources = {prefix: data(written["sources"][prefix]) for prefix in PREFIXES}
    for old in PREFIXES[:3]:
        for new in PREFIXES:
            moved = bytecode.rewrite(PATH, files[old], Prefixes((old.encode(),), new.encode()))
            moved = follow_source(moved, Source(sources[old], MTIME), Source(sources[new], MTIME))
            assert moved == files[new], (old, new)


def test_the_layout_is_known(written: dict[str, Any]) -> None:
    layout = bytecode.layout_of(bytes.fromhex(written["magic"]) + bytes(12))
    assert (layout.header, layout.rounds) == (16, 1)


def test_the_walk_reads_every_path(written: dict[str, Any]) -> None:
    old = PREFIXES[0].encode()
    content = data(written["files"][f"TIMESTAMP {PREFIXES[0]}"])
    layout = bytecode.layout_of(content)
    strings = [content[start:stop] for start, stop, _ in bytecode._strings(content, layout)]
    assert sum(one.count(old) for one in strings) == content.count(old)
    expected = [b"/one", b"/two", b"/default", b"/keyword", b"/key", b"/value", b"/lambda"]
    assert {old + tail for tail in (*expected, b"/class", b"/lib/mod.py")} <= set(strings)


def test_what_is_cut_short_is_refused(written: dict[str, Any]) -> None:
    content = data(written["files"][f"TIMESTAMP {PREFIXES[0]}"])
    prefixes = Prefixes((PREFIXES[0].encode(),), b"/x")
    for size in range(16, len(content), 97):
        with pytest.raises(bytecode.Unreadable):
            list(bytecode._strings(content[:size], bytecode.layout_of(content)))
    assert bytecode.rewrite(PATH, content, prefixes) != content
