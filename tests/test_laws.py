"""Laws: what every method, solver and graph owes, held against independent answers.

Closed forms, the formulas that define the methods, and the fully solved nested problems
of `nested`, differentiated by central differences or by its own dual numbers.
"""

import dataclasses
import functools
import itertools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.flatten_util import ravel_pytree

import mlox
from nested import GRAPHS, Graph, Program, slope, solved

DENSE = mlox.Implicit(mlox.Dense())
GMRES = mlox.Implicit(mlox.GMRES())
AUTO = mlox.Implicit()
CG = mlox.Implicit(mlox.CG(iterations=8))
BICGSTAB = mlox.Implicit(mlox.BiCGStab(iterations=20))
METHODS = {
    "cg": CG,
    "dense": DENSE,
    "difference": mlox.FiniteDifference(),
    "identity": mlox.Implicit(mlox.Identity()),
    "neumann": mlox.Implicit(mlox.Neumann(iterations=5, step=0.2)),
    "sama": mlox.SAMA(),
    "unrolled": mlox.Unrolled(),
}
BILEVEL = GRAPHS["bilevel"]
MOMENTUM = optax.sgd(0.1, momentum=0.9)


def quick(function):
    """Compile without optimization, which takes most of the time here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def error(found, expected):
    """Return the largest difference relative to the largest entry."""
    found, expected = (ravel_pytree(tree)[0] for tree in (found, expected))
    assert found.shape == expected.shape
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


def without_data(engine):
    return dict.fromkeys(engine.names)


def state_at(engine, theta):
    """Return the state of a new run at some parameters."""
    return {
        name: problem.replace(params=jnp.asarray(theta[name][0]))
        for name, problem in engine.init().items()
    }


def hypergradient(engine, theta, name):
    """Return the hypergradient of a problem without data."""
    state, batches = state_at(engine, theta), without_data(engine)
    return quick(lambda s: engine.hypergradient(s, batches, name)[1])(state)
