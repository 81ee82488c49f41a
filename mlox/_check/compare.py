"""Compare methods on the user's own problem."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlox._check.budget import DEFAULT, Part, afford_steps, prices
from mlox._check.check import ENGINE
from mlox._check.comparison import Candidate, Comparison
from mlox._check.diagnose_edges import name_others
from mlox._check.exact import Exact
from mlox._check.experiment import Experiment
from mlox._check.measure import count_sizes
from mlox._check.precision import cast, cast_state, float64
from mlox._check.reference import solver_for
from mlox._check.setting import Setting
from mlox._check.vectors import as_vector, compare_vectors
from mlox._engine.engine import Engine
from mlox._engine.validation import name_of_known
from mlox._hypergradient.memory import start_memories
from mlox._problem.problem import Problem
from mlox._utils.fields import COUNT, POSITIVE, Kind, instance_of, optional
from mlox._utils.fields import check as check_value
from mlox._utils.tree import STANDARD_PROMOTION
from mlox._utils.types import Batches, State
from mlox.methods import Loop, Method, Unrolled

METHOD = instance_of(Method | Loop, "a method, e.g. mlox.Implicit() or mlox.Unrolled()")
CANDIDATES = instance_of(
    Mapping, "a dict {problem: {name: method}}, e.g. {'fit': {'cg': mlox.Implicit()}}"
)


def compare(
    engine: Engine,
    state: State,
    batches: Batches,
    name: str | Problem,
    candidates: Mapping[str, Mapping[str, Any]],
    *,
    budget: float | None = None,
    repeats: int = 5,
) -> Comparison:
    """Compare methods for the answers below a problem, by error, time and memory.

    Each candidate replaces the method of its problem, all else stays: candidates of
    several problems are tried one at a time, not in all combinations. A method with
    memory (`mlox.SOBA`, a warm start) begins with its first memory. The reference is
    the exact hypergradient at the solved answers (see `mlox.check`); where these cannot
    be found, or start from a `reset`, or the budget does not reach, it is the exact
    unroll of the window.

    Compare methods by their time. The FLOPs are those that XLA counts, the body of a
    loop once: `CG(3)` and `CG(30)` have the same.

    Args:
        engine: The engine.
        state: {name: Problem}; it does not change.
        batches: The batches of one cycle, as for `engine.step`.
        name: The problem whose hypergradient is computed, or its name.
        candidates: {problem: {name: method}}.
        budget: The most that the reference may cost, estimated as for `mlox.check`, in
            gradients of losses; None means 200,000.
        repeats: The number of timed runs of each candidate; they alternate.

    Returns:
        A `mlox.Comparison`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a problem is unknown, a method does not fit its place in the
            graph, or as for `engine.step`.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> pull = mlox.Problem.create(
        ...     name="pull", params=jnp.ones(2), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: ((ctx.fit.params - 2.0) ** 2).sum())
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.ones(2), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx:
        ...         ((params - ctx.pull.params) ** 2).sum())
        >>> engine = mlox.Engine([pull, fit], {"pull": ["fit"]}, {"fit": ["pull"]})
        >>> table = mlox.compare(
        ...     engine, engine.init(), {"pull": None, "fit": None}, "pull",
        ...     {"fit": {"cg": mlox.Implicit(mlox.CG(1)), "sama": mlox.SAMA()}})
        >>> [(row.name, round(row.error, 2)) for row in table.rows]
        [('cg', 0.0), ('sama', 0.8)]
    """
    check_value("compare: engine", engine, ENGINE)
    check_value("compare: budget", budget, optional(POSITIVE))
    check_value("compare: repeats", repeats, COUNT)
    name = name_of_known("compare", engine.names, name)
    trials = make_trials(engine, state, name, candidates)
    engine.traced.prepare(state, batches)
    reference, truth = find_reference(
        engine, state, batches, name, DEFAULT if budget is None else budget
    )
    programs = [compile_trial(trial, batches, name) for trial in trials]
    times = time_alternately(programs, repeats)
    rows = [
        make_row(trial, program, truth, seconds)
        for trial, program, seconds in zip(trials, programs, times, strict=True)
    ]
    return Comparison(name, reference, tuple(rows))


class Trial(NamedTuple):
    """A candidate, and the engine and state that have it."""

    problem: str
    name: str
    engine: Engine
    state: State


def make_trials(
    engine: Engine, state: State, name: str, candidates: Any
) -> list[Trial]:
    """Return the candidates; raise unless they are methods of problems below."""
    check_value("compare: candidates", candidates, CANDIDATES)
    movers = sorted(engine.cycle.plan.movers[name])
    if not movers:
        raise ValueError(
            f"compare of {name!r}: no answer responds to it, so there is nothing to "
            f"differentiate. {name_others(engine)}"
        )
    trials: list[Trial] = []
    for problem, methods in candidates.items():
        known = Kind(f"one of the answers {movers}", lambda x: x in movers)
        check_value("compare: a key of candidates", problem, known)
        check_value(f"compare: candidates[{problem!r}]", methods, CANDIDATES)
        for label, method in methods.items():
            check_value(f"compare: candidates[{problem!r}][{label!r}]", method, METHOD)
            trials.append(make_trial(engine, state, problem, str(label), method))
    if not trials:
        raise ValueError(
            "compare: candidates are empty; expected at least one method, e.g. "
            f"{{{movers[0]!r}: {{'cg': mlox.Implicit(mlox.CG())}}}}."
        )
    return trials


def make_trial(
    engine: Engine, state: State, problem: str, label: str, method: Any
) -> Trial:
    """Return a candidate, whose method remembers nothing yet."""
    engine = replace_methods(engine, {problem: method})
    state = {**state, problem: state[problem].replace(method=method)}
    plan = engine.cycle.plan
    state = start_memories(plan, state, lambda k, b: problem in b.names)
    return Trial(problem, label, engine, state)


def replace_methods(engine: Engine, methods: Mapping[str, Any]) -> Engine:
    """Return an engine whose problems have other methods."""
    graph = engine.graph
    edges: dict[str, dict[str, list[str]]] = {"u2l": {}, "l2u": {}, "reads": {}}
    given = {"u2l": graph.u2l, "l2u": graph.l2u, "reads": graph.plain}
    for kind, pairs in given.items():
        for start, end in pairs:
            edges[kind].setdefault(start, []).append(end)
    return Engine(
        [
            p.replace(method=methods[p.name]) if p.name in methods else p
            for p in engine.problems
        ],
        edges["u2l"],
        edges["l2u"],
        reads=edges["reads"],
        coupling="total" if engine.cycle.plan.total else "direct",
        roll_back=engine.cycle.roll_back,
        unroll_loops=engine.unroll_loops,
    )


def find_reference(
    engine: Engine, state: State, batches: Batches, name: str, budget: float
) -> tuple[str, np.ndarray]:
    """Return the best reference that a budget affords: its name, and the gradient."""
    cycle = engine.traced.prepare(state, batches)
    with float64("compare", name), STANDARD_PROMOTION():
        wide = cast_state(state, jnp.float64), cast(batches, jnp.float64)
        configured = Experiment(Setting(cycle, name), *wide)
        exact = Exact(solver_for(configured.unknowns))
        plan = dataclasses.replace(configured.total, unrolled=frozenset())
        movers = configured.setting.movers
        implicit = {
            n: dataclasses.replace(p, method=exact) if n in movers else p
            for n, p in wide[0].items()
        }
        experiment = Experiment(
            Setting(dataclasses.replace(cycle, plan=plan), name), implicit, wide[1]
        )
        sizes = count_sizes(experiment, configured.arrival)
        price = prices(sizes)[Part.LOWER]
        resets = any(state[n].reset is not None for n in movers)
        if price <= budget and not resets:
            params, even = configured.params, experiment.even
            most = afford_steps(sizes, [Part.LOWER], budget).first
            solved = experiment.solve(params, even, most)
            start = experiment.solve(params, even)
            if float(solved.stationarity) <= 1e-6 * max(float(start.stationarity), 1.0):
                return Part.LOWER.value, as_vector(solved.gradient)
        everyone = plan.unrolled.union(n for n in movers)
        loops = {
            n: dataclasses.replace(p, method=Unrolled()) if n in movers else p
            for n, p in wide[0].items()
        }
        plan = dataclasses.replace(plan, unrolled=everyone)
        setting = Setting(dataclasses.replace(cycle, plan=plan), name)
        return Part.WINDOW.value, as_vector(
            Experiment(setting, loops, wide[1]).arrival.gradient
        )


class Program(NamedTuple):
    """A compiled hypergradient, and its arguments applied."""

    compiled: Any
    run: Callable[[], Any]


def compile_trial(trial: Trial, batches: Batches, name: str) -> Program:
    """Compile the hypergradient of a candidate."""
    slope = functools.partial(trial.engine.hypergradient, name=name)
    compiled = jax.jit(slope).lower(trial.state, batches).compile()
    return Program(compiled, lambda: compiled(trial.state, batches))


def time_alternately(programs: list[Program], repeats: int) -> list[float]:
    """Return the median time of each program; their runs alternate."""
    times: list[list[float]] = [[] for _ in programs]
    for program in programs:
        jax.block_until_ready(program.run())
    for _ in range(repeats):
        for program, found in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program.run())
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def make_row(
    trial: Trial, program: Program, truth: np.ndarray, seconds: float
) -> Candidate:
    """Return a candidate's figures."""
    distance = compare_vectors(as_vector(program.run()[1]), truth)
    memory = program.compiled.memory_analysis()
    flops = dict(program.compiled.cost_analysis() or {}).get("flops")
    return Candidate(
        problem=trial.problem,
        name=trial.name,
        cosine=distance.cosine,
        norm_ratio=distance.ratio,
        error=distance.error,
        seconds=seconds,
        memory=None if memory is None else float(memory.temp_size_in_bytes),
        flops=None if flops is None else float(flops),
    )
