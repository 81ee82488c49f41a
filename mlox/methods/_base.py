"""The contract of a method: a way to differentiate an answer.

For an upper k with cost C_k, and a lower with the answer y at which G(y) = 0,

    dC_k/dtheta_k - d<lambda, G>/dtheta_k

is the hypergradient, if lambda solves (dG/dy)^T lambda = dC_k/dy =: v. Every method of
implicit type is a choice of lambda, and of how the pairing <lambda, G> is evaluated:

    Implicit            lambda by a linear solver      exact pairing
    GaussNewton         the same, with J^T H J         exact pairing
    Identity, T1-T2     lambda = v                     exact pairing
    FiniteDifference    lambda = v                     a difference of two costs
    SAMA                lambda = -(du/dg)^T v          exact, or a difference
    FixedPoint          lambda = -(du/dg)^T w          exact
                        w = v + (dT/dy)^T w, T(y) = y + u(g(y), y)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from mlox._utils.types import PyTree
from mlox.solvers import Info, System


class Answer(NamedTuple):
    """An answer (the *best response* of the literature), as a method sees it.

    Attributes:
        point: The unknowns y at the answer, a pytree of floating arrays. For a single
            problem these are its parameters; for a tower, the parameters and
            multipliers of all its levels.
        residual: The stationarity residual G(y), of the structure of y.
        system: The class of the matrix dG/dy; up to `System.SYMMETRIC` it equals its
            transpose.
        pull_update: v -> (du/dg)^T v for the update u(g) that the problem's optimizer
            would make next, at the present gradient.
        by_rule: Whether the residual is made of a `jax.custom_vjp` in a loss. Then
            dG/dy is of its class only if that rule is the true derivative.
        linearized: The residual for outputs linearized at the point: equal to G there,
            with the Gauss-Newton matrix as its Jacobian. None unless the loss is a
            `mlox.Composed`.
        draws: i -> the residual at the i-th last draw of the window, i = 0, 1, ...,
            which may be traced: with the batch and the PRNG key of the lower's step
            T - 1 - i, at the same point. None unless the method asks for several
            (`mlox.methods.count_draws`).
        pull_step: v -> (dT/dy)^T v for the whole step T(y) = y + u(g(y), y) that the
            optimizer would make next, its state held fixed. It has all derivatives of
            u, such as that of a weight decay. None unless y are the parameters of one
            problem.
        tangent: v -> J v, with the derivative J of the problem's `project` at the
            answer; None without a projection. The answer is then seen along the
            tangents of its constraints: the residual is J G there, its Jacobian A = J
            (dG/dy) J, plus the curvature of the set, and `multiplier` is asked for w of
            A w = J v. The engine passes J v, and J w is the multiplier.

    Example:
        >>> import jax.numpy as jnp, mlox
        >>> answer = mlox.Answer(
        ...     point=jnp.zeros(2), residual=lambda y: 4.0 * y - 1.0,
        ...     system=mlox.System.DEFINITE, pull_update=lambda v: 0.1 * v)
        >>> multiplier, *_ = mlox.Implicit().multiplier(answer, jnp.ones(2))
        >>> print(multiplier)
        [0.25 0.25]
    """

    point: PyTree
    residual: Callable[[PyTree], PyTree]
    system: System
    pull_update: Callable[[PyTree], PyTree]
    by_rule: bool = False
    linearized: Callable[[PyTree], PyTree] | None = None
    draws: Callable[[jax.Array | int], Callable[[PyTree], PyTree]] | None = None
    pull_step: Callable[[PyTree], PyTree] | None = None
    tangent: Callable[[PyTree], PyTree] | None = None

    @property
    def is_symmetric(self) -> bool:
        """Whether dG/dy is known to equal its transpose."""
        return self.system <= System.SYMMETRIC and not self.by_rule


@runtime_checkable
class Method(Protocol):
    """Differentiate the answer of a problem, for the problems above it.

    A method is any hashable value with these two functions; it needs no registration.
    One that keeps something from step to step has a third, and another return value of
    `multiplier`: see `mlox.MethodWithMemory`, which all methods of mlox follow.

    With the cotangent v = dC_k/dy of an upper's cost, the upper's hypergradient is
    d/dtheta_k [C_k - <lambda, G>] at fixed lambda. A method chooses lambda, and how to
    evaluate the pairing <lambda, G> with the residual G = dC/dy.

    Example:
        One gradient step of a given length in place of the inverse Hessian:

        >>> import dataclasses, jax.numpy as jnp, mlox, optax
        >>> @dataclasses.dataclass(frozen=True)
        ... class OneStep:
        ...     length: float = 0.5
        ...     def multiplier(self, answer, cotangent, guess):
        ...         return jax.tree.map(lambda v: self.length * v, cotangent), {}
        ...     def pairing(self, cost, point, multiplier):
        ...         return jax.jvp(cost, (point,), (multiplier,))[1]
        >>> shift = mlox.Problem.create(
        ...     name="shift", params=jnp.ones(()), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ctx.fit.params ** 2)
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.ones(()), tx=optax.sgd(0.5), method=OneStep(),
        ...     loss_fn=lambda params, batch, ctx: (params - ctx.shift.params) ** 2)
        >>> engine = mlox.Engine([shift, fit], {"shift": ["fit"]}, {"fit": ["shift"]})
        >>> _, gradient = engine.hypergradient(
        ...     engine.init(), {"shift": None, "fit": None}, "shift")
        >>> print(gradient)
        2.0
    """

    def multiplier(
        self, answer: Answer, cotangent: PyTree, guess: PyTree | None, /
    ) -> tuple[PyTree, Info] | tuple[PyTree, PyTree, Info]:
        """Return lambda, about (dG/dy)^{-T} cotangent, and scalars to log.

        Args:
            answer: The answer y and its residual.
            cotangent: A pytree like y. Lambda must be linear in it.
            guess: None: there is no memory of an earlier multiplier.

        Returns:
            A pytree like y, and a dict of scalars (between the two stands the memory of
            a `mlox.MethodWithMemory`). It must not have the key "gap",
            under which the engine reports <lambda, G>.
        """
        ...

    def pairing(
        self,
        cost: Callable[[PyTree], jax.Array],
        point: PyTree,
        multiplier: PyTree,
    ) -> jax.Array:
        """Return the scalar <multiplier, d cost/dy (point)>, differentiable.

        Args:
            cost: y -> scalar.
            point: The unknowns y.
            multiplier: A pytree like y.

        Returns:
            A scalar; the engine differentiates it with respect to all that the cost
            reads.
        """
        ...


def exact_pairing(
    cost: Callable[[PyTree], jax.Array], point: PyTree, multiplier: PyTree
) -> jax.Array:
    """Return <multiplier, d cost/dy>, the slope of the cost along the multiplier."""
    # Forward mode: differentiating this in reverse mode makes a reverse-over-forward
    # product, which needs no second pass backwards through the cost.
    return jax.jvp(cost, (point,), (multiplier,))[1]


@functools.singledispatch
def reach(method: object) -> System:
    """Return the widest class of blocks that a method can solve for.

    `System.NONE`, the default, is right for a method that treats each problem alone:
    the problem then answers to the partial gradient of its cost, in which its own
    lowers are fixed (direct coupling).

    Args:
        method: A method.

    Returns:
        The class.
    """
    del method
    return System.NONE


@functools.singledispatch
def follows_steps(method: object) -> bool:
    """Return whether a method differentiates the step of the lower's optimizer.

    Such a method sees the projection of a problem as a part of the step. The others, by
    default, are given the answer and the cotangent along the tangents of the set.

    Args:
        method: A method.

    Returns:
        Whether it does.
    """
    del method
    return False
