"""Three levels: learn which sources of labels to trust, and two penalties above that.

The rows A come from 20 sources, 8 of which give mostly wrong labels (is a digit odd?).
Each source gets a weight, learned on 40 clean rows B. As the weights could overfit B,
40 more rows C determine the strength of a penalty on the weights, and the L2 penalty of
the classifier:

    min over t   loss_C(c*)                                               "strengths"
    such that    p* = argmin over p of loss_B(c*(p)) + exp(t_1) mean_k p_k^2
                                                                          "weights"
    and          c*(p) = argmin over c of sum_i v_i loss_i(c) / sum_i v_i
                         + exp(t_2) |c|^2 / 2, over the rows i of A,
                         v_i = sigmoid(p_k), k the source of row i        "classifier"

The weights minimize their *total* cost, which includes the classifier's response.
First the program measures the error of the gradient with `coupling="direct"`, which
takes the classifier as fixed.

    python examples/three_levels.py
"""

import functools
from typing import Any

import _sources
import jax
import numpy as np
import optax
from _exact import differences, error
from _picture import COLORS, panels, save
from _program import parsed, parser, print_table
from _sources import BAD, SOURCES, baselines, load, loss, solved

import mlox

jax.config.update("jax_enable_x64", True)
START = np.array([-2.0, -3.0])
STEPS = {"strengths": 1, "weights": 5, "classifier": 10}
RATES = {"strengths": 1.0, "weights": 2.0, "classifier": 0.1}
sgd = functools.cache(lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True))
NOTES = """
L2 penalties without mlox are chosen on C ("B and C": after training on B). With two
levels, t keeps its initial value. Nothing is chosen on the test rows."""


def strengths_loss(t: Any, batch: None, ctx: Any) -> jax.Array:
    return loss(ctx.classifier.params, ctx.model_state)


def weights_loss(p: Any, batch: None, ctx: Any) -> jax.Array:
    c, t = ctx.classifier.params, ctx.strengths.params
    return _sources.weights_cost(c, p, t, ctx.model_state)


def classifier_loss(c: Any, batch: None, ctx: Any) -> jax.Array:
    p, t = ctx.weights.params, ctx.strengths.params
    return _sources.classifier_cost(c, p, t, ctx.model_state)


LOSSES = dict(zip(STEPS, (strengths_loss, weights_loss, classifier_loss), strict=True))


def build(data: Any, point: Any, rates: Any, coupling: Any = "total") -> mlox.Engine:
    """Build the engine; every step uses all rows, as model states."""
    t, p, c = (
        mlox.Problem.create(
            name=name,
            params=params,
            tx=sgd(rates[name]),
            loss_fn=LOSSES[name],
            unroll_steps=STEPS[name],
            model_state=rows,
        )
        for name, params, rows in zip(LOSSES, point, data[2::-1], strict=True)
    )
    edges = {t: [p, c], p: [c]}, {p: [t], c: [p, t]}
    return mlox.Engine([t, p, c], *edges, coupling=coupling)


def check() -> None:
    """Print the error of both couplings against the solved program, at a small size."""
    data = load(seed=0, rows=60, clean=20, features=4)

    answer, weights, top = solved(data)
    exact = differences(lambda t: top(weights(t), t), START, h=1e-4)
    p = weights(START)
    point, still = (START, p, answer(p, START)), dict.fromkeys(RATES, 0.0)
    print(build(data, point, still).explain())
    print("gradient of t          relative error against central differences")
    for coupling in ("total", "direct"):
        engine = build(data, point, still, coupling)
        slopes = jax.jit(engine.hypergradient, static_argnums=2)
        _, found = slopes(engine.init(), engine.stack({}), "strengths")
        print(f"{coupling:22} {error(found, exact):.1e}")


def fit_all(data: Any, cycles: int) -> tuple[dict[str, Any], Any]:
    """Return the scores of all classifiers, and the weights that three levels learn."""
    found = baselines(data)
    start = START, np.zeros(SOURCES), np.zeros(data[0][0].shape[1])
    state: Any = None
    for name, rate in {"two": 0.0, "three": RATES["strengths"]}.items():
        engine = build(data, start, RATES | {"strengths": rate})
        state, _ = engine.run(engine.init(), None, cycles, loggers=(), progress=False)
        found[f"A, {name} levels"] = state["classifier"].params
    C, (x, y) = data[2:]
    scores = lambda c: (loss(c, C), loss(c, (x, y)), np.mean(x @ c * y > 0))
    weights = jax.nn.sigmoid(state["weights"].params)
    return {name: scores(c) for name, c in found.items()}, weights


def draw(runs: Any, weights: Any, file: str) -> None:
    """Draw the weights of the sources in all runs, and the accuracies."""
    figure, (left, right) = panels(1, 2)
    numbers = np.arange(1, SOURCES + 1)
    for part, name, color in ((slice(BAD), "bad", 4), (slice(BAD, None), "good", 2)):
        for run in weights:
            label = name if run is weights[0] else None
            left.plot(numbers[part], run[part], "o", color=COLORS[color], label=label)
    left.set(xlabel="source", title="Learned weights", ylim=(0, 1))
    left.legend()
    accuracy = np.array([[scores[2] for scores in run.values()] for run in runs])
    right.barh(list(runs[0]), accuracy.mean(axis=0), xerr=accuracy.std(axis=0))
    right.set(title="Test accuracy", xlim=(0.7, 0.9))
    right.invert_yaxis()
    save(figure, file)


def main() -> None:
    options = parser("Learn which sources to trust.")
    options.add_argument("--cycles", type=int, default=100)
    args = parsed(options, seeds=10)
    check()
    found = [fit_all(load(i, 400, 40, 64), args.cycles) for i in range(args.seeds)]
    runs, weights = zip(*found, strict=True)
    print_table(["trained on", "loss on C", "test loss", "test accuracy"], runs)
    print(NOTES)
    draw(runs, weights, args.out)


if __name__ == "__main__":
    main()
