"""Plots of what the benches have measured, as SVG.

    python3 bench/plots.py [INTO]

Draws what `make bench` has left in `.bench/results`, into there or another directory (a full bench
draws into `docs/images`): a bar for the median of each contender, with a line from its fastest to
its slowest run. Below it is the machine: its processor, kernel, Python and tar.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from support import RESULTS, how_noisy

INK, GREY, EDGE, OURS, OTHERS = "#1f2328", "#57606a", "#d0d7de", "#0969da", "#afb8c1"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
WIDTH, ROW, TOP, BOTTOM = 860, 34, 64, 76
# Where the bars begin and end; names are to the left of them, seconds to the right.
LEFT, RIGHT = 330, 770


def text(x: float, y: float, words: str, color: str = INK, size: int = 14, **more: str) -> str:
    """One line of text."""
    rest = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    style = f'fill="{color}" font-size="{size}"{rest}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def plot(result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """One table as a picture.

    Args:
        result: its title and runs, as `support.Report` keeps them.
        known: the machine, the noise, and whether it was a quick bench.
    """
    runs: dict[str, list[float]] = result["runs"]
    height = TOP + ROW * len(runs) + BOTTOM
    scale = (RIGHT - LEFT) / max(max(one) for one in runs.values())
    parts = [text(24, 34, result["title"], size=18, font_weight="600")]
    for number, (name, one) in enumerate(runs.items()):
        middle = TOP + ROW * number + ROW / 2
        median, least, most = (scale * f(one) for f in (statistics.median, min, max))
        color = OTHERS if name in result["yardsticks"] else OURS
        parts += [
            text(LEFT - 12, middle + 5, name, text_anchor="end"),
            f'<path d="M {LEFT} {middle:.1f} h {median:.1f}" stroke="{color}" stroke-width="18"/>',
            f'<path d="M {LEFT + least:.1f} {middle:.1f} H {LEFT + most:.1f}" stroke="{INK}"/>',
            text(LEFT + most + 10, middle + 5, f"{statistics.median(one):.2f} s"),
        ]
    count = max(map(len, runs.values()))
    how = f"Medians of {count} runs; the line is from the fastest to the slowest one."
    quick = " A quick bench: rough figures." if known["quick"] else ""
    machine = known["machine"]
    of = "{cpu}, {cores} cores, {kernel}, Python {python}, {tar}".format(**machine)
    for above, words in ((52, how + quick), (34, how_noisy(known["noise"])), (16, of)):
        parts.append(text(24, height - above, words, GREY, 12))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="{FONT}">\n'
        f"<title>{escape(result['title'])}</title>\n"
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" fill="#ffffff" '
        f'stroke="{EDGE}"/>\n{body}\n</svg>\n'
    )


def main(argv: Sequence[str] | None = None) -> int:
    known = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known.add_argument(
        "into", nargs="?", type=Path, default=RESULTS, help="default: .bench/results"
    )
    into = known.parse_args(argv).into
    into.mkdir(parents=True, exist_ok=True)
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text())
        for result in found.get("results", ()):
            # The largest virtualenv is the last one, and keeps the name.
            name = re.sub(r"-(small|medium|large)$", "", result["name"])
            kept = into / f"bench-{name}.svg"
            kept.write_text(plot(result, found))
            print(f"bench: {kept.name} is drawn from {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
