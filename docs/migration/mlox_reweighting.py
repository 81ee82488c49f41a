"""Weigh examples, of which 40 % are mislabelled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox.flax

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(700, 20))
y = (x[:, 0] > x[:, 1]).astype(float)
wrong = draw.random(700) < 0.4
noisy = np.where(wrong, 1 - y, y)
cross_entropy = optax.sigmoid_binary_cross_entropy


def loader(*arrays):  # or a DataLoader of PyTorch
    size = len(arrays[0])
    return [
        tuple(array[i : i + 100] for array in arrays)
        for i in range(0, size, 100)
    ]


def classifier_loss(params, batch, ctx):
    x, y, index = batch
    logits = linear.apply({"params": params}, x)[:, 0]
    losses = cross_entropy(logits, y)
    return (ctx.weights(index) * losses).mean()


def weights_loss(params, batch, ctx):
    x, y = batch
    logits = ctx.classifier(x)[:, 0]
    return {"loss": cross_entropy(logits, y).mean()}


linear = nn.Dense(
    1,
    kernel_init=nn.initializers.zeros,
    param_dtype=jnp.float64,
)
classifier = mlox.flax.from_linen(
    linear,
    linear.init(jax.random.key(0), x[:1]),
    name="classifier",
    tx=optax.sgd(0.5, momentum=0.9),
    loss_fn=classifier_loss,
    method=mlox.FiniteDifference(),
    unroll_steps=4,
)
weights = mlox.Problem.create(
    name="weights",
    params=jnp.zeros(500),
    apply_fn=lambda raw, i: jax.nn.sigmoid(raw[i]),
    tx=optax.adam(0.1),
    loss_fn=weights_loss,
)
engine = mlox.Engine(
    [weights, classifier],
    u2l={weights: [classifier]},
    l2u={classifier: [weights]},
)
data = {
    "classifier": loader(
        x[:500], noisy[:500], np.arange(500)
    ),
    "weights": loader(x[500:600], y[500:600]),
}
state, history = engine.run(
    engine.init(), data, train_iters=200, loggers=()
)

found = jax.nn.sigmoid(state["weights"].params)
trained = {"params": state["classifier"].params}
right = (linear.apply(trained, x[600:])[:, 0] > 0) == (
    y[600:] > 0
)
print(
    found[wrong[:500]].mean(),  # of wrong labels
    found[~wrong[:500]].mean(),  # of right labels
    right.mean(),  # test accuracy
)
