"""Tests of the worker processes: that they do the work, and run the code of this process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import relocate_core
from relocate_core.artefacts.prefix import Prefixes
from relocate_core.relocation import workers
from relocate_core.relocation.scan import Directory, Findings, Scanner
from relocate_core.system import processes


@pytest.mark.parametrize(
    "changed", ["cli.py", "artefacts/scripts.py", "releases/schemas/schema.py"]
)
def test_a_change_in_any_package_is_noticed(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "core"
    shutil.copytree(Path(relocate_core.__file__).parent, package)
    before = workers._fingerprint(str(package))
    with open(package / changed, "a") as file:
        file.write("# another version\n")
    assert workers._fingerprint(str(package)) != before


def test_a_module_that_came_or_went_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "core"
    shutil.copytree(Path(relocate_core.__file__).parent, package)
    before = workers._fingerprint(str(package))
    (package / "artefacts" / "new.py").write_text("")
    assert workers._fingerprint(str(package)) != before
    (package / "artefacts" / "new.py").unlink()
    assert workers._fingerprint(str(package)) == before


class Counting(Scanner):
    """A scanner that counts the batches which this process does itself."""

    batches = 0

    def scan(self, directories: list[Directory], take: object) -> None:
        self.batches += 1
        super().scan(directories, take)  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Counting, list[Directory], set[str]]]:
    """More files than one process does alone, a hundredth of which have a reference."""
    listed: list[Directory] = []
    hits = set()
    for number in range(-(-workers.ALONE // 500) + 2):
        directory = tmp_path / f"d{number}"
        directory.mkdir()
        names = [f"f{place}" for place in range(500)]
        for name in names:
            hit = name.endswith("00")
            (directory / name).write_text("/srv/old/bin" if hit else "nothing")
            if hit:
                hits.add(f"d{number}/{name}")
        listed.append((f"d{number}", names))
    root = os.open(tmp_path, os.O_RDONLY)
    yield Counting(root, Prefixes((b"/srv/old",), b"/srv/new"), True), listed, hits
    os.close(root)


needs_cores = pytest.mark.skipif(processes.usable_cores() < 2, reason="one core has no workers")


@needs_cores
def test_the_workers_do_all_of_it(tree: tuple[Counting, list[Directory], set[str]]) -> None:
    scanner, listed, hits = tree
    found: list[Findings] = []
    workers.scan(scanner, iter(listed), found.append)
    assert {path for one in found for path in one.hits} == hits
    assert sum(one.seen for one in found) == sum(len(names) for _, names in listed)
    assert scanner.batches == 0


@needs_cores
@pytest.mark.parametrize("most", [1, 100], ids=["one", "all"])
def test_what_a_killed_worker_had_in_hand_is_done_here(
    most: int,
    tree: tuple[Counting, list[Directory], set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scanner, listed, hits = tree
    start = workers._start

    def killed(scanner: Scanner) -> list[workers.Worker[workers.Batch]]:
        given = start(scanner)
        for worker in given[:most]:
            os.kill(worker.process.pid, signal.SIGKILL)
        return given

    monkeypatch.setattr(workers, "_start", killed)
    found: list[Findings] = []
    workers.scan(scanner, iter(listed), found.append)
    assert {path for one in found for path in one.hits} == hits
    assert sum(one.seen for one in found) == sum(len(names) for _, names in listed)
    assert scanner.batches > 0
