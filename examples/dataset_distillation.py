"""Distil a training set: learn one image per class on which networks train well.

The images x, and the learning rate r, are parameters of an upper problem (Wang et al.,
Dataset Distillation, 2018). Below, a population of networks starts anew in each cycle,
from random parameters, and makes 20 steps on these ten images alone:

    min over x, r   mean over starts s of  loss of w_s on 150 real images
    such that       w_s = 20 steps of momentum SGD on x at rate r, from start s

`tasks=4` makes four starts, `reset=` draws them, `hyperparams=` sets the rate, and
`mlox.Unrolled` differentiates the loss of real images through all steps. For comparison
networks are trained on as many random images, on real images whose mean is close to the
mean of the class (herding), and on the means of k-means. Each row has the rate and the
number of steps with the best accuracy on validation images, for each network.

    pip install "mlox[examples]"
    python examples/dataset_distillation.py              # 10 images
    python examples/dataset_distillation.py --large      # 100 images
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _coresets import NETS, STEPS, accuracies, choose, judge, loss
from _data import Pair, batches, split_with_noise
from _picture import panels, save
from _program import parser, print_table

import mlox

STARTS, BATCH = 4, 150
WAYS = ("random", "herding", "k-means")
net = NETS[0]
sgd = optax.inject_hyperparams(optax.sgd)(0.02, momentum=0.9)


def build(start: Pair, cycles: int, seed: int) -> mlox.Engine:
    images, labels = start
    upper = mlox.Problem.create(
        name="distilled",
        params={"images": jnp.asarray(images), "rate": jnp.log(0.02)},
        tx=optax.adam(optax.cosine_decay_schedule(0.02, cycles)),
        loss_fn=lambda x, batch, ctx: ctx.nets.map(loss, ctx.nets.params)(batch).mean(),
    )
    lower = mlox.Problem.create(
        name="nets",
        params=net.init(jax.random.key(0), images[:1]),
        tx=sgd,
        hyperparams=lambda ctx: {
            "learning_rate": jnp.exp(ctx.distilled.params["rate"])
        },
        loss_fn=lambda w, batch, ctx: loss(w, (ctx.distilled.params["images"], labels)),
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        tasks=STARTS,
        reset=lambda w, ctx: net.init(ctx.rng, images[:1]),
        rng=seed,
    )
    return mlox.Engine([upper, lower], {upper: [lower]}, {lower: [upper]})


def for_starts(batch: Pair) -> Any:
    """Return other real images for each start."""
    return tuple(part.reshape(STARTS, BATCH, *part.shape[1:]) for part in batch)


def distil(start: Pair, train: Pair, cycles: int, seed: int) -> tuple[Pair, float]:
    """Return the images with their labels, and the rate that was learned with them."""
    engine = build(start, cycles, seed)
    data = {"distilled": map(for_starts, batches(train, STARTS * BATCH, seed))}
    how = {"cycles_per_dispatch": 50, "loggers": (), "progress": False}
    state, _ = engine.run(engine.init(), data, cycles, **how)
    found = state["distilled"].params
    return (np.asarray(found["images"]), start[1]), float(jnp.exp(found["rate"]))


def compare(
    seed: int, each: int, cycles: int, starts: int
) -> tuple[dict[str, Any], Any]:
    train, valid, test = split_with_noise("mnist", noise=0.0, seed=seed)[:3]
    sets = {way: choose(way, train, each, seed) for way in WAYS}
    sets["distilled"], rate = distil(sets["random"], train, cycles, seed)
    tune, keys = jax.random.split(jax.random.key(1000 + seed), (2, starts))
    rows = {
        f"{way}, tuned": judge(pair, valid, test, tune) for way, pair in sets.items()
    }
    at = sets["distilled"], jnp.array([rate]), keys, test
    rows["distilled, 20 steps"] = [accuracies(n, *at)[0, :, 0].mean() for n in NETS]
    rows["all 3500 images"] = judge(train, valid, test, tune)
    print(f"seed {seed}: learned rate {rate:.3f}")
    return rows, sets


def draw(sets: Any, rows: dict[str, Any], file: str) -> None:
    """Draw the images that each way has for the ten classes."""
    figure, axes = panels(len(sets))
    for ax, (way, (images, labels)) in zip(axes, sets.items(), strict=True):
        first = np.array([images[labels == k][0] for k in range(10)])
        first /= np.abs(first).max(axis=(1, 2), keepdims=True)
        row = np.concatenate(np.pad(first, ((0, 0), (0, 0), (2, 2))), axis=1)
        ax.imshow(row, cmap="RdGy", vmin=-1, vmax=1)  # 0 is white, negative is red
        ax.axis("off")
        score = rows[f"{way}, tuned"][0]
        ax.set_title(f"{way}: test accuracy {score:.2f}", loc="left", fontsize=11)
    save(figure, file)


def main() -> None:
    options = parser("Distil MNIST with mlox.")
    options.add_argument("--steps", type=int, default=200, help="a multiple of 50")
    options.add_argument("--starts", type=int, default=3, help="to judge by")
    options.add_argument("--first", type=int, default=0, help="the first seed")
    args = options.parse_args()
    start = time.perf_counter()
    each, cycles = (10, 10 * args.steps) if args.large else (1, args.steps)
    seeds = range(args.first, args.first + args.seeds)
    runs = [compare(seed, each, cycles, args.starts) for seed in seeds]
    columns = ["test accuracy", "this network", "another network"]
    print_table(columns, [rows for rows, _ in runs])
    print(f"{time.perf_counter() - start:.0f} s")
    draw(runs[0][1], runs[0][0], args.out)


if __name__ == "__main__":
    main()
