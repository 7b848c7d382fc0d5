"""Interrupts that wait until what is in hand is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C wait, and a SIGTERM that something handles.

    Their exception would otherwise come between any two steps, such as receiving what a worker has
    done and noting it. Only the main thread is interrupted, so elsewhere there is nothing to do.

    Yields:
        What lets through the signals that have come meanwhile. Those that are left are let through
        at the end.
    """
    handlers: dict[signal.Signals, Callable[..., Any]] = {}
    came: list[tuple[Any, ...]] = []

    def let_through() -> None:
        while came:
            event = came.pop(0)
            handlers[event[0]](*event)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    with suppress(ValueError):  # an interpreter in an interpreter
                        signal.signal(number, lambda *event: came.append(event))
        yield let_through
    finally:
        for number, handler in handlers.items():
            with suppress(ValueError):
                signal.signal(number, handler)
        let_through()
