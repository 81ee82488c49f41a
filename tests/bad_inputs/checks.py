"""Bad inputs of `check` and `compare`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import mlox

from ..small import GOOD, pair, single
from .case import Case, table


def cases() -> list[Case]:
    return [*_checks(), *_comparisons()]


def _check(name: Any = "penalty", engine: Any = None, **options: Any) -> Any:
    engine = engine or pair()
    return mlox.check(engine, engine.init(), GOOD, name, **options)


def _count_in_float32(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    start = jnp.zeros((), jnp.float32)
    return jax.lax.scan(lambda sum, y: (sum + y * y, None), start, ctx.fit.params)[0]


BOUND = {"loss_fn": _count_in_float32}
IN_FLOAT64 = r"loss_fn of problem 'penalty'.*{} of 'penalty'.* in float64.*params.dtype"


def _checks() -> list[Case]:
    return table(
        "check",
        [
            (
                "an unknown problem",
                lambda _: _check("top"),
                ValueError,
                r"check of 'top': no such problem.*\['fit', 'penalty'\]",
            ),
            (
                "a problem without lowers",
                lambda _: _check("fit", single()),
                ValueError,
                "check of 'fit': no answer responds.*No problem .* has lowers",
            ),
            (
                "no engine",
                lambda _: mlox.check(None, {}, {}, "fit"),
                TypeError,
                "check: engine is None;.*mlox.Engine",
            ),
            (
                "budget='small'",
                lambda _: _check(budget="small"),
                ValueError,
                "check: budget is 'small';.*number > 0",
            ),
            (
                "seed=-1",
                lambda _: _check(seed=-1),
                ValueError,
                "check: seed is -1;.*0 or more",
            ),
            (
                "batches of another problem",
                lambda _: mlox.check(pair(), pair().init(), {"fit": None}, "penalty"),
                ValueError,
                r"batches.keys\(\).*'penalty'",
            ),
            (
                "a loss that is bound to float32",
                lambda _: _check(engine=pair(penalty=BOUND)),
                TypeError,
                IN_FLOAT64.format("check"),
            ),
        ],
    )


def _compare(
    candidates: Any, name: Any = "penalty", engine: Any = None, **options: Any
) -> Any:
    engine = engine or pair()
    return mlox.compare(engine, engine.init(), GOOD, name, candidates, **options)


def _comparisons() -> list[Case]:
    return table(
        "compare",
        [
            (
                "an unknown problem",
                lambda _: _compare({}, "top"),
                ValueError,
                "compare of 'top': no such problem",
            ),
            (
                "candidates in a list",
                lambda _: _compare([mlox.SAMA()]),
                TypeError,
                "candidates is .*; expected a dict {problem",
            ),
            (
                "candidates of a problem that does not respond",
                lambda _: _compare({"penalty": {"sama": mlox.SAMA()}}),
                ValueError,
                r"a key of candidates is 'penalty';.*\['fit'\]",
            ),
            (
                "a method without a name",
                lambda _: _compare({"fit": mlox.SAMA()}),
                TypeError,
                r"candidates\['fit'\] is SAMA.*; expected a dict",
            ),
            (
                "a solver for a method",
                lambda _: _compare({"fit": {"cg": mlox.CG()}}),
                TypeError,
                r"candidates\['fit'\]\['cg'\] is CG\(.*; expected a method",
            ),
            (
                "no candidates",
                lambda _: _compare({"fit": {}}),
                ValueError,
                "compare: candidates are empty.*method",
            ),
            (
                "repeats=0",
                lambda _: _compare({"fit": {"sama": mlox.SAMA()}}, repeats=0),
                ValueError,
                "repeats is 0;.*positive",
            ),
            (
                "a loss that is bound to float32",
                lambda _: _compare(
                    {"fit": {"sama": mlox.SAMA()}}, engine=pair(penalty=BOUND)
                ),
                TypeError,
                IN_FLOAT64.format("compare"),
            ),
        ],
    )
