"""Scripts: shebangs of every tool, run by the kernel, and bodies that name the prefix."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from relocate_core.artefacts.kinds import Rewritten, rewrite
from relocate_core.artefacts.prefix import Prefixes
from relocate_core.artefacts.scripts import SHEBANG_LIMIT, interpreter_of
from tests.support.fuzz import examples
from tests.support.paths import CLASSICS, nasty

OLD = b"/srv/app"
LONG = b"/srv/" + b"l" * 140
BODY = b"import sys\nprint(sys.argv[1:])\n"
# What pip, uv and flit put behind a shebang.
PIP_BODY = b"""# -*- coding: utf-8 -*-
import re
import sys
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    print(sys.argv[1:])
"""
UV_BODY = b"""# -*- coding: utf-8 -*-
import sys
if __name__ == "__main__":
    print(sys.argv[1:])
"""
# Python refuses a source that is not UTF-8, be it for its shebang.
RUNNABLE = [path for path in CLASSICS if not re.search(rb"[\t\xfc\xff]", path)] + [
    "/srv/grün".encode()
]


def move(data: bytes, new: bytes, old: bytes = OLD, path: str = "bin/tool") -> bytes:
    """The script moved; asserts that nothing is left and that a second run changes nothing."""
    prefixes = Prefixes((old,), new)
    result = rewrite(path, data, prefixes)
    assert not result.problem
    assert rewrite(path, result.data, prefixes) == Rewritten(result.kind, result.data)
    return result.data


def there_and_back(data: bytes, new: bytes, old: bytes = OLD) -> bytes:
    moved = move(data, new, old)
    assert move(moved, old, new) == data, moved
    return moved


def sh(interpreter: bytes, arguments: bytes = b"") -> bytes:
    """The `/bin/sh` form, around an interpreter that is a shell word already."""
    return b"#!/bin/sh\n'''exec' " + interpreter + arguments + b" \"$0\" \"$@\"\n' '''\n"


def run(directory: Path, new: bytes, data: bytes, *arguments: str) -> str:
    """Put an interpreter at <new>/bin/python, run the script there by the kernel."""
    new_bin = os.path.join(os.fsencode(directory), new.lstrip(b"/"), b"bin")
    os.makedirs(new_bin, exist_ok=True)
    link = os.path.join(new_bin, b"python")
    if not os.path.lexists(link):
        os.symlink(os.fsencode(sys.executable), link)
    script = os.path.join(new_bin, b"tool")
    with open(script, "wb") as file:
        file.write(data)
    os.chmod(script, 0o755)
    done = subprocess.run([script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (data[:400], done.stderr)
    return done.stdout


def at(directory: Path, path: bytes) -> bytes:
    """`path` below a real directory."""
    return os.fsencode(directory) + path


# --- plain shebangs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b" -E",
        b"  -s  -E ",
        b"\t-E",
        b" -Es\r",
        b" -c pass",
        b" \xff",
        b" -X pycache_prefix=/x",
    ],
)
@pytest.mark.parametrize("lead", [b"", b" ", b"\t"])
def test_arguments_are_kept_to_the_byte(lead: bytes, arguments: bytes) -> None:
    script = b"#!" + lead + b"/srv/app/bin/python3" + arguments + b"\n" + BODY
    assert there_and_back(script, b"/opt/x") == script.replace(OLD, b"/opt/x")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_script_of_one_line(end: bytes) -> None:
    script = b"#!/srv/app/bin/python" + end
    assert there_and_back(script, b"/opt/x") == b"#!/opt/x/bin/python" + end


@pytest.mark.parametrize("spare", [-1, 0, 1, 40])
@pytest.mark.parametrize("arguments", [b"", b" -E"])
def test_the_kernel_reads_127_bytes(tmp_path: Path, spare: int, arguments: bytes) -> None:
    base = at(tmp_path, b"/")
    fixed = len(b"#!" + base + b"/bin/python" + arguments + b"\n")
    assert fixed < SHEBANG_LIMIT, "the directory for temporary files has too long a name"
    name = b"n" * (SHEBANG_LIMIT - fixed + spare)
    new = base + name
    moved = there_and_back(b"#!/srv/app/bin/python" + arguments + b"\n" + PIP_BODY, new)
    line = b"#!" + new + b"/bin/python" + arguments + b"\n"
    if spare <= 0:
        assert moved == line + PIP_BODY
        assert len(line) == SHEBANG_LIMIT + spare
    else:
        assert moved == sh(new + b"/bin/python", arguments) + PIP_BODY
    assert run(tmp_path, b"/" + name, moved, "a b", "c") == "['a b', 'c']\n"


@pytest.mark.parametrize("path", RUNNABLE)
@pytest.mark.parametrize("body", [BODY, PIP_BODY, UV_BODY], ids=["plain", "pip", "uv"])
@pytest.mark.few(10)
def test_the_script_runs_wherever_it_goes(tmp_path: Path, path: bytes, body: bytes) -> None:
    new = at(tmp_path, path)
    moved = there_and_back(b"#!/srv/app/bin/python -E\n" + body, new)
    assert run(tmp_path, path, moved, "it's", "$x", "") == "[\"it's\", '$x', '']\n"
    again = at(tmp_path, path + b"/" + b"deep/" * 30)
    assert run(tmp_path, path + b"/" + b"deep/" * 30, move(moved, again, new), "x") == "['x']\n"
    assert interpreter_of(moved) == new + b"/bin/python"


@settings(deadline=None, max_examples=examples(40), suppress_health_check=list(HealthCheck))
@given(nasty, st.sampled_from([BODY, PIP_BODY, UV_BODY]), st.booleans())
def test_any_path_runs(tmp_path: Path, path: bytes, body: bytes, long: bool) -> None:
    path += b"/" + b"deep" * 30 if long else b""
    new = at(tmp_path, path)
    moved = there_and_back(b"#!/srv/app/bin/python\n" + body, new)
    assert run(tmp_path, path, moved, "it's") == '["it\'s"]\n'


# --- the real tools -------------------------------------------------------------------------------


def distlib(interpreter: bytes, arguments: str = "") -> bytes:
    scripts = pytest.importorskip("pip._vendor.distlib.scripts")
    maker = scripts.ScriptMaker(None, None)
    maker.executable = scripts.enquote_executable(os.fsdecode(interpreter))
    made = bytes(maker._get_shebang("utf-8", os.fsencode(arguments)))
    # As `_write_script` does: that of pip 23.0 does not end the form for `sh` with one.
    return made if made.endswith(b"\n") else made + b"\n"


# What distlib quotes well: it knows of the blank alone.
safe = st.text("ab1._-+@ üé%~", min_size=1, max_size=150).map(
    lambda name: b"/srv/" + name.strip().encode()
)


@settings(deadline=None, max_examples=examples(300))
@given(safe, safe, st.sampled_from(["", " -E"]))
def test_a_script_of_pip_becomes_what_pip_would_write(a: bytes, b: bytes, arguments: str) -> None:
    assume(a != b and a not in b and b not in a and b"/srv/" not in (a, b))
    at_a = distlib(a + b"/bin/python3", arguments) + PIP_BODY
    at_b = distlib(b + b"/bin/python3", arguments) + PIP_BODY
    assert move(at_a, b, a) == at_b
    assert move(at_b, a, b) == at_a


def uv_shebang(interpreter: bytes) -> bytes:
    """As crates/uv-install-wheel/src/wheel.rs does."""
    if len(interpreter) + 3 > 127 or b" " in interpreter:
        return sh(b"'" + interpreter.replace(b"'", b"'\"'\"'") + b"'")
    return b"#!" + interpreter + b"\n"


@settings(deadline=None, max_examples=examples(200))
@given(safe, safe, st.booleans())
def test_a_script_of_uv_becomes_what_uv_would_write(a: bytes, b: bytes, quote: bool) -> None:
    a += b"/it's" if quote else b""
    assume(a != b and a not in b and b not in a and b"/srv/" not in (a, b))
    at_a, at_b = (uv_shebang(path + b"/bin/python3") + UV_BODY for path in (a, b))
    assert move(at_a, b, a) == at_b
    assert move(at_b, a, b) == at_a


def test_a_relocatable_script_of_uv_stays() -> None:
    script = (
        b'#!/bin/sh\n\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/\'python\' "$0" "$@"\n'
        b"' '''\n" + UV_BODY
    )
    assert rewrite("bin/tool", script, Prefixes((OLD,), LONG)).data == script


@pytest.mark.parametrize(
    "quoted", [b"/srv/app/bin/python", b'"/srv/app/bin/python"', b"'/srv/app/bin/python'"]
)
@pytest.mark.parametrize("new", [b"/opt/x", b"/opt/my app", b"/opt/it's", LONG, LONG + b"/my app"])
def test_a_short_sh_form_keeps_its_form(quoted: bytes, new: bytes) -> None:
    """No tool writes it for a short path; whoever did had a reason."""
    script = sh(quoted, b" -E") + BODY
    moved = move(script, new)
    assert moved.startswith(b"#!/bin/sh\n'''exec' ")
    assert interpreter_of(moved) == new + b"/bin/python"


# --- broken from birth ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old", [b"/srv/my app", b"/srv/" + b"l" * 130, b"/srv/my app/" + b"l" * 130]
)
@pytest.mark.parametrize(
    "line", [b"#!%s/bin/python\n", b"#!%s/bin/python -E\n", b'#!"%s/bin/python" -E\n']
)
def test_a_shebang_that_never_ran_is_fixed(tmp_path: Path, old: bytes, line: bytes) -> None:
    for path in (b"/new", b"/a new one", b"/" + b"n" * 140):
        moved = move(line % old + BODY, at(tmp_path, path), old)
        assert run(tmp_path, path, moved, "x") == "['x']\n"
        assert (b" -E" in moved.split(b"import")[0]) == (b" -E" in line)


def test_an_unquoted_sh_form_is_fixed(tmp_path: Path) -> None:
    moved = move(sh(b"/srv/my app/bin/python") + BODY, at(tmp_path, b"/a new one"), b"/srv/my app")
    assert run(tmp_path, b"/a new one", moved, "x") == "['x']\n"


# --- env -S ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/short", b"/my app", b"/" + b"l" * 140, b"/it's", b"/$x\\y"])
@pytest.mark.parametrize("form", [b"/usr/bin/env -S ", b"/usr/bin/env --split-string="])
def test_env_with_split_string(tmp_path: Path, path: bytes, form: bytes) -> None:
    script = b"#!" + form + b"/srv/app/bin/python -E\n" + BODY
    new = at(tmp_path, path)
    moved = move(script, new)
    assert run(tmp_path, path, moved, "a b") == "['a b']\n"
    if form.endswith(b"-S "):
        assert move(moved, OLD, new) == script


@pytest.mark.parametrize(
    "line",
    [
        b"#!/usr/bin/env python",
        b"#!/bin/sh",
        b"#!/srv/app2/bin/python",
        b"#!/mnt/srv/app/bin/python",
        b"#!/usr/bin/perl -I/srv/app2",
    ],
)
def test_a_foreign_interpreter_stays(line: bytes) -> None:
    script = line + b"\n'/srv/app/x'\n"
    assert move(script, b"/opt/x").startswith(line + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"#!/usr/bin/perl -I/srv/app/lib/perl5",
        b"#!/usr/bin/env PYTHONPATH=/srv/app/lib python",
        b"#!/srv/app/bin/python -X pycache_prefix=/srv/app/cache",
        b"#!/srv/app/bin/python /srv/app/bin/other",
    ],
)
def test_arguments_may_have_the_prefix_too(line: bytes) -> None:
    assert there_and_back(line + b"\n" + BODY, b"/opt/x").startswith(line.replace(OLD, b"/opt/x"))
    assert OLD not in move(line + b"\n" + BODY, LONG)


# --- encodings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [b"", b" ", b"\t "])
def test_the_blank_before_the_interpreter_comes_back(blank: bytes) -> None:
    line = b"#!" + blank + OLD + b"/bin/python  -E \n" + BODY
    assert there_and_back(line, LONG).startswith(b"#!" + blank + b"/bin/sh\n'''exec' " + LONG)


@pytest.mark.parametrize("new", [LONG, b"/srv/my app"])
def test_another_interpreter_reads_no_other_form(new: bytes) -> None:
    """Node or a shell would take it for the program."""
    data = b"#!" + OLD + b"/bin/node --harmony\nconsole.log(1)\n"
    result = rewrite("bin/tool", data, Prefixes((OLD,), new))
    assert result.data == data
    assert "its interpreter is no Python" in result.problem
    assert move(data, b"/opt/x") == data.replace(OLD, b"/opt/x")


@pytest.mark.parametrize(
    "cookie", [b"# -*- coding: latin-1 -*-\n", b"# vim: set fileencoding=iso-8859-15 :\n"]
)
@pytest.mark.parametrize("path", [b"/new", b"/my new", b"/" + b"n" * 140, "/grün neu".encode()])
def test_a_source_in_latin_1_still_decodes(tmp_path: Path, cookie: bytes, path: bytes) -> None:
    script = b"#!/srv/app/bin/python\n" + cookie + b"print('gr\xfcn' == 'gr\\u00fcn')\n"
    moved = there_and_back(script, at(tmp_path, path))
    assert run(tmp_path, path, moved) == "True\n"


def test_a_literal_in_a_latin_1_source_has_the_new_path(tmp_path: Path) -> None:
    path = "/grün neu".encode()
    new = at(tmp_path, path)
    body = b"# coding: latin-1\nX = '/srv/app/gr\xfcn'\nprint(X.encode('utf-8'))\n"
    moved = there_and_back(b"#!/srv/app/bin/python\n" + body, new)
    assert run(tmp_path, path, moved) == repr(new + "/grün".encode()) + "\n"


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUNNABLE)
@pytest.mark.few(12)
def test_a_develop_script_has_the_file_it_runs(tmp_path: Path, path: bytes) -> None:
    script = (
        b"#!/srv/app/bin/python\n# EASY-INSTALL-DEV-SCRIPT: 'x==1.0','x'\n__requires__ = 'x==1.0'\n"
        b"__file__ = '/srv/app/src/x/scripts/x'\n"
        b"print(__file__.encode('utf-8', 'surrogateescape'))\n"
    )
    new = at(tmp_path, path)
    moved = there_and_back(script, new)
    assert run(tmp_path, path, moved) == repr(new + b"/src/x/scripts/x") + "\n"


WRAPPER = b"""#!/bin/sh
# don't edit: made for /srv/app
export NODE_PATH='/srv/app/lib/node_modules'
prefix=/srv/app
exec_prefix="/srv/app/exec"
printf '%s\\n' "$NODE_PATH" "$prefix" "$exec_prefix" -L/srv/app/lib
"""


@pytest.mark.parametrize("path", RUNNABLE)
@pytest.mark.parametrize("shell", [b"sh", b"bash"])
def test_a_wrapper_has_the_new_path(tmp_path: Path, path: bytes, shell: bytes) -> None:
    new = at(tmp_path, path)
    moved = there_and_back(WRAPPER.replace(b"/bin/sh", b"/usr/bin/env " + shell), new)
    script = tmp_path / "wrapper"
    script.write_bytes(moved)
    script.chmod(0o755)
    done = subprocess.run([script], capture_output=True, check=True)
    expected = [b"/lib/node_modules", b"", b"/exec", b"/lib"]
    expected = [b"-L" * (tail == b"/lib") + new + tail for tail in expected]
    assert done.stdout.split(b"\n")[:-1] == expected


@pytest.mark.parametrize("path", [b"/new", b"/my new", b"/" + b"n" * 140])
def test_a_zip_application_runs_behind_a_moved_shebang(tmp_path: Path, path: bytes) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\n")
    archive = tmp_path / "app.pyz"
    zipapp.create_archive(source, archive, "/srv/app/bin/python")
    data = archive.read_bytes()
    new = at(tmp_path, path)
    moved = move(data, new, path="bin/app.pyz")
    assert rewrite("bin/app.pyz", moved, Prefixes((new,), OLD)).data == data
    assert run(tmp_path, path, moved, "x") == "['x']\n"


@pytest.mark.parametrize("cookie", [b"", b"# coding: utf-8\n"])
def test_python_reads_no_utf_8_script_below_a_path_that_is_not_utf_8(cookie: bytes) -> None:
    script = b"#!/srv/app/bin/python\n" + cookie + BODY
    result = rewrite("bin/tool", script, Prefixes((OLD,), b"/srv/gr\xfcn"))
    assert result.data == script
    assert "UTF-8" in result.problem
    script = script.replace(cookie, b"# coding: latin-1\n") if cookie else b"#!/srv/app/bin/sh\n"
    assert there_and_back(script, b"/srv/gr\xfcn") == script.replace(OLD, b"/srv/gr\xfcn")


# --- what finds the interpreter -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"#!/srv/app/bin/python\n", b"/srv/app/bin/python"),
        (b"#! /srv/app/bin/python3.11 -E\r\n", b"/srv/app/bin/python3.11"),
        (b"#!/srv/my app/bin/python -E\n", b"/srv/my app/bin/python"),
        (b'#!"/srv/my app/bin/python" -E\n', b"/srv/my app/bin/python"),
        (b"#!/usr/bin/env -S /srv/app/bin/python -E\n", b"/srv/app/bin/python"),
        (b"#!/usr/bin/env -S \n", None),
        (b"#!/usr/bin/env python\n", b"/usr/bin/env"),
        (sh(b'"/srv/my app/bin/python"'), b"/srv/my app/bin/python"),
        (sh(b"'/srv/it'\"'\"'s/bin/python'"), b"/srv/it's/bin/python"),
        (b"#!\n", None),
        (b"print()\n", None),
    ],
)
def test_the_interpreter_is_read_from_the_first_bytes(head: bytes, expected: bytes | None) -> None:
    assert interpreter_of(head) == expected


ODD = [
    *(b"!x", b" ", b"\n", b"\r", b'"', b"'", b"\\", b"$", b"\xff", OLD, b"/bin/python"),
    *(b"/bin/sh\n'''exec' ", b"/usr/bin/env -S ", b" \"$0\" \"$@\"\n' '''\n"),
]


@settings(deadline=None, max_examples=examples(300))
@given(st.lists(st.sampled_from(ODD)))
def test_no_script_is_too_odd(pieces: list[bytes]) -> None:
    data = b"#!" + b"".join(pieces)
    for new in (b"/opt/x", b"/opt/my app", b"/opt/it's"):
        result = rewrite("bin/x", data, Prefixes((OLD,), new))
        assert result.kind == "script"
        assert OLD in data or result.data == data
    interpreter_of(data)
