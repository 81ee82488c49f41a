"""Adapters: Flax modules and training states to problems, and back.

Imported by itself, `import mlox.flax`: mlox as such does not load Flax.
"""

from __future__ import annotations

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
from mlox._utils.describe import summarize
from mlox._utils.fields import check_function
from mlox._utils.types import PyTree

LossFn = Callable[[Any, PyTree, Context], Any]


@dataclass(frozen=True)
class _Linen:
    """Apply a linen module: (params, *args) -> output, the `apply_fn` of a problem.

    Attributes:
        module: The module.
        collections: The names of its other collections, such as "batch_stats".
    """

    module: linen.Module
    collections: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """Hash modules that hold lists, too, such as `linen.Sequential`."""
        return hash((type(self.module), self.collections))

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Apply the module to its parameters alone."""
        _check_stateless(self.collections)
        return self.module.apply({"params": params}, *args, **kwargs)

    def stateful(self, params: PyTree, state: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Apply the module to its parameters and its other collections."""
        return self.module.apply({"params": params, **(state or {})}, *args, **kwargs)


@dataclass(frozen=True)
class _NNX:
    """Apply an NNX module: (params, *args) -> output, the `apply_fn` of a problem.

    Attributes:
        graph: The module without its arrays.
        kind: Which variables are parameters.
        collections: The types of the other variables.
    """

    graph: nnx.GraphDef[Any]
    kind: Any
    collections: tuple[str, ...] = ()

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Call the module with its parameters alone."""
        _check_stateless(self.collections)
        return self.merged(params, None)(*args, **kwargs)

    def stateful(self, params: PyTree, state: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Call the module with its parameters and its other variables."""
        return self.merged(params, state)(*args, **kwargs)

    def merged(self, params: PyTree, state: PyTree) -> Any:
        """Make the module of its arrays; another one, the arrays are not shared."""
        rest = () if state is None else (state,)
        return nnx.merge(self.graph, params, *rest, copy=True)


@dataclass(frozen=True)
class _NNXLoss:
    """A loss of an NNX module, whose variables advance with the steps.

    Attributes:
        apply_fn: The module.
        loss_fn: (model, batch, ctx) -> loss or dict.
    """

    apply_fn: _NNX
    loss_fn: LossFn

    def __call__(self, params: PyTree, batch: PyTree, ctx: Context) -> Any:
        """Return what the loss returned, and the module's other variables."""
        model = self.apply_fn.merged(params, ctx.model_state)
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


def from_linen(
    module: linen.Module, variables: Mapping[str, PyTree], **parts: Any
) -> Problem:
    """Make a problem of a linen module and its variables.

    Args:
        module: The module; it becomes `apply_fn`, so that in a neighbour's loss
            `ctx.name(x)` applies it.
        variables: What `module.init` returned: "params", and other collections, which
            become the problem's `model_state`: the loss gets them as
            `ctx.model_state` and returns them updated.
        **parts: The other arguments of `mlox.Problem.create`: name, tx, loss_fn, ...

    Returns:
        The problem.

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
    if not isinstance(variables, Mapping) or "params" not in variables:
        held = sorted(variables) if isinstance(variables, Mapping) else variables
        raise ValueError(
            f"from_linen got variables with {held}; expected what module.init returns, "
            "a dict with 'params'."
        )
    if not isinstance(module, linen.Module):
        raise TypeError(
            f"from_linen got {summarize(module)} of type {type(module).__name__}; "
            "expected a module of flax.linen, e.g. nn.Dense(1)."
        )
    _check_free("from_linen", parts, "params", "apply_fn", "model_state")
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return Problem.create(
        params=variables["params"],
        apply_fn=_Linen(module, tuple(sorted(rest))),
        model_state=rest or None,
        **parts,
    )


def from_nnx(
    model: Any, *, loss_fn: LossFn, wrt: Any = nnx.Param, **parts: Any
) -> Problem:
    """Make a problem of an NNX module.

    Args:
        model: The module; it becomes `apply_fn`, so that in a neighbour's loss
            `ctx.name(x)` calls it. It stays as it is: see `to_nnx`.
        loss_fn: (model, batch, ctx) -> loss or dict, called with the module at its
            present parameters. Its other variables, batch statistics and random
            streams, are the problem's `model_state`, and advance with its steps.
        wrt: Which variables are trained, a filter of NNX; the rest is held.
        **parts: The other arguments of `mlox.Problem.create`: name, tx, ...

    Returns:
        The problem.

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
    _check_free("from_nnx", parts, "params", "apply_fn", "model_state")
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"from_nnx got {summarize(model)} of type {type(model).__name__}; expected "
            "a module of flax.nnx, e.g. nnx.Linear(3, 1, rngs=nnx.Rngs(0))."
        )
    check_function("from_nnx: loss_fn", loss_fn, "(model, batch, ctx) -> loss")
    graph, params, rest = nnx.split(model, wrt, ...)
    kinds = (type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest))
    apply_fn = _NNX(graph, wrt, tuple(sorted(set(kinds))))
    return Problem.create(
        params=params,
        apply_fn=apply_fn,
        loss_fn=_NNXLoss(apply_fn, loss_fn),
        model_state=rest if apply_fn.collections else None,
        **parts,
    )


def to_nnx(problem: Problem) -> Any:
    """Return the NNX module of a problem that `from_nnx` made, at its present state.

    Args:
        problem: The problem, e.g. `state["fit"]` after a run.

    Returns:
        A new module.

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
    _check_problem("to_nnx", problem)
    if not isinstance(problem.apply_fn, _NNX):
        raise TypeError(
            f"to_nnx got problem {problem.name!r}, whose apply_fn is "
            f"{problem.apply_fn!r}; expected one that mlox.flax.from_nnx made."
        )
    return problem.apply_fn.merged(problem.params, problem.model_state)


def from_train_state(state: TrainState, **parts: Any) -> Problem:
    """Make a problem of a training state, at the step that it has reached.

    Args:
        state: Parameters, optimizer, its state and the step are taken over.
        **parts: The other arguments of `mlox.Problem.create`: name, loss_fn, ...;
            `model_state={"batch_stats": state.batch_stats}` if it has such.

    Returns:
        The problem.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, mlox.flax, optax
        >>> from flax.training.train_state import TrainState
        >>> model = nn.Dense(1)
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
        >>> state = TrainState.create(
        ...     apply_fn=model.apply, params=params, tx=optax.adam(0.1))
        >>> fit = mlox.flax.from_train_state(
        ...     state, name="fit", loss_fn=lambda params, batch, ctx:
        ...         (model.apply({"params": params}, batch) ** 2).mean())
        >>> fit.apply_fn(fit.params, jnp.ones((5, 3))).shape
        (5, 1)
    """
    _check_free("from_train_state", parts, "params", "tx", "opt_state", "apply_fn")
    _check_train_state("from_train_state", state)
    problem = Problem.create(
        params=state.params,
        tx=state.tx,
        opt_state=state.opt_state,
        apply_fn=_OfTrainState(state.apply_fn),
        **parts,
    )
    return problem.replace(step=jnp.asarray(state.step, jnp.int32))


def to_train_state(problem: Problem, state: TrainState) -> TrainState:
    """Return a training state at the present state of a problem.

    Args:
        problem: The problem, e.g. `state["fit"]` after a run.
        state: The training state from which it was made.

    Returns:
        `state` with the problem's parameters, optimizer state and step.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, mlox.flax, optax
        >>> from flax.training.train_state import TrainState
        >>> model = nn.Dense(1)
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
        >>> state = TrainState.create(
        ...     apply_fn=model.apply, params=params, tx=optax.adam(0.1))
        >>> fit = mlox.flax.from_train_state(
        ...     state, name="fit", loss_fn=lambda params, batch, ctx:
        ...         (model.apply({"params": params}, batch) ** 2).mean())
        >>> engine = mlox.Engine([fit])
        >>> after, _ = engine.step(engine.init(), {"fit": jnp.ones((1, 5, 3))})
        >>> int(mlox.flax.to_train_state(after["fit"], state).step)
        1
    """
    _check_problem("to_train_state", problem)
    _check_train_state("to_train_state", state)
    if jax.tree.structure(problem.params) != jax.tree.structure(state.params):
        raise ValueError(
            f"to_train_state got problem {problem.name!r} with params "
            f"{summarize(problem.params)}, and a training state with "
            f"{summarize(state.params)}; expected the state from which it was made."
        )
    return state.replace(
        params=problem.params, opt_state=problem.opt_state, step=problem.step
    )


def apply(neighbour: Neighbour, *args: Any, **kwargs: Any) -> Any:
    """Apply a neighbour that has mutable state, such as batch statistics.

    Args:
        neighbour: `ctx.name`, of a problem that `from_linen` or `from_nnx` made.
        *args: What its module is called with.
        **kwargs: The same.

    Returns:
        What the module returns; state that it changes is dropped.

    Raises:
        TypeError: If the neighbour's problem was made otherwise.

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
    if not isinstance(neighbour.apply_fn, _Linen | _NNX):
        raise TypeError(
            f"mlox.flax.apply got neighbour {neighbour.name!r}, whose apply_fn is "
            f"{neighbour.apply_fn!r}; expected one of a problem that "
            "mlox.flax.from_linen or from_nnx made."
        )
    stateful = neighbour.apply_fn.stateful
    return stateful(neighbour.params, neighbour.model_state, *args, **kwargs)


def _check_free(adapter: str, parts: Mapping[str, Any], *taken: str) -> None:
    """Refuse what an adapter takes from elsewhere."""
    for name in taken:
        if name in parts:
            raise TypeError(
                f"{adapter} got {name}=, which it takes from its first argument: leave "
                "it out, or use mlox.Problem.create."
            )


def _check_problem(adapter: str, problem: Any) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{adapter} got a {type(problem).__name__}; expected a mlox.Problem, e.g. "
            "state['fit']."
        )


def _check_train_state(adapter: str, state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"{adapter} got a {type(state).__name__}; expected a "
            "flax.training.train_state.TrainState."
        )


def _check_stateless(collections: tuple[str, ...]) -> None:
    if collections:
        raise ValueError(
            f"this module has state besides its parameters ({', '.join(collections)}). "
            "Call it by mlox.flax.apply(ctx.name, ...), which passes the state on, in "
            "place of ctx.name(...)."
        )
