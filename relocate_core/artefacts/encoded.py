r"""Paths whose slashes are spelled otherwise: `\/` in JSON and JavaScript, `%2F` in URLs.

    {"command": "\/srv\/app\/bin\/tool"}
    http+unix://%2Fsrv%2Fapp%2Frun%2Fdocker.sock/info

It is replaced in the same spelling, whatever language is around it. All other spellings are those
of languages (`quoting`); where the language of a file is not known, `spellings` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .prefix import PLAIN, Prefixes

# What may be before: nothing that makes it the tail of a longer path; in a URL also the escape of
# a delimiter, and the slashes behind the scheme of another URL.
_BEFORE_ESCAPED = rb"(?:(?<![\w.~%+)}\-\\\x80-\xff])|(?<=:\\/\\/)|(?<=:\\/\\/\\/))"
_BEFORE_QUOTED = (
    rb"(?:(?<![\w.~%+)}\-\x80-\xff])|(?<=%(?i:3A|3D|20|22|27|2C|26|3B))"
    rb"|(?<=%(?i:3A%2F%2F))|(?<=%(?i:3A%2F%2F%2F)))"
)
# What may follow: the next component, or an end.
_END = rb"[\s\"'`<>,;:()\[\]{}&?#|=]|\Z"
_AFTER_ESCAPED = rb"(?=\\?/|\\[\"'nrt]|" + _END + rb")"
_AFTER_QUOTED = rb"(?=/|%(?i:2F|22|27|26|2C|3A|3B|23|3F)|" + _END + rb")"


class _Spelling(NamedTuple):
    spell: Callable[[bytes], bytes]
    before: bytes
    after: bytes


def _escaped(path: bytes) -> bytes:
    return path.replace(b"/", b"\\/")


def _quoted(path: bytes) -> bytes:
    from urllib.parse import quote_from_bytes  # not above: a worker needs it for nothing else

    return quote_from_bytes(path, safe="").encode()


def _quoted_lower(path: bytes) -> bytes:
    return re.sub(rb"%..", lambda match: match[0].lower(), _quoted(path))


_SPELLINGS = (
    _Spelling(_escaped, _BEFORE_ESCAPED, _AFTER_ESCAPED),
    _Spelling(_quoted, _BEFORE_QUOTED, _AFTER_QUOTED),
    _Spelling(_quoted_lower, _BEFORE_QUOTED, _AFTER_QUOTED),
)


def replace(data: bytes, prefixes: Prefixes) -> tuple[bytes, str]:
    """`data` with each path in such a spelling replaced, and why one is left (empty if none)."""
    if b"\\/" not in data and b"%2" not in data:
        return data, ""
    reason = ""
    for spelling in _SPELLINGS:
        new = spelling.spell(prefixes.new)
        for old in prefixes.old:
            spelled = spelling.spell(old)
            if spelled not in data:
                continue
            begin = spelling.before + re.escape(spelled)
            known = spelling.before + re.escape(new) + spelling.after + b"|"
            pattern = (known if old in prefixes.new else b"") + b"(" + begin + spelling.after + b")"
            unknown = re.search(begin + rb"(?=[%\\*$])(?!" + spelling.after + b")", data)
            # In a package, and where it is a single word, it is rather a URL or its pattern.
            unsure = prefixes.is_doubtful(old) or old.count(b"/") == 1
            if unsure or (spelling.spell is _escaped and not PLAIN.match(prefixes.new)):
                unknown = unknown or re.search(pattern, data)
            else:
                data = b"".join(_replaced(re.compile(pattern), data, new))
            if unknown and not reason:
                shown = spelled.decode(errors="backslashreplace")
                reason = f"{shown} in it may refer to the virtualenv or not: check it by hand"
    return data, reason


def _replaced(pattern: re.Pattern[bytes], data: bytes, new: bytes) -> Iterator[bytes]:
    end = 0
    for match in pattern.finditer(data):
        if match[1] is not None:
            yield data[end : match.start()]
            yield new
            end = match.end()
    yield data[end:]
