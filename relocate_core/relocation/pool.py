"""Scanning in several processes.

A minion's job may be a thread or a daemonic process, where forking is unsafe and `multiprocessing`
refuses to start. So the workers are programs of their own: this interpreter, isolated, running
`relocation.worker`, fed through pipes. Where that cannot be had - an embedded interpreter, a core
inside a zip, no room for a process - the scan runs here, slower.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from ..system import files
from ..system.processes import usable_cores
from .messages import receive, send
from .scan import Directory, Findings, Scanner

if TYPE_CHECKING:
    import subprocess

# Fewer files than this are scanned sooner than a process starts.
ALONE = 3000
MOST_WORKERS = 4
# Small enough that the workers finish together, large enough that messages cost nothing.
BATCH_FILES = 400

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Run by `python -c`: gives the package a name of its own, whatever is installed under that name.
_BOOTSTRAP = (
    "import sys;m=sys.modules['relocate_core']=type(sys)('relocate_core');"
    "m.__path__=[sys.argv[1]];"
    "from relocate_core.relocation.worker import serve;serve(int(sys.argv[2]))"
)


def _fingerprint(package: str = _PACKAGE) -> list[tuple[str, int, int]]:
    """Path, size and time of each source file of the package now; empty inside a zip."""
    found = []
    try:
        for parent, _, names in os.walk(package):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(parent, name)
                    status = os.stat(path)
                    found.append((path, status.st_size, status.st_mtime_ns))
    except OSError:  # a file that has just been replaced
        return []
    return sorted(found)


# A minion lives on while a sync replaces the package: workers would then run other code than this.
_LOADED = _fingerprint()


def scan(
    scanner: Scanner, directories: Iterator[Directory], take: Callable[[Findings], None]
) -> None:
    """Scan all directories, by worker processes where that pays.

    Args:
        scanner: what looks through a batch of directories.
        directories: the directories.
        take: called with the findings of each batch as they come; whatever interrupts the scan,
            it is told of everything that was rewritten, so that this can be undone.
    """
    batches = _batches(directories)
    first, count = [], 0
    for batch in batches:
        first.append(batch)
        count += sum(len(names) for _, names in batch)
        if count >= ALONE:
            break
    else:
        for batch in first:
            scanner.scan(batch, take)
        return
    workers = _start(scanner)
    if workers:
        _feed(workers, scanner, chain(first, batches), take)
    else:
        for batch in chain(first, batches):
            scanner.scan(batch, take)


def _batches(directories: Iterator[Directory]) -> Iterator[list[Directory]]:
    batch: list[Directory] = []
    count = 0
    for path, names in directories:
        for start in range(0, len(names), BATCH_FILES):
            part = names[start : start + BATCH_FILES]
            batch.append((path, part))
            count += len(part)
            if count >= BATCH_FILES:
                yield batch
                batch, count = [], 0
    if batch:
        yield batch


class _Worker:
    """A worker process and the batch it has in hand."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.batch: list[Directory] | None = None

    @property
    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def tell(self, message: object) -> None:
        assert self.process.stdin is not None
        send(self.process.stdin.fileno(), message)

    def give(self, batch: list[Directory]) -> None:
        self.batch = batch
        self.tell(batch)

    def take(self) -> Findings:
        findings = Findings(*receive(self.output))
        self.batch = None
        return findings

    def kill(self) -> None:
        """End it at once, if it has not ended yet."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Close the pipes, upon which the worker ends by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self.process.wait()


def _start(scanner: Scanner) -> list[_Worker]:
    import subprocess

    count = min(usable_cores(), MOST_WORKERS)
    if count < 2 or not sys.executable or not _LOADED or _fingerprint() != _LOADED:
        return []
    workers: list[_Worker] = []
    command = [sys.executable, "-I", "-S", "-B", "-c", _BOOTSTRAP, _PACKAGE, str(scanner.root)]
    try:
        for _ in range(count):
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The descriptor carries the lock on the virtualenv as well: should this process
                # be killed, the lock is held until the last worker has put down its batch.
                pass_fds=(scanner.root,),
            )
            workers.append(_Worker(process))
        arguments = (scanner.prefixes.arguments, scanner.write, scanner.account)
        for worker in workers:
            worker.tell(arguments)
        for worker in workers:
            if receive(worker.output) != "ready":
                raise OSError("not a worker")
    except (OSError, EOFError, ValueError, TypeError):
        for worker in workers:
            worker.stop()
        return []
    return workers


def _feed(
    workers: list[_Worker],
    scanner: Scanner,
    batches: Iterator[list[Directory]],
    take: Callable[[Findings], None],
) -> None:
    """Keep every worker busy; a batch whose worker died is done here."""
    idle = list(workers)
    busy: list[_Worker] = []
    try:
        for batch in batches:
            while busy and not idle:
                _collect(busy, idle, scanner, take)
            if not idle:
                scanner.scan(batch, take)
                continue
            worker = idle.pop()
            busy.append(worker)
            with suppress(OSError):  # it died: `_collect` notices, and does the batch here
                worker.give(batch)
    finally:
        try:
            while busy:
                _collect(busy, idle, scanner, take)
        finally:
            for worker in workers:
                worker.stop()


def _collect(
    busy: list[_Worker], idle: list[_Worker], scanner: Scanner, take: Callable[[Findings], None]
) -> None:
    """Take the findings of the workers that are ready, once one is."""
    ready, _, _ = select.select([worker.output for worker in busy], [], [])
    for worker in [worker for worker in busy if worker.output in ready]:
        batch = worker.batch
        assert batch is not None
        try:
            findings = worker.take()
        except (EOFError, OSError, ValueError, TypeError):
            busy.remove(worker)
            worker.kill()
            _clear(scanner.root, batch, worker.process.pid)
            scanner.scan(batch, take)
        else:
            busy.remove(worker)
            idle.append(worker)
            take(findings)


def _clear(root: int, batch: list[Directory], process: int) -> None:
    """Remove the temporary file that a worker has left which died."""
    for path, _ in batch:
        directory = files.open_directory(root, path)
        try:
            for name in os.listdir(directory):
                if name.startswith(f"{files.TEMPORARY}{process}-"):
                    os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
