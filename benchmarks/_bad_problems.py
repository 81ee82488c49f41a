"""Bad inputs of `Problem.create` and `Problem.replace`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _case import Case, of_area
from _small import SGD, ZEROS, problem

import mlox


@dataclasses.dataclass
class Changeable:
    """A loss that cannot be hashed."""

    weight: float = 1.0

    def __call__(self, params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return self.weight * jnp.sum(params**2)


@dataclasses.dataclass(frozen=True)
class HoldsAnArray:
    """A loss with an array among its fields."""

    weights: Any

    def __call__(self, params: Any, batch: Any, ctx: mlox.Context) -> Any:
        return jnp.sum(self.weights * params**2)


def cases() -> list[Case]:
    return [*_parts(), *_arrays(), *_options(), *_replaced()]


def _parts() -> list[Case]:
    return of_area(
        "Problem.create",
        [
            ("a name with a space", lambda _: problem("my fit")),
            ("a name that is no string", lambda _: problem(3)),
            ("a name that ctx needs itself", lambda _: problem("rng")),
            ("no loss", lambda _: problem(loss_fn=None)),
            (
                "a loss with two parameters",
                lambda _: problem(loss_fn=lambda params, batch: 0.0),
            ),
            ("a loss that is unhashable", lambda _: problem(loss_fn=Changeable())),
            (
                "a loss that holds an array",
                lambda _: problem(loss_fn=HoldsAnArray(np.ones(2))),
            ),
            ("a function for tx", lambda _: problem(tx=optax.sgd)),
            ("an optimizer with a line search", lambda _: problem(tx=optax.lbfgs())),
            ("the name of a method", lambda _: problem(method="implicit")),
            ("a method's class", lambda _: problem(method=mlox.Implicit)),
            ("a solver for a method", lambda _: problem(method=mlox.CG())),
            ("unroll_steps=0", lambda _: problem(unroll_steps=0)),
            ("unroll_steps=2.0", lambda _: problem(unroll_steps=2.0)),
            ("warmup_steps=-1", lambda _: problem(warmup_steps=-1)),
            ("tasks=0", lambda _: problem(tasks=0)),
            ("an argument that does not exist", lambda _: problem(lr=0.1)),
            (
                "a required argument left out",
                lambda _: mlox.Problem.create(name="fit", params=ZEROS, tx=SGD),
            ),
        ],
    )


def _arrays() -> list[Case]:
    return of_area(
        "Problem.create: arrays",
        [
            ("params={}", lambda _: problem(params={})),
            (
                "integer params",
                lambda _: problem(params={"w": jnp.zeros(3, jnp.int32)}),
            ),
            ("complex params", lambda _: problem(params=jnp.ones(2, jnp.complex64))),
            ("a string among params", lambda _: problem(params={"w": "zeros"})),
            (
                "shapes for params",
                lambda _: problem(
                    params={"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
                ),
            ),
            ("an array of objects", lambda _: problem(params=np.array([None, 1.0]))),
            ("a string for rng", lambda _: problem(rng="seed")),
            ("two keys", lambda _: problem(rng=jax.random.split(jax.random.key(0)))),
            ("a negative seed beyond 64 bits", lambda _: problem(rng=-(2**70))),
            ("a key of three words", lambda _: problem(rng=jnp.zeros(3, jnp.uint32))),
            ("a string in model_state", lambda _: problem(model_state={"mean": "0"})),
            ("opt_state of Adam for SGD", lambda _: _with_opt_state(ZEROS)),
            (
                "opt_state of other params",
                lambda _: problem(
                    tx=optax.adam(0.1),
                    opt_state=optax.adam(0.1).init(jnp.zeros(3, jnp.float32)),
                ),
            ),
            ("a string for opt_state", lambda _: problem(opt_state="fresh")),
            ("a number for loss_scale", lambda _: problem(loss_scale=1024.0)),
        ],
    )


def _with_opt_state(params: Any) -> mlox.Problem:
    return problem(opt_state=optax.adam(0.1).init(params))


def _options() -> list[Case]:
    return of_area(
        "Problem.create: functions",
        [
            ("an array for apply_fn", lambda _: problem(apply_fn=ZEROS)),
            ("a pytree for trainable", lambda _: problem(trainable={"w": True})),
            ("trainable with numbers", lambda _: problem(trainable=lambda p: 1.0)),
            (
                "trainable of another structure",
                lambda _: problem(params={"w": ZEROS}, trainable=lambda p: {"v": True}),
            ),
            ("trainable nowhere", lambda _: problem(trainable=lambda p: False)),
            (
                "trainable that raises",
                lambda _: problem(trainable=lambda p: p["head"]),
            ),
        ],
    )


def _replaced() -> list[Case]:
    return of_area(
        "Problem.replace",
        [
            ("an attribute that does not exist", lambda _: problem().replace(lr=0.1)),
            ("method='sama'", lambda _: problem().replace(method="sama")),
            ("unroll_steps=0", lambda _: problem().replace(unroll_steps=0)),
            ("name='my fit'", lambda _: problem().replace(name="my fit")),
            ("an attribute set", lambda _: _set(problem())),
        ],
    )


def _set(problem: mlox.Problem) -> None:
    problem.params = ZEROS  # type: ignore[misc]
