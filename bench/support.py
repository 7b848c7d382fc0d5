"""What the benches share: the large virtualenv, runs that are timed, and how they are reported."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = "ansible jupyterlab pandas django scipy scikit-learn matplotlib sympy"
LEAST_PYCS = 25_000
# What the old path ends in, as a release's name does.
NAME = "4f2a9c1be07d5836af41c2d9e8b07365fa1d2c4b"
SAMPLE_SECONDS = 0.02
# Other programs' share of all CPUs from which on a run counts as disturbed.
DISTURBANCE = 0.1
PATIENCE_SECONDS = 60

CPUS = os.cpu_count() or 1
MEMORY = Path("/dev/shm")

Goal = tuple[str, str, str, bool]
"""What is wanted, what was measured, the most that it may be, and whether it is met."""


class BenchError(Exception):
    """The bench cannot be run here; the message says why."""


@dataclass
class Times:
    runs: list[float] = field(default_factory=list)
    disturbed: int = 0
    problem: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


@dataclass(frozen=True)
class Tree:
    path: Path
    """Where the virtualenv is kept; every copy is made of it."""
    old: str
    """Where it was built, and what its files name; nothing is there any more."""
    files: int
    pycs: int
    size: int


# --- set-up ---------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """That of all commands: what they compile is kept, as it is anywhere else."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


def call(*command: str | Path) -> None:
    """Run a step of the set-up, silent unless it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        line = shlex.join(map(str, command))
        raise BenchError(f"{line} failed:\n{done.stdout}{done.stderr}".rstrip())


def install_tools(cache: Path, with_ours: bool) -> Path:
    """A virtualenv with the contenders, and the checkout as a user would have it installed."""
    tools = cache / "tools"
    ready = tools / f"ready-{platform.python_version()}"
    if not ready.exists():
        say("bench: installing the contenders")
        shutil.rmtree(tools, ignore_errors=True)
        call(sys.executable, "-m", "venv", tools)
        call(tools / "bin/pip", "install", "virtualenv-tools3>=3.1", "virtualenv")
        # Both want to be the command `virtualenv-tools`.
        (tools / "bin/virtualenv-tools").rename(tools / "bin/virtualenv-tools3")
        ready.touch()
    if with_ours:
        with tempfile.TemporaryDirectory() as folder:  # setuptools leaves `build` behind
            source = Path(folder, "source")
            unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
            shutil.copytree(CHECKOUT, source, symlinks=True, ignore=unwanted)
            call(tools / "bin/pip", "install", "--force-reinstall", "--no-deps", source)
    return tools / "bin"


def build_tree(cache: Path, tools: Path, packages: Sequence[str], least_pycs: int) -> Tree:
    """The large virtualenv: built, then moved aside, so that its old path is gone."""
    path = cache / "tree"
    facts = cache / "tree.json"
    wanted = {"python": platform.python_version(), "packages": list(packages)}
    old = cache / "build" / NAME
    known = json.loads(facts.read_text()) if facts.exists() else {}
    if known.get("wanted") != {**wanted, "old": str(old)} or not path.is_dir():
        say(f"bench: building the virtualenv, once: {' '.join(packages)} (some minutes)")
        facts.unlink(missing_ok=True)
        for stale in (path, old):
            shutil.rmtree(stale, ignore_errors=True)
        old.parent.mkdir(parents=True, exist_ok=True)
        call(tools / "virtualenv", "--quiet", "--python", sys.executable, old)
        call(old / "bin/python", "-m", "pip", "install", "--quiet", *packages)
        old.rename(path)
        files, pycs, size = count(path)
        known = {"wanted": {**wanted, "old": str(old)}, "files": files, "pycs": pycs, "size": size}
        facts.write_text(json.dumps(known))
    tree = Tree(path, str(old), known["files"], known["pycs"], known["size"])
    if tree.pycs < least_pycs:
        raise BenchError(
            f"{path} holds {tree.pycs:,} compiled files, and {least_pycs:,} are wanted: "
            "name more with --packages"
        )
    return tree


def count(path: Path) -> tuple[int, int, int]:
    """How many files, how many compiled ones, and how many bytes."""
    files = pycs = size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            files += 1
            pycs += name.endswith(".pyc")
            size += os.lstat(os.path.join(folder, name)).st_size
    return files, pycs, size


@contextmanager
def work_folder(cache: Path, room: int) -> Iterator[Path]:
    """A folder for the copies, in memory where a copy fits twice; removed at the end."""
    parent = cache
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and free_memory() > 2 * room:
        parent = MEMORY
    folder = Path(tempfile.mkdtemp(prefix="relocate-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_memory() -> int:
    """What the file system in memory can take: its own limit, or what the machine has left."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return min(shutil.disk_usage(MEMORY).free, available)


# --- runs -----------------------------------------------------------------------------------------


def run(command: Sequence[str], log: Path, times: Times) -> int:
    """Time one run of a command; its exit code."""
    environ = environment()
    wait_for_rest()
    with log.open("wb") as output:
        foreign, began = foreign_seconds(), time.perf_counter()
        code = subprocess.call(
            command, stdout=output, stderr=subprocess.STDOUT, cwd="/", env=environ
        )
        seconds = time.perf_counter() - began
    # The kernel counts in ticks of 10 ms.
    others = foreign_seconds() - foreign - 0.02
    times.runs.append(seconds)
    times.disturbed += others > DISTURBANCE * seconds * CPUS
    return code


def foreign_seconds() -> float:
    """CPU time that all other programs have used, children of ours that have ended left out."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    own = os.times()
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(own[:4])


def wait_for_rest() -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        foreign = foreign_seconds()
        time.sleep(0.3)
        if foreign_seconds() - foreign < DISTURBANCE * 0.3 * CPUS:
            return


def peak_memory(command: Sequence[str], log: Path) -> tuple[int, int]:
    """The most that all processes of a command held at once: resident, and with shares split."""
    resident = proportional = 0
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd="/", env=environment()
        ) as process,
    ):
        usage = None
        while usage is None:
            family = list(descendants(process.pid))
            resident = max(resident, sum(map(resident_bytes, family)))
            proportional = max(proportional, sum(map(proportional_bytes, family)))
            time.sleep(SAMPLE_SECONDS)
            pid, status, usage_now = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                usage = usage_now
    return max(resident, usage.ru_maxrss * 1024), proportional


def descendants(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def resident_bytes(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def proportional_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def at_home(copy: Path) -> bool:
    """Whether a script of the copy runs, out of the copy."""
    try:
        done = subprocess.run(
            [copy / "bin/pip", "--version"], capture_output=True, text=True, env=environment()
        )
    except OSError:
        return False
    return f" from {copy}/lib" in done.stdout


def last_line(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").strip().splitlines()[-1:])


# --- the report -----------------------------------------------------------------------------------


def setting(tree: Tree, work: Path, rounds: int) -> str:
    """What is measured, on what; also told at once."""
    where = "memory" if work.parent == MEMORY else "the disk"
    text = (
        f"{tree.files:,} files, {tree.pycs:,} of them compiled, {tree.size / 1e6:,.0f} MB, "
        f"in {where}; Python {platform.python_version()}, {CPUS} CPUs, {rounds} rounds"
    )
    say(f"bench: {text}")
    return text


def disturbance(every: Iterable[Times]) -> list[str]:
    """How many runs were disturbed by other programs; nothing if none was."""
    every = list(every)
    disturbed = sum(times.disturbed for times in every)
    total = sum(len(times.runs) for times in every)
    return ["", f"Other programs disturbed {disturbed} of these {total} runs."] if disturbed else []


def goal_table(goals: Iterable[Goal]) -> list[str]:
    rows = ["", "| goal | measured | at most | |", "|---|---:|---:|---|"]
    return rows + [
        f"| {what} | {measured} | {most} | {'met' if met else 'missed'} |"
        for what, measured, most, met in goals
    ]


def failures(times: Mapping[str, Times]) -> list[str]:
    """Who did not do the work, and why; nothing if all did."""
    problems = [f"- {name}: {one.problem}" for name, one in times.items() if one.problem]
    return ["", "Did not do the work:", *problems] if problems else []


# --- the command ----------------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    """One with the options that all benches have."""
    known = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = known.add_argument
    add("--rounds", type=int, default=5, help="runs of each contender (default: 5)")
    add("--packages", default=PACKAGES, help="what the virtualenv holds")
    add("--least-pycs", type=int, default=LEAST_PYCS, help="fewer compiled files are refused")
    return known


def start(
    bench: Callable[[Path, argparse.Namespace], str], options: argparse.Namespace, last: str
) -> int:
    """Run a bench in its cache, print its report, keep it as `.bench/<last>`; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache = Path(os.environ.get("BENCH_CACHE") or CHECKOUT / ".bench").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        report = bench(cache, options)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    kept = CHECKOUT / ".bench" / last
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(f"{report}\n")
    print(report)
    return 0
