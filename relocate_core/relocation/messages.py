"""Messages of plain values through a pipe, between `pool` and its workers."""

from __future__ import annotations

import marshal
import os
import struct
from typing import Any


def send(pipe: int, message: Any) -> None:
    """Write one message of plain values to a pipe."""
    body = marshal.dumps(message)
    data = struct.pack("<I", len(body)) + body
    written = 0
    while written < len(data):
        written += os.write(pipe, data[written:])


def receive(pipe: int) -> Any:
    """Read one message from a pipe; raises `EOFError` where the other side has gone."""
    return marshal.loads(_exactly(pipe, *struct.unpack("<I", _exactly(pipe, 4))))


def _exactly(pipe: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(pipe, size)
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
