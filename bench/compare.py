"""What a change did: the results of two benches side by side, with an interval.

    make bench && cp -r .bench/results before     (then change something, and `make bench` again)
    python3 bench/compare.py before .bench/results

Each of both is a directory with what the benches have written, or one such file. Of each contender
that both have, the ratio of the medians is printed, and where it is with 95 % certainty, by drawing
runs of both again and again (a bootstrap). `tar` and the like are in the table as well: a change of
ours does not change them, so what they did is the machine's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import BenchError, how_noisy, say

DRAWS = 4000
FEW = 5


def results(place: Path) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[float]]]:
    """What the files of a place have: all of them, and the runs by table and contender."""
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    try:
        found = [json.loads(file.read_text()) for file in files]
        tables = [table for one in found for table in one["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{place} has no results of a bench: {error}") from error
    runs = {(one["title"], name): one["runs"][name] for one in tables for name in one["runs"]}
    if not runs:
        raise BenchError(f"{place} has no results of a bench: run `make bench` first")
    return found, runs


def interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and the least and the most that it may be."""
    chance = random.Random(0)

    def drawn(runs: Sequence[float]) -> float:
        return statistics.median(chance.choices(runs, k=len(runs)))

    ratios = sorted(drawn(after) / drawn(before) for _ in range(DRAWS))
    least, most = ratios[int(0.025 * DRAWS)], ratios[int(0.975 * DRAWS)]
    return statistics.median(after) / statistics.median(before), least, most


def verdict(least: float, most: float, few: bool) -> str:
    """What an interval shows."""
    if least <= 1 <= most:
        return "no difference shown"
    found = "faster" if most < 1 else "slower"
    return f"{found}, by few runs" if few else found


def table(before: Path, after: Path) -> str:
    """All that both have, in Markdown."""
    old, was = results(before)
    new, now = results(after)
    rows = []
    for one in (tables for found in new for tables in found["results"]):
        both = [name for name in one["runs"] if (one["title"], name) in was]
        if both:
            head = "| contender | before | after | ratio | 95 % interval | |"
            rows += ["", f"{one['title']}:", "", head, "|---|---:|---:|---:|---:|---|"]
        for name in both:
            first, second = was[one["title"], name], now[one["title"], name]
            ratio, least, most = interval(first, second)
            what = verdict(least, most, min(len(first), len(second)) < FEW)
            mark = " (not ours)" if name in one["yardsticks"] else ""
            rows.append(
                f"| {name}{mark} | {statistics.median(first):.3f} s "
                f"| {statistics.median(second):.3f} s "
                f"| {ratio:.2f} | {least:.2f} to {most:.2f} | {what} |"
            )
    if not rows:
        raise BenchError(f"{before} and {after} have no table in common")
    rows.append("")
    for when, every in (("Before", old), ("After", new)):
        rows += [f"{when}: {how_noisy(found['noise'])}" for found in every]
    if {json.dumps(one["machine"]) for one in old} != {json.dumps(one["machine"]) for one in new}:
        rows.append("The machines differ: compare the ratios to the contenders that are not ours.")
    return "\n".join(rows).strip()


def main(argv: Sequence[str] | None = None) -> int:
    known = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known.add_argument("before", type=Path)
    known.add_argument("after", type=Path)
    options = known.parse_args(argv)
    try:
        print(table(options.before, options.after))
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
