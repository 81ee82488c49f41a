"""`python -m mlox selftest`: the laws on this installation."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox
from mlox._check.precision import float64
from mlox._check.table import format_table

SIZE = 4
STEPS = 100  # of an unrolled lower: it contracts by 0.7 a step
RATE = 0.2
WIDE, NARROW = 1e-8, 5e-3  # allowed relative errors in float64 and float32
METHODS: dict[str, Any] = {
    "Implicit(CG)": mlox.Implicit(mlox.CG(20)),
    "Implicit(MINRES)": mlox.Implicit(mlox.MINRES(20)),
    "Implicit(GMRES)": mlox.Implicit(mlox.GMRES(20)),
    "Implicit(BiCGStab)": mlox.Implicit(mlox.BiCGStab(20)),
    "Implicit(Dense)": mlox.Implicit(mlox.Dense()),
    "GaussNewton(CG)": mlox.GaussNewton(mlox.CG(20)),
    "Unrolled": mlox.Unrolled(),
    "Forward": mlox.Forward(),
}
LOOPS = ("Unrolled", "Forward")


class Law(NamedTuple):
    """A law: what is compared with what, and the relative error that is allowed."""

    what: str
    precision: str
    tolerance: float
    measure: Callable[[], float]


def add_to(commands: Any) -> None:
    """Add the command to a parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "selftest",
        help="check hypergradients and checkpoints on this installation",
        description="Check hypergradients against a closed form by a dense solve, and "
        "against central differences, in float64 and float32 on the default device, on "
        "the other devices, and a checkpoint's round trip. Takes less than a minute, "
        "and exits with 1 if a law fails.",
        epilog="example: python -m mlox selftest",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table of all laws; return 1 if one fails."""
    del options
    began = time.perf_counter()
    rows: list[list[str]] = []
    reasons: list[str] = []
    for law in list_laws():
        try:
            error = law.measure()
        except Exception as failure:
            error = float("nan")
            first = (str(failure).splitlines() or [""])[0]
            reasons.append(f"{law.what}: {type(failure).__name__}: {first}"[:100])
        holds = error <= law.tolerance  # not if it is NaN
        verdict = "ok" if holds else "FAILED"
        shown = [f"{error:.1e}", f"{law.tolerance:.0e}", verdict]
        rows.append([law.what, law.precision, *shown])
    header = ["law", "precision", "error", "allowed", ""]
    print("\n".join(format_table(header, rows)))
    failed = sum(row[-1] != "ok" for row in rows)
    for reason in reasons:
        print(reason)
    print(
        f"{len(rows) - failed} of {len(rows)} laws hold on {jax.devices()[0]} "
        f"({jax.devices()[0].device_kind}), {time.perf_counter() - began:.0f} s"
    )
    if failed:
        print("Run `python -m mlox info`, and report both outputs.")
    return int(failed > 0)


def list_laws() -> Iterator[Law]:
    """List the laws, the cheap ones in front."""
    yield Law("a checkpoint's round trip", "float32", 0.0, measure_checkpoint)
    for wide in (True, False):
        precision, tolerance = ("float64", WIDE) if wide else ("float32", NARROW)
        for name in METHODS:
            yield Law(
                f"{name}: closed form",
                precision,
                tolerance,
                lambda name=name, wide=wide: measure(name, wide, solve_by_hand()),
            )
    yield Law(
        "Implicit(CG): central differences",
        "float64",
        1e-6,
        lambda: measure("Implicit(CG)", True, differentiate_numerically()),
    )
    for device in jax.local_devices()[1:8]:
        yield Law(
            f"Implicit(CG): on {device}",
            "float32",
            NARROW,
            lambda device=device: measure(
                "Implicit(CG)", False, solve_by_hand(), device
            ),
        )


# The lower min_y y^T H y / 2 - b^T y with H = A + diag(exp x) has the answer H^-1 b,
# and the upper |y - 1|^2 / 2 the hypergradient -lambda exp(x) y, lambda = H^-1 (y - 1).
A = np.diag(np.full(SIZE, 2.0)) - np.diag(np.full(SIZE - 1, 0.5), 1)
A = (A + A.T) / 2
B = np.linspace(1.0, 2.0, SIZE)
X = np.linspace(-0.5, 0.5, SIZE)


def answer(x: np.ndarray) -> np.ndarray:
    """Return the answer of the lower, by a dense solve."""
    return np.linalg.solve(A + np.diag(np.exp(x)), B)


def solve_by_hand() -> np.ndarray:
    """Return the hypergradient in closed form."""
    y = answer(X)
    multiplier = np.linalg.solve(A + np.diag(np.exp(X)), y - 1)
    return -multiplier * np.exp(X) * y


def differentiate_numerically(step: float = 1e-5) -> np.ndarray:
    """Return the hypergradient by central differences of the solved nested problem."""

    def cost(x: np.ndarray) -> float:
        return float(np.sum((answer(x) - 1) ** 2) / 2)

    moves = step * np.eye(SIZE)
    return np.array([(cost(X + m) - cost(X - m)) / (2 * step) for m in moves])


def make_engine(method: Any, dtype: Any, steps: int) -> mlox.Engine:
    """Return the engine of the program above; its lower is solved."""

    def lower_loss(y: Any, batch: Any, ctx: Any) -> Any:
        h = jnp.asarray(A, dtype) @ y + jnp.exp(ctx.upper.params) * y
        return jnp.vdot(y, h) / 2 - jnp.vdot(jnp.asarray(B, dtype), y)

    def upper_loss(x: Any, batch: Any, ctx: Any) -> Any:
        return jnp.sum((ctx.lower.params - 1) ** 2) / 2

    # In parts, for Gauss-Newton products: its outputs are its parameters.
    parts = mlox.Composed(
        lambda y, batch, ctx: y,
        lambda outputs, batch, ctx: lower_loss(outputs, batch, ctx),
    )
    upper = mlox.Problem.create(
        name="upper",
        params=jnp.asarray(X, dtype),
        tx=optax.sgd(RATE),
        loss_fn=upper_loss,
    )
    lower = mlox.Problem.create(
        name="lower",
        params=jnp.asarray(answer(X), dtype),
        tx=optax.sgd(RATE),
        loss_fn=parts,
        method=method,
        unroll_steps=steps,
    )
    return mlox.Engine([upper, lower], {"upper": ["lower"]}, {"lower": ["upper"]})


def measure(name: str, wide: bool, expected: np.ndarray, device: Any = None) -> float:
    """Return the relative error of the hypergradient of a method."""
    with contextlib.ExitStack() as stack:
        if wide:
            stack.enter_context(float64("selftest", "upper"))
        if device is not None:
            stack.enter_context(jax.default_device(device))
        dtype = jnp.float64 if wide else jnp.float32
        engine = make_engine(METHODS[name], dtype, STEPS if name in LOOPS else 1)
        batches = dict.fromkeys(engine.names)
        found = engine.hypergradient(engine.init(), batches, "upper")[1]
        slope = np.asarray(found, np.float64)
    return float(np.linalg.norm(slope - expected) / np.linalg.norm(expected))


def measure_checkpoint() -> float:
    """Return the largest difference after saving and restoring a state."""
    engine = make_engine(METHODS["Implicit(CG)"], jnp.float32, 1)
    state = engine.init()
    with tempfile.TemporaryDirectory() as folder:
        mlox.save(folder, state, cycle=1)
        zeros = jax.tree.map(jnp.zeros_like, state)
        restored = mlox.restore(folder, zeros)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    gaps = (np.abs(np.asarray(x, float) - np.asarray(y, float)) for x, y in pairs)
    return float(max(gap.max() for gap in gaps))
