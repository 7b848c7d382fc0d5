"""Scanning in several processes.

A minion's job may be a thread or a daemonic process, where forking is unsafe and `multiprocessing`
refuses to start. So the workers are programs of their own: this interpreter, isolated, running
`worker.serve`, fed through pipes. Where that cannot be had - an embedded interpreter, a core inside
a zip, no room for a process - the scan runs here, slower.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain

from ..system import files
from ..system.interrupts import deferred
from ..system.pipes import Worker, answers
from ..system.processes import usable_cores
from .scan import Directory, Findings, Scanner
from .worker import GREETING, packed

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


Batch = list[Directory]
"""Directories with so many files together that a worker is busy with them for a while."""


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
LOADED = _fingerprint()


def scan(
    scanner: Scanner, directories: Iterator[Directory], take: Callable[[Findings], None]
) -> None:
    """Scan all directories, by worker processes where that pays.

    Args:
        scanner: what looks through a batch of directories.
        directories: the directories.
        take: called with the findings of each batch as they come; whatever interrupts the scan,
            it gets everything that was rewritten, so that this can be undone.
    """
    with deferred() as let_through:
        _scan(scanner, directories, take, let_through)


def _scan(
    scanner: Scanner,
    directories: Iterator[Directory],
    take: Callable[[Findings], None],
    let_through: Callable[[], None],
) -> None:
    batches = _batches(directories)
    first, count = [], 0
    for batch in batches:
        first.append(batch)
        count += sum(len(names) for _, names in batch)
        if count >= ALONE:
            break
    workers = _start(scanner) if count >= ALONE else []
    try:
        for batch in chain(first, batches):
            _give(workers, scanner, batch, take)
            let_through()
    finally:
        _drain(workers, scanner, take)


def _batches(directories: Iterator[Directory]) -> Iterator[Batch]:
    batch: Batch = []
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


def _start(scanner: Scanner) -> list[Worker[Batch]]:
    """As many workers as pay, or as can be started."""
    count = min(usable_cores(), MOST_WORKERS)
    if count < 2 or not sys.executable or not LOADED or _fingerprint() != LOADED:
        return []
    command = [sys.executable, "-I", "-S", "-B", "-c", _BOOTSTRAP, _PACKAGE, str(scanner.root)]
    arguments = packed((scanner.prefixes.arguments, scanner.write, scanner.account))
    workers: list[Worker[Batch]] = []
    with suppress(OSError, ValueError):
        for _ in range(count):
            # The descriptor carries the lock on the virtualenv as well: should this process be
            # killed, the lock is held until the last worker has put down its batch.
            worker: Worker[Batch] = Worker(command, GREETING, pass_fds=(scanner.root,))
            workers.append(worker)
            worker.send(arguments)
    return workers


def _give(
    workers: list[Worker[Batch]],
    scanner: Scanner,
    batch: Batch,
    take: Callable[[Findings], None],
) -> None:
    """Give a batch to the next worker that has nothing to do; without workers, it is done here."""
    while workers and all(worker.tasks for worker in workers):
        _collect(workers, scanner, take)
    worker = next((worker for worker in workers if not worker.tasks), None)
    if worker is None:
        scanner.scan(batch, take)
    else:
        worker.give(batch, packed(batch))


def _drain(
    workers: list[Worker[Batch]], scanner: Scanner, take: Callable[[Findings], None]
) -> None:
    """Wait for what the workers have in hand, and end them."""
    try:
        while any(worker.tasks for worker in workers):
            _collect(workers, scanner, take)
    finally:
        for worker in workers:
            worker.stop()


def _collect(
    workers: list[Worker[Batch]], scanner: Scanner, take: Callable[[Findings], None]
) -> None:
    """Take the findings of the workers that have some, and the batches of those that died."""
    for _, answer in answers(workers):
        take(Findings(*marshal.loads(answer)))
    for worker in [worker for worker in workers if worker.ended]:
        workers.remove(worker)
        worker.kill()
        for batch in worker.tasks:
            _clear(scanner.root, batch, worker.process.pid)
            scanner.scan(batch, take)


def _clear(root: int, batch: Batch, process: int) -> None:
    """Remove the temporary file that a worker has left which died."""
    for path, _ in batch:
        directory = files.open_directory(root, path)
        try:
            for name in os.listdir(directory):
                if name.startswith(f"{files.TEMPORARY}{process}-"):
                    os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
