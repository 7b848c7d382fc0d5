"""Executable scripts: the shebang, and whatever else in them contains the prefix.

The kernel reads a shebang up to 127 bytes, cuts it at white space and knows no quotes. A longer or
spaced interpreter needs the form that pip's distlib writes, a shell line that Python reads as a
string:

    #!/bin/sh
    '''exec' "/srv/my app/bin/python" "$0" "$@"
    ' '''

That form becomes a plain shebang again where the new path allows it - but only a form that this
module would have written itself, so that going there and back gives back every byte.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from . import text
from .prefix import PLAIN, Prefixes, reference_pattern
from .quoting import PYTHON, SH, Unquotable, replace

KIND = "script"

# Linux before 5.1, macOS and distlib agree on this: `#!`, the interpreter, its arguments, newline.
SHEBANG_LIMIT = 127

_PLAIN_LINE = re.compile(rb"#!([^\n]*?)(\r?\n|\Z)")
_ENV = re.compile(rb"[ \t]*\S*/env[ \t]+(?:-S|--split-string=)[ \t]*\Z")
_SHELL_FORM = re.compile(
    rb"#!(?P<blank>[ \t]*)/bin/sh\n"
    rb"(?P<cookie>[ \t\f]*#[^\n]*?coding[:=][^\n]*\n)?"
    rb"'''exec' (?P<env>/usr/bin/env )?(?P<command>[^\n]*?) \"\$0\" \"\$@\"\n' '''\n"
)
_READS_PYTHON = re.compile(rb"(?:py|xonsh)[^/]*\Z")
"""The interpreters for which the other form is a string in front of the program."""
_WORD = re.compile(rb"(?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|\\.|[^\s'\"\\])+")


class Shebang(NamedTuple):
    """What starts a script: the interpreter, and all that has to be kept around it."""

    lead: bytes
    """Between `#!` and the interpreter: white space, or `/usr/bin/env -S `."""
    interpreter: bytes
    arguments: bytes
    """From the white space behind the interpreter to the end of the line."""
    rest: bytes
    """The script without its shebang."""


def claims(path: str, data: bytes) -> bool:
    """Whether this is a script: it starts with `#!`."""
    return data[:2] == b"#!" and b"\0" not in data


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` with its shebang and its body relocated.

    Raises:
        Unquotable: the new prefix cannot be written at one of the places.
    """
    language = text.language_of(path, data)
    head, body = rewrite_shebang(data, prefixes)
    if language is PYTHON and not text.is_utf8(head) and text.is_utf8(data):
        raise Unquotable("Python reads no script whose shebang is not UTF-8")
    return head + replace(body, prefixes, language)


def rewrite_shebang(data: bytes, prefixes: Prefixes) -> tuple[bytes, bytes]:
    """The relocated shebang of `data` (all lines of it), and the untouched rest."""
    shell = _SHELL_FORM.match(data)
    if shell:
        return _rewrite_shell_form(data, shell, prefixes)
    line = _PLAIN_LINE.match(data)
    if line is None:
        return b"", data
    found = _find(line[1], prefixes)
    if found is None:
        return prefixes.replace(line[0]), data[line.end() :]
    lead, _, tail = found
    if lead.strip() == b'"':  # old setuptools quoted a spaced path, which no kernel reads: fix it
        tail, _, arguments = tail.partition(b'"')
        lead = b""
    else:
        tail, arguments = _cut(tail)
    rest = data[line.end() :]
    shebang = Shebang(lead, prefixes.new + tail, prefixes.replace(arguments), rest)
    if line[2] != b"\n":  # a shell would choke on CRLF as well, so nothing is gained by it
        return _plain(shebang) + line[2], rest
    head, rest = _render(shebang)
    return head, rest


def _rewrite_shell_form(
    data: bytes, match: re.Match[bytes], prefixes: Prefixes
) -> tuple[bytes, bytes]:
    head, rest = match[0], data[match.end() :]
    word = _interpreter_word(match["command"], prefixes)
    if word is None:
        return head, rest
    interpreter, old, arguments, sound = word
    lead = b"/usr/bin/env -S " if match["env"] else match["blank"]
    cookie = match["cookie"] or b""
    written = _render(Shebang(lead, interpreter, arguments, cookie + rest))
    moved = prefixes.new + interpreter[len(old) :]
    arguments = replace(arguments, prefixes, SH)
    if b"".join(written) == data:
        return _render(Shebang(lead, moved, arguments, cookie + rest))
    if not sound:  # it never ran: fix it
        command = _quoted(moved, rest) + arguments
    else:
        command = replace(match["command"], prefixes, SH)
    start = match.start("command")
    return head[:start] + command + head[match.end("command") :], rest


def _interpreter_word(
    command: bytes, prefixes: Prefixes
) -> tuple[bytes, bytes, bytes, bool] | None:
    """The interpreter of a shell form, the old prefix in it, the rest of the command.

    And whether the shell reads it so: pip's distlib quotes nothing but spaces, and those with `"`
    even where the path has such a one itself.
    """
    word = _WORD.match(command)
    meaning = b"".join(unit.meaning for unit in SH.read(word[0])) if word else b""
    found = _find(meaning, prefixes)
    if word and found and not found[0]:
        return meaning, found[1], command[word.end() :], True
    found = _find(command, prefixes)
    if found is None or found[0] not in (b"", b'"'):
        return None
    if found[0]:
        tail, _, arguments = found[2].partition(b'"')
    else:
        tail, arguments = _cut(found[2])
    return found[1] + tail, found[1], arguments, False


def _find(line: bytes, prefixes: Prefixes) -> tuple[bytes, bytes, bytes] | None:
    """Cut a line at the prefix that its interpreter is below: before, prefix, after."""
    match = reference_pattern(prefixes.old, prefixes.new).search(line)
    if match is None or match[1] is None:
        return None
    lead = line[: match.start()]
    if lead.strip() not in (b"", b'"') and not _ENV.match(lead):
        return None
    return lead, match[1], line[match.end() :]


def _cut(tail: bytes) -> tuple[bytes, bytes]:
    """`/bin/python -E` as `/bin/python` and ` -E`."""
    path = re.match(rb"\S*", tail)
    end = path.end() if path else 0
    return tail[:end], tail[end:]


def _plain(shebang: Shebang) -> bytes:
    return b"#!" + shebang.lead + shebang.interpreter + shebang.arguments


def _render(shebang: Shebang) -> tuple[bytes, bytes]:
    """The shebang in the form that its interpreter needs, and the script behind it."""
    line = _plain(shebang) + b"\n"
    fits = len(line) <= SHEBANG_LIMIT and not re.search(rb"\s", shebang.interpreter)
    if fits and (not shebang.lead.strip() or PLAIN.match(shebang.interpreter)):
        return line, shebang.rest
    if not _READS_PYTHON.search(shebang.interpreter):
        reason = "no kernel reads a first line that is so long or has a space in its path"
        raise Unquotable(f"{reason}, and its interpreter is no Python")
    cookie, rest = _take_cookie(shebang.rest)
    env, blank = (b"/usr/bin/env ", b"") if shebang.lead.strip() else (b"", shebang.lead)
    command = env + _quoted(shebang.interpreter, rest) + shebang.arguments
    return (
        b"#!"
        + blank
        + b"/bin/sh\n"
        + cookie
        + b"'''exec' "
        + command
        + b' "$0" "$@"\n'
        + b"' '''\n",
        rest,
    )


def _take_cookie(rest: bytes) -> tuple[bytes, bytes]:
    """The line that declares an encoding other than UTF-8, and the script without it.

    Python looks for it in the first two lines only, so it has to be before the `exec`.
    """
    line, newline, behind = rest.partition(b"\n")
    match = text.COOKIE.match(line)
    if match is None or match[1].lower().replace(b"_", b"-") in (b"utf-8", b"utf8"):
        return b"", rest
    return line + newline, behind


def _quoted(interpreter: bytes, rest: bytes) -> bytes:
    """The interpreter as a shell word that is no trouble inside Python's triple quotes either.

    Where several spellings are right, the one of the tool that wrote the script: distlib quotes
    with `"` and only where it has to, uv always with `'`.
    """
    if b'\nif __name__ == "__main__":' not in rest[:400]:
        if PLAIN.match(interpreter):
            return interpreter
        if not re.search(rb'[$`"\\]', interpreter):
            return b'"' + interpreter + b'"'
    return b"'" + re.sub(rb"(['\\])", _outside_single_quotes, interpreter) + b"'"


def _outside_single_quotes(match: re.Match[bytes]) -> bytes:
    return b"'\"'\"'" if match[1] == b"'" else b"'\"\\\\\"'"


def interpreter_of(head: bytes) -> bytes | None:
    """The interpreter in a script's first bytes, in either form; None if there is none."""
    shell = _SHELL_FORM.match(head)
    if shell:
        word = _WORD.match(shell["command"])
        return b"".join(unit.meaning for unit in SH.read(word[0])) if word else None
    line = _PLAIN_LINE.match(head)
    if line is None:
        return None
    words = line[1].strip().strip(b'"')
    env = re.match(rb"\S*/env[ \t]+(?:-S|--split-string=)[ \t]*", words)
    if env:
        return words[env.end() :].split(None, 1)[0] if words[env.end() :].strip() else None
    # A path with a space in it does not run, but is still evidence of where it was made.
    python = re.match(rb'(/.*?/bin/(?:python|pypy)[\w.]*)(?:["\s]|\Z)', words)
    return python[1] if python else next(iter(words.split(None, 1)), None)
