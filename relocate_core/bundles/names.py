"""The names in an archive: which are taken, what they are, and where the virtualenv is."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress

from ..archives.tar import (
    DAMAGED,
    DIRECTORY,
    FILE,
    HARD_LINK,
    TOO_LARGE,
    WITHOUT,
    Refused,
    printable,
)
from ..system import files

LONGEST_PATH = 4000
"""Bytes in a path, of the kernel's 4096: with room for names that are put beside a file."""
_LONGEST_NAME = 255
# The deepest real trees have some twenty levels.
_DEEPEST = 100
_LONGEST_CONFIG = 1 << 20
# A name, and how a file system that folds case or accents would find it as well.
_LOWER = "\u00e9a".encode()
_SAME = ("\u00e9A".encode(), "e\u0301a".encode())


class Names:
    """The names so far.

    Args:
        most: how many there may be.
        longest: of how many bytes a path may be.
        folds: whether names that differ only in case, or in the form of their accents, are one to
            the file system.
    """

    def __init__(self, most: int, longest: int, folds: bool) -> None:
        self._most = most
        self._longest = longest
        self._folds = folds
        # Every name, in the form that the file system compares, and what it is.
        self._known: dict[str, tuple[str, str]] = {}

    def claim(self, name: str, base: str, kind: str, member: str | None = None) -> bool:
        """Take a name; False where the same kind of thing has it already.

        Args:
            name: the path.
            base: its last component.
            kind: what it is.
            member: the member that it is a directory of, where it is not one itself.

        Raises:
            Refused: the name is too long or too deep, or something else has it.
        """
        length = len(base) if base.isascii() else len(os.fsencode(base))
        whole = len(name) if name.isascii() else len(os.fsencode(name))
        if length > _LONGEST_NAME or whole > self._longest:
            raise Refused("has a longer name than the system allows", name, advice=WITHOUT)
        key = fold(name) if self._folds else name
        known = self._known.get(key)
        if known is None:
            self._known[key] = (name, kind)
            if len(self._known) > self._most:
                raise Refused(
                    f"it contains more than {self._most:,} files and directories",
                    advice=TOO_LARGE,
                )
            return True
        other, what = known
        if other != name:
            raise Refused(
                f"differs from {printable(other)} only in case or in the form of its accents, "
                "which the file system here takes for the same name",
                name,
                advice="deploy it to a file system that is case-sensitive, or pack it again "
                "without one of them",
            )
        if member not in (None, name):
            raise Refused(f"lies in {printable(name)}, which is a {_called(what)}", member)
        if what != kind:
            raise Refused(f"is in it twice, as a {_called(what)} and as a {_called(kind)}", name)
        return False

    def linked(self, name: str, target: str) -> str:
        """The file that a hard link points to."""
        other, kind = self._known.get(fold(target) if self._folds else target, ("", ""))
        if other != target or target == name:
            where = printable(target)
            raise Refused(f"is a hard link to {where}, which is not in it before that", name)
        if kind != FILE:
            raise Refused(f"is a hard link to {printable(target)}, a {_called(kind)}", name)
        return target

    def top(self) -> str:
        """The virtualenv's directory: the top, or the only one in a row of only directories.

        What macOS puts beside a directory is not counted.
        """
        if not self._known:
            raise Refused("it is empty", advice=DAMAGED)
        kinds = dict(self._known.values())
        inner: dict[str, list[str]] = {}
        for name in kinds:
            parent, _, base = name.rpartition("/")
            if not _is_stranger(base):
                inner.setdefault(parent, []).append(name)
        top = ""
        while True:
            base = f"{top}/" if top else ""
            marks = [f"{base}pyvenv.cfg", f"{base}bin/activate"]
            for name in marks:
                if kinds.get(name, FILE) != FILE:
                    raise Refused(
                        f"is a {_called(kinds[name])}, where every virtualenv has a file",
                        name,
                        advice="pack it again with a file there",
                    )
            if any(name in kinds for name in marks):
                return top
            only = inner.get(top, [])
            if len(only) != 1 or kinds[only[0]] != DIRECTORY:
                raise Refused(
                    "it contains no virtualenv: there is neither pyvenv.cfg nor bin/activate at "
                    "its top or in a single directory there",
                    advice="pack a virtualenv's directory and nothing else",
                )
            top = only[0]

    def require_interpreter(self) -> None:
        """Refuse what would make an interpreter take its library from elsewhere."""
        for name, _ in self._known.values():
            if name.rpartition("/")[2] == "pyvenv.cfg" and name.count("/") < 2:
                raise Refused("is in the bundle of an interpreter, which has none", name)


def _is_stranger(name: str) -> bool:
    """Whether macOS puts a file or directory of that name beside others."""
    return name.startswith("._") or name in (".DS_Store", "__MACOSX")


def fold(name: str) -> str:
    """The form in which a file system that folds case or accents would compare a name."""
    if name.isascii():
        lower = name.lower()
        return name if lower == name else lower
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def folds_names(directory: int) -> bool:
    """Whether names that differ only in case or accents are one to a directory's file system.

    Args:
        directory: descriptor of the directory, where nobody else writes.
    """
    name = files.temporary_name().encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name + _LOWER, flags, 0o600, dir_fd=directory))
    try:
        for other in _SAME:
            with suppress(FileNotFoundError):
                os.stat(name + other, dir_fd=directory, follow_symlinks=False)
                return True
        return False
    finally:
        os.unlink(name + _LOWER, dir_fd=directory)


def require_depth(directory: str, member: str) -> None:
    """Refuse a directory that is too deep.

    Args:
        directory: its path.
        member: what is in it, or itself.
    """
    if directory.count("/") >= _DEEPEST:
        raise Refused(f"lies more than {_DEEPEST} directories deep", member, advice=WITHOUT)


def require_config(path: str, size: int) -> None:
    """Refuse a pyvenv.cfg that is too large to be read."""
    if size > _LONGEST_CONFIG and path.rpartition("/")[2] == "pyvenv.cfg":
        raise Refused("is too large for what it is", path)


def _called(kind: str) -> str:
    return "hard link" if kind == HARD_LINK else kind
