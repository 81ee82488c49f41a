"""Methods with memory where there is no place for one, and memories that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mlox
from tests.small import ZEROS, pair, problem, trace

from .case import Case, table

WARM = mlox.Implicit(mlox.CG(), warm_start=True)


class _Keeps:
    """A method that keeps what is given."""

    def __init__(self, start: Callable[[Any], Any], keep: Callable[[Any], Any]) -> None:
        self.first = start
        self.keep = keep

    def start(self, point: Any) -> Any:
        return self.first(point)

    def multiplier(self, answer: Any, cotangent: Any, memory: Any) -> Any:
        return self.keep((cotangent, memory, {}))

    def pairing(self, cost: Any, point: Any, multiplier: Any) -> Any:
        return jax.jvp(cost, (point,), (multiplier,))[1]


def _keeps(
    keep: Callable[[Any], Any], start: Callable[[Any], Any] = lambda point: point
) -> Any:
    return trace(pair({"method": _Keeps(start, keep)}))


def _chain(bottom: Any, middle: Any) -> mlox.Engine:
    return mlox.Engine(
        [problem("a"), problem("b", method=middle), problem("c", method=bottom)],
        u2l={"a": ["b"], "b": ["c"]},
        l2u={"b": ["a"], "c": ["b"]},
    )


def _by_hand() -> Any:
    engine = pair({"method": WARM})
    state = {problem.name: problem for problem in engine.problems}
    return jax.eval_shape(engine.step, state, {"penalty": None, "fit": None})


def _of_another_shape() -> Any:
    engine = pair({"method": WARM})
    state = engine.init()
    memory = jax.tree.map(lambda x: x[:1], state["penalty"].memory)
    state["penalty"] = state["penalty"].replace(memory=memory)
    return engine.hypergradient(state, {"penalty": None, "fit": None}, "penalty")


def _raise(_: Any) -> Any:
    raise KeyError("spectrum")


def cases() -> list[Case]:
    """Return the bad inputs around memories."""
    reset = {"reset": lambda params, ctx: ZEROS}
    return table(
        "Methods with memory, draws, estimators",
        [
            (
                "warm_start=1",
                lambda _: mlox.Implicit(warm_start=1),  # type: ignore[arg-type]
                TypeError,
                "warm_start is 1; expected True or False",
            ),
            (
                "a warm start of a series",
                lambda _: mlox.Implicit(mlox.Neumann(), warm_start=True),
                ValueError,
                r"warm_start=True, but Neumann.*ignores.*Richardson",
            ),
            (
                "draws=0",
                lambda _: mlox.Implicit(mlox.Neumann(), draws=0),
                ValueError,
                "draws is 0; expected a positive int",
            ),
            (
                "draws for a Krylov solver",
                lambda _: mlox.Implicit(mlox.CG(), draws=2),
                ValueError,
                r"draws=2.*CG.*needs one for all.*Neumann",
            ),
            (
                "refine with draws",
                lambda _: mlox.Implicit(mlox.Neumann(), refine=1, draws=2),
                ValueError,
                "refine=1.*draws=2.*Leave one",
            ),
            (
                "storm(1.5)",
                lambda _: mlox.estimators.storm(1.5),
                ValueError,
                "decay is 1.5; expected a number a with 0 < a <= 1",
            ),
            (
                "page(0)",
                lambda _: mlox.estimators.page(0.0),
                ValueError,
                "probability is 0.0; expected a probability",
            ),
            (
                "SOBA(step=0)",
                lambda _: mlox.SOBA(step=0.0),
                ValueError,
                r"SOBA: step is 0\.0;.*> 0",
            ),
            (
                "Richardson(step=-1)",
                lambda _: mlox.Richardson(step=-1.0),
                ValueError,
                r"Richardson: step is -1\.0;.*> 0",
            ),
            (
                "a warm start below a tower",
                lambda _: _chain(WARM, None),
                ValueError,
                "'c'.*keeps a memory.*'b' answers to its total objective.*without",
            ),
            (
                "a warm start of a tower",
                lambda _: _chain(None, mlox.Implicit(warm_start=True)),
                ValueError,
                r"'b'.*keeps a memory.*one system.*\('c', 'b'\).*without",
            ),
            (
                "SOBA below steps that are unrolled",
                lambda _: _chain(mlox.SOBA(), mlox.Unrolled()),
                ValueError,
                "'c'.*keeps a memory.*steps of 'b' are differentiated.*without",
            ),
            (
                "SOBA of a lower with reset",
                lambda _: pair({"method": mlox.SOBA(), **reset}),
                ValueError,
                "'fit': SOBA.*reset starts it anew.*Implicit",
            ),
            (
                "a warm start of a lower with reset",
                lambda _: pair({"method": WARM, **reset}),
                UserWarning,
                "'fit' has reset.*does nothing.*warm_start=False",
            ),
            (
                "a state made by hand",
                lambda _: _by_hand(),
                ValueError,
                r"'penalty': memory does not fit.*is None.*engine\.init",
            ),
            (
                "a memory of another shape",
                lambda _: _of_another_shape(),
                ValueError,
                r"'penalty': memory does not fit.*\[1\], expected.*engine\.init",
            ),
            (
                "a method that keeps another structure",
                lambda _: _keeps(lambda found: (found[0], (), {})),
                ValueError,
                "returned a memory that differs.*like that of start.*'fit'",
            ),
            (
                "a method that keeps another dtype",
                lambda _: _keeps(
                    lambda found: (found[0], jax.tree.map(jnp.int32, found[1]), {})
                ),
                ValueError,
                "returned a memory that differs.*int32.*like that of start.*'fit'",
            ),
            (
                "a method with start that returns a pair",
                lambda _: _keeps(lambda found: found[::2]),
                TypeError,
                r"expected \(multiplier, memory, report\).*MethodWithMemory.*'fit'",
            ),
            (
                "a start that raises",
                lambda _: _keeps(lambda found: found, _raise),
                KeyError,
                "'spectrum'.*start of the method of problem 'fit'",
            ),
        ],
    )
