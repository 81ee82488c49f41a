"""Signals that stop a run between two dispatches (preemption)."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import threading
from collections.abc import Generator, Sequence

CAUGHT = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def catch_signals(wanted: bool) -> Generator[Sequence[int]]:
    """Catch the first SIGTERM or SIGINT; a second one has its original effect.

    Only the main thread can catch signals. Yields the signals received so far.
    """
    received: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in CAUGHT}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: object) -> None:
        del frame
        received.append(number)
        restore_handlers()

    for number in CAUGHT:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore_handlers()


def preemption_message(received: Sequence[int], saved_in: pathlib.Path | None) -> str:
    """Return why a run stops: by a signal of this process, or of another one."""
    name = signal.Signals(received[0] if received else signal.SIGTERM).name
    if saved_in is None:
        return f"Stopped by {name}."
    saved = f"The run is saved in {str(saved_in)!r}: continue it with `resume=True`."
    return f"Stopped by {name}. {saved}"
