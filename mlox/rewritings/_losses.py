"""The loss of a problem, called inside the loss of another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._graph.graph import Graph
from mlox._hypergradient.tasks import mean_over_tasks
from mlox._problem.context import Context, Neighbour
from mlox._problem.loss_output import split_loss
from mlox._problem.problem import Problem
from mlox._utils.chunks import vmap_in_chunks
from mlox._utils.describe import annotate_errors, summarize
from mlox._utils.types import LossFn, Metrics, PyTree


class Evaluated(NamedTuple):
    """What a loss has returned.

    Attributes:
        loss: A scalar; with tasks the sum of theirs.
        metrics: Its metrics, the loss among them; with tasks their means.
        model_state: The mutable state after.
    """

    loss: jax.Array
    metrics: Metrics
    model_state: PyTree


@dataclass(frozen=True)
class Loss:
    """The loss of a problem, as a value that the losses of other problems call.

    It is called at a `mlox.Neighbour`, which stands for the problem: with its
    parameters, mutable state, count of steps and tasks.

    Attributes:
        name: The problem.
        loss_fn: Its loss.
        sample: Makes its batch, or None.
        reads: The problems that its loss may read.
        keyed: Whether it has a PRNG key.
    """

    name: str
    loss_fn: LossFn
    sample: Any
    reads: tuple[str, ...]
    keyed: bool

    @classmethod
    def of(cls, problem: Problem, graph: Graph) -> Loss:
        """Return the loss of a problem in a graph."""
        reads, keyed = graph.reads(problem.name), problem.rng is not None
        return cls(problem.name, problem.loss_fn, problem.sample, reads, keyed)

    def __call__(
        self,
        at: Neighbour,
        batch: PyTree,
        ctx: Context,
        *,
        rng: jax.Array | None,
        stand_ins: Mapping[str, Neighbour],
    ) -> Evaluated:
        """Evaluate the loss.

        Args:
            at: Where. If it has tasks, the loss is evaluated for each, and summed.
            batch: Its batch, with a leading axis of tasks if `at` has tasks; not used
                if the problem samples its own.
            ctx: The context of the loss that calls this one.
            rng: The PRNG key, split over tasks; not used if the problem has none.
            stand_ins: What the loss reads under the name of each problem, in place of
                what `ctx` has under it.

        Raises:
            ValueError: As the loss itself does.
        """
        seen = {n: stand_ins[n] if n in stand_ins else ctx[n] for n in self.reads}
        rng = rng if self.keyed else None
        if at.tasks is None:
            return self._evaluate(at, batch, ctx, rng, ctx.task_index, seen)
        mapped = {n: other for n, other in seen.items() if other.tasks == at.tasks}
        keys = None if rng is None else jax.random.split(rng, at.tasks)
        data = jnp.arange(at.tasks, dtype=jnp.int32), batch, keys

        def of_task(data: Any, arrays: Mapping[str, Any]) -> Evaluated:
            index, batch, key = data
            one = {n: _at_task(other, arrays[n]) for n, other in mapped.items()}
            here = _at_task(at, arrays[""])
            return self._evaluate(here, batch, ctx, key, index, {**seen, **one})

        arrays = {n: (x.params, x.model_state) for n, x in {**mapped, "": at}.items()}
        of_tasks = vmap_in_chunks(of_task, at.tasks, at.tasks_at_once)
        losses, metrics, model_state = of_tasks(data, arrays)
        return Evaluated(losses.sum(), mean_over_tasks(self.name, metrics), model_state)

    def _evaluate(
        self,
        at: Neighbour,
        batch: PyTree,
        ctx: Context,
        rng: jax.Array | None,
        task_index: jax.Array | None,
        seen: Mapping[str, Neighbour],
    ) -> Evaluated:
        step = 0 if at.step is None else at.step
        own = Context(self.name, seen, rng, step, at.model_state, ctx.train, task_index)
        params = at.params
        if self.sample is not None:
            with annotate_errors(f"sample of problem {self.name!r}", params=params):
                batch = jax.lax.stop_gradient(self.sample(params, own))
        with annotate_errors(
            f"loss_fn of problem {self.name!r}, called by that of {ctx.name!r}",
            {"batch": missing_batch(self.name, ctx.name)},
            params=params,
            batch=batch,
            rng=rng,
            model_state=at.model_state,
        ):
            returned = self.loss_fn(params, batch, own)
        return Evaluated(*split_loss(self.name, returned, at.model_state))


def own_neighbour(params: PyTree, ctx: Context, tasks: int | None = None) -> Neighbour:
    """Return the problem whose loss is evaluated as others see it."""
    return Neighbour(
        params, ctx.model_state, None, ctx.name, tasks=tasks, step=ctx.step
    )


def part_of_batch(batch: PyTree, name: str, names: tuple[str, ...], owner: str) -> Any:
    """Return the part of a problem in a batch that holds one of each of some problems.

    Args:
        batch: {name: batch}, where a problem without data may be left out; None if none
            has data.
        name: The problem whose part it is.
        names: All of them.
        owner: The problem whose batch it is.

    Raises:
        ValueError: If the batch is something else.
    """
    if batch is None:
        return None
    if not isinstance(batch, Mapping) or not set(batch) <= set(names):
        expected = ", ".join(f"{n!r}: its batch" for n in names)
        series = ", ".join(f"{n}=..." for n in names)
        raise ValueError(
            f"the batch of {owner!r} is {summarize(batch)}; expected a dict "
            f"{{{expected}}}, as its loss evaluates those of {' and '.join(names)}. "
            f"Pass data={{{owner!r}: mlox.together({series})}} to run; leave out what "
            "has no data."
        )
    return batch.get(name)


def missing_batch(name: str, owner: str) -> str:
    """Return how a loss gets the batch that it lacks inside that of another problem."""
    return (
        f"the batch of {owner!r} has no part for {name!r}. Pass data={{{owner!r}: "
        f"mlox.together({name}=..., ...)}} to run, or batches[{owner!r}][{name!r}] to "
        "step."
    )


def _at_task(neighbour: Neighbour, arrays: tuple[PyTree, PyTree]) -> Neighbour:
    """Return one task of a neighbour, with its parameters and mutable state."""
    return Neighbour(*arrays, neighbour.apply_fn, neighbour.name, step=neighbour.step)
