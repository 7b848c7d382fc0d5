"""One worker of a scan: it takes batches of directories on standard input, and answers on output.

It is started for each relocation of a large tree, so what it imports is what it needs.
"""

from __future__ import annotations

import gc
import marshal
import os
import signal
from contextlib import suppress
from typing import Any

from ..artefacts.prefix import Prefixes
from ..system import files
from ..system.pipes import SIZE
from .scan import Findings, Scanner

GREETING = b"\0ready to scan\n"


def serve(root: int) -> None:
    """Scan the batches that come in on standard input, until it is closed.

    Args:
        root: the inherited descriptor of the virtualenv.
    """
    # Ctrl-C goes to the whole group; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # nothing here is a cycle, and looking for them takes time
    with suppress(EOFError, BrokenPipeError):
        prefixes, write, account = _receive(0)
        scanner = Scanner(root, Prefixes(*prefixes), write, account)
        files.write_all(1, GREETING)
        while True:
            scanner.scan(_receive(0), _answer)


def _answer(findings: Findings) -> None:
    files.write_all(1, packed(tuple(findings)))


def packed(message: Any) -> bytes:
    """A message of plain values, with its length before it."""
    body = marshal.dumps(message)
    return len(body).to_bytes(SIZE, "little") + body


def _receive(pipe: int) -> Any:
    """Read one message; raises `EOFError` where the other side has gone."""
    return marshal.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, SIZE), "little")))


def _exactly(pipe: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(pipe, size)
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
