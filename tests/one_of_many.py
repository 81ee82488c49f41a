"""One process of a job of several, started by `test_processes.py`.

Usage: python -m tests.one_of_many <process> <processes> <port> <folder> <scenario> ...
"""

import itertools
import os
import pathlib
import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import mlox

from . import conftest as _settings  # noqa: F401
from .sharded import BATCH, METHODS, data, engine_of, trees

QUIET = {"loggers": (), "progress": False}


def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def own_data(process, count):
    """Take this process's share of the examples."""
    size = BATCH // count
    part = slice(process * size, (process + 1) * size)
    return {
        name: [jax.tree.map(lambda x: x[part], batch) for batch in batches]
        for name, batches in data().items()
    }


def save(folder, name, process, state, history):
    """Gather a state, and write it with the history as this process has it."""
    whole = multihost_utils.process_allgather(trees(state), tiled=True)
    leaves = {f"leaf{i}": x for i, x in enumerate(jax.tree.leaves(whole))}
    np.savez(folder / f"{name}-{process}.npz", **leaves, **history)


def train(process, count, folder):
    """Run with each layout, with logs, and with scores that differ by process."""
    for name, rules in (("replicated", "replicated"), ("fsdp", "fsdp")):
        engine = engine_of(METHODS["cg"])
        batch = data()["penalty"][0]
        state, history = engine.run(
            mlox.shard(engine, engine.init(), mesh(), rules),
            own_data(process, count),
            train_iters=5,
            log_every=2,
            cycles_per_dispatch=2 if name == "fsdp" else 1,
            logdir=folder / name,
            validation=lambda state, engine=engine, batch=batch: {
                "loss": engine.evaluate(state, "penalty", batch)["loss"],
                "process": process,
            },
            progress=True,
        )
        save(folder, name, process, state, history)


def stop_early(process, count, folder):
    """Judge by a score that gets better on the first process only."""
    calls = itertools.count()
    engine = engine_of(METHODS["detached"])
    state, history = engine.run(
        mlox.shard(engine, engine.init(), mesh()),
        own_data(process, count),
        train_iters=50,
        log_every=1,
        validation=lambda state: {
            "error": (-1.0 if process == 0 else 1.0) * next(calls) * (count > 1)
        },
        early_stopping=mlox.EarlyStopping("validation/error", "min", patience=3),
        **QUIET,
    )
    save(folder, "stop_early", process, state, history)


def failed(engine, process, count, folder, name, **options):
    """Run until it fails, and write down how."""
    state = mlox.shard(engine, engine.init(), mesh())
    try:
        engine.run(state, own_data(process, count), log_every=2, **options, **QUIET)
    except (mlox.RunError, mlox.RunInterrupted) as error:
        text = "\n".join([str(error), *vars(error.__cause__).get("__notes__", [])])
        cycle = f"{type(error).__name__} {error.cycle}\n"
        (folder / f"{name}-{process}.txt").write_text(cycle + text)
        return
    raise AssertionError("it did not fail")


def failing_validation(process, count, folder):
    """Fail in the validation of one process."""

    def validation(state):
        if process == 1:
            raise OSError("no such file")
        return {"score": 0.0}

    engine = engine_of(METHODS["detached"])
    options = {"train_iters": 4, "validation": validation}
    failed(engine, process, count, folder, "failing_validation", **options)


def other_names(process, count, folder):
    """Return other names from the validation of one process."""
    engine = engine_of(METHODS["detached"])
    options = {"train_iters": 4, "validation": lambda state: {f"at{process}": 0.0}}
    failed(engine, process, count, folder, "other_names", **options)


def refused(process, count, folder):
    """Pass what cannot work, and write down what is said."""
    engine = engine_of(METHODS["detached"])
    other = engine.init()
    other["fit"] = other["fit"].replace(step=other["fit"].step + process)
    some = Mesh(np.array(jax.devices()[:-1]), ("data",))
    own = Mesh(np.array(jax.local_devices()), ("data",))
    saves = {"checkpoint": mlox.Checkpoint(folder / "never"), **QUIET}
    said = []
    for call in (
        lambda: mlox.shard(engine, other, mesh()),
        lambda: mlox.shard(engine, engine.init(), some),
        lambda: engine.run(engine.init(), own_data(process, count)),
        lambda: engine.run(mlox.shard(engine, engine.init(), own), None, **saves),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    (folder / f"refused-{process}.txt").write_text("\n".join(said))


def alone(process, count, folder):
    """Train by itself, on a mesh of the devices of this process."""
    del count
    engine = engine_of(METHODS["detached"])
    own = Mesh(np.array(jax.local_devices()), ("data",))
    state = mlox.shard(engine, engine.init(), own)
    options = {"train_iters": 2 + process, "log_every": 1, **QUIET}
    _, history = engine.run(state, own_data(0, 1), **options)
    np.savez(folder / f"alone-{process}.npz", **history)


def terminated(process, count, folder):
    """Send SIGTERM to one process, from its validation."""

    def validation(state):
        if process == 1 and int(np.asarray(state["fit"].step)) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    engine = engine_of(METHODS["detached"])
    options = {"train_iters": 10**5, "validation": validation}
    failed(engine, process, count, folder, "terminated", **options)


def killed(process, count, folder):
    """Kill one process, from its validation."""

    def validation(state):
        if process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    engine = engine_of(METHODS["detached"])
    options = {"train_iters": 10**5, "validation": validation}
    failed(engine, process, count, folder, "killed", **options)


def checkpointed(process, count, folder):
    """Train until cycle 6, from the checkpoint that there is."""
    engine = engine_of(METHODS["cg"])
    state, history = engine.run(
        mlox.shard(engine, engine.init(), mesh(), "fsdp"),
        own_data(process, count),
        train_iters=6,
        log_every=2,
        checkpoint=mlox.Checkpoint(folder / "run", every=2),
        resume=True,
        donate=True,
        logdir=folder / "logs",
        **QUIET,
    )
    save(folder, "checkpointed", process, state, history)


class Fatal:
    """A series that kills its process before it yields some batch."""

    def __init__(self, batches, fatal):
        self.batches, self.drawn, self.fatal = batches, itertools.count(), fatal

    def __iter__(self):
        for batch in self.batches:
            if next(self.drawn) == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def killed_late(process, count, folder):
    """The same, but one process is killed before cycle 6: there is a checkpoint."""
    engine = engine_of(METHODS["cg"])
    data = own_data(process, count)
    fatal = 2 * 5 if process == 1 else None
    engine.run(
        mlox.shard(engine, engine.init(), mesh(), "fsdp"),
        {**data, "fit": Fatal(data["fit"], fatal)},
        train_iters=6,
        log_every=2,
        checkpoint=mlox.Checkpoint(folder / "run", every=2),
        resume=True,
        logdir=folder / "logs",
        **QUIET,
    )


def uneven(process, count, folder):
    """Go on from a checkpoint at which the processes are at different positions."""
    engine = engine_of(METHODS["detached"])
    data = own_data(process, count)
    data["fit"] = data["fit"][: 6 - process]

    def run(train_iters, name):
        return engine.run(
            mlox.shard(engine, engine.init(), mesh()),
            data,
            train_iters=train_iters,
            log_every=2,
            checkpoint=mlox.Checkpoint(folder / name, every=2),
            resume=True,
            **QUIET,
        )

    save(folder, "whole", process, *run(6, "at once"))
    run(4, "in parts")
    save(folder, "parts", process, *run(6, "in parts"))


def restored(process, count, folder):
    """Read the newest checkpoint."""
    del count
    engine = engine_of(METHODS["cg"])
    like = mlox.shard(engine, engine.init(), mesh(), "fsdp")
    save(folder, "restored", process, mlox.restore(folder / "run", like), {})


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        train,
        stop_early,
        failing_validation,
        other_names,
        refused,
        alone,
        terminated,
        killed,
        checkpointed,
        killed_late,
        uneven,
        restored,
    )
}


def main():
    process, count, port, folder, *scenarios = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        int(count),
        int(process),
        heartbeat_timeout_seconds=10,
        shutdown_timeout_seconds=10,
    )
    for scenario in scenarios:
        SCENARIOS[scenario](int(process), int(count), pathlib.Path(folder))


if __name__ == "__main__":
    main()
