"""Which kind a file is of, and rewriting it accordingly.

To add a kind, write its module and put it into `KINDS`, in front of those that would claim its
files too.
"""

from __future__ import annotations

from typing import NamedTuple

from . import activation, binaries, bytecode, metadata, scripts, text, uneditable
from .prefix import Prefixes
from .quoting import Unspeakable

KINDS = (bytecode, binaries, uneditable, activation, scripts, metadata, text)


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
        content: what cannot be rewritten is left, and `problem` says why.
    """
    kind = next(kind for kind in KINDS if kind.claims(path, data))
    try:
        return Rewritten(kind.KIND, kind.rewrite(path, data, prefixes))
    except bytecode.Unreadable as error:
        return Rewritten(kind.KIND, data, f"unreadable bytecode: {error}")
    except binaries.NoRoom as error:
        return Rewritten(kind.KIND, error.data, str(error))
    except (uneditable.Uneditable, Unspeakable) as error:
        return Rewritten(kind.KIND, data, str(error))
