"""A problem: a pure pytree of parameters, optimizer state and loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox._context import check_name
from mlox.methods import Implicit, Method, Unrolled

PyTree = Any
LossFn = Callable[..., Any]


@functools.partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True, eq=False)
class Problem:
    """One optimization problem of a multilevel program, with its state.

    A frozen pytree in the shape of Flax's `TrainState`: the arrays are its leaves, the
    rest is static. Make one with `Problem.create`, change one with `Problem.replace`.

    Attributes:
        params: A pytree of floating arrays, the unknowns.
        opt_state: The state of `tx`.
        model_state: A pytree that the loss may update (batch statistics), or None.
        rng: The PRNG key from which each step's key is folded, or None.
        step: int32 scalar, the number of optimizer steps so far.
        name: An identifier.
        tx: The optimizer, any optax transformation.
        loss_fn: (params, batch, ctx) -> loss, see `Problem.create`.
        apply_fn: (params, *args) -> output, what calling the problem's view in a
            neighbour's loss does, or None.
        method: How the problem's answer is differentiated by those above it.
        unroll_steps: Its steps per step of its uppers.

    Example:
        >>> import jax.numpy as jnp, optax, mlox
        >>> problem = mlox.Problem.create(
        ...     name="fit",
        ...     params=jnp.zeros(2),
        ...     tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ((params - batch) ** 2).sum(),
        ... )
        >>> problem.replace(params=jnp.ones(2)).params.tolist()
        [1.0, 1.0]
    """

    params: PyTree
    opt_state: PyTree
    model_state: PyTree
    rng: jax.Array | None
    step: jax.Array
    name: str = field(metadata={"static": True})
    tx: optax.GradientTransformation = field(metadata={"static": True})
    loss_fn: LossFn = field(metadata={"static": True})
    apply_fn: Callable[..., Any] | None = field(metadata={"static": True})
    method: Method | Unrolled = field(metadata={"static": True})
    unroll_steps: int = field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        *,
        name: str,
        params: PyTree,
        tx: optax.GradientTransformation,
        loss_fn: LossFn,
        apply_fn: Callable[..., Any] | None = None,
        method: Method | Unrolled | None = None,
        unroll_steps: int = 1,
        model_state: PyTree = None,
        rng: jax.Array | int | None = None,
        opt_state: PyTree = None,
    ) -> Problem:
        """Make a problem, and check it.

        Args:
            name: An identifier, such as "classifier"; the problem's name in edges,
                batches, metrics and in its neighbours' ctx.
            params: A pytree of floating arrays.
            tx: Any optax transformation.
            loss_fn: (params, batch, ctx) -> a floating scalar, or a dict with it as
                "loss", any metrics, and "model_state" if the problem has one. `ctx` is
                a `mlox.Context`.
            apply_fn: (params, *args) -> output, for the neighbours' convenience.
            method: How the answer is differentiated by those above, e.g.
                `mlox.Unrolled()`; None means `mlox.Implicit()`.
            unroll_steps: Steps per step of the uppers, a positive integer.
            model_state: A pytree of arrays that the loss reads as ctx.model_state and
                returns updated. It advances once for each step of the problem, never
                because of a hypergradient.
            rng: A PRNG key, or a seed; None if the loss draws nothing.
            opt_state: A state of `tx` to go on from; None for a fresh one.

        Returns:
            The problem at step 0.

        Raises:
            TypeError: If a part is of the wrong kind.
            ValueError: If a part has a wrong value.
        """
        check_name(name)
        _check_callables(name, loss_fn, apply_fn)
        _check_optimizer(name, tx)
        _check_steps(name, unroll_steps)
        method = Implicit() if method is None else method
        _check_method(name, method)
        static = {"tx": tx, "loss_fn": loss_fn, "apply_fn": apply_fn, "method": method}
        for what, value in static.items():
            _check_hashable(name, what, value)
        _check_params(name, params)
        params = jax.tree.map(_array, params)
        if opt_state is None:
            opt_state = tx.init(params)
        check_opt_state(name, tx, params, opt_state)
        return cls(
            params=params,
            opt_state=jax.tree.map(_array, opt_state),
            model_state=_model_state(name, model_state),
            rng=_key(name, rng),
            step=jnp.zeros((), jnp.int32),
            name=name,
            unroll_steps=unroll_steps,
            **static,
        )

    def replace(self, **changes: Any) -> Problem:
        """Return a copy with some attributes changed.

        Args:
            **changes: New values by attribute.

        Returns:
            The changed copy; the original stays as it is.

        Raises:
            TypeError: If an attribute does not exist.
        """
        return dataclasses.replace(self, **changes)

    def updated(self, grads: PyTree, model_state: PyTree) -> Problem:
        """Return the problem after one optimizer step."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        return self.replace(
            params=optax.apply_updates(self.params, updates),
            # Some transformations promote their state among parameters of mixed dtypes.
            opt_state=jax.tree.map(_like, opt_state, self.opt_state),
            model_state=model_state,
            step=self.step + 1,
        )

    def pull_update(self, gradient: PyTree, cotangent: PyTree) -> PyTree:
        """Return (du/dg)^T cotangent for the optimizer's next update u(g)."""

        def update(gradient: PyTree) -> PyTree:
            return self.tx.update(gradient, self.opt_state, self.params)[0]

        return jax.vjp(update, gradient)[1](cotangent)[0]


def _check_callables(name: str, loss_fn: Any, apply_fn: Any) -> None:
    for what, value in {"loss_fn": loss_fn, "apply_fn": apply_fn}.items():
        if not callable(value) and not (what == "apply_fn" and value is None):
            raise TypeError(
                f"problem {name!r}: {what} is {value!r}; expected a function"
                + (" (params, batch, ctx) -> loss." if what == "loss_fn" else ".")
            )


def _check_optimizer(name: str, tx: Any) -> None:
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(
            f"problem {name!r}: tx is {tx!r}; expected an optax transformation, e.g. "
            "optax.sgd(0.1)."
        )


def _check_steps(name: str, unroll_steps: Any) -> None:
    if (
        not isinstance(unroll_steps, int | np.integer)
        or isinstance(unroll_steps, bool)
        or unroll_steps < 1
    ):
        raise ValueError(
            f"problem {name!r}: unroll_steps must be a positive integer, got "
            f"{unroll_steps!r}."
        )


def _check_method(name: str, method: Any) -> None:
    known = "mlox.Implicit(mlox.CG()), mlox.Unrolled(), mlox.FiniteDifference()"
    if isinstance(method, str | type):
        raise TypeError(
            f"problem {name!r}: method is {method!r}; expected a value such as {known}."
        )
    if isinstance(method, Unrolled):
        return
    lacking = [w for w in ("multiplier", "pairing") if w not in dir(method)]
    if lacking:
        raise TypeError(
            f"problem {name!r}: method {method!r} lacks {' and '.join(lacking)}; "
            f"expected a value such as {known}, or one of your own with the functions "
            "of mlox.Method."
        )


def _check_hashable(name: str, what: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"problem {name!r}: {what} is not hashable ({error}). It is a static part "
            "of the compiled step: keep arrays out of it, pass them in params, "
            "model_state or the batch."
        ) from error


def _check_params(name: str, params: Any) -> None:
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
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {jnp.asarray(leaf).dtype}; expected a floating "
                "dtype. Convert it, or keep it in model_state or the batch."
            )


def check_opt_state(name: str, tx: Any, params: PyTree, opt_state: PyTree) -> None:
    """Refuse a state that the optimizer would not make for these parameters."""
    expected = jax.eval_shape(tx.init, params)
    try:
        found = jax.eval_shape(lambda state: state, opt_state)
    except TypeError as error:
        raise TypeError(
            f"problem {name!r}: opt_state holds something that is no array: {error}. "
            "Make it with tx.init(params)."
        ) from error
    pairs = (described(found), described(expected))
    if pairs[0] == pairs[1]:
        pairs = (jax.tree.structure(found), jax.tree.structure(expected))
    if pairs[0] != pairs[1]:
        raise ValueError(
            f"problem {name!r}: opt_state does not fit tx and params. Got {pairs[0]}, "
            f"expected {pairs[1]}. Make it with tx.init(params), also whenever tx or "
            "the shapes of params are replaced."
        )


def _model_state(name: str, given: PyTree) -> PyTree:
    try:
        return jax.tree.map(_array, given)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"problem {name!r}: model_state holds something that is no array: {error} "
            "Expected a pytree of arrays, or None."
        ) from error


def _key(name: str, given: Any) -> jax.Array | None:
    if given is None:
        return None
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        return jax.random.key(int(given))
    if isinstance(given, jax.Array):
        if jnp.issubdtype(given.dtype, jax.dtypes.prng_key) and given.shape == ():
            return given
        if given.dtype == jnp.uint32 and given.ndim == 1:  # jax.random.PRNGKey
            return given
    raise TypeError(
        f"problem {name!r}: rng is {given!r}; expected one PRNG key, e.g. "
        "jax.random.key(0), an integer seed, or None."
    )


def _array(value: Any) -> jax.Array:
    """Convert to an array of a dtype that stays, or the second step would retrace."""
    array = jnp.asarray(value)
    number = jnp.issubdtype(array.dtype, np.number)  # a PRNG key is none
    return array.astype(array.dtype) if number and array.weak_type else array


def _like(new: Any, old: jax.Array) -> jax.Array:
    array = jnp.asarray(new)
    return array if array.dtype == old.dtype else array.astype(old.dtype)


def described(tree: PyTree) -> Mapping[str, str]:
    """Describe a pytree: the shape and dtype of each leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in cast(list[tuple[Any, Any]], leaves)
    }
