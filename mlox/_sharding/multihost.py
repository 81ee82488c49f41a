"""Several processes of one job: what they must agree on, or wait for each other."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

Scores = Mapping[str, np.ndarray]
Positions = Mapping[str, Any]
EACH = "each process"


def agreed(measure: Callable[[], Scores]) -> dict[str, np.ndarray]:
    """Call a function on every process, and return what all of them go by.

    Args:
        measure: Returns scalars by name. Device computations in it must be the same on
            every process.

    Returns:
        The scalars; where processes differ, the mean.

    Raises:
        RuntimeError: If it failed on another process; its own error on the one where
            it failed.
        ValueError: If the names differ.
    """
    failure, scores = None, {}
    try:
        scores = measure()
    except Exception as error:  # raised below, once the other processes know
        failure = error
    names = zlib.crc32("\n".join(scores).encode())
    report = np.array([failure is not None, names, len(scores)], np.uint32)
    reports = multihost_utils.process_allgather(report)
    if failure is not None:
        raise failure
    if reports[:, 0].any():
        raise RuntimeError(
            f"it failed on process {int(reports[:, 0].argmax())}, whose log says why."
        )
    if (reports != report).any():
        raise ValueError(
            f"`validation` returned {sorted(scores)} on process {jax.process_index()}, "
            "and other names on another one. Return the same names on every process."
        )
    return _means(scores)


def _means(scores: Scores) -> dict[str, np.ndarray]:
    own = np.array([float(score) for score in scores.values()], np.float64)
    # As integers, since JAX would round them to single precision.
    halves = multihost_utils.process_allgather(own.view(np.uint32))
    found = np.ascontiguousarray(halves).view(np.float64)
    same = (found == found[0]) | np.isnan(found) & np.isnan(found[0])
    return {
        name: score if same[:, i].all() else np.asarray(found[:, i].mean())
        for i, (name, score) in enumerate(scores.items())
    }


def alone(spans: bool, work: Callable[[], None]) -> None:
    """Let the first process do something once all have come here, and wait for it.

    Args:
        spans: Whether there are several processes.
        work: What to do.
    """
    if spans:
        multihost_utils.sync_global_devices("before")
    if not spans or jax.process_index() == 0:
        work()
    if spans:
        multihost_utils.sync_global_devices("after")


def shared(positions: Positions) -> Positions:
    """Return where the data of all processes are, for a checkpoint.

    Args:
        positions: By the names of problems, on this process.

    Returns:
        The same, if it is so on every process; else those of each process.
    """
    own = np.frombuffer(json.dumps(dict(positions)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([own.size], np.uint32))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    texts = [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
    if len(set(texts)) == 1:
        return positions
    return {EACH: [json.loads(text) for text in texts]}


def own(positions: Positions) -> Positions:
    """Return where the data of this process go on, as `shared` has kept it.

    The processes may be more or fewer than before if all were at the same position.
    Otherwise that of the first one is taken, with a warning.
    """
    each = positions.get(EACH)
    if each is None:
        return positions
    if len(each) == jax.process_count():
        return each[jax.process_index()]
    warnings.warn(
        f"the checkpoint is of {len(each)} processes whose data were at different "
        f"positions, and this job has {jax.process_count()}: all go on from the "
        "position of the first. Resume with as many processes to go on exactly.",
        stacklevel=2,
    )
    return each[0]


def reached_stop(dispatch: int) -> bool:
    """Say whether all processes stop after this dispatch, since one got SIGTERM.

    JAX notes the signal, and chooses the next dispatch that none has passed.
    """
    if not jax.config.values["jax_enable_preemption_service"]:
        return False
    return multihost_utils.reached_preemption_sync_point(dispatch)


def is_of_devices(failure: BaseException | None) -> bool:
    """Say whether the devices have failed, as they do where another process died."""
    return isinstance(failure, jax.errors.JaxRuntimeError)


def explained(failure: BaseException) -> BaseException:
    """Say of an error of the devices what may be behind it in a job of several."""
    if is_of_devices(failure):
        failure.add_note(
            f"This is process {jax.process_index()} of {jax.process_count()}. If "
            "another one has died, its log says why: start all of them again, with "
            "`resume=True` if there is a checkpoint."
        )
    return failure
