"""Where the symlinks of a tree point to, known before any of them is made."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..archives.tar import WITHOUT, Refused, printable
from ..virtualenvs.interpreter import PROGRAM_NAME

# As many symlinks as the kernel follows for one path (path_resolution(7)).
_MOST_HOPS = 40
# virtualenv before 20 made them, which ended with Python 3.9.
_LIBRARY = re.compile(
    r"(?:bin/libpypy[\w.-]*|(?:lib|include)/(?:python(?:2\.7|3\.[4-9]m?)|pypy)\b.*)\Z"
)


def is_base(path: str, target: str) -> bool:
    """Whether an absolute symlink out of the virtualenv points to its base Python.

    That is the interpreter in `bin`; for virtualenv 16 also parts of the standard library, and for
    PyPy its shared library, which are then at the same place below the base as in the virtualenv.

    Args:
        path: the symlink, relative to the virtualenv.
        target: what it points to.
    """
    directory, _, name = path.rpartition("/")
    if directory == "bin" and PROGRAM_NAME.match(name):
        return bool(PROGRAM_NAME.match(os.path.basename(target)))
    return (
        os.path.normpath(target) == target
        and bool(_LIBRARY.match(path))
        and "/site-packages" not in path
        and target.endswith("/" + path)
    )


@dataclass
class Work:
    """How many steps may still be taken along symlinks, for all those of a tree together."""

    left: int = 1_000_000


def fault(
    path: str,
    links: Mapping[str, str],
    prefixes: tuple[str, ...] = (),
    work: Work | None = None,
) -> str | None:
    """Why a symlink must not be made; None where it stays in the tree, dangling or not.

    It is followed as the kernel does it, through all other symlinks of the tree.

    Args:
        path: the symlink, relative to the tree's top, in its plain form.
        links: all symlinks of the tree and their targets.
        prefixes: absolute paths that the tree itself was at: symlinks to them stay inside.
        work: what following it may cost.
    """
    work = work or Work()
    at = path.split("/")[:-1]
    ahead: list[str] = []
    link = path
    for _ in range(_MOST_HOPS):
        target = links[link]
        if target.startswith("/"):
            inside = _inside(link, target, prefixes)
            if inside is None:
                if not is_base(link, target):
                    return f"points to {printable(target)}, out of the virtualenv"
                further = any(part not in ("", ".") for part in ahead)
                return f"points further than the interpreter {printable(link)}" if further else None
            at, target = [], inside
        ahead += reversed(target.split("/"))
        work.left -= len(ahead)
        if work.left < 0:
            return "and the symlinks before it take too long to follow"
        while ahead:
            part = ahead.pop()
            if part == "..":
                if not at:
                    return f"points to {printable(links[path])}, out of the virtualenv"
                at.pop()
            elif part not in ("", "."):
                at.append(part)
                link = "/".join(at)
                if link in links:
                    at.pop()
                    break
        else:
            return None
    return "points in a circle"


def below(target: str, prefixes: tuple[str, ...]) -> str | None:
    """What of an absolute path comes after a prefix; None where none fits."""
    for prefix in prefixes:
        if target == prefix or target.startswith(prefix + "/"):
            return target[len(prefix) + 1 :]
    return None


def _inside(path: str, target: str, prefixes: tuple[str, ...]) -> str | None:
    """Where in the virtualenv an absolute symlink points to; None where that is out of it.

    So is the base Python of a virtualenv that was made in its own directory, by a path that begins
    there: `../python/bin/python3 -m venv .` writes `/srv/app/../python/bin/python3`.
    """
    if is_base(path, target) and below(os.path.normpath(target), prefixes) is None:
        return None
    return below(target, prefixes)


def relative(path: str, target: str, prefixes: tuple[str, ...]) -> str:
    """A symlink's target, made relative where it is absolute and in the tree itself.

    Args:
        path: the symlink, relative to the tree's top.
        target: what it points to.
        prefixes: absolute paths that the tree itself was at.
    """
    if not target.startswith("/"):
        return target
    inside = _inside(path, target, prefixes)
    return target if inside is None else "../" * path.count("/") + (inside.lstrip("/") or ".")


def require_closed(links: Mapping[str, str]) -> None:
    """Refuse symlinks that leave an interpreter, which has none to any other Python.

    Args:
        links: all symlinks of its bundle and their targets.

    Raises:
        Refused: one is absolute, or leaves it.
    """
    work = Work()
    for path, target in links.items():
        reason = fault(path, links, (), work) if target[:1] != "/" else None
        if target[:1] == "/":
            reason = f"points to {printable(target)}, out of the interpreter"
        if reason is not None:
            reason = reason.replace("out of the virtualenv", "out of the interpreter")
            raise Refused(reason, path, advice=WITHOUT)


def inside(
    links: Mapping[str, str], top: str, prefixes: Callable[[str], tuple[str, ...]]
) -> dict[str, str]:
    """The symlinks of an archive as they should be made: those to its old place are relative.

    Args:
        links: all symlinks and their targets.
        top: the virtualenv's directory among them.
        prefixes: finds out at which absolute paths the virtualenv in `top` was.

    Raises:
        Refused: one leaves the virtualenv.
    """
    base = f"{top}/" if top else ""
    own = {path[len(base) :]: target for path, target in links.items() if path.startswith(base)}
    known = prefixes(top) if any(target.startswith("/") for target in own.values()) else ()
    work = Work()
    made: dict[str, str] = {}
    for path, target in own.items():
        reason = fault(path, own, known, work)
        if reason is not None:
            raise Refused(reason, base + path, advice=WITHOUT)
        made[base + path] = relative(path, target, known)
    return made
