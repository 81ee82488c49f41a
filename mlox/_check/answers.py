"""Answers solved to the end: Newton's method on blocks, from the lowest up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlox._check.exact import Downhill, PseudoInverse
from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.answer import make_answer
from mlox._hypergradient.constraints import project_answers, project_cotangent
from mlox._hypergradient.lagrangian import count_systems, lagrangian
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._hypergradient.tasks import map_tasks
from mlox._utils.tree import add_scaled, ravel
from mlox._utils.types import PyTree
from mlox.solvers import GMRES, Solver, System

# One block is G(y) = 0. A full Newton step is taken where it halves the residual; else
# the best of some shorter ones: the one with the smallest cost where the block is a
# minimum, as a step downhill may pass a larger residual, and with the smallest residual
# in a tower or a game. With constraints G and the step are those along the tangents of
# the active ones, and the end of the step is projected, which makes others active.
LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.01)
SMALL = 256


def choose_solver(system: System, unknowns: int) -> Solver:
    """Return the solver of Newton steps."""
    if unknowns > SMALL:
        return GMRES(iterations=100, tolerance=1e-10)
    return Downhill() if system is System.DEFINITE else PseudoInverse()


def solve_answer(
    plan: Plan, b: Block, point: EvaluationPoint, most: jax.Array
) -> EvaluationPoint:
    """Return the point with the answers of a block after at most some Newton steps."""
    tasks = count_systems(plan, b, point)
    if tasks is not None:
        found = map_tasks(
            lambda one: solve_answer(plan, b, one, most).select(b), tasks, point
        )
        return point.at(found)
    unknowns = ravel(point.select(b))[0].size
    solver = choose_solver(b.system, unknowns)

    def proceed(state: _State) -> jax.Array:
        return (state.made < most) & (state.moved > 1e-13)

    def step(state: _State) -> _State:
        return _step(plan, b, point, solver, state)

    first = _State(point.select(b), jnp.int32(0), jnp.array(jnp.inf))
    return point.at(jax.lax.while_loop(proceed, step, first).y)


class _State(NamedTuple):
    """An iterate, the number of steps, and the relative length of the last one."""

    y: Unknowns
    made: jax.Array
    moved: jax.Array


def _step(
    plan: Plan, b: Block, point: EvaluationPoint, solver: Solver, state: _State
) -> _State:
    """Make one Newton step, shortened where it does not help."""

    def slope(y: Unknowns) -> Unknowns:
        return stationarity(plan, b, point.at(y))

    y = state.y
    answer = make_answer(plan, b, point.at(y))
    G, product = jax.linearize(answer.residual, y)
    direction = project_cotangent(answer, solver(product, G, None)[0])
    lengths = jnp.array(LENGTHS, norm(G).dtype)

    def judge(length: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = project_answers(b, point, add_scaled(y, -length, direction))
        size = norm(slope(end))
        if b.system is not System.DEFINITE:
            return size, size
        return size, lagrangian(plan, b.tops[0], point.at(end))

    sizes, scores = jax.lax.map(judge, lengths)
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.inf)
    best = jnp.where(sizes[0] < 0.5 * norm(G), 0, jnp.argmin(scores))
    end = project_answers(b, point, add_scaled(y, -lengths[best], direction))
    moved = norm(direction) / jnp.maximum(norm(end), 1e-30)
    return _State(end, state.made + 1, moved.astype(state.moved.dtype))


def stationarity(plan: Plan, b: Block, point: EvaluationPoint) -> Unknowns:
    """Return G of a block, along the tangents of its constraints."""
    answer = make_answer(plan, b, point)
    return answer.residual(answer.point)


def norm(tree: PyTree) -> jax.Array:
    """Return the norm of a pytree as one vector."""
    return jnp.linalg.norm(ravel(tree)[0])
