"""Event files: nothing is lost by a kill, and nothing is there twice after it."""

import os
import signal
import subprocess
import sys

import pytest
from tensorboardX.record_writer import masked_crc32c

import mlox

from . import event_files


def files(folder):
    return sorted(folder.glob("events.out.tfevents.*"))


def raw_steps(folder):
    """All steps of all files, without regard to what a later file purges."""
    events = [event for path in files(folder) for event in event_files.read(path)]
    return [event.step for event in events if event.HasField("summary")]


def log(logger, steps):
    for step in steps:
        logger.log(step, {"x/loss": 0.5 * step, "y": 1.0})


def test_a_log_point_is_in_the_file_when_log_returns(tmp_path):
    script = (
        "import mlox, os, signal, sys\n"
        "logger = mlox.tensorboard_logger(sys.argv[1])\n"
        "for step in range(50): logger.log(step, {'x': step / 2})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert killed.returncode == -signal.SIGKILL
    expected = {step: step / 2 for step in range(50)}
    assert event_files.scalars(tmp_path) == {"x": expected}


def test_resuming_takes_steps_back_in_all_files(tmp_path):
    log(mlox.tensorboard_logger(tmp_path), range(1, 8))
    second = mlox.tensorboard_logger(tmp_path)
    second.resume(5)
    log(second, range(6, 9))
    torn = files(tmp_path)[1]
    torn.write_bytes(torn.read_bytes()[:-3])
    third = mlox.tensorboard_logger(tmp_path)
    third.resume(3)
    log(third, range(4, 11))
    third.close()
    assert raw_steps(tmp_path) == list(range(1, 11))
    found = event_files.scalars(tmp_path)
    assert found["x/loss"] == {step: 0.5 * step for step in range(1, 11)}
    assert len(files(tmp_path)) == len(list(tmp_path.iterdir())) == 3


def test_files_of_others_are_left_alone(tmp_path):
    other = tmp_path / "events.out.tfevents.1700000000.host"
    other.write_bytes(b"something else")
    log(mlox.tensorboard_logger(tmp_path), [1, 2])
    mlox.tensorboard_logger(tmp_path).resume(0)
    assert other.read_bytes() == b"something else"


def test_tensorboard_is_told_from_where_on_to_forget(tmp_path):
    logger = mlox.tensorboard_logger(tmp_path)
    logger.resume(4)
    logger.close()
    version, start = event_files.read(files(tmp_path)[0])
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, start.session_log.START)


def test_records_have_the_checksums_of_the_format(tmp_path):
    log(mlox.tensorboard_logger(tmp_path), [1])
    content = files(tmp_path)[0].read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        record, content = content[: 16 + length], content[16 + length :]
        assert int.from_bytes(record[8:12], "little") == masked_crc32c(record[:8])
        assert int.from_bytes(record[-4:], "little") == masked_crc32c(record[12:-4])


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mlox.tensorboard_logger(tmp_path / "file" / "runs")


def test_a_folder_that_is_none():
    with pytest.raises(TypeError, match="tensorboard_logger: logdir is 3; expected"):
        mlox.tensorboard_logger(3)


def test_a_file_in_place_of_the_folder(tmp_path):
    file = tmp_path / "runs"
    file.touch()
    with pytest.raises(FileExistsError) as caught:
        mlox.tensorboard_logger(file)
    (note,) = caught.value.__notes__
    assert note.startswith("tensorboard_logger cannot write to ")
