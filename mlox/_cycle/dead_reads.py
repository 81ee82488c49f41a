"""Why a read carries no derivative, told from the program of the reader's cost."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mlox._cycle.cycle import Cycle
from mlox._cycle.hyperparams import find_steering
from mlox._cycle.reset import start_inner_loops
from mlox._graph.links import Carries, Kind, Link
from mlox._hypergradient.cost import cost
from mlox._utils.depends import depends
from mlox._utils.types import Batches, PyTree, State
from mlox.methods import Detached, Unrolled

# The rules, for a reader r of n. Each asks whether a program depends on a value, which
# the elimination of its dead code tells: whether it depends in structure, for all
# numbers. They are
#
#     not read         C_r does not depend on theta_n;
#     derivative cut   c -> c dC_r/dtheta_n does not depend on the cotangent c;
#     additive         t -> d/dtheta_n (dC_r/dy) t does not depend on the tangent t, for
#                      the unknowns y of r's answer: C_r = f(y) + g(theta_n).


class Fault(enum.Enum):
    """Why a read carries no derivative.

    Attributes:
        NOT_READ: The loss does not read it.
        DERIVATIVE_CUT: The loss reads it, but has no derivative with respect to it.
        ADDITIVE: It adds to the loss, but changes no slope: the answer stays.
        STEERS_ONLY: The loss does not read it; the optimizer does, by `hyperparams`,
            but the steps have no derivative with respect to it.
        EDGE_REVERSED: An answer's own cost does not depend on its own parameters, as if
            upper and lower were exchanged: it has no stationary point to answer with.
    """

    NOT_READ = enum.auto()
    DERIVATIVE_CUT = enum.auto()
    ADDITIVE = enum.auto()
    STEERS_ONLY = enum.auto()
    EDGE_REVERSED = enum.auto()


def find_fault(
    cycle: Cycle, link: Link, state: State, batches: Batches
) -> Fault | None:
    """Return why a read carries no derivative, or None if it does, or need not."""
    # An answer that is `Detached` is meant to be a constant; but not to be left unread.
    methods = [state[name].method for name in link.answers]
    constant = any(isinstance(method, Detached) for method in methods)
    given = state, batches
    if link.carries is Carries.VALUE:
        used = _is_used(cycle, link, *given) or _steers(cycle, link, state)
        return None if used else Fault.NOT_READ
    if link.kind is Kind.OWN:
        moves = constant or _starts_anew(cycle, link.reader, state)
        return None if moves or _has_slope(cycle, link, *given) else Fault.EDGE_REVERSED
    if not _is_read(cycle, link, *given):
        used = link.declares_level or _is_used(cycle, link, *given)
        if not used and _steers(cycle, link, state):
            # An engine tells of other methods when it is built.
            through = isinstance(state[link.reader].method, Unrolled)
            return Fault.STEERS_ONLY if through and link.kind is Kind.U2L else None
        return None if used else Fault.NOT_READ
    if constant or _steers_unwatched(cycle, link, state):
        return None
    if not _has_slope(cycle, link, *given):
        return Fault.DERIVATIVE_CUT
    if link.carries is Carries.CROSS and not _has_cross(cycle, link, *given):
        return Fault.ADDITIVE
    return None


def _starts_anew(cycle: Cycle, name: str, state: State) -> bool:
    """Return whether an unrolled answer responds through the start of its loop."""
    return state[name].reset is not None and name in cycle.plan.unrolled


def _is_read(cycle: Cycle, link: Link, state: State, batches: Batches) -> bool:
    at = _cost_at(cycle, link)
    return depends(at, state[link.read].params, state, batches)


def _is_used(cycle: Cycle, link: Link, state: State, batches: Batches) -> bool:
    """Return whether a neighbour is read in another way than by its parameters.

    That is: as a mutable state, by `sample` or `reset`, or, unless along a u2l edge,
    for a metric alone.
    """
    reader, read = link.reader, link.read

    def made(parts: tuple[PyTree, PyTree], state: State, batches: Batches) -> PyTree:
        params, model_state = parts
        seen = dataclasses.replace(state[read], params=params, model_state=model_state)
        state = {**state, read: seen}
        loss, aux = cost(cycle.plan, reader, cycle.inspect(state, batches, reader))
        start = None
        if state[reader].reset is not None:
            layer = cycle.graph.inner_layer[reader]
            start = start_inner_loops(cycle.plan, layer, state)[reader].params
        return loss, start, None if link.kind is Kind.U2L else aux

    neighbour = state[read]
    parts = (neighbour.params, neighbour.model_state)
    return depends(made, parts, state, batches)


def _steers(cycle: Cycle, link: Link, state: State) -> bool:
    """Return whether the optimizer of the reader reads a neighbour."""
    steering = find_steering(cycle.plan, link.reader, state)
    return link.read in steering.reads + steering.constants


def _steers_unwatched(cycle: Cycle, link: Link, state: State) -> bool:
    """Return whether steps that are differentiated without a cotangent are steered."""
    loop = link.reader in cycle.plan.unrolled
    watched = isinstance(state[link.reader].method, Unrolled)
    return loop and not watched and _steers(cycle, link, state)


def _has_slope(cycle: Cycle, link: Link, state: State, batches: Batches) -> bool:
    at = _cost_at(cycle, link)

    def pull(cotangent: jax.Array, state: State, batches: Batches) -> PyTree:
        theta = state[link.read].params
        value, transpose = jax.vjp(lambda x: at(x, state, batches), theta)
        return transpose(cotangent.astype(value.dtype))

    return depends(pull, jnp.ones(()), state, batches)


def _has_cross(cycle: Cycle, link: Link, state: State, batches: Batches) -> bool:
    plan, reader, read = cycle.plan, link.reader, link.read

    def push(tangent: PyTree, state: State, batches: Batches) -> PyTree:
        point = cycle.inspect(state, batches, reader)
        y = {n: point.params[n] for n in (reader, *plan.movers[reader])}

        def slopes(theta: PyTree) -> PyTree:
            at = point.at_params({read: theta})
            return jax.grad(lambda y: cost(plan, reader, at.at_params(y))[0])(y)

        return jax.jvp(slopes, (point.params[read],), (tangent,))[1]

    return depends(push, state[read].params, state, batches)


def _cost_at(cycle: Cycle, link: Link) -> Callable[..., jax.Array]:
    """Return the reader's cost as a function (theta_n, state, batches) -> scalar."""

    def at(theta: PyTree, state: State, batches: Batches) -> jax.Array:
        point = cycle.inspect(state, batches, link.reader)
        point = point.at_params({link.read: theta})
        return cost(cycle.plan, link.reader, point)[0]

    return at
