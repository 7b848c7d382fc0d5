"""Our speed and memory beside virtualenv-tools3 and grep, on the same large virtualenv, in one run.

    make bench
    python3 bench/relocate.py --length all --rounds 3

A virtualenv with some 25,000 compiled files is built once and kept in `.bench/` (or in
$BENCH_CACHE). Every run works on a fresh copy of it, in memory where there is room; copying is
not timed, and the page cache is warm for all alike. The contenders take turns in going first.
`grep -rlF` is there because nothing can find every reference without reading every file.

Memory is taken in a run of its own, as the sum over all processes. A run waits for other programs
to rest, a minute at most; those that were disturbed all the same are counted below the table.
"""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = "ansible jupyterlab pandas django scipy scikit-learn matplotlib sympy"
LEAST_PYCS = 25_000
LENGTHS = ("same", "shorter", "longer")
# What the old path ends in, as a release's name does.
NAME = "4f2a9c1be07d5836af41c2d9e8b07365fa1d2c4b"
SAMPLE_SECONDS = 0.02
# Other programs' share of all CPUs from which on a run counts as disturbed.
DISTURBANCE = 0.1
PATIENCE_SECONDS = 60

CPUS = os.cpu_count() or 1
OURS, MODULE = "virtualenv-tools", "python -m relocate_core"
PEER, GREP = "virtualenv-tools3", "grep"


class BenchError(Exception):
    """The bench cannot be run here; the message says why."""


@dataclass(frozen=True)
class Contender:
    name: str
    command: tuple[str, ...]
    """Without the copy's path, which goes last."""
    relocates: bool = True
    ours: bool = False


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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def call(*command: str | Path) -> None:
    """Run a step of the set-up, silent unless it fails."""
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
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
    memory = Path("/dev/shm")
    parent = cache
    if memory.is_dir() and os.access(memory, os.W_OK) and free_memory(memory) > 2 * room:
        parent = memory
    folder = Path(tempfile.mkdtemp(prefix="relocate-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_memory(memory: Path) -> int:
    """What a file system in memory can take: its own limit, or what the machine has left."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return min(shutil.disk_usage(memory).free, available)


def new_path(work: Path, old: str, length: str) -> Path:
    """A path for the copies, as long as the old one, shorter, or 40 characters longer."""
    if length == "shorter":
        return work / "app"
    wanted = len(old) + (len(NAME) if length == "longer" else 0)
    missing = wanted - len(str(work)) - 1
    if missing < 1:
        raise BenchError(f"{work} is longer than {old}: give a longer $BENCH_CACHE")
    return work / (NAME * (missing // len(NAME) + 1))[:missing]


def contenders(tools: Path, old: str, ours: str | None) -> list[Contender]:
    update = ("--update-path", "auto")
    if ours:
        own = [Contender(OURS, (*shlex.split(ours), *update), ours=True)]
    else:
        own = [
            Contender(OURS, (str(tools / "virtualenv-tools"), *update), ours=True),
            Contender(MODULE, (str(tools / "python"), "-m", "relocate_core", *update), ours=True),
        ]
    return [
        *own,
        Contender(PEER, (str(tools / "virtualenv-tools3"), *update)),
        Contender(GREP, ("grep", "-rlF", old), relocates=False),
    ]


def run(command: Sequence[str], log: Path, times: Times) -> int:
    """Time one run of a command; its exit code."""
    wait_for_rest()
    with log.open("wb") as output:
        foreign, began = foreign_seconds(), time.perf_counter()
        code = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, cwd="/")
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
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd="/") as process,
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


def fresh_copy(tree: Tree, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    call("cp", "-a", tree.path, copy)
    os.sync()


def at_home(copy: Path) -> bool:
    """Whether a script of the copy runs, out of the copy."""
    try:
        done = subprocess.run([copy / "bin/pip", "--version"], capture_output=True, text=True)
    except OSError:
        return False
    return f" from {copy}/lib" in done.stdout


def compare(
    tree: Tree, copy: Path, field_of: Sequence[Contender], rounds: int, log: Path
) -> tuple[dict[str, Times], Times, tuple[int, int]]:
    """Times of all contenders, ours with nothing left to do, and our peak of memory."""
    times = {contender.name: Times() for contender in field_of}
    idle = Times()
    for number in range(rounds):
        turn = number % len(field_of)
        for contender in (*field_of[turn:], *field_of[:turn]):
            fresh_copy(tree, copy)
            command = (*contender.command, str(copy))
            took = times[contender.name]
            if code := run(command, log, took):
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                took.problem = f"exit code {code}: {' '.join(last)}"
            elif contender.relocates and not at_home(copy):
                took.problem = "bin/pip does not run afterwards"
            say(f"bench: round {number + 1} of {rounds}: {contender.name} {took.runs[-1]:.2f} s")
            if contender.name == OURS:
                run(command, log, idle)
    fresh_copy(tree, copy)
    memory = peak_memory((*field_of[0].command, str(copy)), log)
    shutil.rmtree(copy)
    return times, idle, memory


def table(
    tree: Tree, copy: Path, times: dict[str, Times], idle: Times, memory: tuple[int, int]
) -> str:
    """One comparison in Markdown."""
    peer, grep, ours = times[PEER].median, times[GREP].median, times[OURS].median
    rows = [
        f"From {len(tree.old)} to {len(str(copy))} characters:",
        "",
        "| contender | median | min | max | of virtualenv-tools3 | of grep |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {name} | {t.median:.2f} s | {min(t.runs):.2f} s | {max(t.runs):.2f} s "
        f"| {t.median / peer:.2f} | {t.median / grep:.2f} |"
        for name, t in [*times.items(), (f"{OURS}, nothing to do", idle)]
    ]
    every = [*times.values(), idle]
    if disturbed := sum(t.disturbed for t in every):
        total = sum(len(t.runs) for t in every)
        rows += ["", f"Other programs disturbed {disturbed} of these {total} runs."]
    goals = [
        ("of virtualenv-tools3's time", f"{ours / peer:.2f}", "0.20", ours / peer <= 0.2),
        ("of grep's time", f"{ours / grep:.2f}", "1.50", ours / grep <= 1.5),
        ("with nothing to do", f"{idle.median:.3f} s", "0.100 s", idle.median < 0.1),
        (
            f"memory at its peak, all processes ({memory[1] / 1e6:.0f} MB with shares split)",
            f"{memory[0] / 1e6:.0f} MB",
            "120 MB",
            memory[0] < 120e6,
        ),
    ]
    rows += ["", "| goal | measured | at most | |", "|---|---:|---:|---|"]
    rows += [
        f"| {what} | {measured} | {most} | {'met' if met else 'missed'} |"
        for what, measured, most, met in goals
    ]
    problems = [f"- {name}: {t.problem}" for name, t in times.items() if t.problem]
    return "\n".join([*rows, *(["", "Did not do the work:", *problems] if problems else [])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="runs of each contender (default: 5)")
    add("--length", choices=(*LENGTHS, "all"), default="same", help="of the new path")
    add("--packages", default=PACKAGES, help="what the virtualenv holds")
    add("--least-pycs", type=int, default=LEAST_PYCS, help="fewer compiled files are refused")
    add("--ours", metavar="CMD", help="measure this command instead of the checkout's")
    options = parser.parse_args(argv)
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
    last = CHECKOUT / ".bench" / "last.md"
    last.parent.mkdir(exist_ok=True)
    last.write_text(f"{report}\n")
    print(report)
    return 0


def bench(cache: Path, options: argparse.Namespace) -> str:
    """Measure everything that was asked for; the report."""
    tools = install_tools(cache, with_ours=not options.ours)
    tree = build_tree(cache, tools, options.packages.split(), options.least_pycs)
    field_of = contenders(tools, tree.old, options.ours)
    with work_folder(cache, tree.size) as work:
        where = "memory" if work.parent == Path("/dev/shm") else "the disk"
        setting = (
            f"{tree.files:,} files, {tree.pycs:,} of them compiled, {tree.size / 1e6:,.0f} MB, "
            f"in {where}; Python {platform.python_version()}, {CPUS} CPUs, "
            f"{options.rounds} rounds"
        )
        say(f"bench: {setting}")
        parts = [setting]
        for length in LENGTHS if options.length == "all" else (options.length,):
            copy = new_path(work, tree.old, length)
            parts.append(
                table(tree, copy, *compare(tree, copy, field_of, options.rounds, work / "log"))
            )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
