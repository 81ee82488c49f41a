"""Describe an engine in words, and as a diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from mlox._cycle.hyperparams import find_steering
from mlox._cycle.report import Report
from mlox._engine.described import Described
from mlox._engine.memory import list_remembered
from mlox._graph.dependencies import Block, Plan
from mlox._hypergradient.choices import Choices, record_choices
from mlox._hypergradient.memory import start_memories
from mlox._problem.problem import Problem
from mlox._utils.describe import count, show_call
from mlox._utils.types import Batches
from mlox.methods import Loop
from mlox.solvers import System

SYSTEMS = {
    System.DEFINITE: "symmetric, positive definite at a minimum",
    System.SYMMETRIC: "a tower: symmetric, indefinite",
    System.GENERAL: "a Nash game: not symmetric",
}
MAX_PATHS = 12
REPORTED = {
    Report.LAST: ["metrics only of the last steps in a cycle"],
    Report.NONE: ["metrics only of problems whose answer nobody reads"],
}


Rows = list[tuple[str, str]]


def explain(self: Described, batches: Batches | None = None) -> str:
    """Return a readable text of graph, periods, paths, methods and steps.

    Args:
        self: The engine.
        batches: As for `step`. With them the step is traced, not run, and the text says
            what is chosen for `mlox.Unrolled` from the sizes of its program: levels of
            checkpoints, and whether gradients are differentiated in mixed mode.

    Returns:
        The text.
    """
    plan, problems = self.cycle.plan, self.problems
    lines = [title(plan), *REPORTED.get(self.cycle.report, ())]
    chosen = {} if batches is None else _find_choices(self, batches)
    for name, rows in describe_problems(plan, problems).items():
        rows += [("chosen", text) for text in chosen.get(name, [])]
        width = max(len(key) for key, _ in rows)
        lines += ["", name, *(f"  {key:<{width}}  {value}" for key, value in rows)]
    return "\n".join(lines)


def _find_choices(engine: Described, batches: Batches) -> Choices:
    problems = {p.name: p for p in engine.problems}
    plan = engine.cycle.plan
    state = jax.eval_shape(lambda: start_memories(plan, problems, lambda k, b: True))
    with record_choices() as chosen:
        try:
            jax.eval_shape(engine.traced, state, batches)
        except TypeError:  # JAX does not name the argument that is no array
            engine.traced.check_batches(problems, batches)
            raise
    return chosen


def title(plan: Plan) -> str:
    """Count problems and ticks."""
    ticks = max(plan.graph.period.values())
    problems = count(len(plan.graph.names), "problem")
    return f"{problems}, {count(ticks, 'tick')} in a cycle"


def describe_problems(plan: Plan, problems: Sequence[Problem]) -> dict[str, Rows]:
    """Describe each problem in rows of a key and a text, the highest one first."""
    by_name = {problem.name: problem for problem in problems}
    remembered = list_remembered(plan, by_name)
    return {
        name: _describe(plan, name, by_name, remembered[name])
        for name in reversed(plan.graph.order)
    }


def show_tasks(problem: Problem) -> str:
    """Count the tasks of a problem that has some."""
    return _chunks(problem, count(problem.tasks or 1, "task"))


def mermaid(self: Described) -> str:
    """Return the graph as a Mermaid diagram, for Markdown."""
    plan, problems = self.cycle.plan, self.problems
    lines = ["graph BT"]
    # Names may be keywords of Mermaid, such as `end`: they are labels only.
    key = {problem.name: f"p{i}" for i, problem in enumerate(problems)}
    for problem in problems:
        steps = plan.graph.steps_per_cycle[problem.name]
        label = f"{problem.name}<br/>{_times(steps)} per cycle"
        if problem.tasks is not None:
            label += f", {show_tasks(problem)}"
        if problem.name in plan.responsive:
            label += f"<br/>{show_call(problem.method)}".replace('"', "'")
        lines.append(f'  {key[problem.name]}["{label}"]')
    lines += [f"  {key[c]} -->|answer| {key[p]}" for c, p in plan.graph.l2u]
    lines += [f"  {key[p]} -.->|parameters| {key[c]}" for p, c in plan.graph.u2l]
    lines += [f"  {key[b]} -.->|constants| {key[a]}" for a, b in plan.graph.plain]
    return "\n".join(lines)


def _describe(
    plan: Plan,
    name: str,
    problems: Mapping[str, Problem],
    remembered: Sequence[str],
) -> Rows:
    graph, problem = plan.graph, problems[name]
    steps = graph.steps_per_cycle[name]
    rows = [
        ("steps", f"{_times(steps)} per cycle, {_every(graph.period[name])}"),
        ("tasks", _chunks(problem, str(problem.tasks)) if problem.tasks else ""),
        ("reads uppers", ", ".join(graph.uppers(name))),
        ("reads lowers", ", ".join(graph.lowers(name))),
        ("reads constants", ", ".join(graph.constants(name))),
        ("optimizer", _steering(plan, name, problems)),
        ("answer", _answer(plan, problem)),
        ("moves", ", ".join(n for n in graph.order if n in plan.movers[name])),
        *(("solves", _block(b)) for b in plan.responses[name].blocks),
        ("remembers", ", ".join(remembered)),
        *(("path", text) for text in _paths(graph.paths[name])),
    ]
    return [(key, value) for key, value in rows if value]


def _chunks(problem: Problem, tasks: str) -> str:
    at_once = problem.tasks_at_once
    return tasks if at_once is None else f"{tasks}, {at_once} at once"


def _steering(plan: Plan, name: str, problems: Mapping[str, Problem]) -> str:
    steering = find_steering(plan, name, problems)
    reads = (*steering.reads, *steering.constants)
    source = f", from {', '.join(reads)}" if reads else ""
    return f"hyperparams: {', '.join(steering.sets)}{source}" if steering.sets else ""


def _answer(plan: Plan, problem: Problem) -> str:
    if problem.name not in plan.responsive:
        return ""
    text = show_call(problem.method)
    if problem.name in plan.towers:
        return f"{text}, to its total objective: its lowers respond"
    if plan.movers[problem.name] and not isinstance(problem.method, Loop):
        if problem.name in plan.totals:
            return f"{text}, its unrolled lowers respond"
        return f"{text}, direct: its lowers are held fixed in its stationarity"
    return text


def _block(block: Block) -> str:
    names = ", ".join(reversed(block.names))
    return f"{names} ({SYSTEMS[block.system]}) by the method of {block.tops[0]}"


def _paths(paths: list[tuple[str, ...]]) -> list[str]:
    shown = [" <- ".join(path) for path in paths[:MAX_PATHS]]
    more = len(paths) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _times(steps: int) -> str:
    return {1: "once", 2: "twice"}.get(steps, f"{steps} times")


def _every(ticks: int) -> str:
    return "every tick" if ticks == 1 else f"every {ticks} ticks"
