"""The point at which costs and their derivatives are evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mlox._graph.graph import Graph
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._problem.task_chunk import split_key
from mlox._utils.tree import combine
from mlox._utils.types import Params, PyTree, State


class Constant(NamedTuple):
    """What a step sees of a problem that it reads as a constant."""

    params: PyTree
    model_state: PyTree


class Draws(NamedTuple):
    """What the last steps of a problem saw by chance, the oldest first.

    Attributes:
        batches: The batches, with a leading axis of steps, or None: all of a window.
        rngs: The PRNG keys of as many steps as are asked for, or None.
    """

    batches: PyTree
    rngs: jax.Array | None


class StepInputs(NamedTuple):
    """The inputs of one step: all that a cost depends on besides parameters.

    Attributes:
        problem: The problem at present: its static parts, its optimizer's state and
            the mutable state that neighbours see.
        batch: The data of its last step.
        rng: The PRNG key of that step, or None.
        step: The count of that step.
        inner_step: Its count within its window, from 0.
        model_state: The mutable state before that step.
        replay: params -> state: runs the problem's last window again, from its start,
            with the given parameters of the problems above; None if it is not needed.
            A `jax.tree_util.Partial`, so that its arrays are arguments.
        constants: What the step read of other problems as constants, by their names.
        task_index: The current task; None for all tasks, or without tasks.
        draws: What steps before saw; None unless its method asks for several.
    """

    problem: Problem
    batch: PyTree
    rng: jax.Array | None
    step: jax.Array
    inner_step: jax.Array
    model_state: PyTree
    replay: Callable[[Params], State] | None
    constants: Mapping[str, Constant]
    task_index: jax.Array | None = None
    draws: Draws | None = None


class Unknowns(NamedTuple):
    """The unknowns of a block of answers, or any value of their structure.

    Attributes:
        params: The responsive parameters of each problem.
        multipliers: For each tower its multipliers: `Unknowns` of the movers of it.
    """

    params: dict[str, PyTree]
    multipliers: dict[str, Unknowns]


class Selection(Protocol):
    """A selection of unknowns: a `Block` of answers, or a `Player` of a game."""

    @property
    def names(self) -> tuple[str, ...]:
        """The problems whose parameters are unknowns."""
        ...

    @property
    def towers(self) -> tuple[str, ...]:
        """The problems whose multipliers are unknowns."""
        ...


class EvaluationPoint(NamedTuple):
    """The point at which costs and residuals are evaluated.

    Attributes:
        params: The parameters theta of every problem.
        multipliers: The multipliers of the towers.
        inputs: The other inputs of the cost of every problem.
    """

    params: Params
    multipliers: Mapping[str, Unknowns]
    inputs: Mapping[str, StepInputs]

    def at(self, unknowns: Unknowns) -> EvaluationPoint:
        """Return the point with some of the unknowns replaced."""
        return self.at_params(unknowns.params)._replace(
            multipliers={**self.multipliers, **unknowns.multipliers},
        )

    def at_params(self, params: Params) -> EvaluationPoint:
        """Return the point with the parameters of some problems, or parts, replaced."""
        whole = {n: combine(part, self.params[n]) for n, part in params.items()}
        return self._replace(params={**self.params, **whole})

    def at_states(self, states: Mapping[str, PyTree]) -> EvaluationPoint:
        """Return the point with the mutable states of some problems replaced."""
        inputs = {
            n: self.inputs[n]._replace(
                problem=dataclasses.replace(
                    self.inputs[n].problem,
                    model_state=combine(part, self.inputs[n].problem.model_state),
                )
            )
            for n, part in states.items()
        }
        return self._replace(inputs={**self.inputs, **inputs}) if inputs else self

    def responsive(self, name: str) -> PyTree:
        """Return the parameters of a problem that respond to those above it."""
        return responsive_part(self.inputs[name].problem, self.params[name])

    def select(self, which: Selection) -> Unknowns:
        """Return the unknowns of a block or of a player."""
        return Unknowns(
            {n: self.responsive(n) for n in which.names},
            {n: self.multipliers[n] for n in which.towers},
        )


def make_inputs(
    problem: Problem,
    batch: PyTree,
    rng: jax.Array | None,
    step: jax.Array,
    inner_step: jax.Array,
    model_state: PyTree,
    constants: Mapping[str, Constant],
    replay: Callable[[Params], State] | None = None,
) -> StepInputs:
    """Return the inputs of a step; each task of a problem gets a key of its own."""
    if rng is not None and problem.tasks is not None:
        rng = split_key(problem, rng)
    return StepInputs(
        problem, batch, rng, step, inner_step, model_state, replay, constants
    )


def constants_of(names: Iterable[str], state: State) -> dict[str, Constant]:
    """Return what a step at a state reads of some problems as constants.

    A state that is about another problem may not have all of them.
    """
    return {
        n: Constant(state[n].params, state[n].model_state) for n in names if n in state
    }


def present_point(
    graph: Graph,
    state: State,
    keys: Mapping[str, jax.Array | None],
    batch: PyTree = None,
    inner_steps: Mapping[str, jax.Array] | None = None,
) -> EvaluationPoint:
    """Return the point of a state alone, without the steps that led to it.

    It stands at the start of a window, unless the inner steps are given.
    """

    def inputs_of(n: str) -> StepInputs:
        problem = state[n]
        inner_step = jnp.zeros((), jnp.int32) if inner_steps is None else inner_steps[n]
        constants = constants_of(graph.constants(n), state)
        return make_inputs(
            problem,
            batch,
            keys[n],
            problem.step,
            inner_step,
            problem.model_state,
            constants,
        )

    inputs = {n: inputs_of(n) for n in state}
    return EvaluationPoint({n: p.params for n, p in state.items()}, {}, inputs)
