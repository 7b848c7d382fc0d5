"""Running the tools that build: their environment, their log, and their last telling words.

An operator configures an index by `PIP_INDEX_URL`, `UV_DEFAULT_INDEX`, pip.conf or uv.toml, and
that works on here. Whatever else such variables could do, as to let packages go elsewhere, is left
out. What URLs have of credentials never reaches a log or a message.
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

# What tells pip and uv where packages come from and which of them to take.
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
_LONGEST_WORDS = 400


# --- programs -------------------------------------------------------------------------------------


def found(name: str) -> str | None:
    """Where a program is: on the PATH, which a service may have without the usual directories."""
    return shutil.which(name, path=_search_path(os.environ))


def output_of(*command: str, directory: str = "/") -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """The variables that a tool is run with.

    Args:
        more: what the operator adds; what would mislead the tools is left out of it as well.
    """
    both = {**os.environ, **more}
    kept = {
        name: value
        for name, value in both.items()
        if _KEPT.match(name) or not _MISLEADING.match(name)
    }
    return {
        **kept,
        "PATH": _search_path(both),
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


def _search_path(variables: Mapping[str, str]) -> str:
    directories = [*variables.get("PATH", "").split(":"), *USUAL_DIRECTORIES]
    return ":".join(
        directory for directory in dict.fromkeys(directories) if directory.startswith("/")
    )


class Runner:
    """Runs tools one after the other, all into one log.

    Args:
        doing: what they are run for, as a message has it: `build /srv/app.tar.zst`.
        log: path of the log.
        variables: the tools' environment.
    """

    def __init__(self, doing: str, log: str, variables: Mapping[str, str]) -> None:
        self.doing = doing
        self.log = log
        self.variables = dict(variables)
        self._locks: tuple[int, ...] = ()
        self._secrets = secrets_in(variables.values())

    def start(self, lock: int) -> None:
        """Begin a new log.

        Args:
            lock: a descriptor that the tools inherit, so that what it locks stays locked for as
                long as one of them lives, though this process was killed.
        """
        self._locks = (lock,)
        with suppress(FileNotFoundError):
            os.unlink(self.log)

    def conceal(self, texts: Iterable[str]) -> None:
        """Keep the credentials in some more texts out of the log."""
        self._secrets |= secrets_in(texts)

    def run(
        self, what: str, command: Sequence[str], directory: str, **variables: str | None
    ) -> None:
        """Run a command to its end.

        Args:
            what: what it does, for a message: `installing the packages`.
            command: its words.
            directory: its working directory.
            variables: to change in its environment; None takes one away.

        Raises:
            BuildFailed: it failed; tells its last telling words, and where all of them are.
        """
        changed = {**self.variables, **variables}
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
            # Also what it has left in the background. Nobody else can have its number, as it is
            # not waited for yet.
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        if code:
            said = telling(lines) or f"it ended with code {code}"
            raise BuildFailed(
                f"cannot {self.doing}: {what} failed: {said}; the whole output is in {self.log}"
            )

    def _copy(self, process: subprocess.Popen[bytes], command: Sequence[str]) -> list[str]:
        """Copy what a process says into the log, until it ends; the last lines of it."""
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


# --- what they say --------------------------------------------------------------------------------

# What is said when something inside of a tool, which has told the reason before, has failed.
_HOLLOW = re.compile(
    r"Failed to build|Failed building|Could not build|subprocess-exited|metadata-|Encountered error"
    r"|The build backend returned|Call to |.* did not run successfully|.* exit (?:code|status)"
)
_INNER = re.compile(r"(?:\S+:\d+(?::\d+)?: )?(?:fatal )?error: |\w+(?:\.\w+)*(?:Error|Exception): ")
_MARK = re.compile(r"\s*(?:error:|cause:|Caused by:|\u00d7|╰─+[▶>]|├─+[▶>])\s*")
_FAILURES = re.compile(r"ERROR: |error: |\s*\u00d7 ")
_HASHES = "THESE PACKAGES DO NOT MATCH THE HASHES"


def telling(lines: Sequence[str]) -> str:
    """The words in a tool's output that tell best why it failed, on one line."""
    lines = [line for line in lines if line.strip()]
    said = _headline(lines)
    if _HOLLOW.match(said):
        inner = _inner(lines)
        named = re.match(r"(?:Failed to build|Could not build) [^:]*", said)
        said = ": ".join(filter(None, (named[0] if named else "", inner))) or said
    said = " ".join(said.split()).rstrip(".:;")
    # A word like `OSError(` looks like a bug of ours, and says nothing more than `OSError`.
    said = re.sub(r"\b(\w+Error)\(", r"\1 (", said)
    return said if len(said) <= _LONGEST_WORDS else f"{said[:_LONGEST_WORDS]}..."


def _headline(lines: Sequence[str]) -> str:
    """The last error that a tool tells, with its first cause."""
    starts = [number for number, line in enumerate(lines) if _FAILURES.match(line)]
    if not starts:
        return lines[-1].strip() if lines else ""
    block = lines[starts[-1] :]
    if block[0].startswith("ERROR: "):
        return _pip_headline(block, any("Retrying (" in line for line in lines))
    parts: list[str] = []
    for line in block:
        text = _MARK.sub("", line, count=1).strip(" │")
        if re.match(r"(?:hint|help|note):", text):
            break
        if _MARK.match(line) or not parts:
            parts.append(text)
        else:
            parts[-1] += f" {text}"
    # uv tells in the last of its causes which one it was; the ones between only lead there.
    return f"{parts[0].rstrip(':')}: {parts[-1]}" if parts[1:] else parts[0]


def _pip_headline(block: Sequence[str], offline: bool) -> str:
    said = block[0][len("ERROR: ") :]
    if said.startswith(_HASHES):
        culprit = block[1].partition(" from ")[0].strip() if block[1:] else "a package"
        return f"{culprit} does not match the hashes of the requirements"
    said = re.split(r"\. [A-Z(]", said)[0]
    return f"{said} (the package index could not be reached)" if offline else said


def _inner(lines: Sequence[str]) -> str:
    """The last reason in what a build has said; a compiler's goes before that of who called it."""
    known = [line.strip() for line in lines if _INNER.match(line.strip())]
    known += [line.strip()[len("ERROR: ") :] for line in lines if line.startswith("ERROR: ")]
    plain = [re.sub(r"^error: ", "", line) for line in known]
    return next((line for line in reversed(plain) if not _HOLLOW.match(line)), "")
