"""Whether an unpacked bundle still has what its manifest says, and nothing else.

The evidence are times: those of all files and directories are the bundle's, and whoever adds,
removes or writes a file changes one of them. Nothing is read, so this costs a fraction of a walk.
"""

from __future__ import annotations

import os

from ..archives.tar import LINK, Refused
from ..system import files
from ..virtualenvs.manifest import PLACE, RECORD
from ..virtualenvs.manifest_reader import Manifest


def is_untouched(root: int, known: Manifest) -> bool:
    """Whether nothing has been changed in a bundle since it was unpacked, but by a relocation.

    Args:
        root: descriptor of the virtualenv.
        known: its manifest.
    """
    time = known.head.time
    top = {PLACE, RECORD}
    cursor = files.DirectoryCursor(root)
    parent, directory = "", cursor.open("")
    try:
        for row in known.rows():
            above, _, name = row.path.rpartition("/")
            if not above:
                top.add(name)
            if above != parent:
                parent, directory = above, cursor.open(above)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if row.kind != LINK and int(status.st_mtime) != row.mtime(time):
                return False
        # An unpacked archive does not set the time of the directory that it was unpacked into.
        return all(name in top or name.startswith(files.TEMPORARY) for name in os.listdir(root))
    except (FileNotFoundError, NotADirectoryError, Refused):
        return False
    finally:
        cursor.close()
