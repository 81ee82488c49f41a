"""Jobs of two levels in JAX: by mlox, by its `Engine.run`, and written by hand.

All sides step by plain SGD. Those by mlox and by hand call one compiled program, of one
cycle or of several.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import _by_hand
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _jobs import Job, Loss, engine
from _side import Side
from peers._given import part_of

import mlox

PyTree = Any
Given = Mapping[str, np.ndarray]
Settings = Mapping[str, Any]
Data = Mapping[str, Sequence[PyTree]]


def make_job(
    given: Given,
    settings: Settings,
    losses: tuple[Loss, Loss],
    batches: Mapping[str, PyTree],
) -> Job:
    """Make a job.

    Args:
        given: "lower params/..." and "upper params/...".
        settings: Rates, the method as Betty's configuration has it, and "loops".
        losses: That of the lower and that of the upper problem.
        batches: Those of the first cycle.
    """

    def params(name: str) -> dict[str, jax.Array]:
        return jax.tree.map(jnp.asarray, part_of(given, f"{name} params/"))

    lower_loss, upper_loss = losses
    return Job(
        name=settings["model"],
        lower_loss=lower_loss,
        upper_loss=upper_loss,
        lower=params("lower"),
        upper=params("upper"),
        lower_tx=optax.sgd(settings["lower rate"]),
        upper_tx=optax.sgd(settings["upper rate"]),
        batches=dict(batches),
        method=_method(**settings["betty"]),
        loops=settings["loops"],
    )


def by_mlox(job: Job, settings: Settings, data: Data | None) -> Side:
    """Make the side by mlox; without data the batches of the job are used again."""
    ours = engine(job)
    if settings.get("run"):
        return _by_run(job, ours, settings["cycles"], data)

    def stacked() -> Iterator[PyTree]:
        iterators = {name: itertools.cycle(part) for name, part in (data or {}).items()}
        while True:
            yield ours.stack(iterators)

    batches = _prepared(stacked(), data) if data else itertools.repeat(job.batches)
    start = ours.init()
    return _stepped(job, ours.step, start, batches, settings["cycles"], _params_of)


def by_hand(job: Job, settings: Settings, data: Data | None) -> Side:
    """Make the side that an expert would write, see `_by_hand`."""

    def stacked() -> Iterator[PyTree]:
        lower, upper = (itertools.cycle(data[name]) for name in ("lower", "upper"))
        while True:
            yield {
                "lower": _stack(itertools.islice(lower, job.unroll)),
                "upper": _stack(itertools.islice(upper, 1)),
            }

    batches = _prepared(stacked(), data) if data else itertools.repeat(job.batches)
    step, start = _by_hand.train_state_step(job), _by_hand.train_states(job)
    params_of = _params_of
    if settings.get("bare arrays"):
        step, start, params_of = _by_hand.step(job), _by_hand.state(job), _itself
    return _stepped(job, step, start, batches, settings["cycles"], params_of)


def _stepped(
    job: Job,
    step: _timing.Step,
    state: PyTree,
    batches: Iterator[PyTree],
    cycles: int,
    params_of: Callable[[PyTree], Mapping[str, jax.Array]],
) -> Side:
    """Make the side of a step, some cycles of which are one program."""
    whole = step if cycles == 1 else _timing.many(step, cycles)
    compiled = _timing.compiled(whole, state, job.batches)

    def advance(steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(_dispatches(steps, cycles)):
            before = metrics
            state, metrics = compiled.program(state, next(batches))
            jax.block_until_ready(before)  # or the batches of all steps wait in line
        jax.block_until_ready((state, metrics))

    return Side(advance, lambda: _arrays(params_of(state)), _about(), compiled.facts)


def _by_run(job: Job, ours: mlox.Engine, cycles: int, data: Data | None) -> Side:
    """Make the side of `Engine.run`, which checks, stacks batches, logs and returns."""
    state = ours.init()
    compiled = _timing.compiled(ours.step, ours.init(), job.batches)
    given = {name: itertools.cycle(part) for name, part in (data or {}).items()}

    def advance(steps: int) -> None:
        nonlocal state
        _dispatches(steps, cycles)
        state, _ = ours.run(
            state,
            given,
            steps,
            cycles_per_dispatch=cycles,
            log_every=steps,
            loggers=(),
            progress=False,
        )
        jax.block_until_ready(state)

    return Side(advance, lambda: _arrays(_params_of(state)), _about(), compiled.facts)


def _prepared(batches: Iterator[PyTree], data: Data) -> Iterator[PyTree]:
    """Repeat the batches of steps, which lie stacked in memory, as Betty's tensors do.

    All problems have as many batches, so that after as many steps the first one comes.
    """
    (count,) = {len(part) for part in data.values()}
    return itertools.cycle([*map(jax.device_put, itertools.islice(batches, count))])


def _dispatches(steps: int, cycles: int) -> int:
    if steps % cycles:
        raise ValueError(f"{steps} steps are no multiple of {cycles}")
    return steps // cycles


def _stack(batches: Iterable[PyTree]) -> PyTree:
    return jax.tree.map(lambda *parts: np.stack(parts), *batches)


def _itself(state: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    return state["upper"]


def _params_of(state: Mapping[str, Any]) -> Mapping[str, jax.Array]:
    return state["upper"].params


def _arrays(params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in params.items()}


def _about() -> dict[str, str]:
    return {"JAX": jax.__version__, "mlox": mlox.__version__}


def _method(type: str, **amounts: Any) -> Any:
    """Return what does the same in mlox as a configuration in Betty."""
    if type == "darts":
        return mlox.FiniteDifference(amounts["darts_alpha"])
    if type == "cg":
        return mlox.Implicit(mlox.CG(amounts["cg_iterations"]))
    return mlox.Implicit(
        mlox.Neumann(amounts["neumann_iterations"], amounts["neumann_alpha"])
    )
