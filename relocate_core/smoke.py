"""Smoke tests: commands that have to succeed in a release before it gets its name.

The release is still in its staging folder then, while its scripts already name the interpreter at
the final path. So each script of `bin` is found on the PATH as a small stand-in that runs it on the
staged interpreter. No command sees the caller's environment, which on a minion is Salt's own.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from .artefacts import scripts
from .errors import CannotRun
from .running import ended_within, environment, identity

SECONDS = 300.0
_PROGRAM = re.compile(r"(?:\./)?bin/([^\s/]+)")


def smoke(
    staged: str, home: str, commands: Sequence[str], owner: tuple[int, int] | None = None
) -> None:
    """Run commands in a staged release, one after the other.

    Args:
        staged: its folder, with room beside it for the stand-ins.
        home: the path that its scripts name.
        commands: for /bin/sh; its programs are on the PATH, and the working folder is the release.
        owner: user and group to run them as, where root does not want to run them.

    Raises:
        CannotRun: one failed, or took longer than five minutes.
    """
    if not commands:
        return
    programs = os.path.join(os.path.dirname(staged), "programs")
    names = _stand_ins(staged, home, programs)
    if owner is not None and os.geteuid() == 0:
        for folder in (os.path.dirname(os.path.dirname(staged)), os.path.dirname(staged)):
            os.chmod(folder, 0o711)
        os.chmod(programs, 0o755)
    for command in commands:
        first = _PROGRAM.match(command)
        line = command
        if first and first[1] in names:
            line = f"{shlex.quote(os.path.join(programs, first[1]))}{command[first.end() :]}"
        _run(line, command, staged, home, programs, owner)


def _stand_ins(staged: str, home: str, programs: str) -> set[str]:
    """Make a stand-in for each script that names an interpreter at the final path."""
    os.mkdir(programs, 0o700)
    names = set()
    for entry in os.scandir(os.path.join(staged, "bin")):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as file:
            interpreter = os.fsdecode(scripts.interpreter_of(file.read(8192)) or b"")
        if interpreter.startswith(f"{home}/bin/"):
            own = os.path.join(staged, interpreter[len(home) + 1 :])
            with open(os.path.join(programs, entry.name), "w", opener=_executable) as file:
                file.write(f'#!/bin/sh\nexec {shlex.quote(own)} {shlex.quote(entry.path)} "$@"\n')
            names.add(entry.name)
    return names


def _executable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o755)


def _run(
    line: str,
    command: str,
    staged: str,
    home: str,
    programs: str,
    owner: tuple[int, int] | None,
) -> None:
    user, user_home = identity(owner)
    variables = environment(staged, user_home, programs)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", line],
            cwd=staged,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **user,  # type: ignore[call-overload]
        )
        ended = ended_within(process.pid, SECONDS)
        # Also what it has left running in the background: the tree is about to be renamed. Nobody
        # else can have its number, as it is not waited for yet.
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace").strip().splitlines()[-1:]
    if ended and code == 0:
        return
    reason = f"exit code {code}" if ended else f"it took longer than {SECONDS:g} seconds"
    reason = ": ".join([reason, *(text.strip() for text in said)])
    raise CannotRun(
        f"{home} is not deployed, as its smoke test `{command}` failed ({reason}); "
        "nothing stands there: see to what it tells, and run again"
    )
