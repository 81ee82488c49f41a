"""The report of a check: data that prints as a table."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlox._check import draw
from mlox._check.finding import Finding
from mlox._check.table import format_html, format_table, wrap


@dataclass(frozen=True)
class Row:
    """One comparison of hypergradients.

    Attributes:
        name: What is compared, such as "configured - exact solve at the same answer".
        cosine: The cosine of the angle between the two.
        norm_ratio: The norm of the first, relative to that of the second.
        error: The norm of the difference, relative to that of the second.
        cause: What a large error means.
    """

    name: str
    cosine: float
    norm_ratio: float
    error: float
    cause: str


@dataclass(frozen=True)
class Report:
    """What `mlox.check` has measured and found: plain data, printed as a table.

    Attributes:
        name: The problem whose hypergradient was checked.
        rows: Its hypergradient beside references: `Row` values, each with the cause
            that a large error has.
        figures: {what was measured: number}, such as "gap" and "metasmoothness".
        findings: What is wrong, and the remedies; empty if nothing was found.
        costs: {measurement: its estimated cost}, in gradients of losses.
        left_out: The same for the measurements that the budget did not afford.
        notes: What was measured, but could not be judged; one sentence each.

    Example:
        >>> import mlox
        >>> report = mlox.Report(
        ...     "penalty", rows=(), figures={"gap": 0.5}, findings=(),
        ...     costs={"losses": 12}, left_out={})
        >>> print(report)
        mlox.check of 'penalty'
          gap 0.5
        Nothing wrong was found.
        Cost: about 12 gradients.
    """

    name: str
    rows: tuple[Row, ...]
    figures: dict[str, float]
    findings: tuple[Finding, ...]
    costs: dict[str, int]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found in what was judged, see `notes`."""
        return not self.findings

    @property
    def _remarks(self) -> tuple[str, ...]:
        """The notes, and the all-clear if there are no findings."""
        rest = " in the rest" if self.notes else ""
        clear = (f"Nothing wrong was found{rest}.",) if self.ok else ()
        return (*self.notes, *clear)

    def __str__(self) -> str:
        lines = [f"mlox.check of {self.name!r}"]
        if self.rows:
            lines += format_table(HEADER, [_cells(row) for row in self.rows])
        lines += wrap(_numbers(self.figures), "  ")
        if answers := _answers(self.figures):
            lines += format_table(*answers)
        for finding in self.findings:
            lines += wrap(
                f"{finding.cause.name} in {finding.problem!r}: {finding.text}"
            )
            lines += wrap(f"Remedy: {finding.remedy}", "  ")
        for remark in self._remarks:
            lines += wrap(remark)
        lines.append(f"Cost: about {sum(self.costs.values()):,} gradients.")
        if self.left_out:
            left = ", ".join(f"{name} ({n:,})" for name, n in self.left_out.items())
            lines += wrap(f"Left out, beyond the budget: {left}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Show the report in a notebook."""
        found = "".join(
            f"<li><b>{f.cause.name}</b> in {html.escape(repr(f.problem))}: "
            f"{html.escape(f.text)} <i>{html.escape(f.remedy)}</i></li>"
            for f in self.findings
        )
        remarks = "".join(f"<li>{html.escape(x)}</li>" for x in self._remarks)
        answers = _answers(self.figures)
        return (
            f"<p><b>mlox.check of {html.escape(repr(self.name))}</b></p>"
            f"{format_html(HEADER, [_cells(row) for row in self.rows])}"
            f"<p>{html.escape(_numbers(self.figures))}</p>"
            f"{format_html(*answers) if answers else ''}"
            f"<ul>{found}{remarks}</ul>"
        )

    def draw(self) -> Any:
        """Draw the errors of the rows as bars, on a logarithmic scale.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return draw.draw_errors(
            f"Hypergradient of {self.name!r}",
            {row.name: row.error for row in self.rows},
        )


SHORT = {
    "residual of the solver": "residual",
    "products of the solver": "products",
    "distance to the solved answer": "distance",
    "smallest eigenvalue": "lowest eig.",
    "largest eigenvalue": "highest eig.",
}
HEADER = ("difference", "cosine", "norm ratio", "rel. error", "if large")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.cosine:.4f}",
        f"{row.norm_ratio:.4g}",
        f"{row.error:.2g}",
        row.cause,
    )


def _numbers(figures: Mapping[str, float]) -> str:
    """Return the figures that belong to no answer, on one line."""
    return ", ".join(f"{k} {x:.3g}" for k, x in figures.items() if ": " not in k)


def _answers(figures: Mapping[str, float]) -> tuple[list[str], list[list[str]]] | None:
    """Return the figures of answers as a table, if there are any."""
    table: dict[str, dict[str, str]] = {}
    for key, value in figures.items():
        name, colon, what = key.partition(": ")
        if colon:
            table.setdefault(name, {})[SHORT.get(what, what)] = f"{value:.3g}"
    if not table:
        return None
    columns = list(dict.fromkeys(what for cells in table.values() for what in cells))
    rows = [[n, *(cells.get(c, "") for c in columns)] for n, cells in table.items()]
    return ["answer", *columns], rows
