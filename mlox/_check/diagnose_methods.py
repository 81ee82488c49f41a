"""Diagnose methods and solvers: what they return at the answer that they are given."""

from __future__ import annotations

from collections.abc import Iterator

from mlox._check.figures import WRONG, Figures, Lower
from mlox._check.finding import Cause, Finding
from mlox._check.kinds import (
    fixed_step,
    is_approximate,
    is_foreign,
    name_omission,
    needs_definite,
)
from mlox._check.vectors import Distance
from mlox._utils.describe import show_call
from mlox.methods import SOBA


def diagnose_coupling(figures: Figures) -> Iterator[Finding]:
    """Yield direct coupling where it leaves out something that counts."""
    distance = figures.differences.coupling
    if distance is not None and figures.direct and not distance.error < WRONG:
        yield Finding(
            Cause.COUPLING,
            figures.name,
            f"coupling='direct' takes the lowers of each problem as fixed: the "
            f"hypergradient is {distance.text} off the one in which they respond "
            f"(cosine {distance.cosine:.2f}).",
            "Use coupling='total', which is exact at any depth.",
        )


def diagnose_curvature(figures: Figures) -> Iterator[Finding]:
    """Yield Hessians that are indefinite where a method needs a definite one."""
    solver = figures.differences.solver
    solved = solver is None or solver.error < WRONG
    if solved and not figures.unsolved:
        return
    for lower in figures.lowers:
        low, high = lower.eigenvalues or (0.0, 0.0)
        if needs_definite(lower.method) and low < -1e-3 * abs(high):
            yield Finding(
                Cause.INDEFINITE,
                lower.name,
                f"{show_call(lower.method)} needs a positive definite Hessian, but the "
                f"smallest eigenvalue of that of {lower.name!r} is {low:.3g} (the "
                f"largest {high:.3g}): the answer is no minimum.",
                _make_definite(lower, -low),
            )


def _make_definite(lower: Lower, least: float) -> str:
    """Return the remedies for a Hessian with the smallest eigenvalue -least."""
    if not lower.starts:
        return (
            f"Solve the lower further, add damping of more than {least:.2g}, or use "
            "mlox.GMRES()."
        )
    # Implicit MAML is not meant to be solved: the pull makes the matrix definite.
    return (
        "Use mlox.GaussNewton() with mlox.Proximal(mlox.Composed(outputs, loss), "
        f"to={lower.starts[0]!r}, strength=...), whose matrix is definite for every "
        f"strength, or raise the strength by more than {least:.2g}."
    )


def diagnose_methods(figures: Figures) -> Iterator[Finding]:
    """Yield methods and solvers that do not solve their systems."""
    distance, indirect = figures.differences.solver, figures.differences.indirect
    if distance is None or indirect is None:
        if figures.differences.window is not None:
            yield from _diagnose_directions(figures, figures.differences.indirect)
        return
    yield from _diagnose_directions(figures, indirect)
    if distance.error < WRONG:
        return
    judged = [n for n in figures.lowers if n.top and not is_approximate(n.method)]
    # What such a method solves has a residual of its own.
    judged = [
        n for n in judged if not (n.rests_elsewhere and (n.residual or 0.0) < WRONG)
    ]
    found = [f for lower in judged for f in _diagnose_system(lower, distance)]
    yield from found
    foreign = [n for n in judged if is_foreign(n.method)]
    if not found and foreign:
        yield _blame_method(foreign[0], distance, indirect)
    elif not found and judged:
        yield _blame_solver(max(judged, key=lambda n: n.residual or 0.0), distance)


def _diagnose_directions(
    figures: Figures, indirect: Distance | None
) -> Iterator[Finding]:
    """Yield approximations that point the wrong way."""
    for lower in figures.lowers:
        if is_approximate(lower.method) and indirect and indirect.cosine < 0:
            yield Finding(
                Cause.METHOD_WRONG,
                lower.name,
                f"{show_call(lower.method)} leaves out {name_omission(lower.method)} "
                f"of {lower.name!r}, and here that turns its part of the hypergradient "
                f"round (cosine {indirect.cosine:.2f} with the exact one).",
                "Use mlox.Implicit() or mlox.Unrolled().",
            )


def _diagnose_system(lower: Lower, distance: Distance) -> Iterator[Finding]:
    """Yield why a solver cannot solve the system of an answer."""
    if lower.eigenvalues is None:
        return
    high = lower.eigenvalues[1]
    part = fixed_step(lower.method)
    if part is not None and part.step is not None:
        most = high + (0.0 if isinstance(part, SOBA) else part.damping)
        if part.step * most >= 2:
            yield Finding(
                Cause.STEP_TOO_LARGE,
                lower.name,
                f"{type(part).__name__}(step={part.step:g}) grows without bound: the "
                f"largest eigenvalue of the Hessian of {lower.name!r} is {most:.3g}, "
                f"and it converges for steps below {2 / most:.3g}. The hypergradient "
                f"is {distance.text} off.",
                f"Use step={_round_down(1 / most)}, or mlox.CG().",
            )
            return


def _blame_method(lower: Lower, distance: Distance, indirect: Distance) -> Finding:
    sign = " It points the opposite way." if indirect.cosine < -0.9 else ""
    return Finding(
        Cause.METHOD_WRONG,
        lower.name,
        f"{show_call(lower.method)} gives a hypergradient that is {distance.text} off "
        f"the exact solve at the same answer; its indirect part has the cosine "
        f"{indirect.cosine:.2f} and {indirect.ratio:.3g} times the length.{sign}",
        "multiplier must return (dG/dy)^-T cotangent, and pairing <multiplier, G>.",
    )


def _blame_solver(lower: Lower, distance: Distance) -> Finding:
    residual = "" if lower.residual is None else f" (residual {lower.residual:.2g})"
    condition = ""
    if lower.eigenvalues is not None and lower.eigenvalues[0] > 0:
        low, high = lower.eigenvalues
        condition = f" The condition of the Hessian is {high / low:.2g}."
    return Finding(
        Cause.SOLVER_TOO_SHORT,
        lower.name,
        f"{show_call(lower.method)} has not solved its system{residual}: the "
        f"hypergradient is {distance.text} off the exact solve at the same answer."
        f"{condition}",
        "Its multiplier makes one step per step of the upper: take smaller steps of "
        "the upper, or mlox.Implicit(mlox.CG(), warm_start=True)."
        if isinstance(lower.method, SOBA)
        else "Use more iterations, or a smaller tolerance or damping.",
    )


def _round_down(value: float) -> str:
    digits = f"{value:.0e}"
    return f"{float(digits) if float(digits) <= value else value * 0.9:.2g}"
