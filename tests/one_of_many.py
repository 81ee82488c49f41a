"""One process of a job of several, started by `test_processes.py`.

Usage: python -m tests.one_of_many <process> <processes> <port> <folder> <scenario> ...

A scenario is a function of (process, count, folder), and writes what it finds into the
folder, for the test to read.
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
from .sharded import BATCH, METHODS, make_data, make_engine, select_arrays

QUIET = {"loggers": (), "progress": False}


def make_mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def make_local_mesh():
    return Mesh(np.array(jax.local_devices()), ("data",))


def make_local_data(process, count):
    """Take this process's share of the examples."""
    size = BATCH // count
    part = slice(process * size, (process + 1) * size)
    return {
        name: [jax.tree.map(lambda x: x[part], batch) for batch in batches]
        for name, batches in make_data().items()
    }


def save(folder, name, process, state, history):
    """Gather a state, and write it with the history as this process has it."""
    whole = multihost_utils.process_allgather(select_arrays(state), tiled=True)
    leaves = {f"leaf{i}": x for i, x in enumerate(jax.tree.leaves(whole))}
    np.savez(folder / f"{name}-{process}.npz", **leaves, **history)


def train(process, count, folder):
    """Run with each layout, with logs, and with scores that differ by process."""
    for rules in ("replicated", "fsdp"):
        engine = make_engine(METHODS["cg"])
        batch = make_data()["penalty"][0]
        state, history = engine.run(
            mlox.shard(engine, engine.init(), make_mesh(), rules),
            make_local_data(process, count),
            train_iters=5,
            log_every=2,
            cycles_per_dispatch=2 if rules == "fsdp" else 1,
            logdir=folder / rules,
            validation=lambda state, engine=engine, batch=batch: {
                "loss": engine.evaluate(state, "penalty", batch)["loss"],
                "process": process,
            },
            progress=True,
        )
        save(folder, rules, process, state, history)


def stop_early(process, count, folder):
    """Score a run by a number that gets better on the first process only."""
    calls = itertools.count()
    engine = make_engine(METHODS["detached"])
    state, history = engine.run(
        mlox.shard(engine, engine.init(), make_mesh()),
        make_local_data(process, count),
        train_iters=50,
        log_every=1,
        validation=lambda state: {
            "error": (-1.0 if process == 0 else 1.0) * next(calls) * (count > 1)
        },
        early_stopping=mlox.EarlyStopping("validation/error", "min", patience=3),
        **QUIET,
    )
    save(folder, "stop_early", process, state, history)


def train_alone(process, count, folder):
    """Train on a mesh of the devices of this process."""
    del count
    engine = make_engine(METHODS["detached"])
    state = mlox.shard(engine, engine.init(), make_local_mesh())
    options = {"train_iters": 2 + process, "log_every": 1, **QUIET}
    _, history = engine.run(state, make_local_data(0, 1), **options)
    np.savez(folder / f"train_alone-{process}.npz", **history)


def write_failure(name, process, folder, run):
    """Run until it fails, and write the error, its cycle and its notes."""
    try:
        run()
    except (mlox.RunError, mlox.RunInterrupted) as error:
        text = "\n".join([str(error), *vars(error.__cause__).get("__notes__", [])])
        cycle = f"{type(error).__name__} {error.cycle}\n"
        (folder / f"{name}-{process}.txt").write_text(cycle + text)
        return
    raise AssertionError("it did not fail")


def validate(process, count, validation, train_iters):
    """Run with a validation."""
    engine = make_engine(METHODS["detached"])
    engine.run(
        mlox.shard(engine, engine.init(), make_mesh()),
        make_local_data(process, count),
        train_iters=train_iters,
        log_every=2,
        validation=validation,
        **QUIET,
    )


def fail_in_validation(process, count, folder):
    """Raise in the validation of one process."""

    def validation(state):
        if process == 1:
            raise OSError("no such file")
        return {"score": 0.0}

    run = lambda: validate(process, count, validation, 4)
    write_failure("fail_in_validation", process, folder, run)


def return_other_names(process, count, folder):
    """Return other names from the validation of one process."""
    run = lambda: validate(process, count, lambda state: {f"at{process}": 0.0}, 4)
    write_failure("return_other_names", process, folder, run)


def terminate(process, count, folder):
    """Send SIGTERM to one process, from its validation."""

    def validation(state):
        if process == 1 and int(np.asarray(state["fit"].step)) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    run = lambda: validate(process, count, validation, 10**5)
    write_failure("terminate", process, folder, run)


def kill_in_validation(process, count, folder):
    """Kill one process, from its validation."""

    def validation(state):
        if process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    run = lambda: validate(process, count, validation, 10**5)
    write_failure("kill_in_validation", process, folder, run)


class Fatal:
    """A series that kills its process before it yields some batch."""

    def __init__(self, batches, fatal):
        self.batches, self.taken, self.fatal = batches, itertools.count(), fatal

    def __iter__(self):
        for batch in self.batches:
            if next(self.taken) == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train_with_checkpoints(process, folder, data, donate=True):
    """Train until cycle 6, from the newest checkpoint in the folder."""
    engine = make_engine(METHODS["cg"])
    state, history = engine.run(
        mlox.shard(engine, engine.init(), make_mesh(), "fsdp"),
        data,
        train_iters=6,
        log_every=2,
        checkpoint=mlox.Checkpoint(folder / "run", every=2),
        resume=True,
        donate=donate,
        logdir=folder / "logs",
        **QUIET,
    )
    save(folder, "end", process, state, history)


def checkpoint(process, count, folder):
    """Train with checkpoints, without a fault."""
    train_with_checkpoints(process, folder / "whole", make_local_data(process, count))


def kill_in_data(process, count, folder):
    """Do the same, but kill one process before cycle 6: there is a checkpoint."""
    data = make_local_data(process, count)
    data["fit"] = Fatal(data["fit"], 2 * 5 if process == 1 else None)
    run = lambda: train_with_checkpoints(process, folder / "killed", data, False)
    write_failure("kill_in_data", process, folder, run)


def resume(process, count, folder):
    """Read the checkpoint of the killed run, and continue the run."""
    restore(process, count, folder, "killed")
    train_with_checkpoints(process, folder / "killed", make_local_data(process, count))


def restore(process, count, folder, name="whole"):
    """Read the newest checkpoint of a run."""
    engine = make_engine(METHODS["cg"])
    like = mlox.shard(engine, engine.init(), make_mesh(), "fsdp")
    state = mlox.restore(folder / name / "run", like)
    save(folder / name, f"restored-by-{count}", process, state, {})


def restore_damaged(process, count, folder):
    """Read the newest checkpoint that is not damaged."""
    restore(process, count, folder, "damaged")


def resume_at_other_positions(process, count, folder):
    """Continue from a checkpoint at which the processes are at different positions."""
    engine = make_engine(METHODS["detached"])
    data = make_local_data(process, count)
    data["fit"] = data["fit"][: 6 - process]

    def run(train_iters, name):
        return engine.run(
            mlox.shard(engine, engine.init(), make_mesh()),
            data,
            train_iters=train_iters,
            log_every=2,
            checkpoint=mlox.Checkpoint(folder / name, every=2),
            resume=True,
            **QUIET,
        )

    save(folder, "at-once", process, *run(6, "at once"))
    run(4, "in parts")
    save(folder, "in-parts", process, *run(6, "in parts"))


def misplace(process, count, folder):
    """Pass states that are misplaced, and write the errors."""
    engine = make_engine(METHODS["detached"])
    other = engine.init()
    other["fit"] = other["fit"].replace(step=other["fit"].step + process)
    some = Mesh(np.array(jax.devices()[:-1]), ("data",))
    local = make_local_mesh()
    saves = {"checkpoint": mlox.Checkpoint(folder / "never"), **QUIET}
    messages = []
    for call in (
        lambda: mlox.shard(engine, other, make_mesh()),
        lambda: mlox.shard(engine, engine.init(), some),
        lambda: engine.run(engine.init(), make_local_data(process, count)),
        lambda: engine.run(mlox.shard(engine, engine.init(), local), None, **saves),
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    (folder / f"misplace-{process}.txt").write_text("\n".join(messages))


SCENARIOS = (
    train,
    stop_early,
    train_alone,
    fail_in_validation,
    return_other_names,
    terminate,
    kill_in_validation,
    checkpoint,
    kill_in_data,
    resume,
    restore,
    restore_damaged,
    resume_at_other_positions,
    misplace,
)


def main():
    process, count, port, folder, *names = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    killed = any(name.startswith("kill") for name in names)
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        int(count),
        int(process),
        heartbeat_timeout_seconds=10,
        # At its end a process waits for the others, also for one that was killed.
        shutdown_timeout_seconds=1 if killed else 60,
    )
    scenarios = {scenario.__name__: scenario for scenario in SCENARIOS}
    for name in names:
        scenarios[name](int(process), int(count), pathlib.Path(folder))


if __name__ == "__main__":
    main()
