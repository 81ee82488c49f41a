"""A logger that writes event files for TensorBoard."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from typing import Any

from mlox._logging.base import FunctionLogger, Logger
from mlox._logging.files import annotate_os_error
from mlox._utils.fields import PATH, check

SUFFIX = ".mlox"


def tensorboard_logger(logdir: str | os.PathLike[str]) -> Logger:
    """Write an event file for TensorBoard.

    Every log point is in the file when `log` returns: a process that is killed loses
    none. A run that is resumed begins another file. It removes the steps that will be
    logged again from the earlier files, and tells TensorBoard to forget them. Event
    files of other programs in the same folder are left alone.

    Args:
        logdir: A folder; it is made if it does not exist.

    Returns:
        A `Logger`.

    Raises:
        OSError: If nothing can be written there, at once and not at the first log
            point.
        TypeError: If `logdir` is not a path.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = tensorboard_logger(folder)
        ...     logger.log(50, {"classifier/loss": 0.6931})
        ...     logger.close()
        ...     len(list(pathlib.Path(folder).glob("events.out.tfevents.*")))
        1
    """
    check("tensorboard_logger: logdir", logdir, PATH)
    folder = pathlib.Path(logdir)
    with annotate_os_error("tensorboard_logger", folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    writer: Any = None

    def write(**event: Any) -> None:
        nonlocal writer
        with annotate_os_error("tensorboard_logger", folder):
            writer = writer or _open(folder)
            writer.write_event(_event(wall_time=time.time(), **event))
            writer.flush()

    def log(step: int, metrics: dict[str, float]) -> None:
        values = [{"tag": name, "simple_value": x} for name, x in metrics.items()]
        write(step=step, summary={"value": values})

    def resume(step: int) -> None:
        close()
        for file in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            _truncate(file, step)
        # TensorBoard forgets what it has read from this step on (its `purge_step`).
        write(step=step + 1, session_log={"status": "START"})

    def close() -> None:
        nonlocal writer
        if writer is not None:
            writer.close()
        writer = None

    return FunctionLogger(log, close, resume=resume)


def _open(folder: pathlib.Path) -> Any:
    """Begin an event file, whose name no other file has."""
    # Not `SummaryWriter`, which has a queue that flushing does not wait for: a process
    # that is killed would lose what is in it. This one writes when it is called.
    from tensorboardX.event_file_writer import EventsWriter  # takes a while

    return EventsWriter(str(folder / "events"), f".{time.time_ns()}{SUFFIX}")


def _event(**fields: Any) -> Any:
    """Build the protocol buffer of an event."""
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # built when it is imported: type checkers see nothing
    return messages.Event(**fields)


def _truncate(file: pathlib.Path, step: int) -> None:
    """Cut an event file off before its first record after a step, or a torn one."""
    content, end = file.read_bytes(), 0
    while end < len(content):
        # The length of an event (8 bytes), a checksum (4), the event, a checksum (4).
        length = int.from_bytes(content[end : end + 8], "little")
        event = content[end + 12 : end + 12 + length]
        following = end + 16 + length
        if following > len(content) or _event().FromString(event).step > step:
            os.truncate(file, end)
            return
        end = following
