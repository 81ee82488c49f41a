"""STORM: a momentum whose old gradients are corrected for the move since."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax

from mlox._utils.fields import Kind, check, is_number
from mlox._utils.types import PyTree
from mlox.estimators._recursion import GradFn, RecursiveState, correct, recursive

DECAY = Kind(
    "a number a with 0 < a <= 1, or a schedule of such numbers",
    lambda x: callable(x) or not is_number(x) or 0 < x <= 1,
)


def storm(
    decay: float | Callable[..., float],
) -> optax.GradientTransformationExtraArgs:
    r"""Estimate the gradient by a momentum that is corrected for each move.

    With g(z; xi) the gradient at the parameters z on batch and key xi, and d_0 = g,

        d_t = g(z_t; xi_t) + (1 - a) (d_{t-1} - g(z_{t-1}; xi_t)):

    both gradients of a step have the same draw. The error of d_t is (1 - a) times the
    last one, and new noise: a times that of a gradient, and that of a difference, which
    is as small as the move. So it shrinks to the order of a times the variance of a
    gradient (a / (2 - a) of it at rest), without the bias of `optax.ema`, whose old
    gradients are those of old parameters. a = 1 is the plain gradient bit for bit, and
    where all draws are one, d_t is the exact gradient.

    It stands first in a chain, where it gets gradients as they are: `optax.chain(
    mlox.estimators.storm(0.1), optax.sgd(0.01))`. The engine passes `grad_fn`, params
    -> gradient at the batch, the key and the neighbours of the step. That of an upper
    is its hypergradient at other parameters of its own, for the present answers below
    it: what these move themselves enters by the first term alone, so that it is
    corrected for the moves of the upper, and averages over those of its lowers.

    It costs one more gradient a step (of an upper, one more hypergradient with its
    linear solves), and two copies of the parameters.

    Args:
        decay: a, in (0, 1], or a schedule, steps -> a.

    Returns:
        A transformation whose update needs params and `grad_fn`.

    Raises:
        ValueError: If a number is not in (0, 1]; and when a step is traced, for uppers
            with unrolled lowers, and with `tasks` for all with lowers, which have no
            `grad_fn`.

    References:
        Cutkosky and Orabona, Momentum-Based Variance Reduction in Non-Convex SGD,
        NeurIPS 2019; for bilevel problems Chu, Xu, Yao and Zhang, SPABA: A Single-Loop
        and Probabilistic Stochastic Bilevel Algorithm Achieving Optimal Sample
        Complexity, ICML 2024.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.zeros(()), rng=0,
        ...     tx=optax.chain(mlox.estimators.storm(0.1), optax.sgd(0.1)),
        ...     loss_fn=lambda y, batch, ctx: 0.5 * (y - batch) ** 2)
        >>> engine = mlox.Engine([fit])
        >>> state = engine.init()
        >>> for target in (3.0, 1.0, 2.0):
        ...     state, _ = engine.step(state, {"fit": jnp.array([target])})
        >>> print(state["fit"].params.round(3))
        0.767
    """
    check("storm: decay", decay, DECAY)

    def estimate(gradient: PyTree, state: RecursiveState, grad_fn: GradFn) -> PyTree:
        a = decay(state.steps) if callable(decay) else decay
        weight = jnp.where(state.steps == 0, 0.0, 1 - a)
        return correct(gradient, weight, state, grad_fn(state.params))

    return recursive(estimate)
