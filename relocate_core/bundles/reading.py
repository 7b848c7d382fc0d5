"""Reading a file that is to be packed: its content, and what packing needs to know of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from ..artefacts.elf import MAGIC, needs
from ..errors import TreeChanged
from ..relocation.hidden import hidden_reference, may_hide
from ..relocation.scan import WHOLE
from ..system import files
from ..virtualenvs.packages import holds_packages
from .index import Found
from .tree import Tree

_PIECE = 1 << 20


def read(tree: Tree, path: str) -> tuple[Found, Iterator[bytes]]:
    """A file of a virtualenv: what is found in it, and its content in pieces.

    Args:
        tree: the virtualenv.
        path: the file's, in it.

    Raises:
        TreeChanged: while the pieces are taken, it is another one.
    """
    parent, _, name = path.rpartition("/")
    file = files.open_file(tree.descent.open(parent), name)
    try:
        if os.fstat(file).st_size > WHOLE:
            found = _large(tree, path, file)
            pieces = _again(tree, path, found)
        else:
            data = files.read_whole(file)
            found, pieces = found_in(tree, path, data), iter((data,))
        head = os.pread(file, 8, 0)
        if head.startswith(MAGIC):
            found = found._replace(compiled=True, needs=needs(file))
        if not found.reference:
            found = found._replace(hidden=_hidden(tree, path, head, file))
        return found, pieces
    finally:
        os.close(file)


def found_in(tree: Tree, path: str, data: bytes) -> Found:
    """What is found in a content that is at hand."""
    reference = tree.needles.are_in(path, data)
    return Found(len(data), hashlib.sha256(data).hexdigest(), reference)


def _large(tree: Tree, path: str, file: int) -> Found:
    """A file too large to hold in memory: read once to know it, and once more to pack it."""
    digest, size, reference, tail = hashlib.sha256(), 0, False, b""
    wanted = tree.needles.of(path, os.pread(file, 8, 0))
    keep = max(map(len, wanted), default=1) - 1
    for piece in _pieces(file):
        digest.update(piece)
        size += len(piece)
        reference = reference or any(needle in tail + piece for needle in wanted)
        tail = piece[-keep:] if keep else b""
    return Found(size, digest.hexdigest(), reference)


def _again(tree: Tree, path: str, known: Found) -> Iterator[bytes]:
    found = hashlib.sha256()
    with files.directory_of(tree.root, path) as (directory, name):
        file = files.open_file(directory, name)
    try:
        for piece in _pieces(file):
            found.update(piece)
            yield piece
    finally:
        os.close(file)
    if found.hexdigest() != known.sha256:
        raise TreeChanged(
            f"cannot pack {os.path.join(tree.name, path)}: it changed meanwhile; "
            "stop what writes into the virtualenv and run again"
        )


def _hidden(tree: Tree, path: str, head: bytes, file: int) -> str:
    """Why a reference cannot be edited, for example in a compressed file; "" without any."""
    in_packages = holds_packages(path.rpartition("/")[0])
    if not (tree.needles.plain and head and may_hide(head[0], in_packages)):
        return ""
    return hidden_reference(file, tree.needles.plain) or ""


def _pieces(file: int) -> Iterator[bytes]:
    """The whole of an open file."""
    os.lseek(file, 0, os.SEEK_SET)
    while piece := os.read(file, _PIECE):
        yield piece
