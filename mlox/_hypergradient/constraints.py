"""Answers on constraint sets: the derivative of the projection at an answer."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.lagrangian import lagrangian
from mlox._hypergradient.point import EvaluationPoint, Unknowns
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._utils.describe import annotate_errors
from mlox._utils.tree import add_scaled, combine, epsilon, norm, scale, vdot
from mlox._utils.types import PyTree
from mlox.methods import Answer, follows_steps
from mlox.solvers import Info

# A problem with `project` = P stays in a set, and its answer solves
#
#     y = P(y - a G(y, x))    for every a > 0,
#
# where G need not be zero. With J = P'(y - a G) and H = dG/dy, its derivative follows
# from dy = J (dy - a H dy - a dG/dx dx), and the adjoint of that is
#
#     (I - (I - a H) J) u = v,    lambda = a J u,    dC/dx - <lambda, dG/dx>:
#
# only the multiplier changes, not the pairing. P is a projection, so J is symmetric
# with eigenvalues in [0, 1]. Multiplied by J, and with w = a u, the system becomes
#
#     A w = J v    with    A = J H J + J (I - J) / a,    lambda = J w.
#
# A is symmetric, takes the range of J into itself, and is positive definite there if H
# is so along the tangents. For a polyhedron J is the projection onto the tangents of
# the face of the answer, and J (I - J) = 0. For other sets J (I - J) / a is the
# curvature of the boundary times the length of G: |G| / r on the tangents of a ball of
# radius r, in the limit of small a. (Blondel et al., Efficient and Modular Implicit
# Differentiation, 2022, have the fixed point; A is its reduced Hessian.)
#
# Beside the range A is zero, where rounding errors would grow without bound: CG that
# goes on after it has converged lost all digits. So c (I - J)^2 is added, which is zero
# on tangents: exactly for a polyhedron, and to 1e-10 of c for a ball (see below). As c
# is a small part of the size of H, solvers with a step stay stable.
#
# So a method is given an answer that looks like one without constraints, with the
# residual
#
#     z -> J G(y + J (z - y)) + J (I - J) (z - y) / a + c (I - J)^2 (z - y),
#
# whose Jacobian is regular, and the cotangent J v. What a memory has beside the range
# changes nothing, as J takes it out. Where the projection is inactive J is the
# identity, and all of these are the same numbers as without it.


class Tangents(NamedTuple):
    """The derivative of the projections of a block, at its answers.

    Attributes:
        project: v -> J v.
        divide: v -> v / a for the parameters of its tops, which have curvature, and
            zeros for the rest.
    """

    project: Callable[[Unknowns], Unknowns]
    divide: Callable[[Unknowns], Unknowns]


def restrict(answer: Answer, plan: Plan, b: Block, point: EvaluationPoint) -> Answer:
    """Return the answer of a block on its tangents; the same without constraints."""
    if follows_steps(point.inputs[b.tops[0]].problem.method):
        return answer  # the projection is a part of the step
    tangents = find_tangents(plan, b, point)
    if tangents is None:
        return answer
    y, linearized, draws = answer.point, answer.linearized, answer.draws
    if draws is not None:
        # Outside of the solver's loop, which linearizes each draw anew.
        c = _stiffness(answer.residual, y)
        draws = lambda i, of=draws: _on_tangents(tangents, of(i), y, c)
    return answer._replace(
        residual=_on_tangents(tangents, answer.residual, y),
        linearized=linearized and _on_tangents(tangents, linearized, y),
        draws=draws,
        tangent=tangents.project,
    )


def _on_tangents(
    tangents: Tangents,
    residual: Callable[[PyTree], PyTree],
    y: Unknowns,
    stiffness: jax.Array | None = None,
) -> Callable[[PyTree], PyTree]:
    """Return a residual whose Jacobian is A + c (I - J)^2."""

    def restricted(z: PyTree) -> PyTree:
        c = _stiffness(residual, y) if stiffness is None else stiffness
        away = jax.tree.map(jnp.subtract, z, y)
        along = tangents.project(away)
        off = jax.tree.map(jnp.subtract, away, along)
        bent = tangents.project(off)
        terms = (
            tangents.project(residual(jax.tree.map(jnp.add, y, along))),
            tangents.divide(bent),
            scale(c, jax.tree.map(jnp.subtract, off, bent)),
        )
        return jax.tree.map(
            lambda *parts: functools.reduce(operator.add, parts), *terms
        )

    return restricted


def _stiffness(residual: Callable[[PyTree], PyTree], y: Unknowns) -> jax.Array:
    """Return c, the cube root of the machine precision times |H G| / |G|."""
    G = residual(y)
    size = norm(G)
    unit = scale(1 / jnp.where(size > 0, size, 1), G)
    curvature = norm(jax.jvp(residual, (y,), (unit,))[1])
    return jax.lax.stop_gradient(epsilon(G) ** (1 / 3) * curvature)


def project_cotangent(answer: Answer, v: Unknowns) -> Unknowns:
    """Return J v, the right-hand side; v itself without constraints."""
    return v if answer.tangent is None else answer.tangent(v)


def project_multiplier(
    answer: Answer, v: Unknowns, Jv: Unknowns, w: Unknowns, report: Info
) -> tuple[Unknowns, Info]:
    """Return lambda = J w, and the report with the asymmetry of J.

    Without constraints they are what they were.
    """
    if answer.tangent is None:
        return w, report
    lam = answer.tangent(w)
    # <w, J v> = <J w, v> if P is a projection; see `mlox.methods._symmetry`. It costs
    # nothing, as both products are there.
    size = norm(w) * norm(Jv) + norm(lam) * norm(v)
    difference = jnp.abs(vdot(w, Jv) - vdot(lam, v))
    found = jnp.where(size > 0, difference / jnp.where(size > 0, size, 1), 0)
    found = jax.lax.stop_gradient(found)
    return lam, {
        **report,
        "asymmetry": jnp.maximum(found, report.get("asymmetry", found)),
    }


def project_answers(b: Block, point: EvaluationPoint, y: Unknowns) -> Unknowns:
    """Return unknowns of a block with the parameters projected onto their sets."""

    def project(n: str, part: PyTree) -> PyTree:
        problem, whole = point.inputs[n].problem, point.params[n]
        if problem.project is None:
            return part
        return _each_task(problem, _projection(problem))(part, whole)

    return y._replace(params={n: project(n, part) for n, part in y.params.items()})


def find_tangents(plan: Plan, b: Block, point: EvaluationPoint) -> Tangents | None:
    """Return the derivative of the projections of a block; None if it has none."""
    projected = [n for n in b.names if point.inputs[n].problem.project is not None]
    if not projected:
        return None
    own = {n: _tangents_of(plan, n, point) for n in projected}

    # The multipliers of a tower belong to answers inside of it: they are tangents, too.
    def project(v: Unknowns) -> Unknowns:
        params = {
            n: own[n].project(part) if n in own else part
            for n, part in v.params.items()
        }
        return Unknowns(params, {n: project(part) for n, part in v.multipliers.items()})

    def divide(v: Unknowns) -> Unknowns:
        zeros = jax.tree.map(jnp.zeros_like, v)
        divided = {n: own[n].divide(v.params[n]) for n in b.tops if n in own}
        return zeros._replace(params={**zeros.params, **divided})

    return Tangents(project, divide)


class _Tangents(NamedTuple):
    """The same of one problem, for its responsive parameters."""

    project: Callable[[PyTree], PyTree]
    divide: Callable[[PyTree], PyTree]


def _tangents_of(plan: Plan, n: str, point: EvaluationPoint) -> _Tangents:
    """Linearize the projection of a problem at y - a G."""
    problem, whole = point.inputs[n].problem, point.params[n]
    y = point.responsive(n)
    length = jax.lax.stop_gradient(_length(plan, n, jax.lax.stop_gradient(point)))
    step = _each_task(problem, _step)
    project = _each_task(problem, _projection(problem))
    divide = _each_task(problem, lambda a, x: scale(1 / a, x))
    with annotate_errors(f"project of problem {problem.name!r}, or its derivative"):
        moved = step(y, length, _slope(plan, n, point)(y))
        push = jax.linearize(lambda part: project(part, whole), moved)[1]
    return _Tangents(push, functools.partial(divide, length))


# Which a? At a solved answer each gives the same derivative. At one that is nearly
# solved, y - a G decides which constraints count as active. G has a part that pushes
# against active constraints, however well the answer is solved, and a part e along the
# tangents, which is the error of the answer times the curvature h. So a must be long
# enough for the first part not to vanish in the rounding of y, and so short that the
# second one does not carry y over other constraints. Two lengths keep to that:
#
#     t = d |y| / |G|,    d = the cube root of the machine precision,
#
# moves y by d of its norm: if anything is active, that is its pressure, and the rest
# moves less by |e| / |G|. The curvature of a ball, a difference of 1 - O(d) and 1, then
# keeps two thirds of the digits. If nothing is active, G is but e, an error that may be
# far smaller than d: then one gradient more, a step of length t further inside the set,
# shows how G changes by t h |e|, and
#
#     a = t min(1, |G| / |G(P(y - t G)) - G(y)|) = min(t, 1 / h)
#
# is a gradient step of about the length of the error. No scale of the loss or of the
# parameters enters but their own. A coordinate that is no further from its border than
# the answer from the solved one can be judged wrongly: nothing tells there.
#
# Where G is zero nothing is active, and a is infinite. It must not be a large number
# instead: another program may round the same G to 1e-17, and step out of the set.


def _step(y: PyTree, a: jax.Array, G: PyTree) -> PyTree:
    """Return y - a G; y itself where a is infinite, as nothing pushes there."""
    return add_scaled(y, -jnp.where(jnp.isfinite(a), a, 0), G)


def _length(plan: Plan, n: str, point: EvaluationPoint) -> jax.Array:
    """Return a, the length of the gradient step that shows what is active."""
    problem, whole = point.inputs[n].problem, point.params[n]
    slope = _slope(plan, n, point)
    y = point.responsive(n)
    G = slope(y)

    def longest(y: PyTree, G: PyTree) -> jax.Array:
        size = norm(y)
        reach = epsilon(y) ** (1 / 3) * jnp.where(size > 0, size, 1)
        most = float(jnp.finfo(reach.dtype).tiny) ** -0.5
        return reach / jnp.maximum(norm(G), reach / most)

    def shorten(t: jax.Array, G: PyTree, after: PyTree) -> jax.Array:
        size, change = norm(G), norm(jax.tree.map(jnp.subtract, after, G))
        larger = change > size
        shorter = t * jnp.where(larger, size / jnp.where(larger, change, 1), 1)
        return jnp.where(size > 0, shorter, jnp.inf)

    def move(y: PyTree, t: jax.Array, G: PyTree, whole: PyTree) -> PyTree:
        return _projection(problem)(add_scaled(y, -t, G), whole)

    t = _each_task(problem, longest)(y, G)
    after = slope(_each_task(problem, move)(y, t, G, whole))
    return _each_task(problem, shorten)(t, G, after)


def _slope(plan: Plan, n: str, point: EvaluationPoint) -> Callable[[PyTree], PyTree]:
    """Return y_n -> dL_n/dy_n, which is zero at an answer without constraints."""
    return jax.grad(lambda y: lagrangian(plan, n, point.at_params({n: y})))


def _projection(problem: Problem) -> Callable[[PyTree, PyTree], PyTree]:
    """Return (part, whole) -> the responsive part of the projection, of one task."""
    one = dataclasses.replace(problem, tasks=None, tasks_at_once=None)
    project: Any = problem.project
    return lambda part, whole: responsive_part(one, project(combine(part, whole)))


def _each_task(problem: Problem, function: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function of one task over the tasks that a problem still has here."""
    return function if problem.tasks is None else jax.vmap(function)
