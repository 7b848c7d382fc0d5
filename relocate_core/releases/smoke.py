"""Smoke tests: commands that have to succeed in a release before it gets its name.

The release is still in its staging directory then, while its scripts already refer to the
interpreter at the final path. So each script of `bin` is found on the PATH as a small stand-in that
runs it on the staged interpreter. No command sees the caller's environment, on a minion Salt's own.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from ..artefacts import scripts
from ..errors import CannotRun
from ..system.ownership import user_name
from ..system.processes import Ended, run_line

SECONDS = 300.0
_PROGRAM = re.compile(r"(?:\./)?bin/([^\s/]+)")


def smoke(
    staged: str, home: str, commands: Sequence[str], user: tuple[int, int] | None = None
) -> None:
    """Run commands in a staged release, one after the other.

    Args:
        staged: its directory, with room beside it for the stand-ins.
        home: the path that its scripts refer to.
        commands: for /bin/sh; its programs are on the PATH, and the working directory is the
            release.
        user: user and group to run them as; None for the user who runs this.

    Raises:
        CannotRun: one failed, or took longer than five minutes; or that user cannot run them.
    """
    if not commands:
        return
    programs = os.path.join(os.path.dirname(staged), "programs")
    names = _stand_ins(staged, home, programs)
    if user is not None and os.geteuid() == 0:
        os.chmod(programs, 0o755)
        _require_access(staged, home, user)
    for command in commands:
        first = _PROGRAM.match(command)
        line = command
        if first and first[1] in names:
            line = f"{shlex.quote(os.path.join(programs, first[1]))}{command[first.end() :]}"
        ended = run_line(line, staged, user, SECONDS, before=[programs])
        if ended.code != 0:
            raise _failure(home, command, ended)


def _require_access(staged: str, home: str, user: tuple[int, int]) -> None:
    """Refuse a user who could not run the release, before each program fails in its own way."""
    python = os.path.join(staged, "bin", "python")
    if run_line(f"test -x {shlex.quote(python)}", staged, user, SECONDS).code != 0:
        raise CannotRun(
            f"{home} is not deployed, as the user {user_name(user[0])} of its smoke test may not "
            f"enter it, or not run {os.path.realpath(python)}: check the modes of the release, "
            "of that Python, and of the directories above them"
        )


def _stand_ins(staged: str, home: str, programs: str) -> set[str]:
    """Make a stand-in for each script that refers to an interpreter at the final path."""
    os.mkdir(programs, 0o700)
    names = set()
    for entry in os.scandir(os.path.join(staged, "bin")):
        if not entry.is_file(follow_symlinks=False):
            continue
        with open(entry.path, "rb") as file:
            interpreter = os.fsdecode(scripts.interpreter_of(file.read(8192)) or b"")
        if interpreter.startswith(f"{home}/bin/"):
            own = os.path.join(staged, interpreter[len(home) + 1 :])
            with open(os.path.join(programs, entry.name), "w") as file:
                os.fchmod(file.fileno(), 0o755)  # whatever the umask
                file.write(f'#!/bin/sh\nexec {shlex.quote(own)} {shlex.quote(entry.path)} "$@"\n')
            names.add(entry.name)
    return names


def _failure(home: str, command: str, ended: Ended) -> CannotRun:
    reason = f"exit code {ended.code}"
    if ended.code is None:
        reason = f"it took longer than {SECONDS:g} seconds"
    last_line = ended.output.strip().splitlines()[-1:]
    reason = ": ".join([reason, *(text.strip() for text in last_line)])
    return CannotRun(
        f"{home} is not deployed, as its smoke test `{command}` failed ({reason}); "
        "nothing is deployed there: fix the cause, and run again"
    )
