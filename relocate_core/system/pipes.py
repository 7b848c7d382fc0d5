"""Programs that are fed and emptied through pipes, several at once.

A pipe takes only so much: who writes to a program that waits for its own output to be read waits
for ever. So whatever is to be sent is kept until a pipe takes it, and each output is read as soon
as there is any.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

SIZE = 8
"""How many bytes give the length of an answer, the lowest first."""

_PIPE = 256 << 10


class Program:
    """A program that runs, and what it has not been sent yet.

    Args:
        command: its words.
        options: further ones of `subprocess.Popen`.

    Attributes:
        open: the descriptor of its output, as long as there may be something to read.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        import subprocess  # not above: a worker itself does without, and starts faster

        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **options,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input = self.process.stdin.fileno()
        self.open = {self.process.stdout.fileno()}
        self._unsent: deque[memoryview] = deque()
        os.set_blocking(self.input, False)

    @property
    def unsent(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._unsent)

    def send(self, *pieces: bytes) -> None:
        """Send these, as soon as the pipe takes them; see `exchange`."""
        self._unsent += [memoryview(piece) for piece in pieces if piece]

    def flush(self) -> None:
        """Send as much as the pipe takes now."""
        try:
            while self._unsent:
                sent = os.write(self.input, self._unsent[0][:_PIPE])
                self._unsent[0] = self._unsent[0][sent:]
                if not self._unsent[0]:
                    self._unsent.popleft()
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has ended, as its output shows as well
            self._unsent.clear()

    def stop(self) -> None:
        """Close all pipes, upon which a worker ends by itself, and wait for it."""
        self.open.clear()
        self._unsent.clear()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self.process.wait()

    def kill(self) -> None:
        """End it at once, if it has not ended by itself."""
        self.process.kill()
        self.stop()


AnyProgram = TypeVar("AnyProgram", bound=Program)


def exchange(
    programs: Iterable[AnyProgram], milliseconds: int | None = None
) -> Iterator[tuple[AnyProgram, bytes]]:
    """Send and receive what can be at once, as soon as anything can.

    Args:
        programs: the programs.
        milliseconds: how long to wait at most; None waits for ever.

    Yields:
        The program, and what it has printed: b"" at its end.
    """
    poll = select.poll()
    owners: dict[int, AnyProgram] = {}
    for program in programs:
        for output in program.open:
            poll.register(output, select.POLLIN)
            owners[output] = program
        if program.unsent:
            poll.register(program.input, select.POLLOUT)
            owners[program.input] = program
    for descriptor, _ in poll.poll(milliseconds):
        program = owners[descriptor]
        if descriptor in program.open:
            data = os.read(descriptor, _PIPE)
            if not data:
                program.open.discard(descriptor)
            yield program, data
        elif program.unsent:  # not where it was killed a moment ago
            program.flush()


Task = TypeVar("Task")


class Worker(Program, Generic[Task]):
    """A program that answers what it is sent, in turn; each answer has its length before it.

    Args:
        command: its words.
        greeting: what it prints when it is ready. Anything before that is dropped.
        options: further ones of `subprocess.Popen`.

    Attributes:
        tasks: what it has in hand, in the order of its answers.
        ready: whether it has greeted.
        since: when it last printed something or got something to do.
    """

    def __init__(self, command: Sequence[str], greeting: bytes, **options: Any) -> None:
        super().__init__(command, **options)
        self.tasks: deque[Task] = deque()
        self.ready = False
        self.since = time.monotonic()
        self._greeting = greeting
        self._received = bytearray()
        self._wanted = SIZE

    @property
    def ended(self) -> bool:
        """Whether nothing more comes from it."""
        return not self.open

    def give(self, task: Task, *pieces: bytes) -> None:
        """Take a task into hand, and send the message for it."""
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        self.send(*pieces)
        self.flush()

    def take(self, data: bytes) -> Iterator[bytes]:
        """The answers that are complete with what was read."""
        self._received += data
        self.since = time.monotonic()
        if not self.ready:
            start = self._received.find(self._greeting)
            if start < 0:
                return
            self.ready = True
            del self._received[: start + len(self._greeting)]
        while len(self._received) >= self._wanted:
            self._wanted = SIZE + int.from_bytes(self._received[:SIZE], "little")
            if len(self._received) < self._wanted:
                return
            answer = bytes(self._received[SIZE : self._wanted])
            del self._received[: self._wanted]
            self._wanted = SIZE
            yield answer


def answers(
    workers: Iterable[Worker[Task]], milliseconds: int | None = None
) -> Iterator[tuple[Task, bytes]]:
    """Each task that a worker has done, and its answer, once there is any.

    A worker that has ended keeps the tasks that it has not answered.

    Args:
        workers: the workers.
        milliseconds: how long to wait at most; None waits for ever.
    """
    for worker, data in exchange(workers, milliseconds):
        for answer in worker.take(data):
            yield worker.tasks.popleft(), answer
