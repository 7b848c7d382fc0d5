"""Finding the files that name a prefix, and rewriting bytecode on the spot.

This is the part that touches every file of a tree, so it runs in several processes where there are
several cores (see `workers`), in fixed memory whatever a file's size. Bytecode is nearly all there
is to rewrite and no file of it depends on another, so it is rewritten as it is met. All other
hits are returned, for `relocate` to rewrite in an order that survives a kill.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ..artefacts import binaries, bytecode
from ..artefacts.prefix import Prefixes
from ..errors import TreeChanged
from ..system import files
from ..virtualenvs.packages import holds_packages
from .hidden import HIDDEN_FIRST, hidden_reference, may_hide
from .needles import CONFIGURATION, Needles

# Files of up to this size are rewritten in memory as a whole, larger ones as a `kinds.LargeFile`.
WHOLE = 8 << 20
_BUFFER = 1 << 18

Directory = tuple[str, list[str]]
"""A directory's path relative to the virtualenv, and the regular files in it to look at."""


class Findings(NamedTuple):
    """What became of a batch of directories. Paths are relative to the virtualenv.

    A plain tuple of plain values, as it is sent between processes.
    """

    seen: int
    """How many files were read."""
    rewritten: list[tuple[str, int]]
    """Bytecode that was (in a dry run: would be) rewritten, and which old prefix it contained."""
    hits: list[str]
    """Other files that hold a reference."""
    hidden: list[tuple[str, str]]
    """Files with a reference where it cannot be edited, and why."""
    failure: tuple[str, str, int, str] | None
    """(path, kind of error, errno, text) of what stopped the batch."""


class Scanner:
    """Looks through directories below a root.

    Args:
        root: descriptor of the virtualenv.
        prefixes: what to look for, and what to write.
        write: whether to rewrite bytecode, or only to report what would be.
        account: whether somebody keeps account of every file that is rewritten; bytecode is then
            returned like all others.
    """

    def __init__(self, root: int, prefixes: Prefixes, write: bool, account: bool = False) -> None:
        self.root = root
        self.account = account
        self.prefixes = prefixes
        self.write = write
        self.needles = Needles(prefixes.old)
        self.buffer = bytearray(_BUFFER)
        self.view = memoryview(self.buffer)
        self.buffers = [self.buffer]

    def scan(self, directories: list[Directory], take: Callable[[Findings], None]) -> None:
        """Look through these files; `take` gets the findings, even where interrupted."""
        findings = Findings(0, [], [], [], None)
        failure = None
        seen = 0
        path = name = ""
        cursor = files.DirectoryCursor(self.root)
        # What follows is done for every file of a tree, so it calls nothing that it can do without.
        needle, *_ = self.needles.plain
        buffer, buffers, find = self.buffer, self.buffers, self.buffer.find
        special = HIDDEN_FIRST | binaries.FIRST
        try:
            for path, names in directories:
                name = ""
                directory = cursor.open(path)
                simple = len(self.needles.plain) == 1 and holds_packages(path)
                for name in names:
                    seen += 1
                    file = os.open(name, files.FILE, dir_fd=directory)
                    try:
                        size = os.readv(file, buffers)
                        if (
                            simple
                            and 0 < size < _BUFFER
                            and buffer[0] not in special
                            and not name.endswith(CONFIGURATION)
                        ):
                            if find(needle, 0, size) >= 0:
                                self._hit(directory, file, path, name, size, findings)
                        elif size:
                            self._look(directory, file, path, name, size, findings)
                    finally:
                        os.close(file)
        except OSError as error:
            where = _join(path, name) if name else path
            failure = (where, "OSError", error.errno or 0, error.strerror or str(error))
        except TreeChanged as error:
            failure = (_join(path, name), "TreeChanged", 0, str(error))
        finally:
            cursor.close()
            take(findings._replace(seen=seen, failure=failure))

    def _look(
        self, directory: int, file: int, parent: str, name: str, size: int, findings: Findings
    ) -> None:
        """Look through a file of any size, of which the first `size` bytes are in the buffer."""
        if self._search(file, size, self.needles.of(_join(parent, name), bytes(self.buffer[:8]))):
            self._hit(directory, file, parent, name, size, findings)
        elif may_hide(self.buffer[0], holds_packages(parent)):
            reason = hidden_reference(file, self.needles.plain)
            if reason:
                findings.hidden.append((_join(parent, name), reason))

    def _hit(
        self, directory: int, file: int, parent: str, name: str, size: int, findings: Findings
    ) -> None:
        path = _join(parent, name)
        if not self._rewrite(directory, file, name, path, size, findings):
            findings.hits.append(path)

    def _rewrite(
        self, directory: int, file: int, name: str, path: str, size: int, findings: Findings
    ) -> bool:
        """Rewrite bytecode on the spot; False where the file is left to somebody else."""
        if self.account or not name.endswith((".pyc", ".pyo")):
            return False
        status = os.fstat(file)
        if status.st_size > WHOLE:
            return False
        if status.st_size == size:
            data = bytes(self.view[:size])
        else:
            os.lseek(file, 0, os.SEEK_SET)
            data = files.read_whole(file)
        try:
            if self.prefixes.common:
                # A constant may be the package's own text, which `packaged` decides.
                new = bytecode.rewrite_filenames(path, data, self.prefixes)
            else:
                new = bytecode.rewrite(path, data, self.prefixes)
        except bytecode.Unreadable:
            return False
        if new is None:
            return False
        if new is data or new == data:
            return True
        which = 0
        if len(self.prefixes.old) > 1:
            found = [number for number, old in enumerate(self.prefixes.old) if old in data]
            which = found[0] if len(found) == 1 else -1
        if which < 0 or self.prefixes.new in data:
            return False  # the opposite rewrite would not give it back
        # Reported before it is done: to undo what was not done does no harm.
        findings.rewritten.append((path, which))
        if self.write:
            temporary = files.write_beside(directory, file, status, (new,))
            files.put_in_place(directory, temporary, name, status, path=path)
        return True

    def _search(self, file: int, size: int, needles: tuple[bytes, ...]) -> bool:
        """Whether a needle is in the file, whose first `size` bytes are in the buffer."""
        buffer = self.buffer
        find = buffer.find
        for needle in needles:
            if find(needle, 0, size) >= 0:
                return True
        if size < _BUFFER:
            return False
        keep = max(map(len, needles)) - 1
        head = bytes(buffer[:8])
        window = self.view[keep:]
        found = False
        while size and not found:
            buffer[:keep] = buffer[len(buffer) - keep :]
            size = os.readv(file, [window])
            found = any(find(needle, 0, keep + size) >= 0 for needle in needles)
        if not found:
            buffer[:8] = head
        return found


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
