"""A problem: a pure pytree of parameters, optimizer state and loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mlox._problem.context import Context
from mlox._problem.pytree import register_problem
from mlox._problem.summary import show_problem
from mlox._problem.transformation import build_transformation
from mlox._problem.validation import (
    as_key,
    check_at_once,
    check_hyperparams,
    check_mask,
    check_opt_state,
    check_params,
    check_parts,
    check_static,
    check_update,
)
from mlox._utils.fields import check_arrays
from mlox._utils.tree import strip_weak_type
from mlox._utils.types import LossFn, Mask, PyTree
from mlox.methods import Implicit, Loop, Method


# `__init__` checks nothing: JAX makes problems of placeholders instead of arrays, too.
@register_problem
@dataclass(frozen=True, eq=False, kw_only=True, match_args=False, repr=False)
class Problem:
    """One optimization problem with its state; make one with `Problem.create`.

    `Problem.create` checks its arguments and initializes the rest, which the
    constructor does not. `problem.replace` returns a changed copy.

    A problem is a frozen pytree in the shape of Flax's `TrainState`: the arrays are its
    leaves, everything else is static. Its solution, as a function of the problems above
    it, is called its *answer* (the *best response* of the literature).

    Attributes:
        params: The parameters, a pytree of floating arrays.
        opt_state: The state of `tx`.
        model_state: A pytree that the loss may update, such as batch statistics, or
            None.
        rng: The PRNG key from which the key of each step is folded, or None.
        step: The number of optimizer steps so far, an int32 scalar.
        loss_scale: A Flax `DynamicScale`, or None.
        memory: {lower: what the method of the lower keeps between the problem's steps},
            see `mlox.MethodWithMemory`; None if none keeps anything. `engine.init`
            makes it.
        name: The name of the problem.
        tx: The optimizer, any optax transformation.
        loss_fn: The loss, (params, batch, ctx) -> loss.
        apply_fn: (params, *args) -> output, which losses of neighbours call as
            `ctx.name(...)`, or None.
        method: How the problem's answer is differentiated by those above it.
        unroll_steps: The number of its steps per step of its uppers.
        tasks: The size of the leading axis of params, opt_state and model_state, or
            None.
        tasks_at_once: The number of tasks that are computed at a time, or None.
        shared_batches: Whether the tasks share their batches and their keys.
        sample, reset, project, trainable, meta_trainable, warmup_steps, hyperparams:
            See `Problem.create`.

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
    memory: PyTree
    name: str = field(metadata={"static": True})
    tx: optax.GradientTransformation = field(metadata={"static": True})
    loss_fn: LossFn = field(metadata={"static": True})
    apply_fn: Callable[..., Any] | None = field(metadata={"static": True})
    method: Method | Loop = field(metadata={"static": True})
    unroll_steps: int = field(metadata={"static": True})
    tasks: int | None = field(metadata={"static": True})
    tasks_at_once: int | None = field(metadata={"static": True})
    shared_batches: bool = field(metadata={"static": True})
    sample: Callable[..., Any] | None = field(metadata={"static": True})
    reset: Callable[..., Any] | None = field(metadata={"static": True})
    project: Callable[..., Any] | None = field(metadata={"static": True})
    trainable: Mask | None = field(metadata={"static": True})
    meta_trainable: Mask | None = field(metadata={"static": True})
    warmup_steps: int = field(metadata={"static": True})
    hyperparams: Callable[..., Any] | None = field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        *,
        name: str,
        params: PyTree,
        tx: optax.GradientTransformation,
        loss_fn: LossFn,
        apply_fn: Callable[..., Any] | None = None,
        method: Method | Loop | None = None,
        unroll_steps: int = 1,
        tasks: int | None = None,
        tasks_at_once: int | None = None,
        shared_batches: bool = False,
        sample: Callable[[PyTree, Context], PyTree] | None = None,
        reset: Callable[[PyTree, Context], PyTree] | None = None,
        project: Callable[[PyTree], PyTree] | None = None,
        trainable: Mask | None = None,
        meta_trainable: Mask | None = None,
        warmup_steps: int = 0,
        hyperparams: Callable[[Context], Mapping[Any, Any]] | None = None,
        loss_scale: Any = None,
        model_state: PyTree = None,
        rng: jax.Array | int | None = None,
        opt_state: PyTree = None,
    ) -> Problem:
        """Create a problem at step 0, and check its parts.

        Args:
            name: An identifier, such as "classifier": the name of the problem in edges,
                batches and metrics, and in the ctx of its neighbours.
            params: A pytree of floating arrays.
            tx: Any optax transformation. Its update is also given the loss and the
                gradient, as `value` and `grad`, and both as functions of other
                parameters, `value_fn` and `grad_fn`, at the batch, the key and the
                neighbours of the step: plateaus, line searches (`optax.lbfgs()`) and
                `mlox.estimators` use them. What is not called costs nothing.
                `grad_fn` of an upper is its hypergradient at the present answers of
                implicit lowers; it has no `value_fn`.
            loss_fn: (params, batch, ctx) -> a floating scalar, or a dict with it as
                "loss", any metrics, and "model_state" if the problem has one. `ctx` is
                a `mlox.Context`.
            apply_fn: (params, *args) -> output, which losses of neighbours can call as
                `ctx.name(*args)`.
            method: How the answer is differentiated by the problems above, e.g.
                `mlox.Unrolled()`; None means `mlox.Implicit()`.
            unroll_steps: The number of steps per step of the uppers.
            tasks: The number of tasks that the problem stands for, each with its own
                parameters, optimizer state and mutable state; None for a single one.
                All other arguments are for one task, and so is what the functions see:
                `jax.vmap` maps them, and the cost is the sum of the losses. The
                attributes params, opt_state and model_state, and the batches, have a
                leading axis of tasks; so has what neighbours see, unless they have
                tasks, too: then task i sees task i. Metrics are means over the tasks;
                the values of the tasks are in "loss_per_task" and the like.
            tasks_at_once: None to compute all tasks at once, by one `jax.vmap`; k for
                chunks of k tasks, one after the other: whole inner loops, so that the
                memory of a window is that of k tasks. The results are the same up to
                rounding. k divides `tasks`. Problems with the same number of tasks use
                the least k among them.
            shared_batches: Whether all tasks get the same batch, which then has no axis
                of tasks, and the same key in each step (common random numbers): for
                copies of one problem that are compared. What `sample` makes still has
                that axis, as it may depend on the parameters.
            sample: (params, ctx) -> batch, makes the batch of each step inside the
                compiled step, with its own key in ctx.rng: rollouts in an environment,
                synthetic data. No derivative flows through the batch. The problem then
                takes no data.
            reset: (params, ctx) -> params, the start of each inner loop: called
                whenever the nearest problem above has stepped. It may read uppers, such
                as the initialization that MAML learns; `Unrolled` and `Detached`
                differentiate through it. The optimizer state is reset as well.
            project: (params) -> params, the Euclidean projection onto a feasible set,
                after each update; see `optax.projections`. Every method differentiates
                through it: `Unrolled` step by step, and implicit methods by its
                derivative at the answer, along the tangents of the active constraints.
                That takes one gradient, one Hessian-vector product and some products
                with the derivative of `project` more. A function that is no projection
                (one that divides by a norm other than the Euclidean, say) shows in the
                metric "upper/lower/asymmetry".
            trainable: (params) -> a pytree of bools like params, or a prefix of one:
                the parameters to train. The others are frozen, have no optimizer state,
                and are not unknowns of an implicit answer.
            meta_trainable: As `trainable`: the parameters through which uppers
                differentiate. The others are trained, but are constants for uppers.
            warmup_steps: The problems above wait until the problem has made more than
                that many steps.
            hyperparams: (ctx) -> {name: value}, numbers of the optimizer, set before
                each of its steps: learning rates, betas and decays that an upper
                learns. `tx` holds them by `optax.inject_hyperparams`; those that are
                not named stay. {group: {name: value}} names those of a label of
                `optax.partition`, or of a name of `optax.named_chain`. What is learned
                for each step of an inner loop is indexed by ctx.inner_step. `Unrolled`
                differentiates through it; implicit answers do not depend on it.
            loss_scale: A `flax.training.dynamic_scale.DynamicScale` for losses in
                float16: every derivative of the loss is computed at that scale. If a
                gradient of the problem, or of an upper, is not finite, the update is
                skipped and the scale is lowered.
            model_state: A pytree of arrays that the loss reads as ctx.model_state and
                returns updated. It advances once for each step of the problem, never
                in the evaluation of a hypergradient.
            rng: A PRNG key or a seed; None if the loss uses no random numbers.
            opt_state: A state of `tx` to start from; None for a new one.

        Returns:
            The problem.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If an argument has a wrong value.

        Example:
            A rate for each step of an inner loop, learned through the steps:

            >>> import jax.numpy as jnp, optax, mlox
            >>> schedule = mlox.Problem.create(
            ...     name="schedule", params=jnp.full(3, 0.1), tx=optax.sgd(0.01),
            ...     loss_fn=lambda params, batch, ctx: ctx.fit.params ** 2)
            >>> fit = mlox.Problem.create(
            ...     name="fit", params=jnp.ones(()), unroll_steps=3,
            ...     tx=optax.inject_hyperparams(optax.sgd)(0.1), method=mlox.Unrolled(),
            ...     hyperparams=lambda ctx: {
            ...         "learning_rate": ctx.schedule.params[ctx.inner_step]},
            ...     loss_fn=lambda params, batch, ctx: params ** 2)
            >>> engine = mlox.Engine(
            ...     [schedule, fit], {"schedule": ["fit"]}, {"fit": ["schedule"]})
            >>> _, gradient = engine.hypergradient(
            ...     engine.init(), {"schedule": None, "fit": None}, "schedule")
            >>> [round(float(slope), 3) for slope in gradient]
            [-1.311, -1.311, -1.311]
        """
        static: dict[str, Any] = {
            "name": name,
            "loss_fn": loss_fn,
            "tx": tx,
            "method": Implicit() if method is None else method,
            "unroll_steps": unroll_steps,
            "tasks": tasks,
            "tasks_at_once": tasks_at_once,
            "shared_batches": shared_batches,
            "warmup_steps": warmup_steps,
            "apply_fn": apply_fn,
            "sample": sample,
            "reset": reset,
            "project": project,
            "trainable": trainable,
            "meta_trainable": meta_trainable,
            "hyperparams": hyperparams,
        }
        check_static(name, static)
        check_at_once(name, tasks, tasks_at_once)
        check_params(name, params)
        check_parts(name, {"loss_scale": loss_scale})
        check_arrays(f"problem {name!r}: model_state", model_state)
        params, model_state = jax.tree.map(strip_weak_type, (params, model_state))
        check_mask(name, "trainable", trainable, params)
        check_mask(name, "meta_trainable", meta_trainable, params)
        optimizer = build_transformation(tx, trainable, None)
        if opt_state is None:
            opt_state = optimizer.init(params)
        check_opt_state(name, optimizer, params, opt_state)
        check_update(name, optimizer, params, opt_state)
        check_hyperparams(name, hyperparams, opt_state)
        opt_state = jax.tree.map(strip_weak_type, opt_state)
        return cls(
            params=_stack(params, tasks),
            opt_state=_stack(opt_state, tasks),
            model_state=_stack(model_state, tasks),
            rng=as_key(f"problem {name!r}: rng", rng),
            step=jnp.zeros((), jnp.int32),
            loss_scale=_as_arrays(loss_scale),
            memory=None,
            **static,
        )

    def replace(self, **changes: Any) -> Problem:
        """Return a copy with some attributes changed; the original does not change.

        Args:
            **changes: New values by attribute. Arrays are checked by the next step.

        Returns:
            The changed copy.

        Raises:
            TypeError: If an attribute does not exist, or a static one is of the wrong
                kind.
            ValueError: If a static attribute has a wrong value.
        """
        static = {f.name: bool(f.metadata) for f in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - set(static)):
            raise TypeError(
                f"problem {self.name!r}: replace got {unknown[0]!r}; expected one of "
                f"the attributes {', '.join(static)}."
            )
        check_static(self.name, {n: x for n, x in changes.items() if static[n]})
        changed = dataclasses.replace(self, **changes)
        check_at_once(self.name, changed.tasks, changed.tasks_at_once)
        masks = {"trainable", "meta_trainable"}.intersection(changes)
        for part in sorted(masks):
            check_mask(self.name, part, changes[part], _first(changed))
        return changed

    def __repr__(self) -> str:
        return show_problem(vars(self))


def _stack(tree: PyTree, tasks: int | None) -> PyTree:
    """Return a pytree with a leading axis of tasks, if there are any."""
    if tasks is None:
        return tree
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape)), tree)


def _first(problem: Problem) -> PyTree:
    """Return the params that the functions of a problem see: those of one task."""
    return jax.tree.map(lambda x: x if problem.tasks is None else x[0], problem.params)


def _as_arrays(loss_scale: Any) -> Any:
    """Return a loss scale with arrays instead of numbers, for the carry of a scan."""
    if loss_scale is None:
        return None
    return loss_scale.replace(
        fin_steps=jnp.asarray(loss_scale.fin_steps, jnp.int32),
        scale=jnp.asarray(loss_scale.scale, jnp.float32),
    )
