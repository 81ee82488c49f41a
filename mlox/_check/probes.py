"""Probes of losses and optimizers at the end of a window."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlox._check.budget import MOST_NOISY
from mlox._check.experiment import Experiment
from mlox._check.losses import Edge, find_jump
from mlox._check.programs import Traits, read_program
from mlox._check.reference import Solved
from mlox._check.setting import Arrival
from mlox._check.updates import Updates, probe_updates
from mlox._check.vectors import as_tree, as_vector, scale_of, shift
from mlox._cycle.dead_reads import Fault
from mlox._engine.dead_edges import find_dead_edges
from mlox._utils.types import PyTree


def find_changing(experiment: Experiment) -> dict[str, float]:
    """Return how far the value of each cost changes when its loss is traced again."""
    first = experiment.slopes(experiment.params).values
    second = experiment.values()
    return {
        n: abs(float(first[n]) - second[n]) / max(abs(second[n]), 1e-300)
        for n in second
    }


def find_flat(
    experiment: Experiment, edges: tuple[Edge, ...]
) -> frozenset[tuple[str, str]]:
    """Return the edges (reader, read) of what is read, but not differentiated."""
    if not any(edge.silent and edge.needed for edge in edges):
        return frozenset()
    dead = find_dead_edges(
        experiment.setting.cycle, experiment.state, experiment.batches
    )
    return frozenset(
        (edge.link.reader, edge.link.read)
        for edge in dead
        if edge.fault is Fault.DERIVATIVE_CUT
    )


def read_losses(experiment: Experiment) -> dict[str, Traits]:
    """Return what stands in the program of each loss."""
    costs, at = experiment.costs, experiment.arrival
    rows = count_rows(at.batches[experiment.name])
    return {
        n: read_program(
            lambda params, n=n: costs.value(n, at, params, experiment.one()),
            experiment.params,
            rows=rows or 0,
        )
        for n in costs.names
    }


def count_rows(batch: PyTree) -> int | None:
    """Return the length of the leading axis that all leaves of a batch share, or None.

    Example:
        >>> count_rows((np.ones((6, 2)), np.ones(6)))
        6
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    lengths = {shape[0] for shape in shapes if shape}
    whole = len(lengths) == 1 and all(shapes)
    return lengths.pop() if whole else None


def measure_mixing(experiment: Experiment, seed: int) -> float:
    """Return how far the examples of the upper's batch depend on each other.

    A mean over examples changes by a sum if two halves of them change: what is left
    over comes from statistics of the whole batch.
    """
    at, name = experiment.arrival, experiment.name
    batch = at.batches[name]
    rows = count_rows(batch)
    if rows is None or rows < 2 or experiment.state[name].tasks is not None:
        return 0.0
    draw = np.random.default_rng(seed)
    first = np.arange(rows) < rows // 2

    def push(leaf: Any, chosen: np.ndarray, noise: np.ndarray) -> jax.Array:
        array = jnp.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        mask = chosen.reshape(-1, *(1,) * (array.ndim - 1))
        return array + (0.1 * scale_of(array) * mask * noise).astype(array.dtype)

    noise = jax.tree.map(lambda x: draw.normal(size=np.shape(x)), batch)

    def value(chosen: np.ndarray) -> float:
        moved = jax.tree.map(lambda x, e: push(x, chosen, e), batch, noise)
        return experiment.values(_with_batch(at, name, moved))[name]

    none, one, other, both = map(
        value, (np.zeros(rows, bool), first, ~first, np.ones(rows, bool))
    )
    moved = abs(one - none) + abs(other - none)
    return abs(both - one - other + none) / moved if moved > 0 else 0.0


def _with_batch(at: Arrival, name: str, batch: PyTree) -> Arrival:
    return at._replace(batches={**at.batches, name: batch})


class Quantity(enum.Enum):
    """What may jump: the value of a cost, or its gradient in its own parameters."""

    VALUE = 0
    SLOPE = 1


# Relative to the scale of the parameters.
SPANS = {Quantity.VALUE: (1.0, 4.0), Quantity.SLOPE: (1.0,)}


def measure_jumps(
    experiment: Experiment, quantity: Quantity, seed: int
) -> dict[str, float]:
    """Return the largest relative jump of each cost, or of its gradient, along lines.

    The lines lead through the end of the window, each in the space of one problem.
    """
    draw = np.random.default_rng(seed)
    params = experiment.params
    found = dict.fromkeys(experiment.costs.names, 0.0)
    for by in experiment.costs.names:
        unit = draw.normal(size=as_vector(params[by]).size)
        line = as_tree(unit / np.linalg.norm(unit), params[by])
        for m in experiment.costs.names:
            if by not in experiment.costs.reads(m):
                continue
            along = functools.partial(_along, experiment, quantity, by, line, m)
            spans = [scale_of(params[by]) * span for span in SPANS[quantity]]
            found[m] = max(found[m], *(find_jump(along, span) for span in spans))
    return found


def _along(
    experiment: Experiment, quantity: Quantity, by: str, line: PyTree, m: str, t: float
) -> np.ndarray:
    params = experiment.params
    moved = {**params, by: shift(params[by], t, line)}
    if quantity is Quantity.VALUE:
        return np.array([experiment.values(params=moved)[m]])
    return as_vector(experiment.slopes(moved).gradients[m][m])


def measure_descent(experiment: Experiment, solved: Solved) -> dict[str, float]:
    """Return how far the solved answers lower the cost of each one, relative to it."""
    here = experiment.slopes(experiment.params).values
    there = experiment.slopes({**experiment.params, **solved.answers}).values
    return {
        n: float(here[n] - there[n]) / max(abs(float(here[n])), 1e-300)
        for n in experiment.setting.movers
    }


def measure_updates(experiment: Experiment) -> Mapping[str, Updates]:
    """Return what the optimizer of each answer does there."""
    slopes = experiment.slopes(experiment.params).gradients
    return {
        n: probe_updates(experiment.arrival.state[n], slopes[n][n])
        for n in experiment.setting.movers
    }


def measure_noise(experiment: Experiment, seed: int) -> float | None:
    """Return the spread of the hypergradient over batches and keys; None without any.

    At the same answers, exactly solved, for up to four samples of the answers alone
    and for four keys of the upper: the root mean square distance from the mean,
    relative to it.
    """
    at, name = experiment.arrival, experiment.name
    samples = range(min(experiment.samples, MOST_NOISY))
    found = [experiment.solve(experiment.params, experiment.one(s)) for s in samples]
    key = at.state[name].rng
    if key is not None:
        for i in range(MOST_NOISY):
            upper = at.state[name].replace(rng=jax.random.fold_in(key, seed + i))
            moved = at._replace(state={**at.state, name: upper})
            found.append(
                experiment.solve(experiment.params, experiment.one(), at=moved)
            )
    if len(found) < 2:
        return None
    gradients = np.array([as_vector(x.gradient) for x in found])
    mean = gradients.mean(axis=0)
    spread = np.sqrt(((gradients - mean) ** 2).sum(axis=1).mean())
    return float(spread / max(np.linalg.norm(mean), 1e-300))
