"""Event files: a kill loses no step, and no step is there twice after it."""

import os
import signal
import subprocess
import sys

import pytest
from tensorboardX.record_writer import masked_crc32c

import mlox

from . import event_files
from .small import BATCH, pair, run_engine


def files(folder):
    return sorted(folder.glob("events.out.tfevents.*"))


def raw_steps(folder):
    """List all steps of all files, without regard to what a later file purges."""
    events = [event for path in files(folder) for event in event_files.read(path)]
    return [event.step for event in events if event.HasField("summary")]


def log(folder, steps, resumed=None):
    logger = mlox.tensorboard_logger(folder)
    if resumed is not None:
        logger.resume(resumed)
    for step in steps:
        logger.log(step, {"x/loss": 0.5 * step, "y": 1.0})
    logger.close()
    return logger


def test_log_point_is_in_the_file_when_log_returns(tmp_path):
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


def test_resume_removes_later_steps_from_all_files(tmp_path):
    log(tmp_path, range(1, 8))
    log(tmp_path, range(6, 9), resumed=5)
    torn = files(tmp_path)[1]
    torn.write_bytes(torn.read_bytes()[:-3])
    log(tmp_path, range(4, 11), resumed=3)
    assert raw_steps(tmp_path) == list(range(1, 11))
    found = event_files.scalars(tmp_path)
    assert found["x/loss"] == {step: 0.5 * step for step in range(1, 11)}
    assert len(files(tmp_path)) == len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("cut", [1, 7, 8, 11, 12, 20])
def test_resume_drops_a_torn_end_wherever_it_is(tmp_path, cut):
    log(tmp_path, [1])
    (first,) = files(tmp_path)
    whole = first.read_bytes()
    log(tmp_path, [])  # makes no file
    with first.open("ab") as torn:
        torn.write(whole[:cut])
    log(tmp_path, [2], resumed=1)
    assert first.read_bytes() == whole
    assert raw_steps(tmp_path) == [1, 2]


def test_closed_logger_begins_another_file(tmp_path):
    logger = log(tmp_path, [1, 2])
    logger.log(3, {"x/loss": 1.5})
    logger.close()
    logger.close()
    assert len(files(tmp_path)) == 2
    assert event_files.scalars(tmp_path)["x/loss"] == {1: 0.5, 2: 1.0, 3: 1.5}
    logger.resume(1)
    logger.close()
    assert raw_steps(tmp_path) == [1]


def test_event_files_of_other_programs_are_left_alone(tmp_path):
    other = tmp_path / "events.out.tfevents.1700000000.host"
    other.write_bytes(b"something else")
    log(tmp_path, [1, 2])
    log(tmp_path, [], resumed=0)
    assert other.read_bytes() == b"something else"


def test_resume_tells_tensorboard_from_which_step_on_to_forget(tmp_path):
    log(tmp_path, [], resumed=4)
    version, start = event_files.read(files(tmp_path)[0])
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, start.session_log.START)


def test_records_have_the_checksums_of_the_format(tmp_path):
    log(tmp_path, [1])
    content = files(tmp_path)[0].read_bytes()
    assert content
    while content:
        length = int.from_bytes(content[:8], "little")
        record, content = content[: 16 + length], content[16 + length :]
        assert int.from_bytes(record[8:12], "little") == masked_crc32c(record[:8])
        assert int.from_bytes(record[-4:], "little") == masked_crc32c(record[12:-4])


def test_logger_raises_at_once_for_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mlox.tensorboard_logger(tmp_path / "file" / "runs")


def test_logger_raises_for_a_folder_that_is_not_a_path():
    with pytest.raises(TypeError, match="tensorboard_logger: logdir is 3; expected"):
        mlox.tensorboard_logger(3)


def test_logger_names_itself_where_a_file_is_in_the_way(tmp_path):
    file = tmp_path / "runs"
    file.touch()
    with pytest.raises(FileExistsError) as caught:
        mlox.tensorboard_logger(file)
    (note,) = caught.value.__notes__
    assert note.startswith("tensorboard_logger cannot write to ")


def test_problem_is_a_section_which_has_its_edges(tmp_path):
    run_engine(
        pair(), {"fit": [BATCH], "penalty": None}, train_iters=2, logdir=tmp_path
    )
    tags = set(event_files.scalars(tmp_path))
    assert {"fit/loss", "penalty/loss", "penalty/fit/residual"} <= tags
    # TensorBoard's sections are the parts of tags before the first slash.
    sections = {tag.partition("/")[0] for tag in tags if "/" in tag}
    assert sections == {"fit", "penalty"}
