"""Check a hypergradient on the user's own problem."""

from __future__ import annotations

from mlox._check.budget import DEFAULT
from mlox._check.diagnose import diagnose
from mlox._check.diagnose_edges import find_reversed
from mlox._check.figures import Figures
from mlox._check.measure import Measured, measure
from mlox._check.report import Report, Row
from mlox._check.setting import Setting
from mlox._engine.engine import Engine
from mlox._engine.validation import name_of_known
from mlox._problem.own_reset import OwnReset
from mlox._problem.problem import Problem
from mlox._utils.describe import show_call
from mlox._utils.fields import COUNT_OR_ZERO, POSITIVE, instance_of, optional
from mlox._utils.fields import check as check_value
from mlox._utils.types import Batches, State

ENGINE = instance_of(Engine, "an engine, made by mlox.Engine")


def check(
    engine: Engine,
    state: State,
    batches: Batches,
    name: str | Problem,
    *,
    budget: float | None = None,
    seed: int = 0,
) -> Report:
    r"""Check the hypergradient of a problem, and say what is wrong with it.

    The lowers run first, as in `engine.hypergradient`. At the answers that they reach,
    the hypergradient is compared with references, in float64. Each difference has a
    cause of its own:

        configured - exact solve at the same answer         the solver, or the method
        exact there - exact at the solved answer            a lower that is not solved
        exact there - differences of the re-solved loss     the loss itself
        configured - exact unroll of the window             truncation
        unrolled - differences of the very program          the loss, or chaos
        configured - the same in another precision          rounding

    "Exact" is a dense solve for up to 256 unknowns, and a long one beyond. A solved
    answer is found by Newton's method, over all batches and keys of the window at once.
    Differences are central ones, along random directions (all of a small space). Beside
    them the losses are probed: whether they read their neighbours, whether their
    derivatives are those of their values, whether two traces agree, whether they jump;
    and the optimizers of the lowers. An error of 0.05 counts as wrong; one of 0.1 if
    it comes from a lower that lags, as lowers do while they are trained.

    Check a state that a run has reached: at its start a lower is rarely solved. Use
    large batches: the hypergradient of a small one is noise, and so is its error.

    Args:
        engine: The engine.
        state: {name: Problem}; it does not change.
        batches: The batches of one cycle, as for `engine.step`.
        name: The problem with lowers whose hypergradient is checked, or its name.
        budget: The most that the references may cost, estimated before they are
            computed, in gradients of losses (a step of an optimizer takes one, a
            product with a Hessian two). Those beyond it are left out and listed, and
            Newton's method takes no more steps than fit. None means 200,000.
        seed: The seed of random directions.

    Returns:
        A `mlox.Report`: `report.findings` says what is wrong, with the remedies, and
        `print(report)` shows it all.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the problem is unknown or has no lowers that respond to it, or
            as for `engine.step`.

    References:
        Pedregosa, Hyperparameter optimization with approximate
        gradient, ICML 2016; Becker and Rannacher, An optimal control approach to a
        posteriori error estimation, 2001 (the gap).

    Example:
        Two steps of a solver are not enough for a condition of 100:

        >>> import jax.numpy as jnp, mlox, optax
        >>> scales = jnp.array([1.0, 4.0, 100.0])
        >>> pull = mlox.Problem.create(
        ...     name="pull", params=jnp.ones(3), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ((ctx.fit.params - 2.0) ** 2).sum())
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.ones(3), tx=optax.sgd(0.01),
        ...     method=mlox.Implicit(mlox.CG(iterations=1)),
        ...     loss_fn=lambda params, batch, ctx:
        ...         (scales * (params - ctx.pull.params) ** 2).sum())
        >>> engine = mlox.Engine([pull, fit], {"pull": ["fit"]}, {"fit": ["pull"]})
        >>> batches = {"pull": None, "fit": None}
        >>> report = mlox.check(engine, engine.init(), batches, "pull")
        >>> [finding.cause.name for finding in report.findings]
        ['SOLVER_TOO_SHORT']
    """
    check_value("check: engine", engine, ENGINE)
    check_value("check: budget", budget, optional(POSITIVE))
    check_value("check: seed", seed, COUNT_OR_ZERO)
    name = name_of_known("check", engine.names, name)
    if not engine.cycle.plan.movers[name]:
        return Report(name, (), {}, (find_reversed(engine, name),), {}, {})
    _check_resets(engine, state, name)
    setting = Setting(engine.traced.prepare(state, batches), name)
    measured = measure(
        setting, state, batches, DEFAULT if budget is None else budget, seed
    )
    return make_report(measured)


def _check_resets(engine: Engine, state: State, name: str) -> None:
    """Raise ValueError if an answer is that of copies at random perturbations."""
    for lower in sorted(engine.cycle.plan.movers[name].intersection(state)):
        if isinstance(state[lower].reset, OwnReset):
            raise ValueError(
                f"check of {name!r}: {lower!r} stands for copies at random "
                "perturbations, as mlox.evolve makes them, whose estimate has nothing "
                "to be compared with. Check the graph as it was before, if its losses "
                "have derivatives; or take the mean of many estimates."
            )


def make_report(measured: Measured) -> Report:
    """Return the report of what was measured."""
    figures = measured.figures
    return Report(
        name=figures.name,
        rows=make_rows(figures),
        figures=name_figures(figures),
        findings=diagnose(figures),
        costs={part.value: cost for part, cost in measured.costs.items()},
        left_out={part.value: cost for part, cost in measured.left.items()},
        notes=note_unjudged(figures),
    )


def note_unjudged(figures: Figures) -> tuple[str, ...]:
    """Return what to know of comparisons that were not made, or not judged."""
    notes: list[str] = []
    if figures.held and any(lower.unrolled for lower in figures.lowers):
        pairs = ", ".join(f"{a!r} reads {b!r}" for a, b in figures.held)
        notes.append(
            "Differences of the program are left out: they would move what the "
            f"hypergradient holds fixed as a constant ({pairs})."
        )
    if figures.sampled:
        names = ", ".join(map(repr, sorted(figures.sampled)))
        notes.append(
            f"Losses that sample ({names}) are not judged by differences of their "
            "values, which hold the samples fixed or jump with them. Where there are "
            "few outcomes, check the program with all of them, weighted."
        )
    for lower in figures.lowers:
        if lower.rests_elsewhere and lower.top:
            notes.append(
                f"The optimizer of {lower.name!r} moves at a zero gradient (weight "
                "decay), so that it rests elsewhere than its loss: "
                f"{show_call(lower.method)} is not judged by the answer that solves "
                "the loss. Compare with mlox.Unrolled()."
            )
    if not figures.converged:
        which = "rows against it"
        if figures.unsolved:
            which = "differences of the re-solved loss"
        notes.append(f"The solved answer was not found: {which} are not judged.")
    return tuple(notes)


def make_rows(figures: Figures) -> tuple[Row, ...]:
    """Return the comparisons that were made."""
    d = figures.differences
    rows = (
        ("configured - exact solve, same answer", d.solver, "solver or method"),
        ("direct - total coupling", d.coupling, "coupling"),
        ("same answer - solved answer", d.lower, "lower unsolved"),
        ("solved answer - differences, re-solved", d.loss, "loss"),
        ("configured - whole window", d.window, "truncation"),
        ("unrolled - differences of the program", d.program, "loss, or chaos"),
        (
            f"configured - in float{32 if figures.double else 64}",
            d.precision,
            "rounding",
        ),
    )
    return tuple(
        Row(name, x.cosine, x.ratio, x.error, cause)
        for name, x, cause in rows
        if x is not None
    )


def name_figures(figures: Figures) -> dict[str, float]:
    """Return the numbers that were measured, by names to print."""
    named = {
        "loss": figures.loss,
        "gap": figures.gap,
        "stationarity": figures.stationarity,
        "noise over batches and keys": figures.noise,
        "metasmoothness": figures.metasmoothness,
    }
    for lower in figures.lowers:
        low, high = lower.eigenvalues or (None, None)
        named |= {
            f"{lower.name}: residual of the solver": lower.residual,
            f"{lower.name}: products of the solver": lower.iterations,
            f"{lower.name}: distance to the solved answer": lower.distance,
            f"{lower.name}: smallest eigenvalue": low,
            f"{lower.name}: largest eigenvalue": high,
        }
    return {key: value for key, value in named.items() if value is not None}
