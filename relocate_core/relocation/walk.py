"""One walk over a virtualenv's tree that follows no symlink and stays on its file system."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..errors import TreeError
from ..system import files
from ..virtualenvs.manifest import PLACE
from .scan import Directory

_DEEPEST = 200


class Walk:
    """A walk over a tree.

    Args:
        root: descriptor of its top.
        name: the top's path, for messages.
        clear: whether to remove the temporary files that a killed run has left.

    Attributes:
        links: the symbolic links that were met, relative to the top.
        foreign: the directories that are another file system, and were not entered.
        known: how many regular files were met so far.
    """

    def __init__(self, root: int, name: str, *, clear: bool) -> None:
        self.root = root
        self.name = name
        self.clear = clear
        self.links: list[str] = []
        self.foreign: list[str] = []
        self.known = 0
        self._device = os.fstat(root).st_dev
        self._stopped = False

    def stop(self) -> None:
        """Let `directories` end with the directory that it is at."""
        self._stopped = True

    def directories(self) -> Iterator[Directory]:
        """Every directory that holds regular files, with their names.

        Raises:
            TreeError: a directory cannot be entered, or they are nested too deep.
        """
        directory = os.dup(self.root)
        try:
            yield from self._below(directory, "", 0)
        finally:
            os.close(directory)

    def _below(self, directory: int, path: str, depth: int) -> Iterator[Directory]:
        names, inner = self._list(directory, path)
        if names:
            yield path, names
        for name in inner:
            if self._stopped:
                return
            below = f"{path}/{name}" if path else name
            descriptor = self._enter(directory, name, below, depth)
            try:
                if os.fstat(descriptor).st_dev == self._device:
                    yield from self._below(descriptor, below, depth + 1)
                else:
                    self.foreign.append(below)
            finally:
                os.close(descriptor)

    def _list(self, directory: int, path: str) -> tuple[list[str], list[str]]:
        """The regular files and the directories in a directory."""
        names, directories = [], []
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                is_file = entry.is_file(follow_symlinks=False)
                if is_file and name[0] != ".":  # nearly all of them
                    names.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    if path or name != PLACE:  # what it records of the past should stay
                        directories.append(name)
                elif name.startswith(files.TEMPORARY):
                    if self.clear:  # under the lock, nobody is using it any more
                        os.unlink(name, dir_fd=directory)
                elif is_file:
                    names.append(name)
                elif entry.is_symlink():
                    self.links.append(f"{path}/{name}" if path else name)
        self.known += len(names)
        return names, directories

    def _enter(self, directory: int, name: str, path: str, depth: int) -> int:
        where = os.path.join(self.name, path)
        if depth >= _DEEPEST:
            raise TreeError(
                f"cannot relocate {where}: directories are nested more than {_DEEPEST} deep; "
                "this is no virtualenv that a tool has made"
            )
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=directory)
        except OSError as error:
            raise TreeError.of(where, error) from error
