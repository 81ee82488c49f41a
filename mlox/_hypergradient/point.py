"""Where costs are evaluated: for all tasks of a problem at once, or for one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.tree import combine
from mlox._utils.types import Params, PyTree


class StepInputs(NamedTuple):
    """What an evaluation of a cost depends on besides parameters.

    Attributes:
        problem: The problem at present: its static parts, its optimizer's state and
            the mutable state that neighbours see.
        batch: The data of its last step.
        rng: The PRNG key of that step, or None.
        step: The count of that step.
        model_state: The mutable state before that step.
        window: params -> params: runs the problem's last window again, from where it
            started, with the given parameters of the problems above; None where nobody
            needs it. A `jax.tree_util.Partial`, so that its arrays are arguments.
        task_index: The task at hand; None if the problem has no tasks, or for all.
    """

    problem: Problem
    batch: PyTree
    rng: jax.Array | None
    step: jax.Array
    model_state: PyTree
    window: Any
    task_index: jax.Array | None = None

    @classmethod
    def make(
        cls,
        problem: Problem,
        batch: PyTree,
        rng: jax.Array | None,
        step: jax.Array,
        model_state: PyTree,
        window: Any = None,
    ) -> StepInputs:
        """Make a draw; each task of a problem gets a key of its own."""
        if rng is not None and problem.tasks is not None:
            rng = jax.random.split(rng, problem.tasks)
        return cls(problem, batch, rng, step, model_state, window)

    def single(self) -> StepInputs:
        """Return the draw of a problem of one task; the arrays stay stacked."""
        single = self.problem.replace(tasks=None)
        index = jnp.arange(self.problem.tasks, dtype=jnp.int32)
        return self._replace(problem=single, window=None, task_index=index)

    def axes(self) -> StepInputs:
        """Return the axes of tasks, for `jax.vmap` over a draw that is `single`."""
        problem = self.problem.replace(
            params=0, opt_state=0, model_state=0, rng=None, step=None, loss_scale=None
        )
        return StepInputs(problem, 0, 0, None, 0, None, 0)  # pyright: ignore[reportArgumentType]


class Unknowns(NamedTuple):
    """The unknowns of a block of answers, and anything of their structure.

    Attributes:
        params: The parameters of each problem.
        multipliers: For each problem with a tower, its multipliers: `Unknowns` of the
            movers of that problem.
    """

    params: dict[str, PyTree]
    multipliers: dict[str, Unknowns]


class EvaluationPoint(NamedTuple):
    """Where everything is evaluated.

    Attributes:
        params: The parameters of every problem.
        multipliers: The multipliers of the towers.
        draws: The data of every problem.
    """

    params: Params
    multipliers: Mapping[str, Unknowns]
    inputs: Mapping[str, StepInputs]

    @classmethod
    def present(
        cls, state: Mapping[str, Problem], keys: Mapping[str, Any], batch: PyTree = None
    ) -> EvaluationPoint:
        """Gather what problems see at a state, without a past."""
        inputs = {
            n: StepInputs.make(
                problem, batch, keys[n], problem.step, problem.model_state
            )
            for n, problem in state.items()
        }
        return cls({n: problem.params for n, problem in state.items()}, {}, inputs)

    def at(self, unknowns: Unknowns) -> EvaluationPoint:
        """Return the values with some of the unknowns replaced."""
        return self.moved(unknowns.params)._replace(
            multipliers={**self.multipliers, **unknowns.multipliers},
        )

    def moved(self, answers: Params) -> EvaluationPoint:
        """Return the values with the answers of some problems, or parts, replaced."""
        params = {n: combine(part, self.params[n]) for n, part in answers.items()}
        return self._replace(params={**self.params, **params})

    def answer(self, name: str) -> PyTree:
        """Return the parameters of a problem that respond to those above it."""
        return responsive_part(self.inputs[name].problem, self.params[name])

    def tasks(self, names: Iterable[str]) -> int | None:
        """Count the tasks of some problems, if all have the same number of them."""
        counts = {self.inputs[n].problem.tasks for n in names}
        return counts.pop() if len(counts) == 1 else None

    def each(
        self, tasks: int, function: Callable[..., PyTree], *stacked: PyTree
    ) -> PyTree:
        """Apply a function to the values of each task, in one `jax.vmap`.

        Args:
            tasks: Their number: of the problems with so many, the function sees those
                values that belong to one task, as if there were no others.
            function: (values, *parts) -> a pytree.
            *stacked: Pytrees with a leading axis of tasks, taken apart, too.

        Returns:
            What the function returns, stacked.
        """
        apart = {n for n, d in self.inputs.items() if d.problem.tasks == tasks}
        axis = {n: 0 if n in apart else None for n in self.inputs}
        inputs = {n: d.single() if n in apart else d for n, d in self.inputs.items()}
        axes: Any = (
            axis,
            _axes(self.multipliers, axis),
            {n: d.axes() if n in apart else None for n, d in inputs.items()},
        )
        mapped = jax.vmap(
            function, in_axes=(EvaluationPoint(*axes), *(0 for _ in stacked))
        )
        return mapped(self._replace(inputs=inputs), *stacked)


def _axes(multipliers: Mapping[str, Unknowns], axis: Mapping[str, Any]) -> Any:
    return {
        tower: Unknowns(
            {n: axis[n] for n in found.params}, _axes(found.multipliers, axis)
        )
        for tower, found in multipliers.items()
    }
