"""What `Problem.create` refuses, and how it says so."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox._problem.context import annotate_errors
from mlox._utils.describe import find_non_array, leaf_types, summarize
from mlox._utils.tree import partition, strip_weak_type
from mlox._utils.types import Mask, PyTree
from mlox.methods import Iterative

# The functions of a problem, with what they are called; `apply_fn` is the user's.
LOSS = "(params, batch, ctx) -> loss"
FUNCTIONS = {
    "loss_fn": LOSS,
    "apply_fn": None,
    "sample": "(params, ctx) -> batch",
    "reset": "(params, ctx) -> params",
    "project": "(params) -> params",
    "trainable": "(params) -> bools",
    "meta_trainable": "(params) -> bools",
}
COUNTS = {"unroll_steps": 1, "warmup_steps": 0, "tasks": 1}  # the least of each


def check_parts(name: str, parts: Mapping[str, Any]) -> None:
    """Refuse static parts of a problem that are of a wrong kind: those given."""
    for what, value in parts.items():
        if what == "tasks" and value is None:
            continue
        if what in COUNTS:
            check_steps(name, what, value, COUNTS[what])
            continue
        if what == "tx":
            check_optimizer(name, value)
        elif what == "method":
            check_method(name, value)
        elif value is not None or what == "loss_fn":
            check_function(f"problem {name!r}: {what}", value, FUNCTIONS[what])
        check_hashable(name, what, value)


def check_function(whose: str, value: Any, form: str | None) -> None:
    """Refuse what is no function, or one of another number of arguments.

    Args:
        whose: What it is, for errors.
        value: What was passed.
        form: Its arguments and its value; None for any.
    """
    expected = "a function" + (f" {form}" if form else "")
    if not callable(value):
        raise TypeError(f"{whose} is {summarize(value)}; expected {expected}.")
    if form is None:
        return
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # some of those that are written in C have none
        return
    count = form.split(")")[0].count(",") + 1
    try:
        signature.bind(*range(count))
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise TypeError(f"{whose} takes ({takes}); expected {expected}.") from error


def check_optimizer(name: str, tx: Any) -> None:
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"problem {name!r}: tx is {tx!r}; expected an optax transformation, e.g. "
            "optax.sgd(0.1)."
        )


def check_steps(name: str, what: str, steps: Any, least: int) -> None:
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not whole or steps < least:
        kind = "a positive integer" if least else "an integer, 0 or more"
        raise ValueError(f"problem {name!r}: {what} must be {kind}, got {steps!r}.")


def check_method(name: str, method: Any) -> None:
    known = "mlox.Implicit(mlox.CG()), mlox.Unrolled(), mlox.FiniteDifference()"
    if isinstance(method, str | type):
        raise TypeError(
            f"problem {name!r}: method is {method!r}; expected a value such as {known}."
        )
    if isinstance(method, Iterative):
        return
    lacking = [w for w in ("multiplier", "pairing") if w not in dir(method)]
    if lacking:
        raise TypeError(
            f"problem {name!r}: method {method!r} lacks {' and '.join(lacking)}; "
            f"expected a value such as {known}, or one of your own with the functions "
            "of mlox.Method."
        )


def check_hashable(name: str, what: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"problem {name!r}: {what} is not hashable ({error}). It is a static part "
            "of the compiled step: keep arrays out of it, pass them in params, "
            "model_state or the batch."
        ) from error


def check_params(name: str, params: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(
            f"problem {name!r}: params are empty ({params!r}); expected a pytree with "
            "at least one floating array."
        )
    for path, leaf in leaves:
        where = f"problem {name!r}: params{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
            raise TypeError(
                f"{where} is {leaf!r} of type {type(leaf).__name__}; expected a "
                "floating array. Keep what is not trained out of params."
            )
        array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
        dtype = leaf.dtype if array else jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {dtype}; expected a floating dtype. Convert it, or "
                "keep it in model_state or the batch."
            )


def check_mask(name: str, what: str, mask: Mask | None, params: PyTree) -> None:
    if mask is None:
        return
    with annotate_errors(f"{what} of problem {name!r}", params=params):
        found = mask(params)
    wrong = [m for m in jax.tree.leaves(found) if not isinstance(m, bool | np.bool_)]
    remedy = (
        "Return a pytree of bools like params, or a prefix of one, e.g. "
        "{'head': True, 'body': False}."
    )
    if wrong:
        raise TypeError(
            f"problem {name!r}: {what}(params) holds {wrong[0]!r} of type "
            f"{type(wrong[0]).__name__}; expected bools. {remedy}"
        )
    try:
        kept = partition(found, params)
    except ValueError as error:
        raise ValueError(
            f"problem {name!r}: {what}(params) is {found!r}, which does not fit "
            f"params, {summarize(params)}. {remedy}"
        ) from error
    if not jax.tree.leaves(kept):
        raise ValueError(
            f"problem {name!r}: {what}(params) is False everywhere, so nothing is left."
        )


def check_opt_state(name: str, tx: Any, params: PyTree, opt_state: PyTree) -> None:
    """Refuse a state that the optimizer would not make for these parameters."""
    expected = jax.eval_shape(tx.init, params)
    if wrong := find_non_array(opt_state):
        raise TypeError(
            f"problem {name!r}: opt_state holds something that is no array: {wrong}. "
            "Make it with tx.init(params)."
        )
    found = jax.eval_shape(lambda state: state, opt_state)
    pairs = (leaf_types(found), leaf_types(expected))
    if pairs[0] == pairs[1]:
        pairs = (jax.tree.structure(found), jax.tree.structure(expected))
    if pairs[0] != pairs[1]:
        raise ValueError(
            f"problem {name!r}: opt_state does not fit tx and params. Got {pairs[0]}, "
            f"expected {pairs[1]}. Make it with tx.init(params), also whenever tx or "
            "the shapes of params are replaced; what trainable= freezes has no state: "
            "there, leave opt_state out."
        )


def check_update(name: str, tx: Any, params: PyTree, opt_state: PyTree) -> None:
    """Refuse an optimizer that asks for more than gradients, params and the loss."""
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
            f"problem {name!r}: tx cannot update from gradients, params and value=loss "
            f"alone: {error}. Line searches are not supported; leave them out, e.g. by "
            "optax.lbfgs(learning_rate=0.1, linesearch=None)."
        ) from error


def checked_model_state(name: str, given: PyTree) -> PyTree:
    check_model_state(name, given)
    return jax.tree.map(strip_weak_type, given)


def check_model_state(name: str, given: PyTree) -> None:
    if wrong := find_non_array(given):
        raise TypeError(
            f"problem {name!r}: model_state holds something that is no array: {wrong}. "
            "Expected a pytree of arrays, or None."
        )


def checked_loss_scale(name: str, given: Any) -> Any:
    """Refuse what is no scale, and make arrays of its numbers."""
    if given is None:
        return None
    check_loss_scale(name, given)
    return given.replace(
        fin_steps=jnp.asarray(given.fin_steps, jnp.int32),
        scale=jnp.asarray(given.scale, jnp.float32),
    )


def check_loss_scale(name: str, given: Any) -> None:
    if given is None:
        return
    # Imported here, as it takes long and few need it.
    from flax.training.dynamic_scale import DynamicScale

    if not isinstance(given, DynamicScale):
        raise TypeError(
            f"problem {name!r}: loss_scale is {summarize(given)}; expected a "
            "flax.training.dynamic_scale.DynamicScale, or None."
        )


def checked_key(name: str, given: Any) -> jax.Array | None:
    whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if whole and -(2**63) <= given < 2**63:
        return jax.random.key(int(given))
    if given is None:
        return None
    if isinstance(given, jax.Array) and _is_key(given):
        return given
    raise TypeError(
        f"problem {name!r}: rng is {summarize(given)}; expected one PRNG key, e.g. "
        "jax.random.key(0), an integer seed of 64 bits, or None."
    )


def check_counts(name: str, step: Any, rng: Any) -> None:
    """Refuse a step or a key that `replace` was given, and that no step could use."""
    kind = jax.eval_shape(lambda x: x, step) if find_non_array(step) is None else None
    leaf = isinstance(kind, jax.ShapeDtypeStruct)
    if not leaf or kind.shape or not jnp.issubdtype(kind.dtype, jnp.integer):
        raise TypeError(
            f"problem {name!r}: step is {summarize(step)}; expected an int32 scalar, "
            "e.g. jnp.int32(0). Pass engine.step to jax.vmap for several states."
        )
    if rng is not None and not (isinstance(rng, jax.Array) and _is_key(rng)):
        raise TypeError(
            f"problem {name!r}: rng is {summarize(rng)}; expected one PRNG key, e.g. "
            "jax.random.key(0), or None."
        )


def _is_key(given: jax.Array) -> bool:
    if jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        return given.shape == ()
    raw = jax.eval_shape(jax.random.PRNGKey, 0)
    return (given.shape, given.dtype) == (raw.shape, raw.dtype)
