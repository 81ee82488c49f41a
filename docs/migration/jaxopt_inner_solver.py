"""Learn the weights of examples by an inner solver."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from jaxopt import linear_solve

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(80, 5))
y = np.sign(x[:, 0])
noisy = np.where(draw.random(60) < 0.3, -y[:60], y[:60])
clean = x[60:], y[60:]


def losses(w, data):
    x, y = data
    return jnp.logaddexp(0.0, -y * (x @ w))


def fit_loss(w, raw):
    weights = jax.nn.sigmoid(raw)
    each = weights * losses(w, (x[:60], noisy))
    return jnp.mean(each) + 0.01 * jnp.sum(w**2)


solver = jaxopt.GradientDescent(
    fit_loss,
    stepsize=1.0,
    maxiter=20,
    tol=0.0,
    acceleration=False,
    implicit_diff=True,
    implicit_diff_solve=linear_solve.solve_cg,
)
adam = optax.adam(0.1)


def upper_loss(raw, w):
    w = solver.run(w, raw).params
    return jnp.mean(losses(w, clean)), w


@jax.jit
def step(raw, w, opt_state):
    slope, w = jax.grad(upper_loss, has_aux=True)(raw, w)
    move, opt_state = adam.update(slope, opt_state)
    return optax.apply_updates(raw, move), w, opt_state


raw, w = jnp.zeros(60), jnp.zeros(5)
opt_state = adam.init(raw)
for _ in range(100):
    raw, w, opt_state = step(raw, w, opt_state)
weights = jax.nn.sigmoid(raw)
wrong = noisy != y[:60]
print(weights[wrong].mean(), weights[~wrong].mean(), *w)
