"""What counts as a reference to a prefix in bytes, and replacing it.

A reference is the prefix as whole path components. `/srv/app` is none in `/srv/app2`,
`/srv/app-old` or `/mnt/srv/app`; it is one in `-L/srv/app/lib`, `file:///srv/app`, and in the
source text `"\\n/srv/app"`. Where the new prefix contains the old one (`/srv/app` to
`/srv/app/v2`), text that already has the new one is left alone, so a second run changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

# A path of these characters is spelled the same in every shell, literal, URL and document that the
# core knows, so that no quoting has to be considered. `%` and `~` are absent on purpose: ini files
# and shells give them a meaning.
PLAIN = re.compile(rb"[A-Za-z0-9._/+@:,=-]*\Z")

# What may be before the prefix: nothing that would make it the tail of a longer path ...
_NAME = rb"A-Za-z0-9_.~%+\\\-/)}\x80-\xff"
_FREE = re.compile(rb"[^" + _NAME + rb"]\Z")
# ... save a compiler flag (-L/srv), a shell or systemd default (:-/srv, =-/srv), an escape in
# source text (\n/srv), and the slashes of a URL (file:///srv).
_FREE_AFTER_ALL = re.compile(
    rb"(?:(?:\A|[^" + _NAME + rb"])-[A-Za-z]?|\\[abfnrtv0]|://(?:localhost)?)\Z"
)
# What may follow: nothing that would make the last component longer. A full stop ends a sentence
# unless a name or a slash follows it; `$`, `{`, `*` and `\ ` begin something that cannot be known.
AFTER = rb"(?!\.*[A-Za-z0-9_+@%~\-\x80-\xff]|\.+/|\$[A-Za-z_{(]|[*?{]|\\ )"


def starts_path(data: bytes, at: int) -> bool:
    """Whether a path may begin at offset `at`, so that it is no tail of a longer one."""
    if at == 0 or _FREE.match(data, at - 1, at):
        return True
    return _FREE_AFTER_ALL.search(data[max(0, at - 12) : at]) is not None


class Prefixes:
    """The old prefixes of a virtualenv and its new one, ready for matching.

    Attributes:
        old: the prefixes to replace, as bytes, longest first (one may contain another).
        new: the prefix to write, as bytes.
        inside: for each old prefix the offsets at which the new one contains it.
        prompt: (old name, new name) where activation scripts show the virtualenv's base name and
            no prompt was chosen by hand; else None.
    """

    def __init__(
        self, old: tuple[bytes, ...], new: bytes, prompt: tuple[bytes, bytes] | None = None
    ) -> None:
        self.old = tuple(sorted(set(old) - {new}, key=lambda path: (-len(path), path)))
        self.new = new
        self.prompt = prompt
        self.inside = {path: _occurrences(path, new) for path in self.old}
        self.plain = all(PLAIN.match(path) for path in (*self.old, new))
        self._pattern = reference_pattern(self.old, new)

    @property
    def arguments(self) -> tuple[tuple[bytes, ...], bytes, tuple[bytes, bytes] | None]:
        """What to build the same object from in another process."""
        return self.old, self.new, self.prompt

    def matches(self, data: bytes) -> Iterator[re.Match[bytes]]:
        """Each reference in `data` that is spelled as the plain path, in order."""
        for match in self._pattern.finditer(data):
            if match[1] is not None and starts_path(data, match.start()):
                yield match

    def replace(self, data: bytes) -> bytes:
        """`data` with each reference, spelled as the plain path, replaced."""
        pieces, end = [], 0
        for match in self.matches(data):
            pieces += [data[end : match.start()], self.new]
            end = match.end()
        return b"".join((*pieces, data[end:])) if pieces else data


def _occurrences(path: bytes, text: bytes) -> tuple[int, ...]:
    return tuple(at for at in range(len(text)) if text.startswith(path, at))


def reference_pattern(old: Iterable[bytes], new: bytes) -> re.Pattern[bytes]:
    """A pattern whose group 1 is one of `old` as a whole; group 1 is None on the new prefix.

    The new prefix is tried first at every place, which is what keeps a reference that is already
    right from being matched by an old prefix that the new one contains. What is before the
    match is left to `starts_path`: a pattern that begins with a literal is searched much faster.
    """
    old = list(old)
    if not old:
        return re.compile(rb"(?!)()")
    pattern = b"(" + b"|".join(map(re.escape, old)) + b")" + AFTER
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
