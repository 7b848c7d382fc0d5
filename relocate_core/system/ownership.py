"""Whether all directories of a path are safe from other users while root works in it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ..errors import UnsafeDirectory


def require_trusted(path: str) -> None:
    """Refuse to work as root below a directory that another user may change.

    Whoever may write to a directory may rename what is in it and put a symlink in its place,
    between one call of root's and the next. A directory with the sticky bit is safe for what root
    has made in it.

    Args:
        path: an absolute path to an existing directory.

    Raises:
        UnsafeDirectory: with the directory, and whose it is.
    """
    if os.geteuid() != 0:
        return
    at = "/"
    ahead = [part for part in path.split("/") if part][::-1]
    hops = 0
    while True:
        _require_own(at, path)
        if not ahead:
            return
        part = ahead.pop()
        if part == "..":
            at = os.path.dirname(at)
            continue
        inner = os.path.join(at, part)
        if os.path.islink(inner):
            if os.lstat(inner).st_uid != 0:
                raise UnsafeDirectory(
                    f"cannot work as root in {path}: the symlink {inner} belongs to "
                    f"{user_name(os.lstat(inner).st_uid)}, who could let it point elsewhere; "
                    "make it as root"
                )
            hops += 1
            if hops > 40:
                raise UnsafeDirectory(f"{path} is a loop of symlinks: fix {inner}")
            target = os.readlink(inner)
            at = "/" if target.startswith("/") else at
            ahead += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        elif part != ".":
            at = inner


def is_own(path: str) -> bool:
    """Whether there is something at a path that belongs to this user."""
    try:
        return os.lstat(path).st_uid == os.geteuid()
    except OSError:
        return False


def make_trusted(path: str) -> None:
    """Make a directory, and those above it that are missing, with mode 755 whatever the umask.

    Args:
        path: its absolute path.

    Raises:
        UnsafeDirectory: another user could swap what is made; as `require_trusted`.
    """
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    require_trusted(above)
    for name in path[len(above.rstrip("/")) + 1 :].split("/") if path != above else ():
        above = os.path.join(above, name)
        with suppress(FileExistsError):
            os.mkdir(above)
            os.chmod(above, 0o755)


def _require_own(directory: str, path: str) -> None:
    status = os.stat(directory)
    if status.st_uid != 0:
        whose = f"belongs to {user_name(status.st_uid)}"
        remedy = f"chown root {directory}"
    elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        whose, remedy = "is writable by everybody", f"chmod o-w {directory}"
    elif status.st_mode & stat.S_IWGRP and status.st_gid and not status.st_mode & stat.S_ISVTX:
        whose = f"is writable by the group {_group(status.st_gid)}"
        remedy = f"chmod g-w {directory}"
    else:
        return
    raise UnsafeDirectory(
        f"cannot work as root in {path}: {directory} {whose}, who could swap what is in it for a "
        f"link to elsewhere; {remedy} (the releases themselves may belong to any user)"
    )


def user_name(number: int) -> str:
    """A user's name; the number itself where it has none."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
