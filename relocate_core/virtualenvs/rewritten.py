"""What of an unpacked bundle was rewritten since it was packed, so that the rest can be verified.

Relocation and `reinitialize` write some files again, which then differ from the
manifest. `.relocation/ledger.json` has what they are instead, and `.relocation/originals` their old
content by its digest, which a later release may want. Both are brought up to date before the files
are, as a RECORD is: a killed run leaves nothing that is not accounted for.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..system import files
from ..system.transaction import LINK, DryRun, Transaction
from .manifest import PLACE

NAME = f"{PLACE}/ledger.json"
ORIGINALS = f"{PLACE}/originals"
EMPTY = b"{}\n"
"""What a bundle is packed with."""
KIND = "ledger"
POINTS, HASHES, GONE = "link:", "sha256:", "gone"
"""What a value begins with, and the one of what was removed."""
_LONGEST = 32 << 20
_NO_LINKS = (errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV)


def read(root: int) -> dict[str, str]:
    """What each file that was rewritten is now: its SHA-256, or what the symlink points to.

    Args:
        root: descriptor of the virtualenv.

    Returns:
        Digests as `sha256:...`, targets as `link:...`, and `gone`, by path; empty where there is
        no ledger.
    """
    try:
        with files.directory_of(root, NAME) as (directory, name):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_size > _LONGEST:
                return {}
            data, _ = files.read(directory, name)
        known = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: value for path, value in known.items() if isinstance(value, str)}


def update(root: int, transaction: Transaction) -> None:
    """Write the ledger with all that is rewritten so far; keep the old contents.

    Args:
        root: descriptor of the virtualenv; nothing is done where it has no ledger.
        transaction: what is about to be put in place.
    """
    if not transaction.items or isinstance(transaction, DryRun):
        return
    try:
        status = _status(root)
    except OSError:
        return
    known = read(root)
    for path, item in sorted(transaction.items.items()):
        if item.kind == LINK:
            known[path] = f"{POINTS}{_target(root, path, item.temporary)}"
            continue
        old, new, _ = transaction.digests(path, "sha256")
        if path not in known:
            keep(root, path, old.hex())
        known[path] = f"{HASHES}{new.hex()}"
    transaction.write(NAME, KIND, _document(known), status)


def add(root: int, entries: Mapping[str, str]) -> None:
    """Write entries into the ledger of a tree that nobody relies on yet.

    Args:
        root: descriptor of the virtualenv; nothing is done where it has no ledger.
        entries: what is to be known, by path, as `read` gives it.
    """
    try:
        status = _status(root)
    except OSError:
        return
    transaction = Transaction(root, NAME, durable=False)
    transaction.write(NAME, KIND, _document({**read(root), **entries}), status)
    transaction.commit(lambda item: 0, 0)


def _document(known: Mapping[str, str]) -> bytes:
    return json.dumps(known, indent=0, sort_keys=True).encode() + b"\n"


def _status(root: int) -> Any:
    with files.directory_of(root, NAME) as (directory, name):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _target(root: int, path: str, temporary: str) -> str:
    with files.directory_of(root, path) as (directory, _):
        return os.readlink(temporary, dir_fd=directory)


def keep(root: int, path: str, digest: str) -> None:
    """Give a file's old content a second name, by its digest in hexadecimal.

    A file system without hard links does without: the release then gives that file to none.

    Raises:
        OSError: the disk is full or fails.
    """
    made = files.directory_of(root, ORIGINALS)
    with suppress(FileExistsError, FileNotFoundError), made as (directory, name):
        os.mkdir(name, 0o755, dir_fd=directory)
    place, parent = (
        files.directory_of(root, f"{ORIGINALS}/{digest}"),
        files.directory_of(root, path),
    )
    try:
        with place as (directory, name), parent as (old_directory, old):
            os.link(
                old, name, src_dir_fd=old_directory, dst_dir_fd=directory, follow_symlinks=False
            )
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT, *_NO_LINKS):
            raise
