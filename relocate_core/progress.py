"""How work reports: each step while it runs, and what it did when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

Notify = Callable[[str, dict[str, Any]], None]
"""Called after each step with its name and facts about it: for logs and progress."""


def silent(step: str, facts: dict[str, Any]) -> None:
    """A `Notify` that notifies nobody."""


class Report:
    """Base of what work returns, each a dataclass."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON and Salt."""
        known = asdict(self)  # type: ignore[call-overload]
        return {key: list(one) if isinstance(one, tuple) else one for key, one in known.items()}
