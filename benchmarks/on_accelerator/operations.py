"""The table of the price by operations alone, which needs no accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import _record

from on_accelerator.tables import (
    PRICES,
    left_out,
    listed,
    measured,
    table,
    write_counts,
)

JOBS = ("decoder", "MLP")
TARGETS = {
    **PRICES,
    "SAMA(epsilon=0.01)": PRICES["SAMA()"],
    "GaussNewton(CG(5))": PRICES["Implicit(CG(5))"],
    "CG(5), products by differences of gradients": PRICES["Implicit(CG(5))"],
}
WORDS = """\
### The price of one step of the upper, by operations

The operations of a cycle without those of its one step of the lower (a gradient and
Adam), in such steps, as XLA counts floating-point operations in its optimized graph for
a CPU (machine code, which is not run, is not optimized); the decoder has two blocks. A
product is one more iteration of CG, which is damped by 1.\
"""
WHY = """\
With F the operations of a forward pass, a step of the lower takes 3F in the decoder,
and the methods what follows. In the MLP, whose first layer has a constant input, a step
is less than 3F, and a product with the Hessian less than two steps.

- `SAMA()`, 8F: 3F for the upper's gradient, 3F for the lower's gradient at the answer,
  through which the optimizer's update is differentiated, and 2F for the mixed
  derivative. `SAMA(epsilon=...)` takes two forward passes for the latter, and saves
  nothing. The gradient of the lower's last step would save 3F, but it is that of the
  point before the answer: the hypergradient would be another one.
- `Implicit(CG(5))`, 37F: a product takes 2F forward and 4F backward, so that five alone
  take 30F, and the target is 27F.
- `GaussNewton(CG(5))`, 28F: without the curvature of the outputs a product takes 2F
  forward and 2F backward. The rest is 3F for the upper's gradient, 3F for the outputs,
  linearized, and 2F for the mixed derivative. It is another hypergradient, exact where
  the lower fits its data.
- Differences of gradients, 23F: a product takes 3F. It is not exact: each product has
  the error of its difference.\
"""


def section(found: Mapping[str, Any]) -> str:
    """Return the prices as Markdown."""
    rows = {row["row"]: row for row in measured(found["rows"])}
    methods = dict.fromkeys(name.split(", ", 1)[1] for name in rows)
    head = ["method", *(word for job in JOBS for word in (job, "one product"))]
    lines = [
        _line(method, [rows.get(f"{job}, {method}", {}) for job in JOBS])
        for method in methods
    ]
    missing = listed("Rows without a figure", left_out({"operations": found["rows"]}))
    return "\n\n".join(
        [
            f"{WORDS} {_record.describe(found)}",
            table([*head, "at most", "target"], lines),
            *missing,
            *([WHY] if found["size"] == "full" else []),
        ]
    )


def _line(method: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = [text for row in rows for text in write_counts(row)]
    target = TARGETS.get(method)
    if target is None:
        return [method, *figures, "", ""]
    named = dict(zip(JOBS, rows, strict=True))
    missing = [job for job, row in named.items() if not row]
    missed = [job for job, row in named.items() if row and row["price"] > target]
    found = f"missed: {', '.join(missed)}" if missed else "met"
    found = f"not counted: {', '.join(missing)}" if missing else found
    return [method, *figures, f"{target:g}", found]
