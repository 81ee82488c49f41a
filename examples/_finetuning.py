"""A network, and how it is pretrained, finetuned, or trained on both, without mlox."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from _data import Pair

L2 = 1e-3
network = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(10)])
adam = optax.adam(0.01, eps_root=1e-16)


def losses(w: Any, rows: Pair) -> jax.Array:
    logits: Any = network.apply(w, rows[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1])


def pull(w: Any, start: Any) -> jax.Array:
    return optax.tree.norm(optax.tree.sub(w, start), squared=True)


def fit(cost: Any, w: Any) -> Any:
    """Minimize by 300 steps of Adam."""

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        updates, state = adam.update(jax.grad(cost)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, adam.init(w)), length=300)[0][0]


@jax.jit
def pretrained(weights: Any, source: Pair, w0: Any) -> Any:
    size = lambda w: optax.tree.norm(w, squared=True)
    cost = lambda w: jnp.average(losses(w, source), weights=weights) + L2 * size(w)
    return fit(cost, w0)


@jax.jit
def finetuned(start: Any, rho: Any, rows: Pair) -> Any:
    return fit(lambda w: losses(w, rows).mean() + rho * pull(w, start), start)


@jax.jit
def together(source: Pair, share: Any, rows: Pair, w0: Any) -> Any:
    mixed = lambda w: (1 - share) * losses(w, source).mean()
    cost = lambda w: mixed(w) + share * losses(w, rows).mean() + L2 * pull(w, w0)
    return fit(cost, w0)
