# %% [markdown]
# # 1. A bilevel program in five minutes
#
# **After this notebook** you can write a problem that contains another problem, and
# show that its gradient is right.
#
# A ridge regression has a penalty. The penalty cannot be learned from the rows that the
# regression is fitted to: zero would always win there. It has to be judged on other
# rows, *after* the fit:
#
# $$\min_{u}\; L_{\text{valid}}(w^*(u))$$
#
# such that
#
# $$w^*(u) = \arg\min_{w}\; L_{\text{train}}(w) + \tfrac12\sum_k e^{u_k} w_k^2$$
#
# This is a *bilevel program*. The problem below has the unknowns $w$, the one above has
# $u$, and $w^*(u)$ is called the *answer* of the lower problem. The derivative of the
# upper's loss through the answer is called its *hypergradient*.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import mlox

# %matplotlib inline

jax.config.update("jax_enable_x64", True)  # to compare gradients to many digits

# %% [markdown]
# ## The data
#
# 442 patients, 10 features, and how far a disease has progressed after a year. We fit
# to 40 patients, judge the penalty on 40 others, and keep the rest for the end. There
# are two penalties: one for the features of the body (age, sex, mass, pressure), one
# for the six of the blood.

# %%
x, y = load_diabetes(return_X_y=True)
x = (x - x.mean(axis=0)) / x.std(axis=0)
y = (y - y.mean()) / y.std()
order = np.random.default_rng(0).permutation(len(y))
train, valid, test = ((x[i], y[i]) for i in np.split(order, [40, 80]))
group = np.array([0] * 4 + [1] * 6)  # 0: body, 1: blood


def error(w, rows):
    return 0.5 * jnp.mean((rows[0] @ w - rows[1]) ** 2)


# %% [markdown]
# ## By hand: the closed form
#
# Ridge regression is one of the few problems whose answer is a formula,
#
# $$w^*(u) = \left(X^\top X/n + \mathrm{diag}(e^{u})\right)^{-1} X^\top y/n ,$$
#
# so JAX can differentiate it like any other function. This will be our reference.


# %%
def closed_form(u):
    X, y = train
    hessian = X.T @ X / len(y) + jnp.diag(jnp.exp(u)[group])
    return jnp.linalg.solve(hessian, X.T @ y / len(y))


reference = jax.jit(jax.value_and_grad(lambda u: error(closed_form(u), valid)))
start = jnp.array([-4.0, 1.0])
loss, gradient = reference(start)
print(f"validation error {loss:.4f}, gradient {gradient}")

# %% [markdown]
# ## With mlox: two losses, and who reads whom
#
# Without a closed form one trains the lower problem by gradient steps. A loss of mlox
# takes the parameters of its own problem, a batch, and a context `ctx`, through which
# it reads the other problems.


# %%
def fit_loss(w, batch, ctx):
    return error(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params)[group] * w**2)


def penalty_loss(u, batch, ctx):
    return {"loss": error(ctx.fit.params, batch), "u": u}  # "u" is recorded


penalty = mlox.Problem.create(
    name="penalty", params=start, tx=optax.adam(0.1), loss_fn=penalty_loss
)
fit = mlox.Problem.create(
    name="fit",
    params=jnp.zeros(10),
    tx=optax.sgd(0.2, momentum=0.9),
    loss_fn=fit_loss,
    method=mlox.Implicit(mlox.CG(10)),
    unroll_steps=500,
)
engine = mlox.Engine([penalty, fit], u2l={penalty: [fit]}, l2u={fit: [penalty]})
engine

# %% [markdown]
# The picture says it all: `u2l` ("upper to lower") declares that the loss of `fit`
# reads the parameters of `penalty`, and `l2u` that the loss of `penalty` reads the
# answer of `fit`. `fit` makes 500 steps for each step of `penalty`. Its `method` says
# how the answer is differentiated: by the implicit function theorem,
#
# $$\frac{dL}{du} = \frac{\partial L}{\partial u}
# - \frac{\partial^2 C}{\partial u\,\partial w}
# \left(\frac{\partial^2 C}{\partial w^2}\right)^{-1} \frac{\partial L}{\partial w},$$
#
# where $C$ is the loss of `fit`. The linear system is solved with conjugate gradients
# in 10 products with the Hessian. No Hessian is ever stored.
#
# ## Is the hypergradient right?
#
# Never believe a hypergradient that you have not compared with something. We have the
# closed form, and we can move $u$ a little to both sides, train again, and look how the
# loss changes.

# %%
rows = {"penalty": valid, "fit": train}
batches = engine.stack({name: iter([rows[name]] * 500) for name in rows})
state = engine.init()
_, found = engine.hypergradient(state, batches, "penalty")


def loss_at(u):  # train the lower from scratch, and judge it
    at_u = {**state, "penalty": state["penalty"].replace(params=u)}
    return engine.hypergradient(at_u, batches, "penalty")[0]


h = 1e-4
differences = [
    (loss_at(start + h * e) - loss_at(start - h * e)) / 2 / h for e in jnp.eye(2)
]
for name, value in {
    "mlox": found,
    "closed form": gradient,
    "central differences": differences,
}.items():
    print(f"{name:20}" + "  ".join(f"{v:13.10f}" for v in value))
error_of_mlox = jnp.linalg.norm(found - gradient) / jnp.linalg.norm(gradient)
print(f"relative error of mlox: {error_of_mlox:.0e}")

# %% [markdown]
# ## Run it
#
# `engine.run` repeats the cycle: 500 steps of `fit`, one of `penalty`. One cycle is one
# compiled program. The history holds everything that the losses have returned.

# %%
data = {"penalty": [valid], "fit": [train]}  # begun again at the end
state, history = engine.run(
    engine.init(), data, train_iters=150, log_every=1, loggers=(), progress=False
)
path = history["penalty/u"]
print("from", path[0], "to", path[-1].round(2))

# %% [markdown]
# Since there is a closed form we can draw the whole landscape, and the path of the
# upper in it.

# %%
grid = np.linspace(-6, 4, 41)
landscape = jax.vmap(jax.vmap(lambda u: error(closed_form(u), valid)))(
    jnp.stack(jnp.meshgrid(grid, grid), axis=-1)
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
lines = left.contourf(grid, grid, landscape, 25, cmap="viridis_r")
figure.colorbar(lines, label="validation error (variances / 2)")
left.plot(*path.T, ".-", color="tab:red", ms=3, lw=1, label="path of the upper")
left.plot(*path[-1], "*", color="white", mec="black", ms=12)
left.set(title="Where the upper goes", xlabel="log penalty, body")
left.set_ylabel("log penalty, blood")
left.legend(loc="upper right")
right.plot(history["cycle"], history["penalty/loss"], label="validation")
right.plot(history["cycle"], history["fit/loss"], label="training, with penalty")
right.set(
    title="Both losses", xlabel="step of the upper", ylabel="loss (variances / 2)"
)
right.legend()
plt.show()

# %% [markdown]
# ## What has been gained?
#
# With two penalties, nothing: they are fitted to 40 patients, and fit these more closely.
# On the patients that nobody has seen yet, one penalty for all features, chosen by a grid
# on the same 40 patients, does better here:

# %%
losses = [error(closed_form(jnp.array([u, u])), valid) for u in grid]
ways = {
    "no penalty": jnp.full(2, -30.0),
    "one penalty, grid": jnp.full(2, grid[np.argmin(losses)]),
    "two penalties, mlox": state["penalty"].params,
}
print(f"{'':22}validation  test")
for name, u in ways.items():
    w = closed_form(u)
    print(f"{name:22}{error(w, valid):10.4f}  {error(w, test):.4f}")

# %% [markdown]
# The gain is one of *size*. A grid over 100 penalties is out of reach; a hypergradient
# costs about the same for 100 or a million of them. The rest of the course is about
# such programs: a weight for each image, a whole network as the upper, an
# initialization, a schedule.
#
# ## Exercises
#
# 1. Give each of the ten features a penalty of its own. What must be changed, and what
#    happens to the errors?
# 2. Let the lower make 5 steps in place of 500. How wrong is the hypergradient at the
#    start, and what does `mlox.Unrolled()` compute in place of it?
# 3. Replace the squared error of `fit` by one that has no closed form, such as
#    $\log\cosh(Xw - y)$, and compare the hypergradient with central differences.
#
# ## Solutions
#
# **1.** Ten numbers in `params`, and no `group`. The validation error falls, the test
# error rises: ten penalties overfit 40 rows. This is not a fault of the gradient; it is
# what an upper does that has many parameters and few data.


# %%
def build(fit_loss=fit_loss, params=start, method=fit.method, steps=500):
    upper = penalty.replace(params=params, opt_state=penalty.tx.init(params))
    lower = fit.replace(loss_fn=fit_loss, method=method, unroll_steps=steps)
    return mlox.Engine([upper, lower], {"penalty": ["fit"]}, {"fit": ["penalty"]})


def each_loss(w, batch, ctx):
    return error(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params) * w**2)


ten = build(each_loss, jnp.full(10, -3.0))
after, _ = ten.run(ten.init(), data, train_iters=150, loggers=(), progress=False)
w = after["fit"].params
print(f"ten penalties: validation {error(w, valid):.4f}, test {error(w, test):.4f}")

# %% [markdown]
# **2.** `Implicit` supposes that the lower is solved, and after 5 steps it is not.
# `Unrolled` differentiates the steps that were made. It is exact, but for another
# function: the loss after 5 steps. mlox measures how far off the lower is (its *gap*),
# and [`mlox.check`](../wrong_hypergradient.md) says what to do about it.


# %%
def cosine(a, b):
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def ratio(a, b):
    return float(jnp.linalg.norm(a) / jnp.linalg.norm(b))


for steps in (5, 500):
    few = {**batches, "fit": (batches["fit"][0][:steps], batches["fit"][1][:steps])}
    for method in (mlox.Implicit(mlox.CG(10)), mlox.Unrolled()):
        short = build(method=method, steps=steps)
        slope = short.hypergradient(short.init(), few, "penalty")[1]
        print(
            f"{steps:4} steps, {type(method).__name__:9}"
            f" cosine {cosine(slope, gradient):6.3f}, norm ratio {ratio(slope, gradient):.3f}"
        )

# %% [markdown]
# **3.** Only the loss changes.


# %%
def robust_loss(w, batch, ctx):
    away = jnp.mean(jnp.log(jnp.cosh(batch[0] @ w - batch[1])))
    return away + 0.5 * jnp.sum(jnp.exp(ctx.penalty.params)[group] * w**2)


robust = build(robust_loss)
state = robust.init()


def robust_at(u):
    at_u = {**state, "penalty": state["penalty"].replace(params=u)}
    return robust.hypergradient(at_u, batches, "penalty")


found = robust_at(start)[1]
both = [(robust_at(start + h * e)[0], robust_at(start - h * e)[0]) for e in jnp.eye(2)]
differences = jnp.array([(up - down) / (2 * h) for up, down in both])
print("mlox       ", found)
print("differences", differences)

# %% [markdown]
# ## Read next
#
# - The next notebook: [2. Find the wrong labels](2_wrong_labels.ipynb).
# - [All pages and a glossary](../index.md): answer, mover, block, cycle.
# - [Methods and solvers](../methods.md): what else can stand in place of
#   `Implicit(CG(10))`.
