"""Run the public benchmark's own solvers on the jobs, beside the methods of mlox.

    git clone https://github.com/benchopt/benchmark_bilevel
    python -m venv originals; originals/bin/pip install benchopt jax optax scikit-learn
    PYTHONPATH=. originals/bin/python benchmarks/bilevel/originals.py benchmark_bilevel

Their programs are imported as they are, from the folder of the checkout, and given the
costs, the data and the starts of jobs.py; they are tuned like the methods of mlox, with
as many settings, seeds and evaluations. Results have the names "SOBA (original)" etc.
Run it with benchopt 1.10 and JAX 0.10.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves
import jax
import jax.numpy as jnp
import jobs
import numpy as np
import results
import runs
import tune
from programs import Method

ROUNDS = 10


@dataclass(frozen=True)
class Original:
    """A solver of the public benchmark.

    Attributes:
        module: Its file.
        evaluations: The price of a step by the rules of `programs.Program`.
        options: Values of its own, of which each step length is tried with one.
        fixed: Its other values.
    """

    module: str
    evaluations: int
    options: tuple[dict[str, Any], ...] = ({},) * 4
    fixed: tuple[tuple[str, Any], ...] = ()


TWO_LOOPS = (("n_inner_steps", ROUNDS),)
ORIGINALS = {
    "SOBA": Original("soba", 1 + 2 + 2 + 1),
    "SABA": Original("saba", 1 + 2 + 2 + 1),
    "FSLA": Original("fsla", 1 + (2 + 1) + 2 * (2 + 1)),
    "AmIGO": Original("amigo", 3 * ROUNDS + 3, fixed=TWO_LOOPS),
    "stocBiO": Original(
        "stocbio", 3 * ROUNDS + 3, fixed=(*TWO_LOOPS, ("n_shia_steps", ROUNDS))
    ),
    # Each inner step: two gradients of the lower and one of the upper cost.
    "F2SA": Original(
        "f2sa",
        3 * ROUNDS + 3,
        options=tuple({"delta_lmbda": d} for d in (0.01, 0.1, 1.0, 0.1)),
        fixed=TWO_LOOPS,
    ),
    # All at the old and the new point.
    "MRBO": Original(
        "mrbo", 2 * (1 + 1 + 2 * ROUNDS + 2), fixed=(("n_shia_steps", ROUNDS),)
    ),
}


def load(folder: Path, name: str) -> type[Any]:
    """Import a solver from a checkout."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(f"solvers.{ORIGINALS[name].module}").Solver


def make_solver(
    kind: type[Any], name: str, job: jobs.Job, setting: tune.Setting, seed: int
) -> Any:
    """Return a solver with its problem."""
    original = ORIGINALS[name]
    solver = kind()
    values = {
        "step_size": setting.step,
        "outer_ratio": setting.step / setting.rate,
        "batch_size": job.batch,
        "random_state": seed,
        "eval_freq": 1,
        **dict(original.fixed),
        **(setting.option or {}),
    }
    defaults = {key: value[0] for key, value in kind.parameters.items()}
    for key, value in {**defaults, **values}.items():
        setattr(solver, key, value)
    solver.run_once = lambda *_: None  # its warm-up, which needs benchopt's runner
    solver.set_objective(**objective(job))
    return solver


@functools.cache
def objective(job: jobs.Job) -> dict[str, Any]:
    """Return a job as the public benchmark hands it to solvers; y is flat there."""
    shape, size = job.y.shape, job.y.size

    def cost(which: str) -> Callable[..., jax.Array]:
        rows = jax.tree.map(jnp.asarray, job.data[which])
        function = getattr(job, which)

        def value(y: Any, x: Any, start: Any = 0, batch_size: int = 1) -> jax.Array:
            batch = {
                key: jax.lax.dynamic_slice_in_dim(array, start, batch_size)
                for key, array in rows.items()
            }
            return function(y.reshape(shape), x, {**batch, "start": start})

        return value

    return {
        "f_inner": cost("lower"),
        "f_outer": cost("upper"),
        "n_inner_samples": len(next(iter(job.data["lower"].values()))),
        "n_outer_samples": len(next(iter(job.data["upper"].values()))),
        "inner_var0": jnp.asarray(job.y).reshape(size),
        "outer_var0": jnp.asarray(job.x),
    }


class Advance:
    """The program of a solver, compiled once for all settings that share it."""

    def __init__(self, solver: Any, name: str) -> None:
        self.table = name == "SABA"
        step = solver.get_step(*_samplers(solver))

        def advance(carry: Any, number: Any) -> Any:
            return jax.lax.fori_loop(0, number, lambda _, c: step(c, None)[0], carry)

        self.advance = jax.jit(advance, donate_argnums=0)


def _samplers(solver: Any) -> tuple[Any, Any]:
    from benchmark_utils.minibatch_sampler import init_sampler

    return tuple(
        init_sampler(n_samples=number, batch_size=solver.batch_size)[0]
        for number in (solver.n_inner_samples, solver.n_outer_samples)
    )


def fresh(solver: Any) -> Any:
    """Return the first carry; copies, as its buffers are given away."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), solver.init())


def point(carry: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a carry."""
    found = carry[1] if isinstance(carry, tuple) else carry
    return np.asarray(found["outer_var"]), np.asarray(found["inner_var"])


def one_run(
    job: jobs.Job, name: str, solver: Any, program: Advance, steps: np.ndarray
) -> runs.Curve:
    """Run a solver once, measured where methods of mlox are."""
    carry = program.advance(fresh(solver), np.int32(0))
    seconds, found = 0.0, []
    for number in np.diff(steps, prepend=np.int32(0)):
        begin = time.process_time()
        carry = jax.block_until_ready(program.advance(carry, np.int32(number)))
        seconds += (time.process_time() - begin) if number else 0.0
        found.append((seconds, *point(carry)))
    spent, xs, ys = map(np.array, zip(*found, strict=True))
    evaluations = steps * ORIGINALS[name].evaluations
    return runs.Curve(evaluations, spent, xs, ys.reshape(len(ys), *job.y.shape))


def choose(folder: Path, job: jobs.Job, name: str) -> tune.Setting:
    """Return the best of as many settings as the methods of mlox have."""
    original, kind = ORIGINALS[name], load(folder, name)
    settings = tune.draw_settings(job, Method(None, options=original.options))
    program, steps, found = None, job.trial // original.evaluations, []
    for setting in settings:
        values = []
        for seed in tune.SEEDS:
            solver = make_solver(kind, name, job, setting, seed)
            # Lengths of steps are in the carry, so that one program serves all.
            program = program or Advance(solver, name)
            x, y = point(program.advance(fresh(solver), np.int32(steps)))
            (value,), *_ = runs.measure(job, x[None], y.reshape(1, *job.y.shape))
            values.append(value)
        found.append(setting._replace(value=float(np.mean(values)), decay=0.0))
    return tune.best_of(found)


def main() -> None:
    """Tune and run the solvers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout of benchmark_bilevel")
    parser.add_argument("--jobs", nargs="+", choices=jobs.JOBS, default=list(jobs.JOBS))
    parser.add_argument("--solvers", nargs="+", choices=ORIGINALS, default=[*ORIGINALS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    options = parser.parse_args()
    for job_name in sorted(options.jobs, key=lambda name: name in tune.TUNED_ON):
        job = jobs.JOBS[job_name]()
        for name in options.solvers:
            label, kind = f"{name} (original)", load(options.folder, name)
            other = tune.TUNED_ON.get(job.name)
            known = results.read(other, options.results)["settings"] if other else {}
            setting = (
                tune.Setting(**known[label])
                if label in known
                else choose(options.folder, job, name)
            )
            program, found = None, []
            steps = runs.steps_at_price(ORIGINALS[name].evaluations, job.budget)
            for seed in range(options.seeds):
                solver = make_solver(kind, name, job, setting, seed)
                program = program or Advance(solver, name)
                found.append(one_run(job, name, solver, program, steps))
            measured = curves.curves_of(job, label, found)
            chosen = {label: setting._asdict()}
            results.update(job, options.results, chosen, measured, tune.describe(job))
            print(f"{job.name:13} {label:20} {curves.summary(measured)}", flush=True)


if __name__ == "__main__":
    main()
