"""Search for the cell of a network by gradients: DARTS, and the exact derivative.

On each of the three edges of a cell all six operations are mixed, with the weights
softmax(alpha). The alphas are trained so that the network that is trained with them has
a low loss on other images. Then the operation with the largest alpha stays on each
edge, and the network is trained anew:

    min over a   validation loss of (w*(a), a)                               "cell"
    such that    w*(a) = argmin over w of training loss of (w, a)            "network"

Three methods differentiate w* through one step of w. DARTS takes a finite difference
with the rate of w as the size of the step: `mlox.SAMA(epsilon=0.01)`.
`mlox.FiniteDifference` has size 1, `mlox.Unrolled` is exact: Liu et al., DARTS:
Differentiable Architecture Search, ICLR 2019. "best of random" trains 4 random cells,
and takes the best one on the validation images.

    pip install "mlox[examples]"
    python examples/architecture_search.py
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _cell import EDGES, OPERATIONS, WEIGHT_DECAY, apply, initialize, loss
from _data import load
from _picture import panels, save
from _program import parser, print_table

import mlox

BATCH, RANDOM, SHAPE = 32, 4, (len(EDGES), len(OPERATIONS))
METHODS = {
    "FiniteDifference": mlox.FiniteDifference(),
    "SAMA": mlox.SAMA(epsilon=0.01),
    "unrolled": mlox.Unrolled(),
}
adam = optax.adam(0.05)
one_each = lambda choice: jax.nn.one_hot(choice, SHAPE[1])  # an operation an edge


@functools.cache  # so that all methods share it
def optimizer(steps: int) -> optax.GradientTransformation:
    sgd = optax.sgd(optax.cosine_decay_schedule(0.02, steps), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), sgd)


def network_loss(w: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    return loss(w, jax.nn.softmax(ctx.cell.params), batch)


def cell_loss(alphas: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    return loss(ctx.network.params, jax.nn.softmax(alphas), batch)


def draw(rows: Any, steps: int, seed: int) -> Any:
    order = np.random.default_rng(seed).integers(len(rows[1]), size=(steps, BATCH))
    return rows[0][order], rows[1][order]


def search(method: Any, train: Any, valid: Any, steps: int, seed: int) -> jax.Array:
    """Return the alphas after some steps."""
    cell = mlox.Problem.create(
        name="cell", params=jnp.zeros(SHAPE), tx=adam, loss_fn=cell_loss
    )
    network = mlox.Problem.create(
        name="network",
        params=initialize(jax.random.key(seed)),
        tx=optimizer(steps),
        loss_fn=network_loss,
        method=method,
    )
    engine = mlox.Engine([cell, network], {cell: [network]}, {network: [cell]})
    drawn = [draw(train, steps, seed), draw(valid, steps, seed + 1)]
    data = {"network": zip(*drawn[0], strict=True), "cell": zip(*drawn[1], strict=True)}
    how = {"cycles_per_dispatch": 10, "loggers": (), "on_nonfinite": "raise"}
    return engine.run(engine.init(), data, steps, **how)[0]["cell"].params


@functools.partial(jax.jit, static_argnames="steps")
def train_cells(mixes: Any, batches: Any, key: Any, steps: int) -> Any:
    """Train the network of each cell, with the same batches."""

    def train(mix: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w, mix, batch), state, w)
            return (optax.apply_updates(w, updates), state), None

        tx, w = optimizer(steps), initialize(key)
        return jax.lax.scan(step, (w, tx.init(w)), batches)[0][0]

    return jax.lax.map(train, mixes)


@jax.jit
def accuracies(ws: Any, mixes: Any, rows: Any) -> jax.Array:
    right = lambda one: (apply(*one, rows[0]).argmax(axis=1) == rows[1]).mean()
    return jax.lax.map(right, (ws, mixes))


def compare(seed: int, steps: int, rows: int) -> tuple[dict[str, float], Any]:
    images, labels, _ = load("digits")
    order = np.random.default_rng(seed).permutation(len(images))
    train, valid, test = (
        (jnp.asarray(images[i], jnp.float32), labels[i])
        for i in np.split(order, [rows, 2 * rows])
    )
    key = jax.random.key(seed + 1)
    random = one_each(jax.random.randint(key, (RANDOM, SHAPE[0]), 0, SHAPE[1]))
    ws = train_cells(random, draw(train, steps, seed + 2), key, steps)
    best = random[accuracies(ws, random, valid).argmax()]
    alphas = [search(m, train, valid, steps, seed) for m in METHODS.values()]
    found = [one_each(alpha.argmax(axis=1)) for alpha in alphas]
    mixes = jnp.stack([*found, best, *random])
    both = jax.tree.map(lambda *x: np.concatenate(x), train, valid)
    ws = train_cells(mixes, draw(both, steps, seed + 2), key, steps)
    scores = np.asarray(accuracies(ws, mixes, test))
    names, n = ["random, mean", "best of random", *METHODS], len(METHODS)
    values = [scores[n + 1 :].mean(), scores[n], *scores[:n]]
    return dict(zip(names, values, strict=True)), jax.nn.softmax(alphas[-1])


def main() -> None:
    options = parser("Search for the cell of a network.")
    options.add_argument(
        "--steps", type=int, default=100, help="of search and training"
    )
    args = options.parse_args()
    rows, seeds = 400 if args.large else 200, range(args.seeds)
    runs, seen = zip(*(compare(s, args.steps, rows) for s in seeds), strict=True)
    print_table(["cell", "test accuracy"], runs)
    figure, axes = panels(1, 2)
    axes[0].grid(False)
    figure.colorbar(axes[0].imshow(seen[0], aspect="auto"), ax=axes[0])
    axes[0].set_xticks(range(SHAPE[1]), OPERATIONS, rotation=60)
    axes[0].set_yticks(range(SHAPE[0]), [f"{a} to {b}" for a, b in EDGES])
    axes[0].set(title="weights (unrolled)")
    scores = np.array([[run[name] for run in runs] for name in runs[0]])
    axes[1].barh(list(runs[0]), scores.mean(axis=1), xerr=scores.std(axis=1))
    axes[1].set(xlim=(0, 1), title="test accuracy")
    save(figure, args.out)


if __name__ == "__main__":
    main()
