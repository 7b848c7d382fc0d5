"""Compiling sources with a virtualenv's own Python, whatever version runs this.

Bytecode is good for one version of Python only, so helper processes of that very Python compile
what is sent to them. The result depends on the job and on that Python alone, not on which helper
did it or on what it did before: see the comments in `compiler_program`. The exceptions: up to 3.10,
a constant set of tuples that contain None, whose order depends on None's address; and PyPy, which
under load marks some strings as interned and others not. Sources: PEP 552 and
Lib/importlib/_bootstrap_external.py for the header, Python/marshal.c for shared objects.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from ..errors import InterpreterNotFound, reason_of
from ..system.pipes import Worker, answers
from ..system.processes import usable_cores
from ..virtualenvs.interpreter import probe
from .compiler_program import GREETING, PROGRAM

MOST_HELPERS = 8

# How a compiled file knows its source, as PEP 552 writes it.
_FLAGS = {"timestamp": 0, "unchecked-hash": 1, "checked-hash": 3}
_IN_HAND = 4
_JOBS_AHEAD = 64
_BYTES_AHEAD = 32 << 20
# No source takes a fraction of it; 3.6 computes a constant like 9 ** 9 ** 9 for days, though.
_SECONDS = 300
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


class Job(NamedTuple):
    """What a compiled file is to be made of."""

    source: bytes
    name: str
    """The source's path for tracebacks, which may hold surrogate escapes."""
    optimization: int
    """0, 1 or 2: without docstrings at 2, without assertions at 1 and 2."""
    mode: str
    """How it knows its source: `timestamp`, `checked-hash` or `unchecked-hash`."""
    mtime: int
    """The source's modification time in whole seconds, for `timestamp`."""
    code: bytes | None
    """What a valid compiled file holds behind its header, to be kept; None compiles the source."""


class Compiler:
    """Compiles with one Python, in several processes. A context manager, which ends them.

    Args:
        python: path of the virtualenv's Python, 3.6 or later.
        count: how many processes at most; by default one for each usable core, at most 8.

    Raises:
        InterpreterNotFound: it does not run.
    """

    def __init__(self, python: str, count: int | None = None) -> None:
        self._python = python
        self._count = count or min(usable_cores(), MOST_HELPERS)
        self._helpers: list[_Helper] = []

    def __enter__(self) -> Compiler:
        self._helpers.append(_Helper(self._python))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._helpers:
            self._helpers.pop().kill()

    def compile(self, jobs: Iterable[Job]) -> Iterator[bytes | None]:
        """The whole compiled file of each job in turn, or None where the source does not compile.

        Hash modes give None with Python 3.6, which has none. Only so many jobs are taken from
        `jobs` before the results of the first ones are.

        Raises:
            InterpreterNotFound: the Python does not run, is too old, or was killed.
        """
        work = _Work(jobs, self._count)
        try:
            while True:
                yield from work.finished()
                self._hand_out(work)
                if not work.left:
                    return
                self._wait(work)
        finally:
            for helper in [helper for helper in self._helpers if helper.tasks]:
                self._drop(helper)

    def _hand_out(self, work: _Work) -> None:
        """Give each helper as much as it takes, and start another where that is not enough."""
        while True:
            helper = min(self._helpers, key=lambda helper: len(helper.tasks), default=None)
            wanted = helper is None or (helper.tasks and len(self._helpers) < self._count)
            if helper is not None and not wanted and len(helper.tasks) >= _IN_HAND:
                return
            task = work.next()
            if task is None:
                return
            if helper is None or wanted:
                helper = _Helper(self._python)
                self._helpers.append(helper)
            helper.give(task, *task.message)

    def _wait(self, work: _Work) -> None:
        """Send and receive what can be at once, as soon as anything can."""
        for task, result in answers(self._helpers, 1000):
            work.done(task, result or None)
        for helper in [helper for helper in self._helpers if helper.ended]:
            self._drop(helper)
            helper.explain(work)
        for helper in self._helpers:
            helper.require_progress()

    def _drop(self, helper: _Helper) -> None:
        self._helpers.remove(helper)
        helper.kill()


class _Task:
    """A job, its place in the row, and how many helpers have died of it."""

    def __init__(self, place: int, job: Job) -> None:
        self.place = place
        self.job = job
        self.deaths = 0

    @property
    def size(self) -> int:
        return len(self.job.source) + len(self.job.code or b"")

    @property
    def message(self) -> list[bytes]:
        """The job as a helper reads it."""
        job, name = self.job, self.job.name.encode("utf-8", "surrogateescape")
        code_size = 0 if job.code is None else len(job.code) + 1
        flags, mtime = _FLAGS[job.mode], job.mtime & 0xFFFFFFFF
        fields = (job.optimization, flags, mtime, len(name), len(job.source), code_size)
        head = b"".join(field.to_bytes(8, "little") for field in fields)
        return [head + name, job.source, job.code or b""]


class _Work:
    """The jobs on their way: taken, handed out, done, and given back in order."""

    def __init__(self, jobs: Iterable[Job], count: int) -> None:
        self._jobs = enumerate(jobs)
        self._most = _JOBS_AHEAD * count
        self._again: deque[_Task] = deque()
        self._results: dict[int, tuple[bytes | None, int]] = {}
        self._taken = 0
        self._given = 0
        self._bytes = 0

    @property
    def left(self) -> bool:
        """Whether a job that was taken has not been given back."""
        return self._given < self._taken

    def next(self) -> _Task | None:
        """Another task, unless there is none, or too much is on its way."""
        if self._again:
            return self._again.popleft()
        if self._taken - self._given >= self._most or self._bytes >= _BYTES_AHEAD:
            return None
        for place, job in self._jobs:
            task = _Task(place, job)
            self._taken += 1
            self._bytes += task.size
            return task
        return None

    def repeat(self, tasks: Iterable[_Task]) -> None:
        """Hand these out again, before all others."""
        self._again.extendleft(reversed(list(tasks)))

    def done(self, task: _Task, result: bytes | None) -> None:
        """Keep a result until it is its turn."""
        size = len(result or b"")
        self._bytes += size - task.size
        self._results[task.place] = result, size

    def finished(self) -> Iterator[bytes | None]:
        """The results whose turn it is."""
        while self._given in self._results:
            result, size = self._results.pop(self._given)
            self._given += 1
            self._bytes -= size
            yield result


class _Helper(Worker[_Task]):
    """A process that compiles."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._late = False
        names = [name for name in os.environ if not name.startswith("PYTHON")]
        environment = {name: os.environ[name] for name in names}
        # A set of names among a code's constants is in the order of their hashes; and up to
        # 3.6 the locale decides how a file's name is encoded. For the seed, -I must not be there,
        # which would ignore it: the program takes the working directory from the path by itself.
        environment.update(PYTHONHASHSEED="0", PYTHONUTF8="1", LC_ALL="C.UTF-8")
        command = [python, "-s", "-S", "-B", "-W", "ignore", "-c", PROGRAM]
        try:
            # A .pth file that prints something does so before the greeting.
            super().__init__(command, GREETING, cwd="/", env=environment)
        except OSError as error:
            raise InterpreterNotFound(f"{python} does not run: {reason_of(error)}") from error

    def require_progress(self) -> None:
        """Kill a process that has been at one job for too long."""
        waits = self.tasks or not self.ready
        if waits and not self._late and time.monotonic() - self.since > _SECONDS:
            self._late = True
            self.process.kill()

    def explain(self, work: _Work) -> None:
        """Return its tasks, now that it is dead, without the one that killed it twice.

        Raises:
            InterpreterNotFound: it has not started, or was killed from outside.
        """
        if not self.ready:
            raise self._not_started()
        if not self.tasks:
            return
        first = self.tasks[0]
        first.deaths += 1
        code = self.process.returncode
        if self._late or (first.deaths > 1 and -code in _CRASHES):
            work.done(self.tasks.popleft(), None)
        elif first.deaths > 1:
            ending = f"signal {-code}" if code < 0 else f"code {code}"
            raise InterpreterNotFound(
                f"{self._python} ended with {ending} while it compiled {first.job.name!r}; see "
                "whether the machine has too little memory, and run again"
            )
        work.repeat(self.tasks)
        self.tasks.clear()

    def _not_started(self) -> InterpreterNotFound:
        found = probe(self._python)  # which reports why it does not run
        if found.version < (3, 6):
            return InterpreterNotFound(
                f"{self._python} is Python {found.long_version}, and compiling ahead needs 3.6 or "
                "later: leave it out for this virtualenv"
            )
        return InterpreterNotFound(
            f"{self._python} does not start without its site-packages "
            f"(code {self.process.returncode}): make the virtualenv again"
        )
