#!/usr/bin/env python3
"""Record the demo for the documentation: `docs/demo.md` and `docs/images/session.svg`.

    python docs/session.py          run `demo/run.sh`, then write both
    python docs/session.py LOG      take what an earlier run of it has printed

Nothing is written by hand: what differs from machine to machine gets a fixed name, long lists are
cut, and the picture has the two deploys of the demo, with the comments of the main states alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "demo" / "run.sh"

INTRODUCTION = """\
# The demo

This is what `make demo` prints: a Django site with a database, from a bare machine to a page that
answers; a second release with a migration; a third one that is broken and rolled back by the same
highstate; a rollback by hand; and a fourth release that brings its own Python. All of it happens in
one directory, called `/tmp/demo` here, by a user who is not root. `docs/session.py` has recorded
it; `...` marks what it left out.
"""
# A step that deploys another release begins with a look at the line that changes.
DEPLOY = "$ grep release:"
SHOWN = ("is deployed", "is migrated", "runs", "answers")
MOST = 3  # entries of a list that are kept

COLUMNS, LINE, WIDTH = 100, 19, 8.1
PAPER, INK, PROMPT, GOOD, BAD, DIM = (
    "#0d1117",
    "#e6edf3",
    "#7ee787",
    "#7ee787",
    "#ff7b72",
    "#9198a1",
)


def recorded() -> str:
    """Run the demo with the programs beside this Python; what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(DEMO)],
        env={**os.environ, "PATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout + f"\nsession: the demo has failed (exit code {done.returncode})")
    return done.stdout


def anonymous(log: str) -> str:
    """Replace what differs from machine to machine: directory, user, group, port, Python."""
    scratch = re.search(r"^In (\S+), with", log, re.M)
    user = re.search(r"^ +user: (\S+)\n +group: (\S+)\n +programs:\n +web:\n +socket", log, re.M)
    port = re.search(r"http://127\.0\.0\.1:(\d+)/\n", log[log.index("cat pillar/here.sls") :])
    if not (scratch and user and port):
        sys.exit("session: this is not what the demo prints")
    prefix = re.search(r"^\$ virtualenv-tools --pack-python \S+ (\S+)$", log, re.M)
    if prefix:
        log = log.replace(prefix[1], "/opt/python")
    log = log.replace(scratch[1], "/tmp/demo").replace(f"127.0.0.1:{port[1]}", "127.0.0.1:8000")
    log = re.sub(rf"\b(user|group): (?:{user[1]}|{user[2]})$", r"\1: demo", log, flags=re.M)
    log = re.sub(rf"\b{user[1]} +{user[2]}\b", "demo demo", log)
    return re.sub(r"(python:\n +)/\S+/(python[\d.]+)$", r"\1/usr/bin/\2", log, flags=re.M)


def steps(log: str) -> Iterator[tuple[str, str]]:
    """The title of each step, and what it prints."""
    log = re.sub(r"\nDone in \d+ s: .*", "", log, flags=re.S)
    found = re.split(r"^(\d+\. .*)\n", log, flags=re.M)[1:]
    for title, body in zip(found[::2], found[1::2]):
        yield title, re.sub(r"^    | +$", "", body, flags=re.M).strip("\n")


def cut(text: str) -> str:
    """Cut lists of values after the third one, and the states of directories and files."""
    blocks = re.split(r"^(?=-{10}$)", text, flags=re.M)
    dull = re.compile(r"^    Function: (file|user|group)\.", re.M)
    kept = [(_after(one) if dull.search(one) else one) for one in blocks]
    lines = re.sub(r"(\.\.\.\n)+", "...\n", "".join(kept)).split("\n")
    shown: list[str] = []
    count, indent = 0, ""
    for line in lines:
        item = re.match(r"( {8,})- \w", line)
        count = count + 1 if item and item[1] == indent else 1
        indent = item[1] if item else ""
        if not item or count <= MOST:
            shown.append(line[:200] + "..." if len(line) > 400 else line)
        elif count == MOST + 1:
            shown.append(f"{indent}...")
    return "\n".join(shown)


def _after(block: str) -> str:
    """What follows the state that a block begins with: other states that are clean, a summary."""
    found = re.search(r"^(?:  Name: |\nSummary for |\$ )", block, re.M)
    return "...\n" + (block[found.start() :] if found else "")


def page(log: str) -> str:
    """The session as a page."""
    parts = [f"\n## {title}\n\n```console\n{cut(body)}\n```\n" for title, body in steps(log)]
    return INTRODUCTION + "".join(parts)


def excerpt(log: str) -> Iterator[str]:
    """The lines of the picture: of each deploy the commands and what the main states say."""
    for _, body in steps(log):
        if not body.startswith(DEPLOY):
            continue
        for part in re.split(r"^(?=\$ )", body, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield command.replace(" --local -c etc", "")
            yield from _states(output) if "state.apply" in command else output.rstrip().split("\n")


def _states(output: str) -> Iterator[str]:
    """ID, result and comment of the states that changed something."""
    for block in re.split(r"^-{10}$", output, flags=re.M):
        name = re.search(r"^ +ID: (.*)$", block, re.M)
        if name and name[1].endswith(SHOWN):
            yield from re.findall(r"^(?: +ID| +Result| +Comment): .*$", block, re.M)
    yield from re.findall(r"^(?:Succeeded|Failed): .*$", output, re.M)
    yield ""


def picture(lines: list[str]) -> str:
    """A terminal with these lines."""
    rows: list[tuple[str, str]] = []
    for line in lines:
        # What a state says goes on below its beginning, as a terminal would not have it.
        start = line[: len(line) - len(line.lstrip())]
        key = re.match(r" +\w+: ", line)
        more = " " * len(key[0]) if key else start
        wrapped = textwrap.wrap(line.strip(), COLUMNS, initial_indent=start, subsequent_indent=more)
        rows += [(one, _color(line)) for one in wrapped or [""]]
    width, height = round(COLUMNS * WIDTH + 40), 56 + LINE * len(rows)
    dots = "".join(
        f'<circle cx="{22 + 18 * number}" cy="20" r="5.5" fill="{color}"/>'
        for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    text = "\n".join(
        f'<text x="20" y="{58 + LINE * number}" fill="{color}" xml:space="preserve">'
        f"{escape(row)}</text>"
        for number, (row, color) in enumerate(rows)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-size="13.5" role="img" font-family="ui-monospace, '
        f"SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace\">\n"
        f"<title>A deploy with a migration, and a broken release that is rolled back</title>\n"
        f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>\n'
        f"{dots}\n{text}\n</svg>\n"
    )


def _color(line: str) -> str:
    if line.startswith("$ "):
        return PROMPT
    if re.search(r"Result: False|Failed: +[1-9]", line):
        return BAD
    if re.search(r"Result: True", line):
        return GOOD
    return DIM if re.match(r" +(ID|Function):|Succeeded|Failed", line) else INK


def main(arguments: list[str]) -> None:
    """Write the page and the picture."""
    log = anonymous(Path(arguments[0]).read_text("utf-8") if arguments else recorded())
    (HERE / "demo.md").write_text(page(log), encoding="utf-8")
    (HERE / "images" / "session.svg").write_text(picture(list(excerpt(log))), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
