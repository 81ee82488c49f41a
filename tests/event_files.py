"""Event files of TensorBoard, read as TensorBoard does."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event


def read(path):
    """Parse an event file: length, checksum, protocol buffer, checksum, and so on.

    The end may be torn, as it is if a process was killed while it wrote.
    """
    content, events = path.read_bytes(), []
    while len(content) >= 8:
        (length,) = struct.unpack("<Q", content[:8])
        if len(content) < 16 + length:
            break
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def scalars(folder):
    """Collect {tag: {step: value}}; a file that starts at a step purges those from it.

    A step that is there twice in spite of it is an error.
    """
    found = {}
    for path in sorted(pathlib.Path(folder).glob("events.out.tfevents.*")):
        for event in read(path):
            if event.HasField("session_log"):
                for values in found.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                assert event.step not in steps, (path, value.tag, event.step)
                steps[event.step] = value.simple_value
    return found
