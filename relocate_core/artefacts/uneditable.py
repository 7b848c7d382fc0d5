"""Files that cannot be edited: compressed, length-prefixed or in UTF-16. They are reported.

The one exception is a zip application (`.pyz`, PEP 441): the shebang in front of the archive is
plain text, and readers of zip files expect something there.
"""

from __future__ import annotations

import re

from . import scripts, text
from .prefix import Prefixes
from .quoting import RAW

KIND = "archive"

_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xff\xfe", "in UTF-16"),
    (b"\xfe\xff", "in UTF-16"),
)
# Short strings of marshal, MessagePack and the like have their length in front of them, and no NUL.
_CONTROL = re.compile(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]")
_UNKNOWN = "a binary file of unknown format"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_FIRST = frozenset(magic[0] for magic, _ in _MAGIC)
_ZIP_BEHIND_SHEBANG = re.compile(rb"#!.{0,4096}?\nPK\x03\x04", re.S)


class Uneditable(Exception):
    """The file holds references that cannot be rewritten; the message has what it is."""


def what_is(data: bytes) -> str | None:
    """What kind of uneditable file this is, by its first bytes; None where it may be edited."""
    if data and data[0] in _FIRST:
        for magic, name in _MAGIC:
            if data.startswith(magic):
                return name
    if data[:2] == b"#!" and _ZIP_BEHIND_SHEBANG.match(data):
        return "a zip archive"
    if b"\0" not in data:
        return None
    return "a pickle" if _PICKLE.match(data) else _UNKNOWN


def claims(path: str, data: bytes) -> bool:
    """Whether the file is of a kind that cannot be edited."""
    return what_is(data) is not None or _has_lengths(path, data)


def _has_lengths(path: str, data: bytes) -> bool:
    """Whether a file without a NUL is no text: its strings may have their lengths before them."""
    if data[:2] == b"#!" or (
        _CONTROL.search(data) is None and (b"\n" in data or text.is_utf8(data))
    ):
        return False
    return text.language_of(path, data) is RAW


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """The archive behind a relocated shebang.

    Raises:
        Uneditable: for all other files that hold a reference.
    """
    if data[:2] != b"#!":
        raise Uneditable(f"it is {what_is(data) or _UNKNOWN}")
    head, rest = scripts.rewrite_shebang(data, prefixes)
    return head + rest
