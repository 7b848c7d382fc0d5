"""How many examples a property test tries: a share of them in the quick tests, all in the slow."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("RELOCATE_TEST_THOROUGH"))
"""Set by `make test-all`."""
_SHARE, _LEAST = 4, 30


def examples(count: int) -> int:
    """The number of examples to try, other ones in each run.

    Args:
        count: how many the slow tests try.
    """
    return count if THOROUGH else min(count, max(_LEAST, count // _SHARE))
