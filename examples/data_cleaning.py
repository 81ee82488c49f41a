"""Find wrong labels: learn from a few clean images which training images to trust.

40 % of the labels are replaced by wrong ones. A small network v maps the loss of a
training image to its weight (Meta-Weight-Net, Shu et al., NeurIPS 2019). It is trained
so that the classifier w* that is trained with these weights is good on clean images:

    min over v   mean of loss_j(w*(v)) over the clean images j
    such that    w*(v) = argmin over w of  sum_i v_i loss_i(w) / sum_i v_i
                 over the noisy images i,  where v_i = v(loss_i(w))

A cycle is 5 steps of momentum SGD for w, then one Adam step for v, whose gradient flows
back through these 5 steps (`mlox.Unrolled`). The classifier is never trained on a clean
image. For comparison it is trained without weights.

    pip install "mlox[examples]"
    python examples/data_cleaning.py                        # 5000 MNIST digits
    python examples/data_cleaning.py --data digits --noise 0.6
    MLOX_DATA=folder python examples/data_cleaning.py --data fashion
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, Split, batches, join, split_with_noise, take
from _program import parsed, parser
from _suspects import Outcome, draw, print_outcomes
from _weighting import Classifier, Weighting
from sklearn.metrics import roc_auc_score

import mlox

UNROLL, BATCH, CHECKPOINTS = 5, 100, 40


# Created once, so that all seeds share the compiled programs.
classifier, weighting, sgd = Classifier(), Weighting(), optax.sgd(0.2, momentum=0.5)
# A slow start: at first losses do not distinguish wrong labels, and the weights could
# prefer images with *large* losses, which speed up learning.
adam = optax.adam(optax.linear_schedule(0.0, 1e-2, transition_steps=100))


def image_losses(params: Any, batch: Pair, key: jax.Array | None = None) -> jax.Array:
    rngs = {} if key is None else {"dropout": key}
    logits: Any = classifier.apply(params, batch[0], train=key is not None, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def plain_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(params, batch, ctx.rng).mean()


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    weights = ctx.weights(jax.lax.stop_gradient(image_losses(params, batch)))
    # The average makes weights relative. In a sum they would also scale the learning
    # rate, and raising all of them would be the fastest way to a smaller clean loss.
    return jnp.average(image_losses(params, batch, ctx.rng), weights=weights)


def clean_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(ctx.classifier.params, batch).mean()


def build(images: np.ndarray, seed: int, weighted: bool) -> mlox.Engine:
    key = jax.random.key(seed)
    lower = mlox.Problem.create(
        name="classifier",
        params=classifier.init(key, images[:1], train=False),
        tx=sgd,
        loss_fn=weighted_loss if weighted else plain_loss,
        method=mlox.Unrolled(),
        unroll_steps=UNROLL,
        rng=seed,
    )
    if not weighted:
        return mlox.Engine([lower])
    upper = mlox.Problem.create(
        name="weights",
        params=weighting.init(key, jnp.zeros(1)),
        tx=adam,
        loss_fn=clean_loss,
        apply_fn=weighting.apply,
    )
    return mlox.Engine([upper, lower], u2l={upper: [lower]}, l2u={lower: [upper]})


@jax.jit
def accuracy(params: Any, pair: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, pair[0], train=False)
    return (logits.argmax(axis=-1) == pair[1]).mean()


def fit(split: Split, train: Pair, judge: Any, steps: int, **options: Any) -> Outcome:
    """Train on `train`; choose the best checkpoint on `judge`, or else the last."""
    engine = build(train[0], **options)
    data = {"classifier": batches(train, BATCH, seed=0)}
    if "weights" in engine.names:
        data["weights"] = batches(split.clean, BATCH, seed=1)
    states = []

    def validation(state: Any) -> dict[str, jax.Array]:
        states.append(state)
        params = state["classifier"].params
        scores = {} if judge is None else {"judge": accuracy(params, judge)}
        return scores | {"test": accuracy(params, split.test)}  # for display alone

    every = steps // engine.steps_per_cycle["classifier"] // CHECKPOINTS
    how = {"cycles_per_dispatch": every, "loggers": (), "progress": False}
    how |= {"validation": validation, "valid_every": every}
    _, history = engine.run(engine.init(), data, CHECKPOINTS * every, **how)
    chosen = -1 if judge is None else int(history["validation/judge"].argmax())
    trust = -image_losses(states[chosen]["classifier"].params, split.noisy)
    if "weights" in engine.names:
        trust = weighting.apply(states[chosen]["weights"].params, -trust)
    auc = roc_auc_score(split.noisy[1] == split.true, trust)
    return Outcome(history["validation/test"], chosen, np.asarray(trust), float(auc))


def fit_all(split: Split, steps: int, seed: int) -> dict[str, Outcome]:
    noisy, clean, half = split.noisy, split.clean, len(split.clean[0]) // 2
    both, rest = join(noisy, take(clean, slice(half))), take(clean, slice(half, None))
    right = take(noisy, noisy[1] == split.true)
    plain: Any = {"steps": steps, "seed": seed, "weighted": False}
    return {
        "noisy": fit(split, noisy, judge=clean, **plain),
        "clean alone": fit(split, clean, judge=None, **plain),
        "both": fit(split, both, judge=rest, **plain),
        "mlox": fit(split, noisy, clean, steps, seed=seed, weighted=True),
        "oracle": fit(split, right, judge=clean, **plain),
    }


def main() -> None:
    options = parser("Find wrong labels with mlox.")
    sets = ["mnist", "digits", "fashion"]
    options.add_argument("--data", choices=sets, default="mnist")
    options.add_argument("--noise", type=float, default=0.4, help="of the labels")
    options.add_argument("--steps", type=int, default=2000, help="multiple of 200")
    args = parsed(options, steps=10_000)
    splits = [split_with_noise(args.data, args.noise, i) for i in range(args.seeds)]
    runs = [fit_all(split, args.steps, seed) for seed, split in enumerate(splits)]
    print_outcomes(runs)
    draw(splits[0], runs, args.steps, args.out)


if __name__ == "__main__":
    main()
