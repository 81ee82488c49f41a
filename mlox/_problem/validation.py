"""Checks of the parts of a problem: when it is created, replaced, and stepped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox._problem.context import RESERVED
from mlox._problem.hyperparams import find_injected
from mlox._utils.describe import annotate_errors, summarize
from mlox._utils.fields import (
    COUNT,
    COUNT_OR_ZERO,
    FLAG,
    FUNCTION,
    Kind,
    check,
    check_function,
    check_like,
    instance_of,
    is_int,
    optional,
)
from mlox._utils.tree import partition
from mlox._utils.types import Mask, PyTree
from mlox.methods import Loop, Method


def is_key(value: Any) -> bool:
    """Return whether a value is one PRNG key, typed or raw."""
    if not isinstance(value, jax.Array):
        return False
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    raw = jax.eval_shape(jax.random.PRNGKey, 0)
    return (value.shape, value.dtype) == (raw.shape, raw.dtype)


def _is_name(value: Any) -> bool:
    valid = isinstance(value, str) and value.isidentifier()
    return valid and value not in RESERVED and not value.startswith("__")


def _is_method(value: Any) -> bool:
    return not isinstance(value, type) and isinstance(value, Loop | Method)


def _is_loss_scale(value: Any) -> bool:
    # Imported here, because the import is slow and rarely needed.
    from flax.training.dynamic_scale import DynamicScale

    return isinstance(value, DynamicScale)


def _is_step(value: Any) -> bool:
    number = isinstance(value, int | np.integer | np.ndarray | jax.Array)
    scalar = number and np.shape(value) == ()
    return scalar and jnp.issubdtype(jnp.result_type(value), jnp.integer)


NAME = (
    "an identifier such as 'classifier', which losses read as ctx.classifier. Names "
    f"that start with two underscores are reserved, and so are {', '.join(RESERVED)}"
)
METHOD = (
    "a value such as mlox.Implicit(mlox.CG()), mlox.Unrolled() or "
    "mlox.FiniteDifference(), or one with the functions multiplier and pairing of "
    "mlox.Method, or pull of mlox.Loop"
)
KEY = Kind("one PRNG key, e.g. jax.random.key(0)", is_key, TypeError)
SEED = Kind(
    "a PRNG key, e.g. jax.random.key(0), a seed of 64 bits or None",
    lambda x: x is None or is_key(x) or (is_int(x) and -(2**63) <= x < 2**63),
    TypeError,
)
KINDS = {
    "name": Kind(NAME, _is_name),
    "tx": instance_of(
        optax.GradientTransformation, "an optax transformation, e.g. optax.sgd(0.1)"
    ),
    "method": Kind(METHOD, _is_method, TypeError),
    "unroll_steps": COUNT,
    "warmup_steps": COUNT_OR_ZERO,
    "tasks": optional(COUNT),
    "tasks_at_once": optional(COUNT),
    "shared_batches": FLAG,
    "apply_fn": optional(FUNCTION),
    "loss_scale": optional(
        Kind("a flax.training.dynamic_scale.DynamicScale", _is_loss_scale, TypeError)
    ),
    "rng": optional(KEY),
    "step": Kind(
        "an int32 scalar, e.g. jnp.int32(0); pass engine.step to jax.vmap for several "
        "states",
        _is_step,
        TypeError,
    ),
}
LOSS = "(params, batch, ctx) -> loss"
FUNCTIONS = {
    "loss_fn": LOSS,
    "sample": "(params, ctx) -> batch",
    "reset": "(params, ctx) -> params",
    "project": "(params) -> params",
    "trainable": "(params) -> bools",
    "meta_trainable": "(params) -> bools",
    "hyperparams": "(ctx) -> {name: value}",
}
BOOL = instance_of(bool | np.bool_, "a bool")


def check_parts(name: str, parts: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError if a part of a problem is not of its kind."""
    for part, value in parts.items():
        label = f"problem {name!r}: {part}"
        if part in KINDS:
            check(label, value, KINDS[part])
        elif value is not None or part == "loss_fn":
            check_function(label, value, FUNCTIONS[part])


def check_at_once(name: str, tasks: int | None, at_once: int | None) -> None:
    """Raise ValueError unless chunks of that many tasks make up all of them."""
    if at_once is None:
        return
    label = f"problem {name!r}: tasks_at_once is {at_once}"
    if tasks is None:
        raise ValueError(
            f"{label}, but the problem has no tasks. Pass tasks= as well, or leave "
            "tasks_at_once out."
        )
    if tasks % at_once:
        fits = [k for k in range(1, tasks + 1) if tasks % k == 0]
        raise ValueError(
            f"{label}, which does not divide tasks={tasks}; expected one of {fits}."
        )


def check_static(name: str, parts: Mapping[str, Any]) -> None:
    """Raise if a static part of a problem is not of its kind, or not hashable."""
    check_parts(name, parts)
    for part, value in parts.items():
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"problem {name!r}: {part} is not hashable ({error}), but is a static "
                "part of the compiled step. Keep arrays in params, model_state or the "
                "batch."
            ) from error


def check_params(name: str, params: Any) -> None:
    """Raise unless params are a non-empty pytree of floating arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            f"problem {name!r}: params are empty ({params!r}); expected a pytree with "
            "at least one floating array."
        )
    for path, leaf in leaves:
        array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        floating = array and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not floating and not isinstance(leaf, float):
            kind = "" if array else f" of type {type(leaf).__name__}"
            raise TypeError(
                f"problem {name!r}: params{jax.tree_util.keystr(path)} is "
                f"{summarize(leaf)}{kind}; expected a floating array. Keep what is not "
                "trained in model_state or the batch."
            )


def check_mask(name: str, part: str, mask: Mask | None, params: PyTree) -> None:
    """Raise unless a mask returns bools that fit params and are not all False."""
    if mask is None:
        return
    label = f"problem {name!r}: {part}(params)"
    hint = "Return a pytree of bools like params, or a prefix of one."
    with annotate_errors(f"{part} of problem {name!r}", params=params):
        bools = mask(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(bools):
        check(f"{label}{jax.tree_util.keystr(path)}", leaf, BOOL, hint)
    try:
        chosen = partition(bools, params)
    except ValueError as error:
        raise ValueError(
            f"{label} is {summarize(bools)}, which does not fit params, "
            f"{summarize(params)}. {hint}"
        ) from error
    if not jax.tree.leaves(chosen):
        raise ValueError(f"{label} is False everywhere, so nothing is left.")


def check_opt_state(name: str, tx: Any, params: PyTree, opt_state: PyTree) -> None:
    """Raise unless a state is like the one that an optimizer makes for params."""
    check_like(
        f"problem {name!r}: opt_state",
        opt_state,
        jax.eval_shape(tx.init, params),
        "tx and params",
        "Make it with tx.init(params), also when tx or the shapes of params are "
        "replaced. With trainable= leave it out, as frozen params have no state.",
        TypeError,
    )


def check_update(name: str, tx: Any, params: PyTree, opt_state: PyTree) -> None:
    """Raise TypeError if an optimizer needs more than an update is given."""
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        return
    try:
        jax.eval_shape(
            lambda p, state: tx.update(p, state, p, value=jnp.zeros(())),
            params,
            opt_state,
        )
    except TypeError as error:
        raise TypeError(
            f"problem {name!r}: tx cannot update from gradients, params, and the extra "
            f"arguments value, grad, value_fn and grad_fn: {error}. Leave out what "
            "needs others, and let an update of your own take **extra_args, as optax "
            "asks."
        ) from error


def check_hyperparams(name: str, hyperparams: Any, opt_state: PyTree) -> None:
    """Raise ValueError if `hyperparams` is given to an optimizer that holds none."""
    if hyperparams is not None and not find_injected(opt_state, masked=False):
        raise ValueError(
            f"problem {name!r}: hyperparams= sets numbers in the state of tx, which "
            "holds none. Make tx by optax.inject_hyperparams, e.g. "
            "optax.inject_hyperparams(optax.adam)(1e-3)."
        )


def as_key(label: str, value: Any) -> jax.Array | None:
    """Return a PRNG key, made from a seed if necessary, or None.

    Raises:
        TypeError: If the value is none of these.
    """
    check(label, value, SEED)
    return jax.random.key(int(value)) if is_int(value) else value
