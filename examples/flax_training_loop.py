"""Add mlox to a Flax training loop: five more lines, marked (1) to (5).

A usual training loop, with a `TrainState` and a jitted train step, trains a classifier
on images of digits, 40 % of whose labels are wrong. With mlox the classifier becomes
the lower of a bilevel program: the upper, a small network, weights each image by its
loss so that the classifier is good on a few clean images (Meta-Weight-Net, Shu et al.,
2019). The loop itself stays: mlox provides the train step and returns a `TrainState`.

    pip install "mlox[examples]"
    python examples/flax_training_loop.py
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, Split, split_with_noise
from _picture import band, panels, save
from _program import parsed, parser, print_table
from flax.training.train_state import TrainState

import mlox
import mlox.flax

BATCH, UNROLL, LOOKS = 50, 2, 20
flat, column = lambda x: x.reshape(len(x), -1), lambda x: x[:, None]
classifier = nn.Sequential([flat, nn.Dense(128), nn.relu, nn.Dense(10)])
equal = [nn.Dense(1, kernel_init=nn.initializers.zeros), nn.sigmoid, jnp.ravel]
weighting = nn.Sequential([column, nn.Dense(32), nn.relu, *equal])  # at the start
# Created once, so that all seeds share the compiled programs.
sgd = optax.sgd(0.2, momentum=0.5)
adam = optax.adam(optax.linear_schedule(0.0, 1e-2, 100))  # see data_cleaning.py


def image_losses(params: Any, batch: Pair) -> jax.Array:
    logits: Any = classifier.apply({"params": params}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def new_state(images: np.ndarray, seed: int) -> TrainState:
    params = classifier.init(jax.random.key(seed), images[:1])["params"]
    return TrainState.create(apply_fn=classifier.apply, params=params, tx=sgd)


@jax.jit
def train_step(state: TrainState, batch: Pair) -> TrainState:
    grads = jax.grad(lambda params: image_losses(params, batch).mean())(state.params)
    return state.apply_gradients(grads=grads)


@jax.jit
def accuracy(params: Any, pair: Pair) -> jax.Array:
    logits: Any = classifier.apply({"params": params}, pair[0])
    return (logits.argmax(axis=-1) == pair[1]).mean()


def draw(pair: Pair, generator: np.random.Generator, *steps: int) -> Pair:
    chosen = generator.integers(len(pair[0]), size=(*steps, BATCH))
    return pair[0][chosen], pair[1][chosen]


def train(split: Split, steps: int, seed: int) -> Iterator[TrainState]:
    state, generator = new_state(split.noisy[0], seed), np.random.default_rng(seed)
    for step in range(1, steps + 1):
        state = train_step(state, draw(split.noisy, generator))
        if step % (steps // LOOKS) == 0:
            yield state


method: Any = {"method": mlox.Unrolled(), "unroll_steps": UNROLL}


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    losses = image_losses(params, batch)
    weights = ctx.weights(jax.lax.stop_gradient(losses))
    return jnp.average(losses, weights=weights)


def clean_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(ctx.classifier.params, batch).mean()


def train_with_mlox(split: Split, steps: int, seed: int) -> Iterator[TrainState]:
    state, generator = new_state(split.noisy[0], seed), np.random.default_rng(seed)
    variables = weighting.init(jax.random.key(seed), jnp.zeros(1))
    upper = mlox.flax.from_linen(  # (1)
        weighting, variables, name="weights", tx=adam, loss_fn=clean_loss
    )
    lower = mlox.flax.from_train_state(  # (2)
        state, name="classifier", loss_fn=weighted_loss, **method
    )
    edges = {"weights": ["classifier"]}, {"classifier": ["weights"]}
    engine = mlox.Engine([upper, lower], *edges)  # (3)
    problems, cycle = engine.init(), engine.compile()
    for step in range(UNROLL, steps + 1, UNROLL):
        noisy = draw(split.noisy, generator, UNROLL)
        batches = {"classifier": noisy, "weights": draw(split.clean, generator, 1)}
        problems, _ = cycle(problems, batches)  # (4)
        if step % (steps // LOOKS) == 0:
            yield mlox.flax.to_train_state(problems["classifier"], state)  # (5)


def main() -> None:
    options = parser("A Flax training loop with mlox.")
    options.add_argument("--steps", type=int, default=2000, help="multiple of 40")
    args = parsed(options, steps=10_000)
    runs, curves = [], {"as before": [], "with mlox": []}
    for seed in range(args.seeds):
        split, rows = split_with_noise("digits", 0.4, seed), {}
        for name, loop in zip(curves, (train, train_with_mlox), strict=True):
            parts = split.clean, split.test
            scores = [
                [accuracy(state.params, part) for part in parts]
                for state in loop(split, args.steps, seed)
            ]
            clean, test = np.array(scores).T
            curves[name].append(test)
            rows[name] = test[-1], test[np.argmax(clean)]
        runs.append(rows)
    print_table(["test accuracy", "last step", "chosen on clean"], runs)
    figure, axes = panels()
    for name, found in curves.items():
        at = np.linspace(0, args.steps, LOOKS + 1)[1:]
        band(axes, at, np.stack(found), name)
    axes.set(xlabel="step", title="Test accuracy, 40 % of the training labels wrong")
    axes.legend()
    save(figure, args.out)


if __name__ == "__main__":
    main()
