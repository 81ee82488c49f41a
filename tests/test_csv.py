"""The table of a run: nothing is lost, whatever appears when; every digit is kept."""

import csv
import math

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import optax
import pytest

import mlox


def read(path):
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_table_holds_the_history(tmp_path):
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: params**2 / 3,
    )
    engine = mlox.Engine([problem])
    path = tmp_path / "new" / "run.csv"
    _, history = engine.run(
        engine.init(),
        train_iters=5,
        log_every=2,
        valid_every=3,
        validation=lambda state: {"size": jnp.abs(state["x"].params)},
        loggers=[mlox.csv_logger(path)],
    )
    rows = read(path)
    assert list(rows[0]) == ["cycle", "cycles_per_second", "x/loss", "validation/size"]
    assert [row["cycle"] for row in rows] == ["2", "3", "4", "5"]
    for name, cycles in (("x/loss", "cycle"), ("validation/size", "validation/cycle")):
        found = {int(row["cycle"]): float(row[name]) for row in rows if row[name]}
        assert found == dict(zip(history[cycles], history[name], strict=True))
    assert [p.name for p in path.parent.iterdir()] == ["run.csv"]


@hypothesis.given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["a", "b/c", 'd,"e"', "f\ng"]), st.floats()),
        max_size=6,
    ),
    resumed=st.integers(0, 6),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_every_value_is_read_back_as_it_was(tmp_path_factory, rows, resumed):
    path = tmp_path_factory.mktemp("table") / "m.csv"
    loggers = [mlox.csv_logger(path)]
    for cycle, row in enumerate(rows):
        if cycle == resumed:
            loggers.append(mlox.csv_logger(path))
        loggers[-1].log(cycle, row)
    found = [{k: float(v) for k, v in row.items() if v} for row in read(path)]
    expected = [{"cycle": float(cycle), **row} for cycle, row in enumerate(rows)]
    assert [{k: repr(v) for k, v in row.items()} for row in found] == [
        {k: repr(v) for k, v in row.items()} for row in expected
    ]


def test_a_table_is_continued(tmp_path):
    path = tmp_path / "m.csv"
    for cycle, name in enumerate(["a", "b"], 1):
        logger = mlox.csv_logger(path)
        logger.log(cycle, {name: math.nan, "c": 0.1})
        logger.close()
    assert path.read_bytes() == b"cycle,a,c,b\n1,nan,0.1,\n2,,0.1,nan\n"


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("cycle,a\n1,0.5\n2,0.2")
    mlox.csv_logger(path).log(2, {"a": 0.25})
    assert path.read_text() == "cycle,a\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("content", [b"name,size\na,1\n", b"notes", b"\xff\xfe\x00"])
def test_another_file_is_not_touched(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"m.csv' exists and is no table.*another path"
    ):
        mlox.csv_logger(path)
    assert path.read_bytes() == content


def test_a_table_that_cannot_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mlox.csv_logger(tmp_path / "file" / "m.csv")


def test_a_row_that_is_none_of_ours_is_shown_when_a_run_resumes(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("cycle,a\n1,0.5\ntwo,0.25\n")
    with pytest.raises(ValueError, match=r"m.csv' has the row 'two,0.25', which does "):
        mlox.csv_logger(path).resume(1)


@pytest.mark.parametrize("logger", [mlox.csv_logger, mlox.json_logger])
def test_a_file_that_cannot_be_written_is_named_with_its_logger(tmp_path, logger):
    with pytest.raises(IsADirectoryError) as caught:
        logger(tmp_path)
    (note,) = caught.value.__notes__
    assert note.startswith(f"{logger.__name__} cannot write to {str(tmp_path)!r}; ")
    with pytest.raises(TypeError, match=f"{logger.__name__}: path is 3; expected the"):
        logger(3)


@pytest.mark.parametrize("logger", [mlox.csv_logger, mlox.json_logger])
def test_a_line_that_cannot_be_written_is_noted(tmp_path, logger):
    path = tmp_path / "new" / "log"
    opened = logger(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        opened.log(1, {"a": 0.5})
    assert caught.value.__notes__[0].startswith(f"{logger.__name__} cannot write to ")
