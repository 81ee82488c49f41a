"""Signals that ask a run to stop: noted, and seen to between two dispatches."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

CAUGHT = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def noted(wanted: bool) -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of dying of them; the second one is not caught.

    Args:
        wanted: Whether to do so. Only the main thread can; elsewhere nothing is noted.

    Yields:
        The list to which the signals are appended.
    """
    came: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in CAUGHT}

    def note(number: int, frame: object) -> None:
        del frame
        came.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    for number in CAUGHT:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
