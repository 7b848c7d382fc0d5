"""How much the tests try: a share in the quick ones, more in the slow, all where that is asked."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("RELOCATE_TEST_THOROUGH"))
"""Set by `make test-all`."""
EVERYTHING = os.environ.get("RELOCATE_TEST_THOROUGH") == "all"
"""Set by `make test-all ALL=1`, which takes hours."""
_SHARE, _LEAST = 8, 15


def examples(count: int) -> int:
    """The number of examples to try, other ones in each run.

    Args:
        count: how many are tried where everything is asked for; the slow tests try half of them.
    """
    share = 1 if EVERYTHING else 2 if THOROUGH else _SHARE
    return min(count, max(_LEAST, count // share))


def stride(every: int) -> int:
    """One step in how many the slow tests try, other ones in each run.

    Args:
        every: one in so many, unless all of them are asked for.
    """
    return 1 if EVERYTHING else every


def often(some: int, many: int) -> int:
    """How often the slow tests try what happens at random.

    Args:
        some: as a rule.
        many: where everything is asked for.
    """
    return many if EVERYTHING else some
