"""The steps from a configured hypergradient to the true one, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mlox._check.budget import Part, Steps
from mlox._check.experiment import Experiment
from mlox._check.figures import Differences
from mlox._check.reference import Solved
from mlox._check.vectors import (
    Distance,
    as_tree,
    as_vector,
    choose_directions,
    compare_vectors,
    scale_of,
    shift,
)
from mlox._utils.types import PyTree
from mlox.methods import Iterative

# Three differences have three causes:
#
#     configured - exact at the same answer        the solver, or the method
#     exact there - exact at the solved answer     a lower that is not solved
#     exact there - differences of the loss        the loss itself
#
# An unrolled answer is no solution of a system: its hypergradient is held against the
# whole window, and that against differences of the program that runs.

SHORT, MIDDLE, LONG = 1e-4, 1e-3, 1e-2


class Implicit(NamedTuple):
    """What references of implicit answers return.

    Attributes:
        same: At the same answer.
        large: There, over all samples of the window.
        solved: At the solved answer.
    """

    same: Solved | None
    large: Solved | None
    solved: Solved | None


def solve_references(
    experiment: Experiment, parts: Sequence[Part], steps: Steps
) -> Implicit:
    """Return the references of implicit answers that are asked for."""
    same = large = solved = None
    if Part.SOLVER in parts or Part.LOWER in parts:
        same = experiment.solve(experiment.params, experiment.one())
    if Part.LOWER in parts:
        large = same
        if experiment.samples > 1:
            large = experiment.solve(experiment.params, experiment.even)
        solved = experiment.solve(experiment.params, experiment.even, steps.first)
    return Implicit(same, large, solved)


def compare_implicit(
    experiment: Experiment,
    found: Implicit,
    parts: Sequence[Part],
    steps: Steps,
    seed: int,
) -> Differences:
    """Return the differences of a hypergradient whose answers are implicit."""
    configured = as_vector(experiment.arrival.gradient)
    solver = coupling = lower = loss = indirect = None
    if found.same is not None:
        same = total = as_vector(found.same.gradient)
        if experiment.total != experiment.setting.plan:
            own = experiment.reference(experiment.setting.plan)(
                experiment.arrival, experiment.params, experiment.one(), np.int32(0)
            )
            same = as_vector(own.gradient)
            coupling = compare_vectors(same, total)
        solver = compare_vectors(configured, same)
        direct = direct_part(experiment)
        indirect = compare_vectors(configured - direct, same - direct)
    if found.large is not None and found.solved is not None:
        large, solved = (as_vector(x.gradient) for x in (found.large, found.solved))
        lower = compare_vectors(large, solved)
    if found.solved is not None and Part.DIFFERENCES in parts:
        loss = _compare_resolved(experiment, found.solved, steps.again, seed)
    return Differences(
        solver=solver, coupling=coupling, lower=lower, loss=loss, indirect=indirect
    )


def direct_part(experiment: Experiment) -> np.ndarray:
    """Return the gradient of the upper's cost at fixed answers."""
    gradients = experiment.slopes(experiment.params).gradients
    return as_vector(gradients[experiment.name][experiment.name])


def _compare_resolved(
    experiment: Experiment, solved: Solved, most: int, seed: int
) -> Distance:
    """Compare a reference with differences of the loss, its answers solved again."""
    name = experiment.name
    start = {name: experiment.params[name], **solved.answers}

    def loss(params: PyTree) -> float:
        moved = {**start, name: params}
        return float(experiment.solve(moved, experiment.even, most).loss)

    directions = choose_directions(start[name], seed, solved.gradient)
    return compare_along(directions, loss, start[name], solved.gradient, SHORT)


def compare_unrolled(
    experiment: Experiment, parts: Sequence[Part], seed: int
) -> Differences:
    """Return the differences of a hypergradient through unrolled answers."""
    configured = as_vector(experiment.arrival.gradient)
    window = program = indirect = None
    errors: tuple[float, ...] = ()
    whole = configured
    if Part.WINDOW in parts:
        whole = as_vector(experiment.unroll().gradient)
        window = compare_vectors(configured, whole)
        direct = direct_part(experiment)
        indirect = compare_vectors(configured - direct, whole - direct)
    if Part.PROGRAM in parts:
        params = experiment.params[experiment.name]
        gradient = as_tree(whole, params)
        directions = choose_directions(params, seed, gradient)

        def loss(params: PyTree) -> float:
            return float(experiment.train(params).loss)

        found = [
            compare_along(directions, loss, params, gradient, h)
            for h in (SHORT, MIDDLE, LONG)
        ]
        program, errors = found[0], tuple(d.error for d in found)
    return Differences(window=window, program=program, indirect=indirect, steps=errors)


def differs_from_window(experiment: Experiment) -> bool:
    """Return whether an answer is not differentiated through its whole window."""
    methods = [experiment.state[n].method for n in experiment.setting.movers]
    return any(
        not isinstance(m, Iterative) or m.last_steps is not None for m in methods
    )


def compare_along(
    directions: Sequence[PyTree],
    loss: Callable[[PyTree], float],
    params: PyTree,
    gradient: PyTree,
    step: float,
) -> Distance:
    """Compare a gradient with central differences of a loss along directions."""
    h = step * scale_of(params)
    slopes = [
        (loss(shift(params, h, v)) - loss(shift(params, -h, v))) / (2 * h)
        for v in directions
    ]
    seen = [float(as_vector(gradient) @ as_vector(v)) for v in directions]
    return compare_vectors(np.array(seen), np.array(slopes))
