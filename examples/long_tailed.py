"""Long tails: learn the weight of each class from a few balanced images.

The sizes of the training classes decrease geometrically: the last class is `--factor`
times smaller than the first. The weights v are trained so that the classifier w* that
is trained with them is good on a small balanced set (after Meta-Weight-Net, Shu et al.,
2019, where v is a function of an image's loss):

    min over v   mean of loss_j(w*(v)) over the balanced images j
    such that    w*(v) = argmin over w of sum_i v_i loss_i(w) / sum_i v_i
                 over the long-tailed images i,  where v_i = sigmoid(v[class of i])

Each step of SGD for w is followed by one step of Adam for v, whose gradient flows back
through it (`mlox.Unrolled`). "Balanced" weights are one over the size of the class.

    python examples/long_tailed.py                          # 5000 MNIST digits
    MLOX_DATA=folder python examples/long_tailed.py --data fashion
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _classifier import classifier, image_losses
from _data import Pair, batches, join, split_long_tailed
from _program import print_table

import mlox

NOTES = """
+ clean: the classifier is also trained on the small balanced set. In the rows above,
         mlox uses it for the weights only, and the others do not use it.
Accuracy is measured after the last step on a balanced test set, the last fifth of each
class for every seed. Nothing is chosen on it: settings were found on other images."""


adam = optax.adam(0.03)


@functools.cache  # created once, so that all seeds share the compiled programs
def sgd(steps: int) -> optax.GradientTransformation:
    rate = optax.linear_schedule(0.1, 0.0, steps)
    return optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(rate, momentum=0.9))


def fixed_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return jnp.average(image_losses(params, batch), weights=ctx.model_state[batch[1]])


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    weights = jax.nn.sigmoid(ctx.weights.params)[batch[1]]
    return jnp.average(image_losses(params, batch), weights=weights)


def clean_loss(v: jax.Array, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return image_losses(ctx.classifier.params, batch).mean()


def fit(train: Pair, weights: Any, steps: int, seed: int, clean: Any = None) -> Any:
    """Train with fixed weights of the classes, or learn them on `clean`."""
    lower = mlox.Problem.create(
        name="classifier",
        params=classifier.init(jax.random.key(seed), train[0][:1]),
        tx=sgd(steps),
        loss_fn=fixed_loss if clean is None else weighted_loss,
        model_state=weights,
        method=mlox.Unrolled(),
    )
    engine, data = mlox.Engine([lower]), {"classifier": batches(train, 100, seed)}
    if clean is not None:
        upper = mlox.Problem.create(
            name="weights", params=weights, tx=adam, loss_fn=clean_loss
        )
        engine = mlox.Engine([upper, lower], {upper: [lower]}, {lower: [upper]})
        data["weights"] = batches(clean, 100, seed + 1)
    how = {"cycles_per_dispatch": 10, "loggers": (), "progress": False}
    return engine.run(engine.init(), data, train_iters=steps, **how)[0]


def fit_all(data: tuple[Pair, Pair, Pair], steps: int, seed: int) -> dict[str, Any]:
    tail, clean, test = data
    found = {}
    for name, train in {"": tail, " + clean": join(tail, clean)}.items():
        equal, balanced = np.ones(10), 1 / np.bincount(train[1], minlength=10)
        states = {
            "equal": fit(train, equal, steps, seed),
            "balanced": fit(train, balanced, steps, seed),
            "mlox": fit(train, np.zeros(10), steps, seed, clean),
        }
        for how, state in states.items():
            right = classifier.apply(state["classifier"].params, test[0])
            right = np.asarray(right.argmax(axis=1)) == test[1]
            found[how + name] = right.mean(), right[test[1] >= 7].mean()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn weights for a long tail.")
    parser.add_argument(
        "--data", default="mnist", choices=["mnist", "digits", "fashion"]
    )
    parser.add_argument("--factor", type=float, default=50.0, help="first to last")
    parser.add_argument("--clean", type=int, default=10, help="images of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    split = functools.partial(split_long_tailed, args.data, args.factor, args.clean)
    runs = [fit_all(split(seed), args.steps, seed) for seed in range(args.seeds)]
    print("images of each class:", *np.bincount(split(0)[0][1]))
    print_table(["weights", "test accuracy", "three rarest classes"], runs)
    print(NOTES)


if __name__ == "__main__":
    main()
