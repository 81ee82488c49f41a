"""Methods that keep something from one step of an upper to the next."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from mlox._utils.describe import show_differences, summarize
from mlox._utils.types import PyTree
from mlox.methods._base import Answer, Method
from mlox.solvers import Info

# The multiplier and the memory are two values: SOBA uses the old multiplier, and keeps
# the new one.


@runtime_checkable
class MethodWithMemory(Method, Protocol):
    """Differentiate an answer with a memory of the steps before.

    The engine keeps the memory in the state, in the problem that differentiates the
    answer (`upper.memory["lower"]`): two uppers of one lower have two. It is saved,
    split over devices and rolled back like everything else, has an axis of tasks where
    the lower has one, and is left alone where a step waits or is skipped. It starts
    anew with the inner loop of a lower that has `reset`.

    With a memory, lambda need not be linear in the cotangent. So the answer must not be
    part of a tower, nor of a loop that is unrolled further up. Where a hypergradient is
    differentiated again, and in Newton steps, `multiplier` is called without a memory.

    Example:
        A running mean of the multipliers of `mlox.Implicit`:

        >>> import dataclasses, jax.numpy as jnp, mlox, optax
        >>> @dataclasses.dataclass(frozen=True)
        ... class Averaged:
        ...     def start(self, point):
        ...         return jax.tree.map(jnp.zeros_like, point)
        ...     def multiplier(self, answer, cotangent, memory):
        ...         lam, _, info = mlox.Implicit().multiplier(answer, cotangent)
        ...         if memory is not None:
        ...             lam = jax.tree.map(lambda x, y: (x + y) / 2, memory, lam)
        ...         return lam, lam, info
        ...     def pairing(self, cost, point, multiplier):
        ...         return jax.jvp(cost, (point,), (multiplier,))[1]
        >>> shift = mlox.Problem.create(
        ...     name="shift", params=jnp.ones(()), tx=optax.sgd(0.0),
        ...     loss_fn=lambda params, batch, ctx: ctx.fit.params)
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.ones(()), tx=optax.sgd(0.1), method=Averaged(),
        ...     loss_fn=lambda params, batch, ctx: (params - ctx.shift.params) ** 2 / 2)
        >>> engine = mlox.Engine([shift, fit], {"shift": ["fit"]}, {"fit": ["shift"]})
        >>> state, memories = engine.init(), []
        >>> for _ in range(3):
        ...     state, _ = engine.step(state, {"shift": None, "fit": None})
        ...     memories += jax.tree.leaves(state["shift"].memory)
        >>> print(*memories)
        0.5 0.75 0.875
    """

    def start(self, point: PyTree, /) -> PyTree | None:
        """Return the first memory, or None for no memory at all.

        Args:
            point: The unknowns y of the answer, as in `mlox.Answer`.

        Returns:
            A pytree of arrays.
        """
        ...

    def multiplier(
        self, answer: Answer, cotangent: PyTree, memory: PyTree | None, /
    ) -> tuple[PyTree, PyTree | None, Info]:
        """Return lambda, the memory for the next step, and scalars to log.

        Args:
            answer: The answer y and its residual.
            cotangent: A pytree like y.
            memory: What `start` or the step before returned; constants. None where
                there is none: then lambda must be linear in the cotangent.

        Returns:
            A pytree like y, a pytree like the memory (not used if that is None), and a
            dict of scalars, without the key "gap".
        """
        ...


def keeps_memory(method: Any, point: PyTree) -> bool:
    """Return whether a method keeps a memory of an answer at a point."""
    if not isinstance(method, MethodWithMemory):
        return False
    leaves, structure = jax.tree.flatten(point)
    types = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    return _starts_with_one(method, structure, types)


@functools.lru_cache(maxsize=64)
def _starts_with_one(method: MethodWithMemory, structure: Any, types: Any) -> bool:
    # Asked of every problem in every trace: one answer for all that are alike.
    leaves = [jax.ShapeDtypeStruct(*leaf) for leaf in types]
    point = jax.tree.unflatten(structure, leaves)
    return jax.eval_shape(method.start, point) is not None


def call_multiplier(
    method: Any, answer: Answer, cotangent: PyTree, memory: PyTree | None
) -> tuple[PyTree, PyTree | None, Info]:
    """Return lambda, the memory after and the report, of any method.

    A method without `start` keeps no memory: it returns lambda and the report alone, or
    None between them if it hands on what a method of mlox returned.

    Raises:
        TypeError: If the method does not return what it should.
        ValueError: If it returns another memory than one like the memory before.
    """
    if not isinstance(method, MethodWithMemory):
        found = method.multiplier(answer, cotangent, None)
        if isinstance(found, tuple) and len(found) == 3 and found[1] is None:
            found = found[::2]
        _check_parts(found, 2, "a pair (multiplier, report)")
        return found[0], memory, found[1]
    found = method.multiplier(answer, cotangent, memory)
    _check_parts(found, 3, "(multiplier, memory, report)")
    if memory is None:
        return found[0], None, found[2]
    if wrong := show_differences(found[1], memory):
        raise ValueError(
            f"multiplier returned a memory that differs from the one before: {wrong}. "
            "Return one like that of start: of its structure, shapes and dtypes."
        )
    kept = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), found[1], memory)
    return found[0], kept, found[2]


def _check_parts(found: Any, count: int, expected: str) -> None:
    """Raise TypeError unless a multiplier comes with a report, and all in between."""
    parts = isinstance(found, tuple) and len(found) == count
    if not parts or not isinstance(found[-1], Mapping):
        raise TypeError(
            f"multiplier returned {summarize(found)}; expected {expected}, the report "
            "a dict of scalars. A memory needs start, see mlox.MethodWithMemory."
        )
