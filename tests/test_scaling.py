"""The program that measures many devices: what it counts, and lost processes."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"

PROGRAM = """\
%sum.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(f32[] %a, f32[] %b)
}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-reduce.1 = f32[4]{0} all-reduce(%x), to_apply=%sum.1
}

%test.1 (p: (s32[], f32[4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.1, %constant.1), direction=LT
}

ENTRY %main.1 (x: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]) while(%tuple.1), condition=%test.1, body=%body.1
  %start.1 = ((f32[8,4]), (f32[4])) reduce-scatter-start(%y), to_apply=%sum.1
  %done.1 = (f32[4]) reduce-scatter-done(%start.1)
}
"""


def test_collectives_are_counted_in_loops_and_once_if_they_are_awaited(programs):
    found = programs("_collectives").collectives(PROGRAM)
    assert sorted(found) == [("all-reduce", 16, 5), ("reduce-scatter", 16, 1)]


def test_collectives_raise_in_a_loop_whose_end_is_not_known(programs):
    unknown = PROGRAM.replace("constant(5)", "parameter(0)")
    with pytest.raises(ValueError, match="a loop without a known trip count"):
        programs("_collectives").collectives(unknown)


@pytest.mark.slow
def test_the_others_stop_in_time_when_a_process_is_lost_and_go_on_with_its_bits(
    programs,
):
    """Killed, and frozen: within the time-outs, and slack for a busy machine."""
    killed = programs("killed")
    found = killed.measure((killed.LOSSES[0], killed.LOSSES[2]))
    for row in found["rows"]:
        assert row["stopped"] < 3 * killed.BOUND
        assert 0 not in row["codes"]
        assert row["cycle"] == killed.LOST_AT // killed.EVERY * killed.EVERY + 1
        assert row["same"]
        assert all(row["said"])
    of_killed, of_frozen = (
        "\n".join(line for lines in row["said"] for line in lines)
        for row in found["rows"]
    )
    assert "If another one has died, its log says why: start all of them" in of_killed
    assert "unhealthy (stopped sending heartbeats)" in of_frozen
    assert "| process 2 is frozen |" in killed.table(found)
