"""Show an engine on a line, and a line for each problem."""

from __future__ import annotations

from mlox._cycle.report import Report
from mlox._engine.described import Described
from mlox._engine.explain import show_tasks, title
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._problem.summary import count_numbers
from mlox._utils.describe import count, show_call

MOST = 16


def summarize_engine(self: Described) -> str:
    """Show the steps, parameters, neighbours and method of each problem."""
    plan, problems = self.cycle.plan, self.problems
    options = {
        "coupling='direct'": not plan.total,
        "roll_back=True": self.cycle.roll_back,
        "telemetry=True": self.cycle.telemetry,
        "metrics='last'": self.cycle.report is Report.LAST,
        "metrics='none'": self.cycle.report is Report.NONE,
    }
    head = [title(plan), *(text for text, chosen in options.items() if chosen)]
    rows = [_row(plan, problem) for problem in problems[:MOST]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    more = len(problems) - len(rows)
    tail = [f"and {more} more: see engine.explain()"] if more else []
    return "\n  ".join([f"Engine({', '.join(head)})", *lines, *tail])


def _row(plan: Plan, problem: Problem) -> tuple[str, ...]:
    graph, name = plan.graph, problem.name
    tasks = "" if problem.tasks is None else f", {show_tasks(problem)}"
    constants = [f"{n} (constant)" for n in graph.constants(name)]
    reads = ", ".join([*graph.neighbours(name), *constants])
    return (
        name,
        f"{count(graph.steps_per_cycle[name], 'step')} per cycle{tasks}",
        count(count_numbers(problem.params), "parameter"),
        f"reads {reads}" if reads else "",
        show_call(problem.method) if name in plan.responsive else "",
    )
