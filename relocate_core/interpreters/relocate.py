"""Relocating an interpreter: the files that its manifest lists, and the bytecode made of them.

What is compiled was packed to find itself, wherever it is, and is left as it is: the prefix in
libpython is only where it looks if it does not. What is rewritten are the recorded options of its
build (`_sysconfigdata`, `Makefile`, `.pc`, `python3-config`), which compile modules for it, and the
shebangs of its scripts.
"""

from __future__ import annotations

import os
import re
import stat

from ..artefacts import elf
from ..artefacts.prefix import Prefixes
from ..relocation.packaged import Packaged
from ..relocation.records import Records
from ..relocation.relocate import Relocation
from ..relocation.rewriter import Rewriter
from ..system import files
from ..system.transaction import Transaction
from ..virtualenvs import rewritten
from ..virtualenvs.manifest import Head

_ITSELF = re.compile(r"(?:bin/(?:python|pypy|libpypy)|lib/libpython)[^/]*\Z")
_BUILT_FOR = (
    "it is compiled, and contains the path that its Python was built for: what it reads there, it "
    "does not find here"
)


def relocate(path: str, head: Head, new: str, *old: str) -> Relocation:
    """Let an unpacked interpreter that nobody relies on yet refer to its new place.

    Args:
        path: its directory.
        head: that of its manifest.
        new: the absolute path that its files should refer to.
        old: those that they refer to, where it was relocated before.

    Returns:
        What was rewritten, and which references are left.
    """
    prefixes = dict.fromkeys((*old, *head.prefixes))
    report = Relocation(path, new, [prefix for prefix in prefixes if prefix != new])
    if not report.old_prefixes:
        return report
    root = files.open_root(path)
    try:
        encoded = Prefixes(tuple(map(os.fsencode, report.old_prefixes)), os.fsencode(new))
        transaction = Transaction(root, path, durable=False)
        packaged = Packaged(root, Records(root, (), encoded), encoded)
        rewriter = Rewriter(root, packaged, transaction, report, ())
        for name in head.references:
            status = os.stat(name, dir_fd=root, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                rewriter.link(name)
            elif not _is_compiled(root, name):
                rewriter.file(name)
            elif not _ITSELF.match(name):
                report.problems.append((name, _BUILT_FOR))
        rewriter.follow_sources()
        rewritten.update(root, transaction)
        transaction.commit(lambda item: 0, 0)
    finally:
        os.close(root)
    report.problems += head.uneditable
    report.files.sort()
    report.problems.sort()
    return report


def _is_compiled(root: int, path: str) -> bool:
    with files.directory_of(root, path) as (directory, name):
        file = files.open_file(directory, name)
        try:
            return os.pread(file, 4, 0) == elf.MAGIC
        finally:
            os.close(file)
