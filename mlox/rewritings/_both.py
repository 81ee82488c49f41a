"""The costs of an upper and its lower, evaluated together in the loss of a problem."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeAlias

import jax

from mlox._graph.graph import Graph
from mlox._problem.context import Context, Neighbour
from mlox._problem.problem import Problem
from mlox._utils.types import LossFn, PyTree
from mlox.rewritings._batches import part_of
from mlox.rewritings._joined import join_tasks
from mlox.rewritings._losses import Evaluated, Loss

Keys: TypeAlias = tuple[jax.Array | None, jax.Array | None]


@dataclass(frozen=True)
class Both:
    """The costs F(x, y) of an upper and C(x, y) of its lower.

    Attributes:
        upper: F.
        lower: C.
    """

    upper: Loss
    lower: Loss

    def evaluate(
        self,
        x: Neighbour,
        y: Neighbour,
        batch: PyTree,
        ctx: Context,
        owner: str,
        keys: Keys,
    ) -> tuple[Evaluated, Evaluated]:
        """Return F and C at a point.

        Args:
            x: The upper.
            y: The lower.
            batch: A dict with a batch of each.
            ctx: The context of the loss that evaluates them.
            owner: The problem of that loss.
            keys: The keys of F and of C.
        """
        names = (self.upper.name, self.lower.name)
        stand_ins = dict(zip(names, (x, y), strict=True))
        parts = [part_of(batch, name, names, owner) for name in names]
        f = self.upper(x, parts[0], ctx, rng=keys[0], stand_ins=stand_ins)
        c = self.lower(y, parts[1], ctx, rng=keys[1], stand_ins=stand_ins)
        return f, c

    @property
    def reads(self) -> tuple[str, ...]:
        """What the two read, besides the lower."""
        found = dict.fromkeys((*self.lower.reads, *self.upper.reads))
        return tuple(name for name in found if name != self.lower.name)

    def see(self, lower: Neighbour) -> Neighbour:
        """Return an answer with its tasks, also where one problem holds them stacked.

        A loss of one task, of both problems, sees one task of the answer.
        """
        return self.lower.stacked(lower) if self.upper.tasks is None else lower

    def extra_reads(self, graph: Graph) -> list[tuple[str, str]]:
        """List (upper, read) for what only C reads so far, since the upper needs it."""
        name = self.upper.name
        known = {name, *graph.reads(name)}
        return [(name, read) for read in self.lower.reads if read not in known]


def evaluate_both(problem: Problem, other: Problem, loss_fn: LossFn) -> Problem:
    """Return a problem with a loss that evaluates its cost and that of another one."""
    key: jax.Array | None = other.rng if problem.rng is None else problem.rng
    return dataclasses.replace(problem, loss_fn=loss_fn, sample=None, rng=key)


def join_answer(answer: Problem, upper: Problem, both: Both) -> Problem:
    """Return an answer as a problem whose loss can read all that its upper reads."""
    return answer if upper.tasks is not None else join_tasks(answer, both.lower)
