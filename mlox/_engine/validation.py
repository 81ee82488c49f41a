"""What is refused, and what is said: when an engine is built, and when it is traced."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mlox._graph.dependencies import Block, Plan
from mlox._graph.graph import Graph
from mlox._problem.optimizer import optimizer_of, pull_update, restart
from mlox._problem.problem import Problem
from mlox._problem.responsive import responsive_part
from mlox._problem.validation import (
    check_counts,
    check_loss_scale,
    check_model_state,
    check_opt_state,
    check_params,
)
from mlox._utils.describe import find_non_array, summarize
from mlox._utils.types import Batches, State
from mlox.methods import Iterative, Unrolled, reach
from mlox.solvers import System


def check_problems(problems: Any) -> None:
    """Refuse what is no list of problems."""
    if isinstance(problems, Problem) or not isinstance(problems, Sequence):
        raise TypeError(
            f"Engine got a {type(problems).__name__}; expected a list of problems."
        )
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(
                f"Engine got {summarize(problem)} of type {type(problem).__name__} "
                "among its problems; make each with mlox.Problem.create."
            )


def check_methods(plan: Plan, problems: Mapping[str, Problem]) -> None:
    """Refuse methods that cannot serve where their problems stand."""
    check_tasks(plan.graph, problems)
    for name, problem in problems.items():
        if problem.reset is not None and name not in plan.graph.inner_layer:
            raise ValueError(
                f"problem {name!r} has reset=, which says where its inner loop starts, "
                "but no inner loop, since no upper reads its answer. Add "
                f"l2u={{{name!r}: [...]}}, or drop reset."
            )
    blocks = {b: n for n, r in plan.responses.items() for b in r.blocks}
    for block, upper in blocks.items():
        _check_block(block, upper, problems)
    for upper, run, shared, solved in plan.conflicts:
        raise ValueError(
            f"problems {run!r} and {solved!r} lead {shared!r}, which they share, "
            f"and {upper!r} differentiates both answers: {run!r} is unrolled, but "
            f"{solved!r} is not, so that the steps of {run!r} would take {solved!r} as "
            "fixed. Give both mlox.Unrolled() or both mlox.Implicit(), or use "
            "coupling='direct'."
        )
    for name, layer in plan.differentiated_at.items():
        method = problems[name].method
        steps = method.last_steps if isinstance(method, Unrolled) else None
        per_round = plan.steps_per_round(name, layer)
        if steps is not None and steps % per_round:
            above = plan.graph.layers[layer][0]
            raise ValueError(
                f"problem {name!r}: Unrolled(last_steps={steps}) cuts through a round "
                f"of {per_round} steps of {name!r} in the window of {above!r}. Choose "
                f"a multiple of {per_round}."
            )


def check_tasks(graph: Graph, problems: Mapping[str, Problem]) -> None:
    """Refuse an edge between problems of different numbers of tasks."""
    for kind, edges in (("u2l", graph.u2l), ("l2u", graph.l2u)):
        for edge in edges:
            counts = [problems[n].tasks for n in edge]
            if None not in counts and counts[0] != counts[1]:
                raise ValueError(
                    f"{kind} edge {edge[0]!r} -> {edge[1]!r}: the problems have "
                    f"tasks={counts[0]} and tasks={counts[1]}; expected one number, "
                    "since task i sees task i of the other, or None for one of them, "
                    "which then is shared by all tasks."
                )


def _check_block(block: Block, upper: str, problems: Mapping[str, Problem]) -> None:
    methods = {top: problems[top].method for top in block.tops}
    first = block.tops[0]
    for top, method in methods.items():
        if method != methods[first]:
            raise ValueError(
                f"problems {first!r} and {top!r} lead a lower that they share, so "
                f"their answers to {upper!r} are one linear system; but their methods "
                f"differ: {methods[first]} and {method}. Give both the same, e.g. "
                "mlox.Implicit(mlox.GMRES()), or use coupling='direct'."
            )
    served = reach(methods[first])
    if System.NONE < served < block.system:
        kind = {
            System.SYMMETRIC: "symmetric but indefinite, as lowers of its own respond",
            System.GENERAL: "not symmetric, a Nash game over what its tops share",
        }[block.system]
        raise ValueError(
            f"problem {first!r}: {methods[first]} cannot solve for its answer to "
            f"{upper!r}: the system of {', '.join(reversed(block.names))} is {kind}. "
            f"Use mlox.Implicit(mlox.GMRES()) for {first!r}, or mlox.Implicit(), which "
            "picks a fitting solver, or coupling='direct'."
        )


def warn_of_adaptive(plan: Plan, problems: Sequence[Problem]) -> None:
    """Say so if an optimizer cannot be differentiated where a gradient is zero."""
    for problem in problems:
        unrolled = isinstance(problem.method, Unrolled)
        if not unrolled or problem.name not in plan.responsive:
            continue
        # Some entries only: clipping by a norm has no derivative where all are zero.
        sparse = jax.tree.map(
            lambda x: (jnp.arange(x.size) % 2).reshape(x.shape).astype(x.dtype),
            problem.params,
        )
        ones = jax.tree.map(jnp.ones_like, problem.params)
        fresh = restart(problem, problem.params)
        slopes = jax.jit(functools.partial(pull_update, fresh))(
            sparse, responsive_part(fresh, ones), 0.0
        )
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(slopes)):
            warnings.warn(
                f"problem {problem.name!r} is Unrolled, but its optimizer has an "
                "infinite derivative where a gradient is zero (Adam's square root of a "
                "zero second moment): one such entry makes the hypergradient NaN. "
                "Pass eps_root=1e-8 to optax.adam and its kin, or use Implicit.",
                stacklevel=3,
            )


def check_state(plan: Plan, state: State) -> None:
    """Refuse a state that the engine was not built for."""
    names, remedy = sorted(plan.graph.names), "Start from engine.init(), and change"
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is a {type(state).__name__}; expected a dict of the problems "
            f"{names} by name. {remedy} problems with replace."
        )
    if set(state) != set(names):
        raise ValueError(
            f"state has the problems {sorted(map(str, state))}, the engine {names}. "
            f"{remedy} problems with replace."
        )
    for name, problem in state.items():
        if not isinstance(problem, Problem) or problem.name != name:
            named = isinstance(problem, Problem)
            found = f"problem {problem.name!r}" if named else summarize(problem)
            raise TypeError(
                f"state[{name!r}] is {found}; expected the problem {name!r}. {remedy} "
                "problems with replace."
            )
    check_methods(plan, state)
    steps = dict(zip(plan.graph.names, plan.graph.unroll_steps, strict=True))
    for name, problem in state.items():
        unrolled = isinstance(problem.method, Iterative)
        coupling = reach(problem.method) > System.NONE
        kinds = (name in plan.unrolled, name in plan.can_be_total)
        if problem.unroll_steps != steps[name] or (unrolled, coupling) != kinds:
            raise ValueError(
                f"problem {name!r}: method or unroll_steps in the state "
                f"({problem.method}, {problem.unroll_steps}) are not those that the "
                "engine was built with. Build a new Engine with the changed problem; "
                "the state can stay."
            )
        _check_arrays(problem)


def _check_arrays(problem: Problem) -> None:
    """Refuse arrays that `replace` was given, and that `create` would not take."""
    name = problem.name
    check_counts(name, problem.step, problem.rng)
    check_params(name, problem.params)
    check_model_state(name, problem.model_state)
    check_loss_scale(name, problem.loss_scale)
    check_opt_state(name, optimizer_of(problem), problem.params, problem.opt_state)


def check_donated(state: State) -> None:
    """Refuse a state whose buffers an earlier call was given to reuse."""
    for name, problem in state.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(problem):
            # A traced array is none that could be gone.
            concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
            if concrete and leaf.is_deleted():
                raise ValueError(
                    f"state[{name!r}]{jax.tree_util.keystr(path)} was donated to an "
                    "earlier call, which used its memory. Go on with the state that "
                    "the call returned, or pass donate=False to it."
                )


def check_batches(graph: Graph, state: State, batches: Batches) -> None:
    """Refuse batches that do not fit the schedule."""
    if not isinstance(batches, Mapping) or set(batches) != set(graph.names):
        given = summarize(batches)
        if isinstance(batches, Mapping):
            given = sorted(map(str, batches))
        raise ValueError(
            f"batches has {given}; expected one entry for each of {sorted(graph.names)}"
            ", None for a problem without data. engine.stack makes them."
        )
    for name, batch in batches.items():
        steps = graph.steps_per_cycle[name]
        if batch is not None and state[name].sample is not None:
            raise ValueError(
                f"batches has data for {name!r}, which samples its own: pass None, or "
                "make the problem without sample=."
            )
        if wrong := find_non_array(batch):
            raise TypeError(
                f"batches[{name!r}] holds something that is no array: {wrong}. "
                "Expected a pytree of arrays of numbers."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.shape(leaf)[:1] != (steps,):
                raise ValueError(
                    f"batches[{name!r}]{jax.tree_util.keystr(path)} has shape "
                    f"{np.shape(leaf)}; expected a leading axis of {steps}, since "
                    f"{name!r} makes {steps} steps in a cycle. engine.stack stacks "
                    "them so."
                )
            tasks = state[name].tasks
            if tasks is not None and np.shape(leaf)[1:2] != (tasks,):
                raise ValueError(
                    f"batches[{name!r}]{jax.tree_util.keystr(path)} has shape "
                    f"{np.shape(leaf)}; expected [{steps}, {tasks}, ...], since "
                    f"{name!r} has {tasks} tasks, each with data of its own: every "
                    "batch needs them as its leading axis."
                )
