"""Which training examples made this prediction: derivatives through a whole training.

Each of 1000 training digits has a weight in the loss. A network is trained for 100
steps of momentum SGD; the derivative of the loss of a test image with respect to the
weights, through all the steps, says what each example did (Bae et al., Source, 2024;
Ilyas and Engstrom, MAGIC, 2025):

    tau_i = d loss of the test image at w_100(v) / d v_i, at v = 1
    w_(t+1) = w_t - momentum of the gradient of  mean_i v_i loss_i(w_t)  over a batch

It is judged by leaving a random 5 or 20 % of the examples out, in 100 trainings at once
under `jax.vmap`: the linear datamodeling score (LDS) is the Spearman correlation of the
loss of a test image with the sum of tau over what is left, averaged over 20 images.
Beside it: influence functions (`mlox.Implicit` at the last step, same graph) and TracIn
(products of gradients), with the damping and checkpoints that validation images prefer.

    pip install "mlox[examples]"
    python examples/data_attribution.py
"""

import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, take
from _exact import error
from _influential import Attribution, draw
from _program import parser, print_table
from _retraining import draw_order, lds, leave_out, load, move_ones, train
from _tracin import products

import mlox

jax.config.update("jax_enable_x64", True)
BATCH, N, TESTS = 100, 1000, 20
flat = lambda x: x.reshape(len(x), -1)
dense = functools.partial(nn.Dense, param_dtype=float)
net = nn.Sequential((flat, dense(32), nn.tanh, dense(10)))
sgd, still = optax.sgd(0.1, momentum=0.9), optax.sgd(0.0)


def losses(w: Any, rows: Any) -> jax.Array:
    logits: Any = net.apply(w, rows[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1])


def weighted(w: Any, batch: Any, v: Any) -> jax.Array:
    return jnp.mean(v[batch[2]] * losses(w, batch))  # batch[2]: which examples


@functools.cache  # one compilation for all seeds
def compile_tau(tx: Any, method: mlox.Method, steps: int) -> Any:
    """Return tau [images, N] as a function: one hypergradient for each image."""
    upper = mlox.Problem.create(
        name="weights",
        params=jnp.ones(N),
        tx=still,
        loss_fn=lambda v, batch, ctx: losses(ctx.net.params, batch).mean(),
    )
    lower = mlox.Problem.create(
        name="net",
        params=net.init(jax.random.key(0), jnp.ones((1, 8, 8))),
        tx=tx,
        loss_fn=lambda w, batch, ctx: weighted(w, batch, ctx.weights.params),
        method=method,
        unroll_steps=steps,
    )
    engine = mlox.Engine([upper, lower], {upper: [lower]}, {lower: [upper]})
    state = engine.init()

    def one(w: Any, data: Any, image: Pair) -> Any:
        at = {**state, "net": state["net"].replace(params=w)}
        batches = {"net": data, "weights": jax.tree.map(lambda x: x[None, None], image)}
        return engine.hypergradient(at, batches, "weights")[1]

    return jax.jit(jax.vmap(one, (None, None, 0)))


@jax.jit
def retrain(w: Any, data: Any, vs: Any, images: Pair) -> jax.Array:
    """Return the losses of the images after trainings with other weights."""
    one = lambda v: losses(train(weighted, sgd, w, data, v)[0][0], images)
    return jax.vmap(one)(vs)


def compare(seed: int, steps: int, subsets: int) -> tuple[dict[str, Any], Attribution]:
    rng = np.random.default_rng(seed)
    rows, valid, test = load(seed, N, TESTS)
    index = draw_order(rng, N, steps, BATCH)
    data, everything = ((*take(rows, i), i) for i in (index, np.arange(N)[None]))
    w = net.init(jax.random.key(seed), rows[0][:1])
    (end, _), path = train(weighted, sgd, w, data, jnp.ones(N))

    def influence(damping: float, images: Pair) -> np.ndarray:
        find = compile_tau(still, mlox.Implicit(mlox.CG(20, damping=damping)), 1)
        return np.asarray(find(end, everything, images))

    def tracin(looks: int, images: Pair) -> np.ndarray:
        some = jax.tree.map(lambda x: x[:: -(steps // looks)], path)
        single = jax.tree.map(lambda x: x[:, None], images)
        return np.asarray(products(losses, some, rows, single).sum(axis=0))

    def left_out(part: float, images: Pair) -> tuple[np.ndarray, np.ndarray]:
        kept = leave_out(rng, N, part, subsets)
        return kept, np.asarray(retrain(w, data, kept, images))

    tuning = left_out(0.05, valid)

    def tuned(way: Any, options: Any) -> np.ndarray:
        best = max(options, key=lambda x: lds(way(x, valid), *tuning))
        print(f"seed {seed}: {way.__name__} {best}")
        return way(best, test)

    tau = np.asarray(compile_tau(sgd, mlox.Unrolled(), steps)(w, data, test))
    found = {
        "gradient products": tracin(1, test),
        "TracIn": tuned(tracin, [2, 5, 10, 20]),
        "influence functions": tuned(influence, [0.03, 0.1, 0.3]),
        "through training": tau,
    }
    five, twenty = left_out(0.05, test), left_out(0.2, test)
    exact, change = move_ones(lambda v: retrain(w, data, v, test), N, 10)
    away = error(tau[:, :10], exact), error(-tau[:, :10], change)
    print("  to differences {:.0e}, to leaving out one {:.2f}".format(*away))
    table = {name: [lds(t, *five), lds(t, *twenty)] for name, t in found.items()}
    return table, Attribution(tau, *five, rows, test)


def main() -> None:
    options = parser("Attribute predictions to training examples with mlox.")
    options.add_argument("--steps", type=int, default=100, help="a multiple of 20")
    options.add_argument("--first", type=int, default=10, help="the first seed")
    args = options.parse_args()
    start = time.perf_counter()
    seeds = range(args.first, args.first + args.seeds)
    runs = [compare(seed, args.steps, 500 if args.large else 100) for seed in seeds]
    tables = [table for table, _ in runs]
    print_table(["LDS", "5 % left out", "20 % left out"], tables)
    print(f"{time.perf_counter() - start:.0f} s")
    draw(tables, runs[0][1], args.out)


if __name__ == "__main__":
    main()
