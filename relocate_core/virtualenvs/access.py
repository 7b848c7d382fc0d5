"""Whether those who are going to run a virtualenv may read its files, and run its programs.

A build under umask 077 or 027 gives files that only their owner, or the owner's group, can read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..system.ownership import user_name
from .layout import Virtualenv


class Reader(NamedTuple):
    """Who is going to run a virtualenv.

    Attributes:
        user: the number of the user; None for anybody.
        groups: the groups that this user is in.
    """

    user: int | None = None
    groups: frozenset[int] = frozenset()

    @classmethod
    def of(cls, owner: tuple[int, int] | None) -> Reader:
        """A user and group as an operator gave them; anybody for None."""
        if owner is None:
            return cls()
        import pwd

        user, group = owner
        groups = {group}
        with suppress(KeyError):  # a number without a name
            groups.update(os.getgrouplist(pwd.getpwuid(user).pw_name, group))
        return cls(user, frozenset(groups))

    def __str__(self) -> str:
        return "anybody but root" if self.user is None else f"the user {user_name(self.user)}"

    def may_read(self, status: os.stat_result) -> bool:
        """Whether a file can be read, or a directory entered and listed."""
        if self.user in (0, status.st_uid):
            return True  # who could give the right to themselves
        shift = 3 if status.st_gid in self.groups else 0
        return _may_others(status.st_mode >> shift, stat.S_ISDIR(status.st_mode))


def is_needed(environment: Virtualenv, path: str) -> bool:
    """Whether a program reads a file of a virtualenv when it starts, or imports it.

    Bytecode is not needed: where it cannot be read, Python compiles the source.
    """
    name = path.rpartition("/")[2]
    if name == "__pycache__" or "/__pycache__/" in path:
        return False
    places = ("bin", *environment.site_packages)
    return path == "pyvenv.cfg" or any(
        f"{path}/".startswith(f"{place}/") or place.startswith(f"{path}/") for place in places
    )


def unreadable(environment: Virtualenv, reader: Reader) -> Iterator[str]:
    """What somebody would need of a virtualenv and cannot read.

    Args:
        environment: the virtualenv.
        reader: who.
    """
    places = ("bin", *environment.site_packages)
    ahead = [("", False)]
    while ahead:
        above, inside = ahead.pop()
        with os.scandir(os.path.join(environment.path, above)) as entries:
            for entry in entries:
                if entry.name == "__pycache__" or entry.is_symlink():
                    continue
                path = above + entry.name
                if not inside and not is_needed(environment, path):
                    continue
                if not reader.may_read(entry.stat(follow_symlinks=False)):
                    yield path
                if entry.is_dir(follow_symlinks=False):
                    ahead.append((f"{path}/", inside or path in places))


def closed_to_others(environment: Virtualenv, modes: Iterable[tuple[str, int, bool]]) -> list[str]:
    """What would be needed, and that only its owner and group can read, sorted.

    Args:
        environment: the virtualenv.
        modes: path, mode, and whether it is a directory.
    """
    closed = (path for path, mode, is_directory in modes if not _may_others(mode, is_directory))
    return sorted(path for path in closed if is_needed(environment, path))


def _may_others(mode: int, is_directory: bool) -> bool:
    wanted = 0o5 if is_directory else 0o4
    return mode & wanted == wanted


def reason(who: str, closed: Sequence[str]) -> str:
    """What to report of the first of some files.

    Args:
        who: what is the case, such as `anybody but root cannot read it`.
        closed: the files.
    """
    more = f", nor {len(closed) - 1:,} more of its files" if len(closed) > 1 else ""
    return f"{who}{more}: build it under umask 022, or run chmod -R a+rX on it"


def is_noexec(path: str) -> bool:
    """Whether no program can be started from the file system that a path is on."""
    return bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))


def is_private(path: str) -> bool:
    """Whether a directory above a path is closed to all but its owner and group."""
    above = os.path.dirname(os.path.realpath(path))
    while above != "/":
        if not os.stat(above).st_mode & 0o001:
            return True
        above = os.path.dirname(above)
    return False
