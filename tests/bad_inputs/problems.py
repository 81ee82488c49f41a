"""Bad inputs of `Problem.create` and `Problem.replace`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

from ..small import SGD, ZEROS, problem
from .case import Case, table


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
    return table(
        "Problem.create",
        [
            (
                "a name with a space",
                lambda _: problem("my fit"),
                ValueError,
                "'my fit'.*identifier",
            ),
            (
                "a name that is no string",
                lambda _: problem(3),
                ValueError,
                "name is 3;.*identifier",
            ),
            (
                "a name that ctx needs itself",
                lambda _: problem("rng"),
                ValueError,
                "'rng'.*[Rr]eserved",
            ),
            (
                "no loss",
                lambda _: problem(loss_fn=None),
                TypeError,
                "loss_fn is None.*batch, ctx",
            ),
            (
                "a loss with two parameters",
                lambda _: problem(loss_fn=lambda params, batch: 0.0),
                TypeError,
                r"loss_fn takes \(params, batch\).*ctx",
            ),
            (
                "a loss that is unhashable",
                lambda _: problem(loss_fn=Changeable()),
                TypeError,
                "loss_fn is not hashable.*Changeable.*model_state",
            ),
            (
                "a loss that holds an array",
                lambda _: problem(loss_fn=HoldsAnArray(np.ones(2))),
                TypeError,
                "loss_fn is not hashable.*ndarray.*model_state",
            ),
            (
                "no optimizer",
                lambda _: problem(tx=None),
                TypeError,
                "tx is None.*optax.sgd",
            ),
            (
                "a function for tx",
                lambda _: problem(tx=optax.sgd),
                TypeError,
                "tx is <function sgd>.*optax.sgd",
            ),
            (
                "an optimizer that asks for a Hessian",
                lambda _: problem(
                    tx=optax.GradientTransformationExtraArgs(
                        optax.identity().init,
                        lambda updates, state, params, *, hessian, **extra: None,
                    )
                ),
                TypeError,
                "tx cannot update.*'hessian'.*Leave out",
            ),
            (
                "the name of a method",
                lambda _: problem(method="implicit"),
                TypeError,
                "method is 'implicit'.*mlox.Implicit",
            ),
            (
                "a method's class",
                lambda _: problem(method=mlox.Implicit),
                TypeError,
                "method is <class.*Implicit'>.*mlox.Implicit",
            ),
            (
                "a solver for a method",
                lambda _: problem(method=mlox.CG()),
                TypeError,
                r"method is CG\(.*multiplier and pairing.*mlox.Method",
            ),
            (
                "unroll_steps=0",
                lambda _: problem(unroll_steps=0),
                ValueError,
                "unroll_steps.*0",
            ),
            (
                "unroll_steps=2.0",
                lambda _: problem(unroll_steps=2.0),
                ValueError,
                r"unroll_steps.*2\.0",
            ),
            (
                "warmup_steps=-1",
                lambda _: problem(warmup_steps=-1),
                ValueError,
                "warmup_steps.*-1",
            ),
            ("tasks=0", lambda _: problem(tasks=0), ValueError, "tasks.*0"),
            (
                "tasks_at_once=0",
                lambda _: problem(tasks=4, tasks_at_once=0),
                ValueError,
                "tasks_at_once is 0.*positive int",
            ),
            (
                "chunks that do not make up all tasks",
                lambda _: problem(tasks=4, tasks_at_once=3),
                ValueError,
                r"tasks_at_once is 3.*divide tasks=4; expected one of \[1, 2, 4\]",
            ),
            (
                "chunks of a problem without tasks",
                lambda _: problem(tasks_at_once=2),
                ValueError,
                "tasks_at_once is 2, but.*no tasks.*Pass tasks=",
            ),
            (
                "an argument that does not exist",
                lambda _: problem(lr=0.1),
                TypeError,
                "'lr'",
            ),
            (
                "a required argument left out",
                lambda _: mlox.Problem.create(name="fit", params=ZEROS, tx=SGD),
                TypeError,
                "'loss_fn'",
            ),
        ],
    )


def _arrays() -> list[Case]:
    return table(
        "Problem.create: arrays",
        [
            (
                "params={}",
                lambda _: problem(params={}),
                ValueError,
                "params are empty.*floating array",
            ),
            (
                "integer params",
                lambda _: problem(params={"w": jnp.zeros(3, jnp.int32)}),
                TypeError,
                r"params\['w'\].*int32.*floating.*model_state",
            ),
            (
                "complex params",
                lambda _: problem(params=jnp.ones(2, jnp.complex64)),
                TypeError,
                "params.*complex64.*floating",
            ),
            (
                "a string among params",
                lambda _: problem(params={"w": "zeros"}),
                TypeError,
                r"params\['w'\] is 'zeros'.*floating array",
            ),
            (
                "shapes for params",
                lambda _: problem(
                    params={"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
                ),
                TypeError,
                r"params\['w'\] is .*of type ShapeDtypeStruct.*floating array",
            ),
            (
                "an array of objects",
                lambda _: problem(params=np.array([None, 1.0])),
                TypeError,
                "params.*object.*floating",
            ),
            (
                "a string for rng",
                lambda _: problem(rng="seed"),
                TypeError,
                "rng is 'seed'.*random.key",
            ),
            (
                "two keys",
                lambda _: problem(rng=jax.random.split(jax.random.key(0))),
                TypeError,
                r"rng is key<fry>\[2\].*random.key",
            ),
            (
                "a negative seed beyond 64 bits",
                lambda _: problem(rng=-(2**70)),
                TypeError,
                "rng is -1180591620717411303424.*64 bits",
            ),
            (
                "a key of three words",
                lambda _: problem(rng=jnp.zeros(3, jnp.uint32)),
                TypeError,
                r"rng is uint32\[3\].*random.key",
            ),
            (
                "a string in model_state",
                lambda _: problem(model_state={"mean": "0"}),
                TypeError,
                r"model_state\['mean'\] is '0'.*array",
            ),
            (
                "opt_state of Adam for SGD",
                lambda _: _with_opt_state(ZEROS),
                ValueError,
                r"opt_state does not fit.*\[0\].count.*tx.init",
            ),
            (
                "opt_state of other params",
                lambda _: problem(
                    tx=optax.adam(0.1),
                    opt_state=optax.adam(0.1).init(jnp.zeros(3, jnp.float32)),
                ),
                ValueError,
                r"opt_state does not fit.*\[0\].mu.*float32\[3\].*tx.init",
            ),
            (
                "a string for opt_state",
                lambda _: problem(opt_state="fresh"),
                TypeError,
                "opt_state.*'fresh'.*tx.init",
            ),
            (
                "a number for loss_scale",
                lambda _: problem(loss_scale=1024.0),
                TypeError,
                r"loss_scale is 1024\.0.*DynamicScale",
            ),
        ],
    )


def _with_opt_state(params: Any) -> mlox.Problem:
    return problem(opt_state=optax.adam(0.1).init(params))


def _options() -> list[Case]:
    return table(
        "Problem.create: functions",
        [
            (
                "an array for apply_fn",
                lambda _: problem(apply_fn=ZEROS),
                TypeError,
                r"apply_fn is float32\[2\].*function",
            ),
            (
                "a pytree for trainable",
                lambda _: problem(trainable={"w": True}),
                TypeError,
                "trainable is {'w': True}.*function",
            ),
            (
                "trainable with numbers",
                lambda _: problem(trainable=lambda p: 1.0),
                TypeError,
                r"trainable\(params\) is 1\.0;.*bools",
            ),
            (
                "trainable of another structure",
                lambda _: problem(params={"w": ZEROS}, trainable=lambda p: {"v": True}),
                ValueError,
                r"trainable\(params\).*{'v': True}.*prefix",
            ),
            (
                "trainable nowhere",
                lambda _: problem(trainable=lambda p: False),
                ValueError,
                r"trainable\(params\).*False",
            ),
            (
                "trainable that raises",
                lambda _: problem(trainable=lambda p: p["head"]),
                TypeError,
                "trainable of problem 'fit'",
            ),
        ],
    )


def _replaced() -> list[Case]:
    return table(
        "Problem.replace",
        [
            (
                "an attribute that does not exist",
                lambda _: problem().replace(lr=0.1),
                TypeError,
                "replace.*'lr'.*params, opt_state",
            ),
            (
                "method='sama'",
                lambda _: problem().replace(method="sama"),
                TypeError,
                "method is 'sama'.*mlox.Implicit",
            ),
            (
                "unroll_steps=0",
                lambda _: problem().replace(unroll_steps=0),
                ValueError,
                "unroll_steps.*0",
            ),
            (
                "name='my fit'",
                lambda _: problem().replace(name="my fit"),
                ValueError,
                "'my fit'.*identifier",
            ),
            (
                "trainable of another structure",
                lambda _: problem(params={"w": ZEROS}).replace(
                    trainable=lambda p: {"v": True}
                ),
                ValueError,
                r"'fit': trainable\(params\).*{'v': True}.*prefix",
            ),
            (
                "meta_trainable nowhere, for tasks",
                lambda _: problem(tasks=3).replace(meta_trainable=lambda p: False),
                ValueError,
                r"'fit': meta_trainable\(params\).*False",
            ),
            (
                "an attribute set",
                lambda _: _set(problem()),
                dataclasses.FrozenInstanceError,
                "'params'",
            ),
        ],
    )


def _set(problem: mlox.Problem) -> None:
    problem.params = ZEROS  # type: ignore[misc]
