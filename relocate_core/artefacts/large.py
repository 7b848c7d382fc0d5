"""Files too large to be rewritten in memory: in pieces that cut no reference in two."""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import binaries, uneditable
from .prefix import Prefixes

_PIECE = 4 << 20


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
        self.kind = binaries.KIND if self.binary else "text"
        self.problem = ""
        self.changed = False
        if not self.binary and (uneditable.what_is(head) or not prefixes.plain):
            self.problem = "it is too large for the quoting that the path needs"
            what = uneditable.what_is(head)
            if what:
                self.problem = f"it is {what}"

    def pieces(self) -> Iterator[bytes]:
        """The new content; sets `changed` and, where something is left, `problem` on the way."""
        mark = b"\0" if self.binary else b"\n"
        rest = b""
        while True:
            block = os.read(self.file, _PIECE)
            cut = block.rfind(mark) + 1 if block else 0
            if block and not cut:
                rest += block
                if len(rest) > 4 * _PIECE:
                    yield self._rewrite(rest)
                    self.problem = self.problem or "a line or string in it is too long to look at"
                    rest = b""
                continue
            yield self._rewrite(rest + block[:cut])
            rest = block[cut:]
            if not block:
                return

    def _rewrite(self, piece: bytes) -> bytes:
        if not self.binary:
            if b"\0" in piece:
                self.problem = self.problem or "it is a binary file of unknown format"
            new = piece if self.problem else self.prefixes.replace(piece)
        else:
            new, reason = binaries.rewrite_strings(piece, self.prefixes)
            self.problem = self.problem or reason
        self.changed = self.changed or new != piece
        return new
