"""The command as an operator has it: a process, its exit code, its two streams."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, steps
from tests.support.environments import Environment, copy, differences, digest, environ, make
from tests.support.steps import NEW, ROOT, small, temporaries

CLI = [sys.executable, "-m", "relocate_core"]


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    options.setdefault("env", environ(PYTHONPATH=ROOT))
    return subprocess.run(
        [*CLI, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        **options,
    )


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    """A small virtualenv."""
    return small(tmp_path / "venv")


def said(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    return done.returncode, done.stdout, done.stderr


# --- as virtualenv-tools3 -------------------------------------------------------------------------


def theirs(*arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run virtualenv-tools3."""
    tool = environments.tool("virtualenv-tools3")
    return subprocess.run(
        [tool.python, "-m", "virtualenv_tools", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env=environ(PYTHONPATH=tool.directory),
    )


@pytest.mark.slow
def test_the_lines_of_virtualenv_tools3(tmp_path: Path) -> None:
    made = make("virtualenv-20", tmp_path / "made")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "bin").mkdir(parents=True)
    answers = []
    for run in (theirs, command):
        tree = copy(made.path, tmp_path / "tree")
        answers.append(
            [
                said(run("--update-path", "srv/app", tree)),
                said(run("--update-path", str(tmp_path / "new"), tree)),
                said(run("--update-path", str(tmp_path / "new"), tree)),
                said(run("--update-path", "auto", cwd=tree)),
                said(run("--update-path", "auto", tree)),
                said(run("--update-path", "auto", str(tmp_path / "empty"))),
                said(run("--update-path", "auto", str(tmp_path / "half"))),
                said(run("--update-path", "auto", str(tmp_path / "missing"))),
            ]
        )
        shutil.rmtree(tree)
    assert answers[0] == answers[1]


def test_the_same_lines_without_it(venv: Environment, tmp_path: Path) -> None:
    tree, old = venv.path, venv.old_prefix
    assert said(command("--update-path", NEW, tree)) == (
        *(0, f"Updated: {tree} ({old} -> {NEW})\n", ""),
    )
    assert said(command("--update-path", NEW, tree)) == (
        *(0, f"Already up-to-date: {tree} ({NEW})\n", ""),
    )
    assert said(command("--update-path", "x", tree)) == (
        *(1, "--update-path must be absolute: x\n", ""),
    )
    missing = str(tmp_path / "missing")
    assert said(command("--update-path", "auto", missing)) == (
        *(1, f"{missing} is not a virtualenv: not a directory: {missing}/bin\n", ""),
    )
    assert said(command("--update-path", "auto", cwd=tree)) == (
        *(0, f"Updated: . ({NEW} -> {tree})\n", ""),
    )


def test_the_version_needs_no_virtualenv() -> None:
    done = command("--version")
    assert re.fullmatch(
        r"virtualenv-tools \S.* from /.*/relocate_core \(Python 3\.\d+\.\d+\)\n", done.stdout
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_wrong_usage() -> None:
    for arguments in (
        [],
        ["--python", "x", "--info"],
        ["--old-path", "/x", "--info"],
        ["--deep", "--info"],
        ["--no-such"],
        ["--update-path"],
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: virtualenv-tools")


# --- several at once, several things at once ------------------------------------------------------


def test_one_bad_path_does_not_stop_the_others(venv: Environment, tmp_path: Path) -> None:
    other = copy(venv.path, tmp_path / "other")
    bad = str(tmp_path / "bad")
    done = command("--update-path", NEW, venv.path, bad, other)
    assert done.returncode == 1
    assert [line.split(" ", 2)[:2] for line in done.stdout.splitlines()] == [
        ["Updated:", venv.path],
        [bad, "is"],
        ["Updated:", other],
    ]


def test_both_flags(venv: Environment) -> None:
    ran = command("--reinitialize", "--update-path", "auto", "--check", venv.path)
    assert ran.returncode == 0, ran
    first, second, third = ran.stdout.splitlines()
    done = first.split(f": {venv.path} (")[0]
    assert done in ("Reinitialized", "Already initialized")
    assert second == f"Updated: {venv.path} ({venv.old_prefix} -> {venv.path})"
    assert third == f"OK: {venv.path} (Python {venv.version})"


def test_dry_run_reports_what_the_real_run_does(tmp_path: Path) -> None:
    for kind in ("uv", "venv-3.11"):
        made = small(tmp_path / kind) if kind == "uv" else make(kind, tmp_path / kind)
        before = digest(made.path)
        dry = command("--update-path", NEW, "--dry-run", "--json", made.path)
        assert digest(made.path) == before
        real = command("--update-path", NEW, "--json", made.path)
        assert (dry.returncode, real.returncode) == (0, 0)
        foretold, done = json.loads(dry.stdout), json.loads(real.stdout)
        assert foretold.pop("dry_run")
        assert not done.pop("dry_run")
        assert foretold == done
        assert done["changed"]
        assert "bin/activate" in done["files"]
        assert done["rewritten"]["bytecode"] > 0


def test_json_is_one_object_a_line(venv: Environment, tmp_path: Path) -> None:
    bad = str(tmp_path / "b\udcffd")
    done = command(
        *("--json", "--info", "--update-path", "auto", "--check", "--reinitialize"),
        *(venv.path, bad),
    )
    assert (done.returncode, done.stderr) == (1, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("action") for row in rows] == [
        *("reinitialize", "update-path", "info", "check", None)
    ]
    assert rows[-1] == {
        "path": bad,
        "error": f"{bad} is not a virtualenv: not a directory: {bad}/bin",
    }
    assert rows[2]["prefix"] == venv.path
    assert rows[3]["ok"] is True


def test_check_reports_by_its_exit_code(venv: Environment) -> None:
    done = command("--check", venv.path)
    assert done.returncode == 1
    assert f"update the path to {venv.path}" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Cannot run: {venv.path} (")
    assert command("--update-path", "auto", venv.path).returncode == 0
    assert said(command("--check", "--deep", venv.path)) == (
        *(0, f"OK: {venv.path} (Python {venv.version})\n", ""),
    )


def test_verbose_lists_the_files(venv: Environment) -> None:
    done = command("--update-path", NEW, "--verbose", venv.path)
    lines = done.stdout.splitlines()
    assert {"  bin/activate", "  etc/omega.conf", "  bin/omega"} <= set(lines)
    assert lines[:-1] == sorted(lines[:-1])
    assert lines[-1].startswith("Updated: ")


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "POSIX"])
def test_names_that_are_no_utf_8(locale: str, venv: Environment, tmp_path: Path) -> None:
    tree = copy(venv.path, tmp_path / os.fsdecode(b"v\xff\xe9"))
    name = os.fsdecode(b"etc/\xff\xe9.conf")
    Path(tree, name).write_text(f"x = {venv.old_prefix}\n")
    Path(tree, name + ".bin").write_bytes(b"\0\x05" + venv.old_prefix.encode() + b"\x01\0")
    env = environ(PYTHONPATH=ROOT, LC_ALL=locale)
    done = command("--update-path", "auto", "--verbose", tree, env=env)
    assert done.returncode == 0, done.stderr
    assert f"  {name}\n" in done.stdout
    assert f"-> {tree})\n" in done.stdout
    assert f"warning: {tree}/{name}.bin is left as it is: " in done.stderr
    assert Path(tree, name).read_bytes() == b"x = " + os.fsencode(tree) + b"\n"


# --- terminals, pipes, signals --------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A tree that takes a while."""
    return steps.large(tmp_path_factory.mktemp("big") / "venv", copies=6)


@pytest.mark.slow
def test_a_progress_bar_on_a_terminal_only(big: Environment, tmp_path: Path) -> None:
    tree = copy(big.path, tmp_path / "tree")
    slow = (
        "import time, sys; from relocate_core import cli\n"
        "from relocate_core.relocation import scan as scanning, workers; workers.ALONE = 1 << 30\n"
        "real = scanning.Scanner.scan\n"
        "def scan(*arguments): time.sleep(0.2); real(*arguments)\n"
        "scanning.Scanner.scan = scan; sys.exit(cli.main())"
    )
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "--update-path", NEW, tree],
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=ROOT,
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(master, 1000)
        except OSError:  # Linux' way to tell that the other side is closed
            break
        if not piece:
            break
        shown += piece
    output, _ = process.communicate()
    assert process.returncode == 0
    assert output.startswith(b"Updated: ")
    assert b"\r[#" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert command("--update-path", "auto", tree).stderr == ""
    os.close(master)


@pytest.mark.parametrize("arguments", [["--info"], ["--update-path", "auto"], ["--info", "--json"]])
def test_nobody_reads_the_output(arguments: list[str], venv: Environment) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*CLI, *arguments, venv.path], stdout=write, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_control_c(alone: bool, big: Environment, tmp_path: Path) -> None:
    """In the middle of a large tree, as a terminal sends it: to all processes of the group."""
    tree = copy(big.path, tmp_path / "tree")
    before = digest(tree, times="files")
    code = (
        "import sys; from relocate_core import cli; from relocate_core.relocation import workers\n"
    )
    code += f"workers.ALONE = {(1 << 30) if alone else pool_alone()}; sys.exit(cli.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--update-path", NEW, tree],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    until = time.monotonic() + 20
    probe = Path(tree, "lib", "python3.11", "site-packages", "pip", "__pycache__")
    (pyc,) = probe.glob("__main__*.pyc")
    inode = pyc.stat().st_ino
    while pyc.stat().st_ino == inode and time.monotonic() < until and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert process.returncode == 130
    assert errors.decode().splitlines() == ["interrupted: run the same again to finish"]
    assert temporaries(tree) == []
    assert differences(before, digest(tree, times="files")) == {}
    assert command("--update-path", NEW, tree).returncode == 0


def pool_alone() -> int:
    """The number of files from which on workers are started."""
    from relocate_core.relocation import workers

    return workers.ALONE


def test_nothing_to_do_costs_next_to_nothing(big: Environment, tmp_path: Path) -> None:
    """No walk: a hundred times the files would take as long."""
    tree = copy(big.path, tmp_path / "tree")
    assert command("--update-path", "auto", tree).returncode == 0
    os.makedirs(f"{tree}/lib/locked")
    code = (
        "import os, sys\n"
        "from relocate_core.relocation import workers as p, relocate as r\n"
        "p.scan = lambda *a: sys.exit('it walks')\n"
        "print(r.relocate(sys.argv[1]).changed)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tree], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
