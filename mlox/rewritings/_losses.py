"""The loss of a problem, called inside the loss of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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
from mlox._utils.describe import annotate_errors
from mlox._utils.types import LossFn, Metrics, PyTree
from mlox.rewritings._batches import missing_part

StandIns = Mapping[str, Neighbour]

# Numbers that are folded into the key of a step, for what needs one of its own.
SAMPLE, OTHER = 2**32 - 2, 2**32 - 4


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
        apply_fn: Its function, or None.
        sample: Makes its batch, or None.
        reads: The problems that its loss may read.
        keyed: Whether it has a PRNG key.
        tasks: The number of its tasks, or None.
        tasks_at_once: How many of them are computed at a time; None for all.
    """

    name: str
    loss_fn: LossFn
    apply_fn: Callable[..., Any] | None
    sample: Callable[..., Any] | None
    reads: tuple[str, ...]
    keyed: bool
    tasks: int | None
    tasks_at_once: int | None

    @classmethod
    def of(cls, problem: Problem, graph: Graph) -> Loss:
        """Return the loss of a problem in a graph."""
        return cls(
            problem.name,
            problem.loss_fn,
            problem.apply_fn,
            problem.sample,
            graph.reads(problem.name),
            problem.rng is not None,
            problem.tasks,
            problem.tasks_at_once,
        )

    def at(self, params: PyTree, ctx: Context) -> Neighbour:
        """Return the problem of a loss, or one of its tasks, as a neighbour.

        Args:
            params: The parameters of which the loss is called.
            ctx: The context that it is called with.
        """
        return Neighbour(
            params, ctx.model_state, self.apply_fn, self.name, step=ctx.step
        )

    def stacked(self, neighbour: Neighbour) -> Neighbour:
        """Return a neighbour whose arrays have an axis of tasks with its tasks."""
        return dataclasses.replace(
            neighbour, tasks=self.tasks, tasks_at_once=self.tasks_at_once
        )

    def __call__(
        self,
        at: Neighbour,
        batch: PyTree,
        ctx: Context,
        *,
        rng: jax.Array | None,
        stand_ins: StandIns,
    ) -> Evaluated:
        """Evaluate the loss; the arguments are those of `call`."""
        found = self.call(self._evaluate, at, batch, ctx, rng=rng, stand_ins=stand_ins)
        if at.tasks is None:
            return found
        metrics = mean_over_tasks(self.name, found.metrics)
        return found._replace(loss=found.loss.sum(), metrics=metrics)

    def call(
        self,
        function: Callable[[PyTree, PyTree, Context], Any],
        at: Neighbour,
        batch: PyTree,
        ctx: Context,
        *,
        rng: jax.Array | None,
        stand_ins: StandIns,
    ) -> Any:
        """Call a function (params, batch, ctx) of the problem, for each of its tasks.

        Args:
            function: The function.
            at: Where: the parameters, the mutable state and the tasks.
            batch: The batch, with a leading axis of tasks if `at` has tasks.
            ctx: The context of the loss that calls this one.
            rng: The PRNG key, split over tasks; None for a problem without keys.
            stand_ins: What the function reads under the name of each problem, in place
                of what `ctx` has under it.
        """
        seen = {n: stand_ins[n] if n in stand_ins else ctx[n] for n in self.reads}
        rng = rng if self.keyed else None
        step = 0 if at.step is None else at.step
        own = Context(
            self.name, seen, rng, step, at.model_state, ctx.train, ctx.task_index
        )
        if at.tasks is None:
            return function(at.params, batch, own)
        keys = None if rng is None else jax.random.split(rng, at.tasks)
        data = jnp.arange(at.tasks, dtype=jnp.int32), batch, keys
        mapped = {n: other for n, other in seen.items() if other.tasks == at.tasks}
        others = {n: (x.params, x.model_state) for n, x in mapped.items()}

        def of_task(data: Any, arrays: Any, others: Mapping[str, Any]) -> Any:
            index, batch, key = data
            params, model_state = arrays
            ours = {n: _take_task(mapped[n], *x) for n, x in others.items()}
            one = dataclasses.replace(
                own,
                neighbours={**seen, **ours},
                rng=key,
                model_state=model_state,
                task_index=index,
            )
            return function(params, batch, one)

        of_tasks = vmap_in_chunks(of_task, at.tasks, at.tasks_at_once)
        return of_tasks(data, (at.params, at.model_state), others)

    def _evaluate(self, params: PyTree, batch: PyTree, ctx: Context) -> Evaluated:
        """Evaluate the loss of one task, in its own context."""
        if self.sample is not None:
            rng = None if ctx.rng is None else jax.random.fold_in(ctx.rng, SAMPLE)
            drawn = dataclasses.replace(ctx, rng=rng)
            with annotate_errors(f"sample of problem {self.name!r}", params=params):
                batch = jax.lax.stop_gradient(self.sample(params, drawn))
        with annotate_errors(
            f"loss_fn of problem {self.name!r}",
            {"batch": missing_part(self.name)},
            params=params,
            batch=batch,
            rng=ctx.rng,
            model_state=ctx.model_state,
        ):
            returned = self.loss_fn(params, batch, ctx)
        return Evaluated(*split_loss(self.name, returned, ctx.model_state))


def other_key(rng: jax.Array | None) -> jax.Array | None:
    """Return a key for the loss of another problem, beside that of a problem's own."""
    return None if rng is None else jax.random.fold_in(rng, OTHER)


def report(found: Evaluated, loss: jax.Array) -> dict[str, Any]:
    """Return what a loss returns, with the metrics of a cost that is a part of it."""
    returned = {"cost": found.metrics["loss"], **found.metrics, "loss": loss}
    return returned | {"model_state": found.model_state}


def _take_task(neighbour: Neighbour, params: PyTree, model_state: PyTree) -> Neighbour:
    """Return one task of a neighbour, whose arrays are given."""
    parts = {"params": params, "model_state": model_state}
    return dataclasses.replace(neighbour, **parts, tasks=None, tasks_at_once=None)
