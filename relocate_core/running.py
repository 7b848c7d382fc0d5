"""Running the programs of a release: its own first on the PATH, nothing of the caller's around."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

_USUAL_FOLDERS = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Ended:
    """How a program has ended.

    Attributes:
        code: its exit code; None where it took too long, and was ended.
        output: what it printed.
        errors: what it printed on its standard error.
    """

    code: int | None
    output: str
    errors: str


def run(
    command: Sequence[str],
    folder: str,
    variables: Mapping[str, str],
    *,
    user: Mapping[str, object],
    seconds: float,
    descriptors: Sequence[int] = (),
) -> Ended:
    """Run a program to its end, and end with it what it has left running.

    Args:
        command: its words.
        folder: its working folder.
        variables: all of its environment.
        user: whom to run it as, as `identity` tells it.
        seconds: how long it may take.
        descriptors: files that it inherits: what is locked by one stays so for as long as the
            program lives, though this process was killed.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=descriptors,
            start_new_session=True,
            **user,  # type: ignore[call-overload]
        )
        try:
            ended = ended_within(process.pid, seconds)
        finally:
            # Nobody else can have its number, as it is not waited for yet.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ended(code if ended else None, *texts)


def environment(release: str, home: str, *before: str) -> dict[str, str]:
    """The variables for a program of a release.

    Args:
        release: the release's folder.
        home: the user's.
        before: folders that come before all others on the PATH.
    """
    return {
        "PATH": ":".join((*before, os.path.join(release, "bin"), _USUAL_FOLDERS)),
        "VIRTUAL_ENV": release,
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # a release is not changed by being run by root
    }


def identity(owner: tuple[int, int] | None) -> tuple[dict[str, object], str]:
    """Who runs a command, as Popen wants it told, and that user's home."""
    if owner is None or os.geteuid() != 0:
        return {}, "/"
    import pwd

    user, group = owner
    try:
        entry = pwd.getpwuid(user)
    except KeyError:  # a number without a name
        return {"user": user, "group": group, "extra_groups": []}, "/"
    groups = os.getgrouplist(entry.pw_name, group)
    return {"user": user, "group": group, "extra_groups": groups}, entry.pw_dir


def ended_within(process: int, seconds: float) -> bool:
    """Wait for a process to end, and leave it unreaped; False where it takes too long."""
    until = time.monotonic() + seconds
    pause = 0.001
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True
