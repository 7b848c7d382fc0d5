"""A worker process of `pool`: scans the batches that come in on standard input."""

from __future__ import annotations

import gc
import signal

from ..artefacts.prefix import Prefixes
from .messages import receive, send
from .scan import Scanner


def serve(root: int) -> None:
    """Answer batches until the pipe is closed.

    Args:
        root: the inherited descriptor of the virtualenv.
    """
    # Ctrl-C goes to the whole group; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # nothing here is a cycle, and looking for them takes time
    try:
        prefixes, write, account = receive(0)
        scanner = Scanner(root, Prefixes(*prefixes), write, account)
        send(1, "ready")
        while True:
            scanner.scan(receive(0), lambda findings: send(1, tuple(findings)))
    except (EOFError, BrokenPipeError):
        return
