"""Few images for each class, and how well networks learn from them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from _data import Pair
from sklearn.cluster import KMeans

STEPS, LOOKS = 20, 15
RATES = np.array([0.003, 0.01, 0.03, 0.1, 0.3], np.float32)
flat = lambda x: x.reshape(len(x), -1)
hidden = (nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh)
NETS = (
    nn.Sequential((flat, nn.Dense(100), nn.relu, nn.Dense(10))),
    nn.Sequential((flat, *hidden, nn.Dense(10))),
)


def loss(w: Any, batch: Pair, net: Any = NETS[0]) -> jax.Array:
    logits: Any = net.apply(w, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def choose(how: str, train: Pair, each: int, seed: int) -> Pair:
    """Return that many images of each class, with their labels.

    "random" draws them, "herding" takes real images whose mean comes close to that of
    the class, and "k-means" takes means of clusters.
    """
    ways = {"random": _draw, "herding": _herd, "k-means": _cluster}
    found = [ways[how](train[0][train[1] == k], each, seed) for k in range(10)]
    return np.concatenate(found), np.repeat(np.arange(10), each)


def _draw(images: np.ndarray, each: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(images)[:each]


def _herd(images: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Add the image that brings the mean of those chosen closest, again and again."""
    rows, mean = np.zeros(0, int), images.mean(axis=0)
    for _ in range(each):
        means = (images + images[rows].sum(axis=0)) / (len(rows) + 1)
        distances = np.square(means - mean).sum(axis=(1, 2))
        distances[rows] = np.inf
        rows = np.append(rows, distances.argmin())
    return images[rows]


def _cluster(images: np.ndarray, each: int, seed: int) -> np.ndarray:
    means = KMeans(each, n_init=1, random_state=seed).fit(
        images.reshape(len(images), -1)
    )
    return means.cluster_centers_.reshape(-1, *images.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def accuracies(net: Any, pair: Pair, rates: Any, keys: Any, rows: Pair) -> Any:
    """Return [rate, start, look]: the accuracy on `rows`, looked at each 20 steps."""
    size = min(100, len(pair[1]))

    def one(rate: Any, key: Any) -> Any:
        tx = optax.sgd(rate, momentum=0.9)

        def step(carry: Any, key: Any) -> Any:
            (w, state), batch = carry, pair
            if size < len(pair[1]):
                some = jax.random.randint(key, (size,), 0, len(pair[1]))
                batch = pair[0][some], pair[1][some]
            updates, state = tx.update(jax.grad(loss)(w, batch, net), state, w)
            return (optax.apply_updates(w, updates), state), None

        def look(carry: Any, keys: Any) -> Any:
            carry, _ = jax.lax.scan(step, carry, keys)
            logits: Any = net.apply(carry[0], rows[0])
            return carry, (logits.argmax(axis=1) == rows[1]).mean()

        w = net.init(key, pair[0][:1])
        steps = jax.random.split(key, (LOOKS, STEPS))
        return jax.lax.scan(look, (w, tx.init(w)), steps)[1]

    return jax.vmap(lambda rate: jax.vmap(lambda key: one(rate, key))(keys))(rates)


def judge(pair: Pair, valid: Pair, test: Pair, keys: Any) -> list[Any]:
    """Return the test accuracy of both networks, at the best rate and step."""
    found = []
    for one in NETS:
        scores = accuracies(one, pair, RATES, keys, valid).mean(axis=1)
        rate, look = np.unravel_index(int(scores.argmax()), scores.shape)
        tested = accuracies(one, pair, RATES[rate : rate + 1], keys, test)
        found.append(tested[0, :, look].mean())
    return found
