"""The names in an archive: which one is taken, what it is, and where among them the virtualenv is.

A name is taken once, also in the form in which a file system that folds case or accents would
compare it.
"""

from __future__ import annotations

import os
import unicodedata

from ..archives import tar
from ..archives.tar import DIRECTORY, FILE, HARD_LINK, Refused, printable

_LONGEST_NAME = 255


class Names:
    """The names so far.

    Args:
        most: how many there may be.
        longest: of how many bytes a path may be.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._most = most
        self._longest = longest
        # Every name, in the form that a file system may take for the same, and what it is.
        self._known: dict[str, tuple[str, str]] = {}

    def claim(self, name: str, base: str, kind: str, member: str | None = None) -> None:
        """Take a name that is not there yet, nor one that only looks different."""
        length = len(base) if base.isascii() else len(os.fsencode(base))
        whole = len(name) if name.isascii() else len(os.fsencode(name))
        if length > _LONGEST_NAME or whole > self._longest:
            raise Refused("has a longer name than the system allows", name)
        key = _folded(name)
        known = self._known.get(key)
        if known is not None:
            other, what = known
            if other == name and member not in (None, name):
                raise Refused(f"lies in {printable(name)}, which is a {_called(what)}", member)
            if other == name:
                raise Refused("stands in it twice", name)
            raise Refused(
                f"differs from {printable(other)} only in case or in the form of its accents", name
            )
        self._known[key] = (name, kind)
        if len(self._known) > self._most:
            raise Refused(f"it holds more than {self._most:,} files and directories")

    def linked(self, name: str, target: str) -> str:
        """The file that a hard link points to."""
        other, kind = self._known.get(_folded(target), ("", ""))
        if other != target or target == name:
            where = printable(target)
            raise Refused(f"is a hard link to {where}, which does not stand before it", name)
        if kind != FILE:
            raise Refused(f"is a hard link to {printable(target)}, a {_called(kind)}", name)
        return target

    def top(self) -> str:
        """The directory with the virtualenv: the top, or the only directory in a row of only
        ones."""
        if not self._known:
            raise Refused("it is empty", advice=tar.DAMAGED)
        kinds = dict(self._known.values())
        inner: dict[str, list[str]] = {}
        for name in kinds:
            inner.setdefault(name.rpartition("/")[0], []).append(name)
        top = ""
        while True:
            base = f"{top}/" if top else ""
            marks = [f"{base}pyvenv.cfg", f"{base}bin/activate"]
            for name in marks:
                if kinds.get(name, FILE) != FILE:
                    raise Refused(
                        f"is a {_called(kinds[name])}, where every virtualenv has a file", name
                    )
            if any(name in kinds for name in marks):
                return top
            only = inner.get(top, [])
            if len(only) != 1 or kinds[only[0]] != DIRECTORY:
                raise Refused(
                    "it holds no virtualenv: there is neither pyvenv.cfg nor bin/activate at its "
                    "top or in a single directory there",
                    advice="pack a virtualenv's directory and nothing else",
                )
            top = only[0]


def _folded(name: str) -> str:
    """The form in which a file system that folds case or accents would compare a name."""
    if name.isascii():
        lower = name.lower()
        return name if lower == name else lower
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _called(kind: str) -> str:
    return "hard link" if kind == HARD_LINK else kind
