"""The jobs: losses, data and sizes that both sides of a comparison share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

PyTree = Any
Loss = Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]


@dataclass(frozen=True, eq=False)
class Job:
    """A bilevel program, and how its hypergradient is taken.

    Attributes:
        name: What the table calls it.
        lower_loss: (lower params, upper params, batch) -> {"loss": ..., metrics}.
        upper_loss: The same, of the same arguments.
        lower: Initial parameters.
        upper: Initial parameters.
        lower_tx: The optimizer.
        upper_tx: The optimizer.
        batches: {"lower": [unroll, ...], "upper": [1, ...]}.
        method: A method of mlox, which the other side writes by hand.
        loops: Whether the loops are loops, or written out.
        composed: The lower's loss in two parts, for `mlox.GaussNewton`: (lower params,
            batch) -> outputs, and the loss of these in the place of the params.
    """

    name: str
    lower_loss: Loss
    upper_loss: Loss
    lower: PyTree
    upper: PyTree
    lower_tx: optax.GradientTransformation
    upper_tx: optax.GradientTransformation
    batches: dict[str, PyTree]
    method: Any
    loops: bool = True
    composed: tuple[Callable[[PyTree, PyTree], PyTree], Loss] | None = None

    @property
    def unroll(self) -> int:
        """The steps of the lower problem per step of the upper one."""
        return len(jax.tree.leaves(self.batches["lower"])[0])


def logistic(unroll: int, method: Any, *, rows: int = 500, columns: int = 20) -> Job:
    """Learn one L2 penalty per coordinate of a logistic regression."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=columns) * (np.arange(columns) < columns // 2)

    def draw() -> tuple[jax.Array, jax.Array]:
        x = generator.normal(size=(rows, columns))
        noisy = x @ truth + 2 * generator.normal(size=rows)
        return jnp.float32(x), jnp.float32(np.sign(noisy))

    def fit(params: jax.Array, batch: PyTree) -> dict[str, jax.Array]:
        x, y = batch
        margin = y * (x @ params)
        return {
            "loss": jnp.mean(jax.nn.softplus(-margin)),
            "accuracy": jnp.mean(margin > 0),
        }

    def lower_loss(lower: PyTree, upper: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        found = fit(lower, batch)
        penalty = 0.5 * jnp.sum(jnp.exp(upper) * lower**2)
        return {**found, "loss": found["loss"] + penalty}

    return Job(
        name="logistic",
        lower_loss=lower_loss,
        upper_loss=lambda lower, upper, batch: fit(lower, batch),
        lower=jnp.zeros(columns),
        upper=jnp.full(columns, -3.0, jnp.float32),
        lower_tx=optax.sgd(0.1, momentum=0.9),
        upper_tx=optax.adam(0.01),
        batches={"lower": _stacked([draw()] * unroll), "upper": _stacked([draw()])},
        method=method,
    )


def mlp(unroll: int, method: Any, *, width: int = 512, batch: int = 100) -> Job:
    """Weight the examples of an MLP by a net of their losses (Meta-Weight-Net)."""
    layers = _dense(0, (784, width, width, 10))

    def logits(params: PyTree, x: jax.Array) -> jax.Array:
        return _apply_dense(params, x)

    return _reweighting("MLP", logits, layers, unroll, method, (784,), batch)


def cnn(unroll: int, method: Any, *, channels: int = 32, batch: int = 16) -> Job:
    """Weight the examples of a CNN: two convolutions of 3x3, each pooled."""
    generator = np.random.default_rng(0)
    kernels = [
        jnp.float32(generator.normal(size=(3, 3, i, o)) * np.sqrt(2 / (9 * i)))
        for i, o in ((1, channels), (channels, 2 * channels))
    ]
    params = {"kernels": kernels, "dense": _dense(1, (7 * 7 * 2 * channels, 10))}

    def logits(params: PyTree, x: jax.Array) -> jax.Array:
        for kernel in params["kernels"]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(_pooled(x))
        return _apply_dense(params["dense"], x.reshape(len(x), -1))

    shape = (28, 28, 1)
    return _reweighting("CNN", logits, params, unroll, method, shape, batch, False)


def _reweighting(
    name: str,
    logits: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    unroll: int,
    method: Any,
    shape: tuple[int, ...],
    batch: int,
    loops: bool = True,
) -> Job:
    """Make a Meta-Weight-Net: a net of one example's loss gives its weight."""
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(10, *shape))

    def draw(noise: float) -> tuple[jax.Array, jax.Array]:
        label = generator.integers(10, size=batch)
        x = centres[label] + generator.normal(size=(batch, *shape))
        other = generator.integers(10, size=batch)
        label = np.where(generator.random(batch) < noise, other, label)
        return jnp.float32(x), jnp.int32(label)

    def outputs(lower: PyTree, batch: PyTree) -> jax.Array:
        return logits(lower, batch[0])

    def losses(scores: jax.Array, batch: PyTree) -> tuple[jax.Array, jax.Array]:
        label = batch[1]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, label)
        return each, jnp.mean(scores.argmax(-1) == label)

    def weighted(
        scores: jax.Array, upper: PyTree, batch: PyTree
    ) -> dict[str, jax.Array]:
        each, accuracy = losses(scores, batch)
        weight = jax.nn.sigmoid(
            _apply_dense(upper, jax.lax.stop_gradient(each)[:, None])[:, 0]
        )
        return {"loss": jnp.mean(weight * each), "accuracy": accuracy}

    def lower_loss(lower: PyTree, upper: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        return weighted(outputs(lower, batch), upper, batch)

    def upper_loss(lower: PyTree, upper: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        each, accuracy = losses(outputs(lower, batch), batch)
        return {"loss": jnp.mean(each), "accuracy": accuracy}

    return Job(
        name=name,
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        lower=params,
        upper=_dense(3, (1, 100, 1)),
        lower_tx=optax.sgd(0.01, momentum=0.9),
        upper_tx=optax.adam(1e-3),
        batches={
            "lower": _stacked([draw(0.4) for _ in range(unroll)]),
            "upper": _stacked([draw(0.0)]),
        },
        method=method,
        loops=loops,
        composed=(outputs, weighted),
    )


def engine(job: Job, **options: Any) -> mlox.Engine:
    """Write a job in mlox."""
    upper = mlox.Problem.create(
        name="upper",
        params=job.upper,
        tx=job.upper_tx,
        loss_fn=lambda params, batch, ctx: job.upper_loss(
            ctx.lower.params, params, batch
        ),
    )
    lower = mlox.Problem.create(
        name="lower",
        params=job.lower,
        tx=job.lower_tx,
        loss_fn=_lower_loss(job),
        method=job.method,
        unroll_steps=job.unroll,
    )
    return mlox.Engine(
        [upper, lower], u2l={"upper": ["lower"]}, l2u={"lower": ["upper"]}, **options
    )


def _lower_loss(job: Job) -> Callable[[PyTree, PyTree, mlox.Context], PyTree]:
    if job.composed is None or not isinstance(job.method, mlox.GaussNewton):
        return lambda params, batch, ctx: job.lower_loss(
            params, ctx.upper.params, batch
        )
    outputs, loss = job.composed
    return mlox.Composed(
        lambda params, batch, ctx: outputs(params, batch),
        lambda found, batch, ctx: loss(found, ctx.upper.params, batch),
    )


def _stacked(parts: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def _dense(seed: int, sizes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    generator = np.random.default_rng(seed)
    return [
        (jnp.float32(generator.normal(size=(i, o)) * np.sqrt(2 / i)), jnp.zeros(o))
        for i, o in itertools.pairwise(sizes)
    ]


def _apply_dense(layers: PyTree, x: jax.Array) -> jax.Array:
    for matrix, bias in layers[:-1]:
        x = jax.nn.relu(x @ matrix + bias)
    matrix, bias = layers[-1]
    return x @ matrix + bias


def _pooled(x: jax.Array) -> jax.Array:
    """Take the maximum over squares of 2x2, without XLA's slow window reduction."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
