"""A regression in each precision, and the ways to differentiate its answer.

A network with one hidden layer fits examples with learned weights, and a penalty that
makes its Hessian definite. Products with matrices are large enough for tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox
from on_accelerator.sizes import Regression

PyTree = Any
PENALTY = 1.5


class Precision(NamedTuple):
    """How a loss is computed.

    Attributes:
        name: What the table calls it.
        products: The precision of products of float32 matrices.
        half: The dtype of the losses, if not that of the parameters.
        unit: The largest relative error of rounding an operand of a product.
    """

    name: str
    products: str
    half: Any
    unit: float


PRECISIONS = (
    Precision("float32", "highest", None, 2.0**-24),
    Precision("TF32", "tensorfloat32", None, 2.0**-11),
    Precision("bfloat16", "highest", jnp.bfloat16, 2.0**-8),
)


class Way(NamedTuple):
    """A way to differentiate an answer.

    Attributes:
        method: The method; None where the graph is rewritten.
        growth: (condition, size) -> by how much rounding grows, see `correctness`.
        adam: Whether the lower is trained by Adam, rather than SGD with momentum.
        cycles: How many cycles run before, for methods with a memory.
        rewrite: (problems, u2l, l2u) -> what an engine takes.
    """

    method: Any
    growth: Callable[[float, Regression], float]
    adam: bool = False
    cycles: int = 0
    rewrite: Callable[..., Any] | None = None


# The length of a perturbation beside that of the parameters, see `FiniteDifference`.
EPSILON = 0.05
STRENGTH = 10.0


def ways(size: Regression) -> dict[str, Way]:
    """Return the ways by their names."""
    parameters = size.hidden * (size.inputs + size.outputs)
    one = lambda condition, size: 1.0
    steps = lambda condition, size: float(size.steps)
    solve = lambda condition, size: condition
    difference = lambda condition, size: 1 / EPSILON
    implicit = lambda solver, **options: Way(mlox.Implicit(solver, **options), solve)
    series = mlox.Neumann(20, step=0.3)
    nystrom = mlox.Nystrom(rank=4, damping=1.0)
    return {
        "Unrolled()": Way(mlox.Unrolled(), steps),
        "Unrolled(), Adam": Way(mlox.Unrolled(), steps, adam=True),
        "Unrolled(levels=2)": Way(mlox.Unrolled(levels=2), steps),
        "Unrolled(mixed=True)": Way(mlox.Unrolled(mixed=True), steps),
        "Unrolled(last_steps=2)": Way(mlox.Unrolled(last_steps=2), steps),
        "Forward()": Way(mlox.Forward(), steps),
        "Implicit(CG(30))": implicit(mlox.CG(30)),
        "Implicit(CG(30), refine=1)": implicit(mlox.CG(30), refine=1),
        "Implicit(CG(30), warm_start=True)": implicit(
            mlox.CG(30), warm_start=True
        )._replace(cycles=2),
        "Implicit(CG(30, preconditioner=Nystrom(4)))": implicit(
            mlox.CG(30, preconditioner=nystrom)
        ),
        "Implicit(GMRES(30))": implicit(mlox.GMRES(30)),
        "Implicit(MINRES(30))": implicit(mlox.MINRES(30)),
        "Implicit(BiCGStab(30))": implicit(mlox.BiCGStab(30)),
        "Implicit(Dense())": implicit(mlox.Dense()),
        "Implicit(Neumann(20))": implicit(series),
        "Implicit(Neumann(20), draws=2)": implicit(series, draws=2),
        "Implicit(Richardson(20))": implicit(mlox.Richardson(20, step=0.3)),
        # Of all eigenvalues, as a random part of them differs between dtypes.
        "Implicit(Nystrom(all))": implicit(mlox.Nystrom(rank=parameters, damping=1.0)),
        "Implicit(Identity())": Way(mlox.Implicit(mlox.Identity()), one),
        "GaussNewton(CG(30))": Way(mlox.GaussNewton(mlox.CG(30)), solve),
        "FixedPoint(20)": Way(mlox.FixedPoint(iterations=20), solve),
        "SOBA()": Way(mlox.SOBA(step=0.3), solve, cycles=3),
        "SAMA()": Way(mlox.SAMA(), one, adam=True),
        "SAMA(epsilon)": Way(mlox.SAMA(epsilon=EPSILON), difference, adam=True),
        "FiniteDifference(epsilon)": Way(mlox.FiniteDifference(EPSILON), difference),
        "penalty(strength=10)": Way(
            None, lambda condition, size: STRENGTH * size.steps, rewrite=mlox.penalty
        ),
    }


def hypergradient(
    way: Way, size: Regression, dtype: Any, precision: Precision
) -> np.ndarray:
    """Return the hypergradient of the weights."""
    with jax.default_matmul_precision(precision.products):
        engine, batches = program(way, size, dtype, precision.half)
        state = engine.init()
        for _ in range(way.cycles):
            state, _ = engine.compile()(state, batches)
        found = engine.hypergradient(state, batches, "weights")[1]
        return np.asarray(found, np.float64)


def program(
    way: Way, size: Regression, dtype: Any, half: Any
) -> tuple[mlox.Engine, Mapping[str, PyTree]]:
    """Return the engine, and its batches."""
    params, data = draw(size, dtype)
    scale = float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(params))))
    cast = lambda loss: loss if half is None else mlox.MixedPrecision(loss, half)
    weights = mlox.Problem.create(
        name="weights",
        params=jnp.zeros(size.rows, dtype),
        # Resting, so that every precision stays at the same weights.
        tx=optax.sgd(0.0),
        loss_fn=cast(
            lambda params, batch, ctx: jnp.mean(errors(ctx["fit"].params, batch))
        ),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jax.tree.map(jnp.asarray, params),
        tx=optax.adam(1e-2, eps=1e-2, eps_root=1e-4)
        if way.adam
        else optax.sgd(0.3, momentum=0.5),
        loss_fn=cast(mlox.Composed(outputs, weighted)),
        method=_scaled(way.method, scale) or mlox.Unrolled(),
        unroll_steps=size.steps,
    )
    graph: Any = ([weights, fit], {"weights": ["fit"]}, {"fit": ["weights"]})
    if way.rewrite is None:
        return mlox.Engine(*graph), data
    graph = way.rewrite(*graph, lower="fit", strength=STRENGTH)
    many = jax.tree.map(lambda x: jnp.repeat(x, size.steps, 0), data["weights"])
    last = jax.tree.map(lambda x: x[-1:], data["fit"])
    both = {"fit": {"weights": many, "fit": data["fit"]}}
    both["weights"] = {"weights": data["weights"], "fit": last}
    return mlox.Engine(*graph), {**both, "fit_reference": data["fit"]}


def _scaled(method: Any, scale: float) -> Any:
    """Return a method whose perturbation is as long as EPSILON of the parameters."""
    if isinstance(method, mlox.FiniteDifference | mlox.SAMA) and method.epsilon:
        return type(method)(epsilon=method.epsilon * scale)
    return method


def draw(size: Regression, dtype: Any) -> tuple[PyTree, dict[str, PyTree]]:
    """Return parameters and batches, the same float32 numbers in each dtype."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        drawn = scale * generator.normal(size=shape)
        return jnp.asarray(drawn.astype(np.float32), dtype)

    params = {
        "in": normal(size.inputs, size.hidden, scale=size.inputs**-0.5),
        "out": normal(size.hidden, size.outputs, scale=size.hidden**-0.5),
    }

    def batches(steps: int) -> PyTree:
        x = normal(steps, size.rows, size.inputs)
        return {"x": x, "y": normal(steps, size.rows, size.outputs)}

    return params, {"weights": batches(1), "fit": batches(size.steps)}


def outputs(params: PyTree, batch: PyTree, ctx: mlox.Context) -> PyTree:
    """Return all that depends on the parameters: predictions, and the penalized."""
    return predict(params, batch["x"]), params


def weighted(found: PyTree, batch: PyTree, ctx: mlox.Context) -> jax.Array:
    """Return the loss of the lower."""
    predicted, params = found
    each = halves(predicted, batch["y"])
    squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
    weights = jnp.exp(ctx["weights"].params)
    return jnp.mean(weights * each) + PENALTY / 2 * squares


def errors(params: PyTree, batch: PyTree) -> jax.Array:
    """Return the error of each example."""
    return halves(predict(params, batch["x"]), batch["y"])


def halves(predicted: jax.Array, y: jax.Array) -> jax.Array:
    """Return half the squared error of each example."""
    return jnp.sum((predicted - y) ** 2, -1) / 2


def predict(params: PyTree, x: jax.Array) -> jax.Array:
    """Apply the network."""
    return jnp.tanh(x @ params["in"]) @ params["out"]


def condition(size: Regression) -> float:
    """Return the condition number of the Hessian of the lower's loss, in float64."""
    params, data = draw(size, jnp.float64)
    batch = jax.tree.map(lambda x: x[-1], data["fit"])
    flat, unflatten = jax.flatten_util.ravel_pytree(params)

    def cost(flat: jax.Array) -> jax.Array:
        params = unflatten(flat)
        squares = jnp.sum(flat**2)
        return jnp.mean(errors(params, batch)) + PENALTY / 2 * squares

    found = jnp.linalg.eigvalsh(jax.hessian(cost)(flat))
    return float(found.max() / jnp.abs(found).min())
