"""A logger that keeps a table: one row per log point, one column per metric."""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from mlox._logging.base import Functions, Logger, appendable, replace_text, writing


def csv_logger(path: str | os.PathLike[str]) -> Logger:
    r"""Append one row per log point to a table, for spreadsheets and pandas.

    The columns are `"cycle"` and every metric that was ever logged, in the order of
    their first appearance. A metric that appears later, as the scores of a rarer
    validation do, gets a column at the end: the table is then written anew beside the
    file and takes its place at once, so that it is whole at any time. A cell is empty
    where a metric was not logged. Numbers have all their digits; what is not finite is
    `nan`, `inf` or `-inf`.

    Every row is on the disk when `log` returns, and the file is open only meanwhile. A
    table that exists is continued: its rows stay, but for a last line that was cut off,
    and for those after the checkpoint from which a run is resumed.

    Args:
        path: The file; its folder is made if it does not exist.

    Returns:
        A `Logger`.

    Raises:
        OSError: If the file cannot be written, at once and not at the first log point.
        ValueError: If the file holds something else than such a table.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "metrics.csv")
        ...     logger = csv_logger(path)
        ...     logger.log(50, {"classifier/loss": 0.5})
        ...     logger.log(99, {"validation/accuracy": 0.75, "classifier/loss": 0.25})
        ...     print(path.read_text(), end="")
        cycle,classifier/loss,validation/accuracy
        50,0.5,
        99,0.25,0.75
    """
    file = appendable("csv_logger", path)
    _mend(file)

    def log(step: int, metrics: dict[str, float]) -> None:
        with writing("csv_logger", file):
            _append(file, step, metrics)

    def resume(step: int) -> None:
        header, *rows = _rows(file) or [["cycle"]]
        _replace(file, [header, *(row for row in rows if _cycle(file, row) <= step)])

    return Functions(log=log, close=lambda: None, resume=resume)


def _append(file: pathlib.Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append a row, to a table with all the columns that it needs."""
    with file.open(newline="", encoding="utf-8") as table:
        header = next(csv.reader(table), [])
    columns = list(dict.fromkeys(["cycle", *header, *metrics]))
    if columns != header:
        rows = _rows(file)[1:]
        blank = [""] * (len(columns) - len(header))
        _replace(file, [columns, *([*row, *blank] for row in rows)])
    cells = {"cycle": step, **metrics}
    with file.open("a", newline="", encoding="utf-8") as table:
        table.write(_text([[cells.get(name, "") for name in columns]]))


def _mend(file: pathlib.Path) -> None:
    """Refuse a file that is no table of ours, and drop a line that was cut off."""
    text = file.read_bytes().decode(errors="replace")
    if text and text.split("\n")[0].split(",")[0] != "cycle":
        raise ValueError(
            f"csv_logger: {str(file)!r} exists and is no table that it could continue: "
            f"it begins with {text[:40]!r}, not with 'cycle,'. Choose another path, or "
            "move the file away."
        )
    if text and not text.endswith("\n"):
        _replace(file, _rows(file)[:-1])


def _cycle(file: pathlib.Path, row: Sequence[str]) -> int:
    """Read the cycle of a row."""
    if not row or not row[0].isdecimal():
        raise ValueError(
            f"csv_logger: {str(file)!r} has the row {','.join(row)!r}, which does not "
            "begin with a cycle, so that a run cannot be resumed in it. Mend the row, "
            "or move the file away."
        )
    return int(row[0])


def _rows(file: pathlib.Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as table:
        return list(csv.reader(table))


def _text(rows: Iterable[Sequence[object]]) -> str:
    """Format rows; csv writes a float with the digits that tell it from all others."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _replace(file: pathlib.Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table beside the file, and let it take its place."""
    replace_text(file, _text(rows))
