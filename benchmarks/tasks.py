"""MAML on sinusoids: `tasks=` beside `jax.vmap` by hand and a Python loop over tasks.

Run with `python benchmarks/tasks.py`; `--quick` takes fewer samples, `--at-once` shows
what `tasks_at_once=` takes and saves in loops of 64 steps. 32 tasks, 10
shots, 5 inner steps of SGD, a network of 2 x 40 ReLUs, Adam on the initialization: the
job of Finn, Abbeel and Levine, ICML 2017. All ways run in turn in one process and make
the same step: their parameters are compared. The loop jits the gradient of one task,
calls it for each of them, and sums up in another program.
"""

from __future__ import annotations

import argparse
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

PyTree = Any
TASKS, SHOTS, STEPS, WIDTH = 32, 10, 5, 40
INNER, OUTER = optax.sgd(0.01), optax.adam(1e-3)
WAYS = ("scan", "written out")


def network(params: PyTree, x: jax.Array) -> jax.Array:
    for weights, bias in params[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    weights, bias = params[-1]
    return x @ weights + bias


def error(params: PyTree, points: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.mean((network(params, points[0]) - points[1]) ** 2)


def start() -> PyTree:
    """Draw the first weights."""
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = [(1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    return [
        (jax.random.normal(key, size) * (2 / size[0]) ** 0.5, jnp.zeros(size[1]))
        for key, size in zip(keys, sizes, strict=True)
    ]


def draw() -> tuple[PyTree, PyTree]:
    """Draw tasks: the points to learn from, and those that judge, [tasks, shots, 1]."""
    rng = np.random.default_rng(0)
    amplitude, phase = (
        rng.uniform(0.1, 5, (TASKS, 1, 1)),
        rng.uniform(0, np.pi, (TASKS, 1, 1)),
    )
    x = rng.uniform(-5, 5, (TASKS, 2 * SHOTS, 1))
    y = amplitude * np.sin(x + phase)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    return (x[:, :SHOTS], y[:, :SHOTS]), (x[:, SHOTS:], y[:, SHOTS:])


def engine(written_out: bool) -> mlox.Engine:
    init = mlox.Problem.create(
        name="init",
        params=start(),
        tx=OUTER,
        loss_fn=lambda params, points, ctx: jax.vmap(error)(
            ctx.adapted.params, points
        ).mean(),
    )
    adapted = mlox.Problem.create(
        name="adapted",
        params=start(),
        tx=INNER,
        loss_fn=lambda params, points, ctx: error(params, points),
        reset=lambda params, ctx: ctx.init.params,
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        tasks=TASKS,
    )
    return mlox.Engine(
        [init, adapted],
        u2l={"init": ["adapted"]},
        l2u={"adapted": ["init"]},
        unroll_loops=written_out,
    )


def adapt(params: PyTree, support: PyTree, written_out: bool) -> PyTree:
    """Make the inner steps on one task."""

    def descend(carry: PyTree, _: None) -> tuple[PyTree, jax.Array]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(error)(params, support)
        updates, opt_state = INNER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    carry, losses = jax.lax.scan(
        descend,
        (params, INNER.init(params)),
        length=STEPS,
        unroll=STEPS if written_out else 1,
    )
    return carry[0], losses


def by_hand(written_out: bool) -> _timing.Step:
    """Return the step with `jax.vmap` over tasks."""

    def mean(params: PyTree, support: PyTree, query: PyTree) -> Any:
        adapted, losses = jax.vmap(lambda s: adapt(params, s, written_out))(support)
        return jax.vmap(error)(adapted, query).mean(), losses

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, PyTree]:
        params, opt_state = state
        (loss, losses), grads = jax.value_and_grad(mean, has_aux=True)(params, *batches)
        updates, opt_state = OUTER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, losses)

    return step


def looped(written_out: bool) -> _timing.Step:
    """Return the step with a Python loop over tasks, each a call of one program."""

    def one(params: PyTree, support: PyTree, query: PyTree) -> jax.Array:
        return error(adapt(params, support, written_out)[0], query)

    gradient = jax.jit(jax.value_and_grad(one))

    @jax.jit
    def update(state: PyTree, found: PyTree) -> tuple[PyTree, jax.Array]:
        params, opt_state = state
        loss, grads = jax.tree.map(lambda *parts: sum(parts) / TASKS, *found)
        updates, opt_state = OUTER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def step(state: PyTree, batches: PyTree) -> tuple[PyTree, jax.Array]:
        return update(state, [gradient(state[0], *task) for task in batches])

    return step


def sides(written_out: bool) -> dict[str, tuple[_timing.Step, PyTree, PyTree]]:
    """Return step, state and batches of every way."""
    support, query = draw()
    apart = [jax.tree.map(lambda x, i=i: x[i], (support, query)) for i in range(TASKS)]
    steps = jax.tree.map(lambda x: jnp.broadcast_to(x, (STEPS, *x.shape)), support)
    batches = {"adapted": steps, "init": jax.tree.map(lambda x: x[None], query)}
    built = engine(written_out)
    plain = (start(), OUTER.init(start()))
    return {
        "by hand": (
            jax.jit(by_hand(written_out), donate_argnums=0),
            plain,
            (support, query),
        ),
        "mlox": (built.compile(), built.init(), batches),
        "loop over tasks": (looped(written_out), plain, apart),
    }


def long_engine(at_once: int | None) -> mlox.Engine:
    """Build MAML with loops of 64 steps, and a network of 2 x 64 ReLUs."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        (jax.random.normal(key, size) * (2 / size[0]) ** 0.5, jnp.zeros(size[1]))
        for key, size in zip(keys, ((1, 64), (64, 64), (64, 1)), strict=True)
    ]
    init = mlox.Problem.create(
        name="init",
        params=params,
        tx=OUTER,
        loss_fn=lambda params, points, ctx: ctx.adapted(points).mean(),
    )
    adapted = mlox.Problem.create(
        name="adapted",
        params=params,
        tx=INNER,
        loss_fn=lambda params, points, ctx: error(params, points),
        apply_fn=error,
        reset=lambda params, ctx: ctx.init.params,
        method=mlox.Unrolled(),
        unroll_steps=64,
        tasks=TASKS,
        tasks_at_once=at_once,
    )
    return mlox.Engine([init, adapted], u2l={init: [adapted]}, l2u={adapted: [init]})


def compare_chunks(seconds: float) -> str:
    """Compile and time chunks of several sizes; return a table."""
    rng = np.random.default_rng(0)

    def draw_points(steps: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.uniform(-5, 5, (steps, TASKS, 64, 1)).astype(np.float32)
        return x, np.sin(x)

    batches = {"init": draw_points(1), "adapted": draw_points(64)}
    sizes = (None, 16, 8, 4, 2, 1)
    engines = [long_engine(k) for k in sizes]
    made = [_timing.compiled(e.step, e.init(), batches) for e in engines]
    runs = [
        _timing.repeated(m.program, e.init(), batches)
        for m, e in zip(made, engines, strict=True)
    ]
    rounds = np.array(_timing.alternated(runs, seconds))[:, :, 1]
    rows = [
        [
            str(k),
            f"{made[i].temporaries / 2**20:.1f} MiB",
            f"{made[i].temporaries / made[0].temporaries:.2f}",
            _timing.duration(float(np.median(rounds[:, i]))),
            f"{np.median(rounds[:, i] / rounds[:, 0]):.2f}",
        ]
        for i, k in enumerate(sizes)
    ]
    head = ("tasks_at_once", "temporaries", "to all", "processor time", "to all")
    return _timing.table(head, rows)


def initialization(state: PyTree) -> PyTree:
    return state["init"].params if isinstance(state, dict) else state[0]


def copied(state: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, state)


def compare(written_out: bool, seconds: float) -> list[list[str]]:
    """Time all ways; return rows of a table."""
    built = sides(written_out)
    ends = {}
    for name, (step, state, batches) in built.items():
        state = copied(state)
        for _ in range(10):
            state, _ = step(state, batches)
        ends[name] = initialization(state)
    runs = [_timing.repeated(s, copied(state), b) for s, state, b in built.values()]
    rounds = np.array(_timing.alternated(runs, seconds))[:, :, 0]
    rows = []
    for i, name in enumerate(built):
        ratio = np.median(rounds[:, i] / rounds[:, 0])
        away = _timing.difference(ends[name], ends["by hand"])
        rows.append(
            [
                name,
                WAYS[written_out],
                _timing.duration(float(np.median(rounds[:, i]))),
                f"{ratio:.2f}",
                f"{away:.0e}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time MAML over many tasks.")
    parser.add_argument("--quick", action="store_true", help="take fewer samples")
    parser.add_argument("--at-once", action="store_true", help="compare chunks")
    args = parser.parse_args()
    seconds = 2.0 if args.quick else 20.0
    if args.at_once:
        print(compare_chunks(seconds))
        return
    rows = [row for out in (False, True) for row in compare(out, seconds)]
    head = ("way", "inner steps", "one step", "to by hand", "difference after 10")
    print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
