"""Plain reads: losses that see other problems as constants."""

import itertools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .small import run_engine, trace

RATE = 0.1
A, B = jnp.array([0.3, -0.2]), jnp.array([0.5, 0.7])
METHODS = {
    "implicit": mlox.Implicit(mlox.CG(iterations=4)),
    "unrolled": mlox.Unrolled(),
    "sama": mlox.SAMA(),
    "differences": mlox.FiniteDifference(),
    "identity": mlox.Implicit(mlox.Identity()),
}


def problem(name, loss, params=A, tx=None, **options):
    """Make a problem with a loss of (params, batch, ctx)."""
    tx = optax.sgd(RATE) if tx is None else tx
    return mlox.Problem.create(name=name, params=params, tx=tx, loss_fn=loss, **options)


def run(engine, cycles, batches=None):
    """Run some cycles, and return all states, the first one included."""
    states, step = [engine.init()], engine.compile(donate=False)
    batches = dict.fromkeys(engine.names) if batches is None else batches
    for _ in range(cycles):
        states.append(step(states[-1], batches)[0])
    return states


def play(x_loss, y_loss, **options):
    """Make a game of two problems that read each other."""
    x, y = problem("x", x_loss, A, **options), problem("y", y_loss, B, **options)
    return mlox.Engine([x, y], reads={x: [y], "y": ["x"]})


def test_a_bilinear_game_spirals_out_as_its_matrix_says():
    game = play(lambda x, _, ctx: x @ ctx.y.params, lambda y, _, ctx: -y @ ctx.x.params)
    state = run(game, 20)[-1]
    matrix = np.linalg.matrix_power(np.array([[1, -RATE], [RATE, 1]]), 20)
    expected = matrix @ np.stack([A, B])
    found = [state["x"].params, state["y"].params]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def costs(x, y):
    return jnp.sum(jnp.sin(x) * y + x**2), jnp.sum(jnp.cos(y) * x + y**4)


def test_a_mutual_game_is_the_loop_by_hand_bit_for_bit():
    tx = optax.sgd(RATE, momentum=0.9)
    game = play(
        lambda x, _, ctx: costs(x, ctx.y.params)[0],
        lambda y, _, ctx: costs(ctx.x.params, y)[1],
        tx=tx,
    )

    @jax.jit
    def step(carry):
        (x, y), (of_x, of_y) = carry
        dx = jax.grad(lambda x: costs(x, y)[0])(x)
        dy = jax.grad(lambda y: costs(x, y)[1])(y)
        dx, of_x = tx.update(dx, of_x)
        dy, of_y = tx.update(dy, of_y)
        return (x + dx, y + dy), (of_x, of_y)

    carry = (A, B), (tx.init(A), tx.init(B))
    for state in run(game, 5)[1:]:
        carry = step(carry)
        np.testing.assert_array_equal(state["x"].params, carry[0][0])
        np.testing.assert_array_equal(state["y"].params, carry[0][1])


def test_reads_change_no_schedule():
    problems = [problem(n, lambda p, *_: p.sum(), unroll_steps=3) for n in "abc"]
    plain = mlox.Engine(problems, {"a": ["b"]}, {"b": ["a"]})
    reads = {"b": ["c"], "a": ["c"], "c": ["a", "b"]}
    engine = mlox.Engine(problems, {"a": ["b"]}, {"b": ["a"]}, reads=reads)
    assert engine.steps_per_cycle == plain.steps_per_cycle == {"a": 1, "b": 3, "c": 3}
    assert engine.paths == plain.paths
    assert engine.graph.layers == plain.graph.layers
    assert engine.cycle.plan.movers == plain.cycle.plan.movers
    assert engine != plain


def slopes_of(engine, batches, value):
    """Return the slope of a value of the state after a cycle, in all parameters."""
    state = engine.init()

    def after(params):
        moved = {n: state[n].replace(params=x) for n, x in params.items()}
        return value(engine.step(moved, batches)[0])

    return jax.grad(after)({n: x.params for n, x in state.items()})


def test_no_derivative_flows_along_a_read():
    def loss(x, _, ctx):
        return jnp.sum(x * ctx.y.params) + jnp.sum(x * ctx.y(2.0) * ctx.y.model_state)

    x = problem("x", loss)
    y = problem(
        "y",
        lambda y, *_: jnp.sum(y**2),
        B,
        apply_fn=operator.mul,
        model_state=jnp.ones(2),
    )
    engine = mlox.Engine([x, y], reads={"x": ["y"]})
    batches = {"x": None, "y": None}
    slopes = slopes_of(engine, batches, lambda s: jnp.sum(s["x"].params ** 2))
    assert not slopes["y"].any()
    assert slopes["x"].all()
    moved = engine.init()
    moved["y"] = moved["y"].replace(params=2 * B)
    one, two = (
        engine.hypergradient(s, batches, "x")[1] for s in (engine.init(), moved)
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)  # the value is read


# The lower n reads b, which steps beside it, or above it; k judges the answer of n. The
# same program without the read gets the path of b as batches of n.

STEPS = 3


def rival_loss(b, *_):
    return jnp.sum(jnp.sin(b) + b**2)


def judged(read, method, above, **options):
    """Make k over n, with b beside n, or in the layer of k."""

    def lower(y, batch, ctx):
        b = ctx.b.params if read else batch
        return jnp.sum((y - jnp.sin(ctx.k.params) * b) ** 2 + 0.1 * y**4 * b)

    def upper(x, _, ctx):
        return jnp.sum((ctx.n.params - 1) ** 2) + 0.1 * jnp.sum(x**2)

    k, b = problem("k", upper), problem("b", rival_loss, B)
    n = problem("n", lower, method=method, unroll_steps=STEPS, **options)
    l2u = {n: [k, b]} if above else {n: [k]}
    return mlox.Engine([k, n, b], {k: [n]}, l2u, reads={n: [b]} if read else None)


def path_of_b(above):
    path = [B]
    for _ in range(STEPS - 1):
        step = 0 if above else RATE * jax.grad(rival_loss)(path[-1])
        path.append(path[-1] - step)
    return jnp.stack(path)


NOTHING = dict.fromkeys("knb")


@pytest.mark.parametrize(
    ("method", "above"),
    [
        pytest.param(m, above, marks=() if m == "implicit" else pytest.mark.slow)
        for m, above in itertools.product(METHODS, [False, True])
    ],
)
def test_a_hypergradient_is_that_of_the_values_that_were_read(method, above):
    reading, closed = (judged(read, METHODS[method], above) for read in (True, False))
    found = reading.hypergradient(reading.init(), NOTHING, "k")[1]
    batches = {**NOTHING, "n": path_of_b(above)}
    expected = closed.hypergradient(closed.init(), batches, "k")[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.abs(found).min() > 1e-3


def test_a_step_sees_what_has_stepped_below_it_and_not_what_steps_beside_or_above():
    seen = lambda name: lambda p, _, ctx: {"loss": p.sum(), "seen": ctx[name].params}
    low, side, top, rest = (
        problem("low", seen("top")),
        problem("side", seen("low")),
        problem("top", seen("low"), unroll_steps=2),
        problem("rest", lambda p, *_: p.sum()),
    )
    low = low.replace(unroll_steps=2)
    reads = {low: [top], side: [low], top: [side]}
    engine = mlox.Engine([low, side, top, rest], l2u={low: [top, rest]}, reads=reads)
    assert engine.steps_per_cycle == {"low": 2, "side": 2, "top": 1, "rest": 1}
    engine = mlox.Engine(
        [low, side, top.replace(loss_fn=seen("side")), rest],
        l2u={low: [top, rest]},
        reads=reads,
    )
    _, metrics = engine.step(engine.init(), dict.fromkeys(engine.names))
    step = np.full(2, RATE)
    np.testing.assert_allclose(metrics["low/seen"], [A, A])
    np.testing.assert_allclose(metrics["side/seen"], [A, A - step])
    np.testing.assert_allclose(metrics["top/seen"], [A - 2 * step])


def replayed(read):
    """Make t over p over an unrolled c that reads q, which steps as often as p."""

    def c_loss(c, batch, ctx):
        q = ctx.q.params if read else batch
        return jnp.sum((c - ctx.p.params * q) ** 2 + 0.1 * c**4)

    def p_loss(p, _, ctx):
        return jnp.sum(ctx.c.params**2 * ctx.t.params + (p - ctx.t.params) ** 2)

    def t_loss(t, _, ctx):
        return jnp.sum((ctx.p.params - 1) ** 2 + ctx.c.params + 0.1 * t**2)

    t, p = problem("t", t_loss), problem("p", p_loss, unroll_steps=2)
    c = problem("c", c_loss, method=mlox.Unrolled(), unroll_steps=2)
    q = problem("q", rival_loss, B)
    l2u = {c: [p, q, t], p: [t]}
    reads = {c: [q]} if read else None
    return mlox.Engine([t, p, c, q], {t: [p], p: [c]}, l2u, reads=reads)


def test_a_window_that_is_run_again_reads_the_same():
    reading, closed = replayed(True), replayed(False)
    nothing = dict.fromkeys("tpcq")
    found = reading.hypergradient(reading.init(), nothing, "t")[1]
    after = B - RATE * jax.grad(rival_loss)(B)
    batches = {**nothing, "c": jnp.stack([B, B, after, after])}
    expected = closed.hypergradient(closed.init(), batches, "t")[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_reset_sample_and_evaluate_see_constants():
    def loss(x, batch, ctx):
        return {"loss": jnp.sum((x - batch) ** 2), "seen": ctx.b.params[0]}

    n = problem(
        "n",
        loss,
        sample=lambda x, ctx: ctx.b.params,
        reset=lambda x, ctx: 2 * ctx.b.params + 0 * x,
        unroll_steps=2,
        method=mlox.Unrolled(),
        rng=0,
    )
    k = problem("k", lambda k, _, ctx: jnp.sum(ctx.n.params**2))
    engine = mlox.Engine(
        [k, n, problem("b", rival_loss, B)], l2u={n: [k]}, reads={n: ["b"]}
    )
    states = run(engine, 1)
    x, b = 2 * B, B
    for _ in range(2):
        x, b = x - 2 * RATE * (x - b), b - RATE * jax.grad(rival_loss)(b)
    np.testing.assert_allclose(states[1]["n"].params, x)
    slopes = slopes_of(engine, NOTHING, lambda s: jnp.sum(s["n"].params ** 2))
    assert not slopes["b"].any()
    found = engine.evaluate(states[1], "n", None, rng=0)
    np.testing.assert_allclose(found["seen"], b[0])
    assert found["loss"] == jnp.sum((x - b) ** 2)


@pytest.mark.parametrize(("own", "other"), [(2, None), (None, 2), (2, 2)])
def test_tasks_read_tasks_and_what_they_share(own, other):
    def loss(n, _, ctx):
        b = ctx.b.params
        assert b.shape == ((2, 2) if (own, other) == (None, 2) else (2,))
        return jnp.sum((n - ctx.k.params * b.reshape(-1, 2).sum(0)) ** 2)

    def upper(k, _, ctx):
        return jnp.sum(ctx.n.params**3)

    n, b = problem("n", loss, tasks=own), problem("b", rival_loss, B, tasks=other)
    k = problem("k", upper)
    engine = mlox.Engine([k, n, b], {k: [n]}, {n: [k]}, reads={n: [b]})
    state, seen = engine.init(), [B, 3 * B]
    if other:
        state["b"] = state["b"].replace(params=jnp.stack(seen))
    if own != 2 or other != 2:
        seen = [4 * B] if other else [B, B]
    # n = argmin (n - k b)^2 has the slope b in k, and has made one step.
    answers = [A - 2 * RATE * (A - A * b) for b in seen]
    expected = sum(3 * y**2 * b for y, b in zip(answers, seen, strict=True))
    grads = engine.hypergradient(state, NOTHING, "k")[1]
    np.testing.assert_allclose(grads, expected, rtol=1e-12)


def read_x(y, _, ctx):
    return jnp.sum(y * ctx.x.params)


def small(reads=None, y_loss=rival_loss):
    x = problem("x", lambda x, _, ctx: jnp.sum(x * ctx.y.params))
    return mlox.Engine([x, problem("y", y_loss, B)], reads={"x": ["y"]} | (reads or {}))


def test_a_read_that_the_loss_does_not_make_is_told():
    engine = small({"y": ["x"]})
    message = re.escape(
        "the loss of 'y' does not read the parameters of 'x', although "
        "reads={'y': ['x']} is declared. Read ctx.x.params in it, or drop it from "
        "reads."
    )
    with pytest.warns(UserWarning, match=message):
        trace(engine, {"x": None, "y": None})


def test_reads_are_shown():
    engine = small()
    assert "reads y (constant)" in repr(engine)
    assert "reads constants  y" in engine.explain()
    assert "p1 -.->|constants| p0" in engine.mermaid()
    assert 'data-edge="reads: x ← y"' in engine.draw()
    assert "reads constants" in engine._repr_html_()


def test_a_checkpoint_is_that_of_its_reads(tmp_path):
    folder = mlox.Checkpoint(tmp_path)
    run_engine(small({"y": ["x"]}, y_loss=read_x), checkpoint=folder)
    with pytest.raises(ValueError, match="reads"):
        run_engine(small(), checkpoint=folder, resume=True)
    # Checkpoints that are older than plain reads have no such key.
    assert mlox.Engine([problem("y", rival_loss)]).traced.metadata["reads"] is None


def mover_that_is_read(method):
    """Make k over n, where m, a mover of k beside n, is read by n and by k."""

    def n_loss(n, _, ctx):
        return jnp.sum((n - ctx.k.params * (2 + ctx.m.params)) ** 2)

    def m_loss(m, _, ctx):
        return jnp.sum((m - jnp.sin(ctx.k.params)) ** 2)

    def k_loss(k, _, ctx):
        return jnp.sum((ctx.n.params - 1) ** 2 + k**2 * ctx.m.params + ctx.j.params)

    parts = {"method": method, "unroll_steps": 30, "tx": optax.sgd(0.3)}
    k, n, m = (
        problem("k", k_loss),
        problem("n", n_loss, **parts),
        problem("m", m_loss, **parts),
    )
    j = problem("j", lambda j, _, ctx: jnp.sum((j - ctx.m.params) ** 2))
    return mlox.Engine(
        [k, n, m, j],
        {k: [n, m]},
        {n: [k], m: [j], j: [k]},
        reads={n: [m], k: [m]},
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [mlox.Implicit(), mlox.Unrolled()])
def test_check_holds_fixed_what_is_read_as_a_constant(method):
    engine = mover_that_is_read(method)
    report = mlox.check(engine, engine.init(), dict.fromkeys("knmj"), "k")
    assert not report.findings
    left_out = [note for note in report.notes if "'n' reads 'm'" in note]
    assert len(left_out) == isinstance(method, mlox.Unrolled)
    table = mlox.compare(
        engine, engine.init(), dict.fromkeys("knmj"), "k", {"n": {"a": method}}
    )
    assert table.rows[0].error < 1e-4


def test_a_problem_may_read_one_whose_window_is_run_again():
    engine = replayed(True)
    d = problem("d", lambda d, _, ctx: jnp.sum((d - ctx.p.params) ** 2))
    graph = {"t": ["p"], "p": ["c"]}, {"c": ["p", "q", "t"], "p": ["t"]}
    more = mlox.Engine([*engine.problems, d], *graph, reads={"c": ["q"], "d": ["p"]})
    found, expected = (
        e.hypergradient(e.init(), dict.fromkeys(e.names), "t")[1]
        for e in (more, engine)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    trace(more, dict.fromkeys(more.names))


def test_an_optimizer_may_read_constants():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=RATE)
    n = problem(
        "n",
        lambda n, *_: n.sum(),
        tx=tx,
        hyperparams=lambda ctx: {"learning_rate": ctx.b.params[0]},
    )
    engine = mlox.Engine([n, problem("b", rival_loss, B)], reads={n: ["b"]})
    state, _ = engine.step(engine.init(), {"n": None, "b": None})
    np.testing.assert_allclose(state["n"].params, A - B[0])
    assert "learning_rate, from b" in engine.explain()


@pytest.mark.slow
@pytest.mark.parametrize("other", [4, None])
def test_chunks_of_tasks_read_the_same(other):
    def slope(at_once):
        options = {"tasks": 4, "tasks_at_once": at_once, "method": mlox.Unrolled()}
        k, n, b = judged(True, above=other is not None, **options).problems
        k = k.replace(loss_fn=lambda k, _, ctx: jnp.sum(ctx.n.params**3))
        if other:
            rows = jnp.stack([B * (i + 1) for i in range(4)])
            b = problem("b", rival_loss, B, tasks=4).replace(params=rows)
        l2u = {n: [k, b]} if other else {n: [k]}
        engine = mlox.Engine([k, n, b], {k: [n]}, l2u, reads={n: [b]})
        return engine.hypergradient(engine.init(), NOTHING, "k")[1]

    np.testing.assert_allclose(slope(2), slope(None), rtol=1e-12)


@pytest.mark.parametrize("plain", [False, True])
def test_a_problem_samples_with_an_upper_that_its_lower_does_not_see(plain):
    """The program of a cost is inspected without those that it does not depend on."""

    def make(name, loss, **options):
        return mlox.Problem.create(
            name=name,
            params=jnp.ones(2),
            tx=optax.sgd(0.1),
            loss_fn=loss,
            method=mlox.Unrolled(),
            **options,
        )

    problems = [
        make("x", lambda p, batch, ctx: jnp.sum(ctx.p.params * p)),
        make(
            "p",
            lambda p, batch, ctx: jnp.sum(
                (p - batch * ctx.x.params) ** 2 + p * ctx.u.params
            ),
            sample=lambda p, ctx: ctx.x.params + p,
        ),
        make("u", lambda p, batch, ctx: jnp.sum((p - ctx.p.params) ** 2)),
    ]
    if plain:
        problems.append(make("t", lambda p, batch, ctx: jnp.sum(p * ctx.p.params)))
    engine = mlox.Engine(
        problems,
        {"x": ["p"], "p": ["u"]},
        {"u": ["p"], "p": ["x"]},
        reads={"t": ["p"]} if plain else None,
    )
    state, _ = engine.step(engine.init(), dict.fromkeys(engine.names))
    # From 1, with the batch x + p = 2 and u = 1, whose step has du/dp = 0.2: the slope
    # is 2 (p - 2 x) + u + p du/dp.
    np.testing.assert_allclose(state["p"].params, 1 - 0.1 * (2 * (1 - 2) + 1 + 0.2))
