"""What many devices cost: communication, memory for each, weak scaling, a lost process.

Run with `python benchmarks/scaling.py [--quick]`. Communication and memory are read
from programs that XLA compiles: for 1 to 8 simulated devices, and, ahead of time, for
eight TPUs and eight GPUs that are not there; they are the same on every machine. Weak
scaling is timed with one process and with two, each on a core of its own; a job of
four, of which one is killed, by `killed.py`. The job is that of `_sharded.py`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _environments
import _record
import _sharded
import jax
import killed
from _sharded import CASES

COUNT = 8
COUNTS = (1, 2, 4, 8)
MEMORY = ("FiniteDifference", "CG(3)", "Unrolled")
WEAK = ("FiniteDifference", "SAMA", "CG(3)", "Unrolled")
COMPILERS: Mapping[str, _environments.Installs] = {
    "tpu": ((*_environments.requirements(), f"jax=={jax.__version__}", "libtpu"),),
    "cuda": (
        (
            *_environments.requirements(),
            f"jax[cuda12-local]=={jax.__version__}",
            "nvidia-cuda-nvcc-cu12",
        ),
    ),
}
"""What is installed beside mlox to compile for accelerators."""

Row = dict[str, Any]


def at_once(function: Callable[..., Row], cases: Iterable[Any]) -> list[Row]:
    """Return the rows of some cases: nothing is timed, so that all cores compile."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, cases))


def communication(name: str) -> Row:
    """Return what is moved in a cycle of a method.

    The examples are many, so that moving them is dearer than moving parameters.
    """
    mesh = _sharded.mesh_of(jax.devices()[:COUNT])
    row: Row = {"case": name, "evaluations": CASES[name].evaluations}
    for title, rules, change in (
        ("replicated", "replicated", _sharded.as_it_is),
        ("fsdp", "fsdp", _sharded.as_it_is),
        ("mean of means", "replicated", _sharded.mean_of_means(mesh)),
    ):
        engine = _sharded.engine_of(CASES[name].method, change)
        program = _sharded.compiled(engine, rules, mesh, 512 * COUNT)
        row[title] = _sharded.communication(program, COUNT)
    return row


def ahead(platform: str) -> dict[str, Any]:
    """Return what the compiler of an accelerator makes of the step, or why not."""
    try:
        folder = _environments.FOLDER
        installs = COMPILERS[platform]
        python = _environments.python_of(f"for {platform}", folder, installs)
        program = Path(__file__).with_name("_ahead.py")
        done = subprocess.run(
            [python, program, platform],
            capture_output=True,
            text=True,
            env=_environments.variables(),
            timeout=600,
        )
        if done.returncode:
            *_, last = done.stderr.strip().splitlines() or ["it ended"]
            raise RuntimeError(f"cannot be compiled: {last}")
        return json.loads(done.stdout.splitlines()[-1])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {"compiler": platform, "failed": str(error)[:300], "rows": []}


def memory(case: tuple[str, str, Sequence[int]]) -> Row:
    """Return the bytes on a device with a method and a layout, by their number."""
    name, rules, counts = case
    engine = _sharded.engine_of(CASES[name].method)
    meshes = [_sharded.mesh_of(jax.devices()[:n]) for n in counts]
    programs = [
        _sharded.compiled(engine, rules, mesh, 64 * n)
        for n, mesh in zip(counts, meshes, strict=True)
    ]
    return {
        "case": name,
        "rules": rules,
        "devices": list(counts),
        "state": [p.state for p in programs],
        "temporaries": [p.temporaries for p in programs],
    }


def weak_scaling(names: Sequence[str], batch: int, cycles: int) -> Iterator[Row]:
    """Yield a row for each method: the time of a cycle with one and two processes.

    Two processes that do not talk say what sharing a machine costs by itself.
    """
    for name in names:
        yield {
            "case": name,
            "one": _launched([1], name, batch, cycles),
            "apart": _launched([1, 1], name, batch, cycles),
            "two": _launched([2], name, batch, cycles),
        }


def _launched(sizes: Sequence[int], name: str, batch: int, cycles: int) -> float:
    """Time the cycle in some jobs at once, each of a number of processes."""
    options = ["--batch", str(batch), "--cycles", str(cycles), "--case", name]
    started, core = [], 0
    for count in sizes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for index in range(count):
            place = f"{index},{count},{port},{core}"
            command = [sys.executable, __file__, *options, "--process", place]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            started.append(process)
            core += 1
    texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"jobs of {sizes} processes have failed; see above.")
    return statistics.mean(float(text.split()[-1]) for text in texts)


def one_process(place: str, name: str, batch: int, cycles: int) -> None:
    """Time the cycle as one process of a job, on a core of its own; print seconds."""
    index, count, port, core = map(int, place.split(","))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    mesh = _sharded.mesh_of(jax.devices())
    engine = _sharded.engine_of(CASES[name].method)
    program = _sharded.compiled(engine, "replicated", mesh, batch)
    (state, batches), taken = program.arguments, []
    # Every process makes the same number of steps.
    for _ in range(max(5, cycles)):
        begun = time.perf_counter()
        state, metrics = program.step(state, batches)
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - begun)
    print(statistics.median(taken[1:]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that were asked for, printing each."""
    quick = options.quick
    names = ("FiniteDifference", "CG(3)") if quick else tuple(CASES)
    sizes = (options.batch, 5 if quick else options.cycles)
    counts = (1, COUNT) if quick else COUNTS
    layouts = [(n, r, counts) for n in MEMORY for r in ("replicated", "fsdp")]
    parts = {
        "communication": lambda: {
            "unit": _sharded.unit(),
            "rows": at_once(communication, names),
        },
        "ahead": lambda: [] if quick else at_once(ahead, COMPILERS),
        "memory": lambda: at_once(memory, layouts),
        "weak": lambda: {
            "batch": sizes[0],
            "rows": list(weak_scaling(names[:2] if quick else WEAK, *sizes)),
        },
        "lost": lambda: killed.measure(killed.LOSSES[: 1 if quick else None]),
    }
    found = {}
    for name, part in parts.items():
        if options.only in (None, name):
            begun = time.monotonic()
            found[name] = part()
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return found


def section(found: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    import _scaling_page

    return _scaling_page.render(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("communication", "ahead", "memory", "weak", "lost")
    parser.add_argument("--quick", action="store_true", help="fewer methods and losses")
    parser.add_argument("--only", choices=parts, help="others stay as they were found")
    parser.add_argument("--batch", type=int, default=1024, help="for each process")
    parser.add_argument("--cycles", type=int, default=8, help="timed")
    parser.add_argument("--results", type=Path, default=_record.FOLDER)
    parser.add_argument("--case", help="for the processes that this program starts")
    parser.add_argument("--process", help="for these, too")
    options = parser.parse_args()
    if options.process:
        rest = (options.case, options.batch, options.cycles)
        one_process(options.process, *rest)
        return
    jax.config.update("jax_num_cpu_devices", COUNT)
    words = ["--quick"] if options.quick else []
    about = _record.about(shlex.join(["python", "benchmarks/scaling.py", *words]))
    old = _record.read("scaling", options.results) if options.only else None
    found = {**(old or {}), **about, **measure(options)}
    _record.write("scaling", found, options.results)
    print(section(found))


if __name__ == "__main__":
    main()
