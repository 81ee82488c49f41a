"""Logistic regression with one L2 penalty for each feature.

    min over a   loss of w*(a) on validation rows
    such that    w*(a) = argmin over w of  loss of w on training rows
                         + sum_j l2_j |w_j|^2 / 2,  where l2_j = sigmoid(a_j)

So many penalties can overfit the validation rows. Hence one half of these rows gives
the hypergradient, by `mlox.Implicit(mlox.CG())`, and the other half is used for early
stopping. a and w start from the best single L2 of a grid, chosen on both halves.

    pip install "mlox[examples]"
    python examples/logistic_regression.py                  # breast cancer
    MLOX_DATA=folder python examples/logistic_regression.py --data newsgroups --seeds 1
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _logistic import check, loss, scores, solved
from _picture import band, panels, save
from _program import parsed, parser, print_table
from _rows import Rows, cancer, newsgroups
from scipy.special import logit

import mlox

jax.config.update("jax_enable_x64", True)
GRID = 10.0 ** np.arange(-5, -1.9, 0.5)
# Created once, so that all splits share the compiled programs.
adam, sgd = optax.adam(0.05), optax.sgd(0.6, momentum=0.9, nesterov=True)
NOTES = """
chosen: the checkpoint with the smallest loss on the validation rows "to stop". "one L2"
        is chosen on these and the rows "gradient". Nothing is chosen on test rows."""
NONE, ONE, LAST, EACH = "no penalty", "one L2", "one each, last", "one each, chosen"


def fit_loss(w: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
    l2 = jax.nn.sigmoid(ctx.penalty.params)
    return loss(w, ctx.model_state) + 0.5 * jnp.sum(l2[:, None] * w**2)


def penalty_loss(a: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
    return loss(ctx.fit.params, ctx.model_state)


def build(train: Rows, valid: Rows, a: np.ndarray, w: np.ndarray) -> mlox.Engine:
    # Every step uses all rows: they are model states, not batches.
    penalty = mlox.Problem.create(
        name="penalty",
        params=a.astype(w.dtype),
        tx=adam,
        loss_fn=penalty_loss,
        model_state=valid,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=w,
        tx=sgd,
        loss_fn=fit_loss,
        method=mlox.Implicit(mlox.CG(iterations=10 if len(w) > 100 else 40)),
        unroll_steps=10,
        model_state=train,
    )
    return mlox.Engine([penalty, fit], u2l={penalty: [fit]}, l2u={fit: [penalty]})


def fit_all(parts: list[Rows], cycles: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return a row of numbers for each way, and those of one each over time."""
    train, valid, judge, test = parts
    both = tuple(map(np.concatenate, zip(valid, judge, strict=True)))
    solver = "lbfgs" if len(train[0]) > 1000 else "newton-cholesky"
    fit = lambda l2: solved(train, l2, solver=solver, max_iter=200)
    fits = [(l2, fit(l2)) for l2 in GRID]
    l2, one = min(fits, key=lambda found: float(loss(found[1], both)))
    start, none = np.full(train[0].shape[1], logit(l2)), fit(1e-9)
    engine = build(train, valid, start, one)

    def row(w: Any) -> list[float]:
        accuracy = np.mean(scores(w, test[0]).argmax(axis=1) == test[1])
        return [*(float(loss(w, part)) for part in parts[1:]), float(accuracy)]

    curve, how = [], {"loggers": (), "progress": False, "train_iters": cycles}
    engine.run(
        engine.init(),
        validation=lambda state: curve.append(row(state["fit"].params)) or {},
        valid_every=max(1, cycles // 20),
        **how,
    )
    best = min(curve, key=lambda row: row[1])
    rows = {NONE: row(none), ONE: row(one), LAST: curve[-1], EACH: best}
    return rows, np.array([row(one), *curve])


def draw(
    runs: list[dict[str, Any]], curves: np.ndarray, cycles: int, file: str
) -> None:
    """Draw losses over time, and test losses beside those of one L2."""
    figure, (left, right) = panels(1, 2)
    at = np.linspace(0, cycles, curves.shape[1])
    for i, name in enumerate(("rows of the gradient", "rows to stop", "test rows")):
        band(left, at, curves[:, :, i] - curves[:, :1, i], name)
    left.set(xlabel="steps of the penalties", title="Loss, minus that of one L2")
    left.legend(fontsize=10)
    one, each = (np.array([run[name][2] for run in runs]) for name in (ONE, EACH))
    right.scatter(one, each)
    ends = [min(one.min(), each.min()), max(one.max(), each.max())]
    right.plot(ends, ends, "--", color="gray", lw=1)
    right.set(xlabel=ONE, ylabel=EACH, title="Test loss of each split")
    save(figure, file)


def main() -> None:
    options = parser("Learn an L2 for each feature.", seeds=10)
    options.add_argument("--data", choices=["cancer", "newsgroups"], default="cancer")
    options.add_argument("--cycles", type=int, default=60, help="steps of penalties")
    args = parsed(options, data="newsgroups", seeds=1)
    load = cancer if args.data == "cancer" else newsgroups
    check(build, *load(0)[:2])
    found = [fit_all(load(seed), args.cycles) for seed in range(args.seeds)]
    runs, curves = zip(*found, strict=True)
    print_table(["L2", "loss: gradient", "to stop", "test", "test accuracy"], runs)
    print(NOTES)
    draw(runs, np.stack(curves), args.cycles, args.out)


if __name__ == "__main__":
    main()
