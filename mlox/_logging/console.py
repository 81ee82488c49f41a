"""What a run shows: a line per log point, and a progress bar."""

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from mlox._logging.base import FunctionLogger
from mlox._logging.notebook import NotebookLine, in_notebook
from mlox._utils.types import Scalars

SPEED = "cycles_per_second"
WIDTH = 100  # of lines that are not written to a terminal


def stdout_logger() -> FunctionLogger:
    """Return a logger that prints an aligned line per log point.

    The line shows the cycle, the speed, and every metric with four significant digits:
    losses first, then validation, then the rest. Metrics that exceed the width of the
    terminal are counted (`+3`); in a file, a pipe or a notebook they go on in lines
    below, of at most 100 columns. A progress bar stays intact. A run that stops early
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

    return FunctionLogger(log, note=lambda step, text: write(_format_note(step, text)))


def progress_bar(total: int, initial: int, shown: bool | None) -> "tqdm[Any]":
    """Make a bar that counts cycles, on stderr or as a line of a notebook.

    Args:
        total: The number of cycles.
        initial: The number of cycles before.
        shown: Whether it is shown; None shows it in a terminal and in a notebook.
    """
    if shown is not False and in_notebook():
        return tqdm(total=total, initial=initial, unit="cycle", file=NotebookLine())
    hidden = None if shown is None else not shown
    return tqdm(
        total=total, initial=initial, disable=hidden, unit="cycle", dynamic_ncols=True
    )


def format_losses(metrics: Scalars) -> str:
    """Format the first three losses, for the end of a progress bar."""
    losses = [name for name in metrics if name.endswith("/loss")][:3]
    return ", ".join(f"{name} {_format_value(metrics[name])}" for name in losses)


def _format_line(step: int, metrics: Scalars, width: int | None) -> str:
    """Format a log point: on one line of a terminal, or on lines of a file.

    Args:
        step: The cycle.
        metrics: The metrics.
        width: The width of the terminal, where metrics that would exceed it are
            counted; None for a file, where they go on in a line below.
    """
    head = f"{step:>8}"
    if SPEED in metrics:
        head += f"{_format_value(metrics[SPEED]):>10}/s"
    names = sorted((name for name in metrics if name != SPEED), key=_rank)
    entries = [f"  {name} {_format_value(metrics[name]):<10}" for name in names]
    if width is None:
        return _wrap_entries(head, entries)
    line = head
    for shown, entry in enumerate(entries):
        more = f"  +{len(entries) - shown}"
        reserve = len(more) if shown + 1 < len(entries) else 0
        if len(line + entry.rstrip()) + reserve > width:
            return line.rstrip() + more
        line += entry
    return line.rstrip()


def _format_note(step: int, text: str) -> str:
    """Format a sentence on lines of at most `WIDTH` columns."""
    return textwrap.fill(
        text, WIDTH, initial_indent=f"{step:>8}  ", subsequent_indent=" " * 10
    )


def _wrap_entries(head: str, entries: Sequence[str]) -> str:
    """Join entries to lines of at most `WIDTH` columns, aligned below each other."""
    lines = [head]
    for entry in entries:
        begins = len(lines[-1]) <= len(head)
        if not begins and len(lines[-1] + entry.rstrip()) > WIDTH:
            lines.append(" " * len(head))
        lines[-1] += entry
    return "\n".join(line.rstrip() for line in lines)


def _rank(name: str) -> int:
    """Return the sort key of a metric: losses, then validation, then the rest."""
    return 0 if name.endswith("/loss") else 1 if name.startswith("validation/") else 2


def _format_value(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")
