r"""Paths whose slashes are spelled otherwise: `\/` in JSON and JavaScript, `%2F` in URLs.

    {"command": "\/srv\/app\/bin\/tool"}
    http+unix://%2Fsrv%2Fapp%2Frun%2Fdocker.sock/info

Such a path has no byte string in common with the plain one, so it has needles of its own. It is
replaced in the same spelling, whatever language is around it. All other spellings are those of
languages (`quoting`); where the language of a file is not known, `left` reports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from .prefix import PLAIN, Prefixes, possible_reference, starts_path, url_path

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


def needles(plain: Iterable[bytes]) -> tuple[bytes, ...]:
    """What a file has in it where it holds one of the paths with other slashes.

    Args:
        plain: parts of the paths, of plain characters.
    """
    slashes = (b"\\/", b"%2F", b"%2f")
    return tuple(sorted({part.replace(b"/", one) for part in plain for one in slashes} - {*plain}))


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


def left(data: bytes, prefixes: Prefixes) -> str:
    """Why a path that is not plain is left in rewritten data, in the spelling of another language.

    Where the language of a file is not known, `/srv/my\\ app` and `/srv/my%20app` are not read.
    """
    for old in prefixes.old:
        if PLAIN.match(old):
            continue
        for spell in _FOREIGN:
            spelled = spell(old)
            if spelled == old or spelled not in data:
                continue
            known = re.escape(spell(prefixes.new)) + rb"|" if old in prefixes.new else b""
            for match in re.finditer(
                known + b"(" + re.escape(spelled) + rb")(?=/|" + _END + b")", data
            ):
                if match[1] is not None and starts_path(data, match.start()) is not False:
                    return possible_reference(match)
    return ""


def _json(path: bytes) -> bytes:
    import json

    return json.dumps(path.decode("utf-8", "surrogateescape"))[1:-1].encode()


def _backslashed(path: bytes) -> bytes:
    return re.sub(rb"([^A-Za-z0-9._/+@:,=%\x80-\xff-])", rb"\\\1", path)


def _xml(path: bytes) -> bytes:
    return path.replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b">", b"&gt;")


_FOREIGN: tuple[Callable[[bytes], bytes], ...] = (
    _backslashed,
    _json,
    _xml,
    url_path,
    partial(url_path, compact=True),
)


def _replaced(pattern: re.Pattern[bytes], data: bytes, new: bytes) -> Iterator[bytes]:
    end = 0
    for match in pattern.finditer(data):
        if match[1] is not None:
            yield data[end : match.start()]
            yield new
            end = match.end()
    yield data[end:]
