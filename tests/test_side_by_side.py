"""Sides of comparisons in processes of their own: they agree, or say why they fail."""

import json
import pathlib
import platform
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
LISTS = sorted(
    path.stem
    for path in (FOLDER / "peers").glob("*.py")
    if "COMPARISONS" in path.read_text("utf-8")
)


def comparison(programs, *told, environments=()):
    """Make a comparison of tiny sides; `told` are the settings of each."""
    Part, Comparison = (
        getattr(programs("_comparison"), name) for name in ("Part", "Comparison")
    )
    environments = environments or ("jax", *(f"peer {i}" for i in range(len(told) - 1)))
    return Comparison(
        group="Tiny",
        job="counting",
        given=lambda: {"start": np.arange(4.0)},
        settings={},
        parts=tuple(
            Part(f"side {i}", environment, "tests.tiny_side", settings, at_least=0.01)
            for i, (settings, environment) in enumerate(
                zip(told, environments, strict=True)
            )
        ),
        steps=3,
        tolerance=1e-6,
        length=5,
    )


def duel(programs, told, python_of=lambda name: sys.executable, **amounts):
    few = {"rounds": 2, "most": 2, "seconds": 0.0} | amounts
    module = programs("_duel")
    found = module.duel(comparison(programs, *told), python_of, module.Amounts(**few))
    return found, found["sides"]


def test_sides_that_agree_are_timed_in_turn(programs):
    found, (ours, theirs) = duel(programs, [{}, {}])
    assert (found["group"], found["job"], found["steps"]) == ("Tiny", "counting", 3)
    for side in (ours, theirs):
        assert side["failed"] is None
        assert side["difference"] == 0
        assert side["rounds"] == 2
        assert side["about"] == {"numpy": np.__version__}
        low, middle, high = side["processor"]
        assert 0 < low <= middle <= high
        memory = side["memory"]
        assert memory["started"] <= memory["held"] <= memory["peak"]
    assert ours["wall ratio"] == [1, 1, 1]


def test_what_fails_says_why_and_the_others_go_on(programs):
    def python_of(name):
        if name == "peer 0":
            raise RuntimeError("cannot be installed: no such package")
        return sys.executable

    faults = ["not installed", "built", "hangs", "dies"]
    told = [{}, *({"fails": fault} for fault in faults), {"rate": 1.1}, {}]
    _, (ours, *failed, last) = duel(programs, told, python_of, patience=3.0)
    assert ours["failed"] is None
    assert last["failed"] is None
    assert last["difference"] == 0
    assert [side["failed"] for side in failed] == [
        "cannot be installed: no such package",
        "ValueError: cannot be built",
        "TimeoutError: no answer to 'advance' in 3 s",
        "its process got SIGABRT at 'advance' (out of luck)",
        "differs from side 0 by 5.0e-02, more than 1e-06; not timed",
    ]
    for side in failed:
        assert "processor" not in side


def test_nothing_is_timed_where_mlox_itself_fails(programs):
    _, (ours, theirs) = duel(programs, [{"fails": "built"}, {}])
    assert ours["failed"] == "ValueError: cannot be built"
    assert theirs["failed"] == "side 0 has failed: there is nothing to compare with"
    assert "processor" not in theirs


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({"other": np.ones(2)}, ValueError),
        ({"total": np.ones(3)}, ValueError),
        ({"total": np.array([1.0, np.nan])}, FloatingPointError),
    ],
)
def test_outcomes_must_be_the_same_finite_arrays(programs, found, error):
    with pytest.raises(error):
        programs("_duel").difference(found, {"total": np.ones(2)})


def test_differences_are_relative_to_the_largest_entry_of_each_array(programs):
    expected = {"small": np.array([1e-3, 0.0]), "large": np.array([10.0, -20.0])}
    moved = {"small": np.array([1e-3, 1e-5]), "large": np.array([10.0, -20.1])}
    assert programs("_duel").difference(moved, expected) == pytest.approx(1e-2)


@pytest.mark.slow  # pip is installed
def test_an_environment_is_made_once_and_anew_where_its_requirements_change(
    programs, tmp_path
):
    module = programs("_environments")
    python = module.python_of("empty", tmp_path, ())
    made = python.lstat().st_mtime_ns
    assert module.python_of("empty", tmp_path, ()).lstat().st_mtime_ns == made
    with pytest.raises(RuntimeError, match=r"cannot be installed: .*no_such_folder"):
        module.python_of("empty", tmp_path, (("./no_such_folder",),))
    assert not (tmp_path / "empty.json").exists()


def test_a_failed_installation_is_tried_once(programs, tmp_path, monkeypatch):
    tried = []

    def python_of(*arguments):
        tried.append(arguments)
        raise RuntimeError("cannot be installed: no network")

    monkeypatch.setattr(programs("_environments"), "python_of", python_of)
    interpreter = programs("all").interpreters(tmp_path)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no network"):
            interpreter("betty")
    assert len(tried) == 1
    assert str(interpreter("jax")) == sys.executable


def results(programs, **changes):
    """Return results of one comparison: mlox, a peer, and one that has failed."""
    side = {"name": "mlox", "environment": "jax", "at_most": None, "at_least": None}
    side |= {"remark": "", "failed": None, "difference": 0.0, "about": {"jax": "1"}}
    side |= {"facts": {"flops": 2e6, "compile": 1.5}, "processor": [1e-3, 2e-3, 3e-3]}
    side |= {"wall": [1e-3, 2e-3, 3e-3], "processor ratio": [1.0, 1.0, 1.0]}
    side |= {"wall ratio": [1.0, 1.0, 1.0], "rounds": 9}
    side |= {"memory": {"started": 2**20, "held": 2**21, "peak": 2**22}}
    ratios = {"processor ratio": [2.0, 2.4, 2.6], "about": {"torch": "2"}}
    peer = {**side, **ratios, "name": "Betty", "environment": "betty", "facts": {}}
    fails = {"failed": "TimeoutError: no answer", "at_most": 1.05}
    kept = ("environment", "at_least", "remark")
    broken = {**{k: side[k] for k in kept}, **fails, "name": "by hand"}
    one = {"group": "Tiny", "job": "counting", "date": "2026-01-01"}
    one["command"] = "python benchmarks/all.py"
    one["sides"] = [side, {**peer, "at_least": 2.0, **changes}, broken]
    return {
        **programs("_record").about("python benchmarks/all.py"),
        "comparisons": [one],
    }


def test_the_page_says_what_was_measured_and_what_failed(programs, tmp_path):
    record, report = programs("_record"), programs("_report")
    record.write("side_by_side", results(programs), tmp_path)
    path = report.write(tmp_path)
    page = path.read_text()
    assert "**1 of 2 targets are met.**" in page
    assert "| Betty | 1 | 2.4 | 1 of 1 | 1 | 1 |" in page
    assert "| by hand | 0 |  | 0 of 1 |  |  |" in page
    assert "| met: ratio >= 2: 2.4 |" in page
    assert "| Tiny, counting | by hand | not measured: mlox / it <= 1.05 |" in page
    assert "|  | by hand | failed: TimeoutError: no answer |" in page
    assert "| 2 ms (1 ms to 3 ms) | 2.4 (2 to 2.6) | 1 | 3.0 MiB |" in page
    assert "| 3.0 MiB | 2.0 MiB | 2e+06 | 1.5 s |" in page
    assert "not measured on a GPU" in page
    assert report.check(tmp_path) == 0
    path.write_text(page.replace("2.4", "9.9"))
    assert report.check(tmp_path) == 1


def test_a_line_of_progress_has_at_most_100_columns(programs):
    (one,) = results(programs)["comparisons"]
    line = programs("_side_by_side").line("[1/2, 3 s]", one)
    assert line == "[1/2, 3 s] Tiny, counting: Betty 2.4, by hand FAILED"
    one["sides"] *= 20
    assert len(programs("_side_by_side").line("[1/2, 3 s]", one)) == 100


def test_a_missed_target_is_said_to_be_missed(programs):
    found = results(programs, **{"processor ratio": [1.0, 1.3, 1.4]})
    section = programs("_side_by_side").section(found)
    assert "**0 of 2 targets are met.**" in section
    assert "missed: ratio >= 2: 1.3" in section


def test_a_cause_is_given_with_the_targets_that_it_explains(programs):
    module, found = programs("_side_by_side"), results(programs)
    (one,) = found["comparisons"]
    one["group"] = "Meta-Weight-Net"
    assert "PyTorch" not in module.summary(found)
    one["sides"][1]["processor ratio"] = [1.0, 1.3, 1.4]
    assert "- **Meta-Weight-Net, Betty.**\n  Products take" in module.summary(found)


def test_every_missed_target_has_a_cause(programs):
    found = programs("_record").read("side_by_side")
    missed = programs("_side_by_side").missed_pairs(found)
    pairs = {
        (one.group, part.name)
        for name in LISTS
        for one in programs(f"peers.{name}").COMPARISONS
        for part in one.parts
    }
    assert set(missed) <= programs("_causes").CAUSES.keys() <= pairs


def test_a_side_with_variables_has_a_process_of_its_own(programs):
    variables = {"TINY": "in {folder}"}
    Part = programs("_comparison").Part
    parts = tuple(
        Part(name, "jax", "tests.tiny_side", {"read": "TINY"}, variables=own)
        for name, own in (("without", {}), ("with", variables))
    )
    module = programs("_duel")
    one = comparison(programs, {}, {})._replace(parts=parts)
    few = module.Amounts(rounds=1, most=1, seconds=0.0)
    sides = module.duel(one, lambda name: sys.executable, few)["sides"]
    assert sides[0]["about"]["TINY"] == "None"
    assert sides[1]["about"]["TINY"].startswith("in /")


def test_results_of_another_machine_are_not_mixed(programs):
    every, found = programs("all"), results(programs)
    about = {**found, "machine": {"processor": "another"}}
    assert len(every.earlier(found, found, "tiny")) == 1
    assert every.earlier(found, about, "") == {}
    with pytest.raises(SystemExit, match="another machine"):
        every.earlier(found, about, "tiny")


def test_the_page_of_results_is_current(programs):
    assert programs("_report").check(programs("_record").FOLDER) == 0


def test_records_hold_four_digits_and_no_name_of_the_machine(programs, tmp_path):
    record = programs("_record")
    about = record.about("python benchmarks/some.py")
    path = record.write("some", {**about, "value": [1.23456, np.inf, 3]}, tmp_path)
    found = record.read("some", tmp_path)
    assert found == json.loads(path.read_text())
    assert found["value"] == [1.235, None, 3]
    assert record.read("other", tmp_path) is None
    assert "python benchmarks/some.py" in record.describe(found)
    assert platform.node() not in json.dumps(found["machine"])


def test_the_command_knows_all_lists_of_comparisons(programs):
    assert set(LISTS) == set(programs("all").LISTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS)
def test_sides_in_jax_of_quick_comparisons_agree(programs, name):
    module = programs("_duel")
    few = module.Amounts(rounds=1, most=1, seconds=0.0)
    every = programs(f"peers.{name}").COMPARISONS
    for one in every:
        parts = tuple(part for part in one.parts if part.environment == "jax")
        if one.quick and parts:
            here = one._replace(parts=parts)
            found = module.duel(here, lambda name: sys.executable, few)
            failed = {side["name"]: side["failed"] for side in found["sides"]}
            assert set(failed.values()) == {None}, (one.job, failed)
    assert any(one.quick for one in every)
