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

import argparse
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, split_with_noise

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
    engine: mlox.Engine, states: Any, noisy: Pair, clean: Pair, keys: Any
) -> Any:
    """Run one cycle of the whole population for each key, on the same batches."""

    def draw(key: Any, pair: Pair, steps: int) -> Pair:
        rows = jax.random.randint(key, (steps, BATCH), 0, len(pair[1]))
        return pair[0][rows], pair[1][rows]

    def cycle(states: Any, key: Any) -> Any:
        first, second = jax.random.split(key)
        batches = {"net": draw(first, noisy, UNROLL), "weights": draw(second, clean, 1)}
        return jax.vmap(engine.step, in_axes=(0, None))(states, batches)[0], None

    return jax.lax.scan(cycle, states, keys)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a population with mlox.")
    parser.add_argument("--cycles", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    split = split_with_noise("digits", noise=0.4, seed=0)
    noisy, clean, test = jax.tree.map(jnp.asarray, split[:3])
    engine = build(split.noisy[0])
    keys = jax.random.split(jax.random.key(0), args.cycles)
    train = jax.jit(lambda states: trained(engine, states, noisy, clean, keys))
    rates, seeds = jnp.meshgrid(jnp.asarray(RATES), jnp.arange(args.seeds))
    start = jax.vmap(lambda seed, rate: member(engine, noisy[0][:1], seed, rate))

    def timed(chosen: slice) -> tuple[float, Any]:
        states = start(seeds.ravel()[chosen], rates.ravel()[chosen])
        jax.block_until_ready(train(states))  # compiles
        begin = time.perf_counter()
        states = jax.block_until_ready(train(states))
        return time.perf_counter() - begin, states

    (one, _), (everyone, states) = timed(slice(1)), timed(slice(None))
    outputs: Any = jax.vmap(classifier.apply, (0, None))(states["net"].params, test[0])
    scores = (outputs.argmax(axis=-1) == test[1]).mean(axis=1).reshape(rates.shape)
    print(f"test accuracy of {args.seeds} seeds, mean and standard deviation")
    for rate, found in zip(RATES, scores.T, strict=True):
        name = f"learning rate {rate:g}" if rate else "equal weights"
        print(f"  {name:20} {found.mean():.3f} ± {found.std(ddof=1):.3f}")
    size = rates.size
    print(f"{size} programs at once: {everyone:.2f} s; one of them: {one:.2f} s")


if __name__ == "__main__":
    main()
