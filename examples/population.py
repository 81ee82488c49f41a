"""Train a population: many bilevel programs at once, by `jax.vmap` over the engine.

The program is that of flax_training_loop.py: it learns a weight for each image, since
40 % of the labels are wrong. It is run for several seeds of the initial parameters and
several learning rates of the upper: 32 programs by default. `engine.step` is a pure
function of a state, so a population is a state whose arrays have one more axis, and one
compiled program steps all members on the same batches. `optax.inject_hyperparams` makes
the learning rate a part of the state, so that it can differ between members.

    pip install "mlox[examples]"
    python examples/population.py
"""

import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, split_with_noise
from _picture import COLORS, panels, save
from _program import parsed, parser, print_table

import mlox

BATCH, UNROLL = 50, 2
RATES = (0.0, 1e-3, 1e-2, 1e-1)
flat, column = lambda x: x.reshape(len(x), -1), lambda x: x[:, None]
classifier = nn.Sequential([flat, nn.Dense(64), nn.relu, nn.Dense(10)])
equal = [nn.Dense(1, kernel_init=nn.initializers.zeros), nn.sigmoid, jnp.ravel]
weighting = nn.Sequential([column, nn.Dense(16), nn.relu, *equal])  # at the start


def image_losses(params: Any, batch: Pair) -> jax.Array:
    logits: Any = classifier.apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def weighted(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    losses = image_losses(params, batch)
    weights: Any = ctx.weights(jax.lax.stop_gradient(losses))
    return jnp.vdot(weights, losses) / weights.sum()


def build(images: np.ndarray) -> mlox.Engine:
    weights = mlox.Problem.create(
        name="weights",
        params=weighting.init(jax.random.key(0), jnp.ones(1)),
        tx=optax.inject_hyperparams(optax.adam)(learning_rate=0.0),
        loss_fn=lambda params, batch, ctx: image_losses(ctx.net.params, batch).mean(),
        apply_fn=weighting.apply,
    )
    net = mlox.Problem.create(
        name="net",
        params=classifier.init(jax.random.key(0), images[:1]),
        tx=optax.sgd(0.2, momentum=0.5),
        loss_fn=weighted,
        method=mlox.SAMA(),
        unroll_steps=UNROLL,
    )
    return mlox.Engine([weights, net], u2l={weights: [net]}, l2u={net: [weights]})


def member(engine: mlox.Engine, image: Any, seed: Any, rate: Any) -> Any:
    """Return the initial state of one program."""
    state = engine.init()
    net, weights = state["net"], state["weights"]
    params = classifier.init(jax.random.key(seed), image)
    opt_state: Any = optax.tree.set(weights.opt_state, learning_rate=rate)
    return {
        "net": net.replace(params=params),
        "weights": weights.replace(opt_state=opt_state),
    }


def trained(
    engine: mlox.Engine, states: Any, split: list[Pair], keys: Any
) -> tuple[Any, Any]:
    """Return accuracies on clean and on test images, each [times, members]."""
    noisy, clean, test = split

    def draw(key: Any, pair: Pair, steps: int) -> Pair:
        rows = jax.random.randint(key, (steps, BATCH), 0, len(pair[1]))
        return pair[0][rows], pair[1][rows]

    def cycle(states: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        batches = {"net": draw(first, noisy, UNROLL), "weights": draw(second, clean, 1)}
        return jax.vmap(engine.step, in_axes=(0, None))(states, batches)[0], None

    def accuracy(states: Any, pair: Pair) -> jax.Array:
        outputs: Any = jax.vmap(classifier.apply, (0, None))(
            states["net"].params, pair[0]
        )
        return (outputs.argmax(axis=-1) == pair[1]).mean(axis=1)

    def several(states: Any, keys: Any) -> Any:
        states, _ = jax.lax.scan(cycle, states, keys)
        return states, (accuracy(states, clean), accuracy(states, test))

    return jax.lax.scan(several, states, keys)[1]


def main() -> None:
    options = parser("Train a population with mlox.", seeds=8)
    options.add_argument("--cycles", type=int, default=600, help="a multiple of 20")
    args = parsed(options, cycles=3000)
    found = split_with_noise("digits", noise=0.4, seed=0)
    split = jax.tree.map(jnp.asarray, list(found[:3]))
    engine = build(found.noisy[0])
    keys = jax.random.split(jax.random.key(0), (20, args.cycles // 20))
    train = jax.jit(lambda states: trained(engine, states, split, keys))
    rates, seeds = jnp.meshgrid(jnp.asarray(RATES), jnp.arange(args.seeds))
    start = jax.vmap(lambda seed, rate: member(engine, split[0][0][:1], seed, rate))

    def timed(chosen: slice) -> tuple[float, Any]:
        states = start(seeds.ravel()[chosen], rates.ravel()[chosen])
        jax.block_until_ready(train(states))  # compiles
        begin = time.perf_counter()
        scores = jax.block_until_ready(train(states))
        return time.perf_counter() - begin, scores

    (one, _), (everyone, scores) = timed(slice(1)), timed(slice(None))
    clean, test = (np.asarray(x).reshape(20, *rates.shape) for x in scores)
    best = np.take_along_axis(test, clean.argmax(axis=0)[None], axis=0)[0]
    names = [f"learning rate {rate:g}" if rate else "equal weights" for rate in RATES]
    runs = [
        {name: (test[-1, i, k], best[i, k]) for k, name in enumerate(names)}
        for i in range(args.seeds)
    ]
    print_table([f"{args.seeds} seeds", "test: last", "chosen on clean"], runs)
    size = rates.size
    print(f"\n{size} programs at once: {everyone:.2f} s; one of them: {one:.2f} s")
    figure, axes = panels()
    at = np.linspace(0, args.cycles, 21)[1:]
    for k, name in enumerate(names):
        axes.plot(at, test[:, 0, k], color=COLORS[k], lw=1, label=name)
        axes.plot(at, test[:, 1:, k], color=COLORS[k], lw=1)
    axes.set(xlabel="cycle", title=f"Test accuracy of {size} programs at once")
    axes.legend(fontsize=10)
    save(figure, args.out)


if __name__ == "__main__":
    main()
