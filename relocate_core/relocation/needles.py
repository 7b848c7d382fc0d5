"""What to search a file for, to know whether it contains a prefix, however it is spelled there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..artefacts import binaries, spellings
from ..virtualenvs.packages import holds_packages

# What in a package may be configuration of this virtualenv.
CONFIGURATION = (
    *(".json", ".ini", ".cfg", ".conf", ".toml", ".yaml", ".yml", ".env", ".xml", ".properties"),
)


class Needles:
    """Byte strings of which one at least is in every file that contains one of some paths.

    Args:
        paths: the prefixes; none has no needles.

    Attributes:
        plain: those of nearly all files. A path of plain characters is its own needle; of any
            other, every spelling has the longest run of plain characters in common.
    """

    def __init__(self, paths: Iterable[bytes]) -> None:
        paths = tuple(paths)
        self.plain = _plain(paths)
        self._spelled = spellings.needles(paths)
        self._pieces = _plain(binaries.first_pieces(paths))

    def of(self, path: str, head: bytes) -> tuple[bytes, ...]:
        """Those of a file.

        In a package nobody writes a path in another spelling. Configuration has such spellings, and
        it is elsewhere or shows in its name: nearly all files are spared the search.

        Args:
            path: the file's, relative to the virtualenv.
            head: its first eight bytes at least.
        """
        if binaries.claims(path, head):
            return self._pieces
        in_package = holds_packages(path.rpartition("/")[0])
        return self.plain if in_package and not path.endswith(CONFIGURATION) else self._spelled

    def are_in(self, path: str, data: bytes) -> bool:
        """Whether a file contains one of the paths.

        Args:
            path: the file's, relative to the virtualenv.
            data: all of its bytes.
        """
        return any(needle in data for needle in self.of(path, data[:8]))


def _plain(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    runs = {max(re.findall(rb"[A-Za-z0-9._/-]+", path), key=len) for path in paths}
    return tuple(sorted(run for run in runs if not any(o != run and o in run for o in runs)))
