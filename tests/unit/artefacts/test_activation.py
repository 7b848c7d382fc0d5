"""Activation scripts of every tool, moved and sourced by the real shells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from relocate_core.artefacts.kinds import rewrite
from relocate_core.artefacts.prefix import Prefixes
from tests.support import environments

SHELLS = {
    "bash": ("activate", ". '{}' >&2; printf '%s\\n%s\\n' \"$VIRTUAL_ENV\" \"$PATH\""),
    "dash": ("activate", ". '{}' >&2; printf '%s\\n%s\\n' \"$VIRTUAL_ENV\" \"$PATH\""),
    "zsh": ("activate", ". '{}' >&2; printf '%s\\n%s\\n' \"$VIRTUAL_ENV\" \"$PATH\""),
    "tcsh": ("activate.csh", "source '{}'; printf '%s\\n%s\\n' \"$VIRTUAL_ENV:q\" \"$PATH:q\""),
    "fish": ("activate.fish", "source '{}'; printf '%s\\n' $VIRTUAL_ENV; string join : $PATH"),
}
FLAGS = {"bash": ["--norc"], "zsh": ["-f"], "tcsh": ["-f"], "fish": ["--no-config"]}
PLACES = {
    "plain": "/new place/../plain",
    "space": "/my app",
    "single-quote": "/it's",
    "double-quote": '/"x"',
    "dollar": "/$HOME and $(id) `id`",
    "bang": "/a!b",
    "backslash": "/a\\b",
    "non-ascii": "/grün é中",
    "mixed": "/ü 'x' \"y\" $z",
}
OLD_NAMES = {"plain": "venv", "nasty": "my 'old' venv"}


def source(shell: str, script: Path) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    command = SHELLS[shell][1].replace("{}", str(script))
    done = subprocess.run(
        [shell, *FLAGS.get(shell, []), "-c", command],
        env={"PATH": os.environ["PATH"], "HOME": "/home", "LC_ALL": "C.UTF-8", "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().split("\n")


@pytest.mark.parametrize("old", ["plain", pytest.param("nasty", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", environments.KINDS)
@pytest.mark.few(2, slow=10)
def test_the_shell_activates_the_new_place(kind: str, old: str, tmp_path: Path) -> None:
    made = environments.make(kind, tmp_path / "made", old=OLD_NAMES[old])
    before = made.old_prefix.encode()
    for shell, (name, _) in SHELLS.items():
        if not os.path.exists(made.bin(name)):
            continue
        data = Path(made.bin(name)).read_bytes()
        for place in PLACES.values():
            new = os.path.normpath(str(tmp_path) + place)
            os.makedirs(os.path.join(new, "bin"), exist_ok=True)
            prefixes = Prefixes((before,), new.encode())
            result = rewrite(f"bin/{name}", data, prefixes)
            assert not result.problem
            assert rewrite(f"bin/{name}", result.data, prefixes).data == result.data
            script = tmp_path / "script"
            script.write_bytes(result.data)
            said = source(shell, script)
            assert said[0] == new, (shell, new)
            assert said[1].startswith(new + "/bin:"), (shell, new)
            back = rewrite(f"bin/{name}", result.data, Prefixes((new.encode(),), before))
            if old == "plain":
                assert back.data == data, (shell, new)


@pytest.mark.parametrize("kind", environments.KINDS)
def test_nothing_contains_the_old_path_any_more(kind: str, tmp_path: Path) -> None:
    made = environments.make(kind, tmp_path / "made")
    old = made.old_prefix.encode()
    for name in os.listdir(made.bin("")):
        if not re.search("activate", name, re.I):
            continue
        data = Path(made.bin(name)).read_bytes()
        for new in (b"/opt/x", b"/opt/my app", b"/opt/it's", "/opt/grün".encode()):
            result = rewrite(f"bin/{name}", data, Prefixes((old,), new))
            assert not result.problem
            assert old not in result.data
            assert rewrite(f"bin/{name}", result.data, Prefixes((new,), old)).data == data


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'    PS1="(venv) ${PS1:-}"\n', b'    PS1="(app) ${PS1:-}"\n'),
        (b'VIRTUAL_ENV_PROMPT="(venv) "\n', b'VIRTUAL_ENV_PROMPT="(app) "\n'),
        (b"VIRTUAL_ENV_PROMPT=venv\n", b"VIRTUAL_ENV_PROMPT=app\n"),
        (b'VIRTUAL_ENV_PROMPT="other"\n', b'VIRTUAL_ENV_PROMPT="other"\n'),
        (b"echo venv\n", b"echo venv\n"),
    ],
)
def test_a_prompt_follows_the_name_of_the_directory(line: bytes, expected: bytes) -> None:
    there = Prefixes((b"/srv/venv",), b"/opt/app", (b"venv", b"app"))
    assert rewrite("bin/activate", line, there).data == expected
    assert rewrite("bin/activate", line, Prefixes((b"/srv/venv",), b"/opt/app")).data == line


@pytest.mark.parametrize("kind", environments.KINDS)
def test_no_activation_script_shows_the_old_name(kind: str, tmp_path: Path) -> None:
    """Every script that the tool wrote, with the old name searched as a word of its own."""
    made = environments.make(kind, tmp_path / "made", old="first-name")
    there = Prefixes((made.old_prefix.encode(),), b"/opt/app", (b"first-name", b"app"))
    back = Prefixes((b"/opt/app",), made.old_prefix.encode(), (b"app", b"first-name"))
    for name in sorted(os.listdir(made.bin(""))):
        if re.match("activate(?:\\.(?:fish|csh))?\\Z", name):
            data = Path(made.bin(name)).read_bytes()
            result = rewrite(f"bin/{name}", data, there).data
            assert b"first-name" not in result, name
            assert rewrite(f"bin/{name}", result, back).data == data
