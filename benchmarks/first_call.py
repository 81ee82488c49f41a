"""What the examples spend on tracing and compiling, without and with a cache on disk.

python benchmarks/first_call.py

Each example runs at a small size in processes of its own: twice with an empty folder as
JAX's persistent compilation cache, so that the second process finds what the first one
has compiled. JAX itself reports the seconds, summed over all programs of the process.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

import _timing
import jax

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
RUNS = {
    "logistic_regression": "--seeds 1 --cycles 20",
    "data_cleaning": "--data digits --seeds 1 --steps 200 --out FOLDER/out.png",
    "long_tailed": "--data digits --seeds 1 --steps 20 --clean 5",
    "three_levels": "--seeds 1 --cycles 2",
    "population": "--cycles 20 --seeds 2",
    "maml": "--cycles 20 --tasks 10 --seeds 1",
}
PARTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


def observe(example: str, folder: str) -> None:
    """Run an example in this process, and print what JAX reports as JSON."""
    jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
    # By default programs that compile in less than a second are not kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    seconds: collections.Counter[str] = collections.Counter()

    def listen(event: str, duration: float, **_: object) -> None:
        if event in PARTS:
            seconds[PARTS[event]] += duration

    jax.monitoring.register_event_duration_secs_listener(listen)
    path = EXAMPLES / f"{example}.py"
    sys.argv = [str(path), *RUNS[example].replace("FOLDER", folder).split()]
    sys.path.insert(0, str(EXAMPLES))
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(path), run_name="__main__")
    print(json.dumps(seconds))


def measured(example: str, folder: str) -> dict[str, float]:
    """Run an example in a process of its own."""
    process = subprocess.run(
        [sys.executable, __file__, "--one", example, "--folder", folder],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"},
    )
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="The first calls of the examples")
    parser.add_argument("--one", choices=RUNS, help="run one, and report JSON")
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.one is not None:
        observe(given.one, given.folder)
        return
    rows = []
    for example in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (measured(example, folder) for _ in range(2))
        cells = [_timing.duration(first.get(part, 0)) for part in PARTS.values()]
        rows.append([example, *cells, _timing.duration(second.get("compile", 0))])
        print(*rows[-1], file=sys.stderr, flush=True)
    head = ["example", *PARTS.values(), "compile, second process"]
    print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
