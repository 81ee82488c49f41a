# %% [markdown]
# # 5. Learn the optimizer
#
# **After this notebook** you can make a learning rate, a whole schedule, or a weight
# decay the parameters of an upper problem.
#
# A network $w$ makes $T$ steps. Which rates $\alpha_t$, and which weight decay
# $\lambda$, are best for what comes out at the end?
#
# $$\min_{\alpha, \lambda}\; \mathbb{E}\; L_{\text{valid}}(w_T)
# \quad\text{such that}\quad
# w_{t+1} = w_t - \alpha_t\, m_t(w_t, \lambda),\quad t = 0, \dots, T-1,$$
#
# where $m_t$ is the momentum, and the expectation is over initial parameters and
# batches. No formula is known for the answer, and no implicit function theorem helps:
# $w_T$ is no minimum. But the steps themselves can be differentiated.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import mlox

# %matplotlib inline

STEPS, BATCH, KNOTS = 60, 32, 6

digits = load_digits()
draw = np.random.default_rng(0)
order = draw.permutation(len(digits.target))
images = (digits.data[order] / 16).astype(np.float32)
labels = digits.target[order].astype(np.int32)
parts = np.split(np.arange(len(labels)), [200, 600])
train, valid, test = ((jnp.asarray(images[i]), jnp.asarray(labels[i])) for i in parts)
net = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(10)])


def error(w, rows):
    logits = net.apply(w, rows[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1]).mean()


# %% [markdown]
# ## Numbers of the optimizer that are set from outside
#
# `optax.inject_hyperparams` keeps the numbers of an optimizer in its state.
# `hyperparams=` sets them before each step, and may read the parameters of the upper:
# here six knots of a log rate along the window, and a log decay. `ctx.inner_step` is
# the step within the window, 0 to 59.


# %%
def momentum(learning_rate, weight_decay):
    sgd = optax.sgd(learning_rate, momentum=0.9)
    return optax.chain(optax.add_decayed_weights(weight_decay), sgd)


tx = optax.inject_hyperparams(momentum)(0.1, 1e-3)


def rate(knots, step):
    place = step.astype(jnp.float32) * (KNOTS - 1) / (STEPS - 1)
    return jnp.exp(jnp.interp(place, jnp.arange(KNOTS, dtype=jnp.float32), knots))


def learned(ctx):
    upper = ctx.schedule.params
    return {
        "learning_rate": rate(upper["knots"], ctx.inner_step),
        "weight_decay": jnp.exp(upper["decay"]),
    }


# %% [markdown]
# ## The program
#
# Each cycle trains a *new* network on *new* batches: `reset` draws its parameters,
# `sample` its batches, from a seed that is the number of the cycle. A schedule that is
# learned for one network and one order of batches fits these, and is not better
# elsewhere.


# %%
def new_network(seed):
    return net.init(jax.random.key(seed), images[:1])


def new_batch(seed, step):
    key = jax.random.fold_in(jax.random.key(seed), step)
    rows = jax.random.randint(key, (BATCH,), 0, len(train[1]))
    return train[0][rows], train[1][rows]


NETWORKS = 4  # trained at once, as tasks


def seed_of(ctx):
    return (ctx.step // STEPS) * NETWORKS + ctx.task_index


def mean_error(params, batch, ctx):
    return jax.vmap(error, (0, None))(ctx.net.params, valid).mean()


schedule = mlox.Problem.create(
    name="schedule",
    params={"knots": jnp.full(KNOTS, jnp.log(0.1)), "decay": jnp.log(1e-3)},
    tx=optax.adam(0.1),
    loss_fn=mean_error,
)
lower = mlox.Problem.create(
    name="net",
    params=new_network(0),
    tx=tx,
    hyperparams=learned,
    loss_fn=lambda w, batch, ctx: error(w, batch),
    sample=lambda w, ctx: new_batch(seed_of(ctx), ctx.step % STEPS),
    reset=lambda w, ctx: new_network(seed_of(ctx)),
    method=mlox.Unrolled(),
    unroll_steps=STEPS,
    tasks=NETWORKS,
)
engine = mlox.Engine([schedule, lower], {schedule: [lower]}, {lower: [schedule]})
engine

# %%
state, history = engine.run(
    engine.init(),
    train_iters=100,
    cycles_per_dispatch=10,
    log_every=10,
    loggers=(),
    progress=False,
)
found = state["schedule"].params
rates = jax.vmap(lambda t: rate(found["knots"], t))(jnp.arange(STEPS))
print(f"weight decay {jnp.exp(found['decay']):.1e}, rates:", rates[::10].round(3))

# %% [markdown]
# ## The baseline: a grid, tuned as well
#
# 8 rates, constant or with a cosine decay, with 4 weight decays: 64 settings, each
# judged by the validation loss of 8 networks. That is 512 trainings; the upper has seen
# 400, and has differentiated each. Both choose on the same validation rows. Then both
# are tested with 40 networks and batches that neither has seen.


# %%
def trained(rates, decay, seed):
    w = new_network(seed)

    def step(carry, t):
        w, state = carry
        set_now = {"learning_rate": rates[t], "weight_decay": decay}
        state = state._replace(hyperparams={**state.hyperparams, **set_now})
        grads = jax.grad(error)(w, new_batch(seed, t))
        updates, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(STEPS))[0][0]


@jax.jit
def scores(rates, decay, seeds):
    """Return validation loss, test loss and test accuracy of each seed."""

    def one(seed):
        w = trained(rates, decay, seed)
        hits = net.apply(w, test[0]).argmax(-1) == test[1]
        return jnp.stack([error(w, valid), error(w, test), hits.mean()])

    return jax.vmap(one)(seeds)


peaks = np.geomspace(0.02, 1.0, 8)
shapes = {
    "constant": np.ones(STEPS),
    "cosine": 0.5 + 0.5 * np.cos(np.pi * np.arange(STEPS) / STEPS),
}
settings = [
    (jnp.asarray(peak * shape, jnp.float32), decay, (name, peak))
    for peak in peaks
    for name, shape in shapes.items()
    for decay in (0.0, 1e-3, 1e-2, 3e-2)
]
seeds = jnp.arange(10_000, 10_008)
losses = [scores(rates, decay, seeds)[:, 0].mean() for rates, decay, _ in settings]
best_rates, best_decay, (shape, peak) = settings[int(np.nanargmin(losses))]
print(f"best of the grid: {shape}, peak rate {peak:.2f}, weight decay {best_decay}")

# %%
fresh = jnp.arange(20_000, 20_040)
print(f"{'':20}{'valid. loss':>16}{'test loss':>18}{'test accuracy':>18}")
results = {
    "first rates": scores(jnp.full(STEPS, 0.1), 1e-3, fresh),
    "best of the grid": scores(best_rates, best_decay, fresh),
    "learned": scores(rates, jnp.exp(found["decay"]), fresh),
}
for name, values in results.items():
    cells = [
        f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0), strict=True)
    ]
    print(f"{name:20}" + "".join(f"{cell:>18}" for cell in cells))
paired = results["learned"] - results["best of the grid"]
end = 1.96 * paired[:, 1].std() / 40**0.5
print(f"difference of test loss, learned - grid: {paired[:, 1].mean():.4f} ± {end:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.semilogy(rates, label="learned")
left.semilogy(best_rates, "--", label="best of the grid")
left.axhline(0.1, color="gray", ls=":", label="at the start")
left.set(title="Schedules", xlabel="step of the network", ylabel="learning rate")
left.legend()
right.plot(history["cycle"], history["schedule/loss"])
right.axhline(results["best of the grid"][:, 0].mean(), color="tab:orange", ls="--")
right.set(title="Learning the schedule", xlabel="step of the upper")
right.set_ylabel("validation loss (nats)")
plt.show()

# %% [markdown]
# **What is honest to say.** This is one split of one small data set; the ± of the table
# is the standard deviation over 40 networks, and the last line has a 95 % confidence
# interval over the same 40: it speaks of other networks, not of other splits. There the
# learned schedule is ahead on test rows, too. A grid with other shapes, such as a
# warm-up, may catch up; seven numbers are still few enough for that. What no grid can
# do is to go on: a rate for each layer, or for each of the 60 steps, costs the upper
# about the same as these seven. The expectation matters: in
# `examples/learned_schedule.py` the schedule is learned for *one* network and one order
# of batches, and there the gain in validation loss does not carry over to test rows.
#
# ## Exercises
#
# 1. Compare the hypergradient with central differences, for the weight decay.
# 2. The memory of `Unrolled` grows with the steps. `mlox.Forward()` carries derivatives
#    forward: the cost is by upper parameter (seven here), and not by step. Is the
#    hypergradient the same?
#
# ## Solutions
#
# **1.** In float32, so to three or four digits.

# %%
batches = {"schedule": None, "net": None}
start = engine.init()


def at(decay):
    upper = start["schedule"]
    params = {**upper.params, "decay": decay}
    moved = {**start, "schedule": upper.replace(params=params)}
    return engine.hypergradient(moved, batches, "schedule")


point, h = jnp.log(1e-2), 0.03
slope = at(point)[1]["decay"]
difference = (at(point + h)[0] - at(point - h)[0]) / (2 * h)
print(f"mlox {slope:.5f}, differences {difference:.5f}")

# %% [markdown]
# **2.** The same up to rounding.

# %%
forward = mlox.Engine(
    [schedule, lower.replace(method=mlox.Forward())],
    {"schedule": ["net"]},
    {"net": ["schedule"]},
)
both = [e.hypergradient(start, batches, "schedule")[1] for e in (engine, forward)]
away = optax.tree.norm(optax.tree.sub(*both)) / optax.tree.norm(both[0])
print("the same up to rounding:", bool(away < 1e-4))

# %% [markdown]
# ## Read next
#
# - [6. Choose a method, and scale it](6_choose_and_scale.ipynb)
# - [Training options](../training.md#optimizers-that-are-learned): groups of
#   parameters, other optimizers, what can be set.
# - [Methods](../methods.md): long loops and memory.
