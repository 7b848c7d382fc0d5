"""Reading and writing a path inside quoted text: shells, Python, JSON and their kin.

A path of plain characters is spelled the same everywhere, and replacing it is a search in bytes.
Any other path - with a space, a quote, a `$`, a letter outside ASCII - has to be read as the
language reads it and written as the language needs it at that very place: `'/srv/my app'`,
`"/srv/my app"` and `/srv/my\\ app` are three spellings of one word in a shell.

A `Language` cuts text into units: what a few bytes mean, and in which state (bare, single
quotes, ...) they are. References are then searched in what the text means, and the new path is
written in the spelling of the state it begins in, so the quotes around it stay as they were and
going there and back gives back every byte.

Sources of the rules: POSIX Shell Command Language 2.2, tcsh(1) "Lexical structure", fish's
"Quotes", about_Quoting_Rules of PowerShell, "Lexical analysis" of Python, RFC 8259.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from .prefix import AFTER, Prefixes, url_path


class Unquotable(Exception):
    """The new path cannot be written at this place in this language."""


class Unit(NamedTuple):
    """A run of bytes that means `meaning` and is spelled by the next `length` bytes."""

    meaning: bytes
    length: int
    state: str


Reader = Callable[[bytes], Iterator[Unit]]
Writer = Callable[[bytes, str], bytes]
Finder = Callable[[bytes], Iterator["re.Match[bytes]"]]


class Language(NamedTuple):
    """How one language is read and written."""

    read: Reader
    """Cut text into units; their lengths add up to the text's."""
    write: Writer
    """Spell a path in a state; raises `Unquotable` where that state cannot hold it."""


def replace(data: bytes, prefixes: Prefixes, language: Language) -> bytes:
    """`data` with each reference replaced, in the spelling of its place.

    Raises:
        Unquotable: the new prefix cannot be written at one of the places.
    """
    if prefixes.plain:
        return prefixes.replace(data)
    data = _replace_urls(data, prefixes)
    return substitute(data, language, prefixes.matches, prefixes.new)


def substitute(data: bytes, language: Language, find: Finder, new: bytes) -> bytes:
    """`data` with what `find` matches in its meaning replaced by `new`, spelled as needed there."""
    units = list(language.read(data))
    meaning = b"".join(unit.meaning for unit in units)
    spans = [match.span() for match in find(meaning)]
    pieces, end = [], 0
    for start, stop, state in _raw_spans(units, spans):
        pieces += [data[end:start], language.write(new, state)]
        end = stop
    return b"".join((*pieces, data[end:]))


def _replace_urls(data: bytes, prefixes: Prefixes) -> bytes:
    """Replace `file://` URLs, in which a path is percent-encoded whatever is around it."""
    for compact in (False, True):
        new = url_path(prefixes.new, compact)
        for old in (url_path(path, compact) for path in prefixes.old):
            pattern = re.compile(
                rb'("url":")?(file://(?:localhost)?/?)(%s)' % re.escape(old) + AFTER
            )

            def moved(match: re.Match[bytes], new: bytes = new, compact: bool = compact) -> bytes:
                ours = compact == (match[1] is not None) and not _is_new(match, new)
                return (match[1] or b"") + match[2] + new if ours else match[0]

            data = pattern.sub(moved, data)
    return data


def _is_new(match: re.Match[bytes], new: bytes) -> bool:
    """Whether the URL has the new prefix already, which may contain the old one."""
    return re.compile(re.escape(new) + AFTER).match(match.string, match.start(3)) is not None


def _raw_spans(units: list[Unit], spans: list[tuple[int, int]]) -> Iterator[tuple[int, int, str]]:
    """Where the matches in the meaning are in the text, each with the state it begins in."""
    wanted = iter(spans)
    span = next(wanted, None)
    meant = spelled = 0
    begin: int | None = None
    state = ""
    for number, unit in enumerate(units):
        size = len(unit.meaning)
        while span is not None:
            if begin is None and meant <= span[0] < meant + size:
                begin, state = spelled + _offset(unit, span[0] - meant), unit.state
            if begin is None or not meant < span[1] <= meant + size:
                break
            stop = spelled + _offset(unit, span[1] - meant)
            if unit.state != state:
                stop += _way_back(units, number + 1, state)
            yield begin, stop, state
            begin, span = None, next(wanted, None)
        meant += size
        spelled += unit.length


def _way_back(units: list[Unit], number: int, state: str) -> int:
    """The length of the quotes that return into `state`, which a path's last letter has left.

    So `'"'"'` goes as a whole where a path in single quotes ends with one.
    """
    length = 0
    for unit in units[number:]:
        if unit.state == state:
            break
        if unit.meaning:
            raise Unquotable("the path begins and ends in different quotes")
        length += unit.length
    return length


def _offset(unit: Unit, meant: int) -> int:
    """How far into the spelling of `unit` the first `meant` bytes of its meaning reach."""
    if len(unit.meaning) == unit.length:
        return meant
    return unit.length if meant else 0


def _units(pattern: re.Pattern[bytes], data: bytes, at: int, end: int) -> Iterator[re.Match[bytes]]:
    while at < end:
        match = pattern.match(data, at, end)
        if match is None or match.end() == at:
            raise AssertionError("a language's pattern has to match every byte")
        yield match
        at = match.end()


# --- shells -------------------------------------------------------------------------------------

_SHELL_SPECIAL = re.compile(rb"([^A-Za-z0-9._/+@:,=%\x80-\xff-])")


class _Shell(NamedTuple):
    """A shell's states; each pattern is a list of alternatives that match any byte."""

    bare: re.Pattern[bytes]
    single: re.Pattern[bytes]
    double: re.Pattern[bytes]
    brace: re.Pattern[bytes]
    """Inside `"${...}"`."""
    write: Writer

    def read(self, data: bytes) -> Iterator[Unit]:
        """Walk the states; quotes mean nothing themselves, an escape means its character."""
        stack = ["bare"]
        at = 0
        while at < len(data):
            state = stack[-1]
            pattern = getattr(self, "bare" if state == "sub" else state)
            match = pattern.match(data, at)
            text = match[0]
            meaning = text
            if match.lastgroup == "escape":
                meaning = match["escape"]
            elif match.lastgroup == "quote":
                meaning = b""
                kind = "single" if text == b"'" else "double"
                if state == kind:
                    stack.pop()
                else:
                    stack.append(kind)
            elif match.lastgroup == "open":
                stack.append("brace" if text == b"${" else "sub")
            elif (state, text) in (("sub", b")"), ("brace", b"}")):
                stack.pop()
            yield Unit(
                meaning, len(text), match.lastgroup if match.lastgroup == "comment" else state
            )
            at = match.end()


def _shell(bare: bytes, single: bytes, double: bytes, write: Writer) -> Language:
    """Build a shell from the escapes of its three states; the rest they have in common."""
    comment = rb"(?P<comment>(?<![^\s;&|(])\#[^\n]*)"
    shell = _Shell(
        re.compile(
            bare + rb"|(?P<quote>['\"])|(?P<open>\()|" + comment + rb"|[^\\`'\"()\#]+|.", re.S
        ),
        re.compile(single + rb"|(?P<quote>')|[^\\']+|.", re.S),
        re.compile(double + rb"|(?P<quote>\")|(?P<open>\$[({])|[^\\`\"$]+|.", re.S),
        re.compile(double + rb"|(?P<quote>\")|(?P<open>\$[({])|[^\\`\"$}]+|.", re.S),
        write,
    )
    return Language(shell.read, write)


def _write_posix(path: bytes, state: str) -> bytes:
    if state == "comment":
        return path
    if state == "single":
        return path.replace(b"'", b"'\"'\"'")
    if state == "brace" and re.search(rb"['}<>]", path):
        raise Unquotable("shells differ in how they read such a path inside ${...}")
    if state in ("double", "brace"):
        return re.sub(rb'([$`"\\])', rb"\\\1", path)
    return _SHELL_SPECIAL.sub(rb"\\\1", path)


def _write_csh(path: bytes, state: str) -> bytes:
    if state == "comment":
        return path
    # History is expanded inside both kinds of quotes; a backslash before `!` is the one escape
    # that both know, and everything else has to leave the quotes and come back.
    if state == "single":
        return path.replace(b"'", b"'\"'\"'").replace(b"!", b"\\!")
    if state in ("double", "brace"):
        return re.sub(rb'[$`"]+', lambda match: b"\"'" + match[0] + b"'\"", path).replace(
            b"!", b"\\!"
        )
    return _SHELL_SPECIAL.sub(rb"\\\1", path)


def _write_fish(path: bytes, state: str) -> bytes:
    if state == "comment":
        return path
    if state == "single":
        # Out of the quotes and back: what shlex.quote writes, and with it venv and uv.
        return path.replace(b"\\", b"\\\\").replace(b"'", b"'\"'\"'")
    if state in ("double", "brace"):
        return re.sub(rb'([$"\\])', rb"\\\1", path)
    return _SHELL_SPECIAL.sub(rb"\\\1", path)


# PowerShell takes typographic quotes for quotes: U+2018 to U+201B are `'`, U+201C to U+201E `"`.
_PS_SINGLE = rb"'|\xe2\x80[\x98-\x9b]"
_PS_DOUBLE = rb'[`$"]|\xe2\x80[\x9c-\x9e]'


def _write_powershell(path: bytes, state: str) -> bytes:
    if state == "single":
        return re.sub(b"(" + _PS_SINGLE + b")", rb"\1\1", path)
    if state in ("double", "brace"):
        return re.sub(b"(" + _PS_DOUBLE + b")", rb"`\1", path)
    return path if state == "comment" else re.sub(rb"([^\w./:-])", rb"`\1", path)


SH = _shell(rb"\\(?P<escape>.)", rb"(?!)(?P<escape>)", rb'\\(?P<escape>[$`"\\])', _write_posix)
CSH = _shell(rb"\\(?P<escape>.)", rb"\\(?P<escape>!)", rb"\\(?P<escape>!)", _write_csh)
FISH = _shell(rb"\\(?P<escape>.)", rb"\\(?P<escape>['\\])", rb'\\(?P<escape>[$"\\])', _write_fish)
POWERSHELL = _shell(
    rb"`(?P<escape>.)",
    b"(?P<escape>" + _PS_SINGLE + b")(?P=escape)",
    b"`(?P<escape>" + _PS_DOUBLE + b"|.)",
    _write_powershell,
)


# --- nushell and batch --------------------------------------------------------------------------

_NU_LITERAL = re.compile(
    rb"(?P<raw>r(?P<sharps>\#+)'(?P<body>.*?)'(?P=sharps))|'[^'\n]*'|[^r'\n]+|.", re.S
)


def _read_nu(data: bytes) -> Iterator[Unit]:
    for match in _units(_NU_LITERAL, data, 0, len(data)):
        if match["raw"]:
            head = len(match["sharps"]) + 2
            yield Unit(b"'", head, "quote")
            yield Unit(match["body"], len(match["body"]), "raw" + match["sharps"].decode())
            yield Unit(b"'", head - 1, "quote")
        elif match[0][:1] == b"'" and len(match[0]) > 1:
            yield Unit(b"'", 1, "quote")
            yield Unit(match[0][1:-1], len(match[0]) - 2, "single")
            yield Unit(b"'", 1, "quote")
        else:
            yield Unit(match[0], len(match[0]), "bare")


def _write_nu(path: bytes, state: str) -> bytes:
    if state == "single" and b"'" in path:
        raise Unquotable("a nushell string in single quotes cannot hold a single quote")
    if state.startswith("raw") and b"'" + state[3:].encode() in path:
        raise Unquotable("the path would end this nushell raw string")
    return path


def _read_batch(data: bytes) -> Iterator[Unit]:
    for match in _units(re.compile(rb"%%|[^%]+|%"), data, 0, len(data)):
        meaning = b"%" if match[0] == b"%%" else match[0]
        yield Unit(meaning, len(match[0]), "bare")


NU = Language(_read_nu, _write_nu)
BATCH = Language(_read_batch, lambda path, state: path.replace(b"%", b"%%"))


# --- Python and JSON ----------------------------------------------------------------------------

_PY_TOKEN = re.compile(
    rb"(?P<comment>\#[^\n]*)"
    rb"|(?<![A-Za-z0-9_])(?P<kind>[rRbBuUfFtT]{0,2})(?P<quote>'''|\"\"\"|'|\")"
    rb"|[^\#'\"rRbBuUfFtT]+|.",
    re.S,
)
_PY_ESCAPE = re.compile(
    rb"\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<w>[0-9a-fA-F]{8})"
    rb"|(?P<o>[0-7]{1,3})|(?P<plain>[\\'\"])|(?P<other>.))|(?P<brace>\{\{|\}\})|[^\\{}]+|.",
    re.S,
)
_PY_CONTROL = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\n": b""}
_PY_ENDS = {
    quote: re.compile(
        rb"(?:\\.|" + (rb"[^\\]" if len(quote) == 3 else rb"[^\\\n]") + rb")*?" + quote, re.S
    )
    for quote in (b"'", b'"', b"'''", b'"""')
}


def _read_python(data: bytes) -> Iterator[Unit]:
    """Cut Python source (of any version) into units. A state is `kind quote`, such as `rb'`."""
    at = 0
    while at < len(data):
        match = _PY_TOKEN.match(data, at)
        assert match is not None
        at = match.end()
        if not match["quote"]:
            yield Unit(match[0], len(match[0]), "comment" if match["comment"] else "code")
            continue
        yield Unit(match[0], len(match[0]), "code")
        end = _PY_ENDS[match["quote"]].match(data, at)
        if end is None:  # not closed: an apostrophe in text that only looks like Python
            continue
        stop = end.end() - len(match["quote"])
        state = (match["kind"].lower() + match["quote"]).decode()
        yield from _read_literal(data, at, stop, state)
        yield Unit(match["quote"], len(match["quote"]), "code")
        at = end.end()


def _read_literal(data: bytes, at: int, end: int, state: str) -> Iterator[Unit]:
    if "r" in state:
        yield Unit(data[at:end], end - at, state)
        return
    for match in _units(_PY_ESCAPE, data, at, end):
        text = match[0]
        group = match.lastgroup
        meaning = text
        if group in ("x", "u", "w", "o"):
            code = int(match[group], 8 if group == "o" else 16)
            meaning = bytes([code & 0xFF]) if "b" in state else _character(code)
        elif group == "plain":
            meaning = match["plain"]
        elif group == "other":
            meaning = _PY_CONTROL.get(match["other"], text)
        elif group == "brace" and "f" in state:
            meaning = text[:1]
        yield Unit(meaning, len(text), state)


def _character(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogateescape" if 0xDC80 <= code <= 0xDCFF else "replace")


def _python_writer(*, ascii_only: bool) -> Writer:
    def write(path: bytes, state: str) -> bytes:
        if state in ("code", "comment"):
            return _readable(path)
        kind, quote = state.rstrip("'\""), state[-1].encode()
        if "r" in kind:
            beyond = not path.isascii() if "b" in kind else _readable(path) != path
            if quote in path or path.endswith(b"\\") or beyond:
                raise Unquotable("a raw string cannot hold every letter of the path")
            return path
        path = path.replace(b"\\", b"\\\\").replace(quote, b"\\" + quote)
        if "f" in kind:
            path = re.sub(rb"([{}])", rb"\1\1", path)
        if "b" in kind:
            return re.sub(rb"[\x80-\xff]", lambda match: b"\\x%02x" % match[0][0], path)
        return _ascii(path) if ascii_only else _readable(path)

    return write


def _readable(path: bytes) -> bytes:
    """`path` with escapes for bytes that are no UTF-8: Python refuses a source that holds them."""
    return re.sub(
        "[\udc80-\udcff]",
        lambda match: f"\\u{ord(match[0]):x}",
        path.decode("utf-8", "surrogateescape"),
    ).encode()


def _ascii(path: bytes) -> bytes:
    """`path` as `ascii()` spells it: escapes for everything outside ASCII."""
    text = path.decode("utf-8", "surrogateescape")
    return text.encode("ascii", "backslashreplace")


_JSON_UNIT = re.compile(
    rb"\\u(?P<u>[0-9a-fA-F]{4}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2})?)|\\(?P<escape>.)|[^\\]+|\\", re.S
)


def _read_json(data: bytes) -> Iterator[Unit]:
    for match in _units(_JSON_UNIT, data, 0, len(data)):
        meaning = match[0]
        if match.lastgroup:
            with suppress(ValueError):
                meaning = json.loads(b'"' + match[0] + b'"').encode("utf-8", "surrogateescape")
        yield Unit(meaning, len(match[0]), "string")


def _write_json(path: bytes, state: str) -> bytes:
    return json.dumps(path.decode("utf-8", "surrogateescape"))[1:-1].encode()


PYTHON = Language(_read_python, _python_writer(ascii_only=False))
PYTHON_ASCII = Language(_read_python, _python_writer(ascii_only=True))
JSON = Language(_read_json, _write_json)
RAW = Language(lambda data: iter([Unit(data, len(data), "raw")]), lambda path, state: path)
