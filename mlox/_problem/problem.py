"""A problem: a pure pytree of parameters, optimizer state and loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem.context import Context, check_name
from mlox._problem.transformation import build_transformation
from mlox._problem.validation import (
    check_mask,
    check_opt_state,
    check_params,
    check_parts,
    check_update,
    checked_key,
    checked_loss_scale,
    checked_model_state,
)
from mlox._utils.tree import strip_weak_type
from mlox._utils.types import LossFn, Mask, PyTree
from mlox.methods import Implicit, Iterative, Method


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
        tasks: The leading axis of params, opt_state and model_state, or None.
        loss_scale, sample, reset, project, trainable, meta_trainable, warmup_steps: See
            `Problem.create`.

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
    loss_scale: Any
    name: str = field(metadata={"static": True})
    tx: optax.GradientTransformation = field(metadata={"static": True})
    loss_fn: LossFn = field(metadata={"static": True})
    apply_fn: Callable[..., Any] | None = field(metadata={"static": True})
    method: Method | Iterative = field(metadata={"static": True})
    unroll_steps: int = field(metadata={"static": True})
    tasks: int | None = field(metadata={"static": True})
    sample: Callable[..., Any] | None = field(metadata={"static": True})
    reset: Callable[..., Any] | None = field(metadata={"static": True})
    project: Callable[..., Any] | None = field(metadata={"static": True})
    trainable: Mask | None = field(metadata={"static": True})
    meta_trainable: Mask | None = field(metadata={"static": True})
    warmup_steps: int = field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        *,
        name: str,
        params: PyTree,
        tx: optax.GradientTransformation,
        loss_fn: LossFn,
        apply_fn: Callable[..., Any] | None = None,
        method: Method | Iterative | None = None,
        unroll_steps: int = 1,
        tasks: int | None = None,
        sample: Callable[[PyTree, Context], PyTree] | None = None,
        reset: Callable[[PyTree, Context], PyTree] | None = None,
        project: Callable[[PyTree], PyTree] | None = None,
        trainable: Mask | None = None,
        meta_trainable: Mask | None = None,
        warmup_steps: int = 0,
        loss_scale: Any = None,
        model_state: PyTree = None,
        rng: jax.Array | int | None = None,
        opt_state: PyTree = None,
    ) -> Problem:
        """Make a problem, and check it.

        Args:
            name: An identifier, such as "classifier"; the problem's name in edges,
                batches, metrics and in its neighbours' ctx.
            params: A pytree of floating arrays.
            tx: Any optax transformation; its update is also given the loss, `value`,
                by which e.g. `optax.contrib.reduce_on_plateau` goes.
            loss_fn: (params, batch, ctx) -> a floating scalar, or a dict with it as
                "loss", any metrics, and "model_state" if the problem has one. `ctx` is
                a `mlox.Context`.
            apply_fn: (params, *args) -> output, for the neighbours' convenience.
            method: How the answer is differentiated by those above, e.g.
                `mlox.Unrolled()`; None means `mlox.Implicit()`.
            unroll_steps: Steps per step of the uppers, a positive integer.
            tasks: How many tasks the problem stands for, each with parameters, an
                optimizer state and a mutable state of its own; None for just one. All
                other arguments are for one task, and so is what the functions see:
                `jax.vmap` maps them, and the cost is the sum of the losses. params,
                opt_state and model_state of the problem, and its batches, have a
                leading axis of tasks; so has what neighbours see, unless they have
                tasks, too: then task i sees task i. Metrics are means over the tasks,
                besides "loss_per_task" and the like, [tasks].
            sample: (params, ctx) -> batch, makes the batch of each step inside the
                compiled step, from a key of its own in ctx.rng: rollouts in an
                environment, synthetic data. The batch is a constant: no derivative
                flows through it. The problem then takes no data.
            reset: (params, ctx) -> params, where each inner loop starts: whenever the
                nearest problem above has stepped. It may read uppers (the
                initialization that MAML learns), and `Unrolled` and `Detached`
                differentiate through it. The optimizer starts afresh, too.
            project: params -> params, after each update: onto a feasible set. Unrolling
                differentiates through it; implicit methods do not know of it, and are
                right where it is inactive at the answer.
            trainable: params -> a pytree of bools like params, or a prefix of one: what
                is trained. The rest is frozen, has no optimizer state, and is no
                unknown of an implicit answer.
            meta_trainable: The same, for what uppers see a derivative through: the rest
                of the answer is trained, but taken as a constant from above.
            warmup_steps: Those above wait until the problem has made more steps than
                these.
            loss_scale: A `flax.training.dynamic_scale.DynamicScale` for losses in
                float16: every derivative of the loss is computed at that scale. Where a
                gradient, its own or that of an upper, is not finite, the update is left
                out and the scale is lowered.
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
        method = Implicit() if method is None else method
        static = {
            "loss_fn": loss_fn,
            "tx": tx,
            "method": method,
            "unroll_steps": unroll_steps,
            "tasks": tasks,
            "warmup_steps": warmup_steps,
            "apply_fn": apply_fn,
            "sample": sample,
            "reset": reset,
            "project": project,
            "trainable": trainable,
            "meta_trainable": meta_trainable,
        }
        check_parts(name, static)
        check_params(name, params)
        params = jax.tree.map(strip_weak_type, params)
        for what, mask in (
            ("trainable", trainable),
            ("meta_trainable", meta_trainable),
        ):
            check_mask(name, what, mask, params)
        optimizer = build_transformation(tx, trainable, None)
        if opt_state is None:
            opt_state = optimizer.init(params)
        check_opt_state(name, optimizer, params, opt_state)
        check_update(name, optimizer, params, opt_state)
        opt_state = jax.tree.map(strip_weak_type, opt_state)
        model_state = checked_model_state(name, model_state)
        return cls(
            params=_repeated(params, tasks),
            opt_state=_repeated(opt_state, tasks),
            model_state=_repeated(model_state, tasks),
            rng=checked_key(name, rng),
            step=jnp.zeros((), jnp.int32),
            loss_scale=checked_loss_scale(name, loss_scale),
            name=name,
            **static,
        )

    def replace(self, **changes: Any) -> Problem:
        """Return a copy with some attributes changed.

        Args:
            **changes: New values by attribute.

        Returns:
            The changed copy; the original stays as it is. Its arrays are checked by the
            next step.

        Raises:
            TypeError: If an attribute does not exist, or one that is no array is of a
                wrong kind.
            ValueError: If such a one has a wrong value.
        """
        static = {f.name: bool(f.metadata) for f in dataclasses.fields(self)}
        unknown = sorted(set(changes) - set(static))
        if unknown:
            raise TypeError(
                f"problem {self.name!r}: replace got {unknown[0]!r}, which is no "
                f"attribute; there are {', '.join(static)}."
            )
        if "name" in changes:
            check_name(changes["name"])
        parts = {n: x for n, x in changes.items() if static[n] and n != "name"}
        check_parts(self.name, parts)
        return dataclasses.replace(self, **changes)


def _repeated(tree: PyTree, tasks: int | None) -> PyTree:
    if tasks is None:
        return tree
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape)), tree)
