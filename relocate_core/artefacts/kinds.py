"""Which kind a file is of, and rewriting it accordingly.

To add a kind, write its module and put it into `KINDS`, in front of those that would claim its
files too. Files too large to be rewritten in memory are rewritten in pieces, cut where no reference
can be cut in two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from mmap import PROT_READ, mmap
from typing import NamedTuple

from . import (
    activation,
    binaries,
    bytecode,
    encoded,
    metadata,
    scripts,
    spellings,
    text,
    uneditable,
)
from .prefix import Prefixes
from .quoting import Unquotable

KINDS = (bytecode, binaries, uneditable, activation, scripts, metadata, text)

_FINDER = re.compile(r"__editable___[^/]*_finder\.py\Z")

_TEXTS = (activation, scripts, metadata, text)
"""The kinds that may be left with what is no sure reference; binaries report it themselves."""

PIECE = 4 << 20


class Rewritten(NamedTuple):
    """What became of one file.

    Attributes:
        kind: which kind claimed it.
        data: its new content; the old one where nothing could be changed.
        problem: why a reference is left in it, or an empty string.
    """

    kind: str
    data: bytes
    problem: str = ""


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> Rewritten:
    """Move a file's references from the old prefixes to the new one.

    Args:
        path: relative to the virtualenv; its name decides about the kind.
        data: the whole content.
        prefixes: what to replace by what.

    Returns:
        The new content, which is as it was where there is no reference. Never raises for a file's
        content: what cannot be rewritten is left, and `problem` gives the reason.
    """
    kind = next(kind for kind in KINDS if kind.claims(path, data))
    try:
        new, problem = kind.rewrite(path, data, prefixes), ""
        if kind in _TEXTS:
            new, problem = encoded.replace(new, prefixes)
            problem = problem or prefixes.doubt(data) or spellings.left(new, prefixes)
        return Rewritten(kind.KIND, new, problem)
    except bytecode.Unreadable as error:
        return Rewritten(kind.KIND, data, f"unreadable bytecode: {error}")
    except binaries.NoRoom as error:
        return Rewritten(kind.KIND, error.data, str(error))
    except (uneditable.Uneditable, Unquotable) as error:
        return Rewritten(kind.KIND, data, str(error))


def written_at_installation(path: str, data: bytes) -> bool:
    """Whether an installer writes such a file itself, wherever a package is from."""
    written = activation.claims(path, data) or metadata.claims(path, data)
    return written or _FINDER.match(path.rpartition("/")[2]) is not None


class LargeFile:
    """One large file, rewritten piece by piece.

    Binaries are cut behind a NUL and text behind a newline, so a piece is rewritten like a small
    file of the same kind.

    Args:
        file: descriptor of the file, at its beginning.
        prefixes: what to replace by what.
    """

    def __init__(self, file: int, prefixes: Prefixes) -> None:
        self.file = file
        self.prefixes = prefixes
        head = os.pread(file, 16, 0)
        self.binary = binaries.claims("", head)
        self.kind = binaries.KIND if self.binary else text.KIND
        self.problem = ""
        self.changed = False
        self.usable = True
        """Whether the new content may take the place of the old one."""
        self._facts = binaries.Facts(True, frozenset())
        self._done = 0
        what = uneditable.what_is(head)
        if self.binary:
            with mmap(file, 0, prot=PROT_READ) as data:
                self._facts = binaries.facts_of(data, prefixes)
        elif what or not prefixes.plain:
            self._refuse(f"it is {what}" if what else "it is too large for the quoting of the path")

    def _refuse(self, reason: str) -> None:
        self.usable = False
        self.problem = self.problem or reason

    def pieces(self) -> Iterator[bytes]:
        """The new content; sets `changed`, `usable` and `problem` on the way."""
        end = b"\0" if self.binary else b"\n"
        rest = b""
        while True:
            block = os.read(self.file, PIECE)
            cut = block.rfind(end) + 1 if block else 0
            if block and not cut:
                rest += block
                if len(rest) > 4 * PIECE:
                    yield self._rewrite(rest)
                    self.usable = self.usable and self.binary
                    self.problem = self.problem or "a line or string in it is too long to look at"
                    rest = b""
                continue
            yield self._rewrite(rest + block[:cut])
            rest = block[cut:]
            if not block:
                return

    def _rewrite(self, piece: bytes) -> bytes:
        if self.binary:
            new, reason = binaries.rewrite_strings(piece, self.prefixes, self._facts, self._done)
            self._done += len(piece)
        else:
            if b"\0" in piece:
                self._refuse("it is a binary file of unknown format")
            new, reason = encoded.replace(self.prefixes.replace(piece), self.prefixes)
            reason = reason or self.prefixes.doubt(piece) or spellings.left(new, self.prefixes)
        self.problem = self.problem or reason
        self.changed = self.changed or new != piece
        return new
