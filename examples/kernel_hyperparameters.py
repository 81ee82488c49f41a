"""Learn the hyperparameters of a kernel: a length for each feature, and a ridge.

The lower problem has a closed form, so it needs no steps: kernel ridge regression of
the diagnosis in the breast cancer data, with a Gaussian kernel K(a, b) that divides
each of 30 features by a length of its own. `mlox.attach` gives its solution, however it
was found, the derivative of the implicit function theorem, so that the upper problem is
an ordinary loss:

    min over x   squared error of K(valid, train; x) w*(x) on the validation rows
    such that    (K(train, train; x) + r(x) I) w*(x) = y

Where it starts, the gradient is compared with the one through the linear solver, and
with central differences. For comparison: one length for all features, by a grid of 12 x
11 (here the gradient steps start), and a length for each by random search around it,
with 50 trainings and with 1000. All choose by the same validation rows.

    pip install "mlox[examples]"
    python examples/kernel_hyperparameters.py
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _exact import differences, error
from _kernels import NAMES, Rows, best, kernel, load, loss, search, solve
from _picture import panels, save
from _program import parser, print_table

import mlox

adam = optax.adam(0.05)


def residual(w: Any, x: Any, rows: Rows) -> jax.Array:
    return kernel(x, rows[0], rows[0]) @ w + jnp.exp(x[-1]) * w - rows[1]


def attached(x: Any, rows: Rows) -> jax.Array:
    """Return the solution with its implicit derivative; any solver could find it."""
    found = solve(jax.lax.stop_gradient(x), rows)
    return mlox.attach(residual, found, x, rows, solver=mlox.CG(500, tolerance=1e-12))


def kernel_loss(x: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    train, valid = batch
    guess = kernel(x, valid[0], train[0]) @ attached(x, train)
    return jnp.mean((guess - valid[1]) ** 2)


def learn(start: Any, train: Rows, valid: Rows, steps: int) -> tuple[Any, np.ndarray]:
    problem = mlox.Problem.create(
        name="kernel", params=jnp.asarray(start), tx=adam, loss_fn=kernel_loss
    )
    engine, data = mlox.Engine([problem]), {"kernel": [(train, valid)]}
    how = {"log_every": 1, "loggers": (), "progress": False}
    state, history = engine.run(engine.init(), data, steps, **how)
    batches = engine.stack({"kernel": iter(data["kernel"])})
    _, found = engine.hypergradient(engine.init(), batches, "kernel")
    plain = lambda x: loss(x, train, valid)
    exact = np.asarray(jax.grad(plain)(start)), differences(plain, start, 1e-5)
    errors = [error(found, one) for one in exact]
    print("gradient, relative error to that of the solver and to central differences:")
    print("   ".join(f"{one:.0e}" for one in errors))
    return state["kernel"].params, history["kernel/loss"]


def compare(seed: int, size: int, steps: int) -> tuple[dict[str, Any], Any]:
    train, valid, test = load(seed, size)
    lengths, ridges = (
        np.linspace(-2, 2, 12) + np.log(len(NAMES)) / 2,
        np.linspace(-8, 2, 11),
    )
    grid = [np.append(np.full(len(NAMES), a), b) for a in lengths for b in ridges]
    start = best(np.array(grid), train, valid)
    learned, losses = learn(start, train, valid, steps)
    found = {
        "one length, grid": start,
        "random, 50": search(start, 50, train, valid),
        "random, 1000": search(start, 1000, train, valid),
        f"mlox, {steps} steps": learned,
    }

    def scores(x: Any) -> list[Any]:
        guess = kernel(x, test[0], train[0]) @ solve(x, train)
        right = jnp.sign(guess) == test[1]
        return [loss(x, train, valid), loss(x, train, test), right.mean()]

    rows = {name: scores(x) for name, x in found.items()}
    return rows, (losses, np.asarray(learned))


def draw(rows: dict[str, Any], losses: np.ndarray, x: np.ndarray, file: str) -> None:
    figure, (left, right) = panels(1, 2)
    left.plot(losses, color="#1f77b4", label="mlox")
    for (name, found), style in zip(
        list(rows.items())[:3], [":", "--", "-."], strict=True
    ):
        left.axhline(float(found[0]), color="#7f7f7f", ls=style, label=name)
    left.set(xlabel="step", ylabel="validation loss", ylim=(0, None))
    left.legend(fontsize=10)
    some = np.argsort(x[:-1])[:10][::-1]
    right.barh([NAMES[i] for i in some], np.exp(-x[some]), color="#e07b00")
    right.set(xlabel="1 / length")
    right.set_title("the ten shortest lengths", fontsize=12)
    save(figure, file)


def main() -> None:
    options = parser("Learn a kernel with mlox.")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--first", type=int, default=0, help="the first seed")
    args = options.parse_args()
    start, size = time.perf_counter(), 300 if args.large else 200
    seeds = range(args.first, args.first + args.seeds)
    runs = [compare(seed, size, args.steps) for seed in seeds]
    columns = ["lengths", "validation loss", "test loss", "test accuracy"]
    print_table(columns, [rows for rows, _ in runs])
    print(f"{time.perf_counter() - start:.0f} s")
    draw(runs[0][0], *runs[0][1], args.out)


if __name__ == "__main__":
    main()
