"""Losses that hold an answer near a point that an upper learns, as in implicit MAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._problem.context import Context
from mlox._problem.loss_output import as_dict
from mlox._problem.validation import LOSS
from mlox._utils.describe import find_non_array, show_call, show_differences
from mlox._utils.fields import POSITIVE, check, check_function
from mlox._utils.tree import STANDARD_PROMOTION, vdot
from mlox._utils.types import LossFn, PyTree

CENTRE = "(ctx) -> params"
STRENGTH = "(ctx) -> a scalar"


@dataclass(frozen=True)
class Proximal:
    r"""Add a pull towards the parameters of an upper to a loss, as implicit MAML does.

        C(theta) + strength / 2 ||theta - theta_0||^2

    An answer that has forgotten where its loop began does not depend on it: with
    `reset` alone, implicit methods give a start that is learned no derivative. With the
    pull it has one. At the minimum

        dF/dtheta_0 = strength (H + strength I)^-1 dF/dtheta,    H = d^2C/dtheta^2.

    **The matrix.** H + strength I is definite only if the strength exceeds the most
    negative eigenvalue of H, which for a network it rarely does: `mlox.CG` fails there.
    For a loss in parts, l(f(theta)) by `mlox.Composed`, `mlox.GaussNewton` takes

        J^T (d^2l/dz^2) J + strength I,    J = df/dtheta,

    whose eigenvalues are no smaller than the strength wherever l is convex in the
    outputs: conjugate gradients converge everywhere. The parameters need not pass
    through the outputs, since the pull has its own exact term.

    Cost: nothing beside that of the loss. Wrap it around `mlox.MixedPrecision`, so that
    the pull is in full precision.

    Attributes:
        loss_fn: (params, batch, ctx) -> loss, as for `mlox.Problem.create`.
        to: The name of the upper whose parameters are theta_0, or (ctx) -> theta_0
            where they are a part of it: `lambda ctx: ctx.init.params["net"]`.
        strength: A number > 0, or (ctx) -> a scalar where an upper learns it.

    Raises:
        TypeError: If an attribute is of the wrong kind.
        ValueError: If the strength is a number that is not positive; if theta_0 has
            another structure or other shapes than the parameters, while tracing.

    References:
        Rajeswaran et al., Meta-Learning with Implicit Gradients, NeurIPS 2019.

    Example:
        For C = theta^2 / 2 and the strength 3 the answer is 3/4 of theta_0:

        >>> import jax.numpy as jnp, mlox, optax
        >>> def outputs(params, batch, ctx):
        ...     return params
        >>> def loss(outputs, batch, ctx):
        ...     return 0.5 * outputs**2
        >>> init = mlox.Problem.create(
        ...     name="init", params=jnp.float32(2.0), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ctx.task.params)
        >>> task = mlox.Problem.create(
        ...     name="task", params=jnp.float32(0.0), tx=optax.sgd(0.25),
        ...     loss_fn=mlox.Proximal(
        ...         mlox.Composed(outputs, loss), to="init", strength=3.0),
        ...     reset=lambda params, ctx: ctx.init.params,
        ...     method=mlox.GaussNewton(mlox.CG(5)))
        >>> engine = mlox.Engine(
        ...     [init, task], {"init": ["task"]}, {"task": ["init"]})
        >>> _, slope = engine.hypergradient(
        ...     engine.init(), {"init": None, "task": None}, "init")
        >>> print(slope)
        0.75
    """

    loss_fn: LossFn
    to: str | Callable[[Context], PyTree]
    strength: float | Callable[[Context], Any]

    def __post_init__(self) -> None:
        check_function("Proximal: loss_fn", self.loss_fn, LOSS)
        if not isinstance(self.to, str):
            check_function("Proximal: to", self.to, CENTRE)
        if callable(self.strength):
            check_function("Proximal: strength", self.strength, STRENGTH)
        else:
            check("Proximal: strength", self.strength, POSITIVE)

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the loss with the pull, and the metrics."""
        centre = ctx[self.to].params if isinstance(self.to, str) else self.to(ctx)
        self._check_centre(centre, params, ctx.name)
        returned = as_dict(self.loss_fn(params, batch, ctx))
        loss = returned.get("loss")
        if loss is None or find_non_array(loss):  # `split_loss` raises
            return returned
        strength = self.strength(ctx) if callable(self.strength) else self.strength
        with STANDARD_PROMOTION():
            away = jax.tree.map(jnp.subtract, params, centre)
            return {**returned, "loss": loss + 0.5 * strength * vdot(away, away)}

    def _check_centre(self, centre: PyTree, params: PyTree, name: str) -> None:
        found, own = (
            (jax.tree.structure(tree), [*map(jnp.shape, jax.tree.leaves(tree))])
            for tree in (centre, params)
        )
        if found != own:
            to = f"{self.to!r}" if isinstance(self.to, str) else show_call(self.to)
            raise ValueError(
                f"loss of {name!r}: Proximal(to={to}) is pulled to parameters that do "
                f"not fit its own: {show_differences(centre, params)}. Where they are "
                "a part of an upper, pass a function, e.g. "
                "to=lambda ctx: ctx.init.params['net']."
            )
