"""References: hypergradients at the same answers or at solved ones, solved exactly."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._check.answers import SMALL, norm, solve_answer, stationarity
from mlox._check.exact import Exact, PseudoInverse
from mlox._check.samples import WeightedLoss, stack_samples
from mlox._check.setting import Arrival, Setting
from mlox._check.spectrum import extreme_eigenvalues
from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.adjoint import hypergradient
from mlox._hypergradient.answer import make_answer
from mlox._hypergradient.attach import with_multipliers
from mlox._hypergradient.lagrangian import count_systems, pairing
from mlox._hypergradient.newton import steps_of, take_steps
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._hypergradient.tasks import losses_of, map_tasks
from mlox._utils.types import PyTree
from mlox.solvers import GMRES, Solver, System

# A reference is the same graph with another method at the same state: `Exact` for each
# answer. With no Newton step it stands at the answers of the program; after some it
# stands at those of the mathematics. One compiled program serves all of them.


class Solved(NamedTuple):
    """A reference.

    Attributes:
        loss: The loss of the upper.
        gradient: Its hypergradient.
        answers: The answers where it was computed.
        gap: <lambda, G>, the estimate of how far the loss would move if the answers
            were solved.
        stationarity: ||G||, of all answers together.
        eigenvalues: For each answer that is a minimum, the smallest and the largest
            eigenvalue of its Hessian.
    """

    loss: jax.Array
    gradient: PyTree
    answers: dict[str, PyTree]
    gap: jax.Array
    stationarity: jax.Array
    eigenvalues: dict[str, tuple[jax.Array, jax.Array]]


@dataclass(frozen=True, eq=False)
class Reference:
    """A program that computes references.

    Attributes:
        setting: What is checked.
        plan: The graph, with the coupling of the reference.
        chosen: For each mover, the steps of its window that are its samples.
        solver: The solver of the adjoint.
    """

    setting: Setting
    plan: Plan
    chosen: Mapping[str, list[int]]
    solver: Solver

    def __call__(
        self,
        at: Arrival,
        params: Mapping[str, PyTree],
        weights: Mapping[str, jax.Array],
        most: jax.Array,
    ) -> Solved:
        """Return the reference.

        Args:
            at: The end of the window.
            params: The parameters of the upper and of the answers, to start from.
            weights: The weights of the samples of each answer.
            most: The largest number of Newton steps on the answers.
        """
        plan, name = self.plan, self.setting.name
        point = self.weigh(self.setting.point(at, params), at, weights)
        point = with_multipliers(plan, name, point)
        blocks = plan.responses[name].blocks
        for b in blocks:
            refined = steps_of(at.state[b.tops[0]])
            point = take_steps(plan, b, point, refined)
            point = solve_answer(plan, b, point, most)
        point = jax.lax.stop_gradient(point)
        found = hypergradient(plan, name, point, replay=False)
        gaps = [pairing(plan, b, _part(found.multipliers, b), point) for b in blocks]
        slopes = [_slopes(plan, b, point) for b in blocks]
        return Solved(
            loss=losses_of(at.state[name], found.metrics).sum(),
            gradient=found.cotangents[name],
            answers={n: point.params[n] for n in self.setting.movers},
            gap=functools.reduce(operator.add, gaps),
            stationarity=norm(slopes),
            eigenvalues={
                b.tops[0]: _eigenvalues(plan, b, point)
                for b in blocks
                if b.system is System.DEFINITE
            },
        )

    def weigh(
        self,
        point: EvaluationPoint,
        at: Arrival,
        weights: Mapping[str, jax.Array],
    ) -> EvaluationPoint:
        """Return the point with the costs of answers summed over their samples."""
        inputs, graph = dict(point.inputs), self.setting.plan.graph
        for n in self.setting.movers:
            problem = inputs[n].problem
            sampled = problem.sample is not None
            steps = 1 if sampled else self.setting.steps(n)
            batch = inputs[n].batch if sampled else at.batches[n]
            loop = graph.steps_in_window(graph.inner_layer[n], n)
            inputs[n] = inputs[n]._replace(
                problem=dataclasses.replace(
                    problem,
                    method=Exact(self.solver),
                    loss_fn=WeightedLoss(problem.loss_fn, self.setting.cycle.unroll),
                    loss_scale=None,
                ),
                batch=stack_samples(
                    inputs[n], batch, self.chosen[n], steps, loop, weights[n]
                ),
                rng=None,
            )
        return point._replace(inputs=inputs)


def solver_for(unknowns: int) -> Solver:
    """Return the solver of an adjoint: dense for a small system, else a long solve."""
    if unknowns > SMALL:
        return GMRES(iterations=200, tolerance=1e-10)
    return PseudoInverse()


def _part(multipliers: Unknowns, b: Block) -> Unknowns:
    return Unknowns(
        {n: multipliers.params[n] for n in b.names},
        {n: multipliers.multipliers[n] for n in b.towers},
    )


def _slopes(plan: Plan, b: Block, point: EvaluationPoint) -> PyTree:
    """Return G of the parameters of a block, along the tangents of its constraints."""
    tasks = count_systems(plan, b, point)
    if tasks is not None:
        return map_tasks(lambda one: _slopes(plan, b, one), tasks, point)
    return stationarity(plan, b, point).params


def _eigenvalues(
    plan: Plan, b: Block, point: EvaluationPoint
) -> tuple[jax.Array, jax.Array]:
    """Return the extreme eigenvalues of a block's matrix, over all tasks."""
    tasks = count_systems(plan, b, point)
    if tasks is not None:
        low, high = map_tasks(lambda one: _eigenvalues(plan, b, one), tasks, point)
        return jnp.min(low), jnp.max(high)
    answer = make_answer(plan, b, point)
    product = jax.linearize(answer.residual, answer.point)[1]
    return extreme_eigenvalues(product, answer.point)
