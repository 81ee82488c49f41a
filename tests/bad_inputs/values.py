"""Bad fields of values: methods, solvers, losses of losses, rules, series, loggers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mlox

from ..small import alone_loss
from .case import Case, table

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
    return table(
        "Methods",
        [
            (
                "Implicit of a class",
                lambda _: mlox.Implicit(mlox.CG),
                TypeError,
                "class CG.*value",
            ),
            (
                "Implicit that is refined by half a step",
                lambda _: mlox.Implicit(refine=0.5),
                ValueError,
                "refine is 0.5; expected an int, 0 or more",
            ),
            (
                "Implicit of a name",
                lambda _: mlox.Implicit("cg"),
                TypeError,
                "solver is 'cg'.*mlox.CG",
            ),
            (
                "GaussNewton of a class",
                lambda _: mlox.GaussNewton(mlox.CG),  # type: ignore[arg-type]
                TypeError,
                r"GaussNewton: solver is the class CG.*mlox.GaussNewton\(mlox.CG\(\)\)",
            ),
            (
                "Unrolled(last_steps=0)",
                lambda _: mlox.Unrolled(last_steps=0),
                ValueError,
                "last_steps is 0.*positive",
            ),
            (
                "Unrolled(levels=-1)",
                lambda _: mlox.Unrolled(levels=-1),
                ValueError,
                "levels is -1.*an int >= 0 or None",
            ),
            (
                "Unrolled(levels=, checkpoint=)",
                lambda _: mlox.Unrolled(levels=3, checkpoint="step"),
                ValueError,
                "levels=3.*checkpoint='step'.*levels alone",
            ),
            (
                "Unrolled(levels=, memory=)",
                lambda _: mlox.Unrolled(levels=3, memory=1000),
                ValueError,
                "memory=1000 and levels=3.*one of the two",
            ),
            (
                "Forward(last_steps=0)",
                lambda _: mlox.Forward(last_steps=0),
                ValueError,
                "Forward: last_steps is 0",
            ),
            (
                "Unrolled(checkpoint=True)",
                lambda _: mlox.Unrolled(checkpoint=True),
                ValueError,
                "checkpoint is True.*'segments'",
            ),
            (
                "FiniteDifference(0)",
                lambda _: mlox.FiniteDifference(0.0),
                ValueError,
                r"epsilon is 0\.0.*> 0",
            ),
            (
                "FiniteDifference(inf)",
                lambda _: mlox.FiniteDifference(math.inf),
                ValueError,
                "epsilon is inf.*finite",
            ),
            (
                "FiniteDifference(True)",
                lambda _: mlox.FiniteDifference(True),
                ValueError,
                "epsilon is True.*> 0",
            ),
            (
                "FiniteDifference of an array",
                lambda _: mlox.FiniteDifference(one),
                ValueError,
                "epsilon is .*plain Python",
            ),
            (
                "FixedPoint(iterations=-1)",
                lambda _: mlox.FixedPoint(iterations=-1),
                ValueError,
                r"FixedPoint.*iterations is -1; expected an int, 0 or more",
            ),
            (
                "SAMA(epsilon=-1)",
                lambda _: mlox.SAMA(epsilon=-1.0),
                ValueError,
                r"SAMA.*epsilon is -1\.0.*> 0",
            ),
        ],
    )


def _solvers() -> list[Case]:
    step = jnp.float32(0.5)
    return table(
        "Solvers",
        [
            (
                "CG(iterations=0)",
                lambda _: mlox.CG(iterations=0),
                ValueError,
                "CG: iterations is 0;.*positive",
            ),
            (
                "CG(tolerance=-1e-3)",
                lambda _: mlox.CG(tolerance=-1e-3),
                ValueError,
                "CG: tolerance is -0.001;.*>= 0",
            ),
            (
                "CG(unroll=1)",
                lambda _: mlox.CG(unroll=1),
                ValueError,
                "CG: unroll is 1;.*True, False",
            ),
            ("CG(maxiter=5)", lambda _: mlox.CG(maxiter=5), TypeError, "'maxiter'"),
            (
                "GMRES(restart=0)",
                lambda _: mlox.GMRES(restart=0),
                ValueError,
                "GMRES: restart is 0;.*positive",
            ),
            (
                "Neumann(step=0)",
                lambda _: mlox.Neumann(step=0.0),
                ValueError,
                r"Neumann: step is 0\.0;.*> 0",
            ),
            (
                "Neumann(step=array)",
                lambda _: mlox.Neumann(step=step),
                ValueError,
                "Neumann: step is .*> 0.*static",
            ),
            (
                "Dense(damping='small')",
                lambda _: mlox.Dense(damping="small"),
                ValueError,
                "Dense: damping is 'small';.*>= 0",
            ),
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

    return table(
        "linear_solve, attach",
        [
            (
                "an integer right-hand side",
                lambda _: solved(jnp.ones(2, jnp.int32)),
                ValueError,
                "b has dtype int32.*floating",
            ),
            (
                "a string for b",
                lambda _: solved("b"),
                TypeError,
                "'b' of type str.*floating",
            ),
            (
                "a guess of another shape",
                lambda _: solved(guess=jnp.ones(3)),
                ValueError,
                r"guess differs.*float\d+\[3\].*None",
            ),
            (
                "a matrix for matvec",
                lambda _: solved(matvec=jnp.ones((2, 2), jnp.float32)),
                TypeError,
                "matvec is .*function",
            ),
            (
                "a matvec of another shape",
                lambda _: solved(matvec=lambda x: jnp.ones(3, jnp.float32)),
                ValueError,
                r"matvec\(b\) differs.*float32\[3\].*like b",
            ),
            (
                "a matvec of another structure",
                lambda _: solved(matvec=lambda x: (x,)),
                ValueError,
                r"matvec\(b\) differs.*\[0\] is float32\[2\].*like b",
            ),
            (
                "a class for the solver",
                lambda _: solved(solver=mlox.CG),
                TypeError,
                r"solver is <class.*mlox.CG\(\)",
            ),
            (
                "a solver that returns x alone",
                lambda _: solved(solver=_alone),
                TypeError,
                r"solver returned float32\[2\].*\(x, report\)",
            ),
            (
                "attach: a residual of another shape",
                lambda _: rooted(_summed),
                ValueError,
                r"residual differs.*float32\[\].*like the answer",
            ),
            (
                "attach: an answer of integers",
                lambda _: rooted(lambda y, x: y - x, jnp.ones(2, jnp.int32)),
                TypeError,
                r"answer is int32\[2\].*floating",
            ),
            (
                "attach: a residual that is none",
                lambda _: rooted(jnp.ones(2, jnp.float32)),
                TypeError,
                r"residual is float32\[2\].*function",
            ),
            (
                "attach: a solver of another class of systems",
                lambda _: rooted(
                    lambda y, x: y - x, solver=SOLVER, system=mlox.System.GENERAL
                ),
                ValueError,
                r"does not serve System.GENERAL.*GMRES\(\)",
            ),
            (
                "attach: a name for the system",
                lambda _: rooted(lambda y, x: y - x, system="definite"),
                TypeError,
                "system is 'definite'.*mlox.System.DEFINITE",
            ),
            (
                "attach: a name for the solver",
                lambda _: rooted(lambda y, x: y - x, solver="cg"),
                TypeError,
                "solver is 'cg'.*mlox.CG",
            ),
        ],
    )


def _alone(matvec: Any, b: Any, guess: Any = None) -> Any:
    return b


def _summed(y: Any, x: Any) -> Any:
    return jnp.sum(y - x)


def _losses() -> list[Case]:
    return table(
        "Accumulated, MixedPrecision, Composed, Proximal, magic_box",
        [
            (
                "a strength of 0",
                lambda _: mlox.Proximal(alone_loss, "init", 0.0),
                ValueError,
                "Proximal: strength is 0.0; expected a finite number > 0",
            ),
            (
                "an upper as a problem",
                lambda _: mlox.Proximal(alone_loss, 3, 1.0),  # type: ignore[arg-type]
                TypeError,
                r"Proximal: to is 3; expected .*\(ctx\) -> params",
            ),
            (
                "probabilities as integers",
                lambda _: mlox.magic_box(jnp.arange(3)),
                TypeError,
                r"magic_box: logp is int.*\[3\]; expected a floating.*log_softmax",
            ),
            (
                "no loss of the outputs",
                lambda _: mlox.Composed(alone_loss, None),  # type: ignore[arg-type]
                TypeError,
                r"Composed: loss is None; expected a function \(outputs, batch, ctx\)",
            ),
            (
                "outputs with two parameters",
                lambda _: mlox.Composed(min_loss, alone_loss),
                TypeError,
                r"Composed: outputs takes \(params, batch\).*ctx",
            ),
            (
                "no loss",
                lambda _: mlox.Accumulated(None, 2),
                TypeError,
                "Accumulated.*loss_fn is None.*batch, ctx",
            ),
            (
                "steps=0",
                lambda _: mlox.Accumulated(alone_loss, 0),
                ValueError,
                "Accumulated: steps is 0;.*positive",
            ),
            (
                "a loss with two parameters",
                lambda _: mlox.Accumulated(min_loss, 2),
                TypeError,
                r"Accumulated.*loss_fn takes \(params, batch\).*ctx",
            ),
            (
                "dtype=int8",
                lambda _: mlox.MixedPrecision(alone_loss, jnp.int8),
                TypeError,
                "MixedPrecision.*int8.*bfloat16",
            ),
            (
                "dtype='halve'",
                lambda _: mlox.MixedPrecision(alone_loss, "halve"),
                TypeError,
                "MixedPrecision.*'halve'.*bfloat16",
            ),
        ],
    )


def min_loss(params: Any, batch: Any) -> Any:
    return jnp.sum(params**2)


def _series() -> list[Case]:
    x = np.zeros((4, 2), np.float32)
    return table(
        "together, shuffled, on_epoch_end",
        [
            (
                "together of nothing",
                lambda _: mlox.together(),
                TypeError,
                r"together got no series.*together\(a, b\)",
            ),
            (
                "together with and without names",
                lambda _: mlox.together([x], b=[x]),
                TypeError,
                r"together.*with and without names.*together\(a, b\)",
            ),
            (
                "together of a batch",
                lambda _: mlox.together([x], x),
                ValueError,
                "together.*one ndarray.*list of batches",
            ),
            (
                "together of None",
                lambda _: mlox.together(b=None),
                TypeError,
                "source 'b' of mlox.together is None.*iterable",
            ),
            (
                "shuffled of unlike lengths",
                lambda _: mlox.shuffled((x, x[:3]), 2),
                ValueError,
                r"shuffled.*\(3,\), \(4,\).*leading axis",
            ),
            (
                "batch_size=0",
                lambda _: mlox.shuffled(x, 0),
                ValueError,
                "batch_size is 0.*positive",
            ),
            (
                "a batch larger than the data",
                lambda _: mlox.shuffled(x, 5),
                ValueError,
                "batch_size is 5.*at most 4",
            ),
            (
                "seed=-1",
                lambda _: mlox.shuffled(x, 2, seed=-1),
                ValueError,
                "seed is -1.*0 or more",
            ),
            (
                "seed=True",
                lambda _: mlox.shuffled(x, 2, seed=True),
                ValueError,
                "seed is True.*0 or more",
            ),
            (
                "on_epoch_end without a call",
                lambda _: mlox.on_epoch_end([x], None),
                TypeError,
                "callback is None.*function",
            ),
            (
                "on_epoch_end of a series without end",
                lambda _: mlox.on_epoch_end(mlox.together([x], [x]), print),
                ValueError,
                "on_epoch_end.*mlox.together.*no end",
            ),
            (
                "on_epoch_end of a shuffled series",
                lambda _: mlox.on_epoch_end(mlox.shuffled(x, 2), print),
                ValueError,
                "on_epoch_end.*mlox.shuffled.*ends",
            ),
            (
                "on_epoch_end of a batch",
                lambda _: mlox.on_epoch_end({"x": x}, print),
                ValueError,
                r"on_epoch_end.*one dict.*together\(\*\*them",
            ),
            (
                "on_epoch_end of a number",
                lambda _: mlox.on_epoch_end(3, print),
                TypeError,
                "on_epoch_end.*series is 3.*iterable",
            ),
        ],
    )


def _stopping() -> list[Case]:
    def rule(metric: Any = "fit/loss", mode: Any = "min", **parts: Any) -> Any:
        return mlox.EarlyStopping(metric, mode, **parts)

    return table(
        "EarlyStopping",
        [
            (
                "a metric without a problem",
                lambda _: rule("loss"),
                ValueError,
                "metric is 'loss'.*validation/accuracy",
            ),
            (
                "mode='lower'",
                lambda _: rule(mode="lower"),
                ValueError,
                "mode is 'lower'.*'min'.*'max'",
            ),
            (
                "patience=0",
                lambda _: rule(patience=0),
                ValueError,
                "patience is 0.*positive",
            ),
            (
                "min_delta=-1",
                lambda _: rule(min_delta=-1),
                ValueError,
                "min_delta is -1;.*number",
            ),
        ],
    )


def _loggers() -> list[Case]:
    return table(
        "Loggers",
        [
            (
                "json_logger of a folder",
                mlox.json_logger,
                IsADirectoryError,
                "json_logger cannot write to 'FOLDER'.*path of a file",
            ),
            (
                "json_logger under a file",
                lambda folder: mlox.json_logger(_under(folder)),
                FileExistsError,
                "json_logger cannot write to 'FOLDER/log/metrics.jsonl'.*path",
            ),
            (
                "json_logger of a number",
                lambda _: mlox.json_logger(3),
                TypeError,
                "json_logger: path is 3.*path",
            ),
            (
                "csv_logger of another table",
                lambda folder: mlox.csv_logger(_table(folder)),
                ValueError,
                "'FOLDER/table.csv'.*date,price.*another path",
            ),
            (
                "csv_logger of an image",
                lambda folder: mlox.csv_logger(_image(folder)),
                ValueError,
                "'FOLDER/image.png'.*PNG.*another path",
            ),
            (
                "csv_logger of a table with a broken row",
                lambda folder: mlox.csv_logger(_rows(folder)).resume(1),
                ValueError,
                "'two,0.25'.*cycle",
            ),
            (
                "csv_logger of one column, not in a list",
                lambda folder: mlox.csv_logger(folder / "m.csv", "fit/loss"),
                TypeError,
                "columns is 'fit/loss'.*list of names",
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
