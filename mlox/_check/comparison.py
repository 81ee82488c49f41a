"""A comparison of methods: data that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlox._check import draw
from mlox._check.table import BYTES_UNITS, format_html, format_table, show_unit, wrap


@dataclass(frozen=True)
class Candidate:
    """One method, beside the reference.

    Attributes:
        problem: The problem whose answer it differentiates.
        name: Its name.
        cosine: The cosine of the angle between the hypergradient and the reference.
        norm_ratio: The norm of the hypergradient, relative to that of the reference.
        error: The norm of the difference, relative to that of the reference.
        seconds: The median time of one hypergradient, with the steps of its window.
        memory: The temporary memory of the compiled program, in bytes; None where the
            backend does not tell.
        flops: Its floating-point operations, as XLA counts them: those of the body of a
            loop count once. None where the backend does not tell.
    """

    problem: str
    name: str
    cosine: float
    norm_ratio: float
    error: float
    seconds: float
    memory: float | None
    flops: float | None


@dataclass(frozen=True)
class Comparison:
    """What `mlox.compare` has measured: plain data, printed as a table.

    Attributes:
        name: The problem whose hypergradient was computed.
        reference: What the candidates were compared with, in words.
        rows: The candidates.

    Example:
        >>> import mlox
        >>> print(mlox.Comparison("penalty", "exact unroll of the window", ()))
        mlox.compare of 'penalty', reference: exact unroll of the window
          problem  method  cosine  norm ratio  rel. error  time  memory  FLOPs
    """

    name: str
    reference: str
    rows: tuple[Candidate, ...]

    def __str__(self) -> str:
        title = f"mlox.compare of {self.name!r}, reference: {self.reference}"
        return "\n".join([*wrap(title), *format_table(HEADER, self._cells())])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook."""
        return format_html(HEADER, self._cells())

    def draw(self) -> Any:
        """Draw the error of each candidate against its time; the area is its memory.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return draw.draw_choice(
            f"Hypergradient of {self.name!r}",
            [(row.name, row.seconds, row.error, row.memory) for row in self.rows],
        )

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.problem,
                row.name,
                f"{row.cosine:.4f}",
                f"{row.norm_ratio:.4g}",
                f"{row.error:.2g}",
                show_unit(row.seconds, SECONDS),
                "" if row.memory is None else show_unit(row.memory, BYTES_UNITS),
                "" if row.flops is None else show_unit(row.flops, COUNTS),
            )
            for row in self.rows
        ]


SECONDS = {1.0: "s", 1e-3: "ms", 1e-6: "µs"}
COUNTS = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: ""}
HEADER = (
    "problem",
    "method",
    "cosine",
    "norm ratio",
    "rel. error",
    "time",
    "memory",
    "FLOPs",
)
