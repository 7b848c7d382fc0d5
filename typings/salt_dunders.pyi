"""What Salt's loader puts into the modules that it loads.

For mypy alone: nothing imports this when Salt runs.
"""

from collections.abc import Callable
from typing import Any

__context__: dict[str, Any]
__env__: str
__grains__: dict[str, Any]
__jid__: str
__jid_event__: Any
__low__: dict[str, Any]
__lowstate__: list[dict[str, Any]]
__opts__: dict[str, Any]
__salt__: dict[str, Callable[..., Any]]
__states__: dict[str, Callable[..., Any]]
__tag__: str
