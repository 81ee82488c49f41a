"""How far a program is off: its hypergradient against differences of what is true."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import mlox
from mlox._cycle.batches import first_window
from mlox._cycle.sample import sample_batches
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint

DIRECTIONS = 8


def against_solved(
    engine: mlox.Engine, state: Any, batches: Any, name: str, **options: Any
) -> float:
    """Compare with central differences of the re-solved program, see `solved_cost`."""
    found = hypergradient(engine, state, batches, name)
    wide = widened((state, batches))
    shifted = partial(solved_cost, engine, *wide, name, **options)
    return relative_error(found, shifted)


def against_program(engine: mlox.Engine, state: Any, batches: Any, name: str) -> float:
    """Compare with central differences of the very window that runs."""

    def shifted(shift: Any) -> Any:
        moved = _move(state, name, shift)
        return engine.hypergradient(moved, batches, name)[0]

    return relative_error(hypergradient(engine, state, batches, name), shifted)


def vanishing(engine: mlox.Engine, state: Any, batches: Any, name: str) -> float:
    """Return 1.0 if the hypergradient is exactly zero."""
    return float(not hypergradient(engine, state, batches, name).any())


def unresponsive(engine: mlox.Engine, state: Any, batches: Any, name: str) -> float:
    """Return 1.0 if the hypergradient is the same whatever its lowers have learned."""
    found = hypergradient(engine, state, batches, name)
    others = {n: x if n == name else _doubled(x) for n, x in batches.items()}
    return float((found == hypergradient(engine, state, others, name)).all())


def unstable(engine: mlox.Engine, state: Any, batches: Any, name: str) -> float:
    """Return the relative difference of the same hypergradient, traced twice."""
    cycle = engine.traced.prepare(state, batches)

    def traced() -> np.ndarray:  # by a new function: none is traced twice
        slopes = jax.jit(lambda *given: cycle.hypergradient(*given, name)[1])
        return np.asarray(ravel_pytree(slopes(state, batches))[0])

    one, two = traced(), traced()
    return float(np.linalg.norm(one - two) / np.linalg.norm(two))


def unmoved(engine: mlox.Engine, state: Any, batches: Any, name: str) -> float:
    """Return 1.0 if a cycle leaves the upper, or what it leads, exactly as it was."""
    after, _ = jax.jit(engine.step)(state, batches)
    names = [name, *engine.cycle.plan.movers[name]]
    same = [
        bool((one == two).all())
        for n in names
        for one, two in zip(
            jax.tree.leaves(state[n].params),
            jax.tree.leaves(after[n].params),
            strict=True,
        )
    ]
    return float(any(same))


def relative_error(found: np.ndarray, shifted: Callable[[Any], Any]) -> float:
    """Compare a gradient with central differences, along all axes or some directions.

    Infinite if the gradient is not finite.
    """
    truth, seen = differences(found, shifted)
    error = np.linalg.norm(seen - truth) / np.linalg.norm(truth)
    return float(error) if np.isfinite(error) else np.inf


def differences(
    found: np.ndarray, shifted: Callable[[Any], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return central differences of fourth order, and the gradient along the same."""
    size = found.size
    basis = np.eye(size)
    if size > DIRECTIONS:
        basis = np.random.default_rng(0).normal(size=(DIRECTIONS, size))
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    h = 1e-3
    shifts = h * np.concatenate([k * basis for k in (1, -1, 2, -2)])
    up, down, up2, down2 = np.split(np.array(jax.jit(jax.vmap(shifted))(shifts)), 4)
    return (8 * (up - down) - (up2 - down2)) / (12 * h), basis @ found


def solved_cost(
    engine: mlox.Engine,
    state: Any,
    batches: Any,
    name: str,
    shift: Any,
    descend: int = 0,
    rate: float = 0.1,
) -> jax.Array:
    """Return the upper's cost at shifted parameters, with its lowers solved again.

    From the answers that the window reached: some steps of gradient descent, where
    these are far from a minimum, and then Newton's method.
    """
    cycle = engine.traced.prepare(state, batches)
    plan, layer = cycle.plan, cycle.graph.layer_of[name]
    batches = first_window(cycle.graph, name, batches)
    run = cycle.run_lowers(layer, state, cycle.start_history(state), batches)
    batches = sample_batches(plan, layer, run, batches)
    moved = _move(run.state, name, shift)
    point: EvaluationPoint = cycle.point(
        layer, name, run._replace(state=moved), batches
    )
    movers = {b: point.responsive(b) for b in plan.movers[name]}
    start, unravel = ravel_pytree(movers)

    def slopes(y: Any) -> Any:
        at = point.at_params(unravel(y))
        own = {
            n: jax.grad(lambda x, n=n: cost(plan, n, at.at_params({n: x}))[0])(
                at.responsive(n)
            )
            for n in movers
        }
        return ravel_pytree(own)[0]

    def newton(_: Any, y: Any) -> Any:
        return y - jnp.linalg.solve(jax.jacfwd(slopes)(y), slopes(y))

    y = jax.lax.fori_loop(0, descend, lambda _, y: y - rate * slopes(y), start)
    y = jax.lax.fori_loop(0, 8, newton, y)
    return cost(plan, name, point.at_params(unravel(y)))[0]


def hypergradient(
    engine: mlox.Engine, state: Any, batches: Any, name: str
) -> np.ndarray:
    slopes = jax.jit(engine.hypergradient, static_argnums=2)
    flat = ravel_pytree(slopes(state, batches, name)[1])[0]
    return np.asarray(flat, np.float64)


def widened(tree: Any) -> Any:
    """Return a pytree with its floating arrays in float64."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        tree,
    )


def _doubled(batch: Any) -> Any:
    return jax.tree.map(lambda x: 2 * x, batch)


def _move(state: Any, name: str, shift: Any) -> dict[str, mlox.Problem]:
    flat, unravel = ravel_pytree(state[name].params)
    moved = unravel(flat + jnp.asarray(shift, flat.dtype))
    return {**state, name: state[name].replace(params=moved)}
