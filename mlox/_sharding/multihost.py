"""Jobs of several processes: values that they agree on, and points where they wait."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mlox._utils.warn import warn

Scores = Mapping[str, np.ndarray]
Positions = Mapping[str, Any]
PER_PROCESS = "each process"
"""The key of the positions of all processes, in place of the names of problems."""

STATUS = (
    "UNKNOWN: ",
    "INTERNAL: ",
    "UNAVAILABLE: ",
    "ABORTED: ",
    "DEADLINE_EXCEEDED: ",
)
"""What the errors of XLA begin with where another process is gone."""


def mean_over_processes(measure: Callable[[], Scores]) -> dict[str, np.ndarray]:
    """Call a function on every process, and return the means of its scalars.

    Args:
        measure: Returns scalars by name. Device computations in it must be the same on
            every process.

    Returns:
        The scalars if they are equal on all processes, or else their means.

    Raises:
        RuntimeError: If it failed on another process. On the process where it failed,
            its own error is raised.
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
    return _mean_scores(scores)


def _mean_scores(scores: Scores) -> dict[str, np.ndarray]:
    local = np.array([float(score) for score in scores.values()], np.float64)
    # As integers, since JAX would round them to single precision.
    halves = multihost_utils.process_allgather(local.view(np.uint32))
    found = np.ascontiguousarray(halves).view(np.float64)
    same = (found == found[0]) | np.isnan(found) & np.isnan(found[0])
    return {
        name: score if same[:, i].all() else np.asarray(found[:, i].mean())
        for i, (name, score) in enumerate(scores.items())
    }


def on_primary(is_multi_process: bool, work: Callable[[], None]) -> None:
    """Call a function on the first process, while the others wait for it."""
    if is_multi_process:
        multihost_utils.sync_global_devices("before")
    if not is_multi_process or jax.process_index() == 0:
        work()
    if is_multi_process:
        multihost_utils.sync_global_devices("after")


def gather_positions(positions: Positions) -> Positions:
    """Return the positions in the data of all processes: one if they agree."""
    local = np.frombuffer(json.dumps(dict(positions)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([local.size], np.uint32))[:, 0]
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: local.size] = local
    rows = multihost_utils.process_allgather(padded)
    texts = [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]
    if len(set(texts)) == 1:
        return positions
    return {PER_PROCESS: [json.loads(text) for text in texts]}


def select_positions(gathered: Positions) -> Positions:
    """Return the positions of this process from what `gather_positions` returned.

    There may be more or fewer processes than before if all were at the same positions.
    Otherwise those of the first process are returned, with a warning.
    """
    each = gathered.get(PER_PROCESS)
    if each is None:
        return gathered
    if len(each) == jax.process_count():
        return each[jax.process_index()]
    warn(
        f"the checkpoint is of {len(each)} processes whose data were at different "
        f"positions, and this job has {jax.process_count()}: all continue from the "
        "position of the first. Resume with as many processes to continue exactly."
    )
    return each[0]


def is_on_any_process(flag: bool) -> bool:
    """Return whether something is so on any process; all processes call this."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def poll_preemption(dispatch: int) -> bool:
    """Return whether all processes stop after this dispatch, as one got SIGTERM.

    JAX catches the signal, and chooses the next dispatch that no process has passed.
    """
    if not jax.config.values["jax_enable_preemption_service"]:
        return False
    return multihost_utils.reached_preemption_sync_point(dispatch)


def is_device_error(failure: BaseException | None) -> bool:
    """Return whether the devices failed, as they do where another process died."""
    # JAX raises the status of a program that fails later, where its result is read, as
    # a ValueError.
    late = isinstance(failure, ValueError) and str(failure).startswith(STATUS)
    return late or isinstance(failure, jax.errors.JaxRuntimeError)


def annotate_device_error(failure: BaseException) -> BaseException:
    """Add a note to an error of the devices: another process may have died."""
    if is_device_error(failure):
        failure.add_note(
            f"This is process {jax.process_index()} of {jax.process_count()}. If "
            "another one has died, its log says why: start all of them again, with "
            "`resume=True` if there is a checkpoint."
        )
    return failure
