"""A layer in equilibrium, differentiated at its rest."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxopt import linear_solve

jax.config.update("jax_enable_x64", True)
draw = np.random.default_rng(0)
x = draw.normal(size=(8, 4))
y = draw.normal(size=8)
params = {
    "inside": 0.2 * draw.normal(size=(6, 6)),
    "in": draw.normal(size=(4, 6)),
    "out": draw.normal(size=6),
}


def layer(z, params, x):
    return jnp.tanh(z @ params["inside"] + x @ params["in"])


def rest(params, x):
    solver = jaxopt.FixedPointIteration(
        layer,
        maxiter=500,
        tol=1e-12,
        implicit_diff=True,
        implicit_diff_solve=linear_solve.solve_gmres,
    )
    return solver.run(jnp.zeros((8, 6)), params, x).params


def loss(params):
    z = rest(params, x)
    return jnp.mean((z @ params["out"] - y) ** 2)


value, slopes = jax.value_and_grad(loss)(params)
print(value, *[slopes[k].sum() for k in sorted(slopes)])
