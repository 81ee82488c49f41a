"""The loss and the solution of logistic regression, for the examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _exact import differences, error
from _rows import Rows
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

import mlox


def scores(w: Any, x: Any) -> jax.Array:
    found = x @ w
    return found if w.shape[1] > 1 else jnp.concatenate([0 * found, found], axis=1)


def loss(w: Any, rows: Any) -> jax.Array:
    logits = scores(w, rows[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1]).mean()


def solved(rows: Rows, l2: Any, **options: Any) -> np.ndarray:
    """Fit by scikit-learn; scaled features give each of them its own penalty."""
    scale = (1 / np.sqrt(l2) * np.ones(rows[0].shape[1])).astype(rows[0].dtype)
    fit = LogisticRegression(C=1 / len(rows[0]), fit_intercept=False, **options)
    return fit.fit(rows[0] * scale, rows[1]).coef_.T * scale[:, None]


def check(build: Callable[..., mlox.Engine], train: Rows, valid: Rows) -> None:
    """Compare the hypergradient with differences, for 300 rows and 11 features."""
    train, valid = ((x[:300, :11] * 1.0, y[:300] % 2) for x, y in (train, valid))
    fit = lambda a: solved(train, expit(a), solver="newton-cholesky", tol=1e-12)
    a = np.full(train[0].shape[1], -5.0)
    exact = differences(lambda a: loss(fit(a), valid), a, h=1e-3)
    engine = build(train, valid, a, fit(a))
    slopes = jax.jit(engine.hypergradient, static_argnums=2)
    _, found = slopes(engine.init(), engine.stack({}), "penalty")
    print(
        f"hypergradient against differences: relative error {error(found, exact):.0e}"
    )
