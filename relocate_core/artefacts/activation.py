"""Activation scripts of every shell: `VIRTUAL_ENV`, and a prompt that is the directory's name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import text
from .prefix import Prefixes
from .quoting import CSH, FISH, NU, RAW, SH, Language, replace, substitute

KIND = "activation"

_NAME = re.compile(r"(?:.*/)?bin/(?:de)?activate(?:_this\.py|\.[a-z0-9]+)?\Z", re.I)
_NU_LITERAL = re.compile(rb"(const [a-z_]+ = )?(?:r(#+)'(.*?)'\2|'([^'\n]*)')", re.S)


def claims(path: str, data: bytes) -> bool:
    """Whether this is an activation script, by its name."""
    return _NAME.match(path) is not None and b"\0" not in data


def rewrite(path: str, data: bytes, prefixes: Prefixes) -> bytes:
    """`data` made to activate the new prefix."""
    language = text.language_of(path, data)
    if language is RAW:
        language = SH
    if language is NU:
        data = _NU_LITERAL.sub(lambda match: _nu_literal(match, prefixes), data)
    data = replace(_requote(data, prefixes, language), prefixes, language)
    if prefixes.prompt and language in (SH, CSH, FISH):
        old, new = prefixes.prompt
        data = substitute(data, language, lambda meaning: _prompts(meaning, old), new)
    return data


def _requote(data: bytes, prefixes: Prefixes, language: Language) -> bytes:
    """Write again what a tool put between quotes as it was, though the quotes could not hold it.

    The stdlib's venv did so up to 3.11 (python/cpython#124651).
    """
    for old in prefixes.old:
        for quote, state in ((b'"', "double"), (b"'", "single")):
            if language in (SH, CSH, FISH) and language.write(old, state) != old:
                written = quote + language.write(prefixes.new, state) + quote
                data = data.replace(quote + old + quote, written)
    return data


def _prompts(meaning: bytes, name: bytes) -> Iterator[re.Match[bytes]]:
    """Where the prompt shows the virtualenv's name: `(name) `, and what VIRTUAL_ENV_PROMPT is."""
    escaped = re.escape(name)
    return re.finditer(
        rb"(?<=[=\s]\()" + escaped + rb"(?=\) )"
        rb"|(?<=VIRTUAL_ENV_PROMPT[= ])" + escaped + rb"(?=\s*$)"
        rb"|(?<=VIRTUAL_ENV_PROMPT[= ]\()" + escaped + rb"(?=\))",
        meaning,
        re.M,
    )


def _nu_literal(match: re.Match[bytes], prefixes: Prefixes) -> bytes:
    """A nushell literal that can hold the new path: its quoting has no escapes to fall back on.

    virtualenv always writes a raw string, uv (`const`) one in single quotes.
    """
    uv, sharps, body = match[1] or b"", match[2], match[3] if match[2] else match[4]
    moved = prefixes.replace(body)
    if moved == body:
        return match[0]
    if b"'" not in moved and (uv or not sharps):
        return uv + b"'" + moved + b"'"
    sharps = b"#" * (1 + max((len(run) for run in re.findall(rb"#+", moved)), default=0))
    return uv + b"r" + sharps + b"'" + moved + b"'" + sharps
