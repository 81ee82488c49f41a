"""The table of a run: its columns are fixed, and every digit of a row is kept."""

import csv
import math

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from . import event_files


def read(path):
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def run(logger):
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: params**2 / 3,
    )
    engine = mlox.Engine([problem])
    _, history = engine.run(
        engine.init(),
        train_iters=5,
        log_every=2,
        valid_every=3,
        validation=lambda state: {"size": jnp.abs(state["x"].params)},
        loggers=[logger],
    )
    return history


def test_table_holds_the_history_of_the_named_metrics(tmp_path):
    path = tmp_path / "new" / "run.csv"
    history = run(mlox.csv_logger(path, ["validation/size", "x/loss"]))
    rows = read(path)
    assert list(rows[0]) == ["cycle", "validation/size", "x/loss"]
    assert [row["cycle"] for row in rows] == ["2", "3", "4", "5"]
    for name, cycles in (("x/loss", "cycle"), ("validation/size", "validation/cycle")):
        found = {int(row["cycle"]): float(row[name]) for row in rows if row[name]}
        expected = dict(zip(history[cycles], history[name], strict=True))
        assert found == expected
    assert [p.name for p in path.parent.iterdir()] == ["run.csv"]


def test_table_warns_once_of_a_metric_that_appears_later(tmp_path):
    path = tmp_path / "m.csv"
    with pytest.warns(UserWarning, match=r"leaves out \['validation/size'\].*columns"):
        run(mlox.csv_logger(path))
    rows = read(path)
    assert list(rows[0]) == ["cycle", "cycles_per_second", "x/loss"]
    assert [row["x/loss"] == "" for row in rows] == [False, True, False, False]
    logger = mlox.csv_logger(path)
    for names in ({"a"}, {"b"}):
        with pytest.warns(UserWarning, match=rf"leaves out \['{min(names)}'\]"):
            logger.log(6, {"a": 0.0, **dict.fromkeys(names, 0.0)})
    logger.log(7, {"a": 0.0, "b": 0.0})  # any other warning is an error


@hypothesis.given(
    columns=st.lists(st.sampled_from(["a", "b/c", 'd,"e"', "f\ng"]), unique=True),
    values=st.lists(st.lists(st.floats(), min_size=4, max_size=4), max_size=6),
    resumed=st.integers(0, 6),
)
@hypothesis.settings(max_examples=50)
def test_table_gives_back_every_value(tmp_path_factory, columns, values, resumed):
    path = tmp_path_factory.mktemp("table") / "m.csv"
    loggers = [mlox.csv_logger(path)]
    for cycle, row in enumerate(values):
        if cycle == resumed:
            loggers.append(mlox.csv_logger(path))
            loggers[-1].resume(cycle)
        loggers[-1].log(cycle, dict(zip(columns, row, strict=False)))
    found = [[float(row[name]) for name in columns] for row in read(path)]
    expected = [row[: len(columns)] for row in values]
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_table_is_continued_with_its_columns(tmp_path):
    path = tmp_path / "m.csv"
    mlox.csv_logger(path, ["a", "b"]).log(1, {"b": math.nan, "a": 0.1})
    mlox.csv_logger(path).log(2, {"b": 1 / 3, "a": -math.inf})
    mlox.csv_logger(path, ["b"]).log(3, {"a": 1.0})
    expected = b"cycle,a,b\n1,0.1,nan\n2,-inf,0.3333333333333333\n3,1.0,\n"
    assert path.read_bytes() == expected
    with pytest.warns(UserWarning, match=r"m.csv' leaves out \['c'\]"):
        mlox.csv_logger(path, ["b", "c"]).log(4, {"c": 1.0})


def test_table_drops_the_rows_after_the_step_of_resume(tmp_path):
    path = tmp_path / "m.csv"
    logger = mlox.csv_logger(path)
    logger.resume(0)
    assert path.read_text() == ""
    for cycle in range(1, 4):
        logger.log(cycle, {"a": float(cycle)})
    logger.resume(2)
    assert path.read_text() == "cycle,a\n1,1.0\n2,2.0\n"
    logger.resume(0)
    assert path.read_text() == "cycle,a\n"


def test_table_drops_a_last_row_that_was_cut_off(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("cycle,a\n1,0.5\n2,0.2")
    mlox.csv_logger(path).log(2, {"a": 0.25})
    assert path.read_text() == "cycle,a\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("content", [b"name,size\na,1\n", b"notes", b"\xff\xfe\x00"])
def test_table_raises_for_another_file_and_leaves_it(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m.csv' begins.*another path"):
        mlox.csv_logger(path)
    assert path.read_bytes() == content


def test_table_raises_at_once_if_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        mlox.csv_logger(tmp_path / "file" / "m.csv")


def test_resume_raises_for_a_row_without_a_cycle(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("cycle,a\n1,0.5\ntwo,0.25\n")
    with pytest.raises(ValueError, match=r"m.csv' has the row 'two,0.25'; expected"):
        mlox.csv_logger(path).resume(1)


@pytest.mark.parametrize(
    "line",
    [
        b'{"epoch": 3}',
        b'{"cycle": "a"}',
        b"null",
        b"[1]",
        b"\0\0\0\0\0",
        b"\xff",
        b'{"cycle": 1, "x/lo',
    ],
)
def test_resume_raises_for_a_line_without_a_cycle_and_leaves_it(tmp_path, line):
    path = tmp_path / "m.jsonl"
    content = b'{"cycle": 1}\n' + line + b'\n{"cycle": 2}\n'
    path.write_bytes(content)
    message = r"^json_logger: .*m.jsonl' has the row .*; expected a row"
    with pytest.raises(ValueError, match=message):
        mlox.json_logger(path).resume(1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("torn", [b'{"cycle": 2, "x/lo', b"\0\0\0\0\0"])
def test_resume_drops_a_last_line_that_was_cut_off(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    logger = mlox.json_logger(path)
    path.write_bytes(b'{"cycle": 1}\n' + torn)
    logger.resume(2)
    assert path.read_bytes() == b'{"cycle": 1}\n'


def test_files_stay_in_their_folder_when_the_working_folder_changes(
    tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: params**2,
    )
    engine = mlox.Engine([problem])

    def validation(state):
        monkeypatch.chdir(other)
        return {"a": 1.0}

    monkeypatch.chdir(tmp_path)
    loggers = [mlox.csv_logger("m.csv"), mlox.json_logger("m.jsonl")]
    engine.run(
        engine.init(),
        train_iters=3,
        log_every=1,
        validation=validation,
        loggers=loggers,
        logdir="logs",
    )
    loggers[0].resume(2)
    loggers[1].resume(2)
    assert [*other.iterdir()] == []
    assert [row["cycle"] for row in read(tmp_path / "m.csv")] == ["1", "2"]
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "logs/metrics.jsonl").read_text().splitlines()) == 3
    assert sorted(event_files.scalars(tmp_path / "logs")["x/loss"]) == [1, 2, 3]


@pytest.mark.parametrize("columns", ["a", [1], 3])
def test_table_raises_for_columns_that_are_not_names(tmp_path, columns):
    with pytest.raises(TypeError, match=r"csv_logger: columns is .* list of names"):
        mlox.csv_logger(tmp_path / "m.csv", columns)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("logger", [mlox.csv_logger, mlox.json_logger])
def test_logger_names_itself_and_a_file_that_it_cannot_write(tmp_path, logger):
    with pytest.raises(IsADirectoryError) as caught:
        logger(tmp_path)
    (note,) = caught.value.__notes__
    assert note.startswith(f"{logger.__name__} cannot write to {str(tmp_path)!r}; ")
    with pytest.raises(TypeError, match=f"{logger.__name__}: path is 3; expected a pa"):
        logger(3)


@pytest.mark.parametrize("logger", [mlox.csv_logger, mlox.json_logger])
def test_logger_names_itself_when_a_line_cannot_be_written(tmp_path, logger):
    path = tmp_path / "new" / "log"
    opened = logger(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        opened.log(1, {"a": 0.5})
    assert caught.value.__notes__[0].startswith(f"{logger.__name__} cannot write to ")
