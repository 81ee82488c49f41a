"""Bad fields of values: methods, solvers, losses of losses, rules, series, loggers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _case import Case, of_area
from _small import alone_loss

import mlox

SOLVER = mlox.CG()


def cases() -> list[Case]:
    return [
        *_methods(),
        *_solvers(),
        *_solves(),
        *_losses(),
        *_series(),
        *_stopping(),
        *_loggers(),
    ]


def _methods() -> list[Case]:
    one = jnp.float32(0.01)
    return of_area(
        "Methods",
        [
            ("Implicit of a class", lambda _: mlox.Implicit(mlox.CG)),
            ("Implicit of a name", lambda _: mlox.Implicit("cg")),
            ("Unrolled(last_steps=0)", lambda _: mlox.Unrolled(last_steps=0)),
            ("Unrolled(checkpoint=True)", lambda _: mlox.Unrolled(checkpoint=True)),
            ("FiniteDifference(0)", lambda _: mlox.FiniteDifference(0.0)),
            ("FiniteDifference(inf)", lambda _: mlox.FiniteDifference(math.inf)),
            ("FiniteDifference of an array", lambda _: mlox.FiniteDifference(one)),
            ("SAMA(epsilon=-1)", lambda _: mlox.SAMA(epsilon=-1.0)),
        ],
    )


def _solvers() -> list[Case]:
    step = jnp.float32(0.5)
    return of_area(
        "Solvers",
        [
            ("CG(iterations=0)", lambda _: mlox.CG(iterations=0)),
            ("CG(tolerance=-1e-3)", lambda _: mlox.CG(tolerance=-1e-3)),
            ("CG(unroll=1)", lambda _: mlox.CG(unroll=1)),
            ("CG(maxiter=5)", lambda _: mlox.CG(maxiter=5)),
            ("GMRES(restart=0)", lambda _: mlox.GMRES(restart=0)),
            ("Neumann(step=0)", lambda _: mlox.Neumann(step=0.0)),
            ("Neumann(step=array)", lambda _: mlox.Neumann(step=step)),
            ("Dense(damping='small')", lambda _: mlox.Dense(damping="small")),
        ],
    )


def _solves() -> list[Case]:
    b = jnp.ones(2, jnp.float32)

    def solved(
        b: Any = b,
        matvec: Any = lambda x: x,
        solver: Any = SOLVER,
        guess: Any = None,
    ) -> Any:
        return mlox.linear_solve(solver, matvec, b, guess)

    def rooted(residual: Any, answer: Any = b, **options: Any) -> Any:
        def found(x: Any) -> Any:
            return jnp.sum(mlox.attach(residual, answer, x, **options))

        return jax.grad(found)(b)

    return of_area(
        "linear_solve, attach",
        [
            ("an integer right-hand side", lambda _: solved(jnp.ones(2, jnp.int32))),
            ("a string for b", lambda _: solved("b")),
            ("a guess of another shape", lambda _: solved(guess=jnp.ones(3))),
            (
                "a matrix for matvec",
                lambda _: solved(matvec=jnp.ones((2, 2), jnp.float32)),
            ),
            (
                "a matvec of another shape",
                lambda _: solved(matvec=lambda x: jnp.ones(3, jnp.float32)),
            ),
            ("a matvec of another structure", lambda _: solved(matvec=lambda x: (x,))),
            ("a class for the solver", lambda _: solved(solver=mlox.CG)),
            ("a solver that returns x alone", lambda _: solved(solver=_alone)),
            ("attach: a residual of another shape", lambda _: rooted(_summed)),
            (
                "attach: an answer of integers",
                lambda _: rooted(lambda y, x: y - x, jnp.ones(2, jnp.int32)),
            ),
            (
                "attach: a residual that is none",
                lambda _: rooted(jnp.ones(2, jnp.float32)),
            ),
            (
                "attach: a name for the solver",
                lambda _: rooted(lambda y, x: y - x, solver="cg"),
            ),
        ],
    )


def _alone(matvec: Any, b: Any, guess: Any = None) -> Any:
    return b


def _summed(y: Any, x: Any) -> Any:
    return jnp.sum(y - x)


def _losses() -> list[Case]:
    return of_area(
        "Accumulated, MixedPrecision",
        [
            ("no loss", lambda _: mlox.Accumulated(None, 2)),
            ("steps=0", lambda _: mlox.Accumulated(alone_loss, 0)),
            ("a loss with two parameters", lambda _: mlox.Accumulated(min_loss, 2)),
            ("dtype=int8", lambda _: mlox.MixedPrecision(alone_loss, jnp.int8)),
            ("dtype='halve'", lambda _: mlox.MixedPrecision(alone_loss, "halve")),
        ],
    )


def min_loss(params: Any, batch: Any) -> Any:
    return jnp.sum(params**2)


def _series() -> list[Case]:
    x = np.zeros((4, 2), np.float32)
    return of_area(
        "together, shuffled, on_epoch_end",
        [
            ("together of nothing", lambda _: mlox.together()),
            ("together with and without names", lambda _: mlox.together([x], b=[x])),
            ("together of a batch", lambda _: mlox.together([x], x)),
            ("shuffled of unlike lengths", lambda _: mlox.shuffled((x, x[:3]), 2)),
            ("batch_size=0", lambda _: mlox.shuffled(x, 0)),
            ("a batch larger than the data", lambda _: mlox.shuffled(x, 5)),
            ("seed=-1", lambda _: mlox.shuffled(x, 2, seed=-1)),
            ("on_epoch_end without a call", lambda _: mlox.on_epoch_end([x], None)),
            (
                "on_epoch_end of a series without end",
                lambda _: mlox.on_epoch_end(mlox.together([x], [x]), print),
            ),
            (
                "on_epoch_end of a shuffled series",
                lambda _: mlox.on_epoch_end(mlox.shuffled(x, 2), print),
            ),
        ],
    )


def _stopping() -> list[Case]:
    def rule(metric: Any = "fit/loss", mode: Any = "min", **parts: Any) -> Any:
        return mlox.EarlyStopping(metric, mode, **parts)

    return of_area(
        "EarlyStopping",
        [
            ("a metric without a problem", lambda _: rule("loss")),
            ("mode='lower'", lambda _: rule(mode="lower")),
            ("patience=0", lambda _: rule(patience=0)),
            ("min_delta=-1", lambda _: rule(min_delta=-1)),
        ],
    )


def _loggers() -> list[Case]:
    return of_area(
        "Loggers",
        [
            ("json_logger of a folder", mlox.json_logger),
            (
                "json_logger under a file",
                lambda folder: mlox.json_logger(_under(folder)),
            ),
            ("json_logger of a number", lambda _: mlox.json_logger(3)),
            (
                "csv_logger of another table",
                lambda folder: mlox.csv_logger(_table(folder)),
            ),
            ("csv_logger of an image", lambda folder: mlox.csv_logger(_image(folder))),
            (
                "csv_logger of a table with a broken row",
                lambda folder: mlox.csv_logger(_rows(folder)).resume(1),
            ),
        ],
    )


def _under(folder: Any) -> Any:
    (folder / "log").write_text("")
    return folder / "log" / "metrics.jsonl"


def _table(folder: Any) -> Any:
    (folder / "table.csv").write_text("date,price\n2020-01-01,3\n")
    return folder / "table.csv"


def _image(folder: Any) -> Any:
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    return folder / "image.png"


def _rows(folder: Any) -> Any:
    (folder / "table.csv").write_text("cycle,fit/loss\n1,0.5\ntwo,0.25\n")
    return folder / "table.csv"
