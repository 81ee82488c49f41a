"""Find wrong labels: learn from a few clean images which training images to trust.

40 % of the labels are replaced by wrong ones. A small network v maps the loss of a
training image to its weight (Meta-Weight-Net, Shu et al., NeurIPS 2019). It is trained
so that the classifier w* that is trained with these weights is good on clean images:

    min over v   mean of loss_j(w*(v)) over the clean images j
    such that    w*(v) = argmin over w of  sum_i v_i loss_i(w) / sum_i v_i
                 over the noisy images i,  where v_i = v(loss_i(w))

A cycle is 5 steps of momentum SGD for w, then one Adam step for v, whose gradient flows
back through these 5 steps (`mlox.Unrolled`). The classifier is never trained on a clean
image. For comparison, the same classifier is trained without weights.

    pip install "mlox[examples]"
    python examples/data_cleaning.py                        # 5000 MNIST digits
    python examples/data_cleaning.py --data digits --noise 0.6
    MLOX_DATA=folder python examples/data_cleaning.py --data fashion
"""

import argparse
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from _data import Pair, Split, batches, join, split_with_noise, take
from sklearn.metrics import roc_auc_score

import mlox

matplotlib.use("Agg")  # write a file without opening a window
import matplotlib.pyplot as plt

UNROLL, BATCH, CHECKPOINTS = 5, 100, 40


class Classifier(nn.Module):  # noqa: D101
    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:  # noqa: D102
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(hidden))


class Weighting(nn.Module):  # noqa: D101
    @nn.compact
    def __call__(self, losses: jax.Array) -> jax.Array:  # noqa: D102
        hidden = nn.relu(nn.Dense(100)(losses[:, None]))
        # All weights are equal at the start.
        last = nn.Dense(1, kernel_init=nn.initializers.zeros)
        return nn.sigmoid(last(hidden))[:, 0]


# Created once, so that all seeds share the compiled programs.
classifier, weighting = Classifier(), Weighting()
sgd = optax.sgd(0.2, momentum=0.5)
# A slow start: before the classifier has learned anything, losses do not distinguish
# wrong labels, and the weights could prefer images with *large* losses, which speed up
# learning.
adam = optax.adam(optax.linear_schedule(0.0, 1e-2, transition_steps=100))


def image_losses(params: Any, batch: Pair, key: jax.Array | None = None) -> jax.Array:
    images, labels = batch
    rngs = {} if key is None else {"dropout": key}
    logits: Any = classifier.apply(params, images, train=key is not None, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


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
    u2l, l2u = {"weights": ["classifier"]}, {"classifier": ["weights"]}
    return mlox.Engine([upper, lower], u2l=u2l, l2u=l2u)


class Outcome(NamedTuple):
    """The results of a training at all checkpoints, and at the chosen one."""

    accuracy: np.ndarray  # [CHECKPOINTS], on the test images
    chosen: int
    trust: np.ndarray  # of each noisy image: its weight, or minus its loss
    auc: float  # how well trust separates correct labels from wrong ones


@jax.jit
def accuracy(params: Any, pair: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, pair[0], train=False)
    return (logits.argmax(axis=-1) == pair[1]).mean()


def fit(
    split: Split, train: Pair, judge: Pair | None, steps: int, **how: Any
) -> Outcome:
    """Train on `train`; choose the best checkpoint on `judge`, or else the last."""
    engine = build(train[0], **how)
    data = {"classifier": batches(train, BATCH, seed=0)}
    if "weights" in engine.names:
        data["weights"] = batches(split.clean, BATCH, seed=1)
    states = []

    def validation(state: Any) -> dict[str, jax.Array]:
        states.append(state)
        params = state["classifier"].params
        scores = {} if judge is None else {"judge": accuracy(params, judge)}
        # The test accuracy is displayed, and never used for a choice.
        return scores | {"test": accuracy(params, split.test)}

    every = steps // engine.steps_per_cycle["classifier"] // CHECKPOINTS
    _, history = engine.run(
        engine.init(),
        data,
        train_iters=CHECKPOINTS * every,
        validation=validation,
        valid_every=every,
        cycles_per_dispatch=every,
        loggers=(),
        progress=False,
    )
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
    plain = {"steps": steps, "seed": seed, "weighted": False}
    return {
        "noisy": fit(split, noisy, judge=clean, **plain),
        "clean alone": fit(split, clean, judge=None, **plain),
        "both": fit(split, both, judge=rest, **plain),
        "mlox": fit(split, noisy, clean, steps, seed=seed, weighted=True),
        "oracle": fit(split, right, judge=clean, **plain),
    }


NOTES = """
chosen: the best checkpoint on the clean images. "clean alone" trains on these, so it
        takes the last checkpoint. "both" trains on the noisy images and half of the
        clean ones, and chooses on the other half. Nothing is chosen on test images.
AUC:    how well the weights (mlox) or the losses (the others) of the noisy images
        separate correct labels from wrong ones, at the chosen checkpoint.
oracle: trained on the noisy images whose labels are correct."""


def print_table(runs: list[dict[str, Outcome]]) -> None:
    print(f"\n{'':15}{'test accuracy':^30}")
    print(f"{'trained on':15}{'last step':17}{'chosen':17}AUC")
    for name in runs[0]:
        found = [run[name] for run in runs]
        row = [(o.accuracy[-1], o.accuracy[o.chosen], o.auc) for o in found]
        cells = zip(np.mean(row, axis=0), np.std(row, axis=0), strict=True)
        print(f"{name:15}" + "    ".join(f"{m:.3f} ± {s:.3f}" for m, s in cells))
    print(NOTES)


def draw(split: Split, runs: list[dict[str, Outcome]], steps: int, file: str) -> None:
    """Draw the least trusted images, the weights and the accuracies."""
    figure = plt.figure(figsize=(12, 6), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.1, 1], wspace=0.04)
    left, right = parts
    draw_suspects(left, split, runs[0]["mlox"].trust)
    above, below = right.subplots(2, 1)
    draw_weights(above, runs[0]["mlox"].trust, split.noisy[1] == split.true)
    draw_curves(below, runs, steps)
    figure.savefig(file, dpi=130)


def draw_suspects(figure: Any, split: Split, trust: np.ndarray) -> None:
    images, given = split.noisy
    suspects = trust.argsort()[:24]
    wrong = (given != split.true)[suspects].sum()
    figure.suptitle(f"The 24 smallest weights: {wrong} of these labels are wrong")
    for axes, i in zip(figure.subplots(4, 6).flat, suspects, strict=True):
        axes.imshow(images[i], cmap="gray_r")
        axes.set(xticks=[], yticks=[])
        color = "tab:green" if given[i] == split.true[i] else "tab:red"
        axes.set_title(split.names[given[i]], color=color, fontsize=12, pad=3)
        axes.set_xlabel(f"is {split.names[split.true[i]]}", color="gray", fontsize=9)


def draw_weights(axes: Any, trust: np.ndarray, right: np.ndarray) -> None:
    weights = trust / trust.max()
    names = [f"correct ({right.sum()})", f"wrong ({(~right).sum()})"]
    colors, bins = ["tab:green", "tab:red"], np.linspace(0, 1, 31)
    both = [weights[right], weights[~right]]
    axes.hist(both, bins, stacked=True, color=colors, label=names)
    axes.set(title="Learned weights of the noisy images", ylabel="images")
    axes.set_xlabel("weight, relative to the largest")
    axes.legend(title="label", frameon=False)


def draw_curves(axes: Any, runs: list[dict[str, Outcome]], steps: int) -> None:
    colors = ["tab:orange", "tab:green", "tab:purple", "tab:blue", "gray"]
    at = np.linspace(0, steps, CHECKPOINTS + 1)[1:]
    for name, color in zip(runs[0], colors, strict=True):
        curves = np.stack([run[name].accuracy for run in runs])
        mean, std = curves.mean(axis=0), curves.std(axis=0)
        axes.plot(at, mean, "--" if name == "oracle" else "-", color=color, label=name)
        axes.fill_between(at, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    axes.set(title="Test accuracy", xlabel="steps of the classifier", xlim=(0, steps))
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)  # room for the legend
    axes.legend(ncols=5, loc="lower center", frameon=False, columnspacing=1, fontsize=9)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Find wrong labels with mlox.")
    parser.add_argument(
        "--data", choices=["mnist", "digits", "fashion"], default="mnist"
    )
    parser.add_argument(
        "--noise", type=float, default=0.4, help="fraction of wrong labels"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="multiple of 200")
    parser.add_argument("--out", default="data_cleaning.png", help="the picture")
    args = parser.parse_args()
    if not 0 < args.noise < 1 or args.seeds < 1:
        parser.error("expected --noise between 0 and 1, and --seeds of at least 1")
    if args.steps < 1 or args.steps % (UNROLL * CHECKPOINTS):
        parser.error(f"--steps must be a multiple of {UNROLL * CHECKPOINTS}")

    start = time.perf_counter()
    splits = [
        split_with_noise(args.data, args.noise, seed) for seed in range(args.seeds)
    ]
    runs = []
    for seed, split in enumerate(splits):
        runs.append(fit_all(split, args.steps, seed))
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s", flush=True)
    print_table(runs)
    draw(splits[0], runs, args.steps, args.out)


if __name__ == "__main__":
    main()
