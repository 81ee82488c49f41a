"""The context of a loss: neighbours, PRNG key, step and mutable state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax

from mlox._problem.map_tasks import map_over_tasks
from mlox._utils.types import PyTree


@dataclass(frozen=True)
class Neighbour:
    """The values of a neighbour that a loss can read.

    Attributes:
        params: Its parameters.
        model_state: Its current mutable state, or None.
        apply_fn: Its function (params, *args) -> output, or None.
        name: Its name.
        tasks: The number of its tasks, which is the leading axis of its arrays, or
            None. With tasks, a call also maps over the leading axis of the arrays among
            the arguments; each task gets a key of its own from a single PRNG key, and
            what is no array, such as `train=False`, is the same for all of them.
        tasks_at_once: How many of its tasks a call computes at a time; None for all.
        step: int32 scalar, the number of steps that it has made; None where a neighbour
            is made by hand.

    Example:
        >>> from mlox import Neighbour
        >>> double = Neighbour(2.0, None, lambda params, x: params * x)
        >>> double(3.0)
        6.0
    """

    params: PyTree
    model_state: PyTree
    apply_fn: Callable[..., Any] | None
    name: str = ""
    tasks: int | None = None
    tasks_at_once: int | None = None
    step: jax.Array | int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the neighbour's function to its parameters and the arguments."""
        if self.apply_fn is None:
            raise ValueError(
                f"neighbour {self.name!r} was called, but has no apply_fn. Pass "
                f"apply_fn= to Problem.create of {self.name!r}, or use its params."
            )
        return self.map(self.apply_fn, self.params)(*args, **kwargs)

    def map(self, function: Callable[..., Any], *own: PyTree) -> Callable[..., Any]:
        """Return (*args, **kwargs) -> function(*own, *args, **kwargs), for each task.

        Args:
            function: What is applied.
            own: Pytrees of the neighbour, such as its parameters.
        """
        if self.tasks is None:
            return functools.partial(function, *own)
        label = f"neighbour {self.name!r}"
        return map_over_tasks(label, self.tasks, self.tasks_at_once, function, *own)


@dataclass(frozen=True)
class Context:
    """The values that a loss can read besides its parameters and batch.

    `ctx["name"]` and `ctx.name` return a declared neighbour, a `mlox.Neighbour`.

    Attributes:
        name: The problem whose loss is evaluated.
        neighbours: The declared neighbours, by name.
        rng: The PRNG key of this step, or None. All evaluations of one hypergradient
            use the same key.
        step: int32 scalar, the number of steps that the problem has made.
        model_state: The problem's mutable state, or None.
        train: False in `Engine.evaluate`, True in steps and hypergradients; a plain
            bool, so a loss can branch on it.
        task_index: int32 scalar, the index of the current task, from 0; None for a
            problem without `tasks`.
        inner_step: int32 scalar, the number of steps that the problem has made in its
            present window, from 0: since the nearest problem above has stepped, or in
            the cycle if there is none. It indexes what is learned for each step of an
            inner loop. 0 in `reset` and `Engine.evaluate`.

    Example:
        >>> from mlox import Context, Neighbour
        >>> ctx = Context("fit", {"penalty": Neighbour(0.5, None, None)}, None, 0, None)
        >>> ctx.penalty.params
        0.5
    """

    name: str
    neighbours: Mapping[str, Neighbour]
    rng: jax.Array | None
    step: jax.Array | int
    model_state: PyTree
    train: bool = True
    task_index: jax.Array | None = None
    inner_step: jax.Array | int = 0

    def __getitem__(self, name: str) -> Neighbour:
        if name not in self.neighbours:
            raise ValueError(
                f"problem {self.name!r} reads ctx[{name!r}], but no edge between them "
                f"is declared. If {name!r} is an upper of {self.name!r}, add "
                f"u2l={{{name!r}: [{self.name!r}]}}; if it is a lower, add "
                f"l2u={{{name!r}: [{self.name!r}]}}; if it is a constant here, add "
                f"reads={{{self.name!r}: [{name!r}]}}. Declared: "
                f"{sorted(self.neighbours)}."
            )
        return self.neighbours[name]

    def __getattr__(self, name: str) -> Neighbour:
        if name.startswith("__"):  # protocols such as copy and pickle
            raise AttributeError(name)
        return self[name]


RESERVED = tuple(field.name for field in fields(Context))
