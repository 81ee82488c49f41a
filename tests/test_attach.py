"""What a residual closes over is differentiated as if it were an argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlox

POWERS = jnp.arange(1, 4)  # integers, closed over
KEY = jax.random.key(0)


def cube_root(x, power=3):
    """Return y with y^3 + noise - noise = x, found without a derivative."""
    found = jax.lax.stop_gradient(jnp.abs(x)) ** (1 / 3)

    def residual(y):
        noise = jax.random.normal(KEY, jnp.shape(y), jnp.float64)
        scale = jnp.asarray(power, jnp.float64) / 3.0
        return scale * (y**3 + noise - noise - x)

    return mlox.attach(residual, found, solver=mlox.Dense())


def scanned(x):
    body = lambda carry, power: (carry * cube_root(x, power), None)
    return jax.lax.scan(body, jnp.ones_like(x), POWERS)[0]


def traced_key(x):
    """Close over a key and an integer that are tracers themselves."""

    def value(x, key, shift):
        def residual(y):
            noise = jax.random.normal(key, jnp.shape(y), jnp.float64)
            return y**3 + 0.0 * noise - x + (shift - shift).astype(y.dtype)

        found = jax.lax.stop_gradient(x) ** (1 / 3)
        return mlox.attach(residual, found, solver=mlox.Dense())

    return jax.jit(value)(x, KEY, jnp.int32(2))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (cube_root, lambda x: x ** (1 / 3)),
        (jax.jit(cube_root), lambda x: x ** (1 / 3)),
        (jax.checkpoint(cube_root), lambda x: x ** (1 / 3)),
        (traced_key, lambda x: x ** (1 / 3)),
        (scanned, lambda x: x),
    ],
    ids=["plain", "jit", "checkpoint", "traced key", "scan"],
)
@pytest.mark.parametrize(
    "second", [jax.grad, pytest.param(jax.jacfwd, marks=pytest.mark.slow)]
)
def test_attach_differentiates_what_the_residual_closes_over(
    function, expected, second
):
    for transform in (jax.grad, lambda f: second(jax.grad(f))):
        found, right = transform(function)(0.7), transform(expected)(0.7)
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outer", ["vmap of grad", "grad of vmap"])
def test_attach_maps_over_what_the_residual_closes_over(outer):
    xs = jnp.array([0.3, 0.7, 2.0])
    if outer == "vmap of grad":
        found = jax.vmap(jax.grad(cube_root))(xs)
    else:
        found = jax.grad(lambda xs: jax.vmap(cube_root)(xs).sum())(xs)
    np.testing.assert_allclose(found, xs ** (-2 / 3) / 3, rtol=1e-12)


def power_root(x, power, key):
    """Return y with noise * (y^power - x) = 0, closing over all three arguments."""
    found = jax.lax.stop_gradient(x) ** (1 / power.astype(x.dtype))

    def residual(y):
        noise = 1.5 + jax.random.uniform(key, jnp.shape(y), jnp.float64)
        return noise * (y ** power.astype(y.dtype) - x)

    return mlox.attach(residual, found, solver=mlox.Dense())


def total(xs, powers, keys):
    return jax.vmap(power_root)(xs, powers, keys).sum()


def last(x, powers, keys):
    step = lambda y, each: (power_root(x, *each) + 0.0 * y, None)
    return jax.lax.scan(step, jnp.zeros_like(x), (powers, keys))[0]


def root(x):
    return x ** (1 / 3)


XS = jnp.array([0.7, 0.7])
CUBES = jnp.array([3, 3])
KEYS = jax.random.split(KEY)
TRANSFORMED = {
    "grad": (jax.grad(power_root), jax.grad(root), 1),
    "jit of grad": (jax.jit(jax.grad(power_root)), jax.grad(root), 1),
    "grad of jit": (jax.grad(jax.jit(power_root)), jax.grad(root), 1),
    "vmap of grad": (jax.vmap(jax.grad(power_root)), jax.vmap(jax.grad(root)), 2),
    "grad of vmap": (jax.grad(total), jax.vmap(jax.grad(root)), 2),
    "jit of grad of vmap": (
        jax.jit(jax.grad(total)),
        jax.vmap(jax.grad(root)),
        2,
    ),
    "jvp": (jax.jacfwd(power_root), jax.grad(root), 1),
    "vmap of jvp": (jax.vmap(jax.jacfwd(power_root)), jax.vmap(jax.grad(root)), 2),
    "hessian": (jax.hessian(power_root), jax.hessian(root), 1),
    "grad of grad": (jax.grad(jax.grad(power_root)), jax.hessian(root), 1),
    "grad of scan": (
        lambda x, power, key: jax.grad(last)(x, CUBES, KEYS),
        jax.grad(root),
        1,
    ),
    "hessian of scan": (
        lambda x, power, key: jax.hessian(last)(x, CUBES, KEYS),
        jax.hessian(root),
        1,
    ),
}


QUICK = {"jit of grad", "jit of grad of vmap", "grad of scan"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in TRANSFORMED
    ],
)
def test_attach_closes_over_traced_floats_integers_and_keys(name):
    transformed, expected, count = TRANSFORMED[name]
    xs, cubes, keys = XS[:count], CUBES[:count], KEYS[:count]
    if count == 1:
        xs, cubes, keys = xs[0], cubes[0], keys[0]
    found = transformed(xs, cubes, keys)
    np.testing.assert_allclose(found, expected(xs), rtol=1e-12)


MATRIX = jnp.array([[2.0, 1.0], [-1.0, 1.0]])


@pytest.mark.parametrize(
    ("solver", "matrix"),
    [
        (None, MATRIX),
        (mlox.GMRES(), MATRIX),
        (mlox.Dense(), MATRIX),
        (mlox.CG(), MATRIX @ MATRIX.T),  # without a system: that of the solver
    ],
)
def test_attach_solves_the_system_that_its_solver_serves(solver, matrix):
    def total(x):
        found = jnp.linalg.solve(matrix, jax.lax.stop_gradient(x))
        return mlox.attach(lambda y: matrix @ y - x, found, solver=solver)[0]

    expected = jnp.linalg.inv(matrix)[0]
    np.testing.assert_allclose(jax.grad(total)(jnp.ones(2)), expected, rtol=1e-10)


def test_attach_differentiates_closure_and_argument_together():
    def value(a, b):
        found = jax.lax.stop_gradient(a * b)
        return mlox.attach(lambda y, b: y - a * b, found, b)

    gradient = jax.grad(functools.partial(value), argnums=(0, 1))(2.0, 5.0)
    np.testing.assert_allclose(gradient, (5.0, 2.0), rtol=1e-12)
