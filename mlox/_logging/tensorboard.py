"""A logger that writes event files for TensorBoard: without a queue, none twice."""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from mlox._logging.base import Functions, Logger, replace_bytes, writing

OURS = "events.out.tfevents.*.mlox"


def tensorboard_logger(logdir: str | os.PathLike[str]) -> Logger:
    """Write an event file for TensorBoard.

    Every log point is one record, which is on the disk when `log` returns, and the file
    is open only meanwhile: a process that is killed loses nothing. A run that is
    resumed writes another file. It takes the steps that are logged again out of the
    files before, and tells TensorBoard to forget them. Event files of others in the
    same folder are left alone.

    Args:
        logdir: A folder; it is made if it does not exist.

    Returns:
        A `Logger`.

    Raises:
        TypeError: If `logdir` is no path.
        OSError: If the file cannot be written, at once and not at the first log point.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = tensorboard_logger(folder)
        ...     logger.log(50, {"classifier/loss": 0.6931})
        ...     logger.close()
        ...     len(list(pathlib.Path(folder).glob("events.out.tfevents.*")))
        1
    """
    if not isinstance(logdir, str | os.PathLike):
        raise TypeError(
            f"tensorboard_logger: logdir is {logdir!r}; expected the path of a folder."
        )
    folder = pathlib.Path(logdir)
    with writing("tensorboard_logger", folder):
        folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    name = f"{now // 10**9:010d}.{socket.gethostname()}.{now}"
    file = folder / OURS.replace("*", name)
    event = _event()

    def write(mode: str, **what: Any) -> None:
        # tensorboardX's own writer has a queue, which flushing does not wait for: a
        # killed process would lose what is in it.
        record = _framed(event(wall_time=time.time(), **what).SerializeToString())
        with writing("tensorboard_logger", file), file.open(mode) as events:
            events.write(record)

    def log(step: int, metrics: dict[str, float]) -> None:
        values = [{"tag": n, "simple_value": x} for n, x in metrics.items()]
        write("ab", step=step, summary={"value": values})

    def resume(step: int) -> None:
        for other in sorted(set(folder.glob(OURS)) - {file}):
            _cut(other, step)
        # What TensorBoard has in memory, it forgets from this step on.
        write("ab", step=step + 1, session_log={"status": "START"})

    write("xb", file_version="brain.Event:2")
    return Functions(log=log, close=lambda: None, resume=resume)


def _event() -> Any:
    """Return the protocol buffer of an event; importing it takes a while."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # built when it is imported: type checkers see nothing
    return messages.Event


def _cut(file: pathlib.Path, step: int) -> None:
    """Take all that came after a step out of an event file, and a torn end."""
    event = _event()
    content = file.read_bytes()
    kept = b"".join(
        record
        for record in _records(content)
        if event.FromString(record[12:-4]).step <= step
    )
    if kept != content:
        replace_bytes(file, file.with_name("events.new"), kept)


def _records(content: bytes) -> Iterator[bytes]:
    """Cut an event file into its records: length, checksum, content, checksum."""
    begin = 0
    while begin + 8 <= len(content):
        (length,) = struct.unpack_from("<Q", content, begin)
        record = content[begin : begin + length + 16]
        if len(record) < length + 16:  # the process was killed as it wrote
            return
        yield record
        begin += len(record)


def _framed(content: bytes) -> bytes:
    """Make a record of an event."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return b"".join((length, next(sums), content, next(sums)))
