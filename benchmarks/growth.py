"""How programs grow: equations, seconds and bytes against six sizes of a job.

Run with `python benchmarks/growth.py`, about seven minutes on two cores; `--quick`
measures the smallest sizes of two methods per axis, in one minute; `--only levels` one
axis; `--draw` makes the pictures in docs/growth again from the results.

Equations are those of the jaxpr of one cycle, at any depth. "trace" is the time to
build the engine and trace the cycle, "compile" to lower and compile it, "time" to run
it: seconds of the processor. "memory" are the temporaries of the compiled program and
its arguments. An exponent is the slope of log(quantity) over log(size), fitted to the
upper half of the sizes; along the levels it is the factor per level.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _record
import _timing
import jax
from _growth_axes import AXES, QUANTITIES, Axis, Series
from _growth_cases import Case, equations

Found = dict[str, Any]
PICTURES = Path(__file__).parents[1] / "docs" / "growth"


def picture_of(name: str) -> str:
    """Return the file of an axis' picture."""
    return f"{name.replace(' ', '_')}.png"


def measure(axis: Axis, size: int, method: Any) -> dict[str, float]:
    """Return the quantities of one program."""
    jax.clear_caches()
    case = axis.make(size, method)
    start = time.process_time()
    engine = case.engine()
    # A fresh function, so that nothing is found again by its identity.
    step = jax.jit(lambda *args: engine.step(*args), donate_argnums=0)
    traced = step.trace(jax.eval_shape(engine.init), case.batches)
    seen = time.process_time()
    program = traced.lower().compile()
    compiled = time.process_time()
    analysis = program.memory_analysis()
    return {
        "equations": sum(1 for _ in equations(traced.jaxpr.jaxpr)),
        "trace": seen - start,
        "compile": compiled - seen,
        "time": _processor_time(program, engine.init(), case),
        "memory": analysis.temp_size_in_bytes + analysis.argument_size_in_bytes,
    }


def _processor_time(program: Any, state: Any, case: Case) -> float:
    run = _timing.repeated(program, state, case.batches)
    times = max(1, round(0.02 / run(1).wall))
    return statistics.median(run(times).processor for _ in range(3))


def measure_series(axis: Axis, series: Series, quick: bool) -> dict[str, list[float]]:
    """Return the sizes of a series, and the quantities at each."""
    sizes = list(series.sizes)[: 3 if quick else None : 2 if quick else 1]
    found = [measure(axis, size, series.method) for size in sizes]
    return {"sizes": sizes, **{q: [one[q] for one in found] for q in QUANTITIES}}


def exponent(axis: Axis, found: Mapping[str, Sequence[float]], quantity: str) -> float:
    """Fit the exponent of a quantity, or its factor per level, to the upper half."""
    half = len(found["sizes"]) // 2
    sizes = found["sizes"][half:] if half > 1 else found["sizes"]
    values = [math.log(x) for x in found[quantity][-len(sizes) :]]
    # Sums are exact here: a page is the same with every version of NumPy.
    fit = statistics.linear_regression
    if axis.exponential:
        return math.exp(fit(sizes, values).slope)
    return fit([math.log(x) for x in sizes], values).slope


def section(found: Found) -> str:
    """Render the results as Markdown."""
    parts = [
        "## Growth",
        _record.describe(found),
        "Equations are those of the jaxpr of one cycle, where a loop counts once; "
        "trace, compile and time are seconds of the processor to build and trace it, "
        "to lower and compile it, and to run it; memory is that of the compiled "
        "program's temporaries and arguments. An exponent is the slope of the "
        "logarithms over the upper half of the sizes. `tests/test_growth.py` holds the "
        "equations, and the sizes of arrays, against the bounds.",
        _timing.table(
            ("axis", "method", *QUANTITIES),
            [row for name in found["axes"] for row in _exponents(found, name)],
        ),
        "Each cell: the fitted exponent, and the bound behind the stroke; along the "
        "levels both are factors per level.",
    ]
    for name, all_series in found["axes"].items():
        axis = AXES[name]
        parts += [
            f"### {name.capitalize()}",
            axis.why,
            f"![Growth with the {name}](../docs/growth/{picture_of(name)})",
            _timing.table(
                ("method", axis.size, *QUANTITIES),
                [row for m, one in all_series.items() for row in _rows(m, one)],
            ),
        ]
    return "\n\n".join(parts)


def _exponents(found: Found, name: str) -> list[list[str]]:
    axis = AXES[name]
    return [
        [
            name,
            f"`{method}`",
            *(  # 0.0 takes the sign from a zero
                f"{round(exponent(axis, one, q), 2) + 0.0:.2f} / {bound:.3g}"
                for q, bound in zip(QUANTITIES, axis.series[method].bounds, strict=True)
            ),
        ]
        for method, one in found["axes"][name].items()
    ]


def _rows(method: str, one: Mapping[str, Sequence[float]]) -> list[list[str]]:
    return [
        [
            f"`{method}`",
            f"{size:,}",
            f"{one['equations'][i]:,}",
            *(_timing.duration(one[q][i]) for q in ("trace", "compile", "time")),
            _bytes(one["memory"][i]),
        ]
        for i, size in enumerate(one["sizes"])
    ]


def _bytes(count: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def draw(found: Found) -> None:
    """Draw the picture of each axis."""
    import _growth_plot  # tables are made where there is no matplotlib

    PICTURES.mkdir(exist_ok=True)
    for name, series in found["axes"].items():
        _growth_plot.draw(name, series, PICTURES / picture_of(name))


def main() -> None:
    parser = argparse.ArgumentParser(description="How programs grow")
    parser.add_argument("--quick", action="store_true", help="small sizes alone")
    parser.add_argument("--only", choices=AXES, help="one axis, which is not written")
    parser.add_argument("--draw", action="store_true", help="draw what is written")
    parser.add_argument("--results", type=Path, default=_record.FOLDER)
    given = parser.parse_args()
    if given.draw:
        draw(_record.read("growth", given.results))
        return
    found: Found = _record.about("python benchmarks/growth.py") | {"axes": {}}
    for name in [given.only] if given.only else AXES:
        axis = AXES[name]
        chosen = list(axis.series.items())[: 2 if given.quick else None]
        start = time.perf_counter()
        found["axes"][name] = {
            method: measure_series(axis, series, given.quick)
            for method, series in chosen
        }
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(section(found))
    if not given.only:
        _record.write("growth", found, given.results)
    if given.results == _record.FOLDER and not (given.only or given.quick):
        draw(found)


if __name__ == "__main__":
    main()
