"""A deploy by our states beside Salt's own way and a bare tar, of the same archive, in one run.

    make bench
    python3 bench/deploy.py --rounds 3

The archive is a `.tar.gz` of the virtualenv that `relocate.py` measures, made once and kept beside
it. There are three ways from it to a release, each into a fresh directory, in memory where there is
room; removing the previous one is not timed. The contenders take turns in going first.

Ours is one `state.apply` of `virtualenv_relocated.managed` and `active`. Salt's own way is one of
`archive.extracted` with the tar program, virtualenv-tools3 by `cmd.run`, and `file.symlink`. As
Salt's start is inside both, what the states took by themselves is beside it. Then each of the
two is applied again, with nothing to do. `tar -xzf` neither checks nor relocates anything, and is
there because nothing can deploy an archive without unpacking it.

Modules are synced and everything is applied once before, so that all bytecode is there. A run
waits for other programs to rest, a minute at most; those that were disturbed all the same are
counted below the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import (
    NAME,
    Applied,
    BenchError,
    Contender,
    Minion,
    Report,
    Sls,
    Tree,
    apply,
    at_home,
    build_tree,
    call,
    disturbance,
    failures,
    find_salt_call,
    given,
    goal_table,
    in_turns,
    install_tools,
    last_line,
    our_states,
    parser,
    peak_memory,
    run,
    say,
    setting,
    sha256_of,
    start,
    work_directory,
)

OURS, SALTS, TAR = "virtualenv_relocated", "Salt's own states", "tar -xzf"
IDLE = "nothing to do"
# The last Python that virtualenv-tools3 works on.
PEERS_LAST_PYTHON = (3, 11)
IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class Deployer(Contender):
    states: bool = True
    """Whether the command applies states, which can be done twice."""


def pack(cache: Path, tree: Tree) -> tuple[Path, str]:
    """The archive of the virtualenv, with a digest of what is known of that, and its SHA-256."""
    facts = json.dumps([tree.old, tree.files, tree.pycs, tree.size]).encode()
    archive = cache / f"{tree.path.name}-{hashlib.sha256(facts).hexdigest()[:12]}.tar.gz"
    if not archive.exists():
        say("bench: packing the virtualenv, once")
        for stale in cache.glob(f"{tree.path.name}-*.tar.gz*"):
            stale.unlink()
        unfinished = archive.with_name(f"{archive.name}.part")
        call("tar", "-czf", unfinished, "-C", tree.path, ".")
        unfinished.rename(archive)
    return archive, sha256_of(archive)


def salts_states(archive: Path, sha256: str, release: Path, relocator: Path | None) -> Sls:
    extracted = [
        {"source": str(archive)},
        {"source_hash": f"sha256={sha256}"},
        {"options": "z"},
        {"enforce_toplevel": False},
        {"trim_output": True},  # else all names are in the answer, which takes longer
    ]
    onchanges = {"onchanges": [{"archive": str(release)}]}
    path = str(release)
    relocated = {
        shlex.join([str(relocator), "--update-path", path, path]): {"cmd.run": [onchanges]}
    }
    return {
        path: {"archive.extracted": extracted},
        **(relocated if relocator else {}),
        str(release.parent / "current"): {"file.symlink": [{"target": path}]},
    }


def fresh(contender: Deployer, release: Path) -> None:
    """Let nothing be there but an empty root; states make the release's directory, tar does not."""
    shutil.rmtree(release.parent, ignore_errors=True)
    (release.parent if contender.states else release).mkdir(parents=True)
    os.sync()


def deploy(
    contender: Deployer, minion: Minion, release: Path, took: Applied, idle: bool = False
) -> str:
    """Time one run; what it did not do as it should, or nothing."""
    if contender.states:
        problem = apply(contender.command, minion, took, idle)
    else:
        log = minion.directory / "output"
        code = run(contender.command, log, took)
        problem = f"exit code {code}: {last_line(log)}" if code else ""
    if not problem and contender.relocates and not idle and not at_home(release):
        return "bin/pip does not run out of the release afterwards"
    return problem


def compare(
    field_of: Sequence[Deployer], minion: Minion, release: Path, rounds: int
) -> tuple[dict[str, Applied], dict[str, Applied]]:
    """Times of all contenders, and of those that apply states with nothing left to do."""
    times = {contender.name: Applied() for contender in field_of}
    idle = {contender.name: Applied() for contender in field_of if contender.states}
    unused = Applied()
    for contender in field_of[: len(idle)]:
        say(f"bench: once before all: {contender.name}")
        fresh(contender, release)
        problem = deploy(contender, minion, release, unused)
        problem = problem or deploy(contender, minion, release, unused, idle=True)
        if problem and contender.name == OURS:
            raise BenchError(f"{OURS} does not work here: {problem}")
    for contender, announced in in_turns(field_of, rounds):
        fresh(contender, release)
        took = times[contender.name]
        took.problem = deploy(contender, minion, release, took) or took.problem
        announced += f" {took.runs[-1]:.2f} s"
        if contender.states:
            second = idle[contender.name]
            second.problem = deploy(contender, minion, release, second, True) or second.problem
            announced += f", {IDLE} {second.runs[-1]:.2f} s"
        say(announced)
    return times, idle


def memory(ours: Deployer, minion: Minion, release: Path) -> str:
    """The most that ours holds, and that Salt does with nothing to do, as one sentence."""
    fresh(ours, release)
    output = minion.directory / "output"
    deploying, idle = (
        f"{split / 1e6:.0f} MB ({resident / 1e6:.0f} MB with what forks share counted in each)"
        for resident, split in (peak_memory(ours.command, output) for _ in range(2))
    )
    return f"Memory of ours at its peak, all processes: {deploying}; with {IDLE}: {idle}."


def table(times: dict[str, Applied], idle: dict[str, Applied]) -> list[str]:
    """All times in Markdown."""
    ours, salts, tar = times[OURS].median, times[SALTS].median, times[TAR].median
    rows = [
        "| contender | median | min | max | its states alone | of Salt's | of tar |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    every = {**times, **{f"{name}, {IDLE}": one for name, one in idle.items()}}
    for name, one in every.items():
        states = f"{one.all_states:.2f} s" if one.states else ""
        rows.append(
            f"{one.row(name)} {states} | {one.median / salts:.2f} | {one.median / tar:.2f} |"
        )
    rows += ["", f"| state | deploying | {IDLE} |", "|---|---:|---:|"]
    for name, one in idle.items():
        second = one.by_state
        rows += [
            f"| {state} | {seconds:.3f} s | {second.get(state, 0):.3f} s |"
            for state, seconds in times[name].by_state.items()
        ]
    goals = [
        ("of Salt's own states' time", f"{ours / salts:.2f}", "0.33", ours / salts <= 1 / 3),
        ("of tar's time", f"{ours / tar:.2f}", "1.60", ours / tar <= 1.6),
    ]
    goals += [
        (f"{state}, {IDLE}", f"{seconds:.3f} s", f"{IDLE_SECONDS:.3f} s", seconds < IDLE_SECONDS)
        for state, seconds in idle[OURS].by_state.items()
    ]
    return [*rows, *disturbance(every.values()), *goal_table(goals), *failures(every)]


def bench(cache: Path, options: argparse.Namespace) -> Report:
    """Measure everything; the report."""
    salt_call = find_salt_call()
    tools = install_tools(cache, with_ours=False)
    tree = build_tree(cache, tools, options.packages.split(), options.least_pycs, options.tree)
    report = Report("")
    kept, sha256 = pack(cache, tree)
    size = kept.stat().st_size
    relocator = tools / "virtualenv-tools3" if sys.version_info[:2] <= PEERS_LAST_PYTHON else None
    with work_directory(cache, tree.size + size) as work:
        heading = setting(tree, work, options.rounds)
        archive = Path(shutil.copy(kept, work))
        minion = Minion(work / "minion", salt_call)
        release = work / "app" / NAME
        minion.set_up(
            ours=our_states(release, source=str(archive), source_hash=f"sha256={sha256}"),
            salts=salts_states(archive, sha256, release, relocator),
        )
        ours = Deployer(OURS, minion.command("state.apply", "ours"))
        salts = Deployer(SALTS, minion.command("state.apply", "salts"), relocates=bool(relocator))
        tar = ("tar", "-xzf", str(archive), "-C", str(release))
        field_of = [ours, salts, Deployer(TAR, tar, states=False, relocates=False)]
        times, idle = compare(field_of, minion, release, options.rounds)
        rows = table(times, idle)
        title = f"Deploying a .tar.gz of {tree.files:,} files"
        report.add("deploy", title, times, (SALTS, TAR))
        rows += ["", memory(ours, minion, release)]
    if relocator is None:
        last = ".".join(map(str, PEERS_LAST_PYTHON))
        remark = f"virtualenv-tools3 works up to Python {last}: {SALTS} go without relocating here."
        rows += ["", remark]
    report.text = "\n".join([f"A .tar.gz of {size / 1e6:,.0f} MB, deployed: {heading}", "", *rows])
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return start(bench, given(parser(__doc__), argv), "deploy")


if __name__ == "__main__":
    sys.exit(main())
