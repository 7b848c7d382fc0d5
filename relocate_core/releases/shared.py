"""Persistent files and directories, linked into each release before it gets its name."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..archives.tar import Refused, plain_name, printable
from ..errors import InvalidPath
from ..system import files
from ..virtualenvs import rewritten
from ..virtualenvs.manifest import PLACE, RECORD

# The files of a directory that version control only keeps by them.
_KEEPERS = (".gitkeep", ".keep", ".gitignore", ".hgkeep")


def checked(shared: Any) -> dict[str, str]:
    """The links to make, as an operator gave them.

    Args:
        shared: absolute paths by where they should be in a release.

    Raises:
        InvalidPath: one of them cannot be.
    """
    if not isinstance(shared or {}, Mapping):
        raise InvalidPath(
            f"shared must be paths in the release, and what each points to: {shared!r}"
        )
    found: dict[str, str] = {}
    for path, target in (shared or {}).items():
        if not isinstance(path, str) or not _is_plain(path):
            raise InvalidPath(f"what is shared must be a path in the release: {path!r}")
        if not isinstance(target, str) or not target.startswith("/") or "\0" in target:
            raise InvalidPath(f"the shared {path} must be an absolute path: {target!r}")
        found[path.rstrip("/")] = os.path.normpath(target)
    for path in found:
        above = next((other for other in found if path.startswith(f"{other}/")), None)
        if above is not None:
            raise InvalidPath(f"{path} cannot be shared, as {above} is: leave one of them out")
    return found


def _is_plain(path: str) -> bool:
    path = path.rstrip("/")
    try:
        known = plain_name(path, directory=False) == path
    except Refused:
        return False
    return known and path.partition("/")[0] not in (PLACE, RECORD, "bin", "pyvenv.cfg")


def require_targets(shared: Mapping[str, str]) -> None:
    """Refuse what does not exist: a program would find a dangling symlink.

    Raises:
        InvalidPath: with the path of it.
    """
    for path, target in shared.items():
        if not os.path.exists(target):
            raise InvalidPath(
                f"{target} should be {path} in every release, and does not exist: create it first"
            )


def share(staged: str, shared: Mapping[str, str], owner: tuple[int, int] | None) -> None:
    """Make the symlinks in a staged release. A placeholder in their place is removed.

    Args:
        staged: the release's directory, which nobody else works in.
        shared: absolute paths by where they should be in it.
        owner: user and group that the links should belong to.

    Raises:
        InvalidPath: the release has something of its own there.
    """
    root = files.open_root(staged)
    try:
        changed: dict[str, str] = {}
        for path, target in shared.items():
            parent, _, name = path.rpartition("/")
            directory = _open_parents(root, parent, owner, path)
            try:
                changed.update(
                    dict.fromkeys(_make_way(root, directory, name, path), rewritten.GONE)
                )
                os.symlink(target, name, dir_fd=directory)
                if owner is not None:
                    os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
            finally:
                os.close(directory)
            changed[path] = f"{rewritten.POINTS}{target}"
        rewritten.add(root, changed)
    finally:
        os.close(root)


def _open_parents(root: int, parent: str, owner: tuple[int, int] | None, path: str) -> int:
    """The directory that a link should be in, made where it is missing."""
    directory = os.dup(root)
    for name in parent.split("/") if parent else ():
        above = directory
        try:
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=above)
                if owner is not None:
                    os.chown(name, *owner, dir_fd=above, follow_symlinks=False)
            directory = files.open_directory(above, name)
        except OSError as error:
            raise _taken(path, f"{printable(name)} on the way to it is no directory") from error
        finally:
            os.close(above)
    return directory


def _make_way(root: int, directory: int, name: str, path: str) -> Iterator[str]:
    """Remove a placeholder; give the paths of what was in it."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _taken(path, "the release has a file there")
    inner = files.open_directory(directory, name)
    try:
        kept = os.listdir(inner)
        own = sorted(set(kept) - set(_KEEPERS))
        if own:
            raise _taken(path, f"the release has {printable(own[0])} in it")
        for one in kept:
            content, _ = files.read(inner, one)
            rewritten.keep(root, f"{path}/{one}", hashlib.sha256(content).hexdigest())
            os.unlink(one, dir_fd=inner)
            yield f"{path}/{one}"
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=directory)


def _taken(path: str, why: str) -> InvalidPath:
    return InvalidPath(
        f"{path} cannot be shared, as {why}: leave it out of the build, or do not share it"
    )
