"""How perturbations live: the estimators of evolution strategies, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_call
from mlox._utils.fields import COUNT, FLAG, check_fields
from mlox._utils.types import PyTree

# An inner problem is run in windows w = 0, 1, ..., W-1, its episode. With the loss F_w
# of each window, a function of x in this and all windows before, the gradient of the
# episode's loss is that of F(x) = sum_w F_w(x, ..., x). With one perturbation s_w of
# the standard deviation sigma for each window,
#
#     d/dx E[F_w(x + s_0, ..., x + s_w)] = E[(s_0 + ... + s_w) F_w] / sigma^2   (PES)
#
# where the s_w are independent, since each of its arguments has a slope of its own, and
#
#     d/dx E[F_w(x + s, ..., x + s)] = E[s F_w] / sigma^2                       (NRES)
#
# where they are equal. E[s_w F_w] / sigma^2 with independent s_w is the slope of the
# last argument alone: what truncation leaves (ES in windows).


class Noise(NamedTuple):
    """The perturbations of a copy.

    Attributes:
        now: What is added to x in the present window.
        total: By what the window's loss is multiplied, if that is something else.
    """

    now: PyTree
    total: PyTree | None

    @property
    def weight(self) -> PyTree:
        """By what the window's loss is multiplied."""
        return self.now if self.total is None else self.total


@dataclass(frozen=True, repr=False)
class _Episodes:
    """What the estimators share: the episodes, and no sum beside the perturbations."""

    windows: int
    in_step: bool = False

    __repr__ = show_call

    def __post_init__(self) -> None:
        check_fields(self, windows=COUNT, in_step=FLAG)

    def first(self, now: PyTree) -> Noise:
        """Return the perturbations before the first window."""
        return Noise(now, None)


@dataclass(frozen=True, repr=False)
class ES(_Episodes):
    r"""Perturb each window anew: antithetic evolution strategies.

        1 / (2 sigma^2 N) sum_i s_i (F(x + s_i) - F(x - s_i))

    Unbiased for the smoothed loss E[F(x + s)] if each window is a whole inner problem:
    the lower has `reset`, and `windows` is 1. Where inner problems go on from window to
    window, both copies of a pair begin at the same place, that of the positive one, and
    the estimate is the gradient of truncated windows: short-sighted, but of little
    variance.

    Attributes:
        windows: The windows of an episode, after which `reset` begins the inner problem
            anew.
        in_step: Whether the episodes of all pairs begin at the same window.

    References:
        Salimans et al., Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning, 2017. Metz et al., Understanding and Correcting Pathologies in the
        Training of Learned Optimizers, ICML 2019.

    Example:
        >>> import mlox
        >>> mlox.ES()
        ES(windows=1)
    """

    windows: int = 1

    goes_on_alone: ClassVar[bool] = False

    def next(self, before: Noise, drawn: PyTree, anew: jax.Array) -> Noise:
        """Return the perturbations of a window, given those that were drawn for it."""
        del before, anew
        return Noise(drawn, None)


@dataclass(frozen=True, repr=False)
class PES(_Episodes):
    r"""Perturb each window anew, and remember: persistent evolution strategies.

        1 / (2 sigma^2 N) sum_i (s_i0 + ... + s_iw) (F_w+ - F_w-)

    in the window w of an episode. Unbiased for the gradient of the episode, in windows
    of any length; the variance grows with the number of windows. An episode of one
    window is `mlox.ES`, bit for bit.

    Attributes:
        windows: The windows of an episode, after which `reset` begins the inner problem
            and the sum anew.
        in_step: Whether the episodes of all pairs begin at the same window: then all
            estimates of a step are about one phase of the inner problem. If not, their
            beginnings are spread over the windows; the first episodes are shorter.

    References:
        Vicol, Metz and Sohl-Dickstein, Unbiased Gradient Estimation in Unrolled
        Computation Graphs with Persistent Evolution Strategies, ICML 2021.

    Example:
        >>> import mlox
        >>> mlox.PES(windows=10)
        PES(windows=10)
    """

    goes_on_alone: ClassVar[bool] = True

    def first(self, now: PyTree) -> Noise:
        """Return the perturbations before the first window."""
        return Noise(now, now)

    def next(self, before: Noise, drawn: PyTree, anew: jax.Array) -> Noise:
        """Return the perturbations of a window, given those that were drawn for it."""
        so_far = jax.tree.map(jnp.add, before.total, drawn)
        return Noise(drawn, choose(anew, drawn, so_far))


@dataclass(frozen=True, repr=False)
class NRES(_Episodes):
    r"""Perturb each episode once: noise-reuse evolution strategies.

        1 / (2 sigma^2 N) sum_i s_i (F_w+ - F_w-)

    with the same s_i in all windows of an episode. Unbiased for its gradient, as `PES`,
    mostly with less variance, and without a second set of perturbations. While x rests,
    the sum over an episode is the estimate of `mlox.ES` for one window as long as it.

    Attributes:
        windows: The windows of an episode, after which `reset` begins the inner problem
            anew, with other perturbations.
        in_step: Whether the episodes of all pairs begin at the same window: then all
            estimates of a step are about one phase of the inner problem. If not, their
            beginnings are spread over the windows; the first episodes are shorter.

    References:
        Li et al., Noise-Reuse in Online Evolution Strategies, NeurIPS 2023.

    Example:
        >>> import mlox
        >>> mlox.NRES(windows=10)
        NRES(windows=10)
    """

    goes_on_alone: ClassVar[bool] = True

    def next(self, before: Noise, drawn: PyTree, anew: jax.Array) -> Noise:
        """Return the perturbations of a window, given those that were drawn for it."""
        return Noise(choose(anew, drawn, before.now), None)


Estimator = ES | PES | NRES


def choose(which: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """Return new leaves for some tasks, and old ones for the others.

    Example:
        >>> print(choose(jnp.array([True, False]), jnp.ones((2, 1)), jnp.zeros((2, 1))))
        [[1.]
         [0.]]
    """

    def of_leaf(new: jax.Array, old: jax.Array) -> jax.Array:
        rows = which.reshape(-1, *[1] * (new.ndim - 1))
        return jnp.where(rows, new, old)

    return jax.tree.map(of_leaf, new, old)
