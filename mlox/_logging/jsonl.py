"""A logger that writes JSON lines: one object per log point."""

import json
import math
import os
import pathlib

from mlox._logging import files
from mlox._logging.base import FunctionLogger


def json_logger(path: str | os.PathLike[str]) -> FunctionLogger:
    r"""Return a logger that appends one JSON object per log point to a file.

    Every line is in the file when `log` returns, and the file is open only meanwhile.
    A run that is resumed removes the lines after its checkpoint, and raises ValueError
    for a line of something else. A last line that was cut off is dropped. JSON has no
    NaN and no infinity: such a value becomes null.

    Args:
        path: The file; its folder is made if it does not exist.

    Raises:
        OSError: If the file cannot be written, at once and not at the first log point.
        TypeError: If `path` is not a path.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "metrics.jsonl")
        ...     logger = json_logger(path)
        ...     logger.log(50, {"classifier/loss": 0.5})
        ...     path.read_text()
        '{"cycle": 50, "classifier/loss": 0.5}\n'
    """
    file = files.prepare_file("json_logger", path)
    files.drop_torn_line(file, prefix=b"{")

    def log(step: int, metrics: dict[str, float]) -> None:
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        line = json.dumps({"cycle": step, **finite}, allow_nan=False) + "\n"
        with files.annotate_os_error("json_logger", file), file.open("ab") as lines:
            lines.write(line.encode())

    def resume(step: int) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _is_until(file, step, line)]
        files.replace_content(file, b"".join(kept))

    return FunctionLogger(log, resume=resume)


def _is_until(file: pathlib.Path, step: int, line: bytes) -> bool:
    """Return whether a line is complete, and of a log point up to a step."""
    try:
        match json.loads(line):
            case {"cycle": int(cycle)}:
                return cycle <= step
            case _:
                pass
    except ValueError:  # not JSON, or not text
        if not line.endswith(b"\n"):  # the last one, cut off
            return False
    row = line.decode(errors="replace").rstrip()
    raise files.error_of_row("json_logger", file, row)
