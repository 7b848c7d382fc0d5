"""What a virtualenv must be able to do, and where to put one: shared by the functional tests."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.environments import references

SHAPES = {  # of a new path; "same", "containing", "sibling" and "contained" depend on the old one
    "shorter": "v",
    "long": f"{'l' * 70}/{'m' * 70}/venv",
    "space": "my virtual env",
    "quotes": """it's "a" venv""",
    "dollar": "v$HOME`x`",
    "accents": "grün/日本",
}
RELATED = ("same", "containing", "sibling", "contained")

# Every shell: source the script, print VIRTUAL_ENV, then where `python` is found.
SHELLS = {
    "bash": ["bash", "-c", '. "$TARGET/bin/activate"; echo "$VIRTUAL_ENV"; command -v python'],
    "zsh": ["zsh", "-fc", '. "$TARGET/bin/activate"; echo "$VIRTUAL_ENV"; whence -p python'],
    "dash": ["dash", "-c", '. "$TARGET/bin/activate"; echo "$VIRTUAL_ENV"; command -v python'],
    "fish": [
        *("fish", "--no-config", "-c"),
        'source "$TARGET/bin/activate.fish"; echo "$VIRTUAL_ENV"; command -s python',
    ],
    "tcsh": [
        *("tcsh", "-f", "-c"),
        "set prompt = '%'; source $TARGET:q/bin/activate.csh; printenv VIRTUAL_ENV; which python",
    ],
}


@contextmanager
def place(shape: str, old: str) -> Iterator[str]:
    """A new path of some shape, related to the old one; all that was made for it is removed."""
    build = os.path.dirname(old)
    root = os.path.dirname(build)
    if shape in ("containing", "sibling", "contained"):
        made = build
        path = {"containing": f"{old}/v2", "sibling": f"{old}-v2", "contained": build}[shape]
    elif shape == "same":
        made = tempfile.mkdtemp(prefix="", dir=root)
        os.rmdir(made)
        length = len(os.path.basename(build))
        made = os.path.join(root, f"{os.path.basename(made):x<{length}}")
        path = os.path.join(made, f"{os.path.basename(old)[::-1]}")
    else:
        made = tempfile.mkdtemp(prefix="r", dir=root)
        path = os.path.join(made, SHAPES[shape])
    try:
        if os.path.dirname(path) != root:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        yield path
    finally:
        shutil.rmtree(made, ignore_errors=True)


def named(tree: str, old: str, new: str) -> list[str]:
    """The files and links that still name `old` when every mention of `new` is taken out."""
    left = []
    for path in references(tree, old):
        full = os.path.join(tree, path)
        if os.path.islink(full):
            data = os.fsencode(os.readlink(full))
        else:
            with open(full, "rb") as file:
                data = file.read()
        if os.fsencode(old) in data.replace(os.fsencode(new), b""):
            left.append(path)
    return left


def clean_environ(home: str) -> dict[str, str]:
    """The variables of somebody who has just logged in."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb"}


def console_scripts(path: str) -> list[str]:
    """Names of the programs in `bin` that begin with a shebang."""
    found = []
    directory = os.path.join(path, "bin")
    for name in sorted(os.listdir(directory)):
        full = os.path.join(directory, name)
        if os.path.isfile(full) and not os.path.islink(full) and os.access(full, os.X_OK):
            with open(full, "rb") as file:
                if file.read(2) == b"#!":
                    found.append(name)
    return found


def run_script(path: str, name: str, *arguments: str) -> str:
    """Run a program of `bin`, not activated; return what it said."""
    done = subprocess.run(
        [os.path.join(path, "bin", name), *arguments],
        env={**clean_environ("/"), "PYTHONWARNINGS": "ignore"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="surrogateescape",
    )
    assert done.returncode == 0, f"{name}: {done.returncode}: {done.stdout}"
    return done.stdout


def activated(shell: str, path: str, home: str) -> list[str]:
    """VIRTUAL_ENV and the place of `python`, as a shell has them that activated the virtualenv."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    done = subprocess.run(
        SHELLS[shell],
        env={**clean_environ(home), "TARGET": path},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        errors="surrogateescape",
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def record_mismatches(path: str) -> set[str]:
    """The rows of every RECORD below `path` that do not fit the file on disk."""
    wrong = set()
    for directory, _, names in os.walk(os.path.join(path, "lib")):
        if not directory.endswith(".dist-info") or "RECORD" not in names:
            continue
        with open(os.path.join(directory, "RECORD"), newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        for name, digest, size in rows:
            algorithm, _, wanted = digest.partition("=")
            full = os.path.normpath(os.path.join(os.path.dirname(directory), name))
            if not wanted:
                continue
            try:
                with open(full, "rb") as handle:
                    data = handle.read()
            except FileNotFoundError:
                wrong.add(name)
                continue
            got = base64.urlsafe_b64encode(hashlib.new(algorithm, data).digest()).rstrip(b"=")
            if got.decode() != wanted or (size and int(size) != len(data)):
                wrong.add(name)
    return wrong
