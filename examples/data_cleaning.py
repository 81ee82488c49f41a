"""Find wrong labels: learn which training images to trust from a few clean ones.

A part of the labels (40 %) is replaced by wrong ones. A small network v turns the loss
of a training image into its weight (Meta-Weight-Net, Shu et al., NeurIPS 2019). It is
good if the classifier w* that is trained with these weights is good on clean images:

    min over v    mean over clean (x, y) of  loss(x, y; w*(v))
    such that     w*(v) = argmin over w of  sum_i v(loss_i(w)) loss_i(w) / sum_i v(loss_i(w))
                  over the noisy images i

A cycle is 5 steps of momentum SGD for w, then one Adam step for v, whose gradient flows
back through these 5 steps (`mlox.Unrolled`). The classifier never trains on a clean
image. For comparison the same classifier is trained without weights.

    pip install "mlox[examples]"
    python examples/data_cleaning.py                       # 5000 MNIST digits
    python examples/data_cleaning.py --data digits --noise 0.6
    MLOX_DATA=folder/of/fashion_mnist.npz python examples/data_cleaning.py --data fashion
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
from _data import Pair, Split, batches, split_with_noise
from sklearn.metrics import roc_auc_score

import mlox

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt

UNROLL, BATCH, CHECKPOINTS = 5, 100, 40


class Classifier(nn.Module):
    """Images to ten logits."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden)


class Weighting(nn.Module):
    """The loss of each image to its weight, between 0 and 1."""

    @nn.compact
    def __call__(self, losses: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(100)(losses[:, None]))
        return nn.sigmoid(nn.Dense(1)(hidden))[:, 0]


# Here, and not made anew for every seed: all seeds share what is compiled.
classifier, weighting = Classifier(), Weighting()
sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.4, momentum=0.5))
adam = optax.adam(1e-2)


def image_losses(params: Any, batch: Pair) -> jax.Array:
    images, labels = batch
    logits = classifier.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def plain_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(params, batch).mean()


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    losses = image_losses(params, batch)
    weights = ctx.weights(jax.lax.stop_gradient(losses))
    # The average makes weights relative. In a sum they would be the learning rate, too,
    # and the quickest way to a smaller clean loss would be to raise all of them.
    return jnp.average(losses, weights=weights)


def clean_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(ctx.classifier.params, batch).mean()


def plain_engine(images: np.ndarray, seed: int) -> mlox.Engine:
    params = classifier.init(jax.random.key(seed), images[:1])
    return mlox.Engine(
        [mlox.Problem.create(name="classifier", params=params, tx=sgd, loss_fn=plain_loss)]
    )


def bilevel_engine(images: np.ndarray, seed: int) -> mlox.Engine:
    upper = mlox.Problem.create(
        name="weights",
        params=weighting.init(jax.random.key(seed), jnp.zeros(1)),
        tx=adam,
        loss_fn=clean_loss,
        apply_fn=weighting.apply,
    )
    lower = mlox.Problem.create(
        name="classifier",
        params=classifier.init(jax.random.key(seed), images[:1]),
        tx=sgd,
        loss_fn=weighted_loss,
        method=mlox.Unrolled(),
        unroll_steps=UNROLL,
    )
    u2l, l2u = {"weights": ["classifier"]}, {"classifier": ["weights"]}
    return mlox.Engine([upper, lower], u2l=u2l, l2u=l2u)


class Outcome(NamedTuple):
    """What a training gave: at each checkpoint, and at the one that was chosen."""

    accuracy: np.ndarray  # [CHECKPOINTS], on the test set
    chosen: int
    trust: np.ndarray  # of each noisy image: its weight, or else minus its loss
    auc: float  # with which trust tells right labels from wrong ones


@jax.jit
def accuracy(params: Any, pair: Pair) -> jax.Array:
    images, labels = pair
    return (classifier.apply(params, images).argmax(-1) == labels).mean()


def train(engine: mlox.Engine, data: Any, steps: int, judge: Pair | None, split: Split) -> Outcome:
    """Train, and choose the checkpoint that is best on `judge`; without one, the last."""
    states = []

    def validation(state: Any) -> dict[str, jax.Array]:
        states.append(state)
        params = state["classifier"].params
        scores = {} if judge is None else {"judge": accuracy(params, judge)}
        return scores | {"test": accuracy(params, split.test)}  # for the table only

    every = max(1, steps // engine.steps_per_cycle["classifier"] // CHECKPOINTS)
    _, history = engine.run(
        engine.init(),
        data,
        train_iters=CHECKPOINTS * every,
        validation=validation,
        valid_every=every,
        cycles_per_dispatch=every,
        progress=False,
    )
    chosen = -1 if judge is None else int(history["validation/judge"].argmax())
    losses = image_losses(states[chosen]["classifier"].params, split.noisy)
    weights = states[chosen].get("weights")
    trust = -losses if weights is None else weighting.apply(weights.params, losses)
    auc = roc_auc_score(split.noisy[1] == split.true, trust)
    return Outcome(history["validation/test"], chosen, np.asarray(trust), float(auc))


def train_all(split: Split, steps: int, seed: int) -> dict[str, Outcome]:
    def plain(pair: Pair, judge: Pair | None) -> Outcome:
        data = {"classifier": batches(pair, BATCH, seed)}
        return train(plain_engine(pair[0], seed), data, steps, judge, split)

    def rows(pair: Pair, which: Any) -> Pair:
        return pair[0][which], pair[1][which]

    noisy, clean = split.noisy, split.clean
    half = len(clean[0]) // 2
    first, second = rows(clean, slice(half)), rows(clean, slice(half, None))
    both = np.concatenate([noisy[0], first[0]]), np.concatenate([noisy[1], first[1]])
    data = {
        "classifier": batches(noisy, BATCH, seed),
        "weights": batches(clean, BATCH, seed + 1),
    }
    return {
        "noisy": plain(noisy, judge=clean),
        "clean alone": plain(clean, judge=None),
        "both": plain(both, judge=second),
        "mlox": train(bilevel_engine(noisy[0], seed), data, steps, clean, split),
        "oracle": plain(rows(noisy, noisy[1] == split.true), judge=clean),
    }


RULES = f"""
chosen: of {CHECKPOINTS} checkpoints the best one on the clean images. "clean alone" trains on
        these, so it is the last one there; "both" trains on the noisy set and one half
        of the clean images, and the other half chooses. No choice sees the test set.
AUC:    how well the weights (mlox) or else the losses of the chosen checkpoint tell
        right labels from wrong ones.
oracle: trained on the noisy set without its wrong labels, what a perfect judge gives."""


def print_table(runs: list[dict[str, Outcome]]) -> None:
    print(f"\n{'':14}{'test accuracy':^31}\n{'trained on':14}", end="")
    print(f"{'last step':^13}     {'chosen':^13}     {'AUC':^13}")
    for name in runs[0]:
        found = [run[name] for run in runs]
        last, chosen = zip(*[(o.accuracy[-1], o.accuracy[o.chosen]) for o in found], strict=True)
        columns = last, chosen, [o.auc for o in found]
        cells = [f"{np.mean(c):.3f} ± {np.std(c):.3f}" for c in columns]
        print(f"{name:14}" + "     ".join(cells))
    print(RULES)


def draw(split: Split, runs: list[dict[str, Outcome]], steps: int, file: str) -> None:
    """Draw the least trusted images and the weights of the first seed, and all curves."""
    (given, true), trust = (split.noisy[1], split.true), runs[0]["mlox"].trust
    figure = plt.figure(figsize=(12, 6.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1], wspace=0.04)
    suspects = trust.argsort()[:24]
    found = (given != true)[suspects].sum()
    left.suptitle(f"The 24 smallest weights: {found} of these labels are wrong")
    for axes, i in zip(left.subplots(4, 6).flat, suspects, strict=True):
        axes.imshow(split.noisy[0][i], cmap="gray_r")
        axes.set(xticks=[], yticks=[])
        color = "tab:green" if given[i] == true[i] else "tab:red"
        axes.set_title(f"“{split.names[given[i]]}”", color=color, fontsize=12, pad=3)
        axes.set_xlabel(f"is {split.names[true[i]]}", color="gray", fontsize=8, labelpad=2)
    top, bottom = right.subplots(2, 1)
    draw_weights(top, trust / trust.max(), given == true)
    draw_curves(bottom, runs, steps)
    figure.savefig(file, dpi=130)


def draw_weights(axes: Any, weights: np.ndarray, right: np.ndarray) -> None:
    axes.hist(
        [weights[right], weights[~right]],
        bins=np.linspace(0, 1, 31),
        stacked=True,
        color=["tab:green", "tab:red"],
        label=[f"right ({right.sum()})", f"wrong ({(~right).sum()})"],
    )
    axes.set(title="Learned weights of the noisy images", ylabel="images")
    axes.set_xlabel("weight, relative to the largest")
    axes.legend(title="label", frameon=False)


def draw_curves(axes: Any, runs: list[dict[str, Outcome]], steps: int) -> None:
    colors = ["tab:orange", "tab:green", "tab:purple", "tab:blue", "gray"]
    at = np.linspace(0, steps, CHECKPOINTS + 1)[1:]
    for name, color in zip(runs[0], colors, strict=True):
        curves = np.stack([run[name].accuracy for run in runs])
        mean, std = curves.mean(0), curves.std(0)
        style = {"ls": "--", "lw": 1.2} if name == "oracle" else {"lw": 1.8}
        axes.plot(at, mean, color=color, label=name, **style)
        axes.fill_between(at, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    axes.set(title="Test accuracy", xlabel="steps of the classifier", xlim=(0, steps))
    axes.legend(frameon=False, ncols=3, loc="lower center")
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Find wrong labels with mlox.")
    parser.add_argument("--data", choices=["mnist", "digits", "fashion"], default="mnist")
    parser.add_argument("--noise", type=float, default=0.4, help="part of wrong labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier")
    parser.add_argument("--out", default="data_cleaning.png")
    args = parser.parse_args()
    if not (0 < args.noise < 1 and args.seeds > 0 and args.steps > 0):
        parser.error("--noise must be between 0 and 1, --seeds and --steps positive")

    start = time.perf_counter()
    splits = [split_with_noise(args.data, args.noise, seed) for seed in range(args.seeds)]
    runs = []
    for seed, split in enumerate(splits):
        runs.append(train_all(split, args.steps, seed))
        print(f"seed {seed} done after {time.perf_counter() - start:.0f} s")
    print_table(runs)
    draw(splits[0], runs, args.steps, args.out)


if __name__ == "__main__":
    main()
