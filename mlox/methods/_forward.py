"""Forward mode: through the steps of the inner loop, with no memory of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mlox._utils.depends import find_used
from mlox._utils.describe import show_call
from mlox._utils.fields import COUNT, check_fields, optional
from mlox._utils.types import PyTree
from mlox.methods._loop import Iterative, PullBack, Run

# With the state z_{t+1} = Phi(z_t, x) of parameters, optimizer and mutable state,
#
#     dz_{t+1}/dx = dPhi/dz dz_t/dx + dPhi/dx,
#
# one column for each number in x, all beside one run of the loop itself.


@dataclass(frozen=True, repr=False)
class Forward(Iterative):
    r"""Differentiate an answer through the steps that led to it, in forward mode.

    The derivative is that of `Unrolled`, to rounding. The derivatives of the inner
    state by each number in the upper's parameters x are carried along with the steps:
    the memory does not grow with the number of steps, and is dim(x) inner states; the
    time is about that of 2 dim(x) windows. So it is the choice for few hyperparameters
    and long windows. Only those leaves of x count that the loop reads.

    Attributes:
        last_steps: Differentiate only the last K steps of the window (truncation);
            None for all steps.

    References:
        Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter
        Optimization, 2017.

    Example:
        >>> import mlox
        >>> mlox.Forward()
        Forward()
    """

    def __post_init__(self) -> None:
        check_fields(self, last_steps=optional(COUNT))

    @staticmethod
    def pull(run: Run, params: PyTree, key: jax.Array | None) -> tuple[Any, PullBack]:
        """Run a window beside its derivatives, see `mlox.methods.Loop`."""
        del key
        leaves, structure = jax.tree.flatten(params)
        used = find_used(lambda params: run(params)[0], params)
        read = [x for x, is_used in zip(leaves, used, strict=True) if is_used]
        if not read:
            return run(params)[1], lambda _: jax.tree.map(jnp.zeros_like, params)
        vector, unravel = ravel_pytree(read)

        def fill(parts: list[Any]) -> PyTree:
            rest = iter(parts)
            pairs = zip(leaves, used, strict=True)
            filled = [next(rest) if is_used else x for x, is_used in pairs]
            return jax.tree.unflatten(structure, filled)

        def push(direction: jax.Array) -> tuple[PyTree, Any]:
            _, slope, rest = jax.jvp(
                lambda parts: run(fill(parts)),
                (read,),
                (unravel(direction),),
                has_aux=True,
            )
            return slope, rest

        # The run itself is the same for all directions, and is made once: `jax.vmap`
        # repeats what it returns, which the compiler undoes.
        basis = jnp.eye(vector.size, dtype=vector.dtype)
        slopes, repeated = jax.vmap(push)(basis)
        rest = jax.tree.map(lambda x: x[0], repeated)

        def pull_back(cotangents: PyTree) -> PyTree:
            parts = jax.tree.map(
                lambda slope, c: jnp.tensordot(slope, c, c.ndim).astype(vector.dtype),
                slopes,
                cotangents,
            )
            total = sum(jax.tree.leaves(parts), start=jnp.zeros_like(vector))
            found = iter(unravel(total))
            pairs = zip(leaves, used, strict=True)
            return jax.tree.unflatten(
                structure,
                [next(found) if is_used else jnp.zeros_like(x) for x, is_used in pairs],
            )

        return rest, pull_back

    __repr__ = show_call
