"""The tree that is packed: a virtualenv itself, or a copy that is relocated to another prefix."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import Busy, InvalidPath
from ..relocation.relocate import relocate
from ..virtualenvs.layout import inspect


@contextmanager
def relocated(path: str, prefix: str | None) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The tree to pack, itself or a copy that is relocated to `prefix`, and what was left in it.

    The copy has hard links to the files: relocation never writes into a file.
    """
    if prefix is None or inspect(path).old_prefixes == (prefix,):
        yield path, []
        return
    source = os.path.realpath(path)
    above, name = os.path.split(source)
    scratch = os.path.join(above, f".{name}.packing")
    with _scratch(scratch):
        copy = os.path.join(scratch, "tree")
        shutil.copytree(source, copy, symlinks=True, copy_function=_link)
        moved = relocate(copy, prefix, unpublished=True)
        yield copy, [{"file": file, "reason": reason} for file, reason in moved.problems]


@contextmanager
def _scratch(path: str) -> Iterator[None]:
    """A directory with a fixed name, so that the next run removes what a killed one has left."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise InvalidPath(f"{path} is in the way, and belongs to somebody else: remove it")
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"another run is packing in {path}; wait for that to end") from None
        os.chmod(path, 0o700)
        for name in os.listdir(path):
            shutil.rmtree(os.path.join(path, name))
        try:
            yield
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(directory)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
