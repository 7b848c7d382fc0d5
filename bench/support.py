"""What the benches share: virtualenvs, runs that are timed, a minion, and how it is reported."""

from __future__ import annotations

import argparse
import hashlib
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
from typing import Any, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / ".bench" / "results"
PACKAGES = "ansible jupyterlab pandas django scipy scikit-learn matplotlib sympy"
LEAST_PYCS = 25_000
QUICK_PACKAGES = "flask"
LENGTHS = ("same", "shorter", "longer")
# What the old path ends in, as a release's name does.
NAME = "4f2a9c1be07d5836af41c2d9e8b07365fa1d2c4b"
SAMPLE_SECONDS = 0.02
# Other programs' share of all CPUs from which on a run counts as disturbed.
DISTURBANCE = 0.1
PATIENCE = {False: 60, True: 3}
"""Seconds to wait for other programs to rest before a run of a full bench, and of a quick one."""

CPUS = os.cpu_count() or 1
QUICK = "--quick" in sys.argv
MEMORY = Path("/dev/shm")

Sls = dict[str, dict[str, list[dict[str, Any]]]]
"""What a state file holds."""

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

    def row(self, name: str) -> str:
        """The cells that its row begins with in every table."""
        least, most = min(self.runs), max(self.runs)
        return f"| {name} | {self.median:.2f} s | {least:.2f} s | {most:.2f} s |"


@dataclass
class Report:
    """What a bench has found."""

    text: str
    """In Markdown."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """Of each table what each contender's runs took, in seconds."""

    def add(
        self, name: str, title: str, times: Mapping[str, Times], yardsticks: Iterable[str]
    ) -> None:
        """Keep the runs of a table; yardsticks are the contenders that are not ours."""
        runs = {contender: one.runs for contender, one in times.items() if one.runs}
        self.results.append(
            {"name": name, "title": title, "runs": runs, "yardsticks": [*yardsticks]}
        )


@dataclass(frozen=True)
class Contender:
    name: str
    command: tuple[str, ...]
    relocates: bool = True
    """Whether a script runs out of the new place afterwards."""


AnyContender = TypeVar("AnyContender", bound=Contender)


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
        with tempfile.TemporaryDirectory() as directory:  # setuptools leaves `build` behind
            source = Path(directory, "source")
            unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests")
            shutil.copytree(CHECKOUT, source, symlinks=True, ignore=unwanted)
            call(tools / "bin/pip", "install", "--force-reinstall", "--no-deps", source)
    return tools / "bin"


def build_tree(
    cache: Path, tools: Path, packages: Sequence[str], least_pycs: int, name: str = "tree"
) -> Tree:
    """A virtualenv, by default the large one."""

    def build(old: Path) -> None:
        call(tools / "virtualenv", "--quiet", "--python", sys.executable, old)
        call(old / "bin/python", "-m", "pip", "install", "--quiet", *packages)

    tree = kept_tree(cache, name, {"packages": list(packages)}, " ".join(packages), build)
    if tree.pycs < least_pycs:
        raise BenchError(
            f"{tree.path} holds {tree.pycs:,} compiled files, and {least_pycs:,} are wanted: "
            "name more with --packages"
        )
    return tree


def kept_tree(
    cache: Path, name: str, wanted: Mapping[str, Any], title: str, build: Callable[[Path], None]
) -> Tree:
    """A virtualenv that is built once, then moved, so that its old path is gone."""
    path = cache / name
    facts = cache / f"{name}.json"
    old = cache / "build" / NAME
    wanted = {"python": platform.python_version(), **wanted, "old": str(old)}
    known = json.loads(facts.read_text()) if facts.exists() else {}
    if known.get("wanted") != wanted or not path.is_dir():
        say(f"bench: building the virtualenv, once: {title} (some minutes)")
        facts.unlink(missing_ok=True)
        for stale in (path, old):
            shutil.rmtree(stale, ignore_errors=True)
        old.parent.mkdir(parents=True, exist_ok=True)
        build(old)
        old.rename(path)
        files, pycs, size = count(path)
        known = {"wanted": wanted, "files": files, "pycs": pycs, "size": size}
        facts.write_text(json.dumps(known))
    return Tree(path, str(old), known["files"], known["pycs"], known["size"])


def count(path: Path) -> tuple[int, int, int]:
    """How many files, how many compiled ones, and how many bytes."""
    files = pycs = size = 0
    for directory, _, names in os.walk(path):
        for name in names:
            files += 1
            pycs += name.endswith(".pyc")
            size += os.lstat(os.path.join(directory, name)).st_size
    return files, pycs, size


@contextmanager
def work_directory(cache: Path, room: int) -> Iterator[Path]:
    """A directory for the copies, in memory where a copy fits twice; removed at the end."""
    parent = cache
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and free_memory() > 2 * room:
        parent = MEMORY
    directory = Path(tempfile.mkdtemp(prefix="relocate-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def free_memory() -> int:
    """What the file system in memory can take: its own limit, or what the machine has left."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return min(shutil.disk_usage(MEMORY).free, available)


def new_path(work: Path, old: str, length: str) -> Path:
    """A path for the copies, as long as the old one, shorter, or 40 characters longer."""
    if length == "shorter":
        return work / "app"
    wanted = len(old) + (len(NAME) if length == "longer" else 0)
    missing = wanted - len(str(work)) - 1
    if missing < 1:
        raise BenchError(f"{work} is longer than {old}: give a longer $BENCH_CACHE")
    return work / (NAME * (missing // len(NAME) + 1))[:missing]


def fresh_copy(tree: Tree, copy: Path) -> None:
    """Let the copy be as the virtualenv was kept."""
    shutil.rmtree(copy, ignore_errors=True)
    call("cp", "-a", tree.path, copy)
    os.sync()


# --- runs -----------------------------------------------------------------------------------------


def in_turns(field_of: Sequence[AnyContender], rounds: int) -> Iterator[tuple[AnyContender, str]]:
    """All contenders in every round, each time another one first; and how a run is announced."""
    for number in range(rounds):
        turn = number % len(field_of)
        for contender in (*field_of[turn:], *field_of[:turn]):
            yield contender, f"bench: round {number + 1} of {rounds}: {contender.name}"


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
    deadline = time.monotonic() + PATIENCE[QUICK]
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


# --- a minion -------------------------------------------------------------------------------------


@dataclass
class Applied(Times):
    states: list[dict[str, float]] = field(default_factory=list)
    """Of each run, the seconds that each state took by itself, by its function."""

    @property
    def by_state(self) -> dict[str, float]:
        """The median of each state."""
        names = self.states[0] if self.states else {}
        return {name: statistics.median(one.get(name, 0) for one in self.states) for name in names}

    @property
    def all_states(self) -> float:
        """The median of what all states took together."""
        return statistics.median(sum(one.values()) for one in self.states)


@dataclass(frozen=True)
class Minion:
    """A minion without a master, all of it below one directory."""

    directory: Path
    program: str

    @property
    def answer(self) -> Path:
        """What the last run has returned, in JSON."""
        return self.directory / "answer.json"

    def command(self, *call: str) -> tuple[str, ...]:
        output = ("--retcode-passthrough", "--out=json", f"--out-file={self.answer}")
        return (self.program, "--local", "-c", str(self.directory / "etc"), *output, *call)

    def answered(self) -> Any:
        """The same, by state; None where it has returned nothing."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            return json.loads(self.answer.read_text())["local"]
        return None

    def set_up(self, **sls: Sls) -> None:
        """Give it the checkout's modules, and what to apply."""
        root = self.directory / "file_root"
        root.mkdir(parents=True)
        for modules in ("_modules", "_states", "_utils"):
            (root / modules).symlink_to(CHECKOUT / modules)
        for name, states in sls.items():
            (root / f"{name}.sls").write_text(json.dumps(states, indent=1))  # which is YAML
        options = {
            "id": "bench",
            "file_client": "local",
            "file_roots": {"base": [str(root)]},
            "root_dir": str(self.directory / "root"),
            "pki_dir": str(self.directory / "root/pki"),
            "log_file": str(self.directory / "log"),
            "log_level": "error",
            "enable_fqdns_grains": False,
        }
        etc = self.directory / "etc"
        etc.mkdir()
        (etc / "minion").write_text(json.dumps(options, indent=1))
        call(*self.command("saltutil.sync_all"))


def find_salt_call() -> str:
    beside = Path(sys.executable).parent / "salt-call"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("salt-call")
    if found is None:
        raise BenchError(
            f"salt-call is neither beside {sys.executable} nor on the PATH: run `make bench`, "
            "which brings its own"
        )
    return found


def sha256_of(archive: Path) -> str:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def our_states(release: Path, **managed: Any) -> Sls:
    """Have a release, and have it active."""
    active = [{"target": str(release)}, {"require": [{"virtualenv_relocated": str(release)}]}]
    return {
        str(release): {"virtualenv_relocated.managed": [{key: managed[key]} for key in managed]},
        str(release.parent / "current"): {"virtualenv_relocated.active": active},
    }


def apply(command: Sequence[str], minion: Minion, took: Applied, idle: bool = False) -> str:
    """Time one run that applies states; what is wrong with it, or nothing."""
    log = minion.directory / "output"
    minion.answer.unlink(missing_ok=True)
    code = run(command, log, took)
    if problem := note(minion, took, idle):
        return problem
    return f"exit code {code}: {last_line(log)}" if code else ""


def note(minion: Minion, took: Applied, idle: bool) -> str:
    """Record how long each state took; what is wrong with one of them, or nothing."""
    took.states.append({})
    found = minion.answered()
    if not isinstance(found, dict):  # one of errors, or none at all
        return f"no state was applied: {found}"
    for key, state in found.items():
        kind, *_, function = key.split("_|-")
        name = f"{kind}.{function}"
        took.states[-1][name] = float(state.get("duration", 0)) / 1000
        if not state["result"]:
            return f"{name}: {state['comment']}"
        if idle and state["changes"]:
            return f"{name} changed something the second time"
    return ""


# --- the report -----------------------------------------------------------------------------------


def setting(tree: Tree, work: Path, rounds: int) -> str:
    """What is measured, on what; also printed at once."""
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
    if QUICK:
        return ["", "A quick bench has no goals: they are for the large virtualenv."]
    rows = ["", "| goal | measured | at most | |", "|---|---:|---:|---|"]
    return rows + [
        f"| {what} | {measured} | {most} | {'met' if met else 'missed'} |"
        for what, measured, most, met in goals
    ]


def failures(times: Mapping[str, Times]) -> list[str]:
    """Who did not do the work, and why; nothing if all did."""
    problems = [f"- {name}: {one.problem}" for name, one in times.items() if one.problem]
    return ["", "Did not do the work:", *problems] if problems else []


def spread(runs: Sequence[float]) -> float:
    """How far apart the runs of one contender are, as a share of their median."""
    return (max(runs) - min(runs)) / statistics.median(runs)


def noise(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far apart the runs were that should have taken the same time."""
    spreads = {
        name: spread(runs) for one in results for name, runs in one["runs"].items() if len(runs) > 1
    }
    if not spreads:
        return {}
    worst = max(spreads, key=lambda name: spreads[name])
    return {"median": statistics.median(spreads.values()), "most": spreads[worst], "of": worst}


def how_noisy(found: Mapping[str, Any]) -> str:
    """The same as a sentence."""
    if not found:
        return "Noise: not known, as nothing ran twice."
    return (
        f"Noise: runs of the same were {found['median']:.0%} of their median apart "
        f"(the median of all contenders), at most {found['most']:.0%} ({found['of']})."
    )


def machine() -> dict[str, Any]:
    """What the figures are of: no name and no path of the machine."""
    cpu = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    tar = subprocess.run(["tar", "--version"], capture_output=True, text=True)
    return {
        "cpu": cpu,
        "cores": CPUS,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "tar": tar.stdout.partition("\n")[0],
    }


# --- the command ----------------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    """One with the options that all benches have."""
    known = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = known.add_argument
    add("--rounds", type=int, help="runs of each contender (default: 5; 3 with --quick)")
    add("--packages", help="what the virtualenv has")
    add("--least-pycs", type=int, help="fewer compiled files are refused")
    add("--quick", action="store_true", help="a small virtualenv, and rough figures")
    return known


def given(known: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What was given, with the defaults of a full or of a quick bench."""
    options = known.parse_args(argv)
    usual = {"rounds": 5, "packages": PACKAGES, "least_pycs": LEAST_PYCS}
    quick = {"rounds": 3, "packages": QUICK_PACKAGES, "least_pycs": 0}
    for name, value in (quick if options.quick else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.tree = "small" if options.quick else "tree"
    return options


def start(
    bench: Callable[[Path, argparse.Namespace], Report], options: argparse.Namespace, name: str
) -> int:
    """Run a bench in its cache, print its report and keep it in `RESULTS`; the exit code."""
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
    found = noise(report.results)
    text = f"{report.text}\n\n{how_noisy(found)}\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    facts = {"machine": machine(), "quick": options.quick, "noise": found}
    result = json.dumps({**facts, "results": report.results}, indent=1)
    (RESULTS / f"{name}.json").write_text(f"{result}\n")
    print(text)
    return 0
