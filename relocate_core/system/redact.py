"""Keeping credentials out of logs and messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

_CREDENTIALS = re.compile(r"(?<=://)([^/\s@'\"]+)@")
# A shorter secret would be found in every other word.
_SHORTEST_SECRET = 4


def without_credentials(text: str) -> str:
    """`text` with no user and password in any URL."""
    return _CREDENTIALS.sub("", text)


def secrets_in(values: Iterable[str]) -> set[str]:
    """The passwords and tokens in the URLs of some texts, as they are written and decoded."""
    found = set()
    for value in values:
        for known in _CREDENTIALS.findall(value):
            user, _, password = known.partition(":")
            secret = password or user
            found |= {secret, unquote(secret)}
    return found


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with `****` for each secret, and with no user and password in any URL."""
    text = without_credentials(text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "****")
    return text
