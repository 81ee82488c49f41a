"""Bad inputs of `mlox.flax`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _case import Case, of_area
from _small import SGD, alone_loss, problem
from flax import nnx
from flax.training.train_state import TrainState

import mlox
import mlox.flax as adapters

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

    return of_area(
        "flax.from_linen",
        [
            ("params for the variables", lambda _: made(good()["params"])),
            ("no variables", lambda _: made(None)),
            ("a class for the module", lambda _: made(good(), nn.Dense)),
            ("an apply_fn of one's own", lambda _: made(good(), apply_fn=len)),
            (
                "no name",
                lambda _: adapters.from_linen(
                    dense, good(), tx=SGD, loss_fn=alone_loss
                ),
            ),
            (
                "variables of integers",
                lambda _: made({"params": {"w": jnp.zeros(3, jnp.int32)}}),
            ),
        ],
    )


def _nnx() -> list[Case]:
    def made(model: Any, loss: Any = alone_loss, **parts: Any) -> Any:
        return adapters.from_nnx(model, loss_fn=loss, **{**PARTS, **parts})

    def linear() -> Any:
        return nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    return of_area(
        "flax.from_nnx, to_nnx",
        [
            ("a class for the module", lambda _: made(nnx.Linear)),
            ("a linen module", lambda _: made(nn.Dense(1))),
            ("no loss", lambda _: made(linear(), None)),
            ("a loss with two parameters", lambda _: made(linear(), lambda m, b: 0.0)),
            ("wrt that matches nothing", lambda _: made(linear(), wrt=nnx.LoRAParam)),
            ("to_nnx of another problem", lambda _: adapters.to_nnx(problem())),
        ],
    )


def _states() -> list[Case]:
    params = {"w": jnp.ones(3, jnp.float32)}
    state = TrainState.create(apply_fn=len, params=params, tx=optax.adam(0.1))

    def made(state: Any, **parts: Any) -> Any:
        given = {"name": "net", "loss_fn": alone_loss, **parts}
        return adapters.from_train_state(state, **given)

    return of_area(
        "flax.from_train_state, to_train_state",
        [
            ("a problem for the state", lambda _: made(problem())),
            ("tx given twice", lambda _: made(state, tx=SGD)),
            ("a state of other params", lambda _: made(state.replace(params={"w": X}))),
            (
                "to_train_state of a state",
                lambda _: adapters.to_train_state(state, state),
            ),
            (
                "to_train_state of another problem",
                lambda _: adapters.to_train_state(problem(), state),
            ),
        ],
    )


def _applied() -> list[Case]:
    norm = nn.BatchNorm(use_running_average=True)
    variables = norm.init(jax.random.key(0), X)
    net = adapters.from_linen(norm, variables, **PARTS, loss_fn=alone_loss)
    neighbour = mlox.Neighbour(net.params, net.model_state, net.apply_fn, "net")
    other = mlox.Neighbour(net.params, None, len, "other")
    return of_area(
        "flax.apply",
        [
            ("a call without the state", lambda _: neighbour(X)),
            ("a neighbour of another kind", lambda _: adapters.apply(other, X)),
        ],
    )
