"""PAGE: sums of differences of gradients, begun anew at random."""

from __future__ import annotations

import jax
import optax

from mlox._utils.fields import Kind, check, is_int, is_number
from mlox._utils.types import PyTree
from mlox.estimators._recursion import GradFn, RecursiveState, correct, recursive

PROBABILITY = Kind(
    "a probability p with 0 < p <= 1", lambda x: not is_number(x) or 0 < x <= 1
)
SEED = Kind("an int", is_int, TypeError)


def page(probability: float, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    r"""Estimate the gradient by a sum of differences, begun anew with probability p.

    With g(z; xi) the gradient at the parameters z on batch and key xi,

        d_t = g(z_t; xi_t)                                  with probability p,
        d_t = d_{t-1} + g(z_t; xi_t) - g(z_{t-1}; xi_t)     else,

    and the first d is g: `mlox.estimators.storm` whose a is 1 or 0 by a coin. The error
    of d_t is that of the gradient with which the sum began, and the noise of the
    differences, which are as small as the moves. p = 1 is the plain gradient bit for
    bit, and where all draws are one, d_t is the exact gradient.

    As published, a sum begins with a larger batch than that of the differences. Here
    both have the batch of the step (the loopless form with one batch size), so the
    variance of a gradient is not reduced at the beginnings: give the problem batches
    that are as large as these shall be, and save their number by p, or use `storm`,
    which averages over beginnings.

    Where the gradient comes from, and what that of an upper is, `mlox.estimators.storm`
    says. In the mean it costs 1 - p more gradients a step (under `tasks`, where all
    toss the same coin, one), and two copies of the parameters.

    Args:
        probability: p, in (0, 1].
        seed: The seed of the coin.

    Returns:
        A transformation whose update needs params and `grad_fn`.

    Raises:
        TypeError: If the seed is no int.
        ValueError: If a number is not in (0, 1]; and as for `storm`.

    References:
        Li, Bao, Zhang and Richtarik, PAGE: A Simple and Optimal Probabilistic Gradient
        Estimator for Nonconvex Optimization, ICML 2021; for bilevel problems Chu, Xu,
        Yao and Zhang, ICML 2024 (SPABA).

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> tx = optax.chain(mlox.estimators.page(0.5), optax.sgd(0.1))
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.zeros(()), tx=tx,
        ...     loss_fn=lambda y, batch, ctx: 0.5 * (y - batch) ** 2)
        >>> engine = mlox.Engine([fit])
        >>> state, _ = engine.step(engine.init(), {"fit": jnp.array([3.0])})
        >>> print(state["fit"].params.round(3))
        0.3
    """
    check("page: probability", probability, PROBABILITY)
    check("page: seed", seed, SEED)

    def estimate(gradient: PyTree, state: RecursiveState, grad_fn: GradFn) -> PyTree:
        key = jax.random.fold_in(jax.random.key(seed), state.steps)
        anew = (state.steps == 0) | jax.random.bernoulli(key, probability)
        return jax.lax.cond(
            anew,
            lambda: gradient,
            lambda: correct(gradient, 1.0, state, grad_fn(state.params)),
        )

    return recursive(estimate)
