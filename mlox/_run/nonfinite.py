"""What a run does with a cycle whose numbers are not finite, decided on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp

from mlox._utils.types import State

Counts = dict[str, jax.Array]
Policy = Literal["raise", "skip", "restore"]
CYCLES = "run/nonfinite"


class Guarded(Protocol):
    """What is asked of an engine about the numbers of a cycle: pure functions."""

    def faults(
        self, before: Any, after: Any, metrics: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Say for each problem whether the cycle brought numbers that are not finite.

        Returns:
            Boolean scalars.
        """
        ...

    def gone_back(self, to: Any, after: Any) -> Any:
        """Return an earlier state, with the counts of steps of a later one."""
        ...


def check_policy(policy: Any, saves: bool, problems: Iterable[str]) -> None:
    """Refuse what is no policy, or cannot be followed.

    Args:
        policy: What `run` was given as `on_nonfinite`.
        saves: Whether there is a checkpoint.
        problems: By their names.

    Raises:
        ValueError: If it is another value, "restore" without a checkpoint, or a problem
            has the name of the metric.
    """
    if policy is None:
        return
    if policy not in get_args(Policy):
        raise ValueError(
            f"`on_nonfinite` is {policy!r}; expected 'raise', 'skip', 'restore', or "
            "None to look at nothing."
        )
    if policy == "restore" and not saves:
        raise ValueError(
            "`on_nonfinite` is 'restore', but there is no `checkpoint` to go back to: "
            "pass a mlox.Checkpoint, or on_nonfinite='skip'."
        )
    if "run" in problems:
        raise ValueError(
            f"a problem is called 'run', so its metrics would be mixed with {CYCLES!r} "
            "of `on_nonfinite`: rename the problem."
        )


def counters(problems: Iterable[str], metrics: Iterable[str]) -> Counts:
    """Return the counts of cycles left out, before there is any.

    Args:
        problems: By their names.
        metrics: Their names.

    Returns:
        `run/nonfinite`, and for each problem `<name>/nonfinite`, the cycles in which it
        was at fault; int32 scalars.

    Raises:
        ValueError: If a loss returns a metric of such a name.
    """
    counts = {CYCLES: 0} | {f"{name}/nonfinite": 0 for name in problems}
    for name in set(counts).intersection(metrics):
        raise ValueError(
            f"a loss returns the metric {name!r}, which `on_nonfinite` counts: rename "
            "the metric."
        )
    return {name: jnp.zeros((), jnp.int32) for name in counts}


def guarded(
    engine: Guarded,
    policy: Policy,
    before: State,
    after: State,
    metrics: Mapping[str, jax.Array],
    counts: Counts,
    safe: State,
) -> tuple[State, Counts, jax.Array]:
    """Decide which state follows a cycle; a pure function inside the step.

    Args:
        engine: Says which problems are at fault.
        policy: "raise" keeps the state before the first fault, whatever comes; "skip"
            goes on from the state before; "restore" from the `safe` one. With the
            latter two the steps count, so that the next ones draw other keys.
        before: The state before the cycle.
        after: The state after it.
        metrics: Its metrics.
        counts: The counts so far.
        safe: The state of the last checkpoint.

    Returns:
        The state that follows, the counts, and whether the cycle counts; a scalar.
    """
    faults = engine.faults(before, after, metrics)
    fault = jnp.stack(list(faults.values())).any()
    stopped = counts[CYCLES] > 0 if policy == "raise" else jnp.array(False)
    left_out = {f"{name}/nonfinite": x & ~stopped for name, x in faults.items()}
    left_out[CYCLES] = fault | stopped
    counts = {name: n + left_out[name].astype(n.dtype) for name, n in counts.items()}
    back = before
    if policy != "raise":
        back = engine.gone_back(safe if policy == "restore" else before, after)
    good = ~left_out[CYCLES]
    state = jax.tree.map(lambda a, b: jnp.where(good, a, b), after, back)
    return state, counts, good


def cause(counts: Mapping[str, Any], cycle: int) -> str:
    """Say which problems were at fault.

    Args:
        counts: The counts, fetched.
        cycle: The cycle of the fault.
    """
    found = [name for name, count in counts.items() if count and name != CYCLES]
    guilty = ", ".join(repr(name.removesuffix("/nonfinite")) for name in found)
    return (
        f"the loss or the gradient of {guilty} was not finite in cycle {cycle}. See "
        "its state before, or pass on_nonfinite='skip' to leave such cycles out."
    )
