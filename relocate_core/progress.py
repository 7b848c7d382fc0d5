"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Tell = Callable[[str, dict[str, Any]], None]
"""Called after each step with its name and facts about it: for logs and progress."""


def silent(step: str, facts: dict[str, Any]) -> None:
    """A `Tell` that tells nobody."""
