"""A Python in an archive as its makers publish it, unpacked for as long as it is packed.

Such are the `install_only` archives of python-build-standalone. The archive may be hostile, and
packing a Python runs it: root does so only after the archive was compared with the operator's hash.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..bundles.unpack import STRONG, unpack_published
from ..errors import CannotRun, InvalidPath, RelocateError
from .prefix import has_program

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def is_archive(path: str) -> bool:
    """Whether a path is that of an archive, and not of a prefix."""
    return path.endswith(_ENDINGS) and not os.path.isdir(path)


@contextmanager
def unpacked(archive: str, digests: Mapping[str, str] | None) -> Iterator[str]:
    """The prefix of the Python in an archive, which is removed after the block.

    Args:
        archive: the archive's path.
        digests: what it has to hash to, by algorithm.

    Raises:
        CannotRun: root would run what nobody has given the hash of.
        InvalidPath: there is no Python in it.
        RelocateError: it cannot be unpacked, or whatever the block raises: messages refer to the
            archive, and not to where it was unpacked.
    """
    if os.geteuid() == 0 and not STRONG & {name.lower() for name in digests or {}}:
        raise CannotRun(
            f"{archive} is not packed: root runs nothing from an archive whose SHA-256 was not "
            "given; give it as source_hash (--source-hash)"
        )
    with tempfile.TemporaryDirectory(prefix="virtualenv-tools-") as directory:
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                unpack_published(archive, descriptor, digests=digests)
            finally:
                os.close(descriptor)
            yield _prefix_in(directory, archive)
        except RelocateError as error:
            error.args = (str(error).replace(directory, archive),)
            raise


def _prefix_in(directory: str, archive: str) -> str:
    """The prefix: the top, or what is alone in it; `install` in an archive with its build too."""
    top = directory
    while not has_program(top):
        entries = sorted(os.listdir(top))
        if "PYTHON.json" in entries and "install" in entries:
            entries = ["install"]
        below = os.path.join(top, entries[0]) if len(entries) == 1 else ""
        if not below or os.path.islink(below) or not os.path.isdir(below):
            raise InvalidPath(
                f"there is no Python in {archive}: neither its top nor a single directory there "
                "has bin/python3 in it; name an archive of a Python's prefix"
            )
        top = below
    return top
