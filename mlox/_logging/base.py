"""Loggers as values: a pair of functions, for the terminal or for JSON lines.

A logger is anything with the two functions of `Logger`. Those of this file hold no
settings that a user could change later, and none of them prints unless it is asked to.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from mlox._utils.types import Scalars


@runtime_checkable
class Logger(Protocol):
    """Say what a logger is: two functions, called from the host loop.

    Any object with these two will do; `run` calls `log` at every log point and
    `close` once, however the run ends.

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
        """Take the metrics of a log point; `step` counts finished cycles."""
        ...

    def close(self) -> None:
        """Flush and release whatever is open."""
        ...


@runtime_checkable
class TakesNotes(Protocol):
    """Say what a logger may have besides: a function for a sentence to people."""

    def note(self, step: int, text: str, /) -> None:
        """Take a sentence about the run, such as why it stopped."""
        ...


@runtime_checkable
class Resumes(Protocol):
    """Say what a logger may have besides: a function for a run that is resumed."""

    def resume(self, step: int, /) -> None:
        """Take back what was logged after a step: it will be logged again."""
        ...


@dataclasses.dataclass(frozen=True)
class Functions:
    """A logger made of functions."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]
    resume: Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class _Printer:
    """A logger that takes notes."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]
    note: Callable[[int, str], None]


def stdout_logger() -> Logger:
    """Print one aligned line per log point, shortened to the width of a terminal.

    The line shows the cycle, the speed, and every metric with four significant
    digits: losses first, then validation, then the rest. What does not fit is counted
    (`+3`). When the output is no terminal, nothing is left out. A progress bar stays
    whole. A run that stops early says so in a last line.

    Returns:
        A `Logger`.

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
        write(_line(step, metrics, width))

    def write(line: str) -> None:
        # tqdm.write takes a bar away, writes, and draws it again below the line.
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    return _Printer(
        log=log,
        close=lambda: None,
        note=lambda step, text: write(f"{step:>8}  {text}"),
    )


def json_logger(path: str | os.PathLike[str]) -> Logger:
    r"""Append one JSON object per log point to a file.

    Every line is on the disk when `log` returns, and the file is open only meanwhile.
    A run that is resumed takes back the lines after its checkpoint; a last line that
    was cut off is dropped. JSON has no NaN and no infinity: such a value becomes null.

    Args:
        path: The file; its folder is made if it does not exist.

    Returns:
        A `Logger`.

    Raises:
        OSError: If the file cannot be written, at once and not at the first log point.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "metrics.jsonl")
        ...     logger = json_logger(path)
        ...     logger.log(50, {"classifier/loss": 0.5})
        ...     path.read_text()
        '{"cycle": 50, "classifier/loss": 0.5}\n'
    """
    file = appendable("json_logger", path)
    *whole, last = file.read_bytes().splitlines(keepends=True) or [b""]
    if last.startswith(b"{") and not last.endswith(b"\n"):  # killed as it wrote
        replace_bytes(file, file.with_name(file.name + ".new"), b"".join(whole))

    def log(step: int, metrics: dict[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        with writing("json_logger", file), file.open("a") as lines:
            lines.write(json.dumps({"cycle": step, **finite}, allow_nan=False) + "\n")

    def resume(step: int) -> None:
        kept = [line for line in file.read_text().splitlines() if _until(step, line)]
        replace_text(file, "".join(line + "\n" for line in kept))

    return Functions(log=log, close=lambda: None, resume=resume)


def _until(step: int, line: str) -> bool:
    """Say whether a line is whole, and of a log point up to a step."""
    try:
        return json.loads(line)["cycle"] <= step
    except json.JSONDecodeError:
        return False


def replace_text(file: pathlib.Path, text: str) -> None:
    """Write a text beside a file, and let it take the file's place at once."""
    replace_bytes(file, file.with_name(file.name + ".new"), text.encode())


def replace_bytes(file: pathlib.Path, beside: pathlib.Path, content: bytes) -> None:
    """Write a content beside a file, and let it take the file's place at once."""
    beside.write_bytes(content)
    beside.replace(file)


def appendable(whose: str, path: str | os.PathLike[str]) -> pathlib.Path:
    """Return a file that exists and can be written, in a folder that is made."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{whose}: path is {path!r}; expected the path of a file.")
    file = pathlib.Path(path)
    with writing(whose, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    return file


@contextlib.contextmanager
def writing(whose: str, file: pathlib.Path) -> Iterator[None]:
    """Note at an error of the system which logger could not write, and where."""
    try:
        yield
    except OSError as error:
        error.add_note(
            f"{whose} cannot write to {str(file)!r}; expected the path of a file with "
            "room for it, in a folder that exists or can be made."
        )
        raise


def note(loggers: Iterable[Logger], step: int, text: str) -> None:
    """Give a sentence to those loggers that take one."""
    for logger in loggers:
        if isinstance(logger, TakesNotes):
            logger.note(step, text)


def resume(loggers: Iterable[Logger], step: int) -> None:
    """Let loggers go on from a step, with a note to those that take one."""
    for logger in loggers:
        if isinstance(logger, Resumes):
            logger.resume(step)
    if step:
        note(loggers, step, "resumed")


def progress_bar(total: int, begun: int, shown: bool | None) -> tqdm:
    """Make a bar on stderr that counts cycles.

    Args:
        total: The number of cycles.
        begun: Those that were made before.
        shown: Whether to show it; None shows it only if stderr is a terminal.

    Returns:
        A context manager, with tqdm's `update` and `set_postfix_str`.
    """
    hidden = None if shown is None else not shown
    return tqdm(
        total=total, initial=begun, disable=hidden, unit="cycle", dynamic_ncols=True
    )


def summary(metrics: Scalars) -> str:
    """Show the losses in a few words, for the end of a progress bar."""
    losses = [name for name in metrics if name.endswith("/loss")][:3]
    return ", ".join(f"{name} {_digits(metrics[name])}" for name in losses)


def _line(step: int, metrics: Scalars, width: int | None) -> str:
    speed = "cycles_per_second"
    line = f"{step:>8}" + (
        f"{_digits(metrics[speed]):>10}/s" if speed in metrics else ""
    )
    names = sorted((name for name in metrics if name != speed), key=_rank)
    for shown, name in enumerate(names):
        entry = f"  {name} {_digits(metrics[name]):<10}"
        more = f"  +{len(names) - shown}"
        reserve = len(more) if shown + 1 < len(names) else 0
        if width is not None and len(line + entry.rstrip()) + reserve > width:
            return line.rstrip() + more
        line += entry
    return line.rstrip()


def _rank(name: str) -> int:
    """Order by what people look at first; sorting is stable within a rank."""
    return 0 if name.endswith("/loss") else 1 if name.startswith("validation/") else 2


def _digits(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")
