"""What counts as a reference to a prefix in bytes, and replacing it.

A reference is the prefix as whole path components. `/srv/app` is none in `/srv/app2`,
`/srv/app-old` or `/mnt/srv/app`; it is one in `-L/srv/app/lib`, `file:///srv/app`, and in the
source text `"\\n/srv/app"`. Where the new prefix contains the old one (`/srv/app` to
`/srv/app/v2`), text that already has the new one is left alone, so a second run changes nothing.

Between the two is what the bytes around it do not decide: `/srv/app*`, `/srv/app%20`,
`/srv/app$NAME`, a prefix directly behind a letter outside ASCII. It is left, and `doubt` reports
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from mmap import mmap

# A path of these characters is spelled the same in every shell, literal, URL and document that the
# core knows, so that no quoting has to be considered. `%` and `~` are absent on purpose: ini files
# and shells give them a meaning.
PLAIN = re.compile(rb"[A-Za-z0-9._/+@:,=-]*\Z")

# What may be before the prefix: nothing that would make it the tail of a longer path ...
_NAME = rb"A-Za-z0-9_.~%+\\\-/)}\x80-\xff"
_FREE = re.compile(rb"[^" + _NAME + rb"]\Z")
# ... except a compiler flag (-L/srv, -isystem/srv), a shell or systemd default (:-/srv, =-/srv),
# what systemd has in front of a program (=+/srv, =-!/srv), an escape in source text (\n/srv,
# \u0022/srv), the mark of a string in a pickle of text, the colour of a terminal, a comment in XML,
# and the slashes of a URL, whose host may be empty as well (file:///srv, sqlite:////srv).
_FREE_AFTER_ALL = re.compile(
    rb"(?:(?:\A|[^"
    + _NAME
    + rb"])-[A-Za-z]{0,20}|[\s=][-@:!|]*\+[-@:!|+]*|<!--|(?:\A|\n)V|\x1b\[[0-9;]*m"
    rb"|\\[abfnrtv0]|\\u00(?:2[0267Cc]|3[ACDEacde])|:///?(?:localhost)?)\Z"
)
# Before it begins something that cannot be known: an escaped slash, an escape of a URL or of source
# text, one slash too many or too few, the name of a host, a variable that is mostly empty
# ($(DESTDIR)/srv).
_UNKNOWN_BEFORE = re.compile(
    rb"(?:(?:\A|[^/:" + _NAME + rb"])/+|:/{3,}|\\|%[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}"
    rb"|\\x[0-9A-Fa-f]{2}|\\[0-7]{3}|(?:unix|file|sqlite[\w+]*):/|\bfile://[\w.-]+"
    rb"|\$(?:ENV)?[({](?i:destdir|\w*root|\w*root_?dir)[)}])\Z"
)
_LOOK_BEFORE = 48
# Punctuation outside ASCII in UTF-8: typographic quotes, guillemets, CJK and full-width marks.
_PUNCTUATION = rb"\xc2[\xa0-\xbf]|\xe2\x80|\xe3\x80[\x80-\x9f]|\xef\xbc[\x80-\x8f\x9a-\xa0]"
# What may follow: nothing that would make the last component longer. A full stop ends a sentence
# unless a name or a slash follows it; a question mark begins a query only with a key behind it.
_LONGER = rb"\.*(?:[A-Za-z0-9_+@~\-]|(?!" + _PUNCTUATION + rb")[\x80-\xff])|\.+/"
# Here begins something that cannot be known: a pattern, a variable, an escape that is no end.
_UNKNOWN = rb"\.*%|\$[A-Za-z_{(]|[*{]|\?(?![\w.~-]+=)|\\[ \-._+@~%c-eg-mo-qsuw-zA-Z1-9\x80-\xff]"
AFTER = b"(?!" + _LONGER + b"|" + _UNKNOWN + b")"
_AFTER_UNKNOWN = b"(?!" + _LONGER + b")"
_ENDS = re.compile(AFTER)
_TEXT_AROUND = re.compile(rb"[^\s\"'`<>\0]{0,40}")

# Prefixes that anybody may write in a text: /app, /v1, /home/user, /usr/src/app.
_COMMON = re.compile(rb"(?:(?:/[a-z]+){1,3}|/[^/]{1,8})\Z")
_BELOW = re.compile(rb"(?:/[A-Za-z0-9._+@~%,=\x80-\xff-]*)*")
_INSTALLED = re.compile(rb"(?:bin|lib|lib64|libexec|include|share|etc|man|src)/.")


def starts_path(data: bytes, at: int) -> bool | None:
    """Whether a path begins at offset `at`, and is no tail of a longer one; None if unknown."""
    if at == 0 or _FREE.match(data, at - 1, at):
        return True
    before = data[max(0, at - _LOOK_BEFORE) : at]
    if _FREE_AFTER_ALL.search(before):
        return True
    if before[-1] >= 0x80:
        return None if _is_letter(before) else True
    return None if _UNKNOWN_BEFORE.search(before) else False


def _is_letter(before: bytes) -> bool:
    """Whether the last character is a letter or a digit, or not UTF-8."""
    for size in (2, 3, 4):
        try:
            return before[-size:].decode().isalnum()
        except UnicodeDecodeError:
            continue
    return True


class Prefixes:
    """The old prefixes of a virtualenv and its new one, ready for matching.

    Attributes:
        old: the prefixes to replace, as bytes, longest first (one may contain another).
        new: the prefix to write, as bytes.
        inside: for each old prefix the offsets at which the new one contains it.
        prompt: (old name, new name) where activation scripts show the virtualenv's base name and
            no prompt was chosen by hand; else None.
        common: whether one of the old prefixes is of plain words, so that a package's own text may
            contain it as well; never where all that is rewritten is known to be a reference.
    """

    def __init__(
        self,
        old: tuple[bytes, ...],
        new: bytes,
        prompt: tuple[bytes, bytes] | None = None,
        certain: bool = False,
    ) -> None:
        self.old = tuple(sorted(set(old) - {new}, key=lambda path: (-len(path), path)))
        self.new = new
        self.prompt = prompt
        self.inside = {path: _occurrences(path, new) for path in self.old}
        self.plain = all(PLAIN.match(path) for path in (*self.old, new))
        self._pattern = reference_pattern(self.old, new)
        self._loose = reference_pattern(self.old, new, _AFTER_UNKNOWN)
        self._certain = certain
        self.common = not certain and any(map(_COMMON.match, self.old))
        self._exists: Callable[[bytes], bool] | None = None

    @property
    def arguments(self) -> tuple[tuple[bytes, ...], bytes, tuple[bytes, bytes] | None, bool]:
        """What to build the same object from in another process."""
        return self.old, self.new, self.prompt, self._certain

    def everywhere(self) -> Prefixes:
        """The same for what is a path for sure, even in a file that is as its package was built."""
        return self if self._exists is None else Prefixes(*self.arguments)

    def is_doubtful(self, path: bytes) -> bool:
        """Whether a mention of an old prefix may be a package's own text."""
        return self._exists is not None and _COMMON.match(path) is not None

    def in_package(self, exists: Callable[[bytes], bool]) -> Prefixes:
        """The same for a file that is as its package was built.

        Args:
            exists: whether a path, relative to the virtualenv, is there. Of a common prefix only
                what refers to such a path is then a reference.
        """
        prefixes = Prefixes(*self.arguments)
        prefixes._exists = exists
        return prefixes

    def matches(self, data: bytes) -> Iterator[re.Match[bytes]]:
        """Each reference in `data` that is spelled as the plain path, in order."""
        for match in self._pattern.finditer(data):
            found = match[1] is not None and starts_path(data, match.start())
            if found and (self._exists is None or self._refers(match)):
                yield match

    def _refers(self, match: re.Match[bytes]) -> bool:
        """Whether a reference to a common prefix goes on to something in the virtualenv."""
        if self._exists is None or not self.is_doubtful(match[1]):
            return True
        below = _BELOW.match(match.string, match.end())
        path = below[0].rstrip(b"./").lstrip(b"/") if below else b""
        return _INSTALLED.match(path) is not None and self._exists(path)

    def replace(self, data: bytes) -> bytes:
        """`data` with each reference, spelled as the plain path, replaced."""
        pieces, end = [], 0
        for match in self.matches(data):
            pieces += [data[end : match.start()], self.new]
            end = match.end()
        return b"".join((*pieces, data[end:])) if pieces else data

    def occurrences(self, data: bytes | mmap) -> Iterator[re.Match[bytes]]:
        """Each place with an old prefix that is not plainly the beginning of a longer name."""
        return (match for match in self._loose.finditer(data) if match[1] is not None)

    def ends(self, match: re.Match[bytes]) -> bool:
        """Whether a path that begins at an occurrence is a reference for sure."""
        return _ENDS.match(match.string, match.end()) is not None and self._refers(match)

    def doubt(self, data: bytes) -> str:
        """Why something that may be a reference is not replaced; empty where nothing is."""
        for match in self.occurrences(data):
            begins = starts_path(data, match.start())
            if begins is None or (begins and not self.ends(match)):
                return possible_reference(match)
        return ""


def possible_reference(match: re.Match[bytes]) -> str:
    """The message about something that may be a reference."""
    around = _TEXT_AROUND.match(match.string, match.end())
    text = match[1] + (around[0] if around else b"")
    shown = text.decode("utf-8", "backslashreplace")
    return f"{shown} in it may refer to the virtualenv or not: check it by hand"


def _occurrences(path: bytes, text: bytes) -> tuple[int, ...]:
    return tuple(at for at in range(len(text)) if text.startswith(path, at))


def reference_pattern(old: Iterable[bytes], new: bytes, after: bytes = AFTER) -> re.Pattern[bytes]:
    """A pattern whose group 1 is one of `old` as a whole; group 1 is None on the new prefix.

    The new prefix is tried first at every place, which is what keeps a reference that is already
    right from being matched by an old prefix that the new one contains. What is before the
    match is left to `starts_path`: a pattern that begins with a literal is searched much faster.
    """
    old = list(old)
    if not old:
        return re.compile(rb"(?!)()")
    pattern = b"(" + b"|".join(map(re.escape, old)) + b")" + after
    if any(path in new for path in old):
        pattern = re.escape(new) + AFTER + b"|" + pattern
    return re.compile(pattern)


@lru_cache(maxsize=64)
def url_path(path: bytes, compact: bool = False) -> bytes:
    """`path` as it is in a `file://` URL: percent-encoded, slashes kept.

    Args:
        path: an absolute path.
        compact: encode only what the URL standard of browsers asks for, as uv does, and not
            everything that RFC 3986 allows to encode, as pip does.
    """
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(path, safe="/!$&'()*+,;=:@|[]^" if compact else "/").encode()
