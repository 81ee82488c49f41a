"""Programs that grow along one axis: steps, levels, problems, paths, sizes or tasks.

`benchmarks/growth.py` measures them, and `tests/test_growth.py` holds the number of
their equations, and the sizes of their arrays, against bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import depth
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import jaxprs_in_params

import mlox

Edges = Mapping[str, Sequence[str]]


class Case(NamedTuple):
    """A program of a certain size: what its engine is made of, and what a cycle takes.

    Attributes:
        problems: The problems.
        u2l: The edges from uppers to lowers.
        l2u: The edges back.
        batches: The batches of one cycle; None where no problem takes any.
    """

    problems: Sequence[mlox.Problem]
    u2l: Edges
    l2u: Edges
    batches: Mapping[str, Any]

    def engine(self) -> mlox.Engine:
        """Build the engine."""
        return mlox.Engine(self.problems, self.u2l, self.l2u)


def unroll_steps(count: int, method: Any, *, width: int = 32) -> Case:
    """Learn a penalty on a network that makes so many steps of SGD."""
    generator = np.random.default_rng(0)
    x = jnp.float32(generator.normal(size=(16, width)))
    y = jnp.float32(generator.normal(size=(16, 1)))
    params = _network((width, width, width, 1))

    def fit(params: Any) -> jax.Array:
        return jnp.mean((_apply(params, x) - y) ** 2)

    def penalized(params: Any, batch: None, ctx: mlox.Context) -> jax.Array:
        size = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
        return fit(params) + jnp.exp(ctx.penalty.params) * size

    problems = [
        _problem("penalty", jnp.float32(-5), lambda _, batch, ctx: fit(ctx.fit.params)),
        _problem("fit", params, penalized, method=method, unroll_steps=count),
    ]
    return _pair(problems)


def levels(count: int, method: Any) -> Case:
    """Make a chain of so many problems, each leading the one below."""
    return _full_batch(*depth.links(count, method, size=8, unroll_steps=2))


def problems(count: int, method: Any) -> Case:
    """Make independent pairs of an upper and a lower, so many problems in all."""

    def answer(params: Any, batch: None, ctx: mlox.Context) -> jax.Array:
        upper = ctx[ctx.name.replace("lower", "upper")].params
        return jnp.sum(params**4) + jnp.sum(upper * params**2)

    def judge(params: Any, batch: None, ctx: mlox.Context) -> jax.Array:
        return jnp.sum((ctx[ctx.name.replace("upper", "lower")].params - 1) ** 2)

    ones, pairs = jnp.ones(2), range(count // 2)
    made = [_problem(f"upper{i}", ones, judge) for i in pairs] + [
        _problem(f"lower{i}", ones, answer, method=method, unroll_steps=2)
        for i in pairs
    ]
    return _full_batch(
        made,
        u2l={f"upper{i}": [f"lower{i}"] for i in pairs},
        l2u={f"lower{i}": [f"upper{i}"] for i in pairs},
    )


def diamonds(count: int, method: Any) -> Case:
    """Stack diamonds: the top leads the lowest, which it reads along 2^count paths."""
    l2u: dict[str, list[str]] = {}
    for i in range(count):
        l2u |= {f"x{i}": [f"a{i}", f"b{i}"]}
        l2u |= {f"a{i}": [f"x{i + 1}"], f"b{i}": [f"x{i + 1}"]}
    top = f"x{count}"
    reads: dict[str, list[str]] = {name: [] for name in (*l2u, top)}
    reads["x0"].append(top)
    for lower, uppers in l2u.items():
        for upper in uppers:
            reads[upper].append(lower)

    def loss(params: Any, batch: None, ctx: mlox.Context) -> jax.Array:
        others = sum(jnp.sin(ctx[name].params) for name in reads[ctx.name])
        return jnp.sum(params**4) + jnp.sum((params - 0.5 * others) ** 2)

    made = [_problem(n, jnp.full(2, 0.3), loss, method=method) for n in reads]
    return _full_batch(made, {top: ["x0"]}, l2u)


def parameters(count: int, method: Any) -> Case:
    """Learn the decay of one square matrix of about so many parameters."""
    size = round(count**0.5)
    generator = np.random.default_rng(0)
    x, y = (jnp.float32(generator.normal(size=(8, size))) for _ in range(2))
    weights = jnp.zeros((size, size), jnp.float32)

    def fit(params: Any) -> jax.Array:
        return jnp.mean((x @ params - y) ** 2)

    def decayed(params: Any, batch: None, ctx: mlox.Context) -> jax.Array:
        return fit(params) + jnp.exp(ctx.penalty.params) * jnp.sum(params**2)

    return _pair(
        [
            _problem("penalty", jnp.float32(-5), lambda _, b, ctx: fit(ctx.fit.params)),
            _problem("fit", weights, decayed, method=method, unroll_steps=2),
        ]
    )


def tasks(count: int, method: Any) -> Case:
    """Adapt the start of a network to so many tasks, five steps each."""
    params = _network((1, 40, 40, 1))

    def error(params: Any, points: Any, ctx: mlox.Context) -> jax.Array:
        del ctx
        return jnp.mean((_apply(params, points[0]) - points[1]) ** 2)

    def near(params: Any, points: Any, ctx: mlox.Context) -> jax.Array:
        away = jax.tree.map(jnp.subtract, params, ctx.start.params)
        return error(params, points, ctx) + optax.tree.norm(away, squared=True)

    def judge(params: Any, points: Any, ctx: mlox.Context) -> jax.Array:
        return jnp.mean(ctx.fit(points))

    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, 10, 1))
    points = jnp.float32(x), jnp.float32(np.sin(3 * x))
    fit = _problem(
        "fit",
        params,
        near,
        method=method,
        unroll_steps=5,
        tasks=count,
        apply_fn=lambda params, points: error(params, points, None),
        reset=lambda params, ctx: ctx.start.params,
    )
    repeated = lambda times: jax.tree.map(
        lambda a: jnp.broadcast_to(a, (times, *a.shape)), points
    )
    pair = _pair([_problem("start", params, judge), fit])
    return pair._replace(batches={"fit": repeated(5), "start": repeated(1)})


def equations(program: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr, at any depth; the body of a loop counts once."""
    for equation in program.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def _problem(name: str, params: Any, loss_fn: Any, **options: Any) -> mlox.Problem:
    return mlox.Problem.create(
        name=name, params=params, tx=optax.sgd(0.01), loss_fn=loss_fn, **options
    )


def _pair(problems: Sequence[mlox.Problem]) -> Case:
    upper, lower = (p.name for p in problems)
    return _full_batch(problems, {upper: [lower]}, {lower: [upper]})


def _full_batch(problems: Sequence[mlox.Problem], u2l: Edges, l2u: Edges) -> Case:
    return Case(problems, u2l, l2u, {p.name: None for p in problems})


def _network(sizes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    generator = np.random.default_rng(1)
    return [
        (
            jnp.float32(generator.normal(size=(i, o)) * i**-0.5),
            jnp.zeros(o, jnp.float32),
        )
        for i, o in itertools.pairwise(sizes)
    ]


def _apply(layers: Any, x: jax.Array) -> jax.Array:
    for matrix, bias in layers[:-1]:
        x = jnp.tanh(x @ matrix + bias[None])
    matrix, bias = layers[-1]
    return x @ matrix + bias[None]
