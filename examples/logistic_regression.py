"""Logistic regression with one L2 penalty for each feature.

    min over a   loss of w*(a) on validation rows
    such that    w*(a) = argmin over w of  loss of w on training rows
                         + sum_j l2_j |w_j|^2 / 2,  where l2_j = sigmoid(a_j)

(exp(a_j) while it is small, and never more than 1, for which the steps of w are right).
So many penalties can overfit the validation rows. Hence one half of these gives the
hypergradient, by `mlox.Implicit(mlox.CG())`, and the other half says when to stop. The
best common L2 of a grid is chosen on both halves, and it is where a and w start.

    pip install "mlox[examples]"
    python examples/logistic_regression.py                  # breast cancer
    MLOX_DATA=folder python examples/logistic_regression.py --data newsgroups --seeds 1
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _rows import Rows, cancer, newsgroups
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

import mlox

jax.config.update("jax_enable_x64", True)
GRID = 10.0 ** np.arange(-5, -1.9, 0.5)
NONE, ONE, LAST, EACH = "no penalty", "one L2", "one each, last", "one each, chosen"


def loss(w: Any, rows: Any) -> jax.Array:
    logits = rows[0] @ w
    if w.shape[1] == 1:  # two classes
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1]).mean()


def fit_loss(w: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
    l2 = jax.nn.sigmoid(ctx.penalty.params)
    return loss(w, ctx.model_state) + 0.5 * jnp.sum(l2[:, None] * w**2)


def penalty_loss(a: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
    return loss(ctx.fit.params, ctx.model_state)


def build(train: Rows, valid: Rows, a: np.ndarray, w: np.ndarray) -> mlox.Engine:
    # All rows in every step: not batches, but states of the problems, which stay.
    penalty = mlox.Problem.create(
        name="penalty",
        params=a.astype(w.dtype),
        tx=optax.adam(0.05),
        loss_fn=penalty_loss,
        model_state=valid,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=w,
        tx=optax.sgd(0.6, momentum=0.9, nesterov=True),
        loss_fn=fit_loss,
        method=mlox.Implicit(mlox.CG(iterations=10 if len(w) > 100 else 40)),
        unroll_steps=10,
        model_state=train,
    )
    return mlox.Engine([penalty, fit], u2l={penalty: [fit]}, l2u={fit: [penalty]})


def solved(rows: Rows, l2: Any, **options: Any) -> np.ndarray:
    """Fit by scikit-learn: features are scaled by what their penalties are not."""
    scale = (1 / np.sqrt(l2) * np.ones(rows[0].shape[1])).astype(rows[0].dtype)
    fit = LogisticRegression(C=1 / len(rows[0]), fit_intercept=False, **options)
    return fit.fit(rows[0] * scale, rows[1]).coef_.T * scale[:, None]


def check(train: Rows, valid: Rows) -> None:
    """Hold the hypergradient against differences, for 300 rows, 31 features at most."""
    train, valid = ((x[:300, :31] * 1.0, y[:300] % 2) for x, y in (train, valid))
    train, valid = ((x.astype(float), y) for x, y in (train, valid))
    exactly = {"solver": "newton-cholesky", "tol": 1e-12}
    a, h = np.full(train[0].shape[1], -5.0), 1e-3

    def value(a: np.ndarray) -> float:
        return float(loss(solved(train, 1 / (1 + np.exp(-a)), **exactly), valid))

    rows = h * np.eye(len(a))
    exact = np.array([value(a + e) - value(a - e) for e in rows]) / (2 * h)
    w = solved(train, 1 / (1 + np.exp(-a)), **exactly)
    engine = build(train, valid, a, w)
    _, found = engine.hypergradient(engine.init(), engine.stack({}), "penalty")
    off = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    print(f"hypergradient against central differences: relative error {off:.0e}")


def fit_all(parts: list[Rows], cycles: int) -> dict[str, list[float]]:
    train, valid, judge, test = parts
    both = tuple(map(np.concatenate, zip(valid, judge, strict=True)))
    how = {"solver": "lbfgs" if len(train[0]) > 1000 else "newton-cholesky"}
    grid = [solved(train, l2, max_iter=200, **how) for l2 in GRID]
    best = int(np.argmin([loss(w, both) for w in grid]))
    start = np.full(train[0].shape[1], logit(GRID[best]))
    engine = build(train, valid, start, grid[best])

    def scores(w: Any) -> dict[str, Any]:
        logits = np.asarray(test[0] @ w)
        found = logits.argmax(axis=1) if w.shape[1] > 1 else logits[:, 0] > 0
        losses = {
            n: loss(w, p)
            for n, p in zip(("valid", "judge", "test"), parts[1:], strict=True)
        }
        return losses | {"accuracy": (found == test[1]).mean()}

    _, history = engine.run(
        engine.init(),
        train_iters=cycles,
        loggers=(),
        progress=False,
        validation=lambda state: scores(state["fit"].params),
        valid_every=max(1, cycles // 20),
    )
    curve = np.stack([history[f"validation/{n}"] for n in scores(grid[best])], axis=1)
    print(curve.round(3), GRID[best])
    fixed = {NONE: solved(train, 1e-9, **how), ONE: grid[best]}
    rows = {name: list(scores(w).values()) for name, w in fixed.items()}
    return rows | {LAST: curve[-1], EACH: curve[curve[:, 1].argmin()]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn an L2 for each feature.")
    parser.add_argument("--data", choices=["cancer", "newsgroups"], default="cancer")
    parser.add_argument("--seeds", type=int, default=10, help="different splits")
    parser.add_argument("--cycles", type=int, default=60, help="steps of the penalties")
    args = parser.parse_args()
    load = cancer if args.data == "cancer" else newsgroups
    runs = []
    for seed in range(args.seeds):
        parts = load(seed)
        if seed == 0:
            check(*parts[:2])
        runs.append(fit_all(parts, args.cycles))
    print(f"\n{'':18}{'loss:':10}{'to stop':10}{'test':10}test accuracy")
    for name in runs[0]:
        cells = np.array([run[name] for run in runs]).astype(float)
        print(
            f"{name:18}"
            + "".join(
                f"{m:6.3f} ± {s:.3f} " for m, s in zip(cells.mean(0), cells.std(0))
            )
        )
    print(NOTES)


NOTES = ""

if __name__ == "__main__":
    main()
