"""A bundle's file, while it is written."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from relocate_core.bundles.output import Output
from relocate_core.errors import Busy, InvalidPath


@pytest.fixture
def interrupting() -> Iterator[None]:
    """The alarm is what Control-C is: an exception anywhere."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_interrupted_while_it_is_opened(tmp_path: Path, interrupting: None) -> None:
    """Wherever Control-C comes, nothing is left and the next run can write."""
    begun = time.perf_counter()
    with Output(str(tmp_path / "warm.tar")):
        pass
    longest = 2 * (time.perf_counter() - begun)
    entered = 0
    while not entered and longest < 1:  # on a busy machine it takes longer than at first
        for step in range(500):
            try:
                signal.setitimer(signal.ITIMER_REAL, max(longest * step / 500, 1e-6))
                with Output(str(tmp_path / f"{step}.tar")):
                    entered += 1
                    while True:
                        time.sleep(0.001)
            except KeyboardInterrupt:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert os.listdir(tmp_path) == []
        longest *= 4
    assert 0 < entered < 500


def test_what_another_run_writes_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "one.tar")
    with Output(path) as first:
        first.file.write(b"first")
        with pytest.raises(Busy, match="another run is writing it"), Output(path):
            pass
        assert os.listdir(tmp_path) == [".one.tar.packing"]
        first.commit()
    assert (tmp_path / "one.tar").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["one.tar", "one.tar.sha256"]


def test_what_a_killed_run_has_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".one.tar.packing").write_bytes(b"half of something long")
    (tmp_path / ".one.tar.packing.sha256").write_bytes(b"no digest")
    with Output(str(tmp_path / "one.tar")) as output:
        output.file.write(b"whole")
        output.commit()
    assert (tmp_path / "one.tar").read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == ["one.tar", "one.tar.sha256"]


@pytest.mark.parametrize("kind", ["link", "hard link", "directory", "fifo"])
def test_what_somebody_else_has_put_there_stays(tmp_path: Path, kind: str) -> None:
    theirs, taken = tmp_path / "theirs", tmp_path / ".one.tar.packing"
    theirs.write_text("theirs")
    {
        "link": lambda: taken.symlink_to(theirs),
        "hard link": lambda: os.link(theirs, taken),
        "directory": taken.mkdir,
        "fifo": lambda: os.mkfifo(taken),
    }[kind]()
    with pytest.raises(InvalidPath, match="in the way"), Output(str(tmp_path / "one.tar")):
        pass
    assert theirs.read_text() == "theirs"
    assert os.path.lexists(taken)
