"""BOME: one step for both levels, along which the lower does not fall behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from mlox._engine.build import Edges
from mlox._graph.dependencies import Plan
from mlox._problem.context import Context
from mlox._problem.optimizer import restart
from mlox._problem.problem import Problem
from mlox._utils.fields import COUNT, POSITIVE, check, optional
from mlox._utils.tree import vdot
from mlox._utils.types import PyTree
from mlox.methods import Detached
from mlox.rewritings._both import Both, evaluate_both, join_answer
from mlox.rewritings._descent import Descent
from mlox.rewritings._graph import Graph, make_graph, read_graph
from mlox.rewritings._losses import Loss, report
from mlox.rewritings._pair import Pair, check_new_name, find_pair


def bome(
    problems: Sequence[Problem],
    u2l: Edges | None = None,
    l2u: Edges | None = None,
    reads: Edges | None = None,
    *,
    lower: str | Problem,
    steps: int | None = None,
    rate: float | None = None,
    eta: float = 0.5,
) -> Graph:
    r"""Step both levels at once, along a direction that keeps the lower at its optimum.

    With the cost C(x, y) of the lower, F(x, y) of its upper, and y_T reached from y by
    T steps on C, and q = C(x, y) - C(x, y_T),

        mu = max(0, eta |grad q|^2 - <grad F, grad q>) / |grad q|^2
        (x, y) <- (x, y) - rate (grad F + mu grad q)

    where gradients, norms and products are over x and y together, and y_T is a
    constant. mu is 0 where grad q is. Only first derivatives are taken: for losses with
    a `jax.custom_vjp` whose backward pass cannot be differentiated. It ends near a
    solution, the nearer the smaller rates and eta are, and the nearer y_T is to the
    optimum: an error that T steps leave by a factor r turns grad q by about r.

    Problems: x and y keep their names, optimizers and options. They read each other as
    constants, step at once, and each evaluates the gradients for itself: give both the
    same batches, so that their mu is the same; their keys are. "<lower>_reference" is
    y_T: it starts at y before each of these steps, and makes T steps.

    Data: batches of x and y are dicts, {"x": a batch of the upper, "y": one of the
    lower}, e.g. by `mlox.together(x=..., y=...)`; a problem without data is left out.
    The batches of the reference are those of the lower, one for each of its T steps.

    Metrics: "x/loss" and "y/loss" are F + mu q, "x/cost" is F, "y/cost" C,
    "x/multiplier" mu and "x/constraint" q.

    Tasks: with tasks of both, each has its own mu. With tasks of the lower alone they
    have one; those of y then become one problem, of the same stacked arrays.

    Args:
        problems: As for `mlox.Engine`, and so are the edges.
        u2l: Upper -> lowers that read it.
        l2u: Lower -> uppers that read its answer.
        reads: Problem -> those that its loss reads as constants.
        lower: The lower, or its name. It has one upper and no lowers, and its upper no
            other lowers, and no answer of its own to a problem above.
        steps: T; None for the `unroll_steps` of the lower.
        rate: The rate of the T steps of gradient descent; None for the optimizer of the
            lower, which is started anew for each T steps.
        eta: How fast q has to fall, a number > 0; 0.5 in the paper.

    Returns:
        The new graph, for `mlox.Engine(*graph)`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a value is wrong, or BOME is not defined for the problems.

    Cost: per step T gradients of C, and for x and for y each one of F and two of C;
    memory: a second copy of the lower with its optimizer.

    References:
        Ye et al., BOME! Bilevel Optimization Made Easy: A Simple First-Order Approach,
        NeurIPS 2022.

    Example:
        The upper wants y at 1, and pays for x; the lower is y = x, so both end at 1/2:

        >>> import jax.numpy as jnp, mlox, optax
        >>> x = mlox.Problem.create(
        ...     name="x", params=jnp.zeros(()), tx=optax.sgd(0.05),
        ...     loss_fn=lambda x, batch, ctx: (ctx.y.params - 1.0) ** 2 + x**2)
        >>> y = mlox.Problem.create(
        ...     name="y", params=jnp.zeros(()), tx=optax.sgd(0.05),
        ...     loss_fn=lambda y, batch, ctx: (y - ctx.x.params) ** 2)
        >>> engine = mlox.Engine(*mlox.bome(
        ...     [x, y], {x: [y]}, {y: [x]}, lower=y, steps=20, rate=0.2))
        >>> state, _ = engine.run(engine.init(), train_iters=400, progress=False,
        ...                       loggers=())
        >>> [round(float(state[name].params), 2) for name in ("x", "y")]
        [0.5, 0.5]
    """
    label = "mlox.bome"
    check(f"{label}: steps", steps, optional(COUNT))
    check(f"{label}: rate", rate, optional(POSITIVE))
    check(f"{label}: eta", eta, POSITIVE)
    by_name, plan = read_graph(problems, u2l, l2u, reads)
    graph = plan.graph
    pair = find_pair(label, by_name, plan, lower)
    _check_pair(label, pair, plan)
    upper, answer = pair
    reference = f"{answer.name}_reference"
    check_new_name(label, reference, by_name)
    both = Both(Loss.of(upper, graph), Loss.of(answer, graph))
    descent = Descent(both, reference, float(eta), upper.trainable, answer.trainable)
    x = evaluate_both(upper, answer, UpperStep(descent))
    # One key, so that both see the same random numbers in each step.
    y = join_answer(dataclasses.replace(answer, rng=x.rng), upper, both)
    y = evaluate_both(y, upper, LowerStep(descent))
    y = dataclasses.replace(y, unroll_steps=1, method=Detached())
    stacked = answer.tasks is not None and upper.tasks is None
    z = _make_reference(answer, reference, steps, rate, Start(y.name, stacked))
    seen = [(y.name, read) for read in both.reads]
    seen += [(z.name, read) for read in (y.name, *both.lower.reads)]
    edge = (answer.name, upper.name)
    back = (upper.name, answer.name)
    return make_graph(
        {**by_name, x.name: x, y.name: y, z.name: z}.values(),
        u2l=[e for e in graph.u2l if e != back],
        l2u=[*(e for e in graph.l2u if e != edge), (z.name, x.name), (z.name, y.name)],
        reads=[*graph.plain, back, *seen, *both.extra_reads(graph)],
    )


@dataclass(frozen=True)
class UpperStep:
    """A loss of the upper whose gradient is its part of the direction.

    Attributes:
        descent: The direction.
    """

    descent: Descent

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return F + mu q, with the metrics of F."""
        upper, lower = self.descent.both.upper, self.descent.both.lower
        x = upper.at(params, ctx)
        found = self.descent.find(x, ctx[lower.name], batch, ctx, upper.name)
        loss = with_slope(found.loss, found.x, params)
        own = {"multiplier": found.multiplier, "constraint": found.constraint}
        return {**own, **report(found.upper, loss)}


@dataclass(frozen=True)
class LowerStep:
    """A loss of the lower whose gradient is its part of the direction.

    Attributes:
        descent: The direction.
    """

    descent: Descent

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return F + mu q, with the metrics of C."""
        upper, lower = self.descent.both.upper, self.descent.both.lower
        y = lower.at(params, ctx)
        found = self.descent.find(ctx[upper.name], y, batch, ctx, lower.name)
        loss = with_slope(found.loss, found.y, params)
        return report(found.lower, loss)


@dataclass(frozen=True)
class Start:
    """The start of y_T: the present y.

    Attributes:
        name: The problem that holds y.
        stacked: Whether it holds the tasks of y stacked.
    """

    name: str
    stacked: bool

    def __call__(self, params: PyTree, ctx: Context) -> PyTree:
        """Return the parameters of y."""
        del params
        present = ctx[self.name].params
        if not self.stacked:
            return present
        return jax.tree.map(lambda x: x[ctx.task_index], present)


def with_slope(value: jax.Array, slope: PyTree, params: PyTree) -> jax.Array:
    """Return a value that has a given gradient with respect to some parameters."""
    moved = jax.tree.map(lambda p: p - jax.lax.stop_gradient(p), params)
    return value + vdot(slope, moved).astype(value.dtype)


def _make_reference(
    lower: Problem, name: str, steps: int | None, rate: float | None, start: Start
) -> Problem:
    """Return the problem that makes T steps from the present y."""
    changed: dict[str, Any] = {} if steps is None else {"unroll_steps": steps}
    if rate is not None:
        changed |= {"tx": optax.sgd(rate), "hyperparams": None}
    made = dataclasses.replace(
        lower, name=name, reset=start, method=Detached(), **changed
    )
    return restart(made, made.params)


def _check_pair(label: str, pair: Pair, plan: Plan) -> None:
    upper, lower = pair
    others = [n for n in plan.graph.lowers(upper.name) if n != lower.name]
    if others:
        raise ValueError(
            f"{label}: the upper {upper.name!r} has the lower {others[0]!r} beside "
            f"{lower.name!r}; expected one, as the direction holds others fixed. Use "
            "mlox.penalty, or another method."
        )
    given = {
        "reset": (lower.reset is not None, "Drop it"),
        "warmup_steps": (lower.warmup_steps > 0, "Train it first, in an engine alone"),
    }
    for part, (is_given, remedy) in given.items():
        if is_given:
            raise ValueError(
                f"{label}: the lower {lower.name!r} has {part}=, but it makes one step "
                "with each of its upper and has no inner loop of its own; expected "
                f"none. {remedy}, or use mlox.penalty."
            )
