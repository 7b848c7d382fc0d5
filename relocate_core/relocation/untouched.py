"""Whether an unpacked bundle still has what its manifest says, and nothing else.

The evidence are times: those of all files and directories are the bundle's, and whoever adds,
removes or writes a file changes one of them. Nothing is read, so this costs a fraction of a walk.

All members of a bundle have one fixed time, and tar gives it to the files. Data files need that of
the build, as a deploy gives it: a web server would take a browser's copy of the last release's
file for right.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from ..archives.tar import LINK
from ..system import files
from ..virtualenvs.manifest import FIXED_TIME, PLACE, RECORD
from ..virtualenvs.manifest_reader import Manifest


class Times(NamedTuple):
    """What the times of an unpacked bundle show."""

    untouched: bool
    """Whether nothing has been changed in it since it was unpacked, but by a relocation."""
    late: Sequence[str] = ()
    """The data files that do not have the time of the build yet."""
    time: int = 0
    """The time of the build, in seconds since 1970."""

    def settle(self, root: int) -> None:
        """Give it to them."""
        for path in self.late:
            os.utime(path, (self.time, self.time), dir_fd=root, follow_symlinks=False)


def times(root: int, known: Manifest) -> Times:
    """Compare the times of all files and directories of an unpacked bundle with its manifest.

    Args:
        root: descriptor of the virtualenv.
        known: its manifest.

    Raises:
        Refused: the manifest is damaged.
    """
    wanted, untouched = known.head.time, True
    late: list[str] = []
    top = {PLACE, RECORD}
    cursor = files.DirectoryCursor(root)
    parent, directory = "", cursor.open("")
    try:
        for row in known.rows():
            above, _, name = row.path.rpartition("/")
            if not above:
                top.add(name)
            try:
                if above != parent:
                    parent, directory = above, cursor.open(above)
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                untouched, parent = False, "/"
                continue
            if row.kind == LINK:
                continue
            mtime = int(status.st_mtime)
            if mtime != row.mtime(wanted):
                if mtime == FIXED_TIME and stat.S_ISREG(status.st_mode):
                    late.append(row.path)
                else:
                    untouched = False
        # An unpacked archive does not set the time of the directory that it was unpacked into.
        for name in os.listdir(root):
            untouched = untouched and (name in top or name.startswith(files.TEMPORARY))
        return Times(untouched, late, wanted)
    finally:
        cursor.close()
