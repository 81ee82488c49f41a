"""Data attribution through a training: what it predicts, and what it costs.

    python benchmarks/attribution.py            # three seeds, about three minutes
    python benchmarks/attribution.py --quick    # a short training of one seed

A network of 784-64-10 tanh units is trained by Adam on digits, each with a weight of
one in the loss. tau_i = d loss of a query / d weight of digit i, through all steps, is
`mlox.Unrolled`'s hypergradient. It is judged by trainings without a random 5 % of the
digits (same start, same batches): the linear datamodeling score (LDS) is the Spearman
correlation, over these trainings, of the query's loss with the sum of tau over the
digits that were kept. Queries are the mean loss of 500 test images, and each of 10 test
images (then the LDS is their average). What other scores have to choose, the damping of
influence functions and the checkpoints of TracIn, has the best LDS at the queries of
500 validation images. Sizes and the rate of Adam were chosen with other seeds.

The cost is processor time on one core, of one query beside one training by hand in JAX
which returns nothing but its answer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _record
import _timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _scores import (
    ADAM,
    THROUGH,
    PyTree,
    Study,
    compare,
    draw,
    engine_of,
    losses,
    train,
    weighted,
)

import mlox

LEAST, MOST = 0.95, 3.0
HEAD = ("", "processor time", "to one training", "FLOPs", "temporaries")
KINDS = {"mean": "mean loss of the test images", "images": "single test images"}
TEXT = """\
A network of 784-64-10 tanh units is trained by Adam on {rows} digits of MNIST, {steps}
steps of {batch}, each digit with a weight of one in the loss. The derivatives of a loss
after the training with respect to these weights predict what {trainings} trainings
without a random 5 % of the digits find; the linear datamodeling score (LDS) is the
Spearman correlation. Seeds: {seeds}; damping and checkpoints of the other scores are
those with the best LDS at validation images."""


def recomputed(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer whose update reverse mode computes again from its inputs."""
    again = jax.checkpoint(lambda g, state: tx.update(g, state), prevent_cse=False)
    update = lambda g, state, params=None: again(g, state)
    return optax.GradientTransformation(tx.init, update)


WAYS = {
    "`levels=0`, Adam's update recomputed": (recomputed(ADAM), mlox.Unrolled(levels=0)),
    "`levels=0`": (ADAM, mlox.Unrolled(levels=0)),
    "`levels=1`": (ADAM, mlox.Unrolled(levels=1)),
    "`levels=2`": (ADAM, mlox.Unrolled(levels=2)),
}


def cost(study: Study, seconds: float) -> dict[str, dict[str, float]]:
    """Return what one training takes, and the scores of the mean loss each way."""
    count, steps = study.kept.shape[1], len(study.data[1])

    def training(w: PyTree, data: PyTree) -> PyTree:
        return w, train(weighted, ADAM, w, data, jnp.ones(count))[0][0]

    def judging(w: PyTree, query: PyTree) -> PyTree:
        return w, jax.value_and_grad(lambda w: losses(w, query).mean())(w)

    query = jax.tree.map(lambda x: x[None], study.test)
    programs = {"one training": (training, study.w, study.data)}
    for name, (tx, method) in WAYS.items():
        engine = engine_of(study.w, count, tx, method, steps)
        score = lambda s, b, e=engine: (s, e.hypergradient(s, b, "weights"))
        programs[name] = score, engine.init(), {"net": study.data, "weights": query}
    copied = lambda x: jax.tree.map(lambda x: jnp.array(x, copy=True), x)
    made = {n: _timing.compiled(f, s, b) for n, (f, s, b) in programs.items()}
    runs = [
        _timing.repeated(made[n].program, copied(s), b)
        for n, (_, s, b) in programs.items()
    ]
    taken = np.array(_timing.alternated(runs, seconds))[:, :, 1]
    ratios = np.quantile(taken / taken[:, :1], [0.25, 0.5, 0.75], axis=0)
    # XLA counts the body of a loop once, and so the query beside one step: without it.
    judged = _timing.compiled(judging, copied(study.w), study.test).flops
    flops = [m.flops - (judged if n in WAYS else 0) for n, m in made.items()]
    return {
        name: {
            "seconds": float(np.median(taken[:, i])),
            "ratio": ratios[:, i].tolist(),
            "flops": flops[i] / flops[0],
            "temporaries": made[name].temporaries,
        }
        for i, name in enumerate(programs)
    }


def section(found: Mapping[str, Any]) -> str:
    """Return the results in Markdown."""
    spread = lambda x: f"{np.mean(x):.3f} ({min(x):.3f} to {max(x):.3f})"
    scores = [
        [name, *(spread([one[name][kind] for one in found["lds"]]) for kind in KINDS)]
        for name in found["lds"][0]
    ]
    costs = [
        [
            name,
            _timing.duration(one["seconds"]),
            "{1:.2f} ({0:.2f} to {2:.2f})".format(*one["ratio"]),
            f"{one['flops']:.2f}",
            f"{one['temporaries'] / 2**20:.0f} MiB",
        ]
        for name, one in found["cost"].items()
    ]
    low = min(np.mean([one[THROUGH][kind] for one in found["lds"]]) for kind in KINDS)
    price = min(one["ratio"][1] for name, one in found["cost"].items() if name in WAYS)
    said = lambda good: "met" if good else "missed"
    return f"""## Data attribution

{TEXT.format(**found["sizes"])}

Targets: LDS >= {LEAST} through the training, {said(low >= LEAST)}: {low:.3f}; at most
{MOST} times the cost of one training, {said(price <= MOST)}: {price:.2f}.

LDS, mean and range over seeds:

{_timing.table(["scores", *KINDS.values()], scores)}

What the scores of one query, the mean loss of the test images, cost with `Unrolled`, in
processor time, median and quartiles. FLOPs are those of a step and of its part of the
backward pass to those of a step alone, as XLA counts them.

{_timing.table(HEAD, costs)}

{_record.describe(found)}
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short training")
    parser.add_argument("--steps", type=int, help="of one training")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--trainings", type=int, help="without some of the digits")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--results", type=Path, default=_record.FOLDER)
    given = parser.parse_args(arguments)
    steps, trainings, seeds = (20, 20, 1) if given.quick else (200, 50, 3)
    sizes = {
        "steps": given.steps or steps,
        "batch": given.batch,
        "trainings": given.trainings or trainings,
    }
    about = _record.about(command(arguments))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    studies = [draw(seed, **sizes) for seed in range(10, 10 + (given.seeds or seeds))]
    sizes |= {"rows": studies[0].kept.shape[1], "seeds": len(studies)}
    found = {**about, "sizes": sizes, "cost": {}, "lds": []}
    for study in studies:
        found["lds"].append(compare(study))
        print(f"seed {len(found['lds'])}: {time.process_time():.0f} s", flush=True)
    found["cost"] = cost(studies[0], 2.0 if given.quick else 30.0)
    _record.write("attribution", found, given.results)
    print(section(_record.read("attribution", given.results)))


def command(arguments: list[str] | None) -> str:
    """Return the command, without where the results go."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser()
    parser.add_argument("--results")
    told = parser.parse_known_args(words)[1]
    return " ".join(["python benchmarks/attribution.py", *told])


if __name__ == "__main__":
    main()
