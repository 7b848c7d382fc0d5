"""Whether the files of a virtualenv are still what they were when it was deployed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..archives.tar import DIRECTORY, FILE, LINK, Refused
from ..artefacts import metadata
from ..system import files
from . import manifest, manifest_reader, rewritten
from .distributions import listed_path, records
from .layout import Virtualenv
from .manifest import RECORD, Row
from .manifest_reader import Manifest
from .nested import packages_below


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: `interpreter`, `access` (to it), `untried`, `system`, `script`, `link`, `reference`,
            `path`, `mode`, `mount`, `manifest` or `record`.
        file: what is concerned, relative to the virtualenv.
        reason: what is wrong with it, and what to do where that is known.
    """

    kind: str
    file: str
    reason: str


def verify(environment: Virtualenv) -> Iterator[Problem]:
    """Files that are not what they were when the virtualenv was deployed or its packages installed.

    It is what `rpm -V` does for packages: with the manifest where it came as a bundle, and else
    with the RECORD of each distribution.
    """
    root = files.open_root(environment.path)
    try:
        known = manifest_reader.of_tree(root)
        if known is not None:
            with known:
                yield from deviations(root, known)
        elif _came_with_manifest(root):
            yield Problem("manifest", manifest.NAME, "it is gone: deploy the release again")
        else:
            yield from _unlike_records(root, environment)
    except Refused as refusal:
        yield Problem("manifest", manifest.NAME, f"{refusal}: deploy the release again")
    finally:
        os.close(root)


def _came_with_manifest(root: int) -> bool:
    """Whether a release's record has the digest of a manifest."""
    try:
        data, _ = files.read(root, RECORD)
        return bool(json.loads(data).get("manifest"))
    except (OSError, ValueError, AttributeError):
        return False


def deviations(root: int, known: Manifest, record: str = RECORD) -> Iterator[Problem]:
    """What differs from the manifest of a bundle, except what the ledger accounts for.

    Args:
        root: descriptor of what was unpacked.
        known: its manifest.
        record: the one file at its top that belongs to nobody's bundle.
    """
    changed = rewritten.read(root)
    paths = set()
    added = {path: now for path, now in changed.items() if now.startswith(rewritten.POINTS)}
    known.require_digest()
    for row in known.rows():
        paths.add(row.path)
        added.pop(row.path, None)
        reason = _deviation(root, row, changed.get(row.path))
        if reason is not None:
            yield Problem("manifest", row.path, reason)
    for path, now in added.items():  # what is shared by all releases
        reason = _deviation(root, Row(path, LINK), now)
        if reason is not None:
            yield Problem("manifest", path, reason)
        paths.update(_with_directories(path))
    yield from _strangers(root)
    for path in _all_paths(root, record):
        if path not in paths:
            yield Problem("manifest", path, "it is not in the manifest: added after it was packed")


def _with_directories(path: str) -> Iterator[str]:
    """A path, and the directories above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _deviation(root: int, row: Row, now: str | None) -> str | None:
    """How a file differs from its row, or from what the ledger has in its place."""
    parent, _, name = row.path.rpartition("/")
    missing = None if now == rewritten.GONE else "it is in the manifest, but not on disk"
    try:
        directory = files.open_directory(root, parent)
    except (FileNotFoundError, NotADirectoryError):  # nor behind a symlink, which is not followed
        return missing
    try:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return missing
        what = stat.S_IFMT(status.st_mode)
        if what != _TYPES[LINK if now and now.startswith(rewritten.POINTS) else row.kind]:
            return f"it is no {row.kind} any more"
        if what == stat.S_IFLNK:
            wanted = now[len(rewritten.POINTS) :] if now else row.target
            target = os.readlink(name, dir_fd=directory)
            return None if target == wanted else f"it points to {target}, and not to {wanted}"
        if stat.S_IMODE(status.st_mode) != row.mode:
            return f"its mode is {stat.S_IMODE(status.st_mode):04o}, and not {row.mode:04o}"
        if what == stat.S_IFDIR:
            return None
        wanted = now[len(rewritten.HASHES) :] if now else row.sha256
        same = now is not None or status.st_size == row.size
        same = same and files.digest_of(directory, name).hex() == wanted
        return None if same else "its content was changed"
    finally:
        os.close(directory)


_TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK}


def _strangers(root: int) -> Iterator[Problem]:
    """What is in the manifest's own directory and does not belong there."""
    own = {os.path.basename(name) for name in (manifest.NAME, rewritten.NAME, rewritten.ORIGINALS)}
    directory = files.open_directory(root, manifest.PLACE)
    try:
        for name in sorted(set(os.listdir(directory)) - own):
            yield Problem("manifest", f"{manifest.PLACE}/{name}", "it was added later")
    finally:
        os.close(directory)
    try:
        directory = files.open_directory(root, rewritten.ORIGINALS)
    except OSError:
        return
    try:
        for name in sorted(os.listdir(directory)):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or files.digest_of(directory, name).hex() != name:
                where = f"{rewritten.ORIGINALS}/{name}"
                yield Problem("manifest", where, "its content does not have its name as digest")
    finally:
        os.close(directory)


def _all_paths(root: int, record: str) -> Iterator[str]:
    """Everything in a virtualenv but what belongs to the manifest and to the release."""
    for directory, directories, names, _ in os.fwalk(".", dir_fd=root):
        base = directory[2:] + "/" if directory != "." else ""
        if not base:
            directories[:] = [name for name in directories if name != manifest.PLACE]
            names = [name for name in names if name != record]
        directories.sort()
        yield from (base + name for name in sorted((*directories, *names)))


def _unlike_records(root: int, environment: Virtualenv) -> Iterator[Problem]:
    """Files that differ from what their distribution's RECORD lists."""
    top = os.path.abspath(environment.path)
    for record, data in records(root, (*environment.site_packages, *packages_below(environment))):
        for row, line in metadata.record_rows(data):
            path = os.path.relpath(os.path.join(top, listed_path(record, row)), top)
            if path.startswith("../"):
                continue
            reason = _differs(os.path.join(top, path), line)
            if reason:
                yield Problem("record", path, reason)


def _differs(path: str, line: bytes) -> str | None:
    known = metadata.recorded_digest(line)
    if known is None:
        return None
    algorithm, wanted = known
    try:
        with open(path, "rb") as file:
            found = files.digest(file.fileno(), algorithm)
    except FileNotFoundError:
        return "it is in its package's RECORD, but not on disk"
    if metadata.encoded(found) != wanted:
        return "it differs from its package's RECORD: changed after it was installed"
    return None
