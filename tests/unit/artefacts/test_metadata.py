"""Packaging metadata, read back by those who read it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from relocate_core.artefacts.kinds import rewrite
from relocate_core.artefacts.metadata import Digests, encoded, record_rows, update_record
from relocate_core.artefacts.prefix import Prefixes
from tests.support.paths import CLASSICS

OLD = b"/srv/app"


def moved(path: str, data: bytes, new: bytes = b"/opt/x") -> bytes:
    prefixes = Prefixes((OLD,), new)
    result = rewrite(path, data, prefixes)
    assert not result.problem
    assert rewrite(path, result.data, prefixes).data == result.data, "a second run"
    assert rewrite(path, result.data, Prefixes((new,), OLD)).data == data, "the way back"
    return result.data


PTH = b"""# made for /srv/app
/srv/app/src/one
/srv/app/src/one/lib
/srv/app2/src
/opt/outside/src
../relative
import sys; sys.from_pth = '/srv/app/from-code'
import\tsys; sys.other = "/srv/app"
gr\xfcn
/srv/app/src/last"""


@pytest.mark.parametrize("path", CLASSICS)
def test_a_pth_file_line_by_line(path: bytes) -> None:
    lines = moved("lib/x.pth", PTH, path).split(b"\n")
    assert lines[1:6] == [
        path + b"/src/one",
        path + b"/src/one/lib",
        b"/srv/app2/src",
        b"/opt/outside/src",
        b"../relative",
    ]
    assert lines[8:] == [b"gr\xfcn", path + b"/src/last"]


@pytest.mark.parametrize("path", [p for p in CLASSICS if b"\xfc" not in p and b"\xff" not in p])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.few(30)
def test_site_reads_a_moved_pth_file(path: bytes, end: bytes, tmp_path: Path) -> None:
    new = os.fsencode(tmp_path) + path
    os.makedirs(new + b"/src/one")
    data = b"/srv/app/src/one\nimport sys; sys.from_pth = '/srv/app/code'" + end
    (tmp_path / "x.pth").write_bytes(moved("lib/x.pth", data, new))
    code = (
        "import json, site, sys\nsite.addsitedir(sys.argv[1])\n"
        "print(json.dumps([sys.path, sys.from_pth]))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code, tmp_path], capture_output=True, check=True
    )
    found, from_pth = json.loads(done.stdout)
    assert os.fsdecode(new + b"/src/one") in found
    assert from_pth == os.fsdecode(new + b"/code")


@pytest.mark.parametrize("path", CLASSICS)
def test_an_egg_link_and_pyvenv_cfg_know_no_quotes(path: bytes) -> None:
    assert moved("lib/x.egg-link", b"/srv/app/src/x\n.", path) == path + b"/src/x\n."
    config = b"home = /usr/bin\ncommand = /usr/bin/python3 -m venv /srv/app\n"
    assert moved("pyvenv.cfg", config, path) == config.replace(OLD, path)


@pytest.mark.parametrize("path", CLASSICS)
@pytest.mark.parametrize("compact", [True, False], ids=["uv", "pip"])
def test_a_direct_url_is_percent_encoded(path: bytes, compact: bool) -> None:
    space = b"" if compact else b" "
    data = b'{"dir_info":%s{"editable":%strue},"url":%s"file:///srv/app/src/x"}' % ((space,) * 3)
    url = json.loads(moved("lib/x.dist-info/direct_url.json", data, path))["url"]
    assert url.isascii()
    assert " " not in url
    assert unquote_to_bytes(urlsplit(url).path) == path + b"/src/x"


@pytest.mark.parametrize("path", [p for p in CLASSICS if b"\xfc" not in p and b"\xff" not in p])
def test_a_finder_maps_to_the_new_path(path: bytes) -> None:
    data = b"MAPPING: dict[str, str] = {'a': '/srv/app/src/a', 'b': '/srv/app2/b'}\nX = r'\\d'\n"
    space: dict[str, dict[str, str]] = {}
    exec(moved("lib/__editable___x_finder.py", data, path).decode(), space)
    assert space["MAPPING"] == {"a": path.decode() + "/src/a", "b": "/srv/app2/b"}


# --- RECORD ---------------------------------------------------------------------------------------


def digest(data: bytes, algorithm: str = "sha256") -> bytes:
    return urlsafe_b64encode(hashlib.new(algorithm, data).digest()).rstrip(b"=")


def digests(old: bytes, new: bytes) -> object:
    def of(algorithm: str) -> Digests:
        before, after = (hashlib.new(algorithm, data).digest() for data in (old, new))
        return Digests(before, after, len(new))

    return of


A, B = b"the old content", b"new"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512", "md5", "blake2b"])
@pytest.mark.parametrize("name", [b"../../bin/x", b'"a,b.py"', b'"a""b.py"', "grün.py".encode()])
def test_a_row_is_updated_and_goes_back(name: bytes, algorithm: str, end: bytes) -> None:
    def row(data: bytes) -> bytes:
        return name + b",%s=%s,%d" % (algorithm.encode(), digest(data, algorithm), len(data)) + end

    (key,) = next(csv.reader([name.decode()]))
    there = update_record(row(A), {key.encode(): digests(A, B)})  # type: ignore[dict-item]
    assert there == row(B)
    assert update_record(there, {key.encode(): digests(B, A)}) == row(A)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "row",
    [
        b"x.py,,\n",
        b"x.py\n",
        b"x.py,sha256=" + digest(b"something else") + b",15\n",
        b"x.py,unknown=abc,15\n",
        b"x.py,shake_128=abc,15\n",
        b"y.py,sha256=" + digest(A) + b",15\n",
        b"\n",
    ],
)
def test_other_rows_stay_to_the_byte(row: bytes) -> None:
    assert update_record(row * 2, {b"x.py": digests(A, B)}) == row * 2  # type: ignore[dict-item]


def test_a_missing_size_stays_missing_and_padding_is_understood() -> None:
    bare = b"x.py,sha256=" + digest(A) + b",\n"
    assert update_record(bare, {b"x.py": digests(A, B)}) == (  # type: ignore[dict-item]
        b"x.py,sha256=" + digest(B) + b",\n"
    )
    padded = b"x.py,sha256=" + digest(A) + b"=,15\n"
    changed = update_record(padded, {b"x.py": digests(A, B)})  # type: ignore[dict-item]
    assert changed != padded
    assert encoded(hashlib.sha256(B).digest()) in changed


def test_the_rows_add_up_to_the_file() -> None:
    record = b'a,,\r\n"b,c",sha256=x,1\n"open\nd,,'
    assert b"".join(line for _, line in record_rows(record)) == record
