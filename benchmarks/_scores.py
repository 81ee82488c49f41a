"""Scores of data attribution, and the trainings that judge them."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import _data
from _retraining import draw_order, lds, leave_out, train
from _tracin import products

ADAM, STILL = optax.adam(1e-3, eps_root=1e-16), optax.sgd(0.0)
JUDGED, SINGLE, PART = 500, 10, 0.05
DAMPINGS, LOOKS = (0.03, 0.1, 0.3), (1, 5, 10)
THROUGH = "`Unrolled`, through the training"
PyTree = Any
Scores = Mapping[str, np.ndarray]  # of each query of a kind: [queries, rows]


def losses(w: PyTree, batch: PyTree) -> jax.Array:
    x, y, *_ = batch
    *hidden, (matrix, bias) = w
    for weights, shift in hidden:
        x = jnp.tanh(x @ weights + shift)
    return optax.softmax_cross_entropy_with_integer_labels(x @ matrix + bias, y)


def weighted(w: PyTree, batch: PyTree, v: jax.Array) -> jax.Array:
    return jnp.mean(v[batch[2]] * losses(w, batch))  # batch[2]: which rows


class Study(NamedTuple):
    """What one seed draws.

    Attributes:
        w: The first parameters.
        rows: The digits to train on.
        data: The batches of all steps, and which rows they are.
        valid: The images to choose by.
        test: The images that judge.
        kept: [trainings, rows], 0 where a digit is left out.
    """

    w: PyTree
    rows: PyTree
    data: PyTree
    valid: PyTree
    test: PyTree
    kept: np.ndarray


def draw(seed: int, steps: int, batch: int, trainings: int) -> Study:
    """Split 5000 digits, and draw everything else."""
    images, labels, _ = _data.load("mnist")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    x = images[order].reshape(len(order), -1).astype(np.float32)
    parts = np.split(np.arange(len(order)), [-2 * JUDGED, -JUDGED])
    rows, valid, test = (
        _data.take((x, labels[order].astype(np.int32)), i) for i in parts
    )
    index = draw_order(rng, len(rows[1]), steps, batch)
    w = [
        (jnp.float32(rng.normal(size=size) / size[0] ** 0.5), jnp.zeros(size[1]))
        for size in itertools.pairwise((x.shape[1], 64, 10))
    ]
    kept = leave_out(rng, len(rows[1]), PART, trainings).astype(np.float32)
    data = jax.device_put((rows, (*_data.take(rows, index), index), valid, test))
    return Study(w, *data, kept)


def engine_of(w: PyTree, count: int, tx: Any, method: Any, steps: int) -> mlox.Engine:
    """Return the weights of that many digits over a network."""
    upper = mlox.Problem.create(
        name="weights",
        params=jnp.ones(count),
        tx=STILL,
        loss_fn=lambda v, batch, ctx: losses(ctx.net.params, batch).mean(),
    )
    lower = mlox.Problem.create(
        name="net",
        params=w,
        tx=tx,
        loss_fn=lambda w, batch, ctx: weighted(w, batch, ctx.weights.params),
        method=method,
        unroll_steps=steps,
    )
    return mlox.Engine([upper, lower], {upper: [lower]}, {lower: [upper]})


def attribute(
    study: Study, tx: Any, method: Any, data: PyTree, start: Mapping[str, Any]
) -> Callable[[PyTree], np.ndarray]:
    """Return the function from queries, [queries, images, ...], to their scores.

    Args:
        study: What a seed draws.
        tx: The optimizer of the network.
        method: How its answer is differentiated.
        data: The batches of its steps.
        start: The attributes of the network with which these steps begin.
    """
    shapes = tuple(tuple(x.shape for x in layer) for layer in study.w)
    scores = scores_of(tx, method, len(data[1]), study.kept.shape[1], shapes)
    return lambda queries: np.asarray(scores(start, data, queries))


@functools.cache  # one compilation for all seeds
def scores_of(tx: Any, method: Any, steps: int, count: int, shapes: Any) -> Any:
    w = [tuple(map(jnp.zeros, layer)) for layer in shapes]
    engine = engine_of(w, count, tx, method, steps)
    state = engine.init()

    @jax.jit
    def scores(start: PyTree, data: PyTree, queries: PyTree) -> jax.Array:
        at = {**state, "net": state["net"].replace(**start)}

        def one(query: PyTree) -> jax.Array:
            batches = {"net": data, "weights": jax.tree.map(lambda x: x[None], query)}
            return engine.hypergradient(at, batches, "weights")[1]

        return jax.vmap(one)(queries)

    return scores


def queries_of(images: PyTree) -> dict[str, PyTree]:
    """Return the two kinds of queries: the mean, and single images."""
    mean = jax.tree.map(lambda x: x[None], images)
    return {"mean": mean, "images": jax.tree.map(lambda x: x[:SINGLE, None], images)}


@functools.partial(jax.jit, static_argnums=0)
def retrain(
    tx: Any, w: PyTree, data: PyTree, kept: jax.Array, images: PyTree
) -> jax.Array:
    """Return the losses [trainings, images] after trainings with some rows."""
    one = lambda v: losses(train(weighted, tx, w, data, v)[0][0], images)
    return jax.vmap(one)(kept)


def judge(scores: Scores, kept: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return the LDS of both kinds of queries."""
    true = {"mean": found.mean(1, keepdims=True), "images": found[:, :SINGLE]}
    return {kind: lds(x, kept, true[kind]) for kind, x in scores.items()}


def compare(study: Study) -> dict[str, dict[str, float]]:
    """Return the LDS of all scores at the test images of a seed."""
    both = jax.tree.map(lambda *x: jnp.concatenate(x), study.valid, study.test)
    found = np.asarray(retrain(ADAM, study.w, study.data, study.kept, both))
    at_valid, at_test = found[:, :JUDGED], found[:, JUDGED:]
    test, count = queries_of(study.test), study.kept.shape[1]
    (w, opt_state), path = train(weighted, ADAM, study.w, study.data, jnp.ones(count))
    everything = jax.tree.map(lambda x: x[None], (*study.rows, jnp.arange(count)))

    def of(
        tx: Any, method: Any, data: PyTree, **start: Any
    ) -> Callable[[PyTree], Scores]:
        scores = attribute(study, tx, method, data, start)
        return lambda queries: {kind: scores(q) for kind, q in queries.items()}

    def at_end(method: Any) -> Callable[[PyTree], Scores]:
        return of(STILL, method, everything, params=w)

    def tracin(looks: int) -> Callable[[PyTree], Scores]:
        some = jax.tree.map(lambda x: x[:: -max(1, len(x) // looks)][:looks], path)

        def scores(queries: PyTree) -> Scores:
            found = lambda q: products(losses, some, study.rows, q).sum(0)
            return {kind: np.asarray(found(q)) for kind, q in queries.items()}

        return scores

    def best(options: Iterable[Callable[[PyTree], Scores]]) -> Scores:
        mean = lambda images: {"mean": queries_of(images)["mean"]}
        score = lambda way: judge(way(mean(study.valid)), study.kept, at_valid)["mean"]
        return max(options, key=score)(test)

    influence = [at_end(mlox.Implicit(mlox.CG(10, damping=d))) for d in DAMPINGS]
    adam_at_end = {"params": w, "opt_state": opt_state}
    through = of(ADAM, mlox.Unrolled(levels=0), study.data, params=study.w)(test)
    shuffle = np.random.default_rng(0).permutation(count)
    found_by = {
        THROUGH: through,
        "influence functions, `Implicit(CG(10, damping))`": best(influence),
        "TracIn": best(map(tracin, LOOKS)),
        "products of gradients at the end, `FiniteDifference`": at_end(
            mlox.FiniteDifference()
        )(test),
        "the same as Adam scales them, `SAMA`": of(
            ADAM, mlox.SAMA(), everything, **adam_at_end
        )(test),
        "`Unrolled`, shuffled": {k: x[:, shuffle] for k, x in through.items()},
    }
    return {name: judge(x, study.kept, at_test) for name, x in found_by.items()}
