"""The protocols of loggers, and a logger made of functions."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, runtime_checkable


@runtime_checkable
class Logger(Protocol):
    """A logger: an object with two functions that `run` calls.

    `log` is called at every log point, and `close` once, however the run ends.

    Example:
        >>> class Collect:
        ...     def __init__(self):
        ...         self.rows = []
        ...
        ...     def log(self, step, metrics):
        ...         self.rows.append((step, metrics))
        ...
        ...     def close(self):
        ...         print(len(self.rows), "rows")
        >>> logger: Logger = Collect()
        >>> logger.log(10, {"classifier/loss": 0.5})
        >>> logger.close()
        1 rows
    """

    def log(self, step: int, metrics: dict[str, float], /) -> None:
        """Record the metrics of a log point; `step` counts finished cycles."""
        ...

    def close(self) -> None:
        """Flush and release whatever is open."""
        ...


@runtime_checkable
class SupportsNote(Protocol):
    """A logger that also records sentences, such as why a run stopped."""

    def note(self, step: int, text: str, /) -> None: ...


@runtime_checkable
class SupportsResume(Protocol):
    """A logger that can remove everything after a step, which will be logged again."""

    def resume(self, step: int, /) -> None: ...


def _do_nothing(*_: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class FunctionLogger:
    """A logger made of functions; in a `with` statement it is closed at the end.

    Attributes:
        log: (step, metrics) -> None, records the metrics of a log point.
        close: () -> None, flushes and releases whatever is open.
        note: (step, text) -> None, records a sentence, if the logger shows any.
        resume: (step) -> None, removes what was recorded after a step.
    """

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None] = _do_nothing
    note: Callable[[int, str], None] = _do_nothing
    resume: Callable[[int], None] = _do_nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def send_note(loggers: Iterable[Logger], step: int, text: str) -> bool:
    """Pass a sentence to the loggers that support notes; return whether any does."""
    heard = False
    for logger in loggers:
        if isinstance(logger, SupportsNote):
            logger.note(step, text)
            heard |= logger.note is not _do_nothing
    return heard


def resume_loggers(loggers: Iterable[Logger], step: int) -> None:
    """Remove everything after a step from the loggers that support it."""
    for logger in loggers:
        if isinstance(logger, SupportsResume):
            logger.resume(step)
    if step:
        send_note(loggers, step, "resumed")
