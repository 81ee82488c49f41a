"""Learn the learning rates of an optimizer by their effect on the validation loss.

A classifier of digits makes 100 steps of momentum SGD, always from the same parameters
and with the same batches. Its rates are an upper's parameters: ten logarithms along the
window, with straight lines between them. `hyperparams` sets the rate of each step, and
`mlox.Unrolled` differentiates the validation loss at the end through all of them:

    min over x   validation loss of w_100(x)
    such that    w_(t+1) = w_t - rate(x, t) * momentum of the gradients, t = 0, ..., 99

For comparison, the best of a grid of 200 schedules, 20 peaks that decay to one of 10
ends, for the same batches and validation rows. Both choose by validation loss.

    pip install "mlox[examples]"
    python examples/learned_schedule.py
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair, split_with_noise
from _picture import panels, save
from _program import parsed, parser, print_table

import mlox

STEPS, BATCH, KNOTS, START = 100, 50, 10, 0.1
flat = lambda x: x.reshape(len(x), -1)
net = nn.Sequential([flat, nn.Dense(32), nn.tanh, nn.Dense(10)])
sgd = optax.inject_hyperparams(optax.sgd)(START, momentum=0.9)


def loss(w: Any, batch: Pair) -> jax.Array:
    logits: Any = net.apply(w, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def rate(knots: jax.Array, step: jax.Array) -> jax.Array:
    place = step.astype(jnp.float32) * ((KNOTS - 1) / (STEPS - 1))
    return jnp.exp(jnp.interp(place, jnp.arange(KNOTS, dtype=jnp.float32), knots))


def build(w0: Any) -> mlox.Engine:
    schedule = mlox.Problem.create(
        name="schedule",
        params=jnp.full(KNOTS, jnp.log(START)),
        tx=optax.adam(0.1),
        loss_fn=lambda knots, batch, ctx: loss(ctx.net.params, batch),
    )
    lower = mlox.Problem.create(
        name="net",
        params=w0,
        tx=sgd,
        hyperparams=lambda ctx: {
            "learning_rate": rate(ctx.schedule.params, ctx.inner_step)
        },
        loss_fn=lambda w, batch, ctx: loss(w, batch),
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        reset=lambda w, ctx: w0,
    )
    return mlox.Engine([schedule, lower], {schedule: [lower]}, {lower: [schedule]})


def learn(w0: Any, batches: Pair, valid: Pair, cycles: int) -> tuple[Any, np.ndarray]:
    """Return the rates after some steps of the upper, and its losses."""
    engine = build(w0)
    step, state = engine.compile(), engine.init()
    data = {"net": batches, "schedule": jax.tree.map(lambda x: x[None], valid)}
    losses: list[float] = []
    for _ in range(cycles):
        state, metrics = step(state, data)
        losses.append(float(metrics["schedule/loss"][0]))
    knots = state["schedule"].params
    return jax.vmap(lambda t: rate(knots, t))(jnp.arange(STEPS)), np.array(losses)


def trained(w0: Any, rates: jax.Array, batches: Pair) -> Any:
    """Return the parameters after a loop by hand."""

    def step(carry: Any, x: Any) -> Any:
        (w, state), (r, batch) = carry, x
        state = state._replace(hyperparams={**state.hyperparams, "learning_rate": r})
        updates, state = sgd.update(jax.grad(loss)(w, batch), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w0, sgd.init(w0)), (rates, batches))[0][0]


def compare(seed: int, cycles: int, size: int, axes: Any) -> dict[str, Any]:
    split = split_with_noise("digits", noise=0.0, seed=seed)
    train, valid, test = jax.tree.map(jnp.asarray, split[:3])
    w0 = net.init(jax.random.key(seed), train[0][:1])

    def draw(seed: int) -> Pair:
        rows = np.random.default_rng(seed).integers(len(train[1]), size=(STEPS, BATCH))
        return train[0][rows], train[1][rows]

    @jax.jit
    def score(rates: jax.Array, batches: Pair, rows: Pair) -> jax.Array:
        return jax.vmap(lambda r: loss(trained(w0, r, batches), rows))(rates)

    peaks, ends = jnp.logspace(-2, 0.5, size // 10), jnp.logspace(0, -2.5, 10)
    decay = ends[:, None] ** (jnp.arange(STEPS) / (STEPS - 1))
    grid = (peaks[:, None, None] * decay).reshape(-1, STEPS)
    here, other = draw(seed), draw(seed + 100)
    found = score(grid, here, valid)
    rates, losses = learn(w0, here, valid, cycles)
    both = jnp.stack([grid[jnp.nanargmin(found)], rates])
    (line,) = axes[0].plot(losses)
    axes[0].axhline(float(jnp.nanmin(found)), color=line.get_color(), ls=":")
    axes[1].semilogy(rates)
    pairs = ((here, valid), (here, test), (other, test))
    rows = np.stack([score(both, *pair) for pair in pairs], axis=1)
    return {"best of the grid": rows[0], "learned": rows[1]}


def main() -> None:
    options = parser("Learn a schedule with mlox.")
    options.add_argument("--cycles", type=int, default=50)
    options.add_argument("--grid", type=int, default=200)
    args = parsed(options, seeds=10, cycles=100)
    figure, axes = panels(1, 2)
    axes[0].set(xlabel="step of the upper", title="Validation loss", ylim=(0, 1))
    axes[1].set(xlabel="step", title="Learned learning rate")
    seeds = range(10, 10 + args.seeds)
    runs = [compare(seed, args.cycles, args.grid, axes) for seed in seeds]
    print_table(["loss", "validation", "test", "test, other batches"], runs)
    wins = sum(run["learned"][0] < run["best of the grid"][0] for run in runs)
    print(f"\nlower validation loss than the grid: {wins} of {args.seeds} seeds")
    save(figure, args.out)


if __name__ == "__main__":
    main()
