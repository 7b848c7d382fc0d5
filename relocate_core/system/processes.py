"""Running programs of a release, and which releases the running processes use.

A program finds its release's own programs first on the PATH, and nothing of the caller's
environment. What runs is known from Linux' /proc, as far as this user may see it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import CannotRun, reason_of
from .ownership import user_name

USUAL_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where programs are, whatever is in the PATH of a service."""


def using(directories: Iterable[str]) -> dict[str, int]:
    """The directories that a process runs from, works in, or has a file of open, and one such
    process.

    A program that was started as `current/bin/python` and has read only modules in pure Python
    leaves no trace of its release: start programs by their scripts, whose first line refers to it.

    Args:
        directories: absolute paths.
    """
    wanted = {path.encode("utf-8", "surrogateescape") + b"/": path for path in directories}
    for path in list(wanted.values()):
        real = os.fsencode(os.path.realpath(path)) + b"/"
        wanted.setdefault(real, path)
    found: dict[str, int] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return found
    for number in numbers:
        if number != os.getpid():
            text = b"\0".join(_traces(f"/proc/{number}"))
            for prefix, path in wanted.items():
                if prefix in text:
                    found.setdefault(path, number)
    return found


def _traces(process: str) -> Iterator[bytes]:
    """All paths that a process uses, each followed by a slash."""
    for name in ("exe", "cwd", "root"):
        with suppress(OSError):
            yield os.fsencode(os.readlink(f"{process}/{name}")) + b"/"
    for name in ("cmdline", "maps"):
        with suppress(OSError), open(f"{process}/{name}", "rb") as file:
            yield file.read()
    with suppress(OSError):
        for number in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                yield os.fsencode(os.readlink(f"{process}/fd/{number}")) + b"/"


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        user: whom to run it as, as `identity` gives it.
        seconds: how long it may take.
        descriptors: files that it inherits: what is locked by one stays so for as long as the
            program lives, though this process was killed.
        together: whether its errors go to its output, where it printed them.

    Raises:
        OSError: it cannot be started.
    """
    import subprocess  # not above: the workers of `relocation` need neither, and start faster
    import tempfile

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
    """Run a line for /bin/sh in a release; its errors are in the output.

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


def let_through(directory: str) -> None:
    """Let other users into a release that is being unpacked, in a directory that nobody can guess.

    Args:
        directory: its path, two directories below one that only root can list.
    """
    if os.geteuid() == 0:
        parent = os.path.dirname(directory)
        for one in (os.path.dirname(parent), parent, directory):
            os.chmod(one, 0o711)


def environment(release: str, home: str, *before: str) -> dict[str, str]:
    """The variables for a program of a release.

    Args:
        release: the release's directory.
        home: the user's.
        before: directories that come before all others on the PATH.
    """
    return {
        "PATH": ":".join((*before, os.path.join(release, "bin"), *USUAL_DIRECTORIES)),
        "VIRTUAL_ENV": release,
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # a release is not changed by being run by root
    }


def identity(owner: tuple[int, int] | None) -> tuple[dict[str, object], str]:
    """Who runs a command, as options of Popen, and that user's home.

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
        pause = min(1.2 * pause, 0.01)
    return True
