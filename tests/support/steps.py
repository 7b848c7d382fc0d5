"""Small real virtualenvs, and runs in a child process that are killed or fail at a chosen step."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relocate_core.relocation import workers
from tests.support.environments import Environment, Project, make

ROOT = str(Path(__file__).parents[2])
NEW = "/srv/app/0123456789"

# Makes a module of a package name the prefix, keeps its RECORD true, and compiles all that is there
# in each of the three ways that bytecode can be told to fit its source.
_TOUCH_UP = """
import base64, compileall, glob, hashlib, os, py_compile, sys
prefix = sys.argv[1]
(site,) = glob.glob(prefix + "/lib/python*/site-packages")
for name in os.listdir(site):
    if name.startswith(("setuptools", "wheel", "pkg_resources", "distutils-", "_distutils_hack")):
        os.system("rm -rf '%s/%s'" % (site, name))
for number, mode in enumerate(("TIMESTAMP", "CHECKED_HASH", "UNCHECKED_HASH")):
    module = "omega/part%d.py" % number
    text = "PLACE = %r\\n" % (prefix + "/etc/omega.conf")
    with open(os.path.join(site, module), "w") as file:
        file.write(text)
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    (record,) = glob.glob(site + "/omega-*.dist-info/RECORD")
    with open(record, "a") as file:
        file.write("%s,sha256=%s,%d\\n" % (module, digest, len(text)))
    py_compile.compile(
        os.path.join(site, module), invalidation_mode=getattr(py_compile.PycInvalidationMode, mode)
    )
compileall.compile_dir(prefix + "/src", quiet=1)
os.makedirs(prefix + "/etc")
with open(prefix + "/etc/omega.conf", "w") as file:
    file.write("[omega]\\ncommand = %s/bin/omega\\n" % prefix)
os.symlink(prefix + "/etc/omega.conf", prefix + "/lib/omega.conf")
"""


def small(path: str | os.PathLike[str]) -> Environment:
    """A virtualenv without pip, of some forty files, with one of each that is hard to do safely."""
    return make(
        "uv",
        path,
        projects=(
            Project("beta", entry_points=("beta",), layout="mapped"),
            Project("omega", entry_points=("omega",), mode="regular"),
        ),
        commands=[["{prefix}/bin/python", "-c", _TOUCH_UP, "{prefix}"]],
    )


def large(path: str | os.PathLike[str], copies: int = 4) -> Environment:
    """A virtualenv with enough files for worker processes."""
    made = make("venv-3.11", path)
    for number in range(copies):
        shutil.copytree(f"{made.site_packages}/pip", f"{made.site_packages}/pip{number}")
    return made


def temporaries(tree: str) -> list[str]:
    """What a run has left behind."""
    return [
        os.path.join(directory, name)
        for directory, directories, names in os.walk(tree)
        for name in (*directories, *names)
        if name.startswith(".relocating-")
    ]


def sampled(steps: int, every: int) -> list[int]:
    """Which of so many steps are tried, other ones each time: one in `every`, and one in three of
    the last ten, where what was written gets its name; all of them for 1.
    """
    first = random.SystemRandom().randrange(every) + 1
    last = random.SystemRandom().randrange(3)
    tail = range(max(1, steps - 9 + last), steps + 1, 3)
    return sorted({*range(first, steps + 1, every), *tail})


class Steps:
    """Counts the calls that change a file system; ends the process, or fails, at one of them.

    Args:
        kill: after which call the process ends.
        fail: (name of a function, which of its calls, errno) that fails instead.
        fail_at: (which of all calls, errno) that fails instead.
        full_at: from which call on all that need room fail, as on a full disk.
    """

    CHANGING = (
        *("open", "write", "rename", "link", "symlink", "unlink", "utime", "fchmod", "fchown"),
        *("chown", "setxattr", "removexattr", "mkdir", "rmdir", "chmod", "replace", "fsync"),
        *("ftruncate", "pwrite", "posix_fallocate"),
    )
    NEED_ROOM = ("open", "write", "pwrite", "link", "symlink", "mkdir", "posix_fallocate")

    def __init__(
        self,
        kill: int = 0,
        fail: tuple[str, int, int] | None = None,
        *,
        fail_at: tuple[int, int] | None = None,
        full_at: int | None = None,
    ) -> None:
        self.kill = kill
        self.fail = fail
        self.fail_at = fail_at
        self.full_at = full_at
        self.done = self.begun = 0
        self.failed: str | None = None
        """The first function that was made to fail."""
        self.calls = dict.fromkeys(self.CHANGING, 0)

    def install(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """Put a wrapper around each function, and keep the scan in this process."""
        put(workers, "ALONE", 1 << 30)
        for name in self.CHANGING:
            put(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.calls[name] += 1
            self.begun += 1
            number = self._errno(name)
            if number is not None:
                self.failed = self.failed or name
                named = next((part for part in arguments if isinstance(part, str)), None)
                raise OSError(number, os.strerror(number), named)
            result = real(*arguments, **options)
            self.done += 1
            if self.done == self.kill:
                os._exit(9)
            return result

        return wrapper

    def _errno(self, name: str) -> int | None:
        """What this call has to fail with; None where it may go on."""
        if self.fail and self.fail[:2] == (name, self.calls[name]):
            return self.fail[2]
        if self.fail_at and self.fail_at[0] == self.begun:
            return self.fail_at[1]
        if self.full_at and self.begun >= self.full_at and name in self.NEED_ROOM:
            return errno.ENOSPC
        return None


def in_child(function: Callable[[], object], steps: Steps) -> int:
    """Run a function in a forked child with these steps; return its exit code, 1 if it raised."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            steps.install()
            function()
            code = 0
        except OSError as error:
            code = 2 if error.errno == errno.EIO else 1
        except BaseException:
            if steps.fail is None:
                traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
