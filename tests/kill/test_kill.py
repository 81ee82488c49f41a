"""A few of the runs that `python -m tests.kill` kills by SIGKILL and resumes."""

import itertools
import json

import pytest

from . import chains
from .chains import Moment
from .job import KINDS as JOBS

KINDS = list(JOBS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        (KINDS[0], [Moment(1, 0.2), Moment(9, 0.0), Moment(14, 0.005)]),
        (KINDS[2], [Moment(8, 0.01)]),
    ],
    ids=["three kills", "one kill"],
)
def test_killed_run_returns_the_same_bits_when_resumed(tmp_path, kind, drawn):
    assert not chains.run(tmp_path / "whole", kind)
    whole = chains.found(tmp_path / "whole")
    made = chains.chain(tmp_path / "parts", kind, drawn, whole)
    assert len(made.kills) == len(drawn)
    assert not made.differences


@pytest.mark.slow
def test_differences_returns_all_that_differ(tmp_path):
    """Change everything that is compared by hand."""
    chains.run(tmp_path, KINDS[1])
    whole = chains.found(tmp_path)
    assert "[1]['validation/error']" in whole
    assert any(name.startswith("[0]['inner'].params") for name in whole)

    def changed():
        return chains.differences(whole, chains.found(tmp_path))

    assert not changed()
    sums = json.loads((tmp_path / "end.json").read_text())
    first = next(iter(sums))
    (tmp_path / "end.json").write_text(json.dumps({**sums, first: "other"}))
    assert changed() == [first]
    for name in ("metrics.jsonl", "table.csv"):
        lines = (tmp_path / "logs" / name).read_text().splitlines(keepends=True)
        (tmp_path / "logs" / name).write_text("".join(lines[:-1]))
    (tmp_path / "checkpoints" / "1").mkdir()
    (events,) = (tmp_path / "logs").glob("events*")
    events.write_bytes(events.read_bytes()[:-1])
    assert set(changed()) == {
        *(first, "CSV rows", "JSON lines", "event files"),
        *("steps in event files", "folder of checkpoints"),
    }


def test_moments_returns_the_same_for_a_seed():
    first, again, other = (
        list(itertools.islice(chains.moments(seed), 50)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert {1} < {moment.lines for moment in first}
