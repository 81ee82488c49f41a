"""Tasks: a problem that stands for many equals as many problems that stand for one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

from .small import clip_smoothly

TASKS = 3
A, B = (
    jnp.asarray(np.random.default_rng(i).normal(size=size))
    for i, size in enumerate(((TASKS, 5, 2), (TASKS, 5)))
)
DATA = (A, B)
METHODS = {
    "cg": mlox.Implicit(mlox.CG(2)),  # exact for the two unknowns of one task only
    "dense": mlox.Implicit(mlox.Dense()),
    "difference": mlox.FiniteDifference(0.01),
    "fixed point": mlox.FixedPoint(2),
    "gmres": mlox.Implicit(mlox.GMRES(2)),
    "neumann": mlox.Implicit(mlox.Neumann(3, step=0.1)),
    "sama": mlox.SAMA(),
    "sama, difference": mlox.SAMA(epsilon=0.01),
    "truncated": mlox.Unrolled(last_steps=2),
    "unrolled": mlox.Unrolled(),
}
REPEATED = {"fixed point", "truncated", "gmres"}  # quick tests are elsewhere
CLIPPED = optax.chain(clip_smoothly(0.3), optax.adam(0.1, eps_root=1e-16))
HYPER = {"penalty": jnp.asarray(0.3), "center": jnp.asarray([0.2, -0.1])}


def error(params, data):
    return jnp.mean((data[0] @ params - data[1]) ** 2) + 0.1 * (params**4).sum()


def fit_loss(params, data, ctx):
    hyper = ctx.hyper.params
    away = ((params - hyper["center"]) ** 2).sum()
    loss = error(params, data) + jnp.exp(hyper["penalty"]) * away
    return {"loss": loss, "away": away}


def score(params, hyper):
    return ((params - 1.0) ** 2).sum() + 0.1 * jnp.exp(hyper["penalty"])


def hyper_problem(loss_fn):
    return mlox.Problem.create(
        name="hyper", params=HYPER, tx=optax.sgd(0.1), loss_fn=loss_fn
    )


def fit_problem(name="fit", **options):
    settings = {"params": jnp.ones(2), "tx": CLIPPED, "unroll_steps": 3}
    return mlox.Problem.create(
        name=name, **{"loss_fn": fit_loss, **settings, **options}
    )


def mapped_score(params, batch, ctx):
    return jax.vmap(score, (0, None))(ctx.fit.params, params).sum()


def each_score(params, batch, ctx):
    return sum(score(ctx[f"fit{i}"].params, params) for i in range(TASKS))


def together(**options):
    """Build an engine with one lower for all tasks, and its batches."""
    engine = mlox.Engine(
        [hyper_problem(mapped_score), fit_problem(tasks=TASKS, **options)],
        u2l={"hyper": ["fit"]},
        l2u={"fit": ["hyper"]},
    )
    return engine, {"hyper": None, "fit": repeated(DATA, 3)}


def apart(**options):
    """Build an engine with a lower for each task, and its batches."""
    fits = [fit_problem(f"fit{i}", **options) for i in range(TASKS)]
    names = [fit.name for fit in fits]
    engine = mlox.Engine(
        [hyper_problem(each_score), *fits],
        u2l={"hyper": names},
        l2u={name: ["hyper"] for name in names},
    )
    data = {n: repeated((A[i], B[i]), 3) for i, n in enumerate(names)}
    return engine, {"hyper": None, **data}


def repeated(batch, steps):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), batch)


def stepped(engine, batches, cycles=2):
    state, metrics = engine.init(), {}
    for _ in range(cycles):
        state, metrics = quick(engine)(state, batches)
    return state, metrics


@functools.lru_cache
def quick(engine):
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(engine.step, compiler_options=options)


def fits(state):
    return jnp.stack([state[f"fit{i}"].params for i in range(TASKS)])


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-10, atol=1e-13)


# One problem of many tasks, many problems of one


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=[pytest.mark.slow] * (name in REPEATED))
        for name, method in METHODS.items()
    ],
)
def test_tasks_equal_problems(method):
    one, metrics = stepped(*together(method=method))
    many, others = stepped(*apart(method=method))
    assert_close(one["hyper"].params, many["hyper"].params)
    assert_close(one["fit"].params, fits(many))
    assert metrics["fit/loss"].shape == (3,)
    for key in ("loss", "away"):
        parts = jnp.stack([others[f"fit{i}/{key}"] for i in range(TASKS)], axis=1)
        assert_close(metrics[f"fit/{key}_per_task"], parts)
        assert_close(metrics[f"fit/{key}"], parts.mean(axis=1))


def test_the_report_of_a_solver_is_that_of_the_worst_task():
    method = mlox.Implicit(mlox.CG(1))
    _, metrics = stepped(*together(method=method))
    _, others = stepped(*apart(method=method))
    worst = max(others[f"hyper/fit{i}/residual"] for i in range(TASKS))
    assert_close(metrics["hyper/fit/residual"], worst)


@pytest.mark.parametrize(
    "method", [pytest.param("unrolled", marks=pytest.mark.slow), "dense"]
)
def test_what_a_problem_can_do_a_task_can(method):
    """Reset, project, masks, keys, mutable state and waiting."""

    def loss_fn(params, data, ctx):
        found = fit_loss(params["w"] + params["fixed"], data, ctx)
        return {**found, "model_state": 0.9 * ctx.model_state + found["loss"]}

    def view(fit):
        return fit["w"] + fit["fixed"]

    def mapped_score(params, batch, ctx):
        both = jax.vmap(score, (0, None))(view(ctx.fit.params), params)
        return both.sum() + ctx.fit.model_state.sum()

    def each_score(params, batch, ctx):
        every = [ctx[f"fit{i}"] for i in range(TASKS)]
        return sum(score(view(f.params), params) + f.model_state for f in every)

    options = {
        "params": {"w": jnp.ones(2), "fixed": jnp.full(2, 0.1)},
        "loss_fn": loss_fn,
        "method": METHODS[method],
        "reset": lambda p, ctx: {"w": ctx.hyper.params["center"], "fixed": p["fixed"]},
        "project": lambda p: jax.tree.map(lambda x: jnp.clip(x, -0.4, 0.4), p),
        "trainable": lambda p: {"w": p["w"].ndim == 1, "fixed": False},
        "model_state": jnp.zeros(()),
        "warmup_steps": 3,
    }
    one, many = (build(**options) for build in (together, apart))
    one = replaced(one, hyper_problem(mapped_score))
    many = replaced(many, hyper_problem(each_score))
    state, _ = stepped(*one, cycles=3)
    others, _ = stepped(*many, cycles=3)
    assert_close(state["hyper"].params, others["hyper"].params)
    for i in range(TASKS):
        there = others[f"fit{i}"]
        found = state["fit"].params, state["fit"].model_state
        part = jax.tree.map(lambda x, i=i: x[i], found)
        assert_close(part, (there.params, there.model_state))


def replaced(built, hyper):
    engine, batches = built
    problems = [hyper, *engine.problems[1:]]
    names = engine.names[1:]
    edges = {"u2l": {"hyper": names}, "l2u": {n: ["hyper"] for n in names}}
    return mlox.Engine(problems, **edges), batches


# Deeper graphs


def chain_loss(name, lower, upper, params, read):
    """A quartic cost of a level of a chain; `read` gives a neighbour's params."""
    value = 0.5 * (params**2).sum() + 0.05 * (params**4).sum()
    if lower:
        value += ((read(lower) - 0.7) ** 2 * (1 + params**2)).sum()
    if upper:
        value += (params * read(upper)).sum()
    return value


def chain(method, tasks):
    """Build top over mid over low, the last two for some tasks, or once for each."""
    every = [""] if tasks else range(TASKS)
    starts = jnp.linspace(-1.0, 1.0, TASKS)

    def top_loss(params, batch, ctx):
        mids = [ctx[f"mid{i}"].params.reshape(-1) for i in every]
        return (params**2).sum() + sum(((mid - params) ** 2).sum() for mid in mids)

    def loss(i, level):
        lower, upper = {"mid": (f"low{i}", "top"), "low": ("", f"mid{i}")}[level]

        def loss_fn(params, batch, ctx):
            return chain_loss(level, lower, upper, params, lambda n: ctx[n].params)

        return loss_fn

    problems = [
        mlox.Problem.create(
            name="top", params=jnp.asarray([0.4]), tx=optax.sgd(0.1), loss_fn=top_loss
        )
    ]
    for i in every:
        for level, steps in (("mid", 2), ("low", 3)):
            problem = mlox.Problem.create(
                name=f"{level}{i}",
                params=jnp.zeros(1),
                tx=optax.sgd(0.1),
                loss_fn=loss(i, level),
                method=method,
                unroll_steps=steps,
                tasks=TASKS if tasks else None,
            )
            start = starts[:, None] if tasks else starts[i, None]
            problems.append(problem.replace(params=start))
    lows = {f"mid{i}": [f"low{i}"] for i in every}
    mids = {f"low{i}": [f"mid{i}"] for i in every}
    return mlox.Engine(
        problems,
        u2l={"top": [*lows], **lows},
        l2u={**{mid: ["top"] for mid in lows}, **mids},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        mlox.Implicit(mlox.Dense()),
        # Too few products: all at once would be further off.
        mlox.Implicit(mlox.GMRES(2)),
        mlox.Unrolled(),
    ],
    ids=str,
)
def test_towers_of_tasks_are_solved_one_by_one(method):
    results = []
    for tasks in (True, False):
        engine = chain(method, tasks)
        state, _ = stepped(engine, dict.fromkeys(engine.names))
        results.append(state)
    one, many = results
    assert_close(one["top"].params, many["top"].params)
    for level in ("mid", "low"):
        parts = jnp.stack([many[f"{level}{i}"].params for i in range(TASKS)])
        assert_close(one[level].params, parts)


def test_a_lower_may_be_shared_by_tasks():
    """Their uppers then minimise the sum of their losses together."""
    starts = jnp.asarray([0.3, -0.2, 0.5])

    def upper_loss(params, batch, ctx):
        loss = (ctx.shared.params - 1.0) ** 2 * (1 + params**2) + 0.1 * params**2
        return loss.sum()

    def shared_loss(params, batch, ctx):
        return ((params - ctx.upper.params) ** 2).sum() + params**4

    def stepped_at(params, tasks):
        upper = mlox.Problem.create(
            name="upper",
            params=params,
            tx=optax.sgd(0.1),
            loss_fn=upper_loss,
            tasks=tasks,
        )
        shared = mlox.Problem.create(
            name="shared",
            params=jnp.ones(()),
            tx=optax.sgd(0.05),
            loss_fn=shared_loss,
            method=mlox.Implicit(mlox.Dense()),
            unroll_steps=2,
        )
        engine = mlox.Engine(
            [upper, shared], u2l={"upper": ["shared"]}, l2u={"shared": ["upper"]}
        )
        state = engine.init()
        state["upper"] = state["upper"].replace(params=starts)
        return quick(engine)(state, dict.fromkeys(engine.names))[0]["upper"].params

    assert_close(stepped_at(jnp.zeros(()), TASKS), stepped_at(starts, None))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [mlox.Implicit(mlox.Dense()), mlox.FiniteDifference(1e-3)], ids=str
)
def test_tasks_below_a_tower_of_one(method):
    """Their systems then are parts of a larger one, or are solved one by one."""
    starts = jnp.linspace(-1.0, 1.0, TASKS)

    def top_loss(params, batch, ctx):
        return (params**2).sum() + ((ctx.mid.params - params) ** 2).sum()

    def low_loss(params, batch, ctx):
        pull = ((params - ctx.mid.params) ** 2).sum() / 2
        return pull + 0.05 * (params**4).sum() + 0.1 * (params * ctx.top.params).sum()

    def stepped_to(names, tasks):
        def mid_loss(params, batch, ctx):
            lows = [ctx[n].params.reshape(-1) for n in names]
            pull = ((params - ctx.top.params) ** 2).sum() / 2
            return pull + sum(((x - params) ** 2 * (1 + x**2)).sum() for x in lows)

        def make(name, loss_fn, **options):
            settings = {"params": jnp.full(1, 0.1), "tx": optax.sgd(0.1), **options}
            return mlox.Problem.create(name=name, loss_fn=loss_fn, **settings)

        inner = {"method": method, "unroll_steps": 2}
        lows = [make(n, low_loss, tasks=tasks, **inner) for n in names]
        engine = mlox.Engine(
            [make("top", top_loss), make("mid", mid_loss, **inner), *lows],
            u2l={"top": ["mid", *names], "mid": names},
            l2u={"mid": ["top"], **{n: ["mid"] for n in names}},
        )
        state = engine.init()
        for name, start in zip(names, starts.reshape(len(names), -1), strict=True):
            start = start[:, None] if tasks else start
            state[name] = state[name].replace(params=start)
        state, _ = quick(engine)(state, dict.fromkeys(engine.names))
        lows = jnp.concatenate([state[n].params.reshape(-1) for n in names])
        return state["top"].params, state["mid"].params, lows

    assert_close(stepped_to(["low"], TASKS), stepped_to(["a", "b", "c"], None))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "unrolled"])
def test_the_hypergradient_can_be_differentiated_again(method):
    def slope(engine, batches):
        def total(center):
            state = engine.init()
            params = {**state["hyper"].params, "center": center}
            state["hyper"] = state["hyper"].replace(params=params)
            return engine.hypergradient(state, batches, "hyper")[1]["center"].sum()

        return jax.jit(jax.grad(total))(HYPER["center"])

    options = {"method": METHODS[method]}
    assert_close(slope(*together(**options)), slope(*apart(**options)))


def test_two_families_of_tasks_below_one_upper():
    def upper_loss(params, batch, ctx):
        return (ctx.a.params**2).sum() + ((ctx.b.params - 1) ** 2).sum() + params**2

    settings = {"params": jnp.ones(()), "tx": optax.sgd(0.1)}
    upper = mlox.Problem.create(name="upper", loss_fn=upper_loss, **settings)
    families = [
        mlox.Problem.create(
            name=name,
            tasks=tasks,
            loss_fn=lambda params, batch, ctx: (params - 3 * ctx.upper.params) ** 2,
            **settings,
        )
        for name, tasks in (("a", 2), ("b", 5))
    ]
    names = ["a", "b"]
    engine = mlox.Engine(
        [upper, *families], u2l={"upper": names}, l2u={n: ["upper"] for n in names}
    )
    state, _ = quick(engine)(engine.init(), dict.fromkeys(engine.names))
    # One step leads from 1 to 1.4 in every task, whose answer moves three times as far.
    slope = 2 + 3 * (2 * 2 * 1.4 + 5 * 2 * 0.4)
    assert_close(state["upper"].params, 1 - 0.1 * slope)


# What a task sees, what others see of it


def test_each_task_has_a_key_of_its_own():
    problem = mlox.Problem.create(
        name="x",
        params=jnp.ones(()),
        tx=optax.sgd(0.1),
        loss_fn=lambda params, batch, ctx: (
            params * (jax.random.normal(ctx.rng) + batch)
        ),
        sample=lambda params, ctx: jax.random.normal(ctx.rng),
        rng=0,
        tasks=4,
    )
    engine = mlox.Engine([problem])
    first, metrics = quick(engine)(engine.init(), {"x": None})
    second, _ = quick(engine)(first, {"x": None})
    moves = jnp.stack([first["x"].params - 1.0, second["x"].params - first["x"].params])
    assert metrics["x/loss_per_task"].shape == (1, 4)
    assert len(set(moves.reshape(-1).tolist())) == 8


def test_a_task_knows_its_number():
    problem = mlox.Problem.create(
        name="x",
        params=jnp.zeros(()),
        tx=optax.sgd(1.0),
        loss_fn=lambda params, batch, ctx: (params - batch) ** 2 / 2,
        sample=lambda params, ctx: ctx.task_index.astype(float),
        tasks=TASKS,
    )
    engine = mlox.Engine([problem])
    state, _ = quick(engine)(engine.init(), {"x": None})
    assert state["x"].params.tolist() == [0.0, 1.0, 2.0]


def test_calling_a_neighbour_maps_over_its_tasks():
    def apply_fn(params, x):
        return x @ params

    seen = mlox.Neighbour(jnp.ones((TASKS, 2)), None, apply_fn, "fit", tasks=TASKS)
    assert_close(seen(A), A.sum(axis=-1))


def test_calling_a_neighbour_maps_arrays_only():
    def apply_fn(params, x, train, names, rngs=None, activation=None):
        assert train is False
        assert names == {"a": "text", "count": 2}
        noise = jax.random.normal(rngs["dropout"])
        return activation(x @ params) + noise

    seen = mlox.Neighbour(jnp.ones((TASKS, 2)), None, apply_fn, "fit", tasks=TASKS)
    key = jax.random.key(3)
    names = {"a": "text", "count": 2}
    found = seen(A, False, names, rngs={"dropout": key}, activation=jnp.tanh)
    noise = jax.vmap(jax.random.normal)(jax.random.split(key, TASKS))
    assert_close(found, jnp.tanh(A.sum(axis=-1)) + noise[:, None])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((A[:2],), r"'fit' has 3 tasks.*argument 0 of shape \[2, 5, 2\].*broadcast_to"),
        (({"x": jnp.ones(())},), r"argument 0\['x'\] of shape \[\].*leading axis of 3"),
    ],
)
def test_calling_a_neighbour_raises_for_an_array_without_tasks(args, match):
    seen = mlox.Neighbour(jnp.ones((TASKS, 2)), None, jnp.dot, "fit", tasks=TASKS)
    with pytest.raises(ValueError, match=match):
        seen(*args)


def test_metrics_with_the_names_of_others_raise():
    def loss(params, data, ctx):
        return {"loss": (params**2).sum(), "loss_per_task": jnp.zeros(())}

    engine = mlox.Engine([fit_problem(loss_fn=loss, tasks=TASKS)])
    match = "'fit' returned the metric 'loss_per_task'.*'loss' for each.*Rename"
    with pytest.raises(ValueError, match=match):
        engine.step(engine.init(), {"fit": None})
    alone = mlox.Engine([fit_problem(loss_fn=loss)])
    _, metrics = alone.step(alone.init(), {"fit": None})
    assert metrics["fit/loss_per_task"] == 0.0


def test_hypergradient_gives_the_loss_and_the_gradient_of_each_task():
    engine, batches = together()
    losses, grads = engine.hypergradient(engine.init(), batches, "fit")
    hyper = mlox.Neighbour(HYPER, None, None)
    ctx = mlox.Context("fit", {"hyper": hyper}, None, 0, None)
    for i in range(TASKS):
        loss, grad = jax.value_and_grad(
            lambda params, i=i: fit_loss(params, (A[i], B[i]), ctx)["loss"]
        )(jnp.ones(2))
        assert_close((losses[i], grads[i]), (loss, grad))


@pytest.mark.parametrize("method", ["unrolled", "cg"])
def test_hypergradient_of_tasks_maps_over_a_population(method):
    """A population of programs, each with tasks: `jax.vmap` of the hypergradient."""
    engine, batches = together(method=METHODS[method])
    state = engine.init()

    def gradient(penalty):
        hyper = state["hyper"].replace(params={**HYPER, "penalty": penalty})
        found = engine.hypergradient({**state, "hyper": hyper}, batches, "hyper")
        return found[1]

    penalties = jnp.asarray([-1.0, 0.3])
    expected = jax.tree.map(
        lambda *one: jnp.stack(one), *map(jax.jit(gradient), penalties)
    )
    assert_close(jax.jit(jax.vmap(gradient))(penalties), expected)


def test_evaluate_takes_a_batch_for_each_task():
    engine, _ = together()
    found = engine.evaluate(engine.init(), "fit", DATA)
    assert found["loss_per_task"].shape == (TASKS,)
    assert_close(found["loss"], found["loss_per_task"].mean())


def test_explain_tells_the_number_of_tasks():
    engine, _ = together()
    assert "tasks         3" in engine.explain()
    assert "3 times per cycle, 3 tasks" in engine.mermaid()


def test_a_run_logs_means_and_keeps_what_each_task_had():
    engine, _ = together()
    data = {"fit": [DATA]}
    _, history = engine.run(engine.init(), data, 2, log_every=1, loggers=())
    assert history["fit/loss_per_task"].shape == (2, TASKS)
    assert_close(history["fit/loss"], history["fit/loss_per_task"].mean(axis=1))


# What is refused


@pytest.mark.parametrize("tasks", [0, -1, 1.5, True])
def test_tasks_are_counted(tasks):
    with pytest.raises(ValueError, match=r"'fit': tasks is .* positive int"):
        fit_problem(tasks=tasks)


def test_neighbours_have_as_many_tasks_or_none():
    hyper = mlox.Problem.create(
        name="hyper", params=HYPER, tx=optax.sgd(0.1), loss_fn=each_score, tasks=2
    )
    with pytest.raises(ValueError, match=r"u2l edge 'hyper' -> 'fit'.*=2 and tasks=3"):
        mlox.Engine(
            [hyper, fit_problem(tasks=3)],
            u2l={"hyper": ["fit"]},
            l2u={"fit": ["hyper"]},
        )


def test_a_batch_without_tasks_is_refused():
    engine, batches = together()
    batches = {**batches, "fit": repeated((A[:2], B[:2]), 3)}
    with pytest.raises(ValueError, match=r"\['fit'\]\[0\].*expected \[3, 3, \.\.\.\]"):
        engine.step(engine.init(), batches)


@pytest.mark.parametrize(
    "method",
    [
        mlox.Implicit(mlox.CG(2)),
        pytest.param(
            mlox.Implicit(mlox.Neumann(3, step=0.1), draws=2), marks=pytest.mark.slow
        ),
        pytest.param(mlox.Unrolled(), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("at_once", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_shared_batches_are_those_of_every_task(method, at_once):
    """As if each task were given the same batch; and its key is that of all."""

    def build(shared):
        lower = mlox.Problem.create(
            name="fit",
            params=jnp.zeros(2),
            tx=optax.adam(0.1, eps_root=1e-16),
            loss_fn=lambda params, data, ctx: {
                "loss": error(params - ctx.task_index.astype(float), data)
                + jnp.exp(ctx.hyper.params["penalty"]) * (params**2).sum(),
                "drawn": jax.random.normal(ctx.rng),
            },
            method=method,
            unroll_steps=3,
            tasks=4,
            tasks_at_once=at_once,
            shared_batches=shared,
            rng=0,
        )
        upper = hyper_problem(lambda params, batch, ctx: (ctx.fit.params**2).sum())
        return mlox.Engine([upper, lower], {"hyper": ["fit"]}, {"fit": ["hyper"]})

    draw = np.random.default_rng(0).normal
    data = draw(size=(3, 5, 2)), draw(size=(3, 5))
    repeated = jax.tree.map(lambda x: np.repeat(x[:, None], 4, axis=1), data)
    engine = build(True)
    found, metrics = engine.step(engine.init(), {"hyper": None, "fit": data})
    engine = build(False)
    expected, _ = engine.step(engine.init(), {"hyper": None, "fit": repeated})
    for name in ("hyper", "fit"):
        chex.assert_trees_all_close(
            found[name].params, expected[name].params, rtol=1e-12
        )
    drawn = metrics["fit/drawn_per_task"]
    np.testing.assert_array_equal(drawn, np.repeat(drawn[:, :1], 4, axis=1))
