"""Who works on many machines at once: a claim on a root keeps the roll-outs of other masters out.

A lock is held for as long as one call takes. A roll-out makes many, and may be killed between two,
so its claim is a file with a time: the same holder goes on with it at once, and any other one when
it was not renewed for an hour.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass

from ..progress import Report
from ..system.locks import now
from .root import WAIT, Root
from .store import locked

NAME = "claim.json"
LASTS = 3600.0
"""Seconds for which a claim holds that is not renewed."""


@dataclass(frozen=True)
class Claim(Report):
    """Who works in a root.

    Attributes:
        holder: who, such as a master's ID.
        doing: what, in a few words.
        since: when that began.
        renewed: when it was last confirmed, in seconds since the epoch.
    """

    holder: str
    doing: str
    since: str
    renewed: float

    def is_living(self) -> bool:
        """Whether it still keeps others out, whichever way the clock was set meanwhile."""
        return abs(time.time() - self.renewed) < LASTS


def claim(
    directory: str, holder: str, doing: str, *, job: str = "", wait: float = WAIT
) -> Claim | None:
    """Claim a root, or renew the claim; whose it is where another one has it, and nothing is done.

    A root without releases is nobody's: what is there first is up to its lock.

    Args:
        directory: the root.
        holder: who.
        doing: what for, in a few words.
        job: what this is done for, such as Salt's job id.
        wait: seconds to wait for another run in the root.

    Raises:
        Busy: another run was at work all the time.
    """
    root = Root(directory, job)
    if not os.path.isdir(root.records):
        return None
    with locked(root, f"claiming it for {holder}", wait) as store:
        known = claimed(root)
        if known is not None and known.holder != holder and known.is_living():
            return known
        same = known is not None and (known.holder, known.doing) == (holder, doing)
        since = known.since if known is not None and same else now()
        content = asdict(Claim(holder, doing, since, time.time()))
        store.write_private(NAME, json.dumps(content).encode())
    return None


def unclaim(
    directory: str, holder: str | None = None, *, job: str = "", wait: float = WAIT
) -> bool:
    """Take a claim away, that of anybody where no holder is given; whether there was one.

    Raises:
        Busy: another run was at work all the time.
    """
    root = Root(directory, job)
    if claimed(root) is None:
        return False
    with locked(root, "taking a claim away", wait):
        known = claimed(root)
        if known is None or holder not in (None, known.holder):
            return False
        os.unlink(os.path.join(root.records, NAME))
    return True


def claimed(root: Root) -> Claim | None:
    """Whose a root is; None where it is nobody's. One that cannot be read keeps nobody out."""
    try:
        with open(os.path.join(root.records, NAME), encoding="utf-8") as file:
            return Claim(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None
