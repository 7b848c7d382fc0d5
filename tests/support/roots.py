"""Roots of releases to be tried: archives for them, what always has to hold, a faster clock."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Root, activate, publish
from relocate_core.errors import RelocateError
from relocate_core.releases import history
from relocate_core.releases.root import CURRENT, RECORD, RECORDS
from relocate_core.system import files
from relocate_core.system.staging import STAGING
from tests.support.environments import VERSIONS, Fingerprint, digest, environ, interpreters, make
from tests.support.steps import small, temporaries

NOBODY = 65534
MARKER = "etc/which"
"""A file of every release of these tests that holds its name, many times."""
MARKED = 10_000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Shape = list[dict[str, Any]]
"""A history without what differs from run to run."""


# -- archives -------------------------------------------------------------------------------------


def packed(
    directory: Path,
    name: str,
    *,
    top: str = ".",
    extra: Mapping[str, str] | None = None,
    python: str | None = None,
) -> str:
    """An archive of a small virtualenv whose marker says `name`; its path.

    Args:
        directory: where to put it.
        name: what the marker says.
        top: the directory in the archive that is the virtualenv.
        extra: more executable files, by their path in it: their text, with `{prefix}` for where
            the virtualenv was built.
        python: an interpreter for an empty virtualenv; by default it is one with packages.
    """
    directory.mkdir(parents=True, exist_ok=True)
    build = directory / f"{name}.build"
    made = small(build) if python is None else make("uv", build, python=python)
    for path, text in {MARKER: f"{name} " * MARKED, **(extra or {})}.items():
        file = Path(made.path, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{prefix}", made.old_prefix))
        file.chmod(0o644 if path == MARKER else 0o755)
    archive = directory / f"{name}.tar"
    with tarfile.open(archive, "w") as packing:
        packing.add(made.path, arcname=top)
    shutil.rmtree(made.path)
    return str(archive)


def python_for_all() -> str:
    """An interpreter that every user may run; skips the test where there is none."""
    for version in VERSIONS:
        for found in interpreters(version):
            done = (
                subprocess.run(
                    [found, "-c", "import json"], user=NOBODY, group=NOBODY, cwd="/", env={}
                )
                if _may_enter(found)
                else None
            )
            if done is not None and done.returncode == 0:
                return found
    pytest.skip("no interpreter here may be run by everybody")


def _may_enter(path: str) -> bool:
    """Whether everybody may pass through all directories above the file that a path points to."""
    path = os.path.realpath(path)
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


# -- what is there --------------------------------------------------------------------------------


def tree(release: str) -> dict[str, Fingerprint]:
    """Fingerprints of all of a release but times and the record, which differ from run to run."""
    found = digest(release, times="none")
    mark = found.get(RECORD)
    if mark is not None:
        found[RECORD] = mark._replace(size=0, content="")
    return found


def everything(root: str) -> dict[str, Fingerprint]:
    """Fingerprints of a whole root; nothing where it is not there."""
    return digest(root) if os.path.lexists(root) else {}


def shape(root: str) -> Shape:
    """The history without times; every line of it has to be whole."""
    path = os.path.join(root, RECORDS, history.NAME)
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines), "the history's last line is torn"
    events = [json.loads(line) for line in lines]
    assert events == history.read(os.path.join(root, RECORDS))
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


def left_behind(root: str) -> list[str]:
    """What a run has left in the records: staged things and temporary files."""
    records = os.path.join(root, RECORDS)
    staging = os.path.join(records, STAGING)
    found = [os.path.join(STAGING, name) for name in _listed(staging)]
    found += [os.path.relpath(path, root) for path in temporaries(root)]
    known = {"lock", "migrating", "schemas.json", STAGING, history.NAME}
    return found + [name for name in _listed(records) if name not in known]


def _listed(directory: str) -> list[str]:
    return sorted(os.listdir(directory)) if os.path.isdir(directory) else []


def runs(release: str) -> bool:
    """Whether a release's interpreter starts and knows where it is."""
    done = subprocess.run(
        [f"{release}/bin/python", "-B", "-c", "import sys; print(sys.prefix)"],
        env=environ(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
    )
    return done.returncode == 0 and os.path.samefile(done.stdout.strip(), release)


def faults(
    root: str, expected: Mapping[str, Mapping[str, Fingerprint]], *, strangers: Iterable[str] = ()
) -> list[str]:
    """What is wrong in a root, whatever has happened there: [] where all holds.

    Args:
        root: its directory.
        expected: what a release has to look like, by name.
        strangers: names in the root that are no releases, and should be there.
    """
    found = []
    known = Root(root)
    for name in _listed(root):
        path = os.path.join(root, name)
        if name == RECORDS or name in strangers or os.path.islink(path):
            continue
        if known.record(name) is None:
            found.append(f"{name} is there and not complete")
        elif name in expected and tree(path) != expected[name]:
            found.append(f"{name} differs from what was deployed elsewhere")
    for link, name in known.links().items():
        if link in strangers:
            continue
        if os.readlink(os.path.join(root, link)) != name:
            found.append(f"{link} is not relative")
        if known.record(name) is None:
            found.append(f"{link} points to {name}, which is no release")
        elif not runs(os.path.join(root, link)):
            found.append(f"{link} points to {name}, which does not run")
    return found


@dataclass(frozen=True)
class State:
    """What a root comes to."""

    releases: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    bad: tuple[tuple[str, str], ...]
    pinned: tuple[str, ...]
    history: tuple[str, ...]

    @classmethod
    def of(cls, root: str) -> State:
        """The state of a root as its own functions tell it."""
        known, standing = Root(root), Root(root).standing()
        return cls(
            tuple(known.names()),
            tuple(sorted(known.links().items())),
            tuple(sorted(standing.bad.items())),
            tuple(sorted(standing.pinned)),
            # What was only begun may stand there twice: it is begun again after a kill.
            tuple(
                _in_order(event for event in shape(root) if event["event"] != history.ACTIVATING)
            ),
        )

    def differs(self, other: State) -> list[str]:
        """What is not as in another one, in words."""
        found = []
        for name, ours in vars(self).items():
            theirs = getattr(other, name)
            if ours != theirs:
                lost = [one for one in theirs if one not in ours]
                more = [one for one in ours if one not in theirs]
                found.append(
                    f"{name}: lost {lost}, more {more}" if lost or more else f"{name}: {ours}"
                )
        return found


def _in_order(events: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Events as lines; those of one pruning, in which no release comes before another, sorted."""
    for is_pruned, run in itertools.groupby(events, lambda one: one["event"] == history.PRUNED):
        lines = [_line(event) for event in run]
        yield from sorted(lines) if is_pruned else lines


def _line(event: Mapping[str, Any]) -> str:
    """An event in one short line, without the names of archives, which hold temporary
    directories."""
    return " ".join(f"{value}" for key, value in event.items() if key != "source")


# -- a root, and its releases ---------------------------------------------------------------------


@dataclass
class Site:
    """A root at a path of its own, archives for it, and what each release has to look like.

    Attributes:
        root: the directory.
        archives: by the name of the release.
        expected: the tree that an undisturbed deploy of it makes, by name.
    """

    root: str
    archives: dict[str, str]
    expected: dict[str, dict[str, Fingerprint]] = field(default_factory=dict)

    @classmethod
    def make(cls, directory: Path, names: str) -> Site:
        """Pack an archive for each name, and deploy it once to see what comes of it."""
        site = cls(str(directory / "root"), {n: packed(directory / "archives", n) for n in names})
        for name in names:
            assert site.publish(name).changed
            site.expected[name] = tree(site.path(name))
        shutil.rmtree(site.root)
        return site

    def path(self, name: str = "") -> str:
        """A release's path."""
        return os.path.join(self.root, name) if name else self.root

    def publish(self, name: str, **options: Any) -> Any:
        """Deploy a release."""
        return publish(self.archives[name], self.path(name), **options)

    def deploy(self, *names: str) -> None:
        """Deploy and activate releases, one after the other."""
        for name in names:
            self.publish(name)
            activate(self.path(name))

    def current(self) -> str | None:
        """What `current` says."""
        path = self.path(CURRENT)
        return os.readlink(path) if os.path.islink(path) else None

    def clear(self) -> None:
        """Remove the root."""
        if os.path.isdir(self.root):
            subprocess.run(["rm", "-rf", "--", self.root], check=True)

    def save(self, directory: Path) -> str:
        """Keep the root as it is now, for `restore`."""
        kept = str(directory)
        if os.path.isdir(self.root):
            subprocess.run(["cp", "-a", "--", self.root, kept], check=True)
        return kept

    def restore(self, kept: str) -> None:
        """Let the root be what was kept."""
        self.clear()
        if os.path.isdir(kept):
            subprocess.run(["cp", "-a", "--", kept, self.root], check=True)

    def faults(self, strangers: Iterable[str] = ()) -> list[str]:
        """What is wrong in the root."""
        return faults(self.root, self.expected, strangers=strangers)


def by_hand(site: Site, name: str, link: str = CURRENT) -> None:
    """Let a link point to a release as an operator would: `ln -sfn`."""
    subprocess.run(["ln", "-sfn", name, site.path(link)], check=True)


def lose_python(release: str) -> None:
    """Let the interpreter's link are dangling symlinks, as when the host's Python was replaced."""
    path = os.path.join(release, "bin", "python")
    name = os.path.basename(os.readlink(path))
    os.unlink(path)
    os.symlink(f"/nonexistent/bin/{name}", path)


def without_waiting(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Do not wait for the disk: a kill loses nothing that was written, only a power cut does."""
    put(files, "flush", lambda root: None)
    put(os, "fsync", lambda file: None)


def fast_clock(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let a tenth of a millisecond pass for a second in the history, so that nothing ties."""
    begin = time.time()

    def now() -> str:
        then = begin + (time.time() - begin) * 10_000
        return datetime.fromtimestamp(then, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    put(history, "now", now)


def one_sentence(error: BaseException) -> bool:
    """Whether an error is what an operator may see: on purpose, in one line."""
    return (
        isinstance(error, RelocateError) and "\n" not in str(error) and "[Errno" not in str(error)
    )


def tried(function: Callable[[], object]) -> RelocateError | None:
    """What a call is refused with, which has to be one sentence; None where it succeeds."""
    try:
        function()
    except RelocateError as error:
        found = error
    else:
        return None
    assert one_sentence(found), found
    return found


def refused(
    function: Callable[[], object], error: type[RelocateError], text: str, site: Site
) -> None:
    """A call is refused with this text in one sentence, and nothing in the root has changed."""
    before = everything(site.root)
    with pytest.raises(error, match=text) as caught:
        function()
    assert one_sentence(caught.value)
    after = everything(site.root)
    before, after = (_without_lock(seen) for seen in (before, after))
    assert after == before


def _without_lock(seen: Mapping[str, Fingerprint]) -> dict[str, Fingerprint]:
    """All but what taking and giving back the lock touches."""
    touched = (RECORDS, f"{RECORDS}/lock", f"{RECORDS}/{STAGING}")
    return {path: facts for path, facts in seen.items() if path not in touched}


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start Python with the tests and the core to be imported; stdout is a pipe."""
    from tests.support.steps import ROOT

    return subprocess.Popen(
        [sys.executable, "-B", "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
