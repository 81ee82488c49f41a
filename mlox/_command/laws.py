"""The laws of `python -m mlox selftest`, each with the error that it allows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mlox
from mlox._check.precision import float64
from mlox._command.programs import (
    RATE,
    START,
    STEPS,
    X,
    answer,
    differentiate_numerically,
    make_quadratic,
    make_regression,
    solve_by_hand,
    unroll,
)

WIDE, NARROW = 1e-8, 5e-3  # allowed relative errors in float64 and float32
NUMERIC = 1e-6  # of central differences
LONG = 100  # steps in which a loop or a memory settles: each contracts by 0.6 or less
DAMPING = 0.1
MOST = 8  # devices, one by one


class Law(NamedTuple):
    """A law: what is compared with what, and the relative error that is allowed."""

    what: str
    precision: str
    tolerance: float
    measure: Callable[[], float]


class Claim(NamedTuple):
    """A method, and the multiplier (H, v) -> lambda that it claims."""

    method: Any
    multiplier: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.linalg.solve


CLAIMS = {
    "Implicit(CG)": Claim(mlox.Implicit(mlox.CG(20))),
    "Implicit(MINRES)": Claim(mlox.Implicit(mlox.MINRES(20))),
    "Implicit(GMRES)": Claim(mlox.Implicit(mlox.GMRES(20))),
    "Implicit(BiCGStab)": Claim(mlox.Implicit(mlox.BiCGStab(20))),
    "Implicit(Neumann)": Claim(mlox.Implicit(mlox.Neumann(LONG, step=RATE))),
    "Implicit(Richardson)": Claim(mlox.Implicit(mlox.Richardson(LONG, step=RATE))),
    "Implicit(CG, Nystrom)": Claim(
        mlox.Implicit(mlox.CG(20, preconditioner=mlox.Nystrom(2)))
    ),
    "Implicit(Nystrom)": Claim(
        mlox.Implicit(mlox.Nystrom(damping=DAMPING)),
        lambda H, v: np.linalg.solve(H + DAMPING * np.eye(len(v)), v),
    ),
    "Implicit(Dense)": Claim(mlox.Implicit(mlox.Dense())),
    "Implicit(Identity)": Claim(mlox.Implicit(mlox.Identity()), lambda H, v: v),
    "GaussNewton(CG)": Claim(mlox.GaussNewton(mlox.CG(20))),
    "FiniteDifference": Claim(mlox.FiniteDifference(), lambda H, v: v),
    "FixedPoint": Claim(mlox.FixedPoint(LONG)),
    "SAMA": Claim(mlox.SAMA(), lambda H, v: RATE * v),
    "SOBA": Claim(mlox.SOBA(step=RATE)),
    "Unrolled": Claim(mlox.Unrolled()),
    "Forward": Claim(mlox.Forward()),
}
LOOPS = ("Unrolled", "Forward")


def list_laws() -> Iterator[Law]:
    """List the laws, the cheap ones in front."""
    yield Law("a checkpoint's round trip", "float32", 0.0, measure_checkpoint)
    for wide in (True, False):
        precision, tolerance = ("float64", WIDE) if wide else ("float32", NARROW)
        for name in CLAIMS:
            what = f"{name}: closed form"
            yield Law(what, precision, tolerance, _solved(name, wide))
    for name in LOOPS:
        what = f"{name}: differences of its loop"
        yield Law(what, "float64", NUMERIC, _unsolved(name))
    what = "Implicit(CG): central differences"
    yield Law(what, "float64", NUMERIC, lambda: measure_differences("Implicit(CG)"))
    devices = jax.local_devices()
    for device in devices[1:MOST]:
        what = f"Implicit(CG): on {device}"
        yield Law(what, "float32", NARROW, _solved("Implicit(CG)", False, device))
    if len(devices) > 1:
        what = f"a step: {len(devices)} devices against one"
        yield Law(what, "float32", NARROW, measure_sharded)


def _solved(name: str, wide: bool, device: Any = None) -> Callable[[], float]:
    return lambda: measure(name, wide, device)


def _unsolved(name: str) -> Callable[[], float]:
    return lambda: measure_loop(name)


def measure(name: str, wide: bool, device: Any = None) -> float:
    """Return the error of the hypergradient of a method, at the lower's answer."""
    steps = LONG if name in LOOPS else 1
    with contextlib.ExitStack() as stack:
        if wide:
            stack.enter_context(float64("selftest", "upper"))
        if device is not None:
            stack.enter_context(jax.default_device(device))
        found = _hypergradient(name, answer(X), steps)
    return _distance(found, solve_by_hand(CLAIMS[name].multiplier))


def measure_loop(name: str) -> float:
    """Return the error of the hypergradient of a loop that ends too early."""
    with float64("selftest", "upper"):
        found = _hypergradient(name, START, STEPS)
    return _distance(found, differentiate_numerically(unroll))


def measure_differences(name: str) -> float:
    """Return the distance to central differences of the solved nested problem."""
    with float64("selftest", "upper"):
        found = _hypergradient(name, answer(X), 1)
    return _distance(found, differentiate_numerically(answer))


def measure_sharded() -> float:
    """Return the distance of a step on all devices to the step on one."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
    engine, batches = make_regression(rows=4 * len(devices))
    state, step = engine.init(), jax.jit(engine.step)
    alone = step(state, batches)[0]
    spread = mlox.shard_batches(engine, batches, mesh)
    together = step(mlox.shard(engine, state, mesh), spread)[0]
    return max(
        _distance(np.asarray(together[name].params), np.asarray(alone[name].params))
        for name in engine.names
    )


def measure_checkpoint() -> float:
    """Return the largest difference after saving and restoring a state."""
    engine = make_quadratic(CLAIMS["Implicit(CG)"].method, jnp.float32, START, 1)
    state = engine.init()
    with tempfile.TemporaryDirectory() as folder:
        mlox.save(folder, state, cycle=1)
        zeros = jax.tree.map(jnp.zeros_like, state)
        restored = mlox.restore(folder, zeros)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    gaps = (np.abs(np.asarray(x, float) - np.asarray(y, float)) for x, y in pairs)
    return float(max(gap.max() for gap in gaps))


def _hypergradient(name: str, start: np.ndarray, steps: int) -> np.ndarray:
    """Return a hypergradient, after a memory has settled while the upper rests."""
    dtype = jnp.result_type(float)
    engine = make_quadratic(CLAIMS[name].method, dtype, start, steps)
    state = engine.init()
    if state["upper"].memory is not None:
        state = engine.run(state, None, LONG, loggers=(), progress=False)[0]
    found = engine.hypergradient(state, dict.fromkeys(engine.names), "upper")[1]
    return np.asarray(found, np.float64)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
