"""What many devices cost: communication, memory for each, and weak scaling.

Run with `python benchmarks/scaling.py`. Communication and memory are read from programs
that XLA compiles for 1 to 8 simulated devices, so that they are the same on every
machine. Weak scaling is timed with one process and with two, each on a core of its own.

The job is Meta-Weight-Net: a 784-512-512-16 MLP with Adam, whose examples a small
network weighs, five steps of the MLP for each of the network.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _collectives import Collective, collectives
from jax.sharding import Mesh

import mlox

STEPS, PRODUCTS = 5, 3
SIZES = (784, 512, 512, 16)


class Case(NamedTuple):
    """A method, and what it evaluates in a cycle.

    Attributes:
        method: The method.
        gradients: The gradients of the MLP and products with its Hessian: each of them
            is a sum over all examples, so that each needs one all-reduce.
    """

    method: Any
    gradients: int


# Five steps; the gradient of the network's loss at the answer; then what the method is.
CASES = {
    "Detached": Case(mlox.Detached(), STEPS),
    "FiniteDifference": Case(mlox.FiniteDifference(), STEPS + 1),
    "SAMA": Case(mlox.SAMA(), STEPS + 1 + 1),  # the gradient that Adam was given
    "CG 3": Case(mlox.Implicit(mlox.CG(iterations=PRODUCTS)), STEPS + 1 + PRODUCTS),
    "Neumann 3": Case(
        mlox.Implicit(mlox.Neumann(iterations=PRODUCTS, step=0.01)),
        STEPS + 1 + PRODUCTS,
    ),
    "Unrolled": Case(mlox.Unrolled(), STEPS + 1 + STEPS),
}


def layers(sizes: Sequence[int]) -> dict[str, dict[str, jax.Array]]:
    """Make the parameters of an MLP."""
    draw = np.random.default_rng(0).normal
    return {
        f"layer{i}": {
            "w": jnp.asarray(draw(size=(n, m)) / n**0.5, jnp.float32),
            "b": jnp.zeros(m),
        }
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }


def mlp(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Apply an MLP."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def losses(params: Any, batch: Any) -> jax.Array:
    images, labels = batch
    logits = mlp(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def fit_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    found = losses(params, batch)
    seen = jax.lax.stop_gradient(found)[:, None]
    return jnp.mean(jax.nn.sigmoid(mlp(ctx.weigh.params, seen))[:, 0] * found)


def weigh_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    del params
    return jnp.mean(losses(ctx.fit.params, batch))


def engine_of(method: Any) -> mlox.Engine:
    """Make the engine."""
    weigh = mlox.Problem.create(
        name="weigh", params=layers((1, 64, 1)), tx=optax.adam(1e-3), loss_fn=weigh_loss
    )
    fit = mlox.Problem.create(
        name="fit",
        params=layers(SIZES),
        tx=optax.adam(1e-3, eps_root=1e-16),
        loss_fn=fit_loss,
        method=method,
        unroll_steps=STEPS,
    )
    return mlox.Engine([weigh, fit], u2l={"weigh": ["fit"]}, l2u={"fit": ["weigh"]})


def batches_of(engine: mlox.Engine, size: int, mesh: Mesh) -> Any:
    """Make batches of a size for each process."""
    generator = np.random.default_rng(jax.process_index())

    def batch() -> Any:
        images = generator.normal(size=(size, SIZES[0])).astype(np.float32)
        return images, generator.integers(SIZES[-1], size=size)

    series = {name: iter([batch() for _ in range(STEPS)]) for name in engine.names}
    return mlox.shard_batches(engine, engine.stack(series), mesh)


class Program(NamedTuple):
    """A compiled step on some devices.

    Attributes:
        state: Bytes of the state on one device.
        temporaries: The peak of what there is besides.
        collectives: Its communication.
        step: It itself.
        arguments: What it takes.
    """

    state: int
    temporaries: int
    collectives: list[Collective]
    step: Any
    arguments: tuple[Any, Any]


def compiled(method: Any, rules: Any, devices: Sequence[Any], batch: int) -> Program:
    """Compile the step for some devices; `batch` is the size on each process."""
    engine = engine_of(method)
    mesh = Mesh(np.array(devices), ("data",))
    state = mlox.shard(engine, engine.init(), mesh, rules)
    batches = batches_of(engine, batch, mesh)
    step = engine.compile(like=state).lower(state, batches).compile()
    shards = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    temporaries = step.memory_analysis().temp_size_in_bytes
    found = collectives(step.as_text())
    return Program(sum(shards), temporaries, found, step, (state, batches))


def communication(count: int) -> Iterator[Sequence[str]]:
    """Yield a row for each method: what is moved in a cycle."""
    unit = sum(x.nbytes for x in jax.tree.leaves(layers(SIZES)))
    for name, case in CASES.items():
        row = [name, str(case.gradients)]
        for rules in ("replicated", "fsdp"):
            # Enough examples that moving them is dearer than moving parameters.
            program = compiled(case.method, rules, jax.devices()[:count], 512 * count)
            found = program.collectives
            row += [_total(found, "all-reduce", unit)]
            row += [_total(found, "all-gather", unit)] if rules == "fsdp" else []
            row.append(f"{sum(c.sent(count) for c in found) / 2**20:.1f} MiB")
        yield row


def _total(found: Sequence[Collective], kind: str, unit: int) -> str:
    ours = [c for c in found if c.kind == kind]
    size = sum(c.size * c.times for c in ours) / unit
    return f"{size:.2f} in {sum(c.times for c in ours)}"


def memory(counts: Sequence[int]) -> Iterator[Sequence[str]]:
    """Yield a row for each method and layout: MiB on a device, by their number."""
    for name in ("FiniteDifference", "CG 3", "Unrolled"):
        for rules in ("replicated", "fsdp"):
            programs = [
                compiled(CASES[name].method, rules, jax.devices()[:n], 64 * n)
                for n in counts
            ]
            state = [f"{p.state / 2**20:.2f}" for p in programs]
            yield [name, rules, "state", *state]
            beside = [f"{p.temporaries / 2**20:.1f}" for p in programs]
            yield [name, rules, "temporaries", *beside]


def weak_scaling(batch: int, cycles: int) -> Iterator[Sequence[str]]:
    """Yield a row for each method: the time of a cycle with one and two processes.

    Two processes that do not talk say what sharing a machine costs by itself.
    """
    for name in CASES:
        alone = _launched([1], name, batch, cycles)
        apart = _launched([1, 1], name, batch, cycles)
        together = _launched([2], name, batch, cycles)
        times = map(_timing.duration, (alone, apart, together))
        yield (name, *times, f"{alone / together:.2f}", f"{apart / together:.2f}")


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
    program = compiled(CASES[name].method, "replicated", jax.devices(), batch)
    (state, batches), taken = program.arguments, []
    # Every process makes the same number of steps.
    for _ in range(max(5, cycles)):
        begun = time.perf_counter()
        state, metrics = program.step(state, batches)
        jax.block_until_ready((state, metrics))
        taken.append(time.perf_counter() - begun)
    print(statistics.median(taken[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of many devices")
    parser.add_argument("--only", choices=["communication", "memory", "weak"])
    parser.add_argument("--batch", type=int, default=256, help="for each process")
    parser.add_argument("--cycles", type=int, default=20, help="timed")
    parser.add_argument("--case", help="for the processes that this program starts")
    parser.add_argument("--process", help="for the processes that this program starts")
    arguments = parser.parse_args()
    if arguments.process:
        rest = (arguments.case, arguments.batch, arguments.cycles)
        one_process(arguments.process, *rest)
        return
    jax.config.update("jax_num_cpu_devices", 8)
    print(f"JAX {jax.__version__}, {jax.default_backend()}\n", flush=True)
    if arguments.only in (None, "communication"):
        head = ["method", "gradients and products", "all-reduced", "sent"]
        head += ["all-reduced, fsdp", "gathered, fsdp", "sent, fsdp"]
        print(_timing.table(head, communication(8)), "\n", flush=True)
    if arguments.only in (None, "memory"):
        counts = (1, 2, 4, 8)
        head = ["method", "rules", "MiB on a device", *(f"of {n}" for n in counts)]
        print(_timing.table(head, memory(counts)), "\n", flush=True)
    if arguments.only in (None, "weak"):
        head = ["method", "one process", "two apart", "two processes"]
        head += ["efficiency", "to two apart"]
        rows = weak_scaling(arguments.batch, arguments.cycles)
        print(_timing.table(head, rows))


if __name__ == "__main__":
    main()
