"""Problems, engines, states and histories show themselves on a few lines, always."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._problem.optimizer_name import name_optimizer
from mlox._run.history import History
from mlox._utils.describe import summarize

from .small import fit_loss, pair, problem, single

PARAMS = {"w": jnp.ones((3, 4), jnp.float32), "b": jnp.ones(4, jnp.float32)}
NET = problem(
    "net",
    params=PARAMS,
    loss_fn=fit_loss,
    tx=optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
    method=mlox.Implicit(mlox.CG(iterations=7)),
    unroll_steps=20,
    model_state={"mean": jnp.zeros(4, jnp.float32)},
)
SHOWN = """\
Problem('net', step=0, params={'b': float32[4], 'w': float32[3, 4]} (16 numbers),
    model_state={'mean': float32[4]}, loss_fn=fit_loss,
    tx=chain(clip, scale_by_adam, add_decayed_weights),
    method=Implicit(CG(iterations=7)), unroll_steps=20)"""


def test_a_problem_shows_shapes_and_what_was_chosen():
    assert repr(NET) == SHOWN
    assert repr(problem(loss_fn=lambda params, batch, ctx: 0.0)) == (
        "Problem('fit', step=0, params=float32[2], tx=sgd, method=Implicit())"
    )


def test_a_problem_counts_the_numbers_of_many_arrays():
    many = problem(params=[jnp.ones((30, 40))] * 20, tasks=3)
    text = "params=20 arrays of float32 (72,000 numbers)"
    assert text.replace("float32", str(jnp.ones(()).dtype)) in repr(many)
    assert "tasks=3" in repr(many)


def test_a_problem_is_shown_while_jax_traces_it():
    seen = []

    def look(problem):
        seen.append(repr(problem))
        return problem.replace(step=problem.step + 1)

    jax.eval_shape(look, NET)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), NET)
    jax.vmap(look)(stacked)
    assert seen == [SHOWN.replace("step=0", "step=int32[]")] * 2
    assert "step=int32[2]" in repr(stacked)
    assert "step=int32[]" in repr(jax.eval_shape(lambda x: x, NET))


def test_a_donated_state_says_so():
    engine = single()
    state = engine.init()
    after, _ = engine.compile(donate=True)(state, {"fit": None})
    assert "Problem('fit', donated, step=int32[], params=float32[2]" in repr(state)
    assert "Problem('fit', step=1, params=float32[2]" in repr(after)


@pytest.mark.parametrize("leaf", [object(), None, "float32[2]", 1.5, np.ones(2)])
def test_a_problem_is_shown_with_anything_in_the_place_of_arrays(leaf):
    leaves, structure = jax.tree.flatten(NET)
    assert "Problem('net', " in repr(
        jax.tree.unflatten(structure, [leaf] * len(leaves))
    )


def test_a_problem_is_shown_with_params_that_jax_cannot_flatten():
    wrong = NET.replace(params={1: jnp.ones(2), "a": jnp.ones(2)})
    assert "params={1: Array(" in repr(wrong)


def test_errors_show_a_problem_without_its_arrays():
    assert "params={'b': float32[4], 'w': float32[3, 4]}" in summarize(NET)


def test_every_state_of_a_run_fits_a_screen():
    text = repr(pair().init())
    assert len(text.split("\n")) == 3
    assert max(map(len, text.split("\n"))) < 160


@pytest.mark.parametrize(
    ("tx", "name"),
    [
        (optax.sgd(0.1, momentum=0.9), "trace"),
        (optax.adam(optax.constant_schedule(0.1)), "scale_by_adam"),
        (optax.identity(), "identity"),
        (optax.masked(optax.adam(0.1), True), "masked"),
        (optax.inject_hyperparams(optax.adam)(0.1), "inject_hyperparams"),
        (
            optax.named_chain(("a", optax.adam(0.1)), ("b", optax.clip(1.0))),
            "chain(scale_by_adam, scale, clip)",
        ),
        (
            optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
            "MultiSteps",
        ),
        (optax.GradientTransformation(dict, lambda u, s, p: (u, s)), "<lambda>"),
        (object(), "<object object>"),
    ],
)
def test_optimizers_are_named(tx, name):
    assert name_optimizer(tx) == name


def test_an_engine_shows_a_line_for_each_problem():
    method = mlox.Implicit(mlox.CG(iterations=7))
    engine = pair({"method": method}, coupling="direct", telemetry=True)
    assert repr(engine).split("\n") == [
        "Engine(2 problems, 2 ticks in a cycle, coupling='direct', telemetry=True)",
        "  penalty  1 step per cycle   2 parameters  reads fit",
        "  fit      2 steps per cycle  2 parameters  reads penalty  "
        "Implicit(CG(iterations=7))",
    ]


def test_an_engine_of_many_problems_shows_the_first():
    lines = repr(mlox.Engine([problem(f"p{i}") for i in range(40)])).split("\n")
    assert len(lines) == 1 + 16 + 1
    assert lines[-1] == "  and 24 more: see engine.explain()"


class TestHistories:
    HISTORY = History(
        {
            "cycle": np.array([5, 10]),
            "fit/loss": np.array([0.123456, 1e-9]),
            "fit/loss_per_task": np.ones((2, 3)),
            "validation/cycle": np.array([10]),
            "best_cycle": np.asarray(10),
        }
    )

    def test_history_shows_the_first_and_the_last_values(self):
        assert repr(self.HISTORY).split("\n") == [
            "History of 2 log points up to cycle 10",
            "  fit/loss           0.123 -> 1e-09",
            "  fit/loss_per_task  float64[2, 3]",
            "  validation/cycle   10",
            "  best_cycle         10",
        ]

    def test_history_is_what_a_run_returns(self):
        engine = single()
        options = {"train_iters": 4, "log_every": 2, "loggers": ()}
        _, history = engine.run(engine.init(), **options)
        assert repr(history).startswith("History of 2 log points up to cycle 4\n")

    def test_history_is_a_dict_for_jax(self):
        assert jax.tree.map(len, {**self.HISTORY, "best_cycle": ""})["fit/loss"] == 2
        shapes = jax.tree.map(np.shape, self.HISTORY)
        assert list(shapes) == sorted(self.HISTORY)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.HISTORY)]
        assert jax.tree_util.keystr(paths[0]) == "['best_cycle']"
        text = repr(jax.tree.map(lambda x: None, self.HISTORY))
        assert "fit/loss           None" in text

    def test_history_of_many_metrics_shows_the_first(self):
        text = repr(History({f"m{i}": np.ones(2) for i in range(50)}))
        assert text.split("\n")[-1] == "  and 10 more"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (mlox.Implicit(), "Implicit()"),
        (mlox.Implicit(mlox.CG(5)), "Implicit(CG(iterations=5))"),
        (mlox.Implicit(mlox.Dense(), refine=1), "Implicit(Dense(), refine=1)"),
        (mlox.Unrolled(last_steps=2), "Unrolled(last_steps=2)"),
        (mlox.FiniteDifference(), "FiniteDifference(epsilon=0.01)"),
        (mlox.CG(tolerance=0.5), "CG(iterations=10, tolerance=0.5)"),
    ],
)
def test_methods_and_solvers_show_the_call_that_makes_them(value, text):
    assert repr(value) == text
    assert eval(text, vars(mlox)) == value
