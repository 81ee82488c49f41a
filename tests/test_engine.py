"""The engine: what it refuses, what it runs, and that it runs just what it says.

Numbers are held against loops written out by hand in plain JAX; hypergradients of
deep graphs against solved nested problems are in `test_laws.py`.
"""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_graph import simulate

import mlox

SGD = optax.sgd(0.1)
FROZEN = optax.sgd(0.0)
U2L, L2U = {"outer": ["inner"]}, {"inner": ["outer"]}
NO_DATA = {"outer": None, "inner": None}


def nothing(params, batch, ctx):
    return 0.5 * jnp.sum(params**2)


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
    pairs = list(zip(names, names[1:], strict=False))
    return mlox.Engine(problems, {a: [b] for a, b in pairs}, {b: [a] for a, b in pairs})


def traced(engine, batches=None, state=None):
    """Trace one step; nothing is compiled."""
    batches = dict.fromkeys(engine.names) if batches is None else batches
    return jax.eval_shape(engine.step, state or engine.init(), batches)


def close(found, expected, rtol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


class TestBuilding:
    @pytest.mark.parametrize(
        ("problems", "message"),
        [
            (problem("a"), "Engine got a Problem; expected a list of problems."),
            ((p for p in [problem("a")]), "Engine got a generator; expected a list"),
            (None, "Engine got a NoneType; expected a list of problems."),
            (["a"], "Engine got 'a' of type str among its problems; make each with"),
            ([problem], "of type function among its problems; make each with mlox."),
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
        with pytest.raises(
            ValueError, match="not symmetric, a Nash game over what its"
        ):
            self.diamond(method, method)
        assert self.diamond(method, method, coupling="direct").names == tuple("tpqc")

    def test_tops_with_two_methods(self):
        methods = mlox.Implicit(mlox.GMRES()), mlox.Implicit(mlox.Dense())
        with pytest.raises(ValueError, match="but their methods differ") as caught:
            self.diamond(*methods)
        message = str(caught.value)
        assert all(f"'{name}'" in message for name in "pqt")
        assert all(str(method) in message for method in methods)
        assert "Give both the same, e.g. mlox.Implicit(mlox.GMRES())" in message
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
            "where a gradient is zero"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            self.engine(tx, mlox.Unrolled())
        assert "Pass eps_root=1e-8 to optax.adam and its kin" in str(caught[0].message)

    @pytest.mark.parametrize(
        ("tx", "method"),
        [
            (optax.adam(0.1, eps_root=1e-8), mlox.Unrolled()),
            (SGD, mlox.Unrolled()),
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
            "problem 'lower': Unrolled(last_steps=3) cuts through a round of 2 steps "
            "of 'lower' in the window of 'outer'. Choose a multiple of 2."
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
        message = (
            f"batches['inner']['x'][0] has shape {named}; expected a leading axis of "
            "2, since 'inner' makes 2 steps in a cycle. engine.stack stacks them so."
        )
        batches = {"outer": None, "inner": {"x": [np.zeros(shape)]}}
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(pair(steps=2), batches)

    @pytest.mark.parametrize(
        "batches",
        [{}, {"outer": None}, {**NO_DATA, "other": None}, {"outer": None, "in": None}],
    )
    def test_problem_missing_or_extra(self, batches):
        message = (
            f"batches has {sorted(batches)}; expected one entry for each of "
            "['inner', 'outer'], None for a problem without data. engine.stack makes"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(pair(), batches)

    def test_batches_that_are_no_dict(self):
        with pytest.raises(ValueError, match="batches has .*expected one entry for"):
            pair().step(pair().init(), jnp.ones(3))

    def test_problems_of_the_state(self):
        engine = pair()
        state = {"outer": engine.init()["outer"]}
        message = "state has the problems ['outer'], the engine ['inner', 'outer']. "
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(engine, state=state)
        with pytest.raises(TypeError, match="3 of type int among its problems"):
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
            "problem 'inner': method or unroll_steps in the state .* are not those"
        )
        with pytest.raises(ValueError, match=message) as caught:
            traced(engine, state=state)
        assert "Build a new Engine with the changed problem" in str(caught.value)

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
        message = "problem 'inner': opt_state does not fit tx and params. Got {}, expec"
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
            "loss of 'inner' reads ctx['other'], but no edge between them is declared. "
            "If 'other' is an upper of 'inner', add u2l={'other': ['inner']}; if it is "
            "a lower, add l2u={'other': ['inner']}. Declared: ['outer']."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            traced(self.engine(lambda params, batch, ctx: read(ctx).params.sum()))

    def test_neighbour_without_a_function(self):
        message = "A neighbour without apply_fn was called. Pass apply_fn= to its"
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


INNER_ADAM = optax.adam(0.05, eps_root=1e-8)
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
    if isinstance(method, mlox.Unrolled):
        objective = lambda outer: outer_cost(outer, run(outer)[0], outer_batch)
        loss, grads = jax.value_and_grad(objective)(outer)
    else:
        loss, (grads, v) = jax.value_and_grad(outer_cost, argnums=(0, 1))(
            outer, params, outer_batch
        )
        e = EPSILON / optax.tree.norm(v)
        up, down = (
            jax.grad(inner_cost, argnums=1)(
                jax.tree.map(lambda p, d, s=s: p + s * e * d, params, v),
                outer,
                inner_batches[-1],
            )
            for s in (1, -1)
        )
        grads = grads - (up - down) / (2 * e)
    outer, outer_opt = descend(txs["outer"], outer, outer_opt, grads)
    metrics = {"outer/loss": loss[None], "inner/loss": losses}
    return ((outer, outer_opt), (params, opt_state)), metrics


@pytest.mark.parametrize("method", [mlox.FiniteDifference(EPSILON), mlox.Unrolled()])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    "txs",
    [
        {"inner": INNER_MOMENTUM, "outer": OUTER_ADAM},
        {"inner": INNER_ADAM, "outer": OUTER_MOMENTUM},
    ],
    ids=["momentum below adam", "adam below momentum"],
)
def test_step_equals_a_loop_by_hand(method, steps, txs):
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
    by_hand = jax.jit(functools.partial(cycle_by_hand, method, txs))
    state = engine.init()
    expected = tuple((START[n], txs[n].init(START[n])) for n in ("outer", "inner"))
    for seed in range(2):
        batches = regression(steps, seed)
        state, metrics = step(state, batches)
        expected, losses = by_hand(expected, batches)
        found = tuple((state[n].params, state[n].opt_state) for n in engine.names)
        close(found, expected, 1e-12)
        close(metrics, losses, 1e-12)
    assert [int(state[n].step) for n in engine.names] == [2, 2 * steps]
