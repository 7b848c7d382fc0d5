"""Running the tools that build: the variables they are run with, and their log.

An operator configures an index by `PIP_INDEX_URL`, `UV_DEFAULT_INDEX`, pip.conf or uv.toml, and
that works here as well. Other variables of the tools, which for example install packages elsewhere,
are left out. Credentials in URLs are never written to a log or a message.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from ..errors import BuildFailed, reason_of
from ..system.processes import USUAL_DIRECTORIES
from ..system.redact import redact, secrets_in
from .failures import summary

# Where packages come from, and which of them pip and uv choose.
_KEPT = re.compile(
    r"(?:PIP_(?:INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|CERT|CLIENT_CERT|PROXY"
    r"|TIMEOUT|DEFAULT_TIMEOUT|RETRIES|CONFIG_FILE|KEYRING_PROVIDER|CONSTRAINT|BUILD_CONSTRAINT"
    r"|ONLY_BINARY|NO_BINARY|PREFER_BINARY|PRE|REQUIRE_HASHES|USE_FEATURE|USE_DEPRECATED"
    r"|UPLOADED_PRIOR_TO)"
    r"|UV_(?:DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INDEX_STRATEGY"
    r"|INDEX_\w+_(?:USERNAME|PASSWORD)|INSECURE_HOST|KEYRING_PROVIDER|NATIVE_TLS|SYSTEM_CERTS"
    r"|HTTP_\w+|CONFIG_FILE|CONSTRAINT|BUILD_CONSTRAINT|OVERRIDE|NO_BUILD|NO_BINARY|ONLY_BINARY"
    r"|PRERELEASE|RESOLUTION|EXCLUDE_NEWER|REQUIRE_HASHES|OFFLINE|LINK_MODE|CONCURRENT_\w+))\Z"
)
_MISLEADING = re.compile(
    r"(?:PIP_|UV_|PYTHON|VIRTUALENV_|CONDA_)|(?:_?VIRTUAL_ENV\w*|__PYVENV_LAUNCHER__)\Z"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LAST_LINES = 400


def find_program(name: str) -> str | None:
    """The path of a program; the PATH of a service may lack the usual directories."""
    return shutil.which(name, path=search_path(os.environ))


def output_of(*command: str, directory: str = "/") -> str | None:
    """The output of a command; None where it is not installed or fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=tool_env({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None


def tool_env(more: Mapping[str, str]) -> dict[str, str]:
    """The variables that a tool is run with.

    Args:
        more: what the operator adds; what would mislead the tools is left out of these as well.
    """
    both = {**os.environ, **more}
    kept = {
        name: value
        for name, value in both.items()
        if _KEPT.match(name) or not _MISLEADING.match(name)
    }
    return {
        **kept,
        "PATH": search_path(both),
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def search_path(env: Mapping[str, str]) -> str:
    """The PATH of some variables, with the usual directories at its end."""
    directories = [*env.get("PATH", "").split(":"), *USUAL_DIRECTORIES]
    return ":".join(
        directory for directory in dict.fromkeys(directories) if directory.startswith("/")
    )


class Runner:
    """Runs tools one after the other, all into one log.

    Args:
        doing: what they are run for, for messages: `build /srv/app.tar.zst`.
        log: path of the log.
        env: the variables that they are run with.
    """

    def __init__(self, doing: str, log: str, env: Mapping[str, str]) -> None:
        self.doing = doing
        self.log = log
        self.env = dict(env)
        self._locks: tuple[int, ...] = ()
        self._secrets = secrets_in(env.values())

    def start(self, lock: int) -> None:
        """Start a new log.

        Args:
            lock: a descriptor that the tools inherit, so that what it locks stays locked as long as
                one of them runs, even when this process was killed.
        """
        self._locks = (lock,)
        with suppress(FileNotFoundError):
            os.unlink(self.log)

    def conceal(self, texts: Iterable[str]) -> None:
        """Keep the credentials in some more texts out of the log."""
        self._secrets |= secrets_in(texts)

    def run(self, what: str, command: Sequence[str], directory: str, **env: str | None) -> None:
        """Run a command to its end.

        Args:
            what: what it does, for a message: `installing the packages`.
            command: its words.
            directory: its working directory.
            env: variables to change; None removes one.

        Raises:
            BuildFailed: it failed; the message has the reason, and where the whole output is.
        """
        changed = {**self.env, **env}
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={name: value for name, value in changed.items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=self._locks,
                start_new_session=True,
                umask=0o022,  # whatever the caller's: every user on a server has to read the files
            )
        except OSError as error:
            raise BuildFailed(
                f"cannot {self.doing}: {command[0]} does not run: {reason_of(error)}"
            ) from None
        try:
            lines = self._copy(process, command)
        finally:
            # Also what it has left in the background. No other process can have its number, as it
            # is not waited for yet.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code:
            reason = summary(lines) or f"it ended with code {code}"
            raise BuildFailed(
                f"cannot {self.doing}: {what} failed: {reason}; the whole output is in {self.log}"
            )

    def _copy(self, process: subprocess.Popen[bytes], command: Sequence[str]) -> list[str]:
        """Copy the output of a process into the log, until it ends; the last lines of it."""
        lines: deque[str] = deque(maxlen=_LAST_LINES)
        assert process.stdout is not None
        with process.stdout, open(self.log, "a", encoding="utf-8", opener=_private) as log:
            log.write(self._plain(f"$ {' '.join(command)}\n"))
            for raw in process.stdout:
                line = self._plain(raw.decode(errors="replace").rstrip())
                lines.append(line)
                log.write(f"{line}\n")
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its output has ended before it
        return list(lines)

    def _plain(self, text: str) -> str:
        return redact(_ESCAPES.sub("", text), self._secrets)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
