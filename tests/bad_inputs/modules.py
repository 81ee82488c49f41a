"""Bad inputs of `mlox.flax`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

import mlox
import mlox.flax as adapters

from ..small import SGD, alone_loss, problem
from .case import Case, table

X = jnp.ones((2, 3), jnp.float32)
PARTS: dict[str, Any] = {"name": "net", "tx": SGD}


def cases() -> list[Case]:
    return [*_linen(), *_nnx(), *_states(), *_applied()]


def _linen() -> list[Case]:
    dense = nn.Dense(1)

    def made(variables: Any, module: Any = dense, **parts: Any) -> Any:
        given = {**PARTS, "loss_fn": alone_loss, **parts}
        return adapters.from_linen(module, variables, **given)

    def good() -> Any:
        return dense.init(jax.random.key(0), X)

    return table(
        "flax.from_linen",
        [
            (
                "params for the variables",
                lambda _: made(good()["params"]),
                ValueError,
                "from_linen: variables is .*'kernel'.*'params'",
            ),
            (
                "no variables",
                lambda _: made(None),
                ValueError,
                "from_linen: variables is None.*'params'",
            ),
            (
                "variables without any",
                lambda _: made({}),
                ValueError,
                "from_linen: variables is {}.*'params'",
            ),
            (
                "a function for the module",
                lambda _: made(good(), len),
                TypeError,
                "from_linen: module is <built-in.*nn.Dense",
            ),
            (
                "a class for the module",
                lambda _: made(good(), nn.Dense),
                TypeError,
                "from_linen.*Dense'>.*nn.Dense",
            ),
            (
                "an apply_fn of one's own",
                lambda _: made(good(), apply_fn=len),
                TypeError,
                "from_linen.*apply_fn=.*Problem.create",
            ),
            (
                "no name",
                lambda _: adapters.from_linen(
                    dense, good(), tx=SGD, loss_fn=alone_loss
                ),
                TypeError,
                "'name'",
            ),
            (
                "variables of integers",
                lambda _: made({"params": {"w": jnp.zeros(3, jnp.int32)}}),
                TypeError,
                r"params\['w'\].*int32.*floating",
            ),
        ],
    )


def _nnx() -> list[Case]:
    def made(model: Any, loss: Any = alone_loss, **parts: Any) -> Any:
        return adapters.from_nnx(model, loss_fn=loss, **{**PARTS, **parts})

    def linear() -> Any:
        return nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    return table(
        "flax.from_nnx, to_nnx",
        [
            (
                "a class for the module",
                lambda _: made(nnx.Linear),
                TypeError,
                "from_nnx: model is <class.*Linear'>.*nnx.Linear",
            ),
            (
                "a linen module",
                lambda _: made(nn.Dense(1)),
                TypeError,
                r"from_nnx: model is Dense\(.*nnx.Linear",
            ),
            (
                "an array for the module",
                lambda _: made(X),
                TypeError,
                r"from_nnx: model is float32\[.*nnx.Linear",
            ),
            (
                "no loss",
                lambda _: made(linear(), None),
                TypeError,
                "from_nnx.*loss_fn is None.*batch, ctx",
            ),
            (
                "a loss with two parameters",
                lambda _: made(linear(), lambda m, b: 0.0),
                TypeError,
                r"from_nnx.*loss_fn takes \(m, b\).*ctx",
            ),
            (
                "wrt that matches nothing",
                lambda _: made(linear(), wrt=nnx.LoRAParam),
                ValueError,
                "params are empty.*floating array",
            ),
            (
                "to_nnx of another problem",
                lambda _: adapters.to_nnx(problem()),
                TypeError,
                "to_nnx.*'fit'.*from_nnx",
            ),
            (
                "to_nnx of a dict",
                lambda _: adapters.to_nnx({}),
                TypeError,
                "to_nnx: problem is {}.*Problem",
            ),
        ],
    )


def _states() -> list[Case]:
    params = {"w": jnp.ones(3, jnp.float32)}
    state = TrainState.create(apply_fn=len, params=params, tx=optax.adam(0.1))

    def made(state: Any, **parts: Any) -> Any:
        given = {"name": "net", "loss_fn": alone_loss, **parts}
        return adapters.from_train_state(state, **given)

    return table(
        "flax.from_train_state, to_train_state",
        [
            (
                "a problem for the state",
                lambda _: made(problem()),
                TypeError,
                r"from_train_state: state is Problem\(.*TrainState",
            ),
            (
                "a dict for the state",
                lambda _: made({}),
                TypeError,
                "from_train_state: state is {}.*TrainState",
            ),
            (
                "tx given twice",
                lambda _: made(state, tx=SGD),
                TypeError,
                "from_train_state.*tx=.*Problem.create",
            ),
            (
                "a state of other params",
                lambda _: made(state.replace(params={"w": X})),
                ValueError,
                "'net': opt_state does not fit.*tx.init",
            ),
            (
                "to_train_state of a state",
                lambda _: adapters.to_train_state(state, state),
                TypeError,
                r"to_train_state: problem is TrainState\(.*Problem",
            ),
            (
                "to_train_state of two problems",
                lambda _: adapters.to_train_state(problem(), problem()),
                TypeError,
                r"to_train_state: state is Problem\(.*TrainState",
            ),
            (
                "to_train_state of another problem",
                lambda _: adapters.to_train_state(problem(), state),
                ValueError,
                r"to_train_state.*'fit'.*\['w'\] is float32\[3\].*float32\[2\]",
            ),
        ],
    )


def _applied() -> list[Case]:
    norm = nn.BatchNorm(use_running_average=True)
    variables = norm.init(jax.random.key(0), X)
    net = adapters.from_linen(norm, variables, **PARTS, loss_fn=alone_loss)
    neighbour = mlox.Neighbour(net.params, net.model_state, net.apply_fn, "net")
    other = mlox.Neighbour(net.params, None, len, "other")
    return table(
        "flax.apply",
        [
            (
                "a call without the state",
                lambda _: neighbour(X),
                ValueError,
                r"batch_stats.*mlox.flax.apply\(ctx.name",
            ),
            (
                "a neighbour of another kind",
                lambda _: adapters.apply(other, X),
                TypeError,
                "mlox.flax.apply.*'other'.*from_linen",
            ),
        ],
    )
