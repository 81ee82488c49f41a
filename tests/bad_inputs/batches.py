"""Bad states and batches of a step and its kin: step, compile, stack, evaluate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mlox

from ..small import BATCH, GOOD, UNROLL, pair, single, trace
from .case import Case, table

ENGINE = pair()
STATE = ENGINE.init()
F32 = np.float32


def cases() -> list[Case]:
    return [*_batches(), *_states(), *_compiled(), *_stacked(), *_asked()]


def _step(fit: Any, **others: Any) -> Any:
    return trace(ENGINE, {"penalty": None, "fit": fit, **others})


def _eager(fit: Any) -> Any:
    return ENGINE.step(STATE, {"penalty": None, "fit": fit})


def _batches() -> list[Case]:
    stacked = np.ones((UNROLL, 2), F32)
    return table(
        "engine.step: batches",
        [
            (
                "None",
                lambda _: ENGINE.step(STATE, None),
                ValueError,
                r"batches.* None;.*\['fit', 'penalty'\].*engine.stack",
            ),
            (
                "the batch itself",
                lambda _: ENGINE.step(STATE, stacked),
                ValueError,
                r"batches.* float32\[2, 2\];.*\['fit', 'penalty'\].*engine.stack",
            ),
            (
                "a problem left out",
                lambda _: ENGINE.step(STATE, {"fit": stacked}),
                ValueError,
                r"batches.*\['fit'\];.*\['fit', 'penalty'\].*engine.stack",
            ),
            (
                "an unknown name",
                lambda _: _step(stacked, valid=stacked),
                ValueError,
                r"batches.*'valid'\];.*\['fit', 'penalty'\].*engine.stack",
            ),
            (
                "no leading axis",
                lambda _: _step(BATCH[0]),
                ValueError,
                r"batches\['fit'\].*shape \(\);.*expected \[2, \.\.\.\]",
            ),
            (
                "three batches for two steps",
                lambda _: _step(np.ones((3, 2), F32)),
                ValueError,
                r"batches\['fit'\].*shape \(3, 2\);.*expected \[2, \.\.\.\]",
            ),
            (
                "a batch without the axis of tasks",
                lambda _: trace(pair({"tasks": 3})),
                ValueError,
                r"batches\['fit'\].*shape \(2, 2\);.*\[2, 3, ...\].*3 tasks",
            ),
            (
                "a list of batches",
                lambda _: _step([BATCH, BATCH]),
                TypeError,
                r"loss_fn of problem 'fit'.*batch=\['float32\[\]', 'float32\[\]'\]",
            ),
            (
                "strings",
                lambda _: _eager(np.array(["a", "b"])),
                TypeError,
                r"batches\['fit'\].*<U1\[2\].*array",
            ),
            (
                "None where the loss reads a batch",
                lambda _: _step(None),
                TypeError,
                "loss_fn of problem 'fit'.*batch=None",
            ),
            (
                "a batch for a problem that samples",
                lambda _: trace(pair({"sample": lambda p, ctx: p})),
                ValueError,
                "'fit'.*None.*samples",
            ),
            (
                "other shapes than the params",
                lambda _: _step(np.ones((2, 3), F32)),
                TypeError,
                r"loss_fn of problem 'fit'.*batch=float32\[3\]",
            ),
        ],
    )


def _states() -> list[Case]:
    fit, penalty = STATE["fit"], STATE["penalty"]

    def step(**changed: Any) -> Any:
        return ENGINE.step({**STATE, **changed}, GOOD)

    def changed(**parts: Any) -> Any:
        return step(fit=fit.replace(**parts))

    return table(
        "engine.step: state",
        [
            (
                "None",
                lambda _: ENGINE.step(None, GOOD),
                TypeError,
                r"state is None;.*\['fit', 'penalty'\].*engine.init",
            ),
            (
                "a problem left out",
                lambda _: ENGINE.step({"fit": fit}, GOOD),
                ValueError,
                r"state.keys\(\) is \['fit'\];.*\['fit', 'penalty'\].*engine.init",
            ),
            (
                "params for a problem",
                lambda _: step(fit=fit.params),
                TypeError,
                r"state\['fit'\] is float32\[2\].*engine.init",
            ),
            (
                "problems exchanged",
                lambda _: step(fit=penalty, penalty=fit),
                TypeError,
                r"state\['penalty'\].name is 'fit';.*engine.init",
            ),
            (
                "other unroll_steps",
                lambda _: changed(unroll_steps=3),
                ValueError,
                r"'fit'.*unroll_steps.*3\).*new Engine",
            ),
            (
                "another kind of method",
                lambda _: changed(method=mlox.Unrolled()),
                ValueError,
                r"'fit'.*method.*Unrolled\(.*new Engine",
            ),
            (
                "params of another shape",
                lambda _: changed(params=jnp.zeros(3, F32)),
                TypeError,
                r"loss_fn of problem 'fit'.*params=float32\[3\]",
            ),
            (
                "integer params",
                lambda _: changed(params=jnp.zeros(2, jnp.int32)),
                TypeError,
                "'fit': params.*int32.*floating",
            ),
            (
                "step=None",
                lambda _: changed(step=None),
                TypeError,
                "'fit': step is None;.*int32 scalar",
            ),
            (
                "step=1.5",
                lambda _: changed(step=1.5),
                TypeError,
                r"'fit': step is 1\.5;.*int32 scalar",
            ),
            (
                "rng=0",
                lambda _: changed(rng=0),
                TypeError,
                "'fit': rng is 0;.*random.key",
            ),
            (
                "an optimizer's state of another",
                lambda _: changed(opt_state=(BATCH,)),
                ValueError,
                "'fit': opt_state does not fit.*tx.init",
            ),
            (
                "a loss_scale of 2",
                lambda _: changed(loss_scale=2.0),
                TypeError,
                r"'fit': loss_scale is 2\.0;.*DynamicScale",
            ),
            (
                "a string in model_state",
                lambda _: changed(model_state="mean"),
                TypeError,
                "'fit': model_state is 'mean'.*array",
            ),
            (
                "a state that was donated",
                lambda _: ENGINE.step(_donated(), GOOD),
                ValueError,
                r"state\['fit'\].params was donated.*donate=False",
            ),
            (
                "within shard_map",
                _step_on_each_device,
                ValueError,
                r"step.*shard_map.*\['data'\].*mlox.shard",
            ),
            (
                "a stack of states",
                lambda _: ENGINE.step(_twice(STATE), GOOD),
                TypeError,
                r"'fit': step is int32\[2\];.*jax.vmap",
            ),
        ],
    )


def _twice(state: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), state)


def _donated() -> Any:
    state = ENGINE.init()
    state["fit"].params.delete()  # what donating does
    return state


def _step_on_each_device(_: Any) -> Any:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    whole, split = jax.P(), jax.P(None, "data")
    batches = {"penalty": whole, "fit": split}
    places = {"in_specs": (whole, batches), "out_specs": whole, "check_vma": False}
    return jax.shard_map(ENGINE.step, mesh=mesh, **places)(STATE, GOOD)


def _compiled() -> list[Case]:
    return table(
        "engine.compile",
        [
            (
                "donate='yes'",
                lambda _: ENGINE.compile(donate="yes"),
                TypeError,
                "donate is 'yes';.*True or False",
            ),
            ("a state donated twice", _donated_twice, DONATED, "deleted"),
        ],
    )


# The error is JAX's own.
DONATED = ValueError if jax.__version_info__ < (0, 11) else RuntimeError


def _donated_twice(folder: Any) -> Any:
    engine = single()
    step, state = engine.compile(), engine.init()
    step(state, {"fit": None})
    return step(state, {"fit": None})


def _stacked() -> list[Case]:
    def stack(fit: Any) -> Any:
        return ENGINE.stack({"fit": fit})

    return table(
        "engine.stack",
        [
            (
                "a list",
                lambda _: stack([BATCH, BATCH]),
                TypeError,
                r"'fit' is \[.*an iterator.*iter\(",
            ),
            (
                "an array",
                lambda _: stack(BATCH),
                ValueError,
                "'fit' is one ndarray.*list of batches",
            ),
            (
                "an unknown name",
                lambda _: ENGINE.stack({"fitt": iter([BATCH])}),
                ValueError,
                r"'fitt'.*\['fit', 'penalty'\]",
            ),
            (
                "an iterator that ends",
                lambda _: stack(iter([BATCH])),
                ValueError,
                "'fit' ran out after 1 of the 2.*itertools.cycle",
            ),
            (
                "batches of other shapes",
                lambda _: stack(iter([BATCH, BATCH[:1]])),
                ValueError,
                r"batch 2 of 'fit'.*float32\[1\].*float32\[2\].*drop_last",
            ),
            (
                "batches of other structures",
                lambda _: stack(iter([BATCH, (BATCH,)])),
                ValueError,
                "batch 2 of 'fit'.*structure",
            ),
            (
                "strings for batches",
                lambda _: stack(iter(["a", "b"])),
                ValueError,
                "'fit'.*type str.*arrays",
            ),
            (
                "objects for batches",
                lambda _: stack(iter([{"x": object()}])),
                ValueError,
                "'fit'.*type object and dtype object.*arrays",
            ),
            (
                "batches of other dtypes",
                lambda _: stack(iter([BATCH, BATCH.astype(np.float64)])),
                ValueError,
                r"batch 2 of 'fit'.*float64\[2\].*float32\[2\].*dtype",
            ),
        ],
    )


def _asked() -> list[Case]:
    def evaluated(*given: Any, **named: Any) -> Any:
        return ENGINE.evaluate(STATE, *given, **named)

    return table(
        "engine.hypergradient, engine.evaluate",
        [
            (
                "the gradient of an unknown name",
                lambda _: ENGINE.hypergradient(STATE, GOOD, "penalti"),
                ValueError,
                r"hypergradient of 'penalti'.*\['fit', 'penalty'\]",
            ),
            (
                "the gradient with batches of strings",
                lambda _: ENGINE.hypergradient(
                    STATE, {**GOOD, "fit": "rows"}, "penalty"
                ),
                TypeError,
                r"batches\['fit'\] is 'rows' of type str; expected an array",
            ),
            (
                "evaluate an unknown name",
                lambda _: evaluated("fitt", BATCH),
                ValueError,
                r"evaluate of 'fitt'.*\['fit', 'penalty'\]",
            ),
            (
                "evaluate a batch of strings",
                lambda _: evaluated("fit", "batch"),
                ValueError,
                "'fit'.*type str.*arrays",
            ),
            (
                "evaluate with rng=0.5",
                lambda _: evaluated("fit", BATCH, rng=0.5),
                TypeError,
                r"rng is 0\.5.*random.key",
            ),
            (
                "the gradient at a state that was donated",
                lambda _: ENGINE.hypergradient(_donated(), GOOD, "penalty"),
                ValueError,
                r"state\['fit'\].params was donated.*donate=False",
            ),
            (
                "evaluate a state that was donated",
                lambda _: ENGINE.evaluate(_donated(), "fit", BATCH),
                ValueError,
                r"state\['fit'\].params was donated.*donate=False",
            ),
            (
                "evaluate without the batch it reads",
                lambda _: evaluated("fit", None),
                TypeError,
                "loss_fn of problem 'fit'.*batch is None.*Pass batch to evaluate",
            ),
            (
                "evaluate a batch without the axis of tasks",
                lambda _: _tasks().evaluate(_tasks().init(), "fit", np.ones((4, 2))),
                ValueError,
                r"evaluate of 'fit'.*\(4, 2\).*\[3, ...\] for 3 tasks",
            ),
            (
                "evaluate a number where there are tasks",
                lambda _: _tasks().evaluate(_tasks().init(), "fit", 1.0),
                ValueError,
                r"evaluate of 'fit'.*shape \(\).*\[3, ...\] for 3 tasks",
            ),
            (
                "evaluate an iterator",
                lambda _: evaluated("fit", iter([BATCH])),
                TypeError,
                "evaluate of 'fit': batch is .*iterator.*one batch.*next",
            ),
            (
                "evaluate no state",
                lambda _: ENGINE.evaluate(None, "fit", BATCH),
                TypeError,
                r"state is None;.*\['fit', 'penalty'\].*engine.init",
            ),
            (
                "evaluate with name and state exchanged",
                lambda _: ENGINE.evaluate("fit", STATE, BATCH),
                ValueError,
                "evaluate of {'fit': Problem",
            ),
            (
                "evaluate a loss that draws, without a key",
                lambda _: _drawing().evaluate(_drawing().init(), "fit", None),
                TypeError,
                "loss_fn of problem 'fit'.*rng is None.*Pass rng=.*to evaluate",
            ),
        ],
    )


def _tasks() -> mlox.Engine:
    return single(tasks=3)


def _drawing() -> mlox.Engine:
    def loss(params: Any, batch: Any, ctx: Any) -> Any:
        return jnp.sum(params * jax.random.normal(ctx.rng, params.shape))

    return single(loss_fn=loss, rng=0)
