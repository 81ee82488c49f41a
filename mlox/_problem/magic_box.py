"""Losses that sample: a factor whose derivatives are those of an expectation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._utils.describe import summarize

# With the samples a held fixed,
#
#     E_p[ box(log p) L ] = sum_a p(a) [p(a; theta) / p(a)] L(a; theta),
#
# where p(a) is the weight with which a was drawn, a constant. So it is the expectation
# itself as a function of theta, and so are all of its derivatives. The surrogate
# log p sg(L) + L has the derivative p' L / p + L', whose own derivative is
# (p'' / p - (p'/p)^2) L + L'': the expectation's has p'' / p, and 2 p' L' / p besides.


def magic_box(logp: Any) -> jax.Array:
    r"""Return a factor of 1 that makes a loss of samples differentiable (DiCE).

        magic_box(log p) = exp(log p - stop_gradient(log p))

    Its value is 1, and its n-th derivative is p^(n)/p. For samples a of a distribution
    p(a; theta), multiplied into the loss of each sample,

        L(theta) = mean over samples of magic_box(log p(a; theta)) L(a; theta),

    it makes every derivative of L an unbiased estimate of that of the expectation
    E[L(a; theta)]: gradients, Hessians, mixed derivatives and beyond. So a loss that
    draws samples which cannot be differentiated (choices, actions, hard attention) can
    be that of any problem, and every method differentiates its answer.

    **The surrogate of REINFORCE is wrong here.** `logp * stop_gradient(L) + L` has the
    right gradient, so a lower trains well with it; but its Hessian and its mixed
    derivatives are those of another function. All methods that differentiate the
    gradient of a lower (`mlox.Implicit`, `mlox.Unrolled`, `mlox.SAMA` and more) return
    a wrong hypergradient. The engine warns where no mixed derivative is left, and
    `mlox.check` names the fault. Only what uses first derivatives alone, such as
    `mlox.FiniteDifference`, is served by either.

    *Several draws.* Multiply a cost by the box of all that it depends on: in a
    trajectory the cost of step t by `magic_box(jnp.cumsum(logp))[t]`. A draw that the
    upper's distribution makes has a box in the upper's loss.

    *Baselines.* Add `(1 - magic_box(logp)) * b`: its value is zero, and so is the
    expectation of each of its derivatives if b does not depend on this draw (on earlier
    ones it may). It makes the gradient less noisy. For less noise in Hessians as well,
    multiply it by the box of the earlier draws (Mao et al. 2019).

    *Samples.* Draw from `ctx.rng`, with `Problem.create(rng=)`: all evaluations of one
    hypergradient then draw the same. An inverse of a noisy Hessian is biased, even if
    the Hessian is not: draw many. Few outcomes are better summed than drawn: multiply
    the box by `stop_gradient(p)`, or write the expectation without a box.

    Cost: that of log p. Under any transformation of JAX, at any order, in both modes.

    Args:
        logp: The log-probability (or log-density) of each sample, of any shape. Where
            it is infinite the result is NaN.

    Returns:
        Ones of this shape.

    Raises:
        TypeError: If logp is no floating array.

    References:
        Foerster et al., DiCE: The Infinitely Differentiable Monte Carlo Estimator, ICML
        2018; Mao et al., A Baseline for Any Order Gradient Estimation in Stochastic
        Computation Graphs, ICML 2019.

    Example:
        A choice of probability p = sigmoid(t) that costs 3, or else nothing:

        >>> import jax, jax.numpy as jnp, mlox
        >>> def expected(t):  # all outcomes, each with its probability as its weight
        ...     logp = jnp.stack([jax.nn.log_sigmoid(t), jax.nn.log_sigmoid(-t)])
        ...     weights = jax.lax.stop_gradient(jnp.exp(logp))
        ...     return jnp.sum(weights * mlox.magic_box(logp) * jnp.array([3.0, 0.0]))
        >>> right = lambda t: 3.0 * jax.nn.sigmoid(t)
        >>> for order in (lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))):
        ...     print(f"{order(expected)(0.5):.5f} {order(right)(0.5):.5f}")
        1.86738 1.86738
        0.70501 0.70501
        -0.17267 -0.17267
    """
    known = isinstance(logp, float | np.generic | np.ndarray | jax.Array)
    if not known or not jnp.issubdtype(jnp.result_type(logp), jnp.floating):
        raise TypeError(
            f"magic_box: logp is {summarize(logp)}; expected a floating array, the "
            "log-probability of each sample, e.g. jax.nn.log_softmax(logits)[action]."
        )
    return _magic_box(jnp.asarray(logp))


# Compiled by itself it keeps its name in a program, which tells losses that sample.
@jax.jit
def _magic_box(logp: jax.Array) -> jax.Array:
    return jnp.exp(logp - jax.lax.stop_gradient(logp))


def is_magic_box(equation: Any) -> bool:
    """Return whether an equation of a program is a magic box.

    Example:
        >>> program = jax.make_jaxpr(magic_box)(0.5)
        >>> [is_magic_box(equation) for equation in program.eqns]
        [True]
    """
    return equation.params.get("name") == "_magic_box"
