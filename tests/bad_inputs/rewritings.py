"""Rewritings of graphs for which they are not defined, and batches that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np

import mlox
from tests.small import ZEROS, fit_loss, penalty_loss, problem, trace

from .case import Case, table

EDGES = {"penalty": ["fit"]}, {"fit": ["penalty"]}


def _problems(
    fit: dict[str, Any] | None = None, penalty: dict[str, Any] | None = None
) -> list[mlox.Problem]:
    return [
        problem("penalty", **{"loss_fn": penalty_loss, **(penalty or {})}),
        problem("fit", **{"loss_fn": fit_loss, "unroll_steps": 2, **(fit or {})}),
    ]


def _penalty(
    problems: Any = None, edges: Any = EDGES, lower: Any = "fit", **options: Any
) -> mlox.Engine:
    problems = _problems() if problems is None else problems
    options = {"strength": 10.0, **options}
    return mlox.Engine(*mlox.penalty(problems, *edges, lower=lower, **options))


def _step(batch: Any) -> Any:
    rows = np.ones((2, 2), np.float32)
    batches = {"penalty": batch, "fit": {"fit": rows}, "fit_reference": rows}
    return trace(_penalty(), batches)


def _evolve(
    problems: Any = None, edges: Any = EDGES, lower: Any = "fit", **options: Any
) -> mlox.Engine:
    problems = _problems({"rng": 0}) if problems is None else problems
    options = {"pairs": 2, "sigma": 0.1, **options}
    return mlox.Engine(*mlox.evolve(problems, *edges, lower=lower, **options))


def _bome(problems: Any = None, edges: Any = EDGES, **options: Any) -> tuple[Any, ...]:
    problems = _problems() if problems is None else problems
    return mlox.bome(problems, *edges, lower="fit", **options)


def _check_estimate() -> mlox.Report:
    engine = _evolve()
    batches = {"penalty": None, "fit": np.ones((2, 2), np.float32)}
    return mlox.check(engine, engine.init(), batches, "penalty")


def cases() -> list[Case]:
    """Return the bad inputs to rewritings."""
    return [*_of_penalty(), *_of_bome(), *_of_evolve()]


def _of_bome() -> list[Case]:
    three = [*_problems(), problem("third")]
    return table(
        "mlox.bome",
        [
            ("eta=0", lambda _: _bome(eta=0.0), ValueError, r"eta is 0\.0;.*> 0"),
            ("rate=-1", lambda _: _bome(rate=-1.0), ValueError, "rate is -1.*> 0"),
            ("steps=0", lambda _: _bome(steps=0), ValueError, "steps is 0;.*positive"),
            (
                "an upper with two lowers",
                lambda _: _bome(
                    three, (EDGES[0], {"fit": ["penalty"], "third": ["penalty"]})
                ),
                ValueError,
                r"the lower 'third' beside 'fit'.*mlox\.penalty",
            ),
            (
                "a lower with reset",
                lambda _: _bome(_problems({"reset": lambda params, ctx: ZEROS})),
                ValueError,
                "'fit' has reset=.*Drop it",
            ),
            (
                "a lower with warmup_steps",
                lambda _: _bome(_problems({"warmup_steps": 3})),
                ValueError,
                "'fit' has warmup_steps=.*Train it first",
            ),
        ],
    )


def _of_penalty() -> list[Case]:
    three = [*_problems(), problem("third")]
    return table(
        "mlox.penalty",
        [
            (
                "an unknown lower",
                lambda _: _penalty(lower="fits"),
                ValueError,
                r"mlox\.penalty of 'fits'.*\['fit', 'penalty'\]",
            ),
            (
                "strength=0",
                lambda _: _penalty(strength=0.0),
                ValueError,
                r"strength is 0\.0;.*> 0, or a schedule",
            ),
            (
                "order=3",
                lambda _: _penalty(order=3),
                ValueError,
                "order is 3; expected 1 or 2",
            ),
            (
                "an answer that no upper reads",
                lambda _: _penalty(edges=({}, {})),
                ValueError,
                r"'fit' is read by no upper;.*l2u=\{'fit'",
            ),
            (
                "an answer that two uppers read",
                lambda _: _penalty(three, ({}, {"fit": ["penalty", "third"]})),
                ValueError,
                r"'fit' is read by penalty and third;.*mlox\.Implicit\(\)",
            ),
            (
                "an answer to nothing",
                lambda _: _penalty(edges=({}, {"fit": ["penalty"]})),
                ValueError,
                r"'fit' does not read it;.*u2l=\{'penalty': \['fit'\]\}",
            ),
            (
                "an answer to two problems",
                lambda _: _penalty(
                    three,
                    (
                        {"penalty": ["fit"], "third": ["fit"]},
                        {"fit": ["penalty"], "penalty": ["third"]},
                    ),
                ),
                ValueError,
                r"'fit' also reads third;.*reads=\{'fit': \['third'\]\}",
            ),
            (
                "an answer with a lower of its own",
                lambda _: _penalty(
                    three, (EDGES[0], {"fit": ["penalty"], "third": ["fit"]})
                ),
                ValueError,
                r"'fit' has the lower 'third'.*mlox\.Implicit\(\)",
            ),
            (
                "an answer below another answer",
                lambda _: _penalty(
                    three,
                    (
                        {"penalty": ["fit"], "third": ["penalty"]},
                        {"fit": ["penalty"], "penalty": ["third"]},
                    ),
                ),
                ValueError,
                r"upper 'penalty', which answers to.*mlox\.Implicit\(\)",
            ),
            (
                "tasks of the upper alone",
                lambda _: _penalty(_problems(penalty={"tasks": 2})),
                ValueError,
                r"'fit' has no tasks.*tasks=2.*Give 'fit' tasks=2",
            ),
            (
                "meta_trainable",
                lambda _: _penalty(_problems({"meta_trainable": lambda params: True})),
                ValueError,
                "'fit' has meta_trainable=;.*trainable=",
            ),
            (
                "a problem with the name of the new one",
                lambda _: _penalty([*_problems(), problem("fit_reference")]),
                ValueError,
                "adds a problem 'fit_reference'.*Rename",
            ),
            (
                "batches of the upper alone",
                lambda _: _step(np.ones((1, 2), np.float32)),
                ValueError,
                r"the batch of 'penalty' is float32\[2\]; expected a dict.*together",
            ),
            (
                "batches of another name",
                lambda _: _step({"train": np.ones((1, 2), np.float32)}),
                ValueError,
                r"the batch of 'penalty' is \{'train'.*together\(penalty=.*, fit=",
            ),
            (
                "no batches of the lower for its upper",
                lambda _: _step(None),
                TypeError,
                "has no part for 'fit'.*together",
            ),
        ],
    )


def _of_evolve() -> list[Case]:
    keyed = {"rng": 0}
    two = [*_problems(keyed), problem("other", loss_fn=fit_loss)]
    edges_of_two = (
        {"penalty": ["fit", "other"]},
        {"fit": ["penalty"], "other": ["penalty"]},
    )
    return table(
        "mlox.evolve",
        [
            (
                "an unknown lower",
                lambda _: _evolve(lower="fits"),
                ValueError,
                r"mlox\.evolve of 'fits'.*\['fit', 'penalty'\]",
            ),
            (
                "no edge to the lower",
                lambda _: _evolve(edges=({}, {"fit": ["penalty"]})),
                ValueError,
                r"mlox\.evolve: the lower 'fit'.*Add u2l",
            ),
            (
                "no key to draw from",
                lambda _: _evolve(_problems()),
                ValueError,
                "'fit' has no PRNG key.*rng=0",
            ),
            (
                "a lower with tasks",
                lambda _: _evolve(_problems({"tasks": 3, **keyed})),
                ValueError,
                "'fit' has tasks=3; expected no tasks.*jax.vmap",
            ),
            (
                "an upper with two lowers",
                lambda _: _evolve(two, edges_of_two),
                ValueError,
                "'penalty' has the lowers 'fit' and 'other'.*one problem",
            ),
            (
                "copies that another problem reads",
                lambda _: _evolve(two, (*EDGES, {"other": ["fit"]})),
                ValueError,
                "'other' reads 'fit'.*copies",
            ),
            (
                "an upper with a mutable state",
                lambda _: _evolve(_problems(keyed, {"model_state": 0.0})),
                ValueError,
                "'penalty' has a mutable state.*Keep it in 'fit'",
            ),
            (
                "no pairs",
                lambda _: _evolve(pairs=0),
                ValueError,
                "pairs is 0; expected a positive int",
            ),
            (
                "sigma of zero",
                lambda _: _evolve(sigma=0.0),
                ValueError,
                "sigma is 0.0; expected a finite number > 0",
            ),
            (
                "pairs at once that do not divide the pairs",
                lambda _: _evolve(pairs=4, pairs_at_once=3),
                ValueError,
                r"pairs_at_once is 3.*pairs=4.*\[1, 2, 4\]",
            ),
            (
                "a name for an estimator",
                lambda _: _evolve(estimator="pes"),
                TypeError,
                r"estimator is 'pes'; expected mlox\.ES\(\), mlox\.PES",
            ),
            (
                "an episode of no windows",
                lambda _: mlox.PES(windows=0),
                ValueError,
                "PES: windows is 0; expected a positive int",
            ),
            (
                "episodes without a reset",
                lambda _: _evolve(estimator=mlox.NRES(windows=2)),
                ValueError,
                "'fit' has no reset.*reset=lambda params, ctx: start",
            ),
            (
                "draw that is no function",
                lambda _: _evolve(draw=1.0),
                TypeError,
                r"draw is 1.0; expected a function \(key, shape, dtype\)",
            ),
            (
                "a check of an estimate",
                lambda _: _check_estimate(),
                ValueError,
                "check of 'penalty': 'fit' stands for copies.*as it was before",
            ),
            (
                "draw of another shape",
                lambda _: trace(_evolve(draw=lambda key, shape, dtype: np.ones(7))),
                ValueError,
                r"draw.*float64\[7\], expected float32\[2\]",
            ),
        ],
    )
