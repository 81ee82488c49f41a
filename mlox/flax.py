"""Adapters between Flax modules or training states and problems.

Import it as `import mlox.flax`: `import mlox` does not load Flax.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.training.train_state import TrainState

from mlox._problem.context import Context, Neighbour
from mlox._problem.loss_output import as_dict
from mlox._problem.problem import Problem
from mlox._utils.describe import show_differences
from mlox._utils.fields import Kind, check, check_function, instance_of
from mlox._utils.types import LossFn, PyTree

LINEN = instance_of(linen.Module, "a module of flax.linen, e.g. nn.Dense(1)")
NNX = instance_of(
    nnx.Module, "a module of flax.nnx, e.g. nnx.Linear(3, 1, rngs=nnx.Rngs(0))"
)
PROBLEM = instance_of(Problem, "a mlox.Problem, e.g. state['fit']")
TRAIN_STATE = instance_of(TrainState, "a flax.training.train_state.TrainState")
VARIABLES = Kind(
    "what module.init returns, a dict with 'params'",
    lambda x: isinstance(x, Mapping) and "params" in x,
)


@dataclass(frozen=True)
class _Module:
    """The `apply_fn` of a problem that was made from a module."""

    collections: tuple[str, ...]
    """Its variables besides parameters, such as "batch_stats"."""

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Apply the module to its parameters alone."""
        if self.collections:
            raise ValueError(
                f"this module has state: {', '.join(self.collections)}. Call it by "
                "mlox.flax.apply(ctx.name, ...), which passes the state on, in place "
                "of ctx.name(...)."
            )
        return self.apply(params, None, *args, **kwargs)

    @abc.abstractmethod
    def apply(self, params: PyTree, state: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Apply the module to its parameters and its other variables."""


@dataclass(frozen=True)
class _Linen(_Module):
    """Apply a linen module."""

    module: linen.Module

    def __hash__(self) -> int:
        """Return a hash, also of modules with lists such as `linen.Sequential`."""
        return hash((type(self.module), self.collections))

    def apply(self, params: PyTree, state: PyTree, *args: Any, **kwargs: Any) -> Any:
        return self.module.apply({"params": params, **(state or {})}, *args, **kwargs)


@dataclass(frozen=True)
class _NNX(_Module):
    """Apply an NNX module, of which the variables of some kind are parameters."""

    graph: nnx.GraphDef[Any]
    kind: Any

    def apply(self, params: PyTree, state: PyTree, *args: Any, **kwargs: Any) -> Any:
        return self.build(params, state)(*args, **kwargs)

    def build(self, params: PyTree, state: PyTree) -> Any:
        """Return a new module of these variables, which shares no arrays with them."""
        rest = () if state is None else (state,)
        return nnx.merge(self.graph, params, *rest, copy=True)


@dataclass(frozen=True)
class _NNXLoss:
    """A loss of an NNX module, which returns the module's other variables as well."""

    apply_fn: _NNX
    loss_fn: LossFn

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> Any:
        model = self.apply_fn.build(params, ctx.model_state)
        returned = self.loss_fn(model, batch, ctx)
        if ctx.model_state is None:
            return returned
        _, _, state = nnx.split(model, self.apply_fn.kind, ...)
        return {**as_dict(returned), "model_state": state}


@dataclass(frozen=True)
class _OfTrainState:
    """The `apply_fn` of a training state, called with parameters alone."""

    apply_fn: Callable[..., Any]

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        return self.apply_fn({"params": params}, *args, **kwargs)


FROM_NNX = instance_of(_NNX, "one that mlox.flax.from_nnx made")
FROM_FLAX = instance_of(_Module, "one that mlox.flax.from_linen or from_nnx made")


def from_linen(
    module: linen.Module, variables: Mapping[str, PyTree], **parts: Any
) -> Problem:
    """Make a problem from a linen module and its variables.

    Args:
        module: It becomes `apply_fn`: in a neighbour's loss `ctx.name(x)` applies it.
        variables: The output of `module.init`: "params", and other collections, which
            become `model_state`; the loss gets them as `ctx.model_state` and returns
            them updated.
        **parts: The other arguments of `mlox.Problem.create`: name, tx, loss_fn, ...

    Raises:
        ValueError: If there are no "params" among the variables.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, mlox.flax, optax
        >>> model = nn.Dense(1)
        >>> fit = mlox.flax.from_linen(
        ...     model, model.init(jax.random.key(0), jnp.ones((1, 3))),
        ...     name="fit", tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx:
        ...         (model.apply({"params": params}, batch) ** 2).mean())
        >>> fit.apply_fn(fit.params, jnp.ones((5, 3))).shape
        (5, 1)
    """
    check("from_linen: variables", variables, VARIABLES)
    check("from_linen: module", module, LINEN)
    _check_parts("from_linen", parts, "params", "apply_fn", "model_state")
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return Problem.create(
        params=variables["params"],
        apply_fn=_Linen(tuple(sorted(rest)), module),
        model_state=rest or None,
        **parts,
    )


def from_nnx(
    model: Any, *, loss_fn: LossFn, wrt: Any = nnx.Param, **parts: Any
) -> Problem:
    """Make a problem from an NNX module.

    Args:
        model: The module; it becomes `apply_fn`, so that in a neighbour's loss
            `ctx.name(x)` calls it. Training does not change it: see `to_nnx`.
        loss_fn: (model, batch, ctx) -> loss or dict, called with the module at its
            current parameters. Its other variables, batch statistics and random
            streams, are the problem's `model_state`, and advance with its steps. With
            `tasks=` each task has random streams of its own, with keys split from those
            of the module.
        wrt: The variables that are trained, a filter of NNX; the others are constant.
        **parts: The other arguments of `mlox.Problem.create`: name, tx, ...

    Example:
        >>> import jax.numpy as jnp, mlox.flax, optax
        >>> from flax import nnx
        >>> model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> fit = mlox.flax.from_nnx(
        ...     model, name="fit", tx=optax.sgd(0.1),
        ...     loss_fn=lambda model, batch, ctx: (model(batch) ** 2).mean())
        >>> fit.apply_fn(fit.params, jnp.ones((5, 3))).shape
        (5, 1)
    """
    _check_parts("from_nnx", parts, "params", "apply_fn", "model_state")
    check("from_nnx: model", model, NNX)
    check_function("from_nnx: loss_fn", loss_fn, "(model, batch, ctx) -> loss")
    graph, params, rest = nnx.split(model, wrt, ...)
    kinds = {type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)}
    apply_fn = _NNX(tuple(sorted(kinds)), graph, wrt)
    problem = Problem.create(
        params=params,
        apply_fn=apply_fn,
        loss_fn=_NNXLoss(apply_fn, loss_fn),
        model_state=rest if apply_fn.collections else None,
        **parts,
    )
    if problem.tasks is None:
        return problem
    streams = jax.tree.map(_split_stream, problem.model_state)
    return problem.replace(model_state=streams)


def _split_stream(leaf: jax.Array) -> jax.Array:
    """Return different keys, if it holds the same PRNG keys for each task."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    tasks = len(leaf)
    split = jax.vmap(lambda key: jax.random.split(key, tasks), out_axes=1)
    return split(leaf[0].ravel()).reshape(leaf.shape)


def to_nnx(problem: Problem) -> Any:
    """Return a new NNX module with the current state of a problem.

    Args:
        problem: The problem, e.g. `state["fit"]` after a run.

    Raises:
        TypeError: If the problem was not made by `from_nnx`.

    Example:
        >>> import jax.numpy as jnp, mlox.flax, optax
        >>> from flax import nnx
        >>> fit = mlox.flax.from_nnx(
        ...     nnx.Linear(3, 1, rngs=nnx.Rngs(0)), name="fit", tx=optax.sgd(0.1),
        ...     loss_fn=lambda model, batch, ctx: (model(batch) ** 2).mean())
        >>> mlox.flax.to_nnx(fit)(jnp.ones((5, 3))).shape
        (5, 1)
    """
    check("to_nnx: problem", problem, PROBLEM)
    apply_fn: Any = problem.apply_fn
    check(f"to_nnx: apply_fn of problem {problem.name!r}", apply_fn, FROM_NNX)
    return apply_fn.build(problem.params, problem.model_state)


def from_train_state(state: TrainState, **parts: Any) -> Problem:
    """Make a problem from a training state, at its step.

    Args:
        state: It gives parameters, optimizer, optimizer state and step.
        **parts: The other arguments of `mlox.Problem.create`: name, loss_fn, ...; for
            batch statistics `model_state={"batch_stats": state.batch_stats}`.

    Example:
        >>> import jax.numpy as jnp, mlox.flax, optax
        >>> from flax.training.train_state import TrainState
        >>> state = TrainState.create(
        ...     apply_fn=lambda variables, x: x @ variables["params"]["w"],
        ...     params={"w": jnp.ones((3, 1))}, tx=optax.adam(0.1))
        >>> fit = mlox.flax.from_train_state(
        ...     state, name="fit",
        ...     loss_fn=lambda params, batch, ctx: ((batch @ params["w"]) ** 2).mean())
        >>> fit.apply_fn(fit.params, jnp.ones((5, 3))).shape
        (5, 1)
    """
    _check_parts("from_train_state", parts, "params", "tx", "opt_state", "apply_fn")
    check("from_train_state: state", state, TRAIN_STATE)
    problem = Problem.create(
        params=state.params,
        tx=state.tx,
        opt_state=state.opt_state,
        apply_fn=_OfTrainState(state.apply_fn),
        **parts,
    )
    return problem.replace(step=jnp.asarray(state.step, jnp.int32))


def to_train_state(problem: Problem, state: TrainState) -> TrainState:
    """Return a training state with the current state of a problem.

    Args:
        problem: The problem, e.g. `state["fit"]` after a run.
        state: The training state from which it was made.

    Returns:
        `state` with the problem's parameters, optimizer state and step.

    Example:
        >>> import jax.numpy as jnp, mlox.flax, optax
        >>> from flax.training.train_state import TrainState
        >>> state = TrainState.create(
        ...     apply_fn=lambda variables, x: x @ variables["params"]["w"],
        ...     params={"w": jnp.ones((3, 1))}, tx=optax.adam(0.1))
        >>> fit = mlox.flax.from_train_state(
        ...     state, name="fit",
        ...     loss_fn=lambda params, batch, ctx: ((batch @ params["w"]) ** 2).mean())
        >>> engine = mlox.Engine([fit])
        >>> after, _ = engine.step(engine.init(), {"fit": jnp.ones((1, 5, 3))})
        >>> int(mlox.flax.to_train_state(after["fit"], state).step)
        1
    """
    check("to_train_state: problem", problem, PROBLEM)
    check("to_train_state: state", state, TRAIN_STATE)
    if jax.tree.structure(problem.params) != jax.tree.structure(state.params):
        raise ValueError(
            f"to_train_state: state does not fit problem {problem.name!r}: params "
            f"{show_differences(state.params, problem.params)}. Pass the state from "
            "which the problem was made."
        )
    return state.replace(
        params=problem.params, opt_state=problem.opt_state, step=problem.step
    )


def apply(neighbour: Neighbour, *args: Any, **kwargs: Any) -> Any:
    """Apply a neighbour that has mutable state, such as batch statistics.

    Args:
        neighbour: `ctx.name`, of a problem that `from_linen` or `from_nnx` made.
        *args: The arguments of its module.
        **kwargs: The same.

    Returns:
        The output of the module; changes of its state are dropped. If the neighbour has
        tasks, that of each task, see `mlox.Neighbour`.

    Raises:
        TypeError: If the neighbour's problem was made in another way.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, mlox.flax, optax
        >>> norm = nn.BatchNorm(use_running_average=True)
        >>> x = jnp.ones((4, 2))
        >>> problem = mlox.flax.from_linen(
        ...     norm, norm.init(jax.random.key(0), x), name="net", tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: params["scale"].sum())
        >>> net = mlox.Neighbour(problem.params, problem.model_state, problem.apply_fn)
        >>> mlox.flax.apply(net, x).shape
        (4, 2)
    """
    apply_fn: Any = neighbour.apply_fn
    label = f"mlox.flax.apply: apply_fn of neighbour {neighbour.name!r}"
    check(label, apply_fn, FROM_FLAX)
    own = (neighbour.params, neighbour.model_state)
    return neighbour.map(apply_fn.apply, *own)(*args, **kwargs)


def _check_parts(adapter: str, parts: Mapping[str, Any], *taken: str) -> None:
    """Raise TypeError if an argument is passed that the adapter sets itself."""
    for name in taken:
        if name in parts:
            raise TypeError(
                f"{adapter} got {name}=, which it takes from its first argument: leave "
                "it out, or use mlox.Problem.create."
            )
