#!/usr/bin/env python3
"""Draw the diagrams of the documentation: `python docs/diagrams.py` writes `docs/images/*.svg`.

Each picture has a background of its own, so that it can be read on a light and on a dark page.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"

INK, GREY, PAPER, EDGE = "#1f2328", "#57606a", "#ffffff", "#d0d7de"
BLUE, GREEN, RED, AMBER = "#0969da", "#1a7f37", "#cf222e", "#9a6700"
FILL = {
    GREY: "#f6f8fa",
    BLUE: "#ddf4ff",
    GREEN: "#dafbe1",
    RED: "#ffebe9",
    AMBER: "#fff8c5",
}
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SFMono-Regular', Menlo, 'DejaVu Sans Mono', monospace"


class Picture:
    """A picture of boxes, arrows and words."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts: list[str] = []
        self._colors: set[str] = set()
        self._width, self._height, self._title = width, height, title

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        color: str = INK,
        size: int = 14,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """Write one line."""
        weight = ' font-weight="600"' if bold else ""
        font = f' font-family="{MONO}"' if mono else ""
        self._parts.append(
            f'<text x="{x}" y="{y}" fill="{color}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}{font}>{escape(words)}</text>'
        )

    def box(
        self, x: int, y: int, width: int, height: int, title: str, *lines: str, color: str = GREY
    ) -> None:
        """Draw a box with a title and lines below it; one that begins with `/` is a path."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
            f'fill="{FILL[color]}" stroke="{color}" stroke-width="1.5"/>'
        )
        middle = x + width / 2
        top = y + (height - 20 * (1 + len(lines))) / 2 + 15
        self.text(middle, top, title, bold=True)
        for number, line in enumerate(lines, 1):
            mono = line == "current" or (line.startswith(("/", ".")) and " " not in line)
            self.text(middle, top + 20 * number, line, color=GREY, size=12, mono=mono)

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        """Draw a dashed frame around what belongs together."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="none" '
            f'stroke="{EDGE}" stroke-width="1.5" stroke-dasharray="5 4"/>'
        )

    def arrow(
        self,
        points: list[tuple[float, float]],
        label: str = "",
        *,
        color: str = GREY,
        dashed: bool = False,
        at: tuple[float, float] | None = None,
        anchor: str = "middle",
    ) -> None:
        """Draw a line through points with a head at its end, and a label at a place."""
        self._colors.add(color)
        path = " L ".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(
            f'<path d="M {path}" fill="none" stroke="{color}" stroke-width="2"{dash} '
            f'marker-end="url(#{color[1:]})"/>'
        )
        if label:
            (x1, y1), (x2, y2) = points[0], points[1]
            x, y = at or ((x1 + x2) / 2, (y1 + y2) / 2 - 8)
            self.text(x, y, label, color=color, size=12, anchor=anchor)

    def write(self, name: str) -> None:
        """Write the file."""
        heads = "".join(
            f'<marker id="{color[1:]}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M 0 0 L 10 5 L 0 10 z" fill="{color}"/>'
            f"</marker>"
            for color in sorted(self._colors)
        )
        body = "\n".join(self._parts)
        (IMAGES / f"{name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._width} {self._height}" '
            f'width="{self._width}" height="{self._height}" font-family="{SANS}" role="img">\n'
            f"<title>{escape(self._title)}</title>\n<defs>{heads}</defs>\n"
            f'<rect x="1" y="1" width="{self._width - 2}" height="{self._height - 2}" rx="12" '
            f'fill="{PAPER}" stroke="{EDGE}"/>\n{body}\n</svg>\n',
            encoding="utf-8",
        )


def overview() -> None:
    """From the commit to the servers, and back."""
    picture = Picture(900, 330, "A virtualenv is built once, packed, deployed and switched to")
    picture.text(120, 32, "build machine", color=GREY, size=13)
    picture.box(30, 46, 180, 76, "virtualenv", "pip or uv, once")
    picture.arrow([(120, 122), (120, 196)], "pack", at=(132, 164), anchor="start")
    picture.box(30, 198, 180, 92, "bundle", "/shop/e06f902.tar.gz", "reproducible", color=BLUE)
    picture.arrow([(210, 244), (318, 244)], "salt://, https://", at=(264, 234))
    picture.text(264, 264, "or the delta only", color=GREY, size=11)

    picture.frame(320, 46, 550, 262)
    picture.text(595, 32, "every server: web1, web2, ...", color=GREY, size=13)
    picture.box(340, 196, 200, 96, "staging directory", "unpack, relocate,", "verify, smoke tests")
    picture.arrow([(540, 244), (628, 244)], "one rename", at=(584, 234))
    picture.box(630, 196, 220, 96, "new release", "/srv/shop/e06f902", "never changed", color=GREEN)
    picture.box(630, 64, 220, 68, "previous release", "/srv/shop/d7a751d")
    picture.box(340, 64, 200, 68, "symlink", "current", color=AMBER)
    picture.arrow([(500, 132), (628, 200)], "switch", color=GREEN, at=(546, 182), anchor="end")
    picture.arrow([(540, 98), (628, 98)], "roll back", color=RED, dashed=True, at=(584, 88))
    picture.text(584, 116, "not healthy", color=RED, size=11)
    picture.write("overview")


def life() -> None:
    """The states of a release."""
    picture = Picture(900, 276, "The life of a release")
    y = 28
    picture.box(24, y, 140, 72, "bundle", "packed, .sha256", color=BLUE)
    picture.arrow([(164, y + 36), (228, y + 36)], "managed")
    picture.box(230, y, 150, 72, "staged", ".releases/staging")
    picture.arrow([(380, y + 36), (438, y + 36)], "rename")
    picture.box(440, y, 140, 72, "published", "/srv/shop/<name>", color=GREEN)
    picture.arrow([(580, y + 36), (648, y + 36)], "active")
    picture.box(
        650, y, 226, 72, "active", "current points to it,", "programs restarted", color=AMBER
    )

    picture.arrow(
        [(305, y + 72), (305, 180)], "any failure", color=RED, at=(313, 140), anchor="start"
    )
    picture.box(230, 182, 150, 72, "removed", "nothing was changed", color=RED)
    picture.arrow([(510, y + 72), (510, 180)], "pruned", at=(518, 140), anchor="start")
    picture.box(440, 182, 140, 72, "gone", "unless pinned, used")
    picture.arrow(
        [(700, y + 72), (700, 180)], "not healthy", color=RED, at=(692, 140), anchor="end"
    )
    picture.box(626, 182, 120, 72, "bad", "rolled back", color=RED)
    picture.arrow(
        [(820, y + 72), (820, 180)], "healthy", color=GREEN, at=(828, 140), anchor="start"
    )
    picture.box(764, 182, 112, 72, "healthy", "it stays", color=GREEN)
    picture.write("release-life")


def switch() -> None:
    """What a switch does to the link and to the processes."""
    picture = Picture(900, 316, "A switch: the symlink is renamed, then the programs are restarted")
    columns = ((24, "1. before"), (320, "2. after the rename"), (616, "3. after the restart"))
    for x, title in columns:
        picture.text(x + 130, 34, title, bold=True)
        new = x > 24
        picture.box(x + 8, 52, 112, 44, "current", color=AMBER)
        picture.box(x + 8, 140, 112, 52, "d7a751d", "previous" if new else "active")
        picture.box(x + 140, 140, 112, 52, "e06f902", "active" if new else "published", color=GREEN)
        if new:
            picture.arrow([(x + 100, 96), (x + 180, 138)], color=AMBER)
        else:
            picture.arrow([(x + 64, 96), (x + 64, 138)], color=AMBER)
        restarted = x > 400
        place = x + 140 if restarted else x + 8
        picture.box(place, 236, 112, 44, "gunicorn", color=BLUE)
        picture.arrow([(place + 56, 236), (place + 56, 194)], color=BLUE)
    picture.text(450, 302, "A program stays on the release that it was started from.", color=GREY)
    picture.write("switch")


def roll_out() -> None:
    """A canary, then batches."""
    picture = Picture(900, 300, "A roll-out: a canary, then batches; a failure rolls back")
    picture.box(24, 70, 130, 72, "plan", "pillar verified", "on all minions")
    picture.arrow([(154, 106), (212, 106)])
    picture.box(214, 70, 130, 72, "canary", "web1", color=AMBER)
    picture.arrow([(344, 106), (422, 106)], "healthy", color=GREEN)
    picture.box(424, 70, 130, 72, "batch 1", "web2, web3", color=BLUE)
    picture.arrow([(554, 106), (632, 106)], "healthy", color=GREEN)
    picture.box(634, 70, 110, 72, "batch 2", "web4, web5", color=BLUE)
    picture.arrow([(744, 106), (790, 106)], color=GREEN)
    picture.box(792, 70, 86, 72, "done", color=GREEN)
    picture.arrow([(279, 142), (279, 208)], "fails", color=RED, at=(287, 180), anchor="start")
    picture.arrow([(489, 142), (489, 208)], "fails", color=RED, at=(497, 180), anchor="start")
    picture.arrow([(689, 142), (689, 208)], "fails", color=RED, at=(697, 180), anchor="start")
    picture.box(
        214,
        210,
        530,
        66,
        "roll back what this run has switched; mark the release bad",
        "minions that come later are not touched",
        color=RED,
    )
    picture.text(450, 40, "salt-run releases.roll /srv/shop e06f902 tgt='web*' batch=2", mono=True)
    picture.write("roll-out")


def databases() -> None:
    """One minion migrates the database of all."""
    picture = Picture(900, 300, "One database, many servers: one minion migrates")
    picture.box(310, 24, 280, 56, "Salt master", "releases.roll, releases.rollback")
    picture.box(40, 124, 200, 56, "web1: the host", "/srv/shop/current", color=AMBER)
    picture.box(350, 124, 200, 56, "web2", "/srv/shop/current")
    picture.box(660, 124, 200, 56, "web3", "/srv/shop/current")
    picture.box(310, 222, 280, 56, "one database", "one schema", color=BLUE)
    picture.arrow([(330, 80), (200, 122)])
    picture.arrow([(450, 80), (450, 122)])
    picture.arrow([(570, 80), (700, 122)])
    picture.arrow(
        [(140, 180), (140, 250), (308, 250)],
        "migrates",
        color=AMBER,
        at=(224, 240),
        anchor="middle",
    )
    picture.text(24, 270, "up before the first switch,", color=AMBER, size=12, anchor="start")
    picture.text(24, 286, "down after the last rollback", color=AMBER, size=12, anchor="start")
    picture.arrow(
        [(450, 180), (450, 220)], "waits, reads", at=(458, 206), anchor="start", dashed=True
    )
    picture.arrow([(760, 180), (760, 250), (592, 250)], "waits, reads", dashed=True, at=(676, 240))
    picture.write("databases")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    overview()
    life()
    switch()
    roll_out()
    databases()
