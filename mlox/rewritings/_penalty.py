"""Penalties: a hypergradient as a difference of two solved lowers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mlox._engine.build import Edges
from mlox._problem.context import Context
from mlox._problem.problem import Problem
from mlox._utils.fields import POSITIVE, Kind, check
from mlox._utils.tree import STANDARD_PROMOTION
from mlox._utils.types import PyTree
from mlox.methods import Detached
from mlox.rewritings._both import Both, evaluate_both, join_answer
from mlox.rewritings._graph import Graph, make_graph, read_graph
from mlox.rewritings._losses import Loss, other_key, report
from mlox.rewritings._pair import check_new_name, find_pair

# With phi(x, nu) = min over y of C(x, y) + nu F(x, y), the envelope theorem gives
#
#     dphi/dnu = F(x, y_nu),      dphi/dx = C_x(x, y_nu) + nu F_x(x, y_nu),
#
# so that the hypergradient is a derivative of a derivative of first order:
#
#     d/dx F(x, y*(x)) = d/dx dphi/dnu (0) = d/dnu dphi/dx (0).
#
# Taken as a forward difference in nu = 1/k it is
#
#     F_x(y_nu) + k [C_x(y_nu) - C_x(y_0)]                                   + O(nu),
#
# and as a central one
#
#     [F_x(y_nu) + F_x(y_-nu)] / 2 + k [C_x(y_nu) - C_x(y_-nu)] / 2          + O(nu^2).
#
# There F_x has to be the mean of the two: F_x(y_nu) alone differs from F_x(y_0) by a
# term of the order of nu, which nothing else cancels.

Strength: TypeAlias = float | Callable[[Any], Any]

STRENGTH = Kind(
    "a number > 0, or a schedule: a function of the upper's steps, as in optax",
    lambda x: callable(x) or POSITIVE.accepts(x),
)
ORDER = Kind("1 or 2", lambda x: x in (1, 2) and not isinstance(x, bool))


def penalty(
    problems: Sequence[Problem],
    u2l: Edges | None = None,
    l2u: Edges | None = None,
    reads: Edges | None = None,
    *,
    lower: str | Problem,
    strength: Strength,
    order: int = 1,
) -> Graph:
    r"""Replace an answer by a penalty: hypergradients from first derivatives alone.

    With the cost C(x, y) of the lower, F(x, y) of its upper, and nu = 1/k for the
    strength k, the lower becomes two problems, which are solved side by side. Order 1,
    of two values of the penalty function F + k (C - min C):

        y = argmin C + nu F,    z = argmin C,
        gradient of x:  F_x(x, y) + k [C_x(x, y) - C_x(x, z)]

    Order 2, a central difference in nu:

        y = argmin C + nu F,    z = argmin C - nu F,
        gradient of x:  [F_x(x, y) + F_x(x, z)] / 2 + k [C_x(x, y) - C_x(x, z)] / 2

    y and z are constants of that gradient. It is exact as k grows, if both are solved:
    its bias is of the order of 1/k, and of 1/k^2 for order 2. For C = a y^2/2 - x y and
    F = c y^2/2 + b y it is the hypergradient times k a / (k a + c), and, for order 2,
    times a^2 / (a^2 - c^2/k^2). An error of y or z enters k times as large.

    No loss is differentiated twice, neither forward over reverse nor otherwise: for
    losses with a `jax.custom_vjp` whose backward pass cannot be differentiated, and for
    lowers that are too large for second derivatives.

    Problems: y keeps the name of the lower. The new problem z is "<lower>_reference",
    and for order 2 "<lower>_minus". They have all options of the lower, its steps per
    step of the upper among them, and read the upper as a constant: no answer responds.
    The cost C + F/k has the slopes of C as k grows, so the optimizer stays as it is;
    for F + k C its steps would have to fall with k. With k below 1 shorten them.

    Data: the losses of x and y each evaluate both C and F, so their batches are dicts,
    {"x": a batch of the upper, "y": one of the lower}, e.g. by `mlox.together(x=...,
    y=...)`; a problem without data is left out. In order 1 the batches of the reference
    are those of the lower; in order 2 they are dicts, too. Both costs C in the gradient
    of x are evaluated on one batch with one key, and both F.

    Metrics: "x/loss" is the value whose gradient is taken, F + k [C(y) - C(z)], and
    "x/cost" F alone; "y/loss" is C + F/k, and "y/cost" C alone (unless the losses
    report a "cost" of their own).

    Tasks: each task of the lower has its own y and z. If the upper has none, the tasks
    of y become one problem without `tasks`, of the same stacked arrays, as F may read
    all of them; its "loss" is their sum.

    Args:
        problems: As for `mlox.Engine`, and so are the edges.
        u2l: Upper -> lowers that read it.
        l2u: Lower -> uppers that read its answer.
        reads: Problem -> those that its loss reads as constants.
        lower: The problem whose answer is replaced, or its name. It has one upper, and
            no lowers; the upper may have other lowers, but no answer of its own to a
            problem above.
        strength: k, or a schedule of it: a function of the upper's count of steps.
        order: 1 or 2.

    Returns:
        The new graph, for `mlox.Engine(*graph)`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a value is wrong, or the penalty is not defined for the lower.

    Cost: per step of the upper, with T lower steps, 2 T gradients of C and T of F (2 T
    for order 2), two of C and one of F (two for order 2) for the upper; memory: a
    second copy of the lower with its optimizer.

    References:
        Kwon et al., A Fully First-Order Method for Stochastic Bilevel Optimization,
        ICML 2023 (F2SA); Chen et al., 2025 (F2SA-p); Liu et al., A Value-Function-based
        Interior-point Method for Non-convex Bi-level Optimization, ICML 2021; Shen and
        Chen, On Penalty-based Bilevel Gradient Descent Method, ICML 2023.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> x = mlox.Problem.create(
        ...     name="x", params=jnp.zeros(()), tx=optax.sgd(0.5),
        ...     loss_fn=lambda x, batch, ctx: (ctx.y.params - 1.0) ** 2 / 2)
        >>> y = mlox.Problem.create(
        ...     name="y", params=jnp.zeros(()), tx=optax.sgd(0.5), unroll_steps=20,
        ...     loss_fn=lambda y, batch, ctx: (y - jnp.sin(ctx.x.params)) ** 2 / 2)
        >>> graph = mlox.penalty([x, y], {x: [y]}, {y: [x]}, lower=y, strength=10.0)
        >>> engine = mlox.Engine(*graph)
        >>> engine.names
        ('x', 'y', 'y_reference')
        >>> batches = dict.fromkeys(engine.names)
        >>> _, gradient = engine.hypergradient(engine.init(), batches, x)
        >>> print(round(float(gradient), 4))  # -1 times k a / (k a + c) = 10 / 11
        -0.9091
    """
    label = "mlox.penalty"
    check(f"{label}: strength", strength, STRENGTH)
    check(f"{label}: order", order, ORDER)
    by_name, plan = read_graph(problems, u2l, l2u, reads)
    graph = plan.graph
    upper, answer = find_pair(label, by_name, plan, lower)
    second = f"{answer.name}_{'reference' if order == 1 else 'minus'}"
    check_new_name(label, second, by_name)
    both = Both(Loss.of(upper, graph), Loss.of(answer, graph))
    answer = dataclasses.replace(answer, method=Detached())
    joined = join_answer(answer, upper, both)

    def perturb(name: str, sign: float) -> Problem:
        loss_fn = Perturbed(both, name, strength, sign)
        moved = dataclasses.replace(joined, name=name)
        return evaluate_both(moved, upper, loss_fn)

    y = perturb(answer.name, 1.0)
    z = dataclasses.replace(answer, name=second)
    if order == 2:
        z = perturb(second, -1.0)
    elif answer.sample is not None:
        z = dataclasses.replace(z, loss_fn=Reference(both.lower), sample=None)
    x = evaluate_both(upper, answer, Difference(both, second, strength, order))
    changed = {x.name: x, y.name: y, z.name: z}
    seen = {y.name: both.reads, z.name: both.reads if order == 2 else both.lower.reads}
    plain = [(name, read) for name, others in seen.items() for read in others]
    return make_graph(
        {**by_name, **changed}.values(),
        u2l=[edge for edge in graph.u2l if edge != (x.name, y.name)],
        l2u=[*graph.l2u, (second, x.name)],
        reads=[*graph.plain, *plain, *both.extra_reads(graph)],
    )


@dataclass(frozen=True)
class Perturbed:
    """C + nu F or C - nu F, the cost of a perturbed answer.

    Attributes:
        both: F and C.
        name: The problem.
        strength: k = 1/nu.
        sign: Before nu.
    """

    both: Both
    name: str
    strength: Strength
    sign: float

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the cost and the metrics of C, at the parameters of the answer."""
        upper = ctx[self.both.upper.name]
        y = self.both.see(self.both.lower.at(params, ctx))
        keys = other_key(ctx.rng), ctx.rng
        of_upper, of_lower = self.both.evaluate(upper, y, batch, ctx, self.name, keys)
        k = strength_at(self.strength, upper.step)
        with STANDARD_PROMOTION():
            loss = of_lower.loss + self.sign * of_upper.loss / k
        return report(of_lower, loss)


@dataclass(frozen=True)
class Reference:
    """C itself, on the batch that the perturbed answer samples in the same step.

    Attributes:
        lower: C.
    """

    lower: Loss

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the cost and its metrics."""
        y = self.lower.at(params, ctx)
        found = self.lower(y, batch, ctx, rng=ctx.rng, stand_ins={})
        return report(found, found.loss)


@dataclass(frozen=True)
class Difference:
    """The cost of the upper: a difference of the two answers, divided by that of nu.

    Attributes:
        both: F and C.
        second: The problem that holds the second answer.
        strength: k.
        order: 1 for a forward difference, 2 for a central one.
    """

    both: Both
    second: str
    strength: Strength
    order: int

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> dict[str, Any]:
        """Return the cost and the metrics of F, at the parameters of the upper."""
        upper, names = self.both.upper, (self.both.lower.name, self.second)
        x, k = upper.at(params, ctx), strength_at(self.strength, ctx.step)
        keys = ctx.rng, other_key(ctx.rng)
        (f, c), (f_second, c_second) = (
            self.both.evaluate(x, self.both.see(ctx[n]), batch, ctx, upper.name, keys)
            for n in names
        )
        with STANDARD_PROMOTION():
            penalty = k * (c.loss - c_second.loss)
            if self.order == 1:
                return report(f, f.loss + penalty)
            return report(f, (f.loss + f_second.loss) / 2 + penalty / 2)


def strength_at(strength: Strength, step: Any) -> Any:
    """Return k at a count of the upper's steps."""
    with STANDARD_PROMOTION():  # schedules of optax add floats to counts
        return strength(step) if callable(strength) else strength
