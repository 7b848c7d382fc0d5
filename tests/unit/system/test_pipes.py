"""Programs behind pipes: whatever is sent and printed, in whatever pieces, and however they end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

from relocate_core.system.pipes import SIZE, Program, Worker, answers, exchange

GREETING = b"\0ready\n"
# Answers each line with its upper case; the first word decides what else happens.
UPPER = """
import os, sys, time
sys.stdout.write('a line from a .pth file\\n')
sys.stdout.write('\\0ready\\n')
sys.stdout.flush()
for line in sys.stdin:
    if line.startswith('die'):
        os.kill(os.getpid(), 9)
    answer = line.strip().upper().encode()
    for piece in (len(answer).to_bytes(8, 'little') + answer)[:9], answer[1:]:
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
        time.sleep(0.01)
"""


@pytest.fixture
def started() -> Iterator[list[Program]]:
    """The programs of a test, which are ended with it."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.kill()


def worker(started: list[Program], program: str = UPPER) -> Worker[str]:
    made: Worker[str] = Worker([sys.executable, "-c", program], GREETING)
    started.append(made)
    return made


def give(one: Worker[str], *lines: str) -> None:
    for line in lines:
        one.give(line, f"{line}\n".encode())


def test_more_than_any_pipe_takes(started: list[Program]) -> None:
    """`cat` stops to read as soon as nobody reads what it prints."""
    cat = Program(["cat"])
    started.append(cat)
    data = os.urandom(3 << 20)
    cat.send(data[: 1 << 20], b"", data[1 << 20 :])
    found = b""
    while cat.unsent or len(found) < len(data):
        found += b"".join(piece for _, piece in exchange([cat]))
    assert found == data


def test_a_program_that_reads_no_more(started: list[Program]) -> None:
    program = Program(["sh", "-c", "exec <&-; echo closed; sleep 60"])
    started.append(program)
    assert [data for _, data in exchange([program])] == [b"closed\n"]
    program.send(b"x" * (1 << 20))
    while program.unsent:
        list(exchange([program], 1000))


def test_nothing_is_waited_for_longer_than_asked(started: list[Program]) -> None:
    program = Program(["sleep", "60"])
    started.append(program)
    start = time.monotonic()
    assert list(exchange([program], 50)) == []
    assert time.monotonic() - start < 10


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        Program(["/nowhere/program"])


def test_each_task_gets_its_answer(started: list[Program]) -> None:
    workers = [worker(started), worker(started)]
    words = ["one", "two", "", "three", "four"]
    give(workers[0], *words[:3])
    give(workers[1], *words[3:])
    found: dict[str, bytes] = {}
    while any(one.tasks for one in workers):
        found.update(answers(workers))
    assert found == {word: word.upper().encode() for word in words}
    assert all(one.ready and not one.ended for one in workers)


def test_a_worker_that_dies_keeps_what_it_has_not_done(started: list[Program]) -> None:
    one = worker(started)
    give(one, "first", "die", "last")
    found = []
    while not one.ended:
        found += answers([one])
    assert found == [("first", b"FIRST")]
    assert list(one.tasks) == ["die", "last"]


def test_a_program_that_does_not_greet_is_no_worker(started: list[Program]) -> None:
    one = worker(started, f"import sys; sys.stdout.buffer.write(bytes({SIZE}) * 9)")
    give(one, "first")
    while not one.ended:
        assert list(answers([one])) == []
    assert not one.ready
    assert list(one.tasks) == ["first"]


def test_one_that_is_killed_meanwhile_is_left_alone(started: list[Program]) -> None:
    programs = [Program(["sh", "-c", "echo; sleep 60"]) for _ in range(2)]
    started += programs
    time.sleep(0.5)  # until both have printed
    for program in programs:
        program.send(b"something")
    given = exchange(programs)
    first, _ = next(given)
    second = next(program for program in programs if program is not first)
    second.kill()
    assert list(given) == []
    assert first.open
    assert not second.open
