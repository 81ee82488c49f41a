"""A classifier as a function of its penalty."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxopt import implicit_diff, linear_solve

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(80, 5))
y = np.sign(x[:, 0] + draw.normal(size=80))
train, valid = (x[:40], y[:40]), (x[40:], y[40:])


def loss(w, data):
    x, y = data
    return jnp.mean(jnp.logaddexp(0.0, -y * (x @ w)))


def objective(w, log_l2):
    l2 = jnp.exp(log_l2)
    return loss(w, train) + l2 * jnp.sum(w**2)


stationarity = jax.grad(objective)


@implicit_diff.custom_root(
    stationarity, solve=linear_solve.solve_cg
)
def fit(start, log_l2):
    solver = jaxopt.LBFGS(
        objective, tol=1e-12, implicit_diff=False
    )
    return solver.run(start, log_l2).params


def upper(log_l2):
    return loss(fit(jnp.zeros(5), log_l2), valid)


value, slope = jax.value_and_grad(upper)(-3.0)
print(value, slope)
