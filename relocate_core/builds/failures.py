"""Why a tool failed: the most informative lines of its output, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST_SUMMARY = 400

# Printed when a step of a tool has failed that has printed the reason before.
_HOLLOW = re.compile(
    r"Failed to build|Failed building|Could not build|subprocess-exited|metadata-|Encountered error"
    r"|The build backend returned|Call to |.* did not run successfully|.* exit (?:code|status)"
)
_INNER = re.compile(r"(?:\S+:\d+(?::\d+)?: )?(?:fatal )?error: |\w+(?:\.\w+)*(?:Error|Exception): ")
_MARK = re.compile(r"\s*(?:error:|cause:|Caused by:|\u00d7|╰─+[▶>]|├─+[▶>])\s*")
_FAILURES = re.compile(r"ERROR: |error: |\s*\u00d7 ")
_HASHES = "THESE PACKAGES DO NOT MATCH THE HASHES"


def summary(lines: Sequence[str]) -> str:
    """The reason for a failure from the output of a tool, on one line."""
    lines = [line for line in lines if line.strip()]
    text = _headline(lines)
    if _HOLLOW.match(text):
        inner = _inner(lines)
        named = re.match(r"(?:Failed to build|Could not build) [^:]*", text)
        text = ": ".join(filter(None, (named[0] if named else "", inner))) or text
    text = " ".join(text.split()).rstrip(".:;")
    # A word like `OSError(` looks like a bug of this program, and means no more than `OSError`.
    text = re.sub(r"\b(\w+Error)\(", r"\1 (", text)
    return text if len(text) <= _LONGEST_SUMMARY else f"{text[:_LONGEST_SUMMARY]}..."


def _headline(lines: Sequence[str]) -> str:
    """The last error that a tool reports, with its first cause."""
    starts = [number for number, line in enumerate(lines) if _FAILURES.match(line)]
    if not starts:
        return lines[-1].strip() if lines else ""
    block = lines[starts[-1] :]
    if block[0].startswith("ERROR: "):
        return _pip_headline(block, any("Retrying (" in line for line in lines))
    parts: list[str] = []
    for line in block:
        text = _MARK.sub("", line, count=1).strip(" │")
        if re.match(r"(?:hint|help|note):", text):
            break
        if _MARK.match(line) or not parts:
            parts.append(text)
        else:
            parts[-1] += f" {text}"
    # The last of the causes that uv prints is the real one; those between are only the way to it.
    return f"{parts[0].rstrip(':')}: {parts[-1]}" if parts[1:] else parts[0]


def _pip_headline(block: Sequence[str], offline: bool) -> str:
    text = block[0][len("ERROR: ") :]
    if text.startswith(_HASHES):
        culprit = block[1].partition(" from ")[0].strip() if block[1:] else "a package"
        return f"{culprit} does not match the hashes of the requirements"
    text = re.split(r"\. [A-Z(]", text)[0]
    return f"{text} (the package index could not be reached)" if offline else text


def _inner(lines: Sequence[str]) -> str:
    """The last reason in the output of a build; that of a compiler before that of its caller."""
    reasons = [line.strip() for line in lines if _INNER.match(line.strip())]
    reasons += [line.strip()[len("ERROR: ") :] for line in lines if line.startswith("ERROR: ")]
    plain = [re.sub(r"^error: ", "", line) for line in reasons]
    return next((line for line in reversed(plain) if not _HOLLOW.match(line)), "")
