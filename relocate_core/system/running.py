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

from ..errors import CannotRun, reason_of
from .ownership import user_name

_USUAL_DIRECTORIES = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Ended:
    """How a program has ended.

    Attributes:
        code: its exit code; None where it took too long, and was ended.
        output: what it printed.
        errors: what it printed on its standard error; "" where that went into `output`.
    """

    code: int | None
    output: str
    errors: str = ""


def run(
    command: Sequence[str],
    directory: str,
    variables: Mapping[str, str],
    *,
    user: Mapping[str, object],
    seconds: float,
    descriptors: Sequence[int] = (),
    together: bool = False,
) -> Ended:
    """Run a program to its end, and end with it what it has left running.

    Args:
        command: its words.
        directory: its working directory.
        variables: all of its environment.
        user: whom to run it as, as `identity` tells it.
        seconds: how long it may take.
        descriptors: files that it inherits: what is locked by one stays so for as long as the
            program lives, though this process was killed.
        together: whether its errors are to stand in its output, where it printed them.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if together else errors,
            pass_fds=descriptors,
            start_new_session=True,
            **user,  # type: ignore[call-overload]
        )
        try:
            ended = _ended_within(process.pid, seconds)
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


def run_line(
    line: str,
    release: str,
    owner: tuple[int, int] | None,
    seconds: float,
    *,
    before: Sequence[str] = (),
) -> Ended:
    """Run a line for /bin/sh in a release; its errors stand in the output.

    Args:
        line: the command.
        release: the directory that it is run in, and whose programs are on the PATH.
        owner: user and group to run it as; None for whoever runs this.
        seconds: how long it may take.
        before: directories that come before the release's own on the PATH.

    Raises:
        CannotRun: there is no such directory, or that user cannot be run as.
    """
    user, home = identity(owner)
    variables = environment(release, home, *before)
    command = ["/bin/sh", "-c", line]
    try:
        return run(command, release, variables, user=user, seconds=seconds, together=True)
    except OSError as error:
        raise CannotRun(
            f"cannot run `{line}` in {release}: {reason_of(error)}; see to it"
        ) from error


def let_through(staged: str) -> None:
    """Let other users into a staged release, of which nobody can guess the directory's name.

    Args:
        staged: its path, two directories below one that only root can list.
    """
    if os.geteuid() == 0:
        for directory in (os.path.dirname(os.path.dirname(staged)), os.path.dirname(staged)):
            os.chmod(directory, 0o711)
        os.chmod(staged, 0o711)


def environment(release: str, home: str, *before: str) -> dict[str, str]:
    """The variables for a program of a release.

    Args:
        release: the release's directory.
        home: the user's.
        before: directories that come before all others on the PATH.
    """
    return {
        "PATH": ":".join((*before, os.path.join(release, "bin"), _USUAL_DIRECTORIES)),
        "VIRTUAL_ENV": release,
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # a release is not changed by being run by root
    }


def identity(owner: tuple[int, int] | None) -> tuple[dict[str, object], str]:
    """Who runs a command, as Popen wants it told, and that user's home.

    Raises:
        CannotRun: only root could run it as that user.
    """
    if owner is None:
        return {}, "/"
    import pwd

    user, group = owner
    if os.geteuid() not in (0, user):
        raise CannotRun(
            f"only root may run programs as the user {user_name(user)}: run this as root, or leave "
            "that user out"
        )
    groups: list[int] = []
    home = "/"
    with suppress(KeyError):  # a number without a name
        entry = pwd.getpwuid(user)
        groups, home = os.getgrouplist(entry.pw_name, group), entry.pw_dir
    if os.geteuid() != 0:
        return {}, home
    return {"user": user, "group": group, "extra_groups": groups}, home


def _ended_within(process: int, seconds: float) -> bool:
    """Wait for a process to end, and leave it unreaped; False where it takes too long."""
    until = time.monotonic() + seconds
    pause = 0.001
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(1.2 * pause, 0.05)
    return True
