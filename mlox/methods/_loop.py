"""The contract of a loop: a way to differentiate an answer through its inner loop.

For an upper with parameters x, a window of steps leads to the answers y(x). A loop
takes cotangents v of these to (dy/dx)^T v:

    Unrolled     reverse mode through the steps
    Forward      forward mode: a basis of x through the steps, dy/dx column by column
    Detached     reverse mode through the start of the window alone
    your own     e.g. evolution strategies: differences of windows at random x
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax

from mlox._utils.types import PyTree

Run = Callable[[PyTree], tuple[PyTree, Any]]
PullBack = Callable[[PyTree], PyTree]
Pull = Callable[[Run, PyTree, jax.Array | None], tuple[Any, PullBack]]


@runtime_checkable
class Loop(Protocol):
    """Differentiate an answer through the loop that led to it.

    A loop is any hashable value with this function; it needs no registration. Answers
    of one window whose loops have the same `pull`, such as a static function, share a
    run of the window. Inside the residual of an implicit problem, which needs second
    derivatives, windows are differentiated exactly instead.

    Example:
        Evolution strategies, which see a loop as a black box. They estimate
        (dy/dx)^T v, so the upper's loss has a gradient v; where it has none, or windows
        are shorter than the inner problem, see `mlox.evolve`.

        >>> import dataclasses, jax, jax.numpy as jnp, mlox, optax
        >>> @dataclasses.dataclass(frozen=True)
        ... class Evolved:
        ...     pairs: int = 64
        ...     sigma: float = 0.1
        ...     def pull(self, run, params, key):
        ...         noise = jax.random.normal(key, (self.pairs, *params["x"].shape))
        ...         def at(e):
        ...             return run({"x": params["x"] + self.sigma * e})[0]
        ...         up, down = jax.vmap(at)(noise), jax.vmap(at)(-noise)
        ...         def pull_back(cotangents):
        ...             slopes = jax.tree.map(
        ...                 lambda c, a, b: (a - b) @ c / (2 * self.sigma),
        ...                 cotangents, up, down)
        ...             return {"x": sum(jax.tree.leaves(slopes)) @ noise / self.pairs}
        ...         return run(params)[1], pull_back
        >>> x = mlox.Problem.create(
        ...     name="x", params=jnp.array([1.0]), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: (ctx.y.params ** 2).sum())
        >>> y = mlox.Problem.create(
        ...     name="y", params=jnp.zeros(1), tx=optax.sgd(0.5), rng=0,
        ...     method=Evolved(),
        ...     loss_fn=lambda params, batch, ctx: ((params - ctx.x.params) ** 2).sum())
        >>> engine = mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]})
        >>> _, slope = engine.hypergradient(engine.init(), {"x": None, "y": None}, "x")
        >>> bool(abs(slope[0] - 2.0) < 0.5)
        True
    """

    def pull(
        self, run: Run, params: PyTree, key: jax.Array | None
    ) -> tuple[Any, PullBack]:
        """Run a window, and return how cotangents are pulled back through it.

        Args:
            run: params -> (answers, rest): makes the steps of the window.
            params: {upper: its parameters}, of all uppers that share the window.
            key: A PRNG key of the window, from the problem's own; None if it has none.

        Returns:
            The rest of `run(params)`, and a function from cotangents, a pytree like
            the answers, to a pytree like `params`; linear in them.
        """
        ...


@dataclass(frozen=True)
class Iterative:
    """The loops that differentiate the steps themselves, exactly.

    Attributes:
        last_steps: Differentiate only the last K steps of the window; None for all.
    """

    last_steps: int | None = None


def pull_in_reverse(
    run: Run, params: PyTree, key: jax.Array | None
) -> tuple[Any, PullBack]:
    """Run a window, and pull back through what it stores: reverse mode."""
    del key
    _, pull, rest = jax.vjp(run, params, has_aux=True)
    return rest, lambda cotangents: pull(cotangents)[0]
