# %% [markdown]
# # 6. Choose a method, and scale it
#
# **After this notebook** you can measure which method suits your problem, and run it
# for many tasks, as a population, on many devices, and through a power cut.
#
# One program serves for all of it: a logistic regression $w$ with a penalty $e^{u_k}$
# for each of 30 features, where $u$ is chosen by *cross-validation*. Each of eight
# folds is fitted without its own rows and judged on them:
#
# $$\min_u\; \frac18 \sum_{i=1}^{8} L_i(w_i^*(u)), \qquad w_i^*(u) = \arg\min_w\;
# L_{\text{all but } i}(w) + \tfrac12 \sum_k \left(0.001 + e^{u_k}\right) w_k^2 .$$
#
# The first cell pretends that this machine has eight devices. It must run before JAX is
# imported.

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pathlib
import signal
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

import mlox

# %matplotlib inline

print(len(jax.devices()), "devices")

# %%
x, y = load_breast_cancer(return_X_y=True)
order = np.random.default_rng(0).permutation(len(y))[:560]
x, y = (x[order] - x.mean(axis=0)) / x.std(axis=0), 2.0 * y[order] - 1
folds = x.reshape(8, 70, 30).astype("float32"), y.reshape(8, 70).astype("float32")
others = [[j for j in range(8) if j != i] for i in range(8)]
rest = tuple(np.stack([np.concatenate(a[o]) for o in others]) for a in folds)
print("held out:", folds[0].shape, " to fit:", rest[0].shape)

# %% [markdown]
# ## Eight fits at once: `tasks=`
#
# The lower problem is described once, for one fold. `tasks=8` makes eight of it, each
# with its own rows, optimizer and linear system. The upper sees the parameters of all,
# stacked.


# %%
def logistic(w, rows):
    return jnp.mean(jnp.logaddexp(0.0, -rows[1] * (rows[0] @ w)))


def fit_loss(w, batch, ctx):
    return logistic(w, batch) + 0.5 * jnp.sum(
        (0.001 + jnp.exp(ctx.penalty.params)) * w**2
    )


def penalty_loss(u, batch, ctx):
    return jax.vmap(logistic)(ctx.fit.params, batch).mean()


penalty = mlox.Problem.create(
    name="penalty",
    params=jnp.full(30, -3.0),
    tx=optax.inject_hyperparams(optax.adam)(0.1),
    loss_fn=penalty_loss,
)
fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(30),
    tx=optax.sgd(0.1, momentum=0.9),
    loss_fn=fit_loss,
    method=mlox.Implicit(mlox.CG(30)),
    unroll_steps=50,
    tasks=8,
)
engine = mlox.Engine([penalty, fit], {penalty: [fit]}, {fit: [penalty]})
data = {"penalty": [folds], "fit": [rest]}


def run(engine, state, cycles, **options):
    return engine.run(state, data, cycles, loggers=(), progress=False, **options)


state, history = run(engine, engine.init(), 40, log_every=5)
print("cross-validation loss:", history["penalty/loss"].round(3))

# %% [markdown]
# ## Which method? `mlox.compare`
#
# What is fastest, and what is right, depends on the problem: its size, its condition,
# the number of steps. So measure. `mlox.compare` holds each method against the exact
# hypergradient, at the state that the run has reached.

# %%
batches = engine.stack({"penalty": iter([folds]), "fit": iter([rest] * 50)})
methods = {
    "CG, 30 products": mlox.Implicit(mlox.CG(30)),
    "CG, 10 products": mlox.Implicit(mlox.CG(10)),
    "CG, 3 products": mlox.Implicit(mlox.CG(3)),
    "Neumann, 10 terms": mlox.Implicit(mlox.Neumann(10, step=0.2)),
    "unrolled": mlox.Unrolled(),
    "DARTS": mlox.FiniteDifference(),
    "SAMA": mlox.SAMA(),
}
table = mlox.compare(engine, state, batches, "penalty", {"fit": methods})
print(f"{'method':20}{'cosine':>8}{'error':>8}")
for row in table.rows:
    print(f"{row.name:20}{row.cosine:8.3f}{row.error:8.2g}")

# %%
mlox.plot.comparison(table)
plt.show()

# %% [markdown]
# `print(table)` also tells time, memory and FLOPs. Time and memory are in the picture,
# and change from one machine to the next. The FLOPs are no help here: XLA counts the
# body of a loop once, so they are equal for 3, 10 and 30 products. What holds on each
# machine: on this badly conditioned problem
# conjugate gradients need about as many products as there are unknowns; the cheap
# methods leave out the inverse Hessian, and point far from the right way; and unrolling
# is as good as its steps are many. A wrong *direction* is what hurts: Adam forgives a
# wrong length.
#
# ## Many programs at once: `jax.vmap`
#
# `engine.step` is a pure function of a state. A population is a state whose arrays have
# one more axis: here five learning rates of the upper. One compiled program steps them
# all. The two largest rates are too large: their penalties grow until the steps of the
# lower diverge, and the lines leave the picture.


# %%
def member(rate):
    state = engine.init()
    opt_state = optax.tree.set(state["penalty"].opt_state, learning_rate=rate)
    return {**state, "penalty": state["penalty"].replace(opt_state=opt_state)}


rates = jnp.array([0.01, 0.03, 0.1, 0.3, 1.0])
population = jax.vmap(member)(rates)


@jax.jit
def train(population):
    def cycle(states, _):
        states, metrics = jax.vmap(engine.step, (0, None))(states, batches)
        return states, metrics["penalty/loss"][:, 0]

    return jax.lax.scan(cycle, population, length=40)


_, losses = train(population)
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(losses, label=[f"rate {r:g}" for r in rates])
axis.set(title="Five programs in one", xlabel="step of the upper", ylim=(0.06, 0.15))
axis.set_ylabel("cross-validation loss (nats)")
axis.legend(loc="upper right", fontsize=8)
plt.show()

# %% [markdown]
# ## Many devices: `mlox.shard`
#
# `mlox.shard` places a state on a mesh of devices; the step is the same. Of a problem
# with tasks, each device gets some of the tasks: here one fold each. The numbers agree
# up to rounding.

# %%
mesh = jax.make_mesh((8,), ("data",))
placed = mlox.shard(engine, engine.init(), mesh, "replicated")
sharded, _ = run(engine, placed, 5)
single, _ = run(engine, engine.init(), 5)
away = jnp.abs(np.asarray(sharded["penalty"].params) - single["penalty"].params).max()
print(f"on {len(sharded['penalty'].params.devices())} devices,", end=" ")
print("the numbers of one:", bool(away < 1e-4))

# %% [markdown]
# Eight devices on one processor are no faster, of course; they are for trying and
# testing.
#
# ## A power cut: checkpoints
#
# With a `mlox.Checkpoint`, the same call starts a run and, with `resume=True`, goes on
# with it. Let us kill it: a validation sends the signal SIGTERM in the middle, as
# clusters do before they take a machine away. (SIGKILL is survived as well, from the
# last checkpoint.)

# %%
folder = tempfile.mkdtemp()
options = {
    "checkpoint": mlox.Checkpoint(folder, every=10),
    "resume": True,
    "log_every": 1,
}


def power_cut(state):
    if int(state["penalty"].step) == 25:
        os.kill(os.getpid(), signal.SIGTERM)
    return {}


try:
    run(engine, engine.init(), 40, validation=power_cut, valid_every=1, **options)
except mlox.RunInterrupted as error:
    print("interrupted at cycle", int(error.state["penalty"].step))
saved = sorted(path.name for path in pathlib.Path(folder, "checkpoints").iterdir())
print("on disk:", saved)

# %%
resumed, history = run(engine, engine.init(), 40, **options)
never_stopped, _ = run(engine, engine.init(), 40)
same = np.array_equal(resumed["penalty"].params, never_stopped["penalty"].params)
print("cycles in the history:", history["cycle"][[0, -1]], " the same bits:", same)

# %% [markdown]
# ## Exercises
#
# 1. `mlox.restore` reads only the penalties into a new program, without folds, that
#    fits all rows.
# 2. Two tasks at a time: `tasks_at_once=2`. Show that the hypergradient is the same.
#
# ## Solutions
#
# **1.** `partial=` names what is read; all else is that of the template.

# %%
whole = (x.astype("float32"), y.astype("float32"))
last = mlox.Engine(
    [
        penalty,
        fit.replace(
            tasks=None, params=jnp.zeros(30), opt_state=fit.tx.init(jnp.zeros(30))
        ),
    ],
    {"penalty": ["fit"]},
    {"fit": ["penalty"]},
)
begin = mlox.restore(folder, last.init(), partial=["penalty.params"])
one_cycle = last.stack({"penalty": iter([folds]), "fit": iter([whole] * 50)})
print(
    "the penalties are those of the run:",
    np.array_equal(begin["penalty"].params, resumed["penalty"].params),
)

# %% [markdown]
# **2.** Less memory, the same numbers.

# %%
chunked = mlox.Engine(
    [penalty, fit.replace(tasks_at_once=2)], {"penalty": ["fit"]}, {"fit": ["penalty"]}
)
both = [e.hypergradient(e.init(), batches, "penalty")[1] for e in (engine, chunked)]
print("the same up to rounding:", bool(jnp.allclose(*both, rtol=1e-3, atol=1e-6)))

# %% [markdown]
# ## Read next
#
# - [Methods and solvers](../methods.md), [tasks and populations](../tasks.md)
# - [Many devices](../scaling.md) and [clusters](../clusters.md)
# - [Checkpoints and failures](../checkpoints.md)
