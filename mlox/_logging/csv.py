"""A logger that writes a table: one row per log point, one column per metric."""

import csv
import io
import os
import pathlib
from collections.abc import Sequence

from mlox._logging import files
from mlox._logging.base import FunctionLogger
from mlox._utils.fields import Kind, check, optional
from mlox._utils.warn import warn

NAMES = Kind(
    "a list of names of metrics",
    lambda x: isinstance(x, list | tuple) and all(isinstance(n, str) for n in x),
    TypeError,
)


def csv_logger(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None
) -> FunctionLogger:
    r"""Return a logger that appends one row per log point to a table.

    Spreadsheets and `pandas.read_csv` read it. Its columns are fixed when it begins:
    `"cycle"`, then `columns`. A cell is empty where a metric was not logged. Numbers
    have all their digits, or are `nan`, `inf` or `-inf`.

    Every row is in the file when `log` returns, and the file is open only meanwhile. A
    table that exists is continued, with its columns: its rows stay, except for a last
    line that was cut off, and for the rows after the checkpoint from which a run is
    resumed.

    Args:
        path: The file; its folder is made if it does not exist.
        columns: The names of the metrics to record; None for those of the first log
            point. Then a metric that appears later, as the scores of a rarer validation
            do, is left out with a warning: name all metrics here, or use `json_logger`.

    Raises:
        OSError: If the file cannot be written, at once and not at the first log point.
        TypeError: If `path` is not a path, or `columns` is not a list of names.
        ValueError: If the file holds something other than such a table.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "metrics.csv")
        ...     logger = csv_logger(path, ["x/loss", "validation/accuracy"])
        ...     logger.log(50, {"cycles_per_second": 9.0, "x/loss": 0.5})
        ...     logger.log(99, {"validation/accuracy": 0.75, "x/loss": 0.25})
        ...     print(path.read_text(), end="")
        cycle,x/loss,validation/accuracy
        50,0.5,
        99,0.25,0.75
    """
    check("csv_logger: columns", columns, optional(NAMES))
    file = files.prepare_file("csv_logger", path)
    _check_is_table(file)
    files.drop_torn_line(file, b"")
    omitted: set[str] = set()

    def log(step: int, metrics: dict[str, float]) -> None:
        wanted = list(metrics if columns is None else columns)
        with (
            files.annotate_os_error("csv_logger", file),
            file.open("a+", newline="", encoding="utf-8") as table,
        ):
            table.seek(0)
            header = next(csv.reader(table), None)
            names = header or list(dict.fromkeys(["cycle", *wanted]))
            writer = csv.DictWriter(table, names, "", "ignore", lineterminator="\n")
            if header is None:
                writer.writeheader()
            writer.writerow({"cycle": step, **metrics})
        new = {name for name in wanted if name in metrics} - {*names, *omitted}
        omitted.update(new)
        if new:
            warn(
                f"csv_logger: {str(file)!r} leaves out {sorted(new)}: its columns were "
                "fixed when it began. Begin another file and name all in `columns`."
            )

    def resume(step: int) -> None:
        with file.open(newline="", encoding="utf-8") as table:
            rows = list(csv.reader(table))
        kept = [*rows[:1], *(row for row in rows[1:] if _cycle(file, row) <= step)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(kept)
        files.replace_content(file, text.getvalue().encode())

    return FunctionLogger(log, resume=resume)


def _check_is_table(file: pathlib.Path) -> None:
    """Raise ValueError if a file holds something other than a table of a run."""
    text = file.read_bytes().decode(errors="replace")
    if text and text.split("\n")[0].split(",")[0] != "cycle":
        raise ValueError(
            f"csv_logger: {str(file)!r} begins with {text[:40]!r}; expected a table "
            "that begins with 'cycle,'. Choose another path, or move the file away."
        )


def _cycle(file: pathlib.Path, row: Sequence[str]) -> int:
    """Return the cycle of a row."""
    if not row or not row[0].isdecimal():
        raise files.error_of_row("csv_logger", file, ",".join(row))
    return int(row[0])
