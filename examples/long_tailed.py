"""Long tails: learn how to weigh each class from a few balanced images.

The sizes of the training classes decrease geometrically: the last class is `--factor`
times smaller than the first; `--noise` is the fraction of its labels that are wrong. An
image of class k and loss l has the weight sigmoid(a_k - b_k l). The numbers v = (a, b)
are trained so that the classifier w* that is trained with them is good on a small
balanced set (after Meta-Weight-Net, Shu et al., 2019, where v is a network of l):

    min over v   mean of loss_j(w*(v)) over the balanced images j
    such that    w*(v) = argmin over w of sum_i v_i loss_i(w) / sum_i v_i
                 over the long-tailed images i,  where v_i = sigmoid(a_k - b_k loss_i)

Each step of SGD for w is followed by one step of Adam for v, whose gradient flows back
through it (`mlox.Unrolled`). For comparison, weights are size^-p with the best p for
the balanced set. These images are also added to the training images ("+ clean").

    python examples/long_tailed.py                          # 5000 MNIST digits
    MLOX_DATA=folder python examples/long_tailed.py --data fashion
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _classifier import classifier, image_losses
from _data import Pair, batches, join, split_long_tailed
from _program import parsed, parser, print_table
from _tail import draw

import mlox

NOTES = """
size^-p: p is the best of 0, 0.25, ..., 1.25, by the accuracy on the balanced set (for
         "+ clean": the p of the row without it).
+ clean: the classifier is also trained on the small balanced set. In the rows above,
         mlox uses it for the weights only, and size^-p for p only.
Accuracy is measured after the last step on a balanced test set, the last fifth of each
class for every seed. Nothing is chosen on it: settings were found on other images."""
POWERS = np.arange(0, 1.3, 0.25)
adam = optax.adam(0.03)


@functools.cache  # created once, so that all seeds share the compiled programs
def sgd(steps: int) -> optax.GradientTransformation:
    rate = optax.linear_schedule(0.1, 0.0, steps)
    return optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(rate, momentum=0.9))


def fixed_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    return jnp.average(image_losses(params, batch), weights=ctx.model_state[batch[1]])


def weighted_loss(params: Any, batch: Pair, ctx: mlox.Context) -> jax.Array:
    losses = image_losses(params, batch)
    a, b = ctx.weights.params[:, batch[1]]
    weights = jax.nn.sigmoid(a - b * jax.lax.stop_gradient(losses))
    return jnp.average(losses, weights=weights)


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


def right(state: Any, pair: Pair) -> np.ndarray:
    logits: Any = classifier.apply(state["classifier"].params, pair[0])
    return np.asarray(logits.argmax(axis=1)) == pair[1]


def fit_all(data: Any, steps: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return accuracies on all test images and on rare classes, and what v became."""
    tail, clean, test = data
    found, learned, power = {}, np.zeros((2, 10)), 0.0
    for name, train in {"": tail, " + clean": join(tail, clean)}.items():
        sizes = np.bincount(train[1], minlength=10)
        powers = [power] if name else POWERS
        fits = {
            p: fit(train, 1.0 * sizes**-p, steps, seed) for p in {0.0, 1.0, *powers}
        }
        power = max(powers, key=lambda p: right(fits[p], clean).mean())
        states = {"equal": fits[0.0], "balanced": fits[1.0], "size^-p": fits[power]}
        states["mlox"] = fit(train, np.zeros((2, 10)), steps, seed, clean)
        if not name:
            learned = np.asarray(states["mlox"]["weights"].params)
        for how, state in states.items():
            hits = right(state, test)
            found[how + name] = hits.mean(), hits[test[1] >= 7].mean()
    return found, learned


def main() -> None:
    options = parser("Learn weights for a long tail.")
    sets = ["mnist", "digits", "fashion"]
    options.add_argument("--data", default="mnist", choices=sets)
    options.add_argument("--factor", type=float, default=50.0, help="first to last")
    options.add_argument("--clean", type=int, default=10, help="images of each class")
    options.add_argument("--noise", type=float, default=0.3, help="wrong labels")
    options.add_argument("--steps", type=int, default=1000)
    args = parsed(options, steps=5000)
    numbers = args.factor, args.clean, args.noise
    splits = [split_long_tailed(args.data, *numbers, i) for i in range(args.seeds)]
    found = [fit_all(split, args.steps, seed) for seed, split in enumerate(splits)]
    runs, learned = zip(*found, strict=True)
    print("images of each class:", *np.bincount(splits[0][0][1]))
    print_table(["weights", "test accuracy", "three rarest classes"], runs)
    print(NOTES)
    draw(runs, learned[0], args.out)


if __name__ == "__main__":
    main()
