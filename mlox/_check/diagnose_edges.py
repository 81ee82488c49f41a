"""Diagnose edges that carry nothing, and derivatives that are not those of a loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlox._check.figures import Figures
from mlox._check.finding import Cause, Finding
from mlox._check.losses import Edge
from mlox._engine.engine import Engine
from mlox._utils.describe import show_call


def find_reversed_edges(figures: Figures) -> list[Finding]:
    """List lowers whose cost does not depend on their own parameters."""
    return [
        _reversed(figures, edge)
        for edge in figures.edges
        if edge.own and edge.unread and edge.cost != figures.name
    ]


def diagnose_edges(figures: Figures) -> Iterator[Finding]:
    """Yield what is wrong with the dependence of each cost on each neighbour."""
    # What a loop starts from may depend on an upper that the loss does not read.
    restarts = {lower.name for lower in figures.lowers if lower.restarts}
    # And its optimizer may.
    lowers = {lower.name: lower for lower in figures.lowers}
    for edge in figures.edges:
        anew = edge.above and edge.cost in restarts
        if edge.own or anew or not edge.needed:
            continue
        if edge.unread and edge.above and edge.by in lowers[edge.cost].steered:
            if not lowers[edge.cost].unrolled:
                yield _steers_only(edge, show_call(lowers[edge.cost].method))
            continue
        if edge.unread and edge.above and edge.by in lowers[edge.cost].starts:
            yield _starts_only(edge, show_call(lowers[edge.cost].method))
        elif is_cut(edge):
            yield _cut(edge)
        elif edge.silent and (edge.cost, edge.by) in figures.flat:
            yield _flat(edge)
        elif edge.unread:
            yield _not_read(edge)
        elif edge.above and _is_additive(edge):
            yield _additive(edge)


def is_cut(edge: Edge) -> bool:
    """Return whether JAX sees no dependence where the values have one."""
    # An answer moves with an upper as the gradient of its cost does. A lower acts on
    # the cost itself, and on its gradient through its own response.
    if edge.has_kink:
        return False
    return edge.silent and (edge.second_wrong if edge.above else edge.first_wrong)


def _is_additive(edge: Edge) -> bool:
    """Return whether the own gradient does not change with the neighbour."""
    return edge.slope_change < 1e-10 and edge.silent


def _reversed(figures: Figures, edge: Edge) -> Finding:
    return Finding(
        Cause.EDGE_REVERSED,
        edge.cost,
        f"The cost of {edge.cost!r} does not depend on its own parameters, so it has "
        f"no answer that could respond to {figures.name!r}.",
        f"Check the direction of the edges: with {edge.cost!r} as the upper they are "
        f"u2l={{{edge.cost!r}: [{figures.name!r}]}} and "
        f"l2u={{{figures.name!r}: [{edge.cost!r}]}}.",
    )


def _not_read(edge: Edge) -> Finding:
    what = "the parameters" if edge.above else "the answer"
    return Finding(
        Cause.NOT_READ,
        edge.cost,
        f"The loss of {edge.cost!r} does not change with {what} of {edge.by!r}, which "
        "an edge declares that it reads.",
        f"Use ctx.{edge.by}.params in the loss, or drop the edge.",
    )


def _steers_only(edge: Edge, method: str) -> Finding:
    return Finding(
        Cause.NOT_READ,
        edge.cost,
        f"The optimizer of {edge.cost!r} reads {edge.by!r} by hyperparams=, and its "
        f"loss does not. {method} does not differentiate its steps.",
        f"Pass method=mlox.Unrolled() to {edge.cost!r}.",
    )


def _starts_only(edge: Edge, method: str) -> Finding:
    return Finding(
        Cause.NOT_READ,
        edge.cost,
        f"The loop of {edge.cost!r} starts at {edge.by!r} by reset, and its loss does "
        f"not read it. {method} differentiates an answer that has forgotten its start.",
        f"Tie the answer to it by loss_fn=mlox.Proximal(loss_fn, to={edge.by!r}, "
        "strength=...), which is implicit MAML, or pass method=mlox.Unrolled() "
        f"(MAML) to {edge.cost!r}.",
    )


def _flat(edge: Edge) -> Finding:
    return Finding(
        Cause.DERIVATIVE_CUT,
        edge.cost,
        f"The loss of {edge.cost!r} reads {edge.by!r}, but the derivative is 0: it "
        "goes through a comparison, a rounding, an argmax or integers.",
        f"Replace them where the loss reads ctx.{edge.by}, e.g. a comparison by "
        "jax.nn.sigmoid, an accuracy by a cross entropy.",
    )


def _cut(edge: Edge) -> Finding:
    what, measured = "its derivative", f"{edge.measured:.2g}"
    if edge.above:
        what = "the derivative of its gradient"
        measured = f"a vector of length {np.linalg.norm(edge.slope_measured):.2g}"
    return Finding(
        Cause.DERIVATIVE_CUT,
        edge.cost,
        f"The loss of {edge.cost!r} changes with {edge.by!r}, but {what} is 0, where "
        f"differences give {measured}.",
        "Remove jax.lax.stop_gradient, conversions to integers or NumPy, and rounding "
        f"from where the loss reads ctx.{edge.by}."
        + (" If it is a mean over samples, use mlox.magic_box." if edge.above else ""),
    )


def _additive(edge: Edge) -> Finding:
    return Finding(
        Cause.ADDITIVE,
        edge.cost,
        f"The loss of {edge.cost!r} depends on {edge.by!r}, but its gradient does not: "
        f"a sum of two parts, one for each. So the answer does not move with "
        f"{edge.by!r}.",
        f"Let {edge.by!r} act on the parameters of {edge.cost!r}, e.g. as a weight of "
        "a term that contains them, or drop the edge.",
    )


def find_reversed(engine: Engine, name: str) -> Finding:
    """Return the finding for a problem without lowers that respond to it.

    Raises:
        ValueError: If it is no lower itself whose edges could be the wrong way round.
    """
    graph = engine.graph
    if not graph.uppers(name):
        raise ValueError(
            f"check of {name!r}: no answer responds to it, so its gradient is that of "
            f"its loss alone. {name_others(engine)}"
        )
    upper = graph.uppers(name)[0]
    return Finding(
        Cause.EDGE_REVERSED,
        name,
        f"{name!r} has no lowers that respond to it: the edges make it a lower of "
        f"{upper!r}.",
        f"If {name!r} is the upper, exchange the ends of the edges: "
        f"u2l={{{name!r}: [{upper!r}]}}, l2u={{{upper!r}: [{name!r}]}}.",
    )


def name_others(engine: Engine) -> str:
    """Return a sentence on the problems to which answers respond."""
    names = [n for n in engine.names if engine.cycle.plan.movers[n]]
    if not names:
        return "No problem of this graph has lowers that respond."
    return f"Problems whose lowers respond: {names}."
