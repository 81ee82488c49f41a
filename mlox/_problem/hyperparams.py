"""Hyperparameters of an optimizer: where its state holds them, and how they are set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox._utils.describe import summarize
from mlox._utils.types import PyTree

# `optax.inject_hyperparams` keeps the numbers that an optimizer was made with in its
# state, and reads them from there in every step. Whoever sets them there steers the
# optimizer, and a derivative flows from the update to what they were computed from.
# Only these entries are set: other leaves of a state may have the same names.

NUMBERS = jax.Array | np.ndarray | np.generic | int | float

Chosen = list[dict[str, jax.Array]]
"""For each state of `optax.inject_hyperparams`, the values that replace entries."""


class Injected(NamedTuple):
    """A state of `optax.inject_hyperparams` within an optimizer's state.

    Attributes:
        groups: The labels of `optax.partition`, and the names of `optax.named_chain`,
            in which it stands.
        state: The state.
    """

    groups: tuple[Any, ...]
    state: Any


def find_injected(opt_state: PyTree, masked: bool) -> list[Injected]:
    """List the states of `optax.inject_hyperparams` in the state of an optimizer.

    `masked` says whether parameters are frozen by `trainable`.
    """
    paths = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_injected)
    # With `trainable` the whole optimizer is a group of a partition of our own.
    own = 1 if masked else 0
    return [
        Injected(_keys(path)[own:], leaf) for path, leaf in paths if _is_injected(leaf)
    ]


def choose_hyperparams(
    name: str, injected: Sequence[Injected], returned: Any
) -> Chosen:
    """Return the values that `hyperparams` has returned, for each injected state.

    Raises:
        TypeError: If something else than a dict of numbers was returned.
        ValueError: If a key is unknown, ambiguous or that of a schedule, or a value has
            another shape or kind of dtype.
    """
    chosen: Chosen = [{} for _ in injected]
    for groups, key, value in _list_entries(name, returned, ()):
        label = _label(name, (*groups, key))
        i = _find_state(label, injected, groups, key)
        chosen[i][key] = _convert(label, value, injected[i].state.hyperparams[key])
    return chosen


def set_hyperparams(opt_state: PyTree, chosen: Chosen) -> PyTree:
    """Return the state of an optimizer with these hyperparameters."""
    values = iter(chosen)

    def set_in(leaf: Any) -> Any:
        if not _is_injected(leaf):
            return leaf
        return leaf._replace(hyperparams={**leaf.hyperparams, **next(values)})

    return jax.tree.map(set_in, opt_state, is_leaf=_is_injected)


def name_hyperparams(injected: Sequence[Injected], chosen: Chosen) -> list[str]:
    """Return the names of chosen hyperparameters, such as "body/learning_rate"."""
    return [
        "/".join(map(str, (*where.groups, key)))
        for where, values in zip(injected, chosen, strict=True)
        for key in values
    ]


def _is_injected(node: Any) -> bool:
    return isinstance(node, optax.schedules.InjectStatefulHyperparamsState)


def _keys(path: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(p.key for p in path if isinstance(p, jax.tree_util.DictKey))


def _label(name: str, keys: tuple[Any, ...]) -> str:
    entry = "".join(f"[{key!r}]" for key in keys)
    return f"problem {name!r}: hyperparams(ctx){entry}"


def _list_entries(
    name: str, returned: Any, groups: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield (groups, key, value) for each hyperparameter that was returned."""
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"{_label(name, groups)} is {summarize(returned)}; expected a dict, "
            "e.g. {'learning_rate': jnp.exp(ctx.upper.params)}."
        )
    for key, value in returned.items():
        if isinstance(value, Mapping):
            yield from _list_entries(name, value, (*groups, key))
        else:
            yield groups, key, value


def _find_state(
    label: str, injected: Sequence[Injected], groups: tuple[Any, ...], key: Any
) -> int:
    """Return the index of the only state in some groups that has a hyperparameter."""
    if not injected:
        raise ValueError(
            f"{label}: tx holds no numbers that can be set. Make it by "
            "optax.inject_hyperparams, e.g. "
            "optax.inject_hyperparams(optax.adam)(1e-3)."
        )
    inside = [i for i, where in enumerate(injected) if set(groups) <= set(where.groups)]
    if not inside:
        known = list(dict.fromkeys(g for where in injected for g in where.groups))
        raise ValueError(
            f"{label}: tx has no group {groups[-1]!r} with hyperparameters; it has "
            f"{known}. Groups are the labels of optax.partition and the names of "
            "optax.named_chain; leave them out if there are none."
        )
    having = [i for i in inside if key in injected[i].state.hyperparams]
    if not having:
        known = dict.fromkeys(k for i in inside for k in injected[i].state.hyperparams)
        raise ValueError(
            f"{label}: tx has no such hyperparameter; it has {list(known)}. An "
            "argument that is None, a bool or in static_args of "
            "optax.inject_hyperparams is none: pass a number for it."
        )
    if len(having) > 1:
        places = [list(injected[i].groups) for i in having]
        raise ValueError(
            f"{label}: {len(having)} optimizers in tx have it, in the groups {places}. "
            f"Say which: {{group: {{{key!r}: ...}}}}, by a label of optax.partition or "
            "a name of optax.named_chain."
        )
    if key in injected[having[0]].state.hyperparams_states:
        raise ValueError(
            f"{label} is given to tx as a schedule, which optax evaluates anew in each "
            "step. Pass a number in its place, which hyperparams then replaces."
        )
    return having[0]


def _convert(label: str, value: Any, like: PyTree) -> jax.Array:
    """Return a value as the array that takes the place of another one."""
    if not isinstance(value, NUMBERS):
        raise TypeError(
            f"{label} is {summarize(value)}; expected a number or an array."
        )
    array, old = jnp.asarray(value), jnp.asarray(like)
    kind = jnp.floating if jnp.issubdtype(old.dtype, jnp.floating) else jnp.integer
    if array.shape != old.shape or not jnp.issubdtype(array.dtype, kind):
        raise ValueError(
            f"{label} is {summarize(array)}; expected {summarize(old)}, as in the "
            "state of tx. Index what is learned for each step by ctx.inner_step."
        )
    return array.astype(old.dtype)
