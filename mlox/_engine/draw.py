"""Draw the graph of an engine, and write the picture into a file."""

from __future__ import annotations

import os
import pathlib

from mlox._draw.picture import draw_graph
from mlox._engine.described import Described
from mlox._engine.explain import show_tasks
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.describe import count, show_call
from mlox._utils.fields import PATH, check


def draw(self: Described, file: str | os.PathLike[str] | None = None) -> str:
    """Return the graph as an SVG picture, and write it into a file if one is given.

    Uppers stand above their lowers; solid l2u edges lead up, dashed u2l edges down,
    dotted ones from what is read as a constant to the problem that reads it.

    Args:
        self: The engine.
        file: A path that ends in .svg, in a folder that exists.

    Returns:
        The text of the SVG document.

    Raises:
        TypeError: If `file` is not a path.
        ValueError: If its name does not end in .svg.
        FileNotFoundError: If its folder does not exist.
    """
    plan, graph = self.cycle.plan, self.cycle.plan.graph
    texts = {problem.name: box_lines(plan, problem) for problem in self.problems}
    svg = draw_graph(texts, graph.depth, graph.u2l, graph.l2u, graph.plain)
    if file is not None:
        _write(svg, file)
    return svg


def _write(svg: str, file: str | os.PathLike[str]) -> None:
    check("draw: file", file, PATH)
    path = pathlib.Path(file)
    if path.suffix.lower() != ".svg":
        raise ValueError(
            f"draw: file is {str(path)!r}; expected a name that ends in .svg, such as "
            f"'graph.svg'. Browsers and notebooks show SVG."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"draw: file is {str(path)!r}, but there is no folder "
            f"{str(path.parent)!r}. Create it first."
        )
    path.write_text(svg, encoding="utf-8")


def box_lines(plan: Plan, problem: Problem) -> list[str]:
    """Return the lines of the box of a problem, the first one its name."""
    name = problem.name
    tasks = "" if problem.tasks is None else f", {show_tasks(problem)}"
    steps = count(plan.graph.steps_per_cycle[name], "step")
    method = [show_call(problem.method)] if name in plan.responsive else []
    return [name, f"{steps} per cycle{tasks}", *method]
