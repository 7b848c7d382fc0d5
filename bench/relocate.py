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
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from support import (
    LENGTHS,
    Contender,
    Report,
    Times,
    Tree,
    at_home,
    build_tree,
    disturbance,
    failures,
    fresh_copy,
    given,
    goal_table,
    in_turns,
    install_tools,
    last_line,
    new_path,
    parser,
    peak_memory,
    run,
    say,
    setting,
    start,
    work_directory,
)

OURS, MODULE = "virtualenv-tools", "python -m relocate_core"
PEER, GREP = "virtualenv-tools3", "grep"


def contenders(tools: Path, old: str, ours: str | None) -> list[Contender]:
    """All of them; the copy's path goes behind each command."""
    update = ("--update-path", "auto")
    if ours:
        own = [Contender(OURS, (*shlex.split(ours), *update))]
    else:
        own = [
            Contender(OURS, (str(tools / "virtualenv-tools"), *update)),
            Contender(MODULE, (str(tools / "python"), "-m", "relocate_core", *update)),
        ]
    return [
        *own,
        Contender(PEER, (str(tools / "virtualenv-tools3"), *update)),
        Contender(GREP, ("grep", "-rlF", old), relocates=False),
    ]


def compare(
    tree: Tree, copy: Path, field_of: Sequence[Contender], rounds: int, log: Path
) -> tuple[dict[str, Times], Times, tuple[int, int]]:
    """Times of all contenders, ours with nothing left to do, and our peak of memory."""
    times = {contender.name: Times() for contender in field_of}
    idle = Times()
    for contender, announced in in_turns(field_of, rounds):
        fresh_copy(tree, copy)
        command = (*contender.command, str(copy))
        took = times[contender.name]
        if code := run(command, log, took):
            took.problem = f"exit code {code}: {last_line(log)}"
        elif contender.relocates and not at_home(copy):
            took.problem = "bin/pip does not run afterwards"
        say(f"{announced} {took.runs[-1]:.2f} s")
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
        f"{t.row(name)} {t.median / peer:.2f} | {t.median / grep:.2f} |"
        for name, t in [*times.items(), (f"{OURS}, nothing to do", idle)]
    ]
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
    every = [*times.values(), idle]
    return "\n".join([*rows, *disturbance(every), *goal_table(goals), *failures(times)])


def main(argv: Sequence[str] | None = None) -> int:
    known = parser(__doc__)
    add = known.add_argument
    add("--length", choices=(*LENGTHS, "all"), default="same", help="of the new path")
    add("--ours", metavar="CMD", help="measure this command instead of the checkout's")
    return start(bench, given(known, argv), "relocate")


def bench(cache: Path, options: argparse.Namespace) -> Report:
    """Measure everything that was asked for; the report."""
    tools = install_tools(cache, with_ours=not options.ours)
    tree = build_tree(cache, tools, options.packages.split(), options.least_pycs, options.tree)
    report = Report("")
    field_of = contenders(tools, tree.old, options.ours)
    with work_directory(cache, tree.size) as work:
        parts = [setting(tree, work, options.rounds)]
        for length in LENGTHS if options.length == "all" else (options.length,):
            copy = new_path(work, tree.old, length)
            times, idle, memory = compare(tree, copy, field_of, options.rounds, work / "log")
            parts.append(table(tree, copy, times, idle, memory))
            title = f"Relocating {tree.files:,} files in place, to a path of {length} length"
            name = "relocate" if length == "same" else f"relocate-{length}"
            report.add(name, title.replace("same", "the same"), times, (PEER, GREP))
    report.text = "\n\n".join(parts)
    return report


if __name__ == "__main__":
    sys.exit(main())
