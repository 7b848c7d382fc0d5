"""The reasons that the operating system gives, as parts of our sentences."""

from __future__ import annotations

import errno
import os

from relocate_core.errors import TreeError, reason_of


def test_the_reason_is_a_part_of_a_sentence() -> None:
    assert reason_of(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/srv/App")) == (
        "permission denied"
    )
    assert reason_of(OSError("Timed Out")) == "timed out"


def test_the_sentence_has_advice() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(TreeError.of("/srv/app/1", error, "unpack")) == (
        "cannot unpack /srv/app/1: no space left on device; free some space and run again"
    )
    assert str(TreeError.of("/srv/app/1", OSError("odd"))) == (
        "cannot relocate /srv/app/1: odd; see to it and run again"
    )
