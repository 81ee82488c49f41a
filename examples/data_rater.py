"""Rate data: learn which examples of a mixture are worth training on.

40 % of 3500 MNIST digits are as written; the others are mirrored, have wrong labels,
are noise, or are blank. A network, the rater, looks at an image and its label, and
learns a rating r, so that networks that are trained with the weights softmax(r) in each
batch are good on clean images (DataRater, Calian et al., 2025):

    min over r    mean over networks w_i of the loss of w_i'(r) on clean images
    such that     w_i' = 4 steps of momentum SGD from w_i on batches of the mixture,
                         each with the loss  sum_j softmax(r)_j loss_j(w)

`tasks=4` makes a population of networks. Each lives on from window to window, and
`reset=` starts them anew at different times, so that the rater sees young and old ones.
Then the rater rates all examples, and a new network trains on the top fraction.

    pip install "mlox[examples]"
    python examples/data_rater.py              # images of 14 x 14
    python examples/data_rater.py --large      # images of 28 x 28, 4 times the steps
"""

import time
from typing import Any

import _rankings as rankings
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, batches
from _mixture import Mixture, load_mixture
from _program import parser, print_table
from _rankings import BATCH, losses, network, sgd

import mlox

NETS, WINDOW, LIFE = 4, 4, 40  # a network lives for 40 windows of 4 steps


def rate(rater: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return a rating for each image: that of ten which its label selects."""
    ratings: Any = network.apply(rater, images)
    return jnp.take_along_axis(ratings, labels[:, None], axis=1)[:, 0]


def network_loss(w: Any, rows: Pair, ctx: mlox.Context) -> jax.Array:
    return losses(w, rows) @ jax.nn.softmax(ctx.rater(*rows))


def rater_loss(rater: Any, rows: Pair, ctx: mlox.Context) -> jax.Array:
    return ctx.nets.map(losses, ctx.nets.params)(rows).mean()


def build(image: np.ndarray, cycles: int, seed: int) -> mlox.Engine:
    new = lambda key: network.init(key, image)

    def reset(w: Any, ctx: mlox.Context) -> Any:
        age = ctx.step // WINDOW + ctx.task_index * (LIFE // NETS)
        return jax.tree.map(lambda a, b: jnp.where(age % LIFE, a, b), w, new(ctx.rng))

    upper = mlox.Problem.create(
        name="rater",
        params=new(jax.random.key(seed)),
        tx=optax.adam(optax.cosine_decay_schedule(3e-3, cycles)),
        loss_fn=rater_loss,
        apply_fn=rate,
    )
    lower = mlox.Problem.create(
        name="nets",
        params=new(jax.random.key(seed)),
        tx=sgd,
        loss_fn=network_loss,
        method=mlox.Unrolled(),
        unroll_steps=WINDOW,
        tasks=NETS,
        reset=reset,
        rng=seed,
    )
    return mlox.Engine([upper, lower], {upper: [lower]}, {lower: [upper]})


def for_nets(batch: Pair) -> Any:
    """Return other rows for each network."""
    return tuple(part.reshape(NETS, -1, *part.shape[1:]) for part in batch)


def learn(mixture: Mixture, cycles: int, seed: int) -> np.ndarray:
    """Return the ratings of all rows."""
    engine = build(mixture.train[0][:1], cycles, seed)
    data = {
        "nets": map(for_nets, batches(mixture.train, NETS * BATCH, seed)),
        "rater": map(for_nets, batches(mixture.valid, NETS * BATCH, seed)),
    }
    how: Any = {"cycles_per_dispatch": 50, "loggers": (), "progress": False}
    state, _ = engine.run(engine.init(), data, cycles, **how)
    return np.asarray(rate(state["rater"].params, *map(jnp.asarray, mixture.train)))


def compare(seed: int, cycles: int, pool: int) -> Any:
    """Return the table of one seed, its ratings and kinds, and a curve for each way."""
    mixture = load_mixture(seed, pool)
    keys = jax.random.split(jax.random.key(seed), 2)
    ratings = learn(mixture, cycles, seed)
    ways = {
        "random subset": [np.random.default_rng(seed).permutation(len(ratings))],
        **rankings.rank_by_losses(mixture, keys[0]),
        "rater": [np.argsort(-ratings)],
        "as written only": [np.argsort(mixture.kind, stable=True)],
    }
    table, curves = {}, {}
    for way, orders in ways.items():
        seen = [rankings.train_on_top(order, mixture, keys) for order in orders]
        valid, test = (np.stack(part) for part in zip(*seen, strict=True))
        if way == "random subset":  # its last fraction is all data
            table["all data"] = test[0, -1, valid[0, -1].argmax()], 1, 0.4
        few = valid[:, :-1]
        best, k, look = np.unravel_index(few.argmax(), few.shape)
        kept = orders[best][: int(rankings.FRACTIONS[k] * len(ratings))]
        share = (mixture.kind[kept] == 0).mean()
        table[way] = test[best, k, look], rankings.FRACTIONS[k], share
        looks = valid[best].argmax(axis=1)
        curves[way] = test[best][np.arange(len(rankings.FRACTIONS)), looks]
    count = len(mixture.valid[1])
    alone = rankings.train_on(jnp.arange(count), count, mixture.valid, mixture, keys[0])
    table["clean rows alone"] = alone[2][-1], 0, 1
    return table, (ratings, mixture.kind), curves


def main() -> None:
    options = parser("Rate the examples of a mixture with mlox.")
    options.add_argument("--steps", type=int, default=600, help="a multiple of 50")
    options.add_argument("--first", type=int, default=0, help="the first seed")
    args = options.parse_args()
    start = time.perf_counter()
    steps, pool = (4 * args.steps, 1) if args.large else (args.steps, 2)
    seeds = range(args.first, args.first + args.seeds)
    tables, rated, curves = zip(*(compare(s, steps, pool) for s in seeds), strict=True)
    columns = ["trained on", "test accuracy", "fraction kept", "as written"]
    print_table(columns, tables)
    print(f"{time.perf_counter() - start:.0f} s")
    ways = {way: np.stack([curve[way] for curve in curves]) for way in curves[0]}
    rankings.draw(rated[0], ways, args.out)


if __name__ == "__main__":
    main()
