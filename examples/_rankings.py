"""Training on the first rows of a ranking, and rankings by the loss of a network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair
from _mixture import KINDS, Mixture
from _picture import band, panels, save

BATCH, LOOKS = 64, 10
FRACTIONS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])
flat = lambda x: x.reshape(len(x), -1)
network = nn.Sequential((flat, nn.Dense(64), nn.relu, nn.Dense(10)))
sgd = optax.sgd(0.1, momentum=0.9)


def losses(w: Any, rows: Pair) -> jax.Array:
    logits: Any = network.apply(w, rows[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1])


def right(w: Any, rows: Pair) -> jax.Array:
    logits: Any = network.apply(w, rows[0])
    return (logits.argmax(axis=1) == rows[1]).mean()


@jax.jit
def train_on(order: Any, count: Any, rows: Pair, mixture: Mixture, key: Any) -> Any:
    """Train on the first `count` rows of an order, and look at it LOOKS times.

    Returns the parameters, and the accuracies on validation and on test rows.
    """

    def step(carry: Any, key: Any) -> Any:
        some = order[jax.random.randint(key, (BATCH,), 0, count)]
        slope = jax.grad(lambda w: losses(w, (rows[0][some], rows[1][some])).mean())
        updates, state = sgd.update(slope(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    def look(carry: Any, keys: Any) -> Any:
        carry, _ = jax.lax.scan(step, carry, keys)
        w = carry[0]
        return carry, (w, right(w, mixture.valid), right(w, mixture.test))

    w = network.init(key, rows[0][:1])
    return jax.lax.scan(look, (w, sgd.init(w)), jax.random.split(key, (LOOKS, 40)))[1]


@jax.jit
def train_on_top(order: Any, mixture: Mixture, keys: Any) -> Any:
    """Return accuracies [fraction, look] of the top fractions, means over the keys."""
    counts = jnp.asarray((FRACTIONS * len(mixture.kind)).astype(int))
    one = lambda count, key: train_on(order, count, mixture.train, mixture, key)[1:]
    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(counts, keys)
    return jax.tree.map(lambda x: x.mean(axis=1), each)


def rank_by_losses(mixture: Mixture, key: Any) -> dict[str, list[np.ndarray]]:
    """Return rankings by small losses under two networks.

    One trains on the mixture, and its losses are taken early, later and last; the other
    trains on the clean rows, and its losses are taken with and without those of the
    first subtracted.
    """
    found = []
    for rows in mixture.train, mixture.valid:
        count = len(rows[1])
        ws = train_on(jnp.arange(count), count, rows, mixture, key)[0]
        found.append(np.asarray(jax.vmap(losses, (0, None))(ws, mixture.train)))
    mixed, clean = found
    excess = clean[-1] - mixed[-1]
    return {
        "loss filter": [score.argsort() for score in mixed[[0, 2, -1]]],
        "loss, clean network": [score.argsort() for score in (clean[-1], excess)],
    }


def draw(rated: Any, curves: dict[str, np.ndarray], file: str) -> None:
    """Draw the ratings of each kind, and accuracies [seeds, fractions]."""
    (ratings, kind), (figure, axes) = rated, panels(1, 2)
    rank = ratings.argsort().argsort() / len(ratings)
    parts = [rank[kind == k] for k in range(len(KINDS))]
    boxes = axes[0].boxplot(
        parts[::-1],
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black"},
    )
    for box in boxes["boxes"]:
        box.set_facecolor("#8ab8d8")
    axes[0].set_yticklabels(KINDS[::-1])
    axes[0].set(title="rating, by kind", xlabel="rank of the rating", xlim=(0, 1))
    for name, found in curves.items():
        band(axes[1], FRACTIONS, found, name)
    axes[1].set(title="test accuracy", xlabel="fraction kept for training")
    axes[1].legend(fontsize=10)
    save(figure, file)
