"""A logger that writes event files for TensorBoard."""

import os
import pathlib
import tempfile
import time
from typing import Any

from mlox._logging.base import FunctionLogger
from mlox._logging.files import absolute_path, annotate_os_error


def tensorboard_logger(logdir: str | os.PathLike[str]) -> FunctionLogger:
    """Return a logger that writes event files for TensorBoard.

    Every log point is in the file when `log` returns: a process that is killed loses
    none. A run that is resumed begins another file. It removes the steps that will be
    logged again from the earlier files, and tells TensorBoard to forget them. Event
    files of other programs in the same folder are left alone.

    Args:
        logdir: A folder; it is made if it does not exist.

    Raises:
        OSError: If it cannot be written to, at once and not at the first log point.
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
    folder = absolute_path("tensorboard_logger: logdir", logdir)
    with annotate_os_error("tensorboard_logger", folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    new_writer, new_event = _import_tensorboardx()
    writer: Any = None

    def write(**fields: Any) -> None:
        nonlocal writer
        with annotate_os_error("tensorboard_logger", folder):
            if writer is None:  # a name that no other file has
                suffix = f".{time.time_ns()}.mlox"
                writer = new_writer(str(folder / "events"), suffix)
            writer.write_event(new_event(wall_time=time.time(), **fields))
            writer.flush()

    def log(step: int, metrics: dict[str, float]) -> None:
        values = [{"tag": name, "simple_value": x} for name, x in metrics.items()]
        write(step=step, summary={"value": values})

    def close() -> None:
        nonlocal writer
        if writer is not None:
            writer.close()
        writer = None

    def resume(step: int) -> None:
        close()
        for file in folder.glob("events.out.tfevents.*.mlox"):
            _truncate(file, step, new_event)
        # TensorBoard forgets what it has read from this step on (its `purge_step`).
        write(step=step + 1, session_log={"status": "START"})

    return FunctionLogger(log, close, resume=resume)


def _import_tensorboardx() -> tuple[Any, Any]:
    """Return the writer of event files and the class of events; this takes a while."""
    # Not `SummaryWriter`: it has a queue that flushing does not wait for, so a process
    # that is killed loses events. `EventsWriter` writes them when it is called.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    messages: Any = event_pb2  # built when it is imported: type checkers see nothing
    return EventsWriter, messages.Event


def _truncate(file: pathlib.Path, step: int, new_event: Any) -> None:
    """Cut an event file off before its first record after a step, or a torn one."""
    content, end = file.read_bytes(), 0
    while end < len(content):
        # The length of an event (8 bytes), a checksum (4), the event, a checksum (4).
        begin, length = end + 12, int.from_bytes(content[end : end + 8], "little")
        event = content[begin : begin + length]
        torn = begin + length + 4 > len(content)
        if torn or new_event.FromString(event).step > step:
            os.truncate(file, end)
            return
        end = begin + length + 4
