"""A few runs that are killed by SIGKILL, as `benchmarks/kill_and_resume.py` does it."""

import itertools
import json

import _kill_job
import kill_and_resume
import pytest
from kill_and_resume import Moment

KINDS = list(_kill_job.KINDS)


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        (KINDS[0], [Moment(1, 0.2), Moment(9, 0.0), Moment(14, 0.005)]),
        (KINDS[2], [Moment(8, 0.01)]),
    ],
    ids=["three kills", "one kill"],
)
def test_a_killed_run_that_goes_on_is_one_that_never_stopped(tmp_path, kind, drawn):
    assert not kill_and_resume.run(tmp_path / "whole", kind)
    whole = kill_and_resume.found(tmp_path / "whole")
    made = kill_and_resume.chain(tmp_path / "parts", kind, drawn, whole)
    assert len(made.kills) == len(drawn)
    assert not made.differences


def test_differences_are_found(tmp_path):
    """Every kind of thing that is compared, changed by hand, is told."""
    kill_and_resume.run(tmp_path, KINDS[1])
    whole = kill_and_resume.found(tmp_path)
    assert "[1]['validation/error']" in whole
    assert any(name.startswith("[0]['inner'].params") for name in whole)

    def told():
        return kill_and_resume.differences(whole, kill_and_resume.found(tmp_path))

    assert not told()
    sums = json.loads((tmp_path / "end.json").read_text())
    first = next(iter(sums))
    (tmp_path / "end.json").write_text(json.dumps({**sums, first: "other"}))
    assert told() == [first]
    for name in ("metrics.jsonl", "table.csv"):
        lines = (tmp_path / "logs" / name).read_text().splitlines(keepends=True)
        (tmp_path / "logs" / name).write_text("".join(lines[:-1]))
    (tmp_path / "checkpoints" / "1").mkdir()
    (events,) = (tmp_path / "logs").glob("events*")
    events.write_bytes(events.read_bytes()[:-1])
    assert set(told()) == {
        *(first, "CSV rows", "JSON lines", "event files"),
        *("steps in event files", "folder of checkpoints"),
    }


def test_moments_are_drawn_from_a_seed():
    first, again, other = (
        list(itertools.islice(kill_and_resume.moments(seed), 50)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert {1} < {moment.lines for moment in first}
