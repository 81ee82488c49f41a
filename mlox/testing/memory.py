"""The laws of memories: of methods that keep something from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mlox._utils.types import PyTree
from mlox.methods import Answer, call_multiplier, keeps_memory
from mlox.solvers import System
from mlox.testing.laws import law, require_close, require_finite
from mlox.testing.systems import make_matrix, make_tree

Inverse = Callable[[jax.Array, jax.Array], jax.Array]
STEPS = 1000
"""The steps in which a multiplier settles on a frozen problem."""


def check_memory(
    method: Any, answer: Answer, expected: Inverse, tolerance: float
) -> None:
    """Raise AssertionError unless the memory of a method is one, if it has any."""
    if not keeps_memory(method, answer.point):
        return
    v = make_tree(2, jnp.result_type(float))

    def step(memory: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        lam, kept, _ = call_multiplier(method, answer, v, memory)
        return kept, lam

    def settle(v: PyTree) -> PyTree:
        vs = jax.tree.map(lambda x: jnp.broadcast_to(x, (STEPS, *x.shape)), v)
        kept, lams = jax.lax.scan(step, method.start(answer.point), vs)
        return kept, jax.tree.map(lambda x: x[-1], lams)

    with law(
        method,
        "the memory after is like the memory before",
        "Return it in the structure, shapes and dtypes of start(point).",
    ):
        first = step(method.start(answer.point), v)
    with law(
        method,
        "the multiplier is the same under jit and vmap, with a memory",
        "Let no Python `if` depend on arrays, and call no NumPy on them.",
    ):
        memory = method.start(answer.point)
        stack = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
        found = jax.jit(jax.vmap(step))(stack(memory), stack(v))
        require_close(found, stack(first), tolerance)
    with law(
        method,
        "with a zero cotangent multiplier and memory stay finite",
        "Guard each quotient whose denominator becomes zero with the cotangent.",
    ):
        require_finite(jax.jit(settle)(jax.tree.map(jnp.zeros_like, v)))
    with law(
        method,
        f"on a frozen problem the multiplier settles at the expected one in {STEPS} "
        "steps, from the first memory",
        "A step that is too large or too small for eigenvalues of 0.5 to 1.5, or the "
        "sign of what is kept.",
    ):
        matrix = make_matrix(System.DEFINITE, jnp.result_type(float))
        right = np.asarray(expected(matrix, ravel_pytree(v)[0]))
        require_close(ravel_pytree(jax.jit(settle)(v)[1])[0], right, tolerance)
