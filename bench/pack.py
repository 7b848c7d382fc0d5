"""Packing beside tar: the first bundle of a virtualenv, and the next one after a small change.

    make bench
    python3 bench/pack.py --rounds 3

The virtualenv is that of `relocate.py`. The first bundles are packed without a cache. The next ones
are made as a build makes them, full and delta bundle in one run, with the cache of the packing
before: in each round all sources of the smallest package with more than five of them were changed
since. `tar -czf` packs the same virtualenv. Every bundle of a round has to have the bytes of one
that is packed without a cache; that is looked at in the last round.

Memory is taken in a run of its own, as the sum over all processes. A run waits for other programs
to rest, a minute at most; those that were disturbed all the same are counted below the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support import (
    BenchError,
    Contender,
    Report,
    Times,
    Tree,
    build_tree,
    call,
    disturbance,
    failures,
    given,
    goal_table,
    in_turns,
    install_tools,
    last_line,
    parser,
    peak_memory,
    run,
    say,
    setting,
    sha256_of,
    start,
    work_directory,
)

TAR = "tar -czf"
FIRST, NEXT = "first bundle", "next bundle and delta bundle"
ENDINGS = (".tar.gz", ".tar.zst")
LEAST_SOURCES = 6
MOST_MEMORY = 150e6
# A copy of the virtualenv, and bundles of it.
ROOM = 3.0
# What a build does when its environment is there.
PROGRAM = """
import sys
from relocate_core.bundles.pack import pack_with_deltas
path, archive, base, cache = sys.argv[1:]
pack_with_deltas(path, archive, [base], cache=cache or None)
"""


def change(tree: Path) -> int:
    """Change all sources of a small package, as another version of it would; how many there are."""
    found = []
    for record in tree.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        names = [line.partition(",")[0] for line in record.read_text().splitlines()]
        sources = [record.parent.parent / name for name in names if name.endswith(".py")]
        if len(sources) >= LEAST_SOURCES:
            found.append((sum(one.stat().st_size for one in sources), sources))
    if not found:
        raise BenchError(f"{tree} has no package with {LEAST_SOURCES} sources: name others")
    for source in min(found)[1]:
        with source.open("a") as file:
            file.write(f"# {time.time_ns()}\n")
    return len(min(found)[1])


class Place:
    """A virtualenv that is packed again and again, and the bundles of it."""

    def __init__(self, work: Path, tools: Path, tree: Tree) -> None:
        self.work = work
        self.tools = tools
        self.tree = work / "app"
        call("cp", "-a", tree.path, self.tree)
        self.log = work / "log"

    def archive(self, name: str, ending: str) -> Path:
        return self.work / f"{name}{ending}"

    def first(self, ending: str) -> Contender:
        program = (str(self.tools / "virtualenv-tools"), "--pack")
        return Contender(
            f"{FIRST}, {ending}",
            (*program, str(self.archive("first", ending)), str(self.tree)),
        )

    def next(self, ending: str, name: str = "next", cache: bool = True) -> Contender:
        base, kept = self.archive("base", ending), str(self.work / "cache") if cache else ""
        program = (str(self.tools / "python"), "-c", PROGRAM, str(self.tree))
        return Contender(
            f"{NEXT}, {ending}", (*program, str(self.archive(name, ending)), str(base), kept)
        )

    def pack(self, contender: Contender, took: Times) -> None:
        """Time one packing."""
        if code := run(contender.command, self.log, took):
            raise BenchError(
                f"{contender.name} cannot be packed: exit code {code}: {last_line(self.log)}"
            )


def measure(place: Place, endings: Sequence[str], rounds: int) -> dict[str, Times]:
    """Times of all contenders."""
    tar = Contender(TAR, ("tar", "-czf", str(place.work / "plain"), "-C", str(place.tree), "."))
    following = [place.next(ending) for ending in endings]
    field_of = [tar, *(place.first(ending) for ending in endings), *following]
    for ending, contender in zip(endings, following):
        say(f"bench: once before all: {contender.name}")
        place.pack(place.first(ending), Times())
        place.archive("first", ending).rename(place.archive("base", ending))
        place.pack(contender, Times())
    times = {contender.name: Times() for contender in field_of}
    for contender, announced in in_turns(field_of, rounds):
        if contender in following:
            change(place.tree)
            time.sleep(2.1)  # what has just been changed is not taken for known the next time
        os.sync()
        place.pack(contender, times[contender.name])
        say(f"{announced} {times[contender.name].runs[-1]:.2f} s")
    return times


def other_bytes(place: Place, endings: Sequence[str]) -> int:
    """How many bundles differ from those that are packed without a cache."""
    differing = 0
    for ending in endings:
        for name, cache in (("next", True), ("fresh", False)):
            place.pack(place.next(ending, name, cache), Times())
        for kind in ("", ".from-base"):
            one, other = (place.archive(f"{name}{kind}", ending) for name in ("next", "fresh"))
            differing += sha256_of(one) != sha256_of(other)
    return differing


def bench(cache: Path, options: argparse.Namespace) -> Report:
    """Measure everything that was asked for; the report."""
    tools = install_tools(cache, with_ours=True)
    tree = build_tree(cache, tools, options.packages.split(), options.least_pycs, options.tree)
    endings = ENDINGS if shutil.which("zstd") else ENDINGS[:1]
    with work_directory(cache, int(ROOM * tree.size)) as work:
        place = Place(work, tools, tree)
        times = measure(place, endings, options.rounds)
        differing = other_bytes(place, endings)
        memory = {
            one.name: peak_memory(one.command, place.log)
            for ending in endings
            for one in (place.first(ending), place.next(ending))
        }
        sizes = {
            f"{FIRST}, {ending}": place.archive("base", ending).stat().st_size for ending in endings
        }
        sizes[TAR] = (place.work / "plain").stat().st_size
        title = setting(tree, work, options.rounds)
        changed = f"Before each next bundle {change(place.tree)} sources of one package changed."
    tar = times[TAR].median
    rows = [
        f"{title}. {changed}",
        "",
        "| packed | median | min | max | size | of tar |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in times.items():
        size = f"{sizes[name] / 1e6:,.1f} MB" if name in sizes else ""
        rows.append(f"{one.row(name)} {size} | {one.median / tar:.2f} |")
    goals = []
    for name, one in times.items():
        if name != TAR:
            most = 0.6 if name.startswith(FIRST) else 0.1
            found = one.median / tar
            goals.append((f"{name}: of tar's time", f"{found:.2f}", f"{most:.2f}", found <= most))
    goals.append(("bundles that a cache gives other bytes", f"{differing}", "0", not differing))
    for name, (resident, split) in memory.items():
        goals.append(
            (
                f"memory, {name} ({split / 1e6:.0f} MB with shares split)",
                f"{resident / 1e6:.0f} MB",
                f"{MOST_MEMORY / 1e6:.0f} MB",
                resident < MOST_MEMORY,
            )
        )
    every = times.values()
    report = Report("\n".join([*rows, *disturbance(every), *goal_table(goals), *failures(times)]))
    title = f"Packing {tree.files:,} files, and again after one package has changed"
    report.add("pack", title, times, (TAR,))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    return start(bench, given(parser(__doc__), argv), "pack")


if __name__ == "__main__":
    sys.exit(main())
