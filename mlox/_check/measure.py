"""Measure everything that a check reports, as far as its budget reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._check.budget import (
    Part,
    Sizes,
    Steps,
    afford,
    afford_steps,
    count_directions,
    prices,
)
from mlox._check.differences import (
    Implicit,
    compare_implicit,
    compare_unrolled,
    differs_from_window,
    solve_references,
)
from mlox._check.experiment import Experiment
from mlox._check.figures import WRONG, Differences, Figures, Lower
from mlox._check.losses import probe_edges
from mlox._check.precision import cast, cast_state, float64, is_double, is_single
from mlox._check.probes import (
    Quantity,
    find_changing,
    find_flat,
    measure_descent,
    measure_jumps,
    measure_mixing,
    measure_noise,
    measure_updates,
    read_losses,
)
from mlox._check.setting import Arrival, Setting, is_finite
from mlox._check.starts import find_starts
from mlox._check.training import metasmoothness
from mlox._check.vectors import (
    Distance,
    as_vector,
    choose_directions,
    compare_vectors,
    scale_of,
)
from mlox._cycle.hyperparams import find_steering
from mlox._utils.tree import STANDARD_PROMOTION
from mlox._utils.types import Batches, State
from mlox.solvers import System


class Measured(NamedTuple):
    """The figures of a check, and what they cost.

    Attributes:
        figures: The figures.
        costs: The cost of each measurement that was made, in gradients.
        left: The cost of each that the budget did not afford.
    """

    figures: Figures
    costs: dict[Part, int]
    left: dict[Part, int]


def measure(
    setting: Setting, state: State, batches: Batches, budget: float, seed: int
) -> Measured:
    """Measure a hypergradient."""
    own = jax.jit(setting.arrive)(state, batches)
    with float64("check", setting.name), STANDARD_PROMOTION():
        wide = Experiment(
            setting, cast_state(state, jnp.float64), cast(batches, jnp.float64)
        )
        sizes = count_sizes(wide, own)
        price = prices(sizes)
        made, left = afford(price, wanted_parts(wide, own), budget)
        steps = afford_steps(sizes, made, budget)
        figures = measure_parts(wide, made, steps, seed)
        precision = None
        if Part.PRECISION in made:
            precision = compare_precision(wide, own, state)
    differences = dataclasses.replace(figures.differences, precision=precision)
    figures = dataclasses.replace(
        figures,
        differences=differences,
        finite=is_finite(own.gradient),
        double=is_double(state),
        single=is_single(state),
    )
    return Measured(figures, {p: price[p] for p in made}, {p: price[p] for p in left})


def count_sizes(experiment: Experiment, own: Arrival) -> Sizes:
    """Return what the costs of measurements depend on."""
    setting = experiment.setting
    graph = setting.plan.graph
    products = [
        int(np.max(np.asarray(x)))
        for key, x in own.metrics.items()
        if key.endswith("/iterations")
    ]
    return Sizes(
        steps=sum(setting.steps(n) for n in graph.names_below(setting.layer)),
        unknowns=experiment.unknowns,
        samples=experiment.samples,
        problems=1 + len(setting.movers),
        directions=count_directions(as_vector(own.gradient).size),
        products=sum(products),
    )


def wanted_parts(experiment: Experiment, own: Arrival) -> frozenset[Part]:
    """Return the measurements that make sense for the methods of the answers."""
    setting = experiment.setting
    unrolled = setting.plan.unrolled.intersection(setting.movers)
    parts = {Part.LOSSES, Part.METASMOOTHNESS}
    if all(problem.rng is None for problem in experiment.state.values()):
        parts |= {Part.PRECISION}  # other precisions draw other numbers from a key
    if not unrolled:
        parts |= {Part.SOLVER, Part.LOWER, Part.DIFFERENCES}
        random = experiment.state[setting.name].rng is not None
        if experiment.samples > 1 or random:
            parts |= {Part.NOISE}
    elif len(unrolled) == len(setting.movers) and not setting.held:
        parts |= {Part.PROGRAM}
    if unrolled and differs_from_window(experiment):
        parts |= {Part.WINDOW}
    return frozenset(parts)


def measure_parts(
    experiment: Experiment, parts: Sequence[Part], steps: Steps, seed: int
) -> Figures:
    """Return the figures of the measurements that are made."""
    setting, arrival = experiment.setting, experiment.arrival
    found = Implicit(None, None, None)
    differences = Differences()
    if setting.plan.unrolled.intersection(setting.movers):
        if is_finite(arrival.gradient):
            differences = compare_unrolled(experiment, parts, seed)
    else:
        found = solve_references(experiment, parts, steps)
        differences = compare_implicit(experiment, found, parts, steps, seed)
    figures = Figures(
        name=setting.name,
        finite=is_finite(arrival.gradient),
        lowers=describe_lowers(experiment, found, Part.LOSSES in parts),
        differences=differences,
        direct=not setting.plan.total,
        held=setting.held,
        loss=float(arrival.loss),
    )
    if found.same is not None:
        figures = dataclasses.replace(
            figures,
            gap=float(found.same.gap),
            stationarity=float(found.same.stationarity),
            remaining=None
            if found.solved is None
            else float(found.solved.stationarity),
        )
    if found.solved is not None:
        descent = measure_descent(experiment, found.solved)
        figures = dataclasses.replace(figures, descent=descent)
    if Part.NOISE in parts:
        figures = dataclasses.replace(figures, noise=measure_noise(experiment, seed))
    if Part.METASMOOTHNESS in parts:
        figures = dataclasses.replace(
            figures, metasmoothness=measure_metasmoothness(experiment, seed)
        )
    if Part.LOSSES in parts:
        figures = measure_losses(experiment, figures, seed)
    return figures


def measure_losses(experiment: Experiment, figures: Figures, seed: int) -> Figures:
    """Return the figures with those of the losses and their derivatives."""
    traits = read_losses(experiment)
    edges = probe_edges(
        experiment.costs, experiment.slopes, experiment.curved, experiment.params, seed
    )
    figures = dataclasses.replace(
        figures,
        edges=edges,
        flat=find_flat(experiment, edges),
        changes=find_changing(experiment),
        mixing=measure_mixing(experiment, seed) if traits[figures.name].norms else 0.0,
        custom=frozenset(n for n, t in traits.items() if t.custom),
        narrow=frozenset(n for n, t in traits.items() if t.narrow),
        sampled=frozenset(n for n, t in traits.items() if t.sampled),
        jumps=measure_jumps(experiment, Quantity.VALUE, seed),
    )
    if is_suspicious(figures):
        kinks = measure_jumps(experiment, Quantity.SLOPE, seed)
        figures = dataclasses.replace(figures, kinks=kinks)
    return figures


def is_suspicious(figures: Figures) -> bool:
    """Return whether something is off that a loss which jumps would explain."""
    d = figures.differences
    errors = [x.error for x in (d.loss, d.program) if x is not None]
    wrong = any(not e < WRONG for e in errors)
    # Newton's method converges on a smooth loss.
    return wrong or not figures.converged or any(e.is_wrong for e in figures.edges)


def measure_metasmoothness(experiment: Experiment, seed: int) -> float | None:
    """Return the metasmoothness of the window."""
    params = experiment.params[experiment.name]

    def train(params: Any) -> np.ndarray:
        after = experiment.train(params).state
        return np.concatenate(
            [as_vector(after[n].params) for n in experiment.setting.movers]
        )

    directions = choose_directions(params, seed, params)[:3]
    return metasmoothness(train, params, directions, 0.01 * scale_of(params))


def compare_precision(
    experiment: Experiment, own: Arrival, state: State
) -> Distance | None:
    """Compare the configured hypergradient in its own and in another precision."""
    wide = as_vector(experiment.arrival.gradient)
    if not is_double(state):
        return compare_vectors(as_vector(own.gradient), wide)
    low = cast_state(state, jnp.float32), cast(experiment.batches, jnp.float32)
    try:
        found = jax.jit(experiment.setting.arrive)(*low)
    except (TypeError, ValueError):  # a function of the user's returns float64
        return None
    return compare_vectors(as_vector(found.gradient), wide)


def describe_lowers(
    experiment: Experiment, found: Implicit, probe: bool
) -> tuple[Lower, ...]:
    """Return what is known of each answer."""
    setting, arrival = experiment.setting, experiment.arrival
    plan = setting.plan
    blocks = {b.tops[0]: b for b in plan.responses[setting.name].blocks}
    updates = measure_updates(experiment) if probe else {}
    lowers: list[Lower] = []
    for n in setting.movers:
        problem = arrival.state[n]
        metric = {
            key: float(np.max(np.asarray(arrival.metrics[f"{n}/{key}"])))
            for key in ("residual", "iterations")
            if f"{n}/{key}" in arrival.metrics
        }
        values, distance = None, None
        near = found.large or found.same
        if near is not None and n in near.eigenvalues:
            low, high = near.eigenvalues[n]
            values = (float(low), float(high))
        if found.solved is not None:
            here = as_vector(experiment.params[n])
            there = as_vector(found.solved.answers[n])
            size = max(float(np.linalg.norm(there)), 1e-300)
            distance = float(np.linalg.norm(here - there)) / size
        lowers.append(
            Lower(
                name=n,
                method=problem.method,
                unrolled=n in plan.unrolled,
                top=n in blocks,
                definite=n in blocks and blocks[n].system is System.DEFINITE,
                steps=setting.steps(n),
                residual=metric.get("residual"),
                iterations=metric.get("iterations"),
                eigenvalues=values,
                distance=distance,
                restarts=n in plan.unrolled and problem.reset is not None,
                starts=find_starts(plan, n, arrival.state),
                steered=find_steering(plan, n, arrival.state).reads,
                waits=count_waits(problem),
                updates=updates.get(n),
                stateful=bool(jax.tree.leaves(problem.model_state)),
            )
        )
    return tuple(lowers)


def count_waits(problem: Any) -> int:
    """Return how many more steps of a problem those above it wait for."""
    if problem.warmup_steps == 0:
        return 0
    return max(0, problem.warmup_steps + 1 - int(problem.step))
