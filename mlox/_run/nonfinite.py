"""The policy for non-finite cycles, applied on the device."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mlox._utils.fields import check, one_of, optional
from mlox._utils.types import Metrics, State

CYCLES = "run/nonfinite"
NOTE = (
    "{losses} no longer finite: see `on_nonfinite` to stop there, to skip such cycles, "
    "or to go back to a checkpoint"
)


class Policy(enum.Enum):
    """The values of `on_nonfinite`: the state that follows a non-finite cycle.

    RAISE: the state before the first such cycle, until the run fails at the next log
    point. SKIP: the state before the cycle. RESTORE: the state of the last checkpoint.
    With SKIP and RESTORE its steps count, so that the next cycle uses other keys.
    """

    RAISE = "raise"
    SKIP = "skip"
    RESTORE = "restore"


def parse_policy(value: Any) -> Policy | None:
    """Return the policy of a value of `on_nonfinite`, or raise ValueError."""
    choices = one_of(*(policy.value for policy in Policy))
    check("`on_nonfinite`", value, optional(choices))
    return None if value is None else Policy(value)


def zero_counts(problems: Iterable[str], metrics: Iterable[str]) -> Metrics:
    """Return the initial counts `run/nonfinite` and `<name>/nonfinite`, int32.

    Raises:
        ValueError: If a loss returns a metric of such a name.
    """
    names = [CYCLES, *(f"{name}/nonfinite" for name in problems)]
    for name in set(names).intersection(metrics):
        raise ValueError(
            f"a loss returns the metric {name!r}, which `on_nonfinite` counts: rename "
            "the metric."
        )
    return {name: jnp.zeros((), jnp.int32) for name in names}


def apply_policy(
    policy: Policy, nonfinite: Metrics, counts: Metrics, after: State, instead: State
) -> tuple[State, Metrics, jax.Array]:
    """Choose the state that follows a cycle; a pure function inside the step.

    Args:
        policy: With RAISE, the cycles after the first non-finite one are not used.
        nonfinite: For each problem whether the cycle is non-finite; boolean scalars.
        counts: The counts so far.
        after: The state after the cycle.
        instead: The state that follows if the cycle is not used.

    Returns:
        The state that follows, the counts, and whether the cycle is used; a scalar.
    """
    stopped = jnp.array(False)
    if policy is Policy.RAISE:
        stopped = counts[CYCLES] > 0
    unused = {f"{name}/nonfinite": x & ~stopped for name, x in nonfinite.items()}
    unused[CYCLES] = jnp.stack(list(nonfinite.values())).any() | stopped
    counts = {name: n + unused[name].astype(n.dtype) for name, n in counts.items()}
    used = ~unused[CYCLES]
    state = jax.tree.map(lambda a, b: jnp.where(used, a, b), after, instead)
    return state, counts, used


def describe_nonfinite(counts: Mapping[str, Any], cycle: int) -> str:
    """Return a message that names the problems of a non-finite cycle."""
    found = [name for name, count in counts.items() if count and name != CYCLES]
    problems = ", ".join(repr(name.removesuffix("/nonfinite")) for name in found)
    return (
        f"the loss or the gradient of {problems} was not finite in cycle {cycle}. "
        "Inspect the state before it, or pass on_nonfinite='skip' to skip such cycles."
    )
