"""Checkpoints: a run that stops and goes on is one that never stopped."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._checkpoint import arrays as _packing

from . import event_files

DATA = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6.0) % 3}


def inner_loss(params, batch, ctx):
    noise = jax.random.normal(ctx.rng, params["w"].shape)
    answer = batch["x"] @ (params["w"] + 0.01 * noise)
    mean = 0.9 * ctx.model_state + 0.1 * answer.mean()
    weight = jnp.exp(ctx.outer.params)
    loss = jnp.mean(jnp.tanh(answer - batch["y"] - mean) ** 2)
    penalty = weight * jnp.sum(params["w"] ** 2)
    return {"loss": loss + penalty, "model_state": mean, "mean": mean}


def outer_loss(params, batch, ctx):
    return jnp.mean((batch["x"] @ ctx.inner.params["w"] - batch["y"]) ** 2) + params**2


def make_engine(width=2, steps=2, outer_tx=None):
    outer = mlox.Problem.create(
        name="outer",
        params=jnp.array(-1.0),
        tx=optax.adam(0.1) if outer_tx is None else outer_tx,
        loss_fn=outer_loss,
    )
    inner = mlox.Problem.create(
        name="inner",
        params={"w": jnp.full(width, 0.1), "none": jnp.zeros((0, 2))},
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
        loss_fn=inner_loss,
        model_state=jnp.zeros(()),
        rng=jax.random.key(3),
        unroll_steps=steps,
    )
    return mlox.Engine(
        [outer, inner], u2l={"outer": ["inner"]}, l2u={"inner": ["outer"]}
    )


@pytest.fixture(scope="module")
def engine():
    return make_engine()


def series():
    inner = mlox.shuffled(DATA, 2, seed=1)
    return {"inner": inner, "outer": [DATA, {"x": -DATA["x"], "y": DATA["y"]}]}


def bits(tree):
    """All the bits of a state or a history, by path."""
    return {
        jax.tree_util.keystr(path): (
            np.asarray(
                jax.random.key_data(x)
                if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)
                else x
            ).tobytes()
        )
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


class StopError(Exception):
    pass


def score(state):
    return {"error": jnp.sum(state["inner"].params["w"] ** 2)}


def run(engine, cycles=12, stop_at=None, data=None, **options):
    """Run; with `stop_at`, fail in the first validation from that cycle on."""
    seen = []

    def validation(state):
        seen.append(int(state["outer"].step))
        if stop_at is not None and seen[-1] >= stop_at:
            raise StopError
        return score(state)

    given = {"loggers": (), "validation": validation, "valid_every": 1, "log_every": 4}
    data = series() if data is None else data
    return engine.run(engine.init(), data, cycles, **{**given, **options})


OPTIONS = {
    "one cycle per dispatch": {},
    "three cycles": {"cycles_per_dispatch": 3},
    "donated": {"donate": True, "cycles_per_dispatch": 2},
    "stopping": {
        "early_stopping": mlox.EarlyStopping("validation/error", "min", patience=3)
    },
    "donated and stopping": {
        "donate": True,
        "early_stopping": mlox.EarlyStopping("inner/loss", "max", patience=2),
    },
    "skipping": {"on_nonfinite": "skip"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("async_", [True, False])
def test_a_run_that_failed_and_goes_on_is_one_that_never_stopped(
    engine, tmp_path, options, async_
):
    expected = run(engine, **options)
    for stop_at, every in [(1, 1), (5, 2), (8, 3), (12, 5)]:
        folder = mlox.Checkpoint(tmp_path / str(stop_at), every=every, async_=async_)
        stops = contextlib.nullcontext()
        if stop_at <= expected[1]["validation/cycle"][-1]:
            stops = pytest.raises(mlox.RunError, match="StopError")
        with stops:
            run(engine, stop_at=stop_at, checkpoint=folder, **options)
        found = run(engine, checkpoint=folder, resume=True, **options)
        assert bits(found) == bits(expected)
        assert list(found[1]) == list(expected[1])


def test_a_run_that_has_ended_is_returned_or_made_longer(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    first = run(engine, 8, checkpoint=folder)
    again = run(engine, 8, stop_at=0, checkpoint=folder, resume=True)
    assert bits(again) == bits(first)
    longer = run(engine, 12, checkpoint=folder, resume=True)
    assert bits(longer) == bits(run(engine, 12))


def test_resume_without_a_checkpoint_begins(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path / "new")
    found = run(engine, 4, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 4))


def test_a_folder_that_holds_a_run_is_not_written_over(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    run(engine, 4, checkpoint=folder)
    message = "holds a run that has reached cycle 4.*`resume=True`, or choose another"
    with pytest.raises(FileExistsError, match=message):
        run(engine, 4, checkpoint=folder)


#
# Logs
#


def test_logs_have_no_holes_and_no_doubled_steps(engine, tmp_path):
    def files(folder):
        return {
            "logdir": folder,
            "loggers": [mlox.csv_logger(folder / "table.csv")],
            "log_every": 1,
        }

    run(engine, **files(tmp_path / "whole"))
    folder = mlox.Checkpoint(tmp_path / "saved", every=5)
    for stop_at in (3, 8, 11):
        with pytest.raises(mlox.RunError):
            run(
                engine,
                stop_at=stop_at,
                checkpoint=folder,
                resume=True,
                **files(tmp_path / "parts"),
            )
    with (tmp_path / "parts/metrics.jsonl").open("a") as torn:
        torn.write('{"cycle": 11, "inn')
    run(engine, checkpoint=folder, resume=True, **files(tmp_path / "parts"))

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        for row in found:
            row.pop("cycles_per_second", None)
        return found

    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    tables = [
        [line.split(",") for line in (tmp_path / x / "table.csv").read_text().split()]
        for x in ("parts", "whole")
    ]
    speed = tables[0][0].index("cycles_per_second")
    for table in tables:
        for row in table:
            row.pop(speed)
    assert tables[0] == tables[1]
    scalars = [event_files.scalars(tmp_path / x) for x in ("parts", "whole")]
    for found in scalars:
        found.pop("cycles_per_second")
    assert scalars[0] == scalars[1]
    assert scalars[0]["inner/loss"].keys() == set(range(1, 13))


#
# What is kept
#


def folders(path):
    return sorted(int(x.name) for x in path.iterdir() if x.name.isdigit())


def test_the_newest_and_the_best_are_kept_also_after_a_resumption(engine, tmp_path):
    given = {"keep": 2, "best": "validation/error", "mode": "max", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 8, checkpoint=folder)
    _, history = run(engine, 16, checkpoint=folder, resume=True)
    scores = history["validation/error"][1::2]
    best = 2 * (1 + int(np.argmax(scores)))
    assert folders(tmp_path) == sorted({best, 14, 16})
    state = mlox.restore(tmp_path, engine.init(), cycle="best")
    assert float(score(state)["error"]) == scores.max()
    assert int(mlox.restore(tmp_path, engine.init(), cycle=14)["outer"].step) == 14
    assert int(mlox.restore(tmp_path, engine.init())["outer"].step) == 16


def test_what_restore_does_not_find_is_told(engine, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No checkpoints: .*no' is no folder"):
        mlox.restore(tmp_path / "no", engine.init())
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 'newest' .*are \[\]"):
        mlox.restore(tmp_path, engine.init())
    run(engine, 4, checkpoint=mlox.Checkpoint(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 3 .* there are \[4\]"):
        mlox.restore(tmp_path, engine.init(), cycle=3)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint 'best' in"):
        mlox.restore(tmp_path, engine.init(), cycle="best")


#
# Faults of files
#


def truncate(folder):
    file = folder / "arrays" / "bytes"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(folder):
    """Change one bit of one array."""
    file = folder / "arrays" / "bytes"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


def without_arrays(folder):
    (folder / "arrays" / "bytes").unlink()


def empty_notes(folder):
    (folder / "notes" / "metadata").write_text("")


def change_notes(folder):
    """Change what is valid JSON before and after: where the data go on."""
    file = folder / "notes" / "metadata"
    text = file.read_text()
    assert '"positions": {' in text
    file.write_text(text.replace('"positions": {', '"positions": {"x": 1, '))


def without_notes(folder):
    (folder / "notes" / "metadata").unlink()


HARMS = [truncate, flip, without_arrays, empty_notes, change_notes, without_notes]


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(
    engine, tmp_path, harm
):
    folder = mlox.Checkpoint(tmp_path, every=2)
    run(engine, 6, checkpoint=folder)
    harm(tmp_path / "6")
    with pytest.warns(UserWarning, match=r"/6' is broken .*after cycle 4 is taken"):
        state = mlox.restore(tmp_path, engine.init())
    assert int(state["outer"].step) == 4
    with pytest.raises(ValueError, match=r"/6' is broken"):
        mlox.restore(tmp_path, engine.init(), cycle=6)
    with pytest.warns(UserWarning, match=r"/6' is broken .*after cycle 4 is taken"):
        found = run(engine, 8, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 8))
    assert (tmp_path / "broken-6-0").is_dir()
    assert folders(tmp_path) == [4, 6, 8]


def test_without_a_whole_checkpoint_nothing_runs(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2)
    run(engine, 4, checkpoint=folder)
    truncate(tmp_path / "2")
    empty_notes(tmp_path / "4")
    with pytest.raises(ValueError, match=r"No checkpoint is whole.*/4' is.*/2' is"):
        run(engine, 4, checkpoint=folder, resume=True)
    assert folders(tmp_path) == [2, 4]


@pytest.mark.parametrize("harm", [empty_notes, change_notes])
def test_damaged_notes_of_an_old_checkpoint_stop_nothing(engine, tmp_path, harm):
    given = {"keep": 2, "best": "validation/error", "mode": "max", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 8, checkpoint=folder)
    harm(tmp_path / "6")
    with pytest.warns(UserWarning, match=r"/6' is broken .* It is left out"):
        mlox.restore(tmp_path, engine.init(), cycle="best")
    with pytest.warns(UserWarning, match=r"/6' is broken .* It is set aside"):
        found = run(engine, 12, checkpoint=folder, resume=True)
    assert bits(found) == bits(run(engine, 12))
    assert (tmp_path / "broken-6-0").is_dir()
    assert folders(tmp_path)[-2:] == [10, 12]


def test_notes_that_are_damaged_while_a_run_goes_on_stop_nothing(engine, tmp_path):
    given = {"keep": 2, "best": "validation/error", "every": 2}
    folder = mlox.Checkpoint(tmp_path, **given)
    run(engine, 4, checkpoint=folder)

    def damaging(state):
        if int(state["outer"].step) == 7:
            empty_notes(tmp_path / "4")
        return score(state)

    run(engine, 12, checkpoint=folder, resume=True, validation=damaging)
    assert folders(tmp_path)[-2:] == [10, 12]


def test_what_a_killed_run_was_about_to_delete_is_deleted(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2, keep=2)
    run(engine, 8, checkpoint=folder)
    shutil.copytree(tmp_path / "6", tmp_path / "2")
    shutil.copytree(tmp_path / "6", tmp_path / "4")
    without_notes(tmp_path / "2")  # deletion had begun
    run(engine, 8, checkpoint=folder, resume=True)
    assert folders(tmp_path) == [6, 8]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["6", "8"]


#
# Reading changes nothing
#


def content(path):
    return {x: x.read_bytes() for x in path.rglob("*") if x.is_file()}


def test_reading_changes_nothing_in_a_folder_in_which_a_run_writes(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path, every=2, keep=2, best="validation/error")
    run(engine, 6, checkpoint=folder)
    shutil.copytree(tmp_path / "6", tmp_path / "8.orbax-checkpoint-tmp-12/notes")
    empty_notes(tmp_path / "6")
    shutil.copytree(tmp_path / "4", tmp_path / "2", dirs_exist_ok=True)
    before = content(tmp_path)
    with pytest.warns(UserWarning, match="is broken"):
        mlox.restore(tmp_path, engine.init())
    with pytest.warns(UserWarning, match="is broken"):
        mlox.restore(tmp_path, engine.init(), cycle="best")
    mlox.restore(tmp_path, engine.init(), cycle=4)
    with pytest.raises(FileExistsError, match="holds a run"):
        run(engine, 6, checkpoint=folder)
    assert content(tmp_path) == before
    with pytest.warns(UserWarning, match="is broken"):
        run(engine, 8, checkpoint=folder, resume=True)
    assert not list(tmp_path.glob("*tmp*"))


def test_orbax_alone_can_read_what_was_saved(engine, tmp_path):
    import orbax.checkpoint as ocp

    from mlox._checkpoint import orbax as _orbax

    run(engine, 2, checkpoint=mlox.Checkpoint(tmp_path))
    with ocp.CheckpointManager(tmp_path) as manager:
        notes, arrays = _orbax.Bytes(file="metadata"), _orbax.Bytes()
        args = ocp.args.Composite(notes=notes, arrays=arrays)
        read = manager.restore(2, args=args)
    assert json.loads(read.notes.tobytes())["notes"]["cycle"] == 2
    assert read.arrays.tobytes() == (tmp_path / "2/arrays/bytes").read_bytes()


def test_all_kinds_of_arrays_are_packed_wherever_they_begin():
    trees = {
        "a": {
            "flags": jnp.array([True, False, True]),
            "half": jnp.arange(5, dtype=jnp.bfloat16),
            "key": jax.random.key(3),
            "complex": jnp.array([1 + 2j]),
            "none": jnp.zeros((0, 3)),
            "number": 0.5,
            "numpy": np.arange(6.0).reshape(2, 3)[:, ::2],
            "int8": jnp.arange(-3, 2, dtype=jnp.int8),
        }
    }
    pack = _packing.packed(_packing.flattened(trees))
    assert pack.data.nbytes == sum(leaf.size for leaf in pack.leaves.values())
    arrays = _packing.unpacked(pack.leaves, pack.data)
    assert bits(_packing.filled("a", trees["a"], arrays)) == bits(trees["a"])
    with pytest.raises(ValueError, match=r"there are 1 bytes of arrays instead of \d+"):
        _packing.unpacked(pack.leaves, pack.data[:1])


#
# Other engines
#


@pytest.mark.parametrize(
    ("other", "differences"),
    [
        (
            make_engine(width=3),
            [r"'inner'\]\.params\['w'\]: float64\[2\] there, float6"],
        ),
        (make_engine(steps=3), ["unroll_steps: .*'inner': 2.* there, .*'inner': 3"]),
        (
            make_engine(outer_tx=optax.sgd(0.1)),
            [r"\['outer'\]\.opt_state\[0\]\.mu: float64\[\] there, nothing here"],
        ),
        (
            mlox.Engine([make_engine().problems[1].replace(name="alone")]),
            ["problems: .*there", "u2l: .* there, .* here", "'alone'.*: nothing there"],
        ),
    ],
    ids=["shape", "schedule", "optimizer", "graph"],
)
def test_a_checkpoint_of_another_engine_is_refused(
    engine, tmp_path, other, differences
):
    folder = mlox.Checkpoint(tmp_path)
    run(engine, 2, checkpoint=folder)
    with pytest.raises(ValueError, match="is of another engine or state") as caught:
        other.run(
            other.init(), train_iters=2, checkpoint=folder, resume=True, loggers=()
        )
    for difference in differences:
        assert pytest.RaisesExc(ValueError, match=difference).matches(caught.value)


def test_long_differences_are_cut(engine, tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    many = mlox.Problem.create(
        name="x",
        params=[jnp.zeros(())] * 40,
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: sum(params),
    )
    run(engine, 2, checkpoint=folder)
    with pytest.raises(ValueError, match=r"\n  and \d+ more\nGo on with the engine"):
        mlox.restore(tmp_path, mlox.Engine([many]).init())


#
# Processes: signals, a full disk
#

SCRIPT = """
    import pathlib, resource, signal, sys
    import jax, jax.numpy as jnp, numpy as np, optax
    import mlox

    jax.config.update("jax_enable_x64", True)
    folder, cycles, resume = sys.argv[1], int(sys.argv[2]), "resume" in sys.argv
    x = mlox.Problem.create(
        name="x", tx=optax.adam(0.01), rng=0,
        params=jax.random.normal(jax.random.key(0), 4000),
        loss_fn=lambda params, batch, ctx:
            jnp.sum((params - batch - jax.random.normal(ctx.rng)) ** 2))
    engine = mlox.Engine([x])

    class Report:
        def log(self, step, metrics):
            print(step, flush=True)

        def close(self):
            print("closed", flush=True)

    def validation(state):
        if "full" in sys.argv and int(state["x"].step) == 12:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return {"mean": state["x"].params.mean()}

    try:
        state, _ = engine.run(
            engine.init(), {"x": mlox.shuffled(np.arange(100.0), 1)}, cycles,
            log_every=1, loggers=[Report()], validation=validation, resume=resume,
            checkpoint=mlox.Checkpoint(folder, every=10, async_="full" not in sys.argv))
        print("end", np.asarray(state["x"].params).tobytes().hex()[:4000])
    except (mlox.RunError, mlox.RunInterrupted) as stopped:
        print("stopped", stopped.cycle, stopped)
"""


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def output(folder, *arguments):
    process = start(folder, *arguments)
    text, _ = process.communicate(timeout=300)
    return text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_dispatch_end_and_saves(tmp_path, number):
    process = start(tmp_path, "1000000")
    for line in process.stdout:
        if line.strip() == "13":
            process.send_signal(number)
            break
    text, _ = process.communicate(timeout=300)
    stopped = next(x for x in text.splitlines() if x.startswith("stopped"))
    cycle = int(stopped.split()[1])
    assert folders(tmp_path)[-1] == cycle
    assert f"at a signal after cycle {cycle} of 1000000" in stopped
    assert f"{number.name} came. All is saved in" in stopped
    assert "closed" in text
    until = str(cycle + 7)
    resumed = output(tmp_path, until, "resume").splitlines()
    assert resumed[0] == str(cycle + 1)
    assert resumed[-1] == output(tmp_path / "whole", until).splitlines()[-1]


def test_a_full_disk_is_an_error_and_the_checkpoint_before_is_whole(tmp_path):
    text = output(tmp_path, "30", "full")
    stopped = next(x for x in text.splitlines() if x.startswith("stopped"))
    assert "failed at" in stopped
    assert "File too large" in stopped or "limit" in stopped
    assert folders(tmp_path) == [10]
    resumed = output(tmp_path, "30", "resume").splitlines()
    assert resumed[0] == "11"
    assert resumed[-1] == output(tmp_path / "whole", "30").splitlines()[-1]


#
# Arguments
#


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"directory": 3}, TypeError, "directory is 3; expected a path"),
        ({"directory": ""}, TypeError, "directory is ''; expected a path"),
        ({"directory": "gs://runs/1"}, ValueError, "Mount the bucket"),
        ({"every": 0}, ValueError, "every is 0; expected a positive int"),
        ({"keep": 1.5}, ValueError, "keep is 1.5; expected a positive int"),
        ({"best": "error"}, ValueError, "best is 'error'; expected the name of a sca"),
        ({"mode": "most"}, ValueError, "mode is 'most'; expected 'min'"),
        ({"async_": None}, TypeError, "async_ is None; expected True or False"),
    ],
)
def test_values_of_a_checkpoint_are_checked(values, kind, message):
    with pytest.raises(kind, match=message):
        mlox.Checkpoint(**{"directory": "here", **values})


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"checkpoint": "here"}, TypeError, "`checkpoint` is 'here'; expected a mlox"),
        (
            {"resume": True},
            ValueError,
            "`resume` is True, but there is no `check",
        ),
        ({"resume": 1}, TypeError, "`resume` is 1; expected True or False"),
        (
            {"checkpoint": mlox.Checkpoint("x", best="validation/error")},
            ValueError,
            "keeps the best 'validation/error', but there is no `validation`",
        ),
        (
            {"checkpoint": mlox.Checkpoint("x", best="inner/loss", every=3)},
            ValueError,
            "recorded every 2 cycles, but saves every 3.*multiple of `log_every`",
        ),
    ],
)
def test_options_of_checkpoints_are_checked(engine, options, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        engine.run(engine.init(), series(), 4, loggers=(), log_every=2, **options)
    assert not pathlib.Path("x").exists()


class TestRefusals:
    """What cannot be saved to, restored from, or resumed."""

    def problem(self, **metrics):
        return mlox.Engine(
            [
                mlox.Problem.create(
                    name="x",
                    params=jnp.ones(()),
                    tx=optax.sgd(0.25),
                    loss_fn=lambda p, batch, ctx: {"loss": p**2, **metrics},
                )
            ]
        )

    def run(self, engine, folder, train_iters=2, **options):
        checkpoint = mlox.Checkpoint(folder, every=1)
        given = {"checkpoint": checkpoint, "loggers": (), **options}
        return engine.run(engine.init(), None, train_iters, **given)

    @pytest.mark.parametrize("path", ["file", "file/first"])
    def test_a_folder_that_is_a_file(self, tmp_path, path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            NotADirectoryError, match=r"^`checkpoint`: .*file' is a file"
        ):
            self.run(self.problem(), tmp_path / path)

    @pytest.mark.parametrize("best", ["x/error", "y/loss", "validation/error"])
    def test_a_best_that_nothing_records(self, tmp_path, best):
        message = f"keeps the best '{best}', but no scalar is recorded under this name"
        with pytest.raises(mlox.RunError, match=message):
            self.run(
                self.problem(),
                tmp_path,
                checkpoint=mlox.Checkpoint(tmp_path, every=1, best=best),
                validation=lambda state: {"accuracy": 0.5},
            )

    @pytest.mark.parametrize("options", [{}, {"on_nonfinite": "skip"}])
    def test_other_metrics(self, tmp_path, options):
        before, after = self.problem(), self.problem(**({} if options else {"a": 0.0}))
        self.run(before, tmp_path)
        message = "the run that is resumed recorded other metrics: .* on one side only"
        with pytest.raises(mlox.RunError, match=message):
            self.run(after, tmp_path, 4, resume=True, **options)

    @pytest.mark.parametrize("cycles", [1, 2])
    def test_fewer_cycles_than_are_behind(self, tmp_path, cycles):
        engine = self.problem()
        self.run(engine, tmp_path, 3)
        message = f"`train_iters` is {cycles}, but the run that is resumed has reached "
        with pytest.raises(ValueError, match=message):
            self.run(engine, tmp_path, cycles, resume=True, cycles_per_dispatch=3)

    @pytest.mark.parametrize("cycle", ["last", 1.0, True])
    def test_cycles_that_are_none(self, tmp_path, cycle):
        with pytest.raises(
            ValueError, match=r"restore: cycle is .*; expected 'newest'"
        ):
            mlox.restore(tmp_path, self.problem().init(), cycle=cycle)

    def test_states_and_folders_that_are_none(self, tmp_path):
        with pytest.raises(TypeError, match="restore: state holds a leaf of type str"):
            mlox.restore(tmp_path, {"x": "text"})
        with pytest.raises(TypeError, match="directory is 3; expected a path"):
            mlox.restore(3, self.problem().init())
