"""Text that contains the prefix: sources, wrappers, configuration, `.pc`, `.la` and `.cmake` files.

References are replaced where they are, in the quoting of the language that the file is in. The
language follows from the name or the shebang; anything else is taken as it is.
"""

from __future__ import annotations

import re

from .prefix import Prefixes
from .quoting import (
    BATCH,
    CSH,
    FISH,
    JSON,
    NU,
    POWERSHELL,
    PYTHON,
    PYTHON_ASCII,
    RAW,
    SH,
    Language,
    replace,
)

KIND = "text"

_BY_SUFFIX = {
    "py": PYTHON,
    "pyi": PYTHON,
    "pyw": PYTHON,
    "xsh": PYTHON_ASCII,
    "sh": SH,
    "bash": SH,
    "zsh": SH,
    "ksh": SH,
    "csh": CSH,
    "fish": FISH,
    "nu": NU,
    "ps1": POWERSHELL,
    "bat": BATCH,
    "json": JSON,
    "ipynb": JSON,
    "map": JSON,
}
_SHEBANG = re.compile(rb"#![^\n]*?(?:/|\s)(?:(python|pypy)|(tcsh|csh)|(fish)|(?:ba|z|da|k)?sh\b)")
# PEP 263: the source's encoding, in one of its first two lines.
COOKIE = re.compile(rb"[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)")
_UTF8 = (b"utf-8", b"utf8")


def claims(path: str, data: bytes) -> bool:
    """Whether this can be edited as text: no NUL in it, and not UTF-16."""
    return b"\0" not in data


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` with each reference replaced.

    Raises:
        Unquotable: the new prefix cannot be written at one of the places.
    """
    return replace(data, prefixes, language_of(path, data))


def language_of(path: str, data: bytes) -> Language:
    """The language that the file at `path` is in."""
    name = path.rpartition("/")[2]
    language = _BY_SUFFIX.get(name.rpartition(".")[2]) if "." in name else None
    if language is None:
        language = _by_shebang(data)
    if language is PYTHON and encoding_of(data) not in _UTF8:
        return PYTHON_ASCII
    return language


def _by_shebang(data: bytes) -> Language:
    match = _SHEBANG.match(data)
    if match is None:
        return RAW
    if match[1] or (data.startswith(b"#!/bin/sh\n") and b"\n'''exec' " in data[:1024]):
        return PYTHON
    if match[2]:
        return CSH
    return FISH if match[3] else SH


def encoding_of(data: bytes) -> bytes:
    """The encoding that a Python source declares, in lower case; UTF-8 where it declares none."""
    for line in data.split(b"\n", 2)[:2]:
        match = COOKIE.match(line)
        if match:
            return match[1].lower().replace(b"_", b"-")
    return b"utf-8"


def is_utf8(data: bytes) -> bool:
    """Whether it is text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
