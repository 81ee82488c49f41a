"""The value function and its gradient, exactly: in NumPy, apart from all methods.

The lower problem is solved, then the adjoint system H lambda = df/dy, at many x:

    F'(x) = df/dx - d/dx <lambda, dg/dy>.

Small jobs use dense matrices in float64; data cleaning a Newton method in float32,
whose systems are solved by preconditioned conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import rows


class Measured(NamedTuple):
    """What is measured at many x.

    Attributes:
        values: F.
        norms: The Euclidean norms of F'.
        answers: The solutions of the lower problem.
    """

    values: np.ndarray
    norms: np.ndarray
    answers: np.ndarray


Measure = Callable[[np.ndarray, np.ndarray], Measured]
Point = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]


def _each(point: Point) -> Measure:
    """Measure one x after the other."""

    def measure(many: np.ndarray, guesses: np.ndarray) -> Measured:
        found = [
            point(np.float64(x), np.float64(y))
            for x, y in zip(many, guesses, strict=True)
        ]
        values, slopes, answers = zip(*found, strict=True)
        norms = np.linalg.norm(np.stack(slopes), axis=1)
        return Measured(np.array(values), norms, np.stack(answers))

    return measure


def ridge(data: rows.Split) -> Measure:
    """Measure the selection of penalties of a least-squares fit."""
    (inputs, target), (test, goal) = (
        (np.float64(data[key]["inputs"]), np.float64(data[key]["target"]))
        for key in ("lower", "upper")
    )
    gram, moment = inputs.T @ inputs / len(target), inputs.T @ target / len(target)

    def point(x: np.ndarray, guess: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        del guess
        hessian = gram + np.diag(np.exp(x))
        y = np.linalg.solve(hessian, moment)
        wrong = test @ y - goal
        multiplier = np.linalg.solve(hessian, test.T @ wrong / len(goal))
        return 0.5 * np.mean(wrong**2), -np.exp(x) * y * multiplier, y

    return _each(point)


def logistic(data: rows.Split) -> Measure:
    """Measure the selection of penalties of a logistic regression."""
    (inputs, target), (test, goal) = (
        (np.float64(data[key]["inputs"]), np.float64(data[key]["target"]))
        for key in ("lower", "upper")
    )

    def point(x: np.ndarray, guess: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        penalty = np.exp(x)

        def slope_and_hessian(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            wrong = 1 / (1 + np.exp(target * (inputs @ y)))
            slope = -(wrong * target) @ inputs / len(target) + penalty * y
            curvature = wrong * (1 - wrong) / len(target)
            return slope, (inputs.T * curvature) @ inputs + np.diag(penalty)

        y = _newton(slope_and_hessian, guess)
        margin = goal * (test @ y)
        cotangent = -(goal / (1 + np.exp(margin))) @ test / len(goal)
        multiplier = np.linalg.solve(slope_and_hessian(y)[1], cotangent)
        value = float(np.mean(np.logaddexp(0, -margin)))
        return value, -penalty * y * multiplier, y

    return _each(point)


def _newton(
    slope_and_hessian: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    y: np.ndarray,
) -> np.ndarray:
    """Solve for a zero of the slope; steps are halved until its norm falls."""
    slope, hessian = slope_and_hessian(y)
    for _ in range(50):
        norm = np.linalg.norm(slope)
        if norm < 1e-12:
            break
        step = np.linalg.solve(hessian, slope)
        for _ in range(30):
            slope, hessian = slope_and_hessian(y - step)
            if np.linalg.norm(slope) < norm:
                break
            step = step / 2
        y = y - step
    return y


def quadratic(data: rows.Split) -> Measure:
    """Measure the quadratics."""
    g, f = (rows.mean_matrices(data[key]) for key in ("lower", "upper"))

    def point(x: np.ndarray, guess: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        del guess
        y = -np.linalg.solve(g["A"], g["C"].T @ x + g["p"])
        multiplier = np.linalg.solve(g["A"], f["A"] @ y + f["C"].T @ x + f["p"])
        slope = f["B"] @ x + f["C"] @ y + f["q"] - g["C"] @ multiplier
        value = y @ f["A"] @ y / 2 + x @ f["B"] @ x / 2 + x @ f["C"] @ y
        return float(value + f["p"] @ y + f["q"] @ x), slope, y

    return _each(point)


def cleaning(data: rows.Split, regularization: float) -> Measure:
    """Measure data cleaning; many x at once share the products with the images."""
    inputs, test = data["lower"]["inputs"], data["upper"]["inputs"]
    number = len(inputs)
    labels = np.eye(10, dtype=np.float32)[data["lower"]["target"]]
    goal = np.eye(10, dtype=np.float32)[data["upper"]["target"]]
    spectrum, basis = np.linalg.eigh(inputs.T @ inputs / number)

    # Arrays of many x are [rows, x, classes]: one matrix product serves them all.
    def apply(matrix: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (matrix @ z.reshape(len(z), -1)).reshape(-1, *z.shape[1:])

    def slope(z: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        likely = _softmax(apply(inputs, z))
        pulled = apply(inputs.T, weight * (likely - labels[:, None]))
        return pulled / number + 2 * regularization * z, likely

    def solver(
        likely: np.ndarray, weight: np.ndarray
    ) -> Callable[[np.ndarray, float], np.ndarray]:
        def product(v: np.ndarray) -> np.ndarray:
            moved = apply(inputs, v)
            moved -= (likely * moved).sum(-1, keepdims=True)
            pulled = apply(inputs.T, weight * likely * moved)
            return pulled / number + 2 * regularization * v

        # The Hessian as if the curvature of the softmax were the same for all rows.
        scale = np.mean(weight * likely * (1 - likely), axis=(0, 2))
        diagonal = spectrum[:, None] * scale + 2 * regularization

        def precondition(v: np.ndarray) -> np.ndarray:
            return apply(basis, apply(basis.T, v) / diagonal[:, :, None])

        return lambda b, tolerance: _solve(product, precondition, b, tolerance)

    def measure(many: np.ndarray, guesses: np.ndarray) -> Measured:
        weight = (1 / (1 + np.exp(-np.float32(many)))).T[:, :, None]
        z = np.ascontiguousarray(np.moveaxis(np.float32(guesses), 0, 1))
        here, likely = slope(z, weight)
        norm = _norms(here)
        for _ in range(20):
            if norm.max() < 1e-4:
                break
            step = solver(likely, weight)(here, 0.03)
            for _ in range(8):
                here, likely = slope(z - step, weight)
                worse = (_norms(here) > norm) & (norm > 1e-4)
                if not worse.any():
                    break
                step = np.where(worse[None, :, None], step / 2, step)
            z, norm = z - step, _norms(here)
        likely_test = _softmax(apply(test, z))
        cotangent = apply(test.T, likely_test - goal[:, None]) / len(test)
        multiplier = solver(likely, weight)(cotangent, 1e-3)
        moved = apply(inputs, multiplier) * (likely - labels[:, None])
        slopes = -(weight * (1 - weight))[:, :, 0] * moved.sum(-1) / number
        each = -np.log(np.maximum((likely_test * goal[:, None]).sum(-1), 1e-30))
        return Measured(
            each.mean(axis=0), np.linalg.norm(slopes, axis=0), np.moveaxis(z, 1, 0)
        )

    return measure


def _softmax(scores: np.ndarray) -> np.ndarray:
    likely = np.exp(scores - scores.max(-1, keepdims=True))
    return likely / likely.sum(-1, keepdims=True)


def _norms(v: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.square(v), axis=(0, 2)))


def _solve(
    product: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """Solve many systems by preconditioned conjugate gradients."""

    def dots(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.sum(v * w, axis=(0, 2))[:, None]

    solution, residual = np.zeros_like(b), b
    direction = improved = precondition(b)
    old, goal = dots(residual, improved), tolerance * _norms(b)
    for _ in range(100):
        if (_norms(residual) <= goal).all():
            break
        pushed = product(direction)
        length = old / np.maximum(dots(direction, pushed), 1e-30)
        solution = solution + length * direction
        residual = residual - length * pushed
        improved = precondition(residual)
        new = dots(residual, improved)
        direction = improved + new / np.maximum(old, 1e-30) * direction
        old = new
    return solution
