"""A classifier as a function of its penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

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


def fit(start, log_l2):
    found = minimize(start, jax.lax.stop_gradient(log_l2))
    return mlox.attach(
        stationarity, found, log_l2, solver=mlox.CG()
    )


def minimize(w, log_l2):  # any solver, of any library
    lbfgs = optax.lbfgs()
    cost = lambda w: objective(w, log_l2)

    def step(i, carry):
        w, state = carry
        value, grad = optax.value_and_grad_from_state(cost)(
            w, state=state
        )
        move, state = lbfgs.update(
            grad,
            state,
            w,
            value=value,
            grad=grad,
            value_fn=cost,
        )
        return optax.apply_updates(w, move), state

    start = w, lbfgs.init(w)
    return jax.lax.fori_loop(0, 30, step, start)[0]


def upper(log_l2):
    return loss(fit(jnp.zeros(5), log_l2), valid)


value, slope = jax.value_and_grad(upper)(-3.0)
print(value, slope)
