"""The jobs and methods of against_betty.py, and Betty's mistakes written in mlox.

Where Betty 0.2.1 is at fault, mlox is made to err like it, as a method or a solver of
one's own: so nothing else differs.

- SAMA, hypergradient/utils.py:33: for SGD the Jacobian of the update is taken for the
  identity, without the learning rate, which the Adam branch has (line 60). So Betty's
  term is 1 / rate times that of the paper and of `mlox.SAMA`, see `Scaled`. Its central
  difference has the length 1 (`sama_adam_alpha`, sama.py:23 and 27), a wide one, which
  `mlox.SAMA(epsilon=1.0)` takes as well.
- CG, hypergradient/cg.py:53: the next direction is turned from the residual before the
  step (`zip(r, p)`), not from the one after it (`r_new`). One iteration is right, more
  are not conjugate gradients, see `StaleCG`. (And with another `cg_alpha` than 1 the
  residual is that of a step 1 / cg_alpha times as long, cg.py:42 and 50.)
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _jobs import Job, logistic, mlp
from jax.flatten_util import ravel_pytree

from mlox import CG, SAMA, FiniteDifference, Implicit, Neumann

PyTree = Any

STEPS, UNROLL = 10, 5


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Multiply what a method gives for the implicit part by a number."""

    method: Any
    factor: float

    def multiplier(self, answer: Any, cotangent: PyTree, guess: Any = None) -> Any:
        """Return the scaled multiplier; a central difference keeps its length."""
        found, *_, info = self.method.multiplier(answer, cotangent, guess)
        return jax.tree.map(lambda x: self.factor * x, found), info

    def pairing(self, cost: Any, point: PyTree, multiplier: PyTree) -> jax.Array:
        """Return the pairing of the method."""
        return self.method.pairing(cost, point, multiplier)


@dataclasses.dataclass(frozen=True)
class StaleCG:
    """Conjugate gradients with Betty's mistake."""

    iterations: int

    def __call__(self, matvec: Any, b: PyTree, guess: Any = None) -> Any:
        """Return the last iterate, and no report."""
        del guess
        p, restored = ravel_pytree(b)
        x, r = jnp.zeros_like(p), p
        for _ in range(self.iterations):
            Ap, _ = ravel_pytree(matvec(restored(p)))
            alpha = (r @ r) / (p @ Ap)
            after = r - alpha * Ap
            beta = (after @ after) / (r @ r)
            x, p, r = x + alpha * p, r + beta * p, after  # right: after + beta p
        return restored(x), {}


class Setting(NamedTuple):
    """A job, and numbers that go with it.

    Attributes:
        job: Its losses, initial parameters, and batches for all steps.
        lower_rate: The learning rate of the lower problem.
        upper_rate: The learning rate of the upper problem.
        prior: The weight of the upper's squared parameters in its own loss, so that
            there is a direct gradient, against which the scale of the other one shows.
    """

    job: Job
    lower_rate: float
    upper_rate: float
    prior: float

    def wide(self) -> Setting:
        """Return the setting in float64, which JAX must have enabled."""

        def widened(x: jax.Array) -> jax.Array:
            inexact = jnp.issubdtype(x.dtype, jnp.inexact)
            return x.astype(jnp.float64) if inexact else x

        arrays = {n: getattr(self.job, n) for n in ("lower", "upper", "batches")}
        changes = jax.tree.map(widened, arrays)
        return self._replace(job=dataclasses.replace(self.job, **changes))

    def written(self, method: Any) -> Job:
        """Return the job with plain SGD, a direct gradient and a method."""

        def upper_loss(lower: PyTree, upper: PyTree, batch: PyTree) -> PyTree:
            found = self.job.upper_loss(lower, upper, batch)
            squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(upper))
            return {**found, "loss": found["loss"] + self.prior * squares}

        window = jax.tree.map(lambda x: x[:UNROLL], self.job.batches["lower"])
        return dataclasses.replace(
            self.job,
            upper_loss=upper_loss,
            lower_tx=optax.sgd(self.lower_rate),
            upper_tx=optax.sgd(self.upper_rate),
            batches={**self.job.batches, "lower": window},
            method=method,
        )


class Case(NamedTuple):
    """A method in both libraries.

    Attributes:
        name: What the table calls it.
        config: What Betty's `Config` is given for it.
        method: What does the same in mlox.
        right: What mlox does in its place, where Betty errs.
    """

    name: str
    config: dict[str, Any]
    method: Any
    right: Any = None


def settings() -> tuple[Setting, ...]:
    """List the jobs."""
    return (
        Setting(logistic(STEPS * UNROLL, None), 0.5, 20.0, 1e-4),
        Setting(mlp(STEPS * UNROLL, None, width=32, batch=50), 0.01, 0.1, 1e-3),
    )


def cases(rate: float) -> tuple[Case, ...]:
    """List the methods for a lower problem with this learning rate."""
    neumann = {"neumann_iterations": 3, "neumann_alpha": rate}
    sama, cg = SAMA(epsilon=1.0), Implicit(CG(3))
    return (
        Case("DARTS", {"type": "darts"}, FiniteDifference(0.01)),
        Case("CG 1", {"type": "cg"}, Implicit(CG(1))),
        Case("Neumann 3", {"type": "neumann", **neumann}, Implicit(Neumann(3, rate))),
        Case("SAMA / rate", {"type": "sama"}, Scaled(sama, 1 / rate), sama),
        Case(
            "stale CG 3", {"type": "cg", "cg_iterations": 3}, Implicit(StaleCG(3)), cg
        ),
    )
