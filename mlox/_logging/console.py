"""What a run shows in a terminal: a line per log point, and a progress bar."""

import os
import sys
from typing import Any

from tqdm import tqdm

from mlox._logging.base import FunctionLogger
from mlox._utils.types import Scalars

SPEED = "cycles_per_second"


def stdout_logger() -> FunctionLogger:
    """Return a logger that prints one aligned line per log point.

    The line shows the cycle, the speed, and every metric with four significant digits:
    losses first, then validation, then the rest. Metrics that exceed the width of the
    terminal are counted (`+3`). A progress bar stays intact. A run that stops early
    prints the reason in a last line.

    Example:
        >>> logger = stdout_logger()
        >>> logger.log(50, {"cycles_per_second": 120.0, "classifier/loss": 0.6931})
              50     120.0/s  classifier/loss 0.6931
        >>> logger.close()
    """

    def log(step: int, metrics: dict[str, float]) -> None:
        width = None
        if sys.stdout.isatty():
            width = os.get_terminal_size(sys.stdout.fileno()).columns or None
        write(_format_line(step, metrics, width))

    def write(line: str) -> None:
        # tqdm.write clears a bar, writes, and draws the bar again below the line.
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    return FunctionLogger(log, note=lambda step, text: write(f"{step:>8}  {text}"))


def progress_bar(total: int, initial: int, shown: bool | None) -> "tqdm[Any]":
    """Make a bar on stderr that counts cycles; `shown=None`: only in a terminal."""
    hidden = None if shown is None else not shown
    return tqdm(
        total=total, initial=initial, disable=hidden, unit="cycle", dynamic_ncols=True
    )


def format_losses(metrics: Scalars) -> str:
    """Format the first three losses, for the end of a progress bar."""
    losses = [name for name in metrics if name.endswith("/loss")][:3]
    return ", ".join(f"{name} {_format_value(metrics[name])}" for name in losses)


def _format_line(step: int, metrics: Scalars, width: int | None) -> str:
    """Format a log point, and count the metrics that would exceed a width."""
    line = f"{step:>8}"
    if SPEED in metrics:
        line += f"{_format_value(metrics[SPEED]):>10}/s"
    names = sorted((name for name in metrics if name != SPEED), key=_rank)
    for shown, name in enumerate(names):
        entry = f"  {name} {_format_value(metrics[name]):<10}"
        more = f"  +{len(names) - shown}"
        reserve = len(more) if shown + 1 < len(names) else 0
        if width is not None and len(line + entry.rstrip()) + reserve > width:
            return line.rstrip() + more
        line += entry
    return line.rstrip()


def _rank(name: str) -> int:
    """Return the sort key of a metric: losses, then validation, then the rest."""
    return 0 if name.endswith("/loss") else 1 if name.startswith("validation/") else 2


def _format_value(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")
