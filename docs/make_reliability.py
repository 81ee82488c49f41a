"""Write docs/reliability.md: every bad input and every fault of the tests, provoked.

python docs/make_reliability.py            # writes the page
python docs/make_reliability.py --check    # fails if the page would change
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import pathlib
import sys
from collections.abc import Iterable, Sequence

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.bad_inputs import case, tables  # noqa: E402
from tests.faults import fault  # noqa: E402
from tests.faults import tables as fault_tables  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
LONGEST = 420
Row = tuple[str, ...]

INTRODUCTION = """# What goes wrong, and what mlox says

Written by `python docs/make_reliability.py` from `tests/bad_inputs` and `tests/faults`,
where each line is a test. Messages longer than 420 characters are cut; `FOLDER` is a
folder of the run. Where a function of the user's raises, its own error arrives, with a
note that names the problem, the function and what it got. An error that stops a run
holds the last good state:

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


def bad_inputs() -> list[Row]:
    """Pass bad inputs: (area, what was passed, error, message)."""
    rows: list[Row] = []
    for each in tables.CASES:
        error, message = case.observe(each)
        kind = "nothing" if error is None else error.__name__
        rows.append((each.area, each.what, kind, cut(message)))
    return rows


def faults() -> list[Row]:
    """Provoke faults: (area, what went wrong, what mlox does, what is left)."""
    return [
        (each.area, each.what, *map(cut, fault.observe(each)))
        for each in fault_tables.FAULTS
    ]


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


def page(inputs: Sequence[Row], faults: Sequence[Row]) -> str:
    """Write the page, a section for each area."""
    return "\n".join(
        [
            INTRODUCTION,
            f"{len(inputs)} bad inputs and {len(faults)} faults.",
            "\n## Bad inputs\n",
            *sections(inputs, ("what was passed", "error", "message")),
            "## Faults\n",
            *sections(faults, ("what went wrong", "what mlox does", "what is left")),
        ]
    )


def sections(rows: Sequence[Row], header: Row) -> list[str]:
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
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    new = page(bad_inputs(), faults())
    if not check:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    old = PAGE.read_text(encoding="utf-8")
    for line in difflib.unified_diff(
        old.split("\n"), new.split("\n"), n=0, lineterm=""
    ):
        print(line)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
