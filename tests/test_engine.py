"""The engine: what it refuses, what it runs, and that it runs just what it says.

Numbers are held against loops written out by hand in plain JAX; hypergradients of
deep graphs against solved nested problems are in `test_laws.py`.
"""

import dataclasses
import functools
import itertools
import pickle
import re
import types

import chex
import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .small import clip_smoothly
from .test_graph import ladder, simulate

SGD = optax.sgd(0.1)
FROZEN = optax.sgd(0.0)
U2L, L2U = {"outer": ["inner"]}, {"inner": ["outer"]}
NO_DATA = {"outer": None, "inner": None}


def nothing(params, batch, ctx):
    """Read every neighbour, to no effect."""
    reads = sum(optax.tree.sum(other.params) for other in ctx.neighbours.values())
    away = 0 * optax.tree.sum(params) * reads
    return 0.5 * optax.tree.norm(params, squared=True) + away


def problem(name, method=None, steps=1, *, tx=SGD, loss_fn=nothing, **parts):
    parts = {"params": jnp.ones(2), **parts}
    return mlox.Problem.create(
        name=name, tx=tx, loss_fn=loss_fn, method=method, unroll_steps=steps, **parts
    )


def pair(method=None, steps=1, **options):
    problems = [problem("outer"), problem("inner", method, steps)]
    return mlox.Engine(problems, U2L, L2U, **options)


def chain(methods, steps, loss_of=lambda reads: nothing, **parts):
    """Make t > p > c, or s > t > p > c, each reading its neighbours."""
    names = "stpc"[-len(methods) :]
    neighbours = {
        n: [names[j] for j in (i - 1, i + 1) if 0 <= j < len(names)]
        for i, n in enumerate(names)
    }
    problems = [
        problem(n, method, count, loss_fn=loss_of(tuple(neighbours[n])), **parts)
        for n, method, count in zip(names, methods, steps, strict=True)
    ]
    pairs = list(itertools.pairwise(names))
    return mlox.Engine(problems, {a: [b] for a, b in pairs}, {b: [a] for a, b in pairs})


def traced(engine, batches=None, state=None):
    """Trace one step; nothing is compiled."""
    batches = dict.fromkeys(engine.names) if batches is None else batches
    return jax.eval_shape(engine.step, state or engine.init(), batches)


def close(found, expected, rtol):
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=rtol)


class TestBuilding:
    @pytest.mark.parametrize(
        ("problems", "message"),
        [
            (None, "problems is None; expected a list of problems."),
            ([problem], "; expected a problem, made by mlox.Problem.create."),
        ],
    )
    def test_no_list_of_problems(self, problems, message):
        with pytest.raises(TypeError, match=re.escape(message)):
            mlox.Engine(problems)

    @pytest.mark.parametrize("kind", ["u2l", "l2u"])
    @pytest.mark.parametrize(
        ("edges", "message"),
        [
            ([("a", "b")], "{} is [('a', 'b')]; expected a dict from a problem to a"),
            ({"a": None}, "{}['a'] is a NoneType; expected a list of problems, e.g. "),
            ({"a": problem("b")}, "{}['a'] is a Problem; expected a list of problems"),
            ({"a": [3]}, "{} holds 3; expected the name of a problem, or a Problem."),
            ({3: ["a"]}, "{} holds 3; expected the name of a problem, or a Problem."),
        ],
    )
    def test_no_edges(self, kind, edges, message):
        with pytest.raises(TypeError, match=re.escape(message.format(kind))):
            mlox.Engine([problem("a"), problem("b")], **{kind: edges})

    @pytest.mark.parametrize(
        ("u2l", "l2u", "message"),
        [
            ({"a": "b"}, {"b": ["a"]}, "u2l['a'] is the string 'b'; expected a list"),
            ({"a": ["b"]}, {"b": ["a", "a"]}, "l2u edge 'b' -> 'a' is given twice."),
            ({"a": ["c"]}, {}, "names an unknown problem 'c'; the engine's problems"),
            ({"a": ["b"]}, {}, "u2l edge 'a' -> 'b' has no way back: no chain of l2u"),
            ({}, {"a": ["b"], "b": ["a"]}, "l2u has a cycle: a -> b -> a."),
        ],
    )
    def test_no_graph(self, u2l, l2u, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            mlox.Engine([problem("a"), problem("b")], u2l, l2u)

    def test_two_problems_of_one_name(self):
        with pytest.raises(ValueError, match="Problems share the name 'a'"):
            mlox.Engine([problem("a"), problem("a")])

    def test_unroll_steps_that_do_not_divide(self):
        message = "(unroll_steps=2 of 'a') and 't' every 3 (unroll_steps=3 of 'b')"
        problems = [problem("s"), problem("t")]
        problems += [problem("a", steps=2), problem("b", steps=3)]
        with pytest.raises(ValueError, match=re.escape(message)):
            mlox.Engine(problems, l2u={"a": ["s"], "b": ["t"]})

    @pytest.mark.parametrize("coupling", ["half", True, None])
    def test_unknown_coupling(self, coupling):
        message = f"coupling is {coupling!r}; expected 'total' (exact at any depth) or "
        with pytest.raises(ValueError, match=re.escape(message)):
            pair(coupling=coupling)

    def test_edges_by_name_and_by_problem_are_the_same(self):
        outer, inner = problem("outer"), problem("inner")
        by_name = mlox.Engine([outer, inner], U2L, L2U)
        by_value = mlox.Engine([outer, inner], {outer: [inner]}, {inner: (outer,)})
        assert by_value == by_name
        assert by_value.paths == {"outer": [("outer", "inner", "outer")], "inner": []}
        assert by_value.steps_per_cycle == {"outer": 1, "inner": 1}


class TestSystems:
    """Solvers that do not fit a block are refused, with the remedy."""

    @pytest.mark.parametrize("solver", [mlox.CG(), mlox.Neumann()])
    def test_definite_solver_on_a_tower(self, solver):
        method = mlox.Implicit(solver)
        message = (
            f"problem 'p': {method} cannot solve for its answer to 't': the system of "
            "c, p is symmetric but indefinite, as lowers of its own respond. Use "
            "mlox.Implicit(mlox.GMRES()) for 'p', or mlox.Implicit(), which picks a "
            "fitting solver, or coupling='direct'."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            chain([None, method, None], [1, 1, 1])

    @pytest.mark.parametrize(
        "solver", [None, mlox.GMRES(), mlox.BiCGStab(), mlox.Dense(), mlox.Identity()]
    )
    def test_solvers_that_serve_a_tower(self, solver):
        engine = chain([None, mlox.Implicit(solver), None], [1, 1, 1])
        assert engine.steps_per_cycle == {"t": 1, "p": 1, "c": 1}

    SIBLINGS = types.MappingProxyType({"t": ["p", "q"], "p": ["c"], "q": ["c"]})
    SHARED = types.MappingProxyType({"c": ["p", "q"], "p": ["t"], "q": ["t"]})

    def diamond(self, first, second, **options):
        problems = [problem("t"), problem("p", first), problem("q", second)]
        problems.append(problem("c"))
        return mlox.Engine(problems, self.SIBLINGS, self.SHARED, **options)

    def test_definite_solver_on_a_game(self):
        method = mlox.Implicit(mlox.CG())
        with pytest.raises(ValueError, match="not symmetric, a Nash game over a lower"):
            self.diamond(method, method)
        assert self.diamond(method, method, coupling="direct").names == tuple("tpqc")

    def test_tops_with_two_methods(self):
        methods = mlox.Implicit(mlox.GMRES()), mlox.Implicit(mlox.Dense())
        with pytest.raises(ValueError, match="but their methods differ") as caught:
            self.diamond(*methods)
        message = str(caught.value)
        assert all(f"'{name}'" in message for name in "pqt")
        assert all(str(method) in message for method in methods)
        assert "Use mlox.Implicit(mlox.GMRES()) for both" in message
        assert self.diamond(*methods, coupling="direct").names == tuple("tpqc")

    def test_tops_one_of_which_is_unrolled(self):
        methods = mlox.Implicit(), mlox.Unrolled()
        with pytest.raises(ValueError, match="which they share") as caught:
            self.diamond(*methods)
        message = str(caught.value)
        assert "'q' and 'p' lead 'c'" in message
        assert "'t' differentiates both answers: 'q' is unrolled, but its" in message
        assert "Give both mlox.Unrolled() or both mlox.Implicit()" in message
        assert self.diamond(*methods, coupling="direct").names == tuple("tpqc")


class TestUnrolledChecks:
    ROOT_FREE = optax.adam(0.1, eps_root=0.0)

    def engine(self, tx, method):
        problems = [problem("outer"), problem("inner", method, tx=tx)]
        return mlox.Engine(problems, U2L, L2U)

    @pytest.mark.parametrize(
        "tx", [ROOT_FREE, optax.chain(optax.clip(1.0), optax.adamw(0.1))]
    )
    def test_adam_without_eps_root_warns(self, tx):
        message = (
            "problem 'inner' is Unrolled, but its optimizer has an infinite derivative "
            "where an entry of the gradient is zero"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            self.engine(tx, mlox.Unrolled())
        remedy = "Pass eps_root to optax.adam, about eps squared (eps_root=1e-16"
        assert remedy in str(caught[0].message)

    @pytest.mark.parametrize(
        "tx",
        [
            optax.chain(optax.clip_by_global_norm(1.0), SGD),
            optax.chain(optax.adaptive_grad_clip(0.1), SGD),
            optax.chain(optax.normalize_by_update_norm(), SGD),
            optax.novograd(0.1, eps_root=1e-16),
        ],
        ids=["clip_by_global_norm", "adaptive_grad_clip", "normalize", "novograd"],
    )
    def test_norm_without_a_derivative_at_zero_warns(self, tx):
        message = "problem 'inner' is Unrolled, but its optimizer takes a norm"
        with pytest.warns(UserWarning, match=message) as caught:
            self.engine(tx, mlox.Unrolled())
        assert "never zero, sqrt(|g|^2 + 1e-16)" in str(caught[0].message)

    @pytest.mark.parametrize(
        ("tx", "message"),
        [
            (optax.chain(optax.clip_by_global_norm(1.0), SGD), "takes a norm"),
            (ROOT_FREE, "has an infinite derivative where an entry"),
        ],
        ids=["clip_by_global_norm", "adam"],
    )
    @pytest.mark.parametrize("tasks", [None, 3])
    def test_entries_are_told_from_norms_for_a_scalar(self, tx, message, tasks):
        """Its one zero entry is all that a norm measures."""
        inner = problem(
            "inner",
            mlox.Unrolled(),
            tx=tx,
            tasks=tasks,
            params=jnp.ones(() if tasks is None else tasks),
        )
        with pytest.warns(UserWarning, match=message) as caught:
            mlox.Engine([problem("outer"), inner], U2L, L2U)
        assert len(caught) == 1

    def test_nothing_as_large_as_the_parameters_is_made_for_the_check(self):
        """What is traced alone, XLA fuses."""
        traced = []

        def init(params):
            traced.append(isinstance(params, jax.core.Tracer))
            return SGD.init(params)

        def update(updates, state, params=None):
            traced.append(isinstance(updates, jax.core.Tracer))
            return SGD.update(updates, state, params)

        tx = optax.GradientTransformation(init, update)
        inner = problem("inner", mlox.Unrolled(), tx=tx)
        traced.clear()  # a problem has a state of its optimizer
        mlox.Engine([problem("outer"), inner], U2L, L2U)
        assert traced
        assert all(traced)

    @pytest.mark.parametrize(
        "tx",
        [optax.adafactor(0.1), optax.contrib.simplified_ademamix(0.1)],
        ids=["adafactor", "simplified_ademamix"],
    )
    def test_the_check_does_not_let_xla_fold_an_infinity(self, tx):
        params = jnp.ones((3, 2), jnp.float32)
        inner = problem("inner", mlox.Unrolled(), tx=tx, params=params)
        with pytest.warns(UserWarning, match="an infinite derivative where an entry"):
            mlox.Engine([problem("outer"), inner], U2L, L2U)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize(
        "tx",
        [optax.adam(0.1, eps_root=1e-16), optax.chain(clip_smoothly(1.0), SGD)],
        ids=["adam", "clip_smoothly"],
    )
    def test_remedies_are_finite_at_a_zero_gradient(self, tx, dtype):
        """At the start the gradient is zero everywhere; so is all that follows."""
        loss = lambda p, batch, ctx: jnp.sum(ctx.outer.params**2 * p**2)
        answer = lambda p, batch, ctx: jnp.sum((ctx.inner.params - 1) ** 2)
        parts = {"params": jnp.zeros(2, dtype)}
        problems = [
            problem("outer", loss_fn=answer, params=jnp.ones(2, dtype)),
            problem("inner", mlox.Unrolled(), 3, tx=tx, loss_fn=loss, **parts),
        ]
        engine = mlox.Engine(problems, U2L, L2U)
        _, gradient = engine.hypergradient(engine.init(), NO_DATA, "outer")
        assert jnp.all(gradient == 0)

    @pytest.mark.parametrize(
        ("tx", "method"),
        [
            (optax.adam(0.1, eps_root=1e-16), mlox.Unrolled()),
            (SGD, mlox.Unrolled()),
            (optax.chain(clip_smoothly(1.0), SGD), mlox.Unrolled()),
            (optax.clip_by_global_norm(1.0), mlox.Detached()),
            (optax.clip_by_global_norm(1.0), mlox.SAMA()),
            (ROOT_FREE, mlox.Implicit()),
            (ROOT_FREE, mlox.SAMA()),
        ],
    )
    def test_others_do_not(self, tx, method):
        assert self.engine(tx, method).names == ("outer", "inner")

    def test_answers_that_nobody_differentiates_do_not(self):
        engine = mlox.Engine([problem("a", mlox.Unrolled(), tx=self.ROOT_FREE)])
        assert engine.names == ("a",)

    def test_truncation_that_cuts_a_round(self):
        problems = [problem("outer"), problem("lower", mlox.Unrolled(last_steps=3))]
        problems += [problem("middle", mlox.Implicit(), 2), problem("inner", steps=2)]
        message = (
            "problem 'lower': Unrolled(last_steps=3) ends within a round of 2 "
            "steps in the window of 'outer'. Choose a multiple of 2."
        )
        edges = {"u2l": {"outer": ["lower"]}, "l2u": {"lower": ["outer"]}}
        edges["l2u"] |= {"inner": ["middle"], "middle": ["outer"]}
        with pytest.raises(ValueError, match=re.escape(message)):
            mlox.Engine(problems, **edges)

    def test_truncation_counts_in_the_lowest_window(self):
        methods = [None, mlox.Unrolled(), mlox.Unrolled(last_steps=3)]
        engine = chain(methods, [1, 2, 5])
        assert engine.steps_per_cycle == {"t": 1, "p": 2, "c": 10}


class TestArguments:
    """Refused while tracing, before anything runs."""

    @pytest.mark.parametrize(
        ("shape", "named"), [((), "()"), ((3, 5), "(3, 5)"), ((1, 2), "(1, 2)")]
    )
    def test_leading_axis(self, shape, named):
        message = f"batches['inner']['x'][0] has shape {named}; expected [2, ...] for 2"
        batches = {"outer": None, "inner": {"x": [np.zeros(shape)]}}
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(pair(steps=2), batches)

    @pytest.mark.parametrize(
        "batches",
        [{}, {"outer": None}, {**NO_DATA, "other": None}, {"outer": None, "in": None}],
    )
    def test_problem_missing_or_extra(self, batches):
        message = f"batches.keys() is {sorted(batches)}; expected ['inner', 'outer']."
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(pair(), batches)

    def test_batches_that_are_no_dict(self):
        with pytest.raises(
            ValueError, match=r"batches is float64\[3\]; expected a dict"
        ):
            pair().step(pair().init(), jnp.ones(3))

    def test_problems_of_the_state(self):
        engine = pair()
        state = {"outer": engine.init()["outer"]}
        message = "state.keys() is ['outer']; expected ['inner', 'outer']. "
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(engine, state=state)
        with pytest.raises(
            TypeError, match=r"state\['inner'\] is 3; expected a problem"
        ):
            engine.step({**engine.init(), "inner": 3}, NO_DATA)

    @pytest.mark.parametrize(
        "changes",
        [{"unroll_steps": 2}, {"method": mlox.Unrolled()}],
    )
    def test_changed_schedule_or_method(self, changes):
        engine = pair()
        state = engine.init()
        state["inner"] = state["inner"].replace(**changes)
        message = (
            "problem 'inner': method or unroll_steps in the state .* differ from those"
        )
        with pytest.raises(ValueError, match=message) as caught:
            traced(engine, state=state)
        assert "Build a new Engine with the changed problem" in str(caught.value)

    def test_changed_coupling(self):
        engine = chain([None, mlox.FiniteDifference(), None], [1, 1, 1])
        state = engine.init()
        state["p"] = state["p"].replace(method=mlox.Implicit())
        with pytest.raises(ValueError, match="'p': method or unroll_steps in the sta"):
            traced(engine, state=state)

    def test_changed_solver_that_does_not_fit(self):
        engine = chain([None, None, None], [1, 1, 1])
        state = engine.init()
        state["p"] = state["p"].replace(method=mlox.Implicit(mlox.CG()))
        with pytest.raises(ValueError, match="symmetric but indefinite"):
            traced(engine, state=state)

    def test_opt_state_that_does_not_fit(self):
        engine = pair()
        state = engine.init()
        state["inner"] = state["inner"].replace(tx=optax.adam(0.1))
        message = "problem 'inner': opt_state does not fit tx and params: [0].count"
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(engine, state=state)
        state["inner"] = state["inner"].replace(
            opt_state=optax.adam(0.1).init(jnp.ones(2))
        )
        assert traced(engine, state=state)[0].keys() == {"outer", "inner"}

    def test_gradient_of_an_unknown_problem(self):
        engine = pair()
        message = "hypergradient of 'other': no such problem; the engine has ['inner'"
        with pytest.raises(ValueError, match=re.escape(message)):
            engine.hypergradient(engine.init(), NO_DATA, "other")


class TestLosses:
    """What losses see, while they are traced."""

    def engine(self, loss_fn, **parts):
        problems = [problem("outer"), problem("inner", loss_fn=loss_fn, **parts)]
        return mlox.Engine([*problems, problem("other")], U2L, L2U)

    @pytest.mark.parametrize("read", [lambda c: c["other"], lambda c: c.other])
    def test_undeclared_neighbour(self, read):
        message = (
            "problem 'inner' reads ctx['other'], but no edge between them is declared. "
            "If 'other' is an upper of 'inner', add u2l={'other': ['inner']}; if it is "
            "a lower, add l2u={'other': ['inner']}; if it is a constant here, add "
            "reads={'inner': ['other']}. Declared: ['outer']."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(self.engine(lambda params, batch, ctx: read(ctx).params.sum()))

    def test_neighbour_without_a_function(self):
        message = "neighbour 'outer' was called, but has no apply_fn. Pass apply_fn= to"
        with pytest.raises(ValueError, match=message):
            traced(self.engine(lambda params, batch, ctx: ctx.outer(params)))

    def test_no_loss(self):
        with pytest.raises(ValueError, match=r"loss of 'inner' returned float64\[2\]"):
            traced(self.engine(lambda params, batch, ctx: params))

    def test_without_randomness_data_and_state(self):
        seen = []

        def loss_fn(params, batch, ctx):
            seen.append((batch, ctx.rng, ctx.model_state, ctx.name, ctx.step.dtype))
            assert ctx["outer"].params is ctx.outer.params
            return jnp.sum(params * ctx.outer.params)

        traced(self.engine(loss_fn))
        assert set(seen) == {(None, None, None, "inner", jnp.dtype("int32"))}


INNER_ADAM = optax.adam(0.05, eps_root=1e-16)
INNER_MOMENTUM = optax.sgd(0.1, momentum=0.9)
OUTER_ADAM = optax.adam(0.02)
OUTER_MOMENTUM = optax.sgd(0.3, momentum=0.5)
EPSILON = 0.01


def predict(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"]


def inner_cost(params, weights, batch):
    fit = jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2)
    return fit + 0.1 * jnp.sum(jnp.exp(weights) * params["w"] ** 2)


def outer_cost(weights, params, batch):
    fit = jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2)
    return fit + 0.01 * jnp.sum(weights**2)


def inner_loss(params, batch, ctx):
    return inner_cost(params, ctx.outer.params, batch)


def outer_loss(params, batch, ctx):
    fit = jnp.mean((ctx.inner(batch["x"]) - batch["y"]) ** 2)
    return fit + 0.01 * jnp.sum(params**2)


def regression(steps, seed=0):
    """Draw batches of a regression problem for one cycle."""
    generator = np.random.default_rng(seed)
    draw = lambda count: {
        "x": generator.normal(size=(count, 4, 3)),
        "y": generator.normal(size=(count, 4)),
    }
    return {"outer": draw(1), "inner": draw(steps)}


START = {
    "outer": jnp.array([0.1, -0.2, 0.3]),
    "inner": {"w": jnp.array([0.5, 0.3, -0.2]), "b": jnp.array(0.1)},
}


def descend(tx, params, opt_state, grads):
    with jax.numpy_dtype_promotion("standard"):  # optax 0.2.8 needs it
        updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def cycle_by_hand(method, txs, state, batches):
    """Run one cycle as one would write it without a library."""
    (outer, outer_opt), (inner, inner_opt) = state
    inner_batches = [
        jax.tree.map(lambda x, i=i: x[i], batches["inner"])
        for i in range(len(batches["inner"]["y"]))
    ]
    outer_batch = jax.tree.map(lambda x: x[0], batches["outer"])

    def run(outer):
        params, opt_state, losses = inner, inner_opt, []
        for batch in inner_batches:
            loss, grads = jax.value_and_grad(inner_cost)(params, outer, batch)
            params, opt_state = descend(txs["inner"], params, opt_state, grads)
            losses.append(loss)
        return params, opt_state, jnp.stack(losses)

    params, opt_state, losses = run(outer)
    reports = {}
    if isinstance(method, mlox.Unrolled):
        objective = lambda outer: outer_cost(outer, run(outer)[0], outer_batch)
        loss, grads = jax.value_and_grad(objective)(outer)
    else:
        loss, (grads, v) = jax.value_and_grad(outer_cost, argnums=(0, 1))(
            outer, params, outer_batch
        )
        e = EPSILON / optax.tree.norm(v)
        (high, up), (low, down) = (
            jax.value_and_grad(inner_cost, argnums=1)(
                jax.tree.map(lambda p, d, s=s: p + s * e * d, params, v),
                outer,
                inner_batches[-1],
            )
            for s in (1, -1)
        )
        grads = grads - (up - down) / (2 * e)
        reports = {"outer/inner/gap": (high - low)[None] / (2 * e)}
    outer, outer_opt = descend(txs["outer"], outer, outer_opt, grads)
    metrics = {"outer/loss": loss[None], "inner/loss": losses, **reports}
    return ((outer, outer_opt), (params, opt_state)), metrics


DIFFERENCE, UNROLLED = mlox.FiniteDifference(EPSILON), mlox.Unrolled()


@pytest.mark.parametrize(
    ("method", "steps", "inner_tx", "outer_tx"),
    [
        (DIFFERENCE, 1, INNER_MOMENTUM, OUTER_ADAM),
        (DIFFERENCE, 5, INNER_ADAM, OUTER_MOMENTUM),
        (UNROLLED, 1, INNER_ADAM, OUTER_MOMENTUM),
        (UNROLLED, 5, INNER_MOMENTUM, OUTER_ADAM),
    ],
    ids=["difference 1", "difference 5", "unrolled 1", "unrolled 5"],
)
def test_step_equals_a_loop_by_hand(method, steps, inner_tx, outer_tx):
    txs = {"inner": inner_tx, "outer": outer_tx}
    problems = [
        problem("outer", tx=txs["outer"], params=START["outer"], loss_fn=outer_loss),
        problem(
            "inner",
            method,
            steps,
            tx=txs["inner"],
            params=START["inner"],
            loss_fn=inner_loss,
            apply_fn=predict,
        ),
    ]
    engine = mlox.Engine(problems, U2L, L2U)
    step = engine.compile()
    state = engine.init()
    expected = tuple((START[n], txs[n].init(START[n])) for n in ("outer", "inner"))
    for seed in range(2):
        batches = regression(steps, seed)
        state, metrics = step(state, batches)
        expected, losses = cycle_by_hand(method, txs, expected, batches)
        found = tuple((state[n].params, state[n].opt_state) for n in engine.names)
        close(found, expected, 1e-12)
        close(metrics, losses, 1e-12)
    assert [int(state[n].step) for n in engine.names] == [2, 2 * steps]


def last_draw_cost(params, weights, batch, key, step, mean):
    """Depend on all that a step draws: batch, dropout, count and moving average."""
    kept = jax.random.bernoulli(key, 0.5, params.shape).astype(params.dtype)
    features = batch["x"] - mean[None]
    scaled = kept * params * jnp.exp(weights)
    fit = jnp.mean((jnp.tanh(features @ scaled) - batch["y"]) ** 2)
    return (1.0 + 1.0 / (1.0 + jnp.asarray(step, float))) * fit + 0.5 * jnp.sum(
        params**2
    )


def last_draw_loss(params, batch, ctx):
    state = ctx.model_state
    cost = last_draw_cost(
        params, ctx.outer.params, batch, ctx.rng, ctx.step, state["mean"]
    )
    mean = 0.9 * state["mean"] + 0.1 * batch["x"].mean(axis=0)
    return {
        "loss": cost,
        "model_state": {"mean": mean, "count": state["count"] + 1},
        "key": jax.random.key_data(ctx.rng),
        "step": ctx.step,
        "count": state["count"],
    }


def noisy_cost(weights, params, mean, key):
    """Read the lower's answer and its moving average through dropout."""
    kept = jax.random.bernoulli(key, 0.5, params.shape).astype(params.dtype)
    return jnp.sum((kept * params - mean) ** 2) + 0.01 * jnp.sum(weights**2)


def noisy_loss(params, batch, ctx):
    inner = ctx.inner
    return noisy_cost(params, inner.params, inner.model_state["mean"], ctx.rng)


def inner_by_hand(weights, start, draws):
    """Run the steps of a window; return its outcome and what the last step drew."""
    params, opt_state, mean = start
    for batch, key, step in draws:
        last = (batch, key, step, mean)
        grads = jax.grad(last_draw_cost)(params, weights, *last)
        params, opt_state = descend(INNER_ADAM, params, opt_state, grads)
        mean = 0.9 * mean + 0.1 * batch["x"].mean(axis=0)
    return (params, opt_state, mean), last


def hypergradient_by_hand(method, weights, key, start, draws):
    """Apply the formula of a method, with the inner cost at its last draw."""
    (params, opt_state, mean), last = inner_by_hand(weights, start, draws)
    if isinstance(method, mlox.Unrolled):

        def nested(weights):
            (params, _, mean), _ = inner_by_hand(weights, start, draws)
            return noisy_cost(weights, params, mean, key)

        return jax.grad(nested)(weights)
    direct, v = jax.grad(noisy_cost, argnums=(0, 1))(weights, params, mean, key)
    cost = lambda p, w: last_draw_cost(p, w, *last)
    slope = jax.grad(cost)
    if isinstance(method, mlox.FiniteDifference):
        e = EPSILON / jnp.linalg.norm(v)
        up, down = (jax.grad(cost, 1)(params + s * e * v, weights) for s in (1, -1))
        return direct - (up - down) / (2 * e)
    if isinstance(method, mlox.SAMA):
        update = lambda g: descend(INNER_ADAM, params, opt_state, g)[0]
        v = -jax.vjp(update, slope(params, weights))[1](v)[0]
    elif method.solver == mlox.Dense():
        v = jnp.linalg.solve(jax.hessian(cost)(params, weights), v)
    return direct - jax.grad(lambda w: slope(params, w) @ v)(weights)


@pytest.mark.parametrize(
    "method",
    [
        DIFFERENCE,
        mlox.SAMA(),
        mlox.Implicit(mlox.Dense()),
        mlox.Implicit(mlox.Identity()),
        UNROLLED,
    ],
    ids=["difference", "sama", "dense", "identity", "unrolled"],
)
def test_hypergradients_belong_to_the_last_draw(method):
    """Updated params; the last batch, key and count; the mutable state before it.

    And the mutable state advances once for each step, whatever the hypergradient does.
    """
    outer = problem("outer", params=START["outer"], loss_fn=noisy_loss, rng=7)
    inner = problem(
        "inner",
        method,
        3,
        tx=INNER_ADAM,
        params=START["inner"]["w"],
        loss_fn=last_draw_loss,
        model_state={"mean": jnp.zeros(3), "count": 0},
        rng=5,
    )
    engine = mlox.Engine([outer, inner], U2L, L2U)
    data, keys = regression(6)["inner"], []
    step, state = engine.compile(), engine.init()
    weights = START["outer"]
    start = inner.params, inner.opt_state, inner.model_state["mean"]
    for cycle in range(2):
        steps = range(3 * cycle, 3 * cycle + 3)
        batches = jax.tree.map(lambda x, steps=steps: x[list(steps)], data)
        state, metrics = step(state, {"outer": None, "inner": batches})
        draws = [
            (
                jax.tree.map(lambda x, i=i: x[i], data),
                jax.random.fold_in(jax.random.key(5), i),
                i,
            )
            for i in steps
        ]
        key = jax.random.fold_in(jax.random.key(7), cycle)
        grads = hypergradient_by_hand(method, weights, key, start, draws)
        start, _ = inner_by_hand(weights, start, draws)
        weights = weights - 0.1 * grads
        close(state["inner"].params, start[0], 1e-12)
        close(state["outer"].params, weights, 1e-10)
        expected = {"mean": start[2], "count": 3 * cycle + 3}
        close(state["inner"].model_state, expected, 1e-12)
        assert metrics["inner/step"].tolist() == list(steps)
        assert metrics["inner/count"].tolist() == list(steps)
        keys += metrics["inner/key"].tolist()
    assert len({tuple(key) for key in keys}) == 6


@functools.cache
def deep_loss(reads):
    def loss_fn(params, batch, ctx):
        value = 0.5 * jnp.sum((params - 1.0) ** 2)
        for name in reads:
            other = ctx[name].params
            value += 0.3 * jnp.sum(jnp.sin(params) * other) + 0.1 * jnp.sum(other**2)
        if batch is not None:
            value += batch["nested"]["scale"] * params[batch["index"]]
            value += 0.1 * jax.random.normal(batch["key"]) * jnp.sum(params)
        state = {"calls": ctx.model_state["calls"] + 1}
        return {"loss": value, "params": params, "model_state": state}

    return loss_fn


def mixed_batches(steps, seed):
    """Draw batches of nested dicts that hold numbers, integers and PRNG keys."""
    generator = np.random.default_rng(seed)
    return {
        "nested": {"scale": generator.normal(size=steps)},
        "index": generator.integers(2, size=steps),
        "key": jax.random.split(jax.random.key(seed), steps),
    }


@pytest.mark.parametrize(
    ("middle", "lowest"),
    [
        (mlox.Implicit(mlox.Dense()), mlox.Implicit(mlox.Dense())),
        (mlox.Implicit(mlox.Dense()), UNROLLED),
        (mlox.SAMA(), DIFFERENCE),
    ],
    ids=["tower", "unrolled below implicit", "one by one"],
)
def test_hypergradient_is_that_of_the_first_update(middle, lowest):
    engine = chain(
        [None, middle, lowest], [1, 2, 2], deep_loss, model_state={"calls": 0}
    )
    counts = engine.steps_per_cycle
    assert counts == {"t": 1, "p": 2, "c": 4}
    batches = {"t": None, "p": mixed_batches(2, 0), "c": mixed_batches(4, 1)}

    @jax.jit
    def everything(state, batches):
        gradients = {n: engine.hypergradient(state, batches, n) for n in engine.names}
        return engine.step(state, batches), gradients

    state = engine.init()
    (after, metrics), gradients = everything(state, batches)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for name, (loss, gradient) in gradients.items():
        before = metrics[f"{name}/params"]
        updated = before[1] if counts[name] > 1 else after[name].params
        close(gradient, (before[0] - updated) / 0.1, 1e-9)
        close(loss, metrics[f"{name}/loss"][0], 1e-12)
        assert metrics[f"{name}/loss"].shape == (counts[name],)
        assert int(after[name].model_state["calls"]) == counts[name]
        assert int(after[name].step) == counts[name]


def test_metrics_have_the_leading_axis_of_their_problem():
    engine = chain([None, None, None], [1, 2, 3], deep_loss, model_state={"calls": 0})
    _, metrics = traced(engine)
    shapes = {key: value.shape for key, value in metrics.items()}
    assert shapes == {
        "t/loss": (1,),
        "t/params": (1, 2),
        "t/p/residual": (1,),
        "t/p/iterations": (1,),
        "t/p/gap": (1,),
        "p/loss": (2,),
        "p/params": (2, 2),
        "p/c/residual": (2,),
        "p/c/iterations": (2,),
        "p/c/gap": (2,),
        "c/loss": (6,),
        "c/params": (6, 2),
    }


COUNT = optax.stateless(lambda updates, _: jax.tree.map(jnp.ones_like, updates))

SCHEDULES = {
    "chain": ({"a": ["b"], "b": ["c"], "c": ["d"]}, {"a": 2, "b": 3, "c": 1}),
    "lowers of 2 and 6": ({"a": ["t"], "b": ["t"]}, {"a": 2, "b": 6}),
    "uppers of two periods": (
        {"a": ["s", "t"], "b": ["t"], "s": ["t"]},
        {"a": 2, "b": 4, "s": 2},
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_happen_in_the_order_of_a_simulation(name):
    """Count steps in the parameters, and note what each step sees of others."""
    l2u, given = SCHEDULES[name]
    edges = [(lower, upper) for lower, uppers in l2u.items() for upper in uppers]
    names = sorted({n for edge in edges for n in edge})
    steps = {n: given.get(n, 1) for n in names}
    u2l = {u: [lower for lower, upper in edges if upper == u] for u in names}
    reads = {n: [*l2u.get(n, ()), *u2l[n]] for n in names}

    def loss_of(name):
        def loss_fn(params, batch, ctx):
            seen = {n: ctx[n].params for n in reads[name]}
            loss = 0.5 * params**2 + 0 * params * sum(seen.values())
            return {"loss": loss, "own": params, **seen}

        return loss_fn

    problems = [
        problem(
            n,
            mlox.Implicit(mlox.Identity()),
            steps[n],
            tx=COUNT,
            params=0.0,
            loss_fn=loss_of(n),
        )
        for n in names
    ]
    engine = mlox.Engine(problems, u2l, l2u)
    step, state, found = engine.compile(), engine.init(), []
    for _ in range(2):
        state, metrics = step(state, dict.fromkeys(names))
        found.append(metrics)

    cycle = max(engine.graph.period.values())
    ticks = simulate(names, l2u, steps, lambda tick, _: tick == 2 * cycle)
    counts, expected = dict.fromkeys(names, 0), {}
    for tick in range(1, 2 * cycle + 1):
        for n in engine.graph.order:
            if tick in ticks[n]:
                for m in reads[n]:
                    expected.setdefault(f"{n}/{m}", []).append(counts[m])
                expected.setdefault(f"{n}/own", []).append(counts[n])
                counts[n] += 1
    for key, values in expected.items():
        assert np.concatenate([metrics[key] for metrics in found]).tolist() == values
    assert {n: int(state[n].params) for n in names} == counts


class TestState:
    def test_fresh_copies_survive_donation(self):
        params = {"w": jnp.ones(2)}
        given = problem("a", params=params, model_state=jnp.zeros(3), rng=0)
        engine = mlox.Engine([given])
        state = engine.init()
        for old, new in zip(
            jax.tree.leaves(given), jax.tree.leaves(state), strict=True
        ):
            assert new is not old
        step = engine.compile()
        after, _ = step(state, {"a": None})
        assert state["a"].params["w"].is_deleted()
        assert params["w"].tolist() == given.params["w"].tolist() == [1.0, 1.0]
        again, _ = step(engine.init(), {"a": None})
        close(again["a"].params, after["a"].params, 0)
        assert given.model_state.tolist() == [0.0, 0.0, 0.0]
        assert given.rng == jax.random.key(0)

    def test_without_donation_the_state_stays(self):
        engine = mlox.Engine([problem("a")])
        state = engine.init()
        after, _ = engine.compile(donate=False)(state, {"a": None})
        assert state["a"].params.tolist() == [1.0, 1.0]
        close(after["a"].params, jnp.array([0.9, 0.9]), 1e-15)

    def test_one_problem_is_plain_training(self):
        def loss_fn(params, batch, ctx):
            return {"loss": jnp.sum((params - batch) ** 2), "step": ctx.step}

        tx = optax.adam(0.1)
        engine = mlox.Engine([problem("a", tx=tx, loss_fn=loss_fn, steps=4)])
        assert engine.steps_per_cycle == {"a": 1}
        assert engine.paths == {"a": []}
        step, state = engine.compile(), engine.init()
        params, opt_state = jnp.ones(2), tx.init(jnp.ones(2))
        for i in range(3):
            batch = jnp.array([[0.5, i]])
            state, metrics = step(state, {"a": batch})
            close(metrics["a/loss"], jnp.sum((params[None] - batch) ** 2, 1), 1e-15)
            assert metrics["a/step"].tolist() == [i]
            params, opt_state = descend(tx, params, opt_state, 2 * (params - batch[0]))
        close(state["a"].params, params, 1e-15)
        close(state["a"].opt_state, opt_state, 1e-15)

    def test_problems_without_edges_run_side_by_side(self):
        engine = mlox.Engine([problem("a"), problem("b", tx=FROZEN)])
        state, _ = engine.step(engine.init(), {"a": None, "b": None})
        assert state["a"].params.tolist() == [0.9, 0.9]
        assert state["b"].params.tolist() == [1.0, 1.0]

    def test_nothing_raises_because_of_values(self):
        """A series that diverges is a metric, and a loss that is NaN runs on."""

        def inner_loss(params, batch, ctx):
            return jnp.sum((params - ctx.outer.params) ** 2)

        def outer_loss(params, batch, ctx):
            return jnp.sum((ctx.inner.params - 3.0) ** 2)

        method = mlox.Implicit(mlox.Neumann(iterations=200, step=50.0))
        problems = [
            problem("outer", loss_fn=outer_loss),
            problem("inner", method, loss_fn=inner_loss),
        ]
        engine = mlox.Engine(problems, U2L, L2U)
        step = engine.compile()
        state, first = step(engine.init(), NO_DATA)
        state, second = step(state, NO_DATA)
        assert np.isfinite(first["outer/loss"]).all()
        assert not np.isfinite(first["outer/inner/residual"]).any()
        assert first["outer/inner/iterations"].tolist() == [200]
        assert np.isnan(second["inner/loss"]).all()
        assert int(state["outer"].step) == 2


class TestValues:
    def test_engines_compare_by_graph_methods_and_options(self):
        assert pair() == pair()
        assert hash(pair()) == hash(pair())
        others = [
            pair(steps=2),
            pair(mlox.Unrolled()),
            pair(unroll_loops=True),
            mlox.Engine([problem("outer"), problem("inner")]),
        ]
        assert all(pair() != other for other in others)
        assert len({pair(), pair(), *others}) == 1 + len(others)

    def test_coupling_is_compared(self):
        make = lambda: [problem(n) for n in "tpc"]
        edges = {"t": ["p"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}
        total, direct = (
            mlox.Engine(make(), *edges, coupling=c) for c in ("total", "direct")
        )
        assert total != direct

    def test_engines_are_frozen(self):
        with pytest.raises(AttributeError):
            pair().unroll_loops = True

    def test_equal_engines_share_what_was_compiled(self):
        calls = []

        def loss_fn(params, batch, ctx):
            calls.append(ctx.name)
            return jnp.sum(params**2)

        def engine():
            return mlox.Engine([problem("a", params=1.0, loss_fn=loss_fn)])

        state = engine().init()
        for _ in range(3):
            state, _ = engine().compile()(state, {"a": None})
        assert calls == ["a"]


def image_loss(params, batch, ctx):
    """Convolve an image; the upper scales the penalty."""
    out = jax.lax.conv(batch, params, (1, 1), "SAME")
    penalty = jnp.exp(ctx.outer.params) * jnp.sum(params**2)
    return jnp.mean((out - 1.0) ** 2) + 0.1 * penalty


def image_outer_loss(params, batch, ctx):
    return jnp.sum((ctx.inner.params - 0.5) ** 2)


def image_engine(method, **options):
    outer = problem("outer", params=0.0, loss_fn=image_outer_loss)
    kernel = jnp.full((1, 1, 3, 3), 0.1)
    inner = problem("inner", method, 3, params=kernel, loss_fn=image_loss)
    return mlox.Engine([outer, inner], U2L, L2U, **options)


def lowered(engine):
    images = np.linspace(0.0, 1.0, 3 * 16).reshape(3, 1, 1, 4, 4)
    return engine.compile().lower(engine.init(), {"outer": None, "inner": images})


# Loops are written out on CPU only.
ON_CPU = jax.default_backend() == "cpu"


@pytest.mark.parametrize("method", [UNROLLED, mlox.Implicit(mlox.CG(iterations=2))])
class TestConvolutions:
    """XLA runs a convolution in a loop 11 to 30 times slower on CPU: no loop."""

    def test_loops_are_written_out(self, method):
        text = lowered(image_engine(method)).compile().as_text()
        assert "convolution" in text
        assert bool(re.search(r"\bwhile\(", text)) != ON_CPU

    def test_loops_stay_if_asked_for(self, method):
        program = lowered(image_engine(method, unroll_loops=False)).as_text()
        assert "stablehlo.while" in program
        assert "stablehlo.convolution" in program


def test_loops_without_convolutions_stay():
    program = pair(UNROLLED, 3).compile().lower(pair(UNROLLED, 3).init(), NO_DATA)
    assert "stablehlo.while" in program.as_text()
    engine = pair(UNROLLED, 3, unroll_loops=True)
    program = engine.compile().lower(engine.init(), NO_DATA)
    assert "stablehlo.while" not in program.as_text()


class TestExplanations:
    ENGINE = chain([None, mlox.FiniteDifference(), None, UNROLLED], [1, 2, 2, 3])

    def section(self, name):
        text = self.ENGINE.explain()
        _, *sections = text.split("\n\n")
        (found,) = [lines for lines in sections if lines.split("\n")[0] == name]
        rows = [line.split(maxsplit=1) for line in found.split("\n")[1:]]
        return {row[0]: row[1] for row in rows}

    def test_explain_says_what_runs(self):
        assert self.ENGINE.explain().startswith("4 problems, 12 ticks in a cycle\n")
        top = self.section("s")
        assert top["steps"] == "once per cycle, every 12 ticks"
        assert top["path"] == "s <- t <- s"
        assert self.section("c")["steps"] == "12 times per cycle, every tick"
        assert self.section("p")["path"] == "p <- c <- p"

    def test_explain_says_how_answers_are_differentiated(self):
        direct = self.section("t")["answer"]
        assert "FiniteDifference(epsilon=0.01), direct: its lowers are held" in direct
        assert "Unrolled(" in self.section("c")["answer"]
        assert "its unrolled lowers respond" in self.section("p")["answer"]

    def test_explain_names_towers(self):
        text = chain([None, None, None], [1, 1, 1]).explain()
        assert "c, p (a tower: symmetric, indefinite) by the method of p" in text
        assert "to its total objective: its lowers respond" in text

    def test_explain_leaves_out_most_paths_of_a_ladder(self):
        names, u2l, l2u = ladder(5)
        text = mlox.Engine([problem(n) for n in names], u2l, l2u).explain()
        assert "and 20 more" in text
        assert len(text.split("x5 <- ")) == 1 + 12

    def test_mermaid_has_every_node_and_edge(self):
        header, *lines = self.ENGINE.mermaid().split("\n")
        assert header == "graph BT"
        node = re.compile(r'  (p\d)\["(\w)<br/>([^"\[\]]+)"\]')
        edge = re.compile(r"  (\w+) (-->\|answer\||-\.->\|parameters\|) (\w+)")
        nodes = [found for line in lines if (found := node.fullmatch(line))]
        edges = [found for line in lines if (found := edge.fullmatch(line))]
        assert len(nodes) + len(edges) == len(lines)
        assert [found[2] for found in nodes] == list("stpc")
        assert "12 times per cycle" in nodes[-1][3]
        name = {found[1]: found[2] for found in nodes}
        pairs = {e[2][:2]: set() for e in edges}
        for e in edges:
            pairs[e[2][:2]].add((name[e[1]], name[e[3]]))
        solid, dotted = pairs["--"], pairs["-."]
        assert solid == {("c", "p"), ("p", "t"), ("t", "s")}
        assert dotted == {("s", "t"), ("t", "p"), ("p", "c")}


class TestStates:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"step": None},
                "step is None; expected an int32 scalar, e.g. jnp.int32(0)",
            ),
            ({"step": jnp.ones(())}, "step is float64[]; expected an int32 scalar"),
            ({"step": jnp.zeros(2, int)}, "step is int64[2]; expected an int32 scalar"),
            ({"rng": 0}, "rng is 0; expected one PRNG key"),
            ({"params": None}, "params are empty (None)"),
            ({"params": jnp.arange(2)}, "params is int64[2]; expected a floating"),
            (
                {"model_state": "a"},
                "model_state is 'a' of type str; expected an array",
            ),
            ({"loss_scale": 2.0}, "loss_scale is 2.0; expected a flax.training"),
        ],
    )
    def test_arrays_are_checked_by_the_next_step(self, changes, message):
        engine = pair()
        state = engine.init()
        state["inner"] = state["inner"].replace(**changes)
        with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
            engine.step(state, NO_DATA)
        assert str(caught.value).startswith("problem 'inner': ")

    @pytest.mark.parametrize("state", [None, [problem("outer")]])
    def test_what_is_no_dict(self, state):
        message = r"state is .*; expected a dict with the keys \['inner', 'outer'\]"
        with pytest.raises(TypeError, match=message):
            pair().step(state, NO_DATA)

    def test_problems_that_are_exchanged(self):
        state = pair().init()
        message = r"state\['outer'\].name is 'inner'; expected 'outer'"
        with pytest.raises(TypeError, match=message):
            pair().step({"outer": state["inner"], "inner": state["outer"]}, NO_DATA)

    def test_batches_that_are_no_arrays(self):
        message = r"batches\['inner'\]\['x'\] is .* of type ndarray; expected an array"
        with pytest.raises(TypeError, match=message):
            pair().step(pair().init(), {"outer": None, "inner": {"x": np.array(["a"])}})


class TestCompiled:
    def test_it_is_the_jitted_function(self):
        step = pair().compile()
        assert isinstance(step, jax.stages.Wrapped)
        assert pair().compile() is step

    def test_donate_is_a_flag(self):
        with pytest.raises(TypeError, match="donate is 'yes'; expected True or False"):
            pair().compile(donate="yes")


class TestNotes:
    """An error of a user's function comes with the problem and what it got."""

    GOT = (
        "The error occurred in loss_fn of problem 'inner', called with "
        "params=float64[2], batch="
    )

    def notes(self, batches=None, **parts):
        problems = [problem("outer"), problem("inner", **parts)]
        with pytest.raises((KeyError, TypeError)) as caught:
            traced(mlox.Engine(problems, U2L, L2U), batches)
        return caught.value.__notes__[0]

    def test_a_loss(self):
        loss = lambda params, batch, ctx: jnp.sum(params - batch)
        assert (
            self.notes(loss_fn=loss) == self.GOT + "None, rng=None, model_state=None."
        )

    def test_a_batch_that_does_not_fit(self):
        loss = lambda params, batch, ctx: jnp.sum(params - batch)
        found = self.notes({"outer": None, "inner": np.ones((1, 3))}, loss_fn=loss)
        assert found == self.GOT + "float64[3], rng=None, model_state=None."

    def test_an_optimizer_and_a_solver(self):
        def fails(*args):
            raise KeyError("spectrum")

        tx = optax.GradientTransformation(lambda params: (), fails)
        assert self.notes(tx=tx).startswith(
            "The error occurred in tx of problem 'inner', called with"
        )
        solver = self.notes(method=mlox.Implicit(fails))
        assert solver.startswith(
            "The error occurred in method of problem 'inner', Implicit("
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Own:
    """A method whose multiplier is what it was told."""

    found: object

    def multiplier(self, answer, cotangent, guess=None):
        return self.found

    def pairing(self, cost, point, multiplier):
        return cost(point)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "multiplier returned 3; expected a pair (multiplier, report)"),
        (((), 3), "expected a pair (multiplier, report), the report a dict"),
        (((), {}), "multiplier returned a pytree that differs from the cotangent: "),
        (((), {"gap": 0}), "multiplier returned a report with the key 'gap', under"),
    ],
)
def test_multipliers_of_another_form(found, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        traced(pair(Own(found)))
    assert (
        "The error occurred in method of problem 'inner', Own("
        in caught.value.__notes__[0]
    )


@dataclasses.dataclass(frozen=True)
class Widens(Own):
    """A method that returns one leaf of its multiplier in another shape."""

    found: object = None

    def multiplier(self, answer, cotangent, guess=None):
        leaves, structure = jax.tree.flatten(cotangent)
        return structure.unflatten([*leaves[:-1], leaves[-1][None]]), {}


def test_multiplier_of_another_shape_is_named_among_many_leaves():
    params = {f"block_{i:03}": jnp.ones(2) for i in range(100)}
    loss = lambda p, batch, ctx: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
    upper = problem("outer", loss_fn=lambda p, batch, ctx: loss(ctx.inner.params, 0, 0))
    lower = problem("inner", params=params, loss_fn=loss, method=Widens())
    with pytest.raises(ValueError, match="block_099") as caught:
        traced(mlox.Engine([upper, lower], U2L, L2U))
    assert len(str(caught.value)) <= 1000


def test_a_metric_that_a_solver_reports():
    loss = lambda params, batch, ctx: {"loss": params.sum(), "inner/residual": 0.0}
    problems = [problem("outer", loss_fn=loss), problem("inner")]
    message = (
        "loss_fn of problem 'outer' returned the metric 'inner/residual', which is"
    )
    with pytest.raises(ValueError, match=message):
        traced(mlox.Engine(problems, U2L, L2U))


def test_two_metrics_of_one_name():
    loss = lambda params, batch, ctx: {"loss": params.sum(), 1: 0.0, "1": 1.0}
    with pytest.raises(ValueError, match="loss of 'a' returned two metrics called '1'"):
        mlox.Engine([problem("a", loss_fn=loss)]).step(
            {"a": problem("a", loss_fn=loss)}, {"a": None}
        )


def test_edges_of_a_problem_in_two_lists():
    a, b = problem("a"), problem("b")
    message = (
        "l2u names 'a' twice, as a string and as a Problem. Put its edges into one"
    )
    with pytest.raises(ValueError, match=message):
        mlox.Engine([a, b], l2u={"a": ["b"], a: ["b"]})


def test_cloudpickle_keeps_engine_and_state():
    """With closures, optimizers, keys, tasks and methods; plain pickle cannot."""

    def loss(params, batch, ctx):
        noise = jax.random.normal(ctx.rng, params.shape)
        return ((params - 0.1 * noise - batch * ctx.outer.params) ** 2).sum()

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    inner = problem("inner", mlox.Implicit(mlox.CG(2)), tx=tx, loss_fn=loss, rng=3)
    outer = problem("outer", loss_fn=lambda p, b, ctx: (ctx.inner.params * p).sum())
    engine = mlox.Engine([outer, inner], U2L, L2U)
    batches = {"outer": None, "inner": jnp.ones((1, 2))}
    state, _ = engine.step(engine.init(), batches)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local object"):
        pickle.dumps(state)
    other, copied = pickle.loads(cloudpickle.dumps((engine, state)))
    assert other == engine
    found, metrics = other.compile()(copied, batches)
    expected, means = engine.compile()(state, batches)
    chex.assert_trees_all_equal(metrics, means)
    for name in ("inner", "outer"):
        chex.assert_trees_all_equal(found[name].params, expected[name].params)
        assert found[name].step == expected[name].step == 2
