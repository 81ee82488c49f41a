"""One Lagrangian, one adjoint: hypergradients at fixed values.

For each problem m with movers B(m), the problems below it whose answer moves with it,

    L_m = C_m - sum over the blocks b of B(m) of <lambda_b, G_b>,

where G_b is the stationarity residual of the answers in b. Then lambda solves
(dG/dy)^T lambda = dC_m/dy, and the hypergradient is dL_m/dtheta_m at fixed answers and
multipliers. A coupled problem answers to its own L_m: its multipliers are unknowns of
those above it too, and the residual of its whole tower is the gradient of L_m with
respect to y = (parameters, multipliers). Products with dG/dy then are Hessian-vector
products of one scalar function, and nothing is solved inside a solve.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.point import EvaluationPoint, Params, Unknowns
from mlox._problem.context import Context, Neighbour, annotate_errors
from mlox._problem.loss_output import split_loss
from mlox._problem.loss_scaling import scale_cotangent
from mlox._problem.optimizer import pull_update as pull_update_of
from mlox._problem.problem import Problem
from mlox._problem.responsive import stop_unresponsive
from mlox._utils.describe import summarize
from mlox._utils.tree import avoid_zero, shard_like
from mlox._utils.types import Metrics, PyTree
from mlox.methods import Answer, attached
from mlox.solvers import Info

# Where the values of a metric for each task are, beside their mean.
PER_TASK = "_per_task"


class Gradient(NamedTuple):
    """The outcome of one hypergradient.

    Attributes:
        metrics: What the loss returned, and the solvers' reports.
        model_state: The mutable state after.
        params: The cotangents of the problem and of its own unrolled movers.
        multipliers: The multipliers of its implicit movers.
    """

    metrics: dict[str, jax.Array]
    model_state: PyTree
    params: dict[str, PyTree]
    multipliers: Unknowns


@dataclass(frozen=True)
class Objective:
    """Costs, Lagrangians and gradients of a graph of problems.

    Attributes:
        plan: Which answers move, in which blocks.
    """

    plan: Plan

    def cost(
        self, name: str, values: EvaluationPoint, *, train: bool = True
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Evaluate the loss of a problem, with (metrics, model_state) beside it.

        The losses of tasks are summed up, so that each has a slope of its own.
        """
        tasks = values.inputs[name].problem.tasks
        if tasks is None:
            return self._cost(name, values, train)
        losses, (metrics, model_state) = values.each(
            tasks, lambda one: self._cost(name, one, train)
        )
        return losses.sum(), (_over_tasks(metrics), model_state)

    def _cost(
        self, name: str, values: EvaluationPoint, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        draw = values.inputs[name]
        scale = draw.problem.loss_scale
        if scale is not None:
            reads = {n: values.params[n] for n in (name, *self.plan.graph.reads(name))}
            values = values.moved(scale_cotangent(reads, 1 / scale.scale))
        ctx = self.context(name, values, train=train)
        given = {"params": values.params[name], "batch": draw.batch}
        seen = {"rng": ctx.rng, "model_state": ctx.model_state}
        with annotate_errors(f"loss_fn of problem {name!r}", **given, **seen):
            returned = draw.problem.loss_fn(*given.values(), ctx)
        loss, metrics, model_state = split_loss(name, returned, draw.model_state)
        if scale is not None:
            loss = scale_cotangent(loss, scale.scale)
        return loss, (metrics, model_state)

    def context(
        self, name: str, values: EvaluationPoint, *, train: bool = True
    ) -> Context:
        """Make what the functions of a problem see besides their other arguments."""
        draw = values.inputs[name]
        problems = {n: values.inputs[n].problem for n in self.plan.graph.reads(name)}
        neighbours = {
            n: Neighbour(values.params[n], p.model_state, p.apply_fn, n, tasks=p.tasks)
            for n, p in problems.items()
        }
        return Context(
            name,
            neighbours,
            draw.rng,
            draw.step,
            draw.model_state,
            train=train,
            task_index=draw.task_index,
        )

    def lagrangian(self, name: str, values: EvaluationPoint) -> jax.Array:
        """Evaluate L of a coupled problem, or the cost of one that is not."""
        if name not in self.plan.coupled:
            return self.cost(name, values)[0]
        response = self.plan.responses[name]
        values = self._rerun((*response.owners, name), values)
        value = self.cost(name, values)[0]
        for block in response.blocks:
            multiplier = self._picked(block, values.multipliers[name])
            value -= self.pairing(block, multiplier, values)
        return value

    def pairing(
        self, block: Block, multiplier: Unknowns, values: EvaluationPoint
    ) -> jax.Array:
        """Evaluate <multiplier, G> of a block, as its top's method does."""
        if tasks := self._apart(block, values):
            pairing = lambda one, part: self.pairing(block, part, one)
            return values.each(tasks, pairing, multiplier).sum()
        method: Any = values.inputs[block.tops[0]].problem.method
        terms = (
            method.pairing(cost, point, direction)
            for cost, point, direction in self._games(block, multiplier, values)
        )
        return functools.reduce(operator.add, terms)

    def residual(
        self, block: Block, unknowns: Unknowns, values: EvaluationPoint
    ) -> Unknowns:
        """Evaluate G of a block at some unknowns, of their structure."""
        values = values.at(unknowns)
        if len(block.tops) == 1:
            ((cost, point, _),) = self._games(block, unknowns, values)
            return jax.grad(cost)(point)
        rows = Unknowns({}, {})
        for name, (cost, point, _) in zip(
            block.names, self._games(block, unknowns, values), strict=True
        ):
            slopes = jax.grad(cost)(point)
            rows.params[name] = slopes.params.pop(name)
            if name in self.plan.towers:
                rows.multipliers[name] = slopes
        return rows

    def _games(
        self, block: Block, direction: Unknowns, values: EvaluationPoint
    ) -> Iterable[tuple[Callable[[Unknowns], jax.Array], Unknowns, Unknowns]]:
        """Yield the functions whose slopes are the residual, with points, directions.

        With one top the residual is the gradient of its Lagrangian in all unknowns. In
        a Nash game each player n has its own: dL_n/dtheta_n is the row of its
        parameters, and dL_n/dy, y being its movers, the row of its multipliers.
        """
        if len(block.tops) == 1:
            point = self._picked(block, values)
            yield self._cost_at(block.tops[0], values), point, direction
            return
        for name in block.names:
            players = Block((name,), (name,), block.system)
            beneath = Unknowns({}, {})
            if name in self.plan.towers:
                movers = self.plan.responses[name].implicit
                players = Block((name, *movers), (name,), block.system)
                beneath = direction.multipliers[name]
            yield (
                self._cost_at(name, values),
                self._picked(players, values, without=name),
                Unknowns(
                    {name: direction.params[name], **beneath.params},
                    beneath.multipliers,
                ),
            )

    def _cost_at(
        self, name: str, values: EvaluationPoint
    ) -> Callable[[Unknowns], jax.Array]:
        return lambda unknowns: self.lagrangian(name, values.at(unknowns))

    def _picked(
        self,
        block: Block,
        values: EvaluationPoint | Unknowns,
        without: str | None = None,
    ) -> Unknowns:
        """Pick the unknowns of a block, without the multipliers of one problem."""
        towers = [n for n in block.names if n in self.plan.towers and n != without]
        part = (
            values.answer if isinstance(values, EvaluationPoint) else values.params.get
        )
        return Unknowns(
            {n: part(n) for n in block.names},
            {n: values.multipliers[n] for n in towers},
        )

    def gradient(self, name: str, values: EvaluationPoint, *, rerun: bool) -> Gradient:
        """Differentiate the objective of a problem through its implicit movers.

        Starts from the gradient of the cost with respect to everything that moves, and
        takes the blocks one by one, each before those that it depends on: its
        multiplier turns what has arrived at its unknowns into gradients of what its
        residual reads. Every edge is visited once.

        Args:
            name: The problem.
            values: Where to evaluate.
            rerun: Whether the problem's own unrolled movers respond by running its
                window again. Otherwise their cotangents are returned.

        Returns:
            The gradient.
        """
        response = self.plan.responses[name]
        owners = (*response.owners, *((name,) if rerun else ()))
        moving = (name, *response.implicit, *(() if rerun else response.own))

        def at(params: Params) -> EvaluationPoint:
            return self._rerun(owners, values.moved(params))

        moved = {n: values.answer(n) for n in moving} | {name: values.params[name]}
        cotangents, (metrics, model_state) = jax.grad(
            lambda params: self.cost(name, at(params)), has_aux=True
        )(moved)
        multipliers = Unknowns({}, {})
        for block in reversed(response.blocks):
            arrived = {n: cotangents.pop(n) for n in block.names}
            # No cost reads a multiplier: nothing arrives there.
            nothing = jax.tree.map(
                jnp.zeros_like, self._picked(block, values).multipliers
            )
            multiplier, info = self._solve(block, Unknowns(arrived, nothing), values)
            multipliers.params.update(multiplier.params)
            multipliers.multipliers.update(multiplier.multipliers)
            metrics |= _reported(name, block.tops[0], info, metrics)
            touched = set(cotangents) if owners else self.plan.touched(block)
            reads = {n: moved[n] for n in cotangents if n in touched}
            slopes = jax.grad(
                lambda params, block=block, multiplier=multiplier: self.pairing(
                    block, multiplier, at(params)
                )
            )(reads)
            for n, slope in slopes.items():
                cotangents[n] = jax.tree.map(operator.sub, cotangents[n], slope)
        return Gradient(metrics, model_state, cotangents, multipliers)

    def _solve(
        self, block: Block, cotangent: Unknowns, values: EvaluationPoint
    ) -> tuple[Unknowns, Info]:
        if tasks := self._apart(block, values):
            solve = lambda one, part: self._solve(block, part, one)
            found, info = values.each(tasks, solve, cotangent)
            return found, {key: jnp.max(x, axis=0) for key, x in info.items()}
        top = values.inputs[block.tops[0]].problem
        method: Any = top.method
        point = self._picked(block, values)

        def pull_update(vector: Unknowns) -> Unknowns:
            slopes = self.residual(block, point, values)
            # Or the square root of Adam would make the multiplier NaN.
            gradient = jax.tree.map(avoid_zero, slopes.params[top.name])
            cotangent, loss = vector.params[top.name], self.cost(top.name, values)[0]
            pulled = pull_update_of(top, gradient, cotangent, loss)
            return Unknowns({top.name: pulled}, {})

        answer = Answer(
            point=point,
            residual=lambda unknowns: self.residual(block, unknowns, values),
            system=block.system,
            pull_update=pull_update,
        )
        with annotate_errors(f"method of problem {top.name!r}, {method}"):
            vector = shard_like(cotangent, point, never=top.step < 0)
            found = method.multiplier(answer, vector, None)
            _check_multiplier(found, cotangent)
        return found

    def _apart(self, block: Block, values: EvaluationPoint) -> int | None:
        """Count the tasks of a block that has a linear system for each of them.

        Loops that are run again in a residual are run for all tasks together.
        """
        coupled = self.plan.coupled.intersection(block.names)
        if any(self.plan.responses[n].own for n in coupled):
            return None
        return values.tasks(block.names)

    def settled(self, name: str, values: EvaluationPoint) -> EvaluationPoint:
        """Prepare the values for a gradient: solve for multipliers, attach answers.

        The multiplier of a tower is the adjoint of its top's own hypergradient, at the
        present values: bottom up. Attaching gives every implicit answer below the
        problem its derivative with respect to all that is above, see `attach`.
        """
        blocks = self.plan.attached[name]
        members = {n for block in blocks for n in block.names}
        fixed = jax.lax.stop_gradient(values)
        for tower in self.plan.graph.order:
            if tower in self.plan.towers and tower in members:
                found = self.gradient(tower, fixed, rerun=True).multipliers
                fixed = fixed.at(Unknowns({}, {tower: found}))
        values = values._replace(multipliers=fixed.multipliers)
        for block in blocks:
            values = self.attach(block, values)
        return values

    def attach(self, block: Block, values: EvaluationPoint) -> EvaluationPoint:
        """Give the answers of a block their implicit derivative; the values stay."""

        def adjoint(
            point: Unknowns, values: EvaluationPoint, cotangent: Unknowns
        ) -> Unknowns:
            return self._solve(block, cotangent, values.at(point))[0]

        point = attached(
            lambda point, values: self.residual(block, point, values),
            adjoint,
            self._picked(block, values),
            values,
        )
        return values.at(point)

    def _rerun(self, owners: Iterable[str], values: EvaluationPoint) -> EvaluationPoint:
        """Let the unrolled answers respond, through the windows of their owners."""
        for name in owners:
            own = self.plan.responses[name].own
            if own:
                found = values.inputs[name].window(values.params)
                ran = {
                    n: stop_unresponsive(values.inputs[n].problem, found[n])
                    for n in own
                }
                values = values._replace(params={**values.params, **ran})
        return values


def losses(problem: Problem, metrics: Metrics) -> jax.Array:
    """Return the loss of a problem among its metrics: for each task, if it has any."""
    return metrics["loss" if problem.tasks is None else f"loss{PER_TASK}"]


def _over_tasks(metrics: Metrics) -> Metrics:
    """Add the means of metrics over their leading axis, the tasks."""
    means = {key: jnp.mean(x, axis=0) for key, x in metrics.items()}
    return {**{f"{key}{PER_TASK}": x for key, x in metrics.items()}, **means}


def _check_multiplier(found: Any, cotangent: Unknowns) -> None:
    """Refuse what a method of the user's own returned in place of a multiplier."""
    pair = isinstance(found, tuple) and len(found) == 2
    if not pair or not isinstance(found[1], Mapping):
        raise TypeError(
            f"a method's multiplier is {summarize(found)}; expected a pair "
            "(multiplier, report), the report a dict of scalars."
        )
    given, expected = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (found[0], cotangent)
    )
    if given != expected:
        raise ValueError(
            f"a method's multiplier is {summarize(found[0])}; expected one like the "
            f"cotangent that it got, {summarize(cotangent)}."
        )


def _reported(
    upper: str, lower: str, info: Info, metrics: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Name a solver's report among the metrics of an upper."""
    named = {f"{lower}/{key}": jnp.asarray(x) for key, x in info.items()}
    for key in sorted(set(named).intersection(metrics)):
        raise ValueError(
            f"loss of {upper!r} returned the metric {key!r}, which the solver of "
            f"{lower!r} reports: rename the metric."
        )
    return named
