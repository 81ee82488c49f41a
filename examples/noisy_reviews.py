"""Classify texts whose labels are noisy: learn from a few clean ones which to trust.

A fraction of the labels is flipped. A small network v maps the loss of a text to its
weight (Meta-Weight-Net, Shu et al., NeurIPS 2019). It is trained so that the
transformer w* that is trained with these weights is good on clean texts:

    min over v   mean of loss_j(w*(v)) over the clean texts j
    such that    w*(v) = argmin over w of  sum_i v_i loss_i(w) / sum_i v_i
                 over the noisy texts i,  where v_i = v(loss_i(w))

A cycle is 5 steps of Adam for w, then one step of Adam for v, whose gradient flows back
through these 5 steps (`mlox.Unrolled`). The transformer is first trained on half of the
clean texts, the weights on the other half.

    python examples/noisy_reviews.py                 # docstrings: scipy or scikit-learn
    MLOX_DATA=folder python examples/noisy_reviews.py --data reviews
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, batches, join, take
from _program import parsed
from _texts import NAMES, Texts, options, split_texts
from _transformer import accuracy, classifier, text_losses
from _trust import Outcome, draw, print_outcomes
from _weighting import Weighting
from sklearn.metrics import roc_auc_score

import mlox

UNROLL, BATCH, CHECKPOINTS = 5, 64, 20
KEPT = [0.5, 0.65, 0.8]  # fractions of a batch, for training on small losses


# Created once, so that all seeds share the compiled programs. `eps_root` makes Adam
# differentiable where a gradient is 0: at the words that no text of a batch has.
weighting = Weighting()
lower_adam, upper_adam = optax.adam(2e-3, eps_root=1e-8), optax.adam(1e-2)


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    losses = text_losses(params, batch)
    weights = ctx.weights(jax.lax.stop_gradient(losses))
    return jnp.average(losses, weights=weights)


def clean_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return text_losses(ctx.classifier.params, batch).mean()


@functools.cache
def loss_of_kept(fraction: float) -> Callable[..., jax.Array]:
    """Return the mean of the smallest losses of a batch; of all of them for 1."""

    def loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
        losses = text_losses(params, batch)
        return jnp.sort(losses)[: round(fraction * len(losses))].mean()

    return loss


def build(params: Any, kept: float | None, seed: int) -> mlox.Engine:
    """Return mlox's engine, or that of a transformer alone for a fraction `kept`."""
    lower = mlox.Problem.create(
        name="classifier",
        params=params,
        tx=lower_adam,
        loss_fn=weighted_loss if kept is None else loss_of_kept(kept),
        method=mlox.Unrolled(),
        unroll_steps=UNROLL,
    )
    if kept is not None:
        return mlox.Engine([lower])
    upper = mlox.Problem.create(
        name="weights",
        params=weighting.init(jax.random.key(seed), jnp.zeros(1)),
        tx=upper_adam,
        loss_fn=clean_loss,
        apply_fn=weighting.apply,
    )
    return mlox.Engine([upper, lower], u2l={upper: [lower]}, l2u={lower: [upper]})


def fit(
    split: Texts, train: Pair, judge: Any, start: Any, steps: int, kept: Any = 1.0
) -> Outcome:
    """Train on `train`; choose the best checkpoint on `judge`, or else the last."""
    engine = build(start, kept, split.seed)
    data = {"classifier": batches(train, BATCH, seed=0)}
    if kept is None:
        data["weights"] = batches(judge, BATCH, seed=1)
    states = []

    def validation(state: Any) -> dict[str, jax.Array]:
        states.append(state)
        params = state["classifier"].params
        return {} if judge is None else {"judge": accuracy(params, judge)}

    every = steps // engine.steps_per_cycle["classifier"] // CHECKPOINTS
    quiet = {"cycles_per_dispatch": every, "loggers": (), "progress": False}
    quiet |= {"validation": validation, "valid_every": every}
    _, history = engine.run(engine.init(), data, CHECKPOINTS * every, **quiet)
    judged = [0.0] if judge is None else history["validation/judge"]
    best = states[-1 if judge is None else int(np.argmax(judged))]
    losses = text_losses(best["classifier"].params, split.noisy)
    last, trust = states[-1]["classifier"].params, -losses
    if kept is None:
        trust = weighting.apply(best["weights"].params, losses)
    ends = last, best["classifier"].params
    tests = [accuracy(params, split.test) for params in ends]
    auc = roc_auc_score(split.noisy[1] == split.true, trust)
    return Outcome(np.array([*tests, auc], float), float(np.max(judged)), trust, last)


def fit_all(split: Texts, steps: int) -> dict[str, Outcome]:
    noisy, clean, half = split.noisy, split.clean, len(split.clean[0]) // 2
    first, rest = take(clean, slice(half)), take(clean, slice(half, None))
    right = take(noisy, noisy[1] == split.true)
    new = classifier.init(jax.random.key(split.seed), noisy[0][:1])
    start = fit(split, first, None, new, steps).last
    small = [fit(split, noisy, rest, start, steps, kept) for kept in KEPT]
    return {
        "noisy": fit(split, noisy, clean, new, steps),
        "clean alone": fit(split, clean, None, new, steps),
        "both": fit(split, join(noisy, first), rest, new, steps),
        "clean, noisy": fit(split, noisy, rest, start, steps),
        "small losses": max(small, key=lambda outcome: outcome.judged),
        "mlox": fit(split, noisy, rest, start, steps, kept=None),
        "oracle": fit(split, right, clean, new, steps),
    }


def main() -> None:
    args = parsed(options(), steps=3000, size=9000)
    how = args.data, args.noise, args.size, args.clean
    splits = [split_texts(*how, seed) for seed in range(args.seeds)]
    runs = [fit_all(split, args.steps) for split in splits]
    print_outcomes(runs, splits[0], NAMES[args.data])
    draw(runs, splits[0], args.out)


if __name__ == "__main__":
    main()
