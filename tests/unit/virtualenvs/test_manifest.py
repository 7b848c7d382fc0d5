"""A manifest reads as what was written, and everything else is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relocate_core.archives.tar import DIRECTORY, FILE, LINK, Refused
from relocate_core.virtualenvs import manifest, manifest_reader
from relocate_core.virtualenvs.manifest import Base, Head, Row
from relocate_core.virtualenvs.manifest_reader import Manifest
from tests.support.fuzz import examples
from tests.unit.archives.test_tar import components

SHA = hashlib.sha256(b"x").hexdigest()
HEAD = Head(
    prefix="/srv/build",
    prefixes=("/srv/build",),
    python="3.11",
    version="3.11.2",
    implementation="cpython",
    home="/usr/bin",
    compiled=(((".cpython-311-x86_64-linux-gnu.so",), "lib/a.so"),),
    machine="x86_64",
    libc="glibc",
    libc_version="2.17",
    time=1_600_000_000,
    files=2,
    size=1,
    references=("bin/a",),
    uneditable=(("lib/b.zip", "it is packed"),),
    facts={"commit": "4f2a9c1"},
)
ROWS = (
    Row("bin", DIRECTORY, 0o755),
    Row("bin/a", FILE, 0o755, 1, SHA),
    Row("lib64", LINK, target="l"),
)
SECONDS = 20
"""What reading one manifest never takes, however hostile and on however busy a machine."""

some = settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
more = settings(max_examples=examples(200), deadline=None, suppress_health_check=list(HealthCheck))


# -- what there may be -----------------------------------------------------------------------------

hashes = st.sampled_from([hashlib.sha256(b"%d" % number).hexdigest() for number in range(5)])
sizes = st.one_of(st.integers(0, 9), st.integers(0, 1 << 40))
file_modes = st.sampled_from([0o644, 0o755, 0o400, 0o555])
directory_modes = st.sampled_from([0o755, 0o700])
names = st.one_of(
    components,
    st.sampled_from(["a b", 'a"b', "a'b", "a\\b", "a,b", "a]", "[", "a!", "a-b", "a.b", "a", "b"]),
    st.sampled_from(["\udcff", "é", "e\u0301", "\U0001f600", "x" * 250]),
)
targets = st.one_of(names, st.just("../" * 300 + "x"), st.just("/usr/bin/python3.11"))


@st.composite
def trees(draw: Any, depth: int = 3, base: str = "") -> list[Row]:
    """The rows of any tree, in order."""
    rows: list[Row] = []
    known = draw(st.lists(names, max_size=5, unique=True))
    for name in sorted(known):
        path = base + name
        if path == manifest.PLACE or path == manifest.RECORD:
            continue
        kind = draw(st.sampled_from([FILE, FILE, LINK, DIRECTORY] if depth else [FILE, LINK]))
        if kind == FILE:
            rows.append(Row(path, FILE, draw(file_modes), draw(sizes), draw(hashes)))
        elif kind == LINK:
            rows.append(Row(path, LINK, target=draw(targets)))
        else:
            rows.append(Row(path, DIRECTORY, draw(directory_modes)))
            rows += draw(trees(depth - 1, f"{path}/"))
    return rows


heads = st.builds(
    Head,
    prefix=st.sampled_from(["", "/srv/build", "/srv/a b", "/srv/\udcff", "/srv/é"]),
    prefixes=st.lists(st.just("/srv/build"), max_size=2).map(tuple),
    python=st.just("3.11"),
    version=st.just("3.11.2"),
    implementation=st.sampled_from(["cpython", "pypy"]),
    home=st.sampled_from(["", "/usr/bin"]),
    compiled=st.lists(
        st.tuples(st.lists(st.text("ab.", min_size=1), max_size=2).map(tuple), st.just("lib/a.so")),
        max_size=2,
    ).map(tuple),
    machine=st.sampled_from(["", "x86_64"]),
    libc=st.sampled_from(["", "glibc", "musl"]),
    libc_version=st.sampled_from(["", "2.17"]),
    time=st.integers(0, 10**10),
    files=st.integers(0, 10**6),
    size=st.integers(0, 10**12),
    references=st.lists(names, max_size=3).map(tuple),
    uneditable=st.lists(st.tuples(names, st.just("it is packed")), max_size=2).map(tuple),
    facts=st.dictionaries(names, names, max_size=3),
    base=st.one_of(
        st.none(), st.builds(Base, hashes, st.lists(names, max_size=3).map(tuple), hashes)
    ),
)


# -- reading ---------------------------------------------------------------------------------------


def opened(data: bytes) -> Manifest:
    """A manifest of that text."""
    with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        file.write(data)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return Manifest(os.dup(file.fileno()))


def read(data: bytes) -> tuple[Head, list[Row]]:
    """All that a manifest says, with everything looked at that is looked at when it is deployed."""
    with opened(data) as known:
        known.require_digest()
        return known.head, list(known.rows())


def refused(data: bytes) -> Refused:
    """How a manifest is refused: in one line, with nothing left open."""
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused) as caught:
        read(data)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 400
    caught.value.__traceback__ = None
    assert len(os.listdir("/proc/self/fd")) == descriptors
    return caught.value


def sealed(rest: bytes, number: int = manifest.FORMAT) -> bytes:
    """A manifest of any text behind the first line, whose digest is right."""
    digest = hashlib.sha256(rest).hexdigest()
    return b'{"format": %d, "sha256": "%s",\n' % (number, digest.encode()) + rest


def with_head(head: str | bytes) -> bytes:
    """A manifest with that text for its head."""
    head = head if isinstance(head, bytes) else head.encode()
    return sealed(b'"head": ' + head + b',\n"files": [\n' + ROWS[0].line().encode() + b"\n]}\n")


def with_rows(*lines: str | bytes, between: bytes = b",\n") -> bytes:
    """A manifest with these texts for its rows."""
    data = between.join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return sealed(f'"head": {HEAD.line()},\n"files": [\n'.encode() + data + b"\n]}\n")


# -- what is written is read -----------------------------------------------------------------------


@some
@given(heads, trees())
def test_it_reads_as_it_was_written(head: Head, rows: list[Row]) -> None:
    """Names of all kinds; and any reader of JSON finds the same in it."""
    data, digest = manifest.document(head, rows)
    try:
        found, there = read(data)
    except Refused:
        own = (manifest.PLACE, manifest.RECORD)
        twice = len(set(head.references)) < len(head.references)
        assert twice or any(name.partition("/")[0] in own for name in head.references)
        return
    assert (found, there) == (head, rows)
    known = json.loads(data)
    assert known["sha256"] == digest
    assert hashlib.sha256(data.partition(b"\n")[2]).hexdigest() == digest
    assert [row[0] for row in known["files"]] == [row.path for row in rows]
    for row, values in zip(rows, known["files"]):
        assert json.dumps(values) == row.line(), "spelled in the one way that there is"
    assert manifest.document(found, there)[0] == data


@some
@given(trees())
def test_the_order_is_that_of_a_walk(rows: list[Row]) -> None:
    """A directory, all that is in it, and nothing else in between."""
    paths = [row.path for row in rows]
    assert sorted(paths, key=manifest.order) == paths
    assert len({manifest.order(path) for path in paths}) == len(paths)
    for number, row in enumerate(rows):
        inside = [n for n, path in enumerate(paths) if path.startswith(f"{row.path}/")]
        assert inside == list(range(number + 1, number + 1 + len(inside)))


@more
@given(st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), max_size=8, unique=True))
def test_the_order_is_total(paths: list[str]) -> None:
    """Whatever the order that they are given in."""
    once = sorted(paths, key=manifest.order)
    paths.reverse()
    assert sorted(paths, key=manifest.order) == once
    assert [path.split("/") for path in once] == sorted(path.split("/") for path in paths)


# -- what was changed ------------------------------------------------------------------------------

DATA, _ = manifest.document(HEAD, ROWS)


def test_every_changed_byte_is_refused() -> None:
    """Each byte, in four ways."""
    for at in range(len(DATA)):
        for byte in {DATA[at] ^ 1, DATA[at] ^ 0x20, 0, 0x0A} - {DATA[at]}:
            refused(DATA[:at] + bytes([byte]) + DATA[at + 1 :])


def test_every_truncation_is_refused() -> None:
    """And every byte that is missing, or is there twice."""
    for at in range(len(DATA)):
        refused(DATA[:at])
        refused(DATA[:at] + DATA[at + 1 :])
        refused(DATA[:at] + DATA[at : at + 1] + DATA[at:])
    refused(DATA + b"\n")
    refused(DATA + DATA)


@more
@given(st.data())
def test_a_sealed_change_is_refused_or_reads_otherwise(data: st.DataObject) -> None:
    """Whoever makes the digest right can say anything; it is read, or refused, and nothing else."""
    rest = bytearray(DATA.partition(b"\n")[2])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(rest) - 1))
        piece = data.draw(
            st.sampled_from(
                [b"", b"\n", b"[", b"]", b'"', b",", b"0", b"9" * 30, b"\xff", b"\\u", b"]}"]
            )
        )
        rest[at : at + data.draw(st.integers(0, 2))] = piece
    with suppress(Refused):
        head, rows = read(sealed(bytes(rest)))
        assert all(row.path and not row.path.startswith("/") for row in rows)
        assert isinstance(head.line(), str)


@pytest.mark.parametrize("number", [0, 2, 999_999_999])
def test_another_format(number: int) -> None:
    """Of a later version, say: both are named, and what to do."""
    refusal = refused(sealed(DATA.partition(b"\n")[2], number))
    assert str(number) in str(refusal)
    assert str(manifest.FORMAT) in str(refusal)
    assert "upgrade" in refusal.advice


@pytest.mark.parametrize(
    "first",
    [
        b'{"format": -1, "sha256": "%s",\n',
        b'{"format": 1.0, "sha256": "%s",\n',
        b'{"format": 01, "sha256": "%s",\n',
        b'{"format": 1111111111111111, "sha256": "%s",\n',
        b'{"format": true, "sha256": "%s",\n',
        b'{"sha256": "%s", "format": 1,\n',
        b' {"format": 1, "sha256": "%s",\n',
        b'{"format": 1, "sha256": "%s", "evil": 1,\n',
        b'{"format": 1, "sha256": "%s",\r\n',
        b"\xef\xbb\xbf" + b'{"format": 1, "sha256": "%s",\n',
    ],
)
def test_another_first_line(first: bytes) -> None:
    """There is one way to spell it."""
    rest = DATA.partition(b"\n")[2]
    refused(first % hashlib.sha256(rest).hexdigest().encode() + rest)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[" * 100_000, b"x" * 1_000_000, bytes(4096)])
def test_no_manifest(data: bytes) -> None:
    """Anything at all."""
    refused(data)


# -- heads -----------------------------------------------------------------------------------------


def head_with(**values: Any) -> str:
    """The head with other values; `...` for one that is missing."""
    known = {**json.loads(HEAD.line()), **values}
    return json.dumps({key: value for key, value in known.items() if value is not ...})


def base(**values: Any) -> dict[str, Any]:
    known = {"manifest": SHA, "removed": [], "result": SHA, **values}
    return {key: value for key, value in known.items() if value is not ...}


STRINGS = (
    "prefix",
    "python",
    "version",
    "implementation",
    "home",
    "machine",
    "libc",
    "libc_version",
)
NUMBERS = ("time", "files", "size")
LISTS = ("prefixes", "references", "compiled", "uneditable")

BAD_HEADS: dict[str, str | bytes] = {
    **{
        f"{name}-missing": head_with(**{name: ...})
        for name in (*STRINGS, *NUMBERS, *LISTS, "facts")
    },
    **{
        f"{name}-{number}": head_with(**{name: value})
        for name in STRINGS
        for number, value in enumerate([None, 1, True, ["a"], {"a": "b"}, "a\n", "a\0", "\x1b[2J"])
    },
    **{
        f"{name}-{number}": head_with(**{name: value})
        for name in NUMBERS
        for number, value in enumerate([None, "1", True, -1, 1.0, [1], 1e300, 10**30, 1 << 64])
    },
    **{
        f"{name}-{number}": head_with(**{name: value})
        for name in LISTS
        for number, value in enumerate([None, "ab", 1, [1], [None], {"a": "b"}, [["a"]], [[]]])
    },
    **{f"facts-{n}": head_with(facts=v) for n, v in enumerate([None, 1, "ab", ["ab"], {"a": 1}])},
    "facts-pairs": head_with(facts=[["a", "b"]]),
    "nan": head_with(time=float("nan")),
    "infinity": head_with(size=float("inf")),
    "additional": head_with(evil=1),
    "none": "null",
    "list": "[]",
    "text": '"prefix"',
    "nested": "[" * 100_000,
    "nested-value": HEAD.line()[:-1] + ', "facts": ' + "[" * 100_000,
    "long-number": HEAD.line().replace("1600000000", "1" * 100_000),
    "twice": HEAD.line().replace('"time": ', '"time": 1, "time": '),
    "references-parent": head_with(references=["../a"]),
    "references-absolute": head_with(references=["/a"]),
    "references-empty": head_with(references=[""]),
    "references-control": head_with(references=["a\tb"]),
    "references-own": head_with(references=[manifest.NAME]),
    "references-surrogate": head_with(references=["\ud800"]),
    "prefix-surrogate": head_with(prefix="/\ud800"),
    "home-relative": head_with(home="bin"),
    "prefixes-root": head_with(prefixes=["/"]),
    "prefixes-empty": head_with(prefixes=[""]),
    "prefixes-relative": head_with(prefixes=["srv"]),
    "base-text": head_with(base="a"),
    "base-list": head_with(base=[]),
    "base-true": head_with(base=True),
    "base-empty": head_with(base={}),
    **{f"base-{name}-missing": head_with(base=base(**{name: ...})) for name in base()},
    **{f"base-{name}-null": head_with(base=base(**{name: None})) for name in base()},
    **{f"base-{name}-number": head_with(base=base(**{name: 1})) for name in base()},
    "base-removed-numbers": head_with(base=base(removed=[1])),
    "base-additional": head_with(base=base(evil="x")),
    "base-no-digest": head_with(base=base(manifest="")),
    "base-result-no-digest": head_with(base=base(result="evil")),
    "base-removed-parent": head_with(base=base(removed=["../a"])),
    "comma": HEAD.line() + ",",
    "two": HEAD.line() + HEAD.line(),
    "latin": HEAD.line().encode().replace(b"4f2a9c1", b"\xff"),
    "too-long": head_with(facts={"a": "x" * (17 << 20)}),
}


def with_packages(packages: Any) -> str:
    """The head with packages of the system, in the order in which it is written."""
    return json.dumps({**json.loads(HEAD.line()), "system_packages": packages}, sort_keys=True)


BAD_PACKAGES = {
    "empty": [],
    "null": None,
    "text": "ab",
    "texts": ["ab"],
    "number": [["a", 1]],
    "three": [["a", "1", "2"]],
    "twice": [["a", "1"], ["a", "2"]],
    "unordered": [["b", "1"], ["a", "1"]],
    "not-normal": [["A", "1"]],
    "space": [["a b", "1"]],
    "path": [["../a", "1"]],
    "no-version": [["a", ""]],
    "words": [["a", "1 2"]],
    "control": [["a", "1\x1b[2J"]],
    "long": [["a", "1" * 1000]],
}
BAD_HEADS |= {f"packages-{name}": with_packages(BAD_PACKAGES[name]) for name in BAD_PACKAGES}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_head(name: str) -> None:
    """Each is refused, whatever replaces what."""
    refused(with_head(BAD_HEADS[name]))


def test_packages_of_the_system_are_read() -> None:
    wanted = (("a", "1.0+local"), ("b-2", "1!2.0rc1"))
    head = replace(HEAD, system_packages=wanted)
    assert head.line() == with_packages(wanted)
    with opened(with_head(head.line())) as known:
        assert known.head.system_packages == wanted


# -- rows ------------------------------------------------------------------------------------------


def file(path: Any = "zzz", kind: Any = "file", *rest: Any) -> str:
    return json.dumps([path, kind, *(rest or (420, 1, SHA))])


BAD_ROWS: dict[str, str | bytes] = {
    "empty": "[]",
    "one": '["a"]',
    "two": '["a", "file"]',
    "null": "[null]",
    "object": '[{"path": "a"}]',
    "unclosed": '["a", "file", 420, 1, "' + SHA + '"',
    "kind": file("a", "hardlink"),
    "kind-number": file("a", 1),
    "kind-list": file("a", ["file"]),
    "kind-null": file("a", None),
    "path-number": file(1),
    "path-null": file(None),
    "path-list": file(["a"]),
    "path-empty": file(""),
    "path-dot": file("."),
    "path-dots": file("../a"),
    "path-dots-inside": file("a/../b"),
    "path-dots-end": file("a/.."),
    "path-dot-inside": file("a/./b"),
    "path-dot-before": file("./a"),
    "path-slash": file("a/"),
    "path-slashes": file("a//b"),
    "path-absolute": file("/etc/passwd"),
    "path-root": file("/"),
    "path-newline": file("a\nb"),
    "path-nul": file("a\0b"),
    "path-escape": file("a\x1b[2J"),
    "path-c1": file("a\x9b"),
    "path-delete": file("a\x7f"),
    "path-own": file(".relocation"),
    "path-own-file": file(".relocation/evil"),
    "path-own-manifest": file(manifest.NAME),
    "path-record": file(manifest.RECORD),
    "path-in-the-record": file(f"{manifest.RECORD}/x"),
    "path-surrogate": file("\ud800"),
    "path-surrogate-pair": file("a\udfff"),
    "path-huge": file("a" * 70_000),
    "mode-negative": file("a", "file", -1, 1, SHA),
    "mode-large": file("a", "file", 0o1000, 1, SHA),
    "mode-setuid": file("a", "file", 0o4755, 1, SHA),
    "mode-huge": file("a", "file", 10**30, 1, SHA),
    "mode-digits": f'["a", "file", {"1" * 60_000}, 1, "{SHA}"]',
    "mode-true": file("a", "file", True, 1, SHA),
    "mode-text": file("a", "file", "420", 1, SHA),
    "mode-float": file("a", "file", 420.0, 1, SHA),
    "mode-null": file("a", "file", None, 1, SHA),
    "mode-world-writable": file("a", "file", 0o666, 1, SHA),
    "mode-unreadable": file("a", "file", 0, 1, SHA),
    "mode-zeros": f'["a", "file", 000420, 1, "{SHA}"]',
    "size-negative": file("a", "file", 420, -1, SHA),
    "size-float": file("a", "file", 420, 1.5, SHA),
    "size-exponent": f'["a", "file", 420, 1e3, "{SHA}"]',
    "size-nan": f'["a", "file", 420, NaN, "{SHA}"]',
    "size-infinity": f'["a", "file", 420, Infinity, "{SHA}"]',
    "size-true": file("a", "file", 420, True, SHA),
    "size-text": file("a", "file", 420, "1", SHA),
    "size-digits": f'["a", "file", 420, {"1" * 60_000}, "{SHA}"]',
    "size-huge": file("a", "file", 420, 10**30, SHA),
    "sha-short": file("a", "file", 420, 1, SHA[:-1]),
    "sha-long": file("a", "file", 420, 1, SHA + "0"),
    "sha-upper": file("a", "file", 420, 1, SHA.upper()),
    "sha-newline": file("a", "file", 420, 1, SHA + "\n"),
    "sha-path": file("a", "file", 420, 1, "../" * 21 + "x"),
    "sha-null": file("a", "file", 420, 1, None),
    "sha-number": file("a", "file", 420, 1, 1),
    "source-number": file("a", "file", 420, 1, SHA, 1),
    "source-null": file("a", "file", 420, 1, SHA, None),
    "source-parent": file("a", "file", 420, 1, SHA, "../b"),
    "source-absolute": file("a", "file", 420, 1, SHA, "/etc/shadow"),
    "source-own": file("a", "file", 420, 1, SHA, ".relocation/originals/x"),
    "source-control": file("a", "file", 420, 1, SHA, "a\n"),
    "source-record": file("a", "file", 420, 1, SHA, manifest.RECORD),
    "source-empty": file("a", "file", 420, 1, SHA, ""),
    "additional": file("a", "file", 420, 1, SHA, "b", "c"),
    "directory-short": '["a", "directory"]',
    "directory-long": file("a", "directory", 493, 1),
    "directory-mode": file("a", "directory", "493"),
    "directory-mode-large": file("a", "directory", 0o1777),
    "directory-mode-world-writable": file("a", "directory", 0o777),
    "directory-mode-closed": file("a", "directory", 0o500),
    "link-short": '["a", "link"]',
    "link-long": file("a", "link", "b", "c"),
    "link-number": file("a", "link", 1),
    "link-empty": file("a", "link", ""),
    "link-nul": file("a", "link", "a\0b"),
    "link-newline": file("a", "link", "a\nb"),
    "link-surrogate": file("a", "link", "\ud800"),
    "nested": "[" * 60_000,
    "nested-closed": "[" * 30_000 + "]" * 30_000,
    "nested-value": '["a", "file", ' + "[" * 60_000,
    "latin": b'["\xff", "directory", 493]',
    "spaces": " " + file("a"),
    "tab": "\t" + file("a"),
    "comment": file("a") + " // evil",
    "two-in-a-line": file("a") + ", " + file("b"),
    "too-long": '["a", "directory", 493' + " " * 70_000 + "]",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row(name: str) -> None:
    """Each is refused, first, last or in the middle."""
    row = BAD_ROWS[name]
    refused(with_rows(row))
    refused(with_rows(file("!first"), row))
    refused(with_rows(row, file("zzz")))


@pytest.mark.parametrize(
    "paths",
    [
        ("a", "a"),
        ("b", "a"),
        ("a/b", "a"),
        ("a!", "a/b"),
        ("a", "a!", "a/b"),
        ("a/b", "a/a"),
        ("a", "b", "a/c"),
        ("b", "B"),
    ],
    ids=" ".join,
)
def test_rows_out_of_order(paths: tuple[str, ...]) -> None:
    """Nor may one be there twice."""
    said = str(refused(with_rows(*map(file, paths))))
    assert "wrong place" in said or "in a directory that it has not" in said


@pytest.mark.parametrize("paths", [("a/b",), ("a", "a/b"), ("a", "b/c")], ids=" ".join)
def test_a_row_in_no_directory(paths: tuple[str, ...]) -> None:
    """What is above a file has a row, as everything else has, and is a directory."""
    known = opened(with_rows(*map(file, paths)))
    with known, pytest.raises(Refused, match="in a directory that it has not"):
        list(manifest_reader.consistent(known.head, known.rows()))


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"]}",
        b"\n",
        b'"files": [\n',
        b'"files": []}\n',
        b'"files": {\n]}\n',
        b'"files": [\n]\n',
        b'"files": [\n]}]}\n',
        b'"files": [\n]}\nevil',
        b'"files": [\nevil\n]}\n',
        b'"files": [\n\n]}\n',
        b'"files": [\n]}\n]}\n',
        b'"files": [\n]}\n]}\nevil',
        b'"files": [\n]}',
        b'"files": [\n  ]}  \n',
    ],
)
def test_another_list(rest: bytes) -> None:
    """It begins and ends in one way."""
    refused(sealed(f'"head": {HEAD.line()},\n'.encode() + rest))


@pytest.mark.parametrize("between", [b"\n", b",,\n", b", \n", b",", b",\r\n", b",\n\n"])
def test_another_separator(between: bytes) -> None:
    """There is one between two rows, and it is what JSON has there."""
    refused(with_rows(file("a"), file("b"), between=between))


# -- bounds ----------------------------------------------------------------------------------------


def test_rows_are_not_held() -> None:
    """A manifest of many rows needs no memory for them."""
    lines = "\n".join(f"{file(f'directory{number:07}')}," for number in range(20_000))
    data = with_rows(lines + "\n" + file("zzz"))
    with opened(data) as known:
        known.require_digest()
        tracemalloc.start()
        try:
            assert sum(1 for _ in known.rows()) == 20_001
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


BOUNDED = """
import os, resource, sys
from relocate_core.virtualenvs.manifest_reader import Manifest
from relocate_core.archives.tar import Refused
resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)
try:
    known = Manifest(os.open(sys.argv[1], os.O_RDONLY))
    known.require_digest()
    print(sum(1 for _ in known.rows()))
except Refused as refusal:
    print(refusal)
"""


@pytest.mark.parametrize("head", ["lists", "objects", "texts", "closed"])
def test_a_head_as_large_as_may_be(head: str, tmp_path: Path) -> None:
    """16 MB of JSON may come to a multiple of that, and still leave a machine its memory."""
    body = {"lists": "[],", "objects": "{},", "texts": '"",', "closed": "[[[]]],"}[head]
    line = HEAD.line().replace('"compiled": [', '"compiled": [' + body * ((15 << 20) // len(body)))
    path = tmp_path / "manifest.json"
    path.write_bytes(with_head(line))
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=SECONDS * 3,
    )
    assert done.returncode == 0, done.stderr[-300:]
    assert "no head" in done.stdout


def test_a_manifest_too_large_for_its_reader() -> None:
    """A head that is too long is refused, and the packer knows of its length before."""
    references = tuple(f"lib/{number:0100}" for number in range(170_000))
    head = replace(HEAD, references=references)
    assert len(head.line()) > manifest.LONGEST_HEAD, "which `pack` refuses"
    refused(manifest.document(head, ROWS)[0])
    head = replace(HEAD, references=references[:50_000])
    assert read(manifest.document(head, ROWS)[0])[0].references == references[:50_000]


def test_what_a_tree_has_in_place_of_a_manifest(tmp_path: Path) -> None:
    """Nothing is no manifest; all else is refused, without waiting, and nothing stays open."""
    place = tmp_path / manifest.NAME
    root = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        assert manifest_reader.of_tree(root) is None
        place.parent.mkdir()
        assert manifest_reader.of_tree(root) is None
        for make in (
            lambda: os.mkfifo(place),
            lambda: place.symlink_to("/etc/passwd"),
            lambda: place.write_bytes(DATA[:100]),
            place.mkdir,
        ):
            make()
            with pytest.raises(Refused, match="manifest"):
                manifest_reader.of_tree(root)
            place.rmdir() if place.is_dir() else place.unlink()
            assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(root)
