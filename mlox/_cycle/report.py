"""Report: of which steps a cycle returns the metrics."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from mlox._cycle.update import Update
from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._utils.types import Metrics

# A gradient needs no value of its loss. In a loop the values are stacked, so that they
# are evaluated in every step: a small step takes 1.25 to 1.5 times as long. If nothing
# asks for them, XLA drops that part of the forward pass.


class Report(enum.Enum):
    """Of which steps a cycle returns the metrics.

    Attributes:
        ALL: Of every step.
        LAST: Of the last step of each problem.
        NONE: Of the steps of problems whose answer nobody reads, as far as they need no
            loss of another one.
        SILENT: Of no step, as where a window is run for what it leads to.
    """

    ALL = enum.auto()
    LAST = enum.auto()
    NONE = enum.auto()
    SILENT = enum.auto()

    @property
    def before_last(self) -> Report:
        """What is reported of the rounds of a window before its last one."""
        return Report.SILENT if self is Report.LAST else self

    def includes(self, graph: Graph, name: str) -> bool:
        """Return whether the metrics of a problem's step are returned."""
        if self is Report.NONE:
            return name not in graph.inner_layer
        return self is not Report.SILENT


REPORTS = {"all": Report.ALL, "last": Report.LAST, "none": Report.NONE}
"""The reports of which a user can ask, by their names."""


def report_updates(
    report: Report, plan: Plan, updates: Mapping[str, Update]
) -> Metrics:
    """Return the metrics of steps that are reported, as "problem/metric"."""
    metrics = {
        f"{n}/{key}": x
        for n, update in updates.items()
        if report.includes(plan.graph, n)
        for key, x in update.metrics.items()
    }
    dropped = _name_gaps(plan, updates) if report is Report.NONE else ()
    return {key: x for key, x in metrics.items() if key not in dropped}


def _name_gaps(plan: Plan, uppers: Iterable[str]) -> frozenset[str]:
    """Return the names of gaps, which are slopes of the losses of lowers, or values."""
    # They cost two products with the data where the upper acts on no loss of an
    # example: 12 % of the operations of a small step.
    return frozenset(
        f"{k}/{b.tops[0]}/gap" for k in uppers for b in plan.responses[k].blocks
    )
