"""Configuration and build files, in the language that their name or first line tells."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from relocate_core.artefacts.kinds import rewrite
from relocate_core.artefacts.prefix import Prefixes
from tests.support.paths import CLASSICS

OLD = b"/srv/app"
UTF8 = [path for path in CLASSICS if b"\xfc" not in path and b"\xff" not in path]


def moved(path: str, data: bytes, new: bytes = b"/opt/x") -> bytes:
    prefixes = Prefixes((OLD,), new)
    result = rewrite(path, data, prefixes)
    assert not result.problem
    assert rewrite(path, result.data, prefixes).data == result.data, "a second run"
    assert rewrite(path, result.data, Prefixes((new,), OLD)).data == data, "the way back"
    return result.data


@pytest.mark.parametrize("path", UTF8)
def test_a_kernel_spec(path: bytes) -> None:
    data = json.dumps(
        {"argv": ["/srv/app/bin/python", "-m", "x"], "e": {"P": "/srv/app2"}}, indent=1
    )
    read = json.loads(moved("share/jupyter/kernels/x/kernel.json", data.encode(), path))
    assert read == {"argv": [path.decode() + "/bin/python", "-m", "x"], "e": {"P": "/srv/app2"}}


FILES = {
    "etc/supervisord.conf": (
        b"[program:x]\ncommand={P}/bin/gunicorn -c '{P}/etc/g.py' x:app\n"
        b'environment=PATH="{P}/bin:%(ENV_PATH)s",HOME="/srv/app2"\n; don\'t touch {P}\n'
    ),
    "etc/nginx.conf": b"server { root {P}/share; location /srv/ { alias {P}/x/; } }\n",
    "etc/app.service": b"[Service]\nExecStart={P}/bin/x\nEnvironmentFile=-{P}/etc/env\n",
    "lib/pkgconfig/x.pc": b"prefix={P}\nlibdir=${prefix}/lib\nLibs: -L{P}/lib -Wl,-rpath,{P}/lib\n",
    "lib/libx.la": b"libdir='{P}/lib'\ndependency_libs=' -L{P}/lib -L/srv/app2/lib'\n",
    "lib/cmake/x.cmake": b'set(X_DIR "{P}/lib/cmake") # ${HOME}/srv/app\nset(Y {P})\n',
    "lib/_sysconfigdata.py": b"build_time_vars = {'prefix': '{P}',\n 'CFLAGS': '-I{P}/include'}\n",
    "etc/latin-1.conf": b"# gr\xfcn\nhome={P}\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("new", [b"/opt/x", b"/srv/app/v2", b"/srv/" + b"l" * 300])
def test_every_reference_moves_and_nothing_else(name: str, new: bytes) -> None:
    template = FILES[name]
    assert moved(name, template.replace(b"{P}", OLD), new) == template.replace(b"{P}", new)


@pytest.mark.parametrize("path", [path for path in UTF8 if b"%" not in path and b";" not in path])
def test_an_ini_file_is_read_back(path: bytes) -> None:
    read = configparser.RawConfigParser()
    read.read_string(moved("etc/x.ini", b"[x]\nhome = /srv/app/x\n", path).decode())
    assert read["x"]["home"] == path.decode() + "/x"


def test_pkg_config_reads_the_new_prefix(tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not on this machine")
    data = b"prefix=/srv/app\nName: x\nDescription: x\nVersion: 1\nLibs: -L${prefix}/lib\n"
    (tmp_path / "x.pc").write_bytes(moved("lib/pkgconfig/x.pc", data, b"/opt/new"))
    done = subprocess.run(
        ["pkg-config", "--libs", tmp_path / "x.pc"], capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == "-L/opt/new/lib"


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("x.zip", b"PK\x03\x04 /srv/app", "zip"),
        ("x.gz", b"\x1f\x8b /srv/app", "gzip"),
        ("x.db", b"SQLite format 3\0 /srv/app", "SQLite"),
        ("x.txt", b"\xff\xfe" + "/srv/app".encode("utf-16-le") + b"/srv/app", "UTF-16"),
        ("x.pickle", b"\x80\x04\x95\0 /srv/app", "pickle"),
        ("x.bin", b"\0 /srv/app", "unknown format"),
    ],
)
def test_what_cannot_be_edited_is_reported(name: str, data: bytes, why: str) -> None:
    result = rewrite(name, data, Prefixes((OLD,), b"/opt/x"))
    assert result.data == data
    assert why in result.problem
