"""Bad inputs and faults, tried one by one: what mlox says, and what is kept.

    python benchmarks/reliability.py            # writes docs/reliability.md
    python benchmarks/reliability.py --only Engine

A bad input that is taken without a word is a defect: the status is then 1.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterable, Sequence

import _bad_batches
import _bad_checkpoints
import _bad_engines
import _bad_losses
import _bad_modules
import _bad_problems
import _bad_runs
import _bad_values
import _faults
import _faults_outside
import _torn
from _case import NOTHING, Case, outcome
from _fault import Fault, handled

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "reliability.md"
Row = tuple[str, ...]

INTRODUCTION = """# What goes wrong, and what mlox says

Written by `python benchmarks/reliability.py`, which tries everything below, one by one;
the test suite does so, too, and holds this page against what it finds. Messages longer
than 420 signs are cut; `FOLDER` is a folder of the run. Where a function of the user's
raises, its own error arrives, with a note that names the problem, the function and what
it got. Once a run has begun, whatever stops it hands back the last good state:

```python
import jax.numpy as jnp
import optax

import mlox

fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(2),
    tx=optax.sgd(0.1),
    loss_fn=lambda params, batch, ctx: jnp.sum((params - batch) ** 2),
)
engine = mlox.Engine([fit])
batches = iter([jnp.ones(2), jnp.ones(2)])  # too few for ten cycles
try:
    engine.run(engine.init(), {"fit": batches}, train_iters=10, loggers=())
except mlox.RunError as error:
    print(error)  # what failed, where, and why
    state, cycles = error.state, error.cycle  # to go on from, by another run
assert cycles == 2
```
"""


def bad_inputs() -> list[Case]:
    modules = (
        _bad_problems,
        _bad_engines,
        _bad_values,
        _bad_losses,
        _bad_batches,
        _bad_runs,
        _bad_checkpoints,
        _bad_modules,
    )
    return [case for module in modules for case in module.cases()]


def faults() -> list[Fault]:
    return [*_faults.cases(), *_faults_outside.cases(), *_torn.cases()]


def tried(cases: Iterable[Case]) -> list[Row]:
    """Try bad inputs: (area, what was tried, what came, message)."""
    return [(case.area, case.tried, *outcome(case)) for case in cases]


def suffered(cases: Iterable[Fault]) -> list[Row]:
    """Let faults happen: (area, what went wrong, what mlox does, what is kept)."""
    return [(fault.area, fault.what, *handled(fault)) for fault in cases]


def page(inputs: Sequence[Row], faults: Sequence[Row]) -> str:
    """Write the page, a section for each area."""
    return "\n".join(
        [
            INTRODUCTION,
            f"{len(inputs)} bad inputs and {len(faults)} faults.",
            "\n## Bad inputs\n",
            *tables(inputs, ("what was tried", "what came", "message")),
            "## Faults\n",
            *tables(faults, ("what went wrong", "what mlox does", "what is kept")),
        ]
    )


def tables(rows: Sequence[Row], header: Row) -> list[str]:
    lines: list[str] = []
    for area, group in itertools.groupby(rows, key=lambda row: row[0]):
        lines += [f"### {area}\n", line(header), line(["---"] * len(header))]
        lines += [line([what, *map(code, rest)]) for _, what, *rest in group]
        lines.append("")
    return lines


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """Set a text in a fixed font, in which no sign has a meaning."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="areas with this in their names")
    only = parser.parse_args().only
    inputs = tried(case for case in bad_inputs() if only in case.area)
    found = page(inputs, suffered(fault for fault in faults() if only in fault.area))
    if only:
        print(found)
    else:
        PAGE.write_text(found)
    accepted = [row for row in inputs if row[2] == NOTHING]
    for area, what, *_ in accepted:
        print(f"{area}: {what} was taken without a word", file=sys.stderr)
    return 1 if accepted else 0


if __name__ == "__main__":
    sys.exit(main())
