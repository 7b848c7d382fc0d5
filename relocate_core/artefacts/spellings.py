r"""Recognizing a path in whatever spelling, to report one that is left.

    \\srv\\app  &#x2F;srv&#x2F;app  \u002fsrv\u002fapp  %252Fsrv%252Fapp  /srv//app  /srv/my\ app

Such a path is not rewritten: where the language of a file is not known, it may be text as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from .prefix import PLAIN, Prefixes, possible_reference, starts_path


def needles(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """What a file has in it where it holds one of the paths in some spelling of its slashes.

    Args:
        paths: the paths.
    """
    found: set[bytes] = set()
    for path in paths:
        word = _longest_word(path)
        run = max(re.findall(rb"[A-Za-z0-9._/-]+", path), key=len)
        if len(word) >= _LONG_WORD:
            found.add(word)
        else:
            inner = run.lstrip(b"/") if b"/" in run.lstrip(b"/") else run
            found.update(inner.replace(b"/", separator) for separator in _SEPARATORS)
    return tuple(sorted(one for one in found if not any(o != one and o in one for o in found)))


_LONG_WORD = 5
"""Shorter words are in too many files to look at all of them."""
_SEPARATORS = (
    *(
        b"/",
        b"//",
        b"/./",
        b"\\/",
        b"\\\\/",
        b"\\",
        b"\\\\",
        b"%2F",
        b"%2f",
        b"%252F",
        b"%252f",
        b"=2F",
    ),
    *(b"\\u002f", b"\\u002F", b"\\x2f", b"\\x2F", b"&#x2F;", b"&#x2f;", b"&#47;"),
)


def left(data: bytes, prefixes: Prefixes) -> str:
    r"""Why a path that is spelled in another way is left in rewritten data.

    Such as `/srv/my\ app` and `/srv/my%20app` where the language of the file is not known,
    `\u002fsrv\u002fapp`, `&#x2F;srv&#x2F;app`, `\srv\app`, and `/srv//app`.
    """
    for old in prefixes.old:
        if PLAIN.match(old) and (old.count(b"/") == 1 or prefixes.is_doubtful(old)):
            continue  # a word behind some separator
        core = _longest_word(old)
        if core in prefixes.new:  # what is there already is most of what there is
            data = data.replace(prefixes.new, b"\0")
        for first, last in _around(data, core, _LONGEST_SPELLING * len(old)):
            for match in _spelled(old, prefixes.new).finditer(data, first, last):
                text = match[1]
                if text is None or text.lstrip(b"/") == old.lstrip(b"/"):
                    continue
                if not text.startswith(b"/") or starts_path(data, match.start(1)) is not False:
                    return possible_reference(match)
    return ""


def _around(data: bytes, word: bytes, reach: int) -> Iterator[tuple[int, int]]:
    """What is around each place with a word, no byte of it twice."""
    first = last = 0
    at = data.find(word) if word else -1
    while at >= 0:
        if at - reach > last:
            yield first, last
            first = at - reach
        last = at + reach
        at = data.find(word, at + len(word))
    yield first, last


_LONGEST_SPELLING = 8
"""How many bytes a character takes at most, all its escapes taken together."""
_SEPARATOR = (
    rb"(?:/+(?:\./+)*|\\+/|\\+|%(?:25)*2[Ff]|\\+u002[Ff]|\\+x2[Ff]|\\+057|&#(?:x2[Ff]|0*47);|=2F)"
)
_NAMED = {b"&": b"amp", b"<": b"lt", b">": b"gt", b'"': b"quot", b"'": b"apos"}


@lru_cache(maxsize=64)
def _spelled(old: bytes, new: bytes) -> re.Pattern[bytes]:
    """A pattern whose group 1 is the old path in whatever spelling; None on the new one."""
    end = rb"(?![A-Za-z0-9_~-]|[.][A-Za-z0-9_-])"
    pattern = rb"(?<![A-Za-z0-9_.~%+)}\\-])(" + _any_spelling(old) + rb")" + end
    if old in new:
        pattern = _any_spelling(new) + end + rb"|" + pattern
    return re.compile(pattern)


def _any_spelling(path: bytes) -> bytes:
    text = path.decode("utf-8", "surrogateescape").lstrip("/")
    return rb"(?:" + _SEPARATOR + rb")+" + b"".join(map(_any_letter, text))


def _any_letter(letter: str) -> bytes:
    """A pattern of how a character may be spelled."""
    if letter == "/":
        return _SEPARATOR
    plain = letter.encode("utf-8", "surrogateescape")
    if re.fullmatch(rb"[A-Za-z0-9_.]", plain):
        return rb"\\*\." if plain == b"." else plain
    code = ord(letter)
    hexadecimal = b"".join(rb"%%(?:25)*(?i:%02X)" % byte for byte in plain)
    choices = [rb"\\*" + re.escape(plain), hexadecimal, rb"&#(?:x(?i:%x)|%d);" % (code, code)]
    if code < 0x80:
        choices.append(rb"\\+(?:x(?i:%02x)|%03o)|=(?i:%02X)" % (code, code, code))
    units = letter.encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2].hex().encode() for at in range(0, len(units), 2))
    choices.append(b"".join(rb"\\+u(?i:%s)" % pair for pair in pairs))
    if plain in _NAMED:
        choices.append(b"&" + _NAMED[plain] + b";")
    return b"(?:" + b"|".join(choices) + b")"


def _longest_word(path: bytes) -> bytes:
    """What all spellings of a path have in common."""
    return max(re.findall(rb"[A-Za-z0-9_]+", path), key=len, default=b"")
