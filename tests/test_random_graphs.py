"""Random graphs of quadratic problems, against a dense solution of the nested program.

Everything is affine there: the answers in what is above them, and the gradients of
costs in which answers are substituted. Maps and quadratic forms over all parameters at
once are all that is needed; nothing here is differentiated or iterated.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlox

from .nested import Graph

SIZE = 2


class Affine(NamedTuple):
    """z -> matrix z + constant, over the parameters z of all problems."""

    matrix: np.ndarray
    constant: np.ndarray

    def after(self, first: "Affine") -> "Affine":
        return Affine(self.matrix @ first.matrix, self(first.constant))

    def __call__(self, z: np.ndarray) -> np.ndarray:
        return self.matrix @ z + self.constant


class Quadratics(NamedTuple):
    """A graph with costs <z, H z> / 2 + <z, g>, in each only what the problem reads."""

    graph: Graph
    costs: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def at(self, name: str) -> slice:
        start = SIZE * self.graph.names.index(name)
        return slice(start, start + SIZE)

    def slope(self, name: str) -> Affine:
        """Return the gradient of a cost in which its movers are substituted."""
        answers = self.answers(self.graph.movers(name))
        hessian, linear = self.costs[name]
        inner = Affine(hessian, linear).after(answers)
        return Affine(
            answers.matrix.T @ inner.matrix, answers.matrix.T @ inner.constant
        )

    def answers(self, members: frozenset[str]) -> Affine:
        """Return the map that replaces the parameters of some problems by answers.

        The tops solve jointly, each for its own total cost; what they move follows.
        """
        size = SIZE * len(self.graph.names)
        if not members:
            return Affine(np.eye(size), np.zeros(size))
        tops = sorted(members.difference(*map(self.graph.movers, members)))
        rest = self.answers(members.difference(tops))
        rows = np.concatenate([np.arange(size)[self.at(top)] for top in tops])
        slopes = [(self.at(top), self.slope(top).after(rest)) for top in tops]
        matrix = np.concatenate([s.matrix[own] for own, s in slopes])
        constant = np.concatenate([s.constant[own] for own, s in slopes])
        solved = Affine(np.eye(size), np.zeros(size))
        inverse = np.linalg.inv(matrix[:, rows])
        solved.matrix[rows] -= inverse @ matrix
        solved.constant[rows] -= inverse @ constant
        return rest.after(solved)

    def engine(self, method: mlox.Method) -> mlox.Engine:
        def loss(name, params, batch, ctx):
            del batch
            reads = {n: ctx[n].params for n in self.graph.reads(name)} | {name: params}
            hessian, linear = self.costs[name]
            value = sum(linear[self.at(n)] @ x for n, x in reads.items())
            for m, n in itertools.product(reads, repeat=2):
                block = hessian[self.at(m), self.at(n)]
                value += 0.5 * reads[m] @ block @ reads[n]
            return value

        problems = [
            mlox.Problem.create(
                name=n,
                params=jnp.zeros(SIZE),
                tx=optax.sgd(0.0),
                loss_fn=functools.partial(loss, n),
                method=method,
            )
            for n in self.graph.names
        ]
        return mlox.Engine(problems, self.graph.u2l, self.graph.l2u)


@st.composite
def graphs(draw):
    """Draw 2 to 5 problems, each but the first read by some before it.

    An upper is any problem that is above along l2u, so that every u2l edge has a way
    back; the first one leads at least one of them.
    """
    names = tuple("abcde"[: draw(st.integers(2, 5))])
    l2u, above = {}, {names[0]: set()}
    for i, name in enumerate(names[1:], 1):
        uppers = st.lists(
            st.sampled_from(names[:i]), min_size=1, max_size=2, unique=True
        )
        l2u[name] = draw(uppers)
        above[name] = set(l2u[name]).union(*(above[n] for n in l2u[name]))
    u2l = {}
    for name in names[1:]:
        for upper in sorted(above[name]):
            if draw(st.booleans()) or (upper, name) == (names[0], names[1]):
                u2l.setdefault(upper, []).append(name)
    return Graph(names, u2l, l2u)


def quadratics(graph, seed):
    """Draw costs that are convex in a problem's own parameters."""
    draw = np.random.default_rng(seed).normal
    program, size = Quadratics(graph, {}), SIZE * len(graph.names)
    costs = {}
    for name in graph.names:
        hessian, linear, read = (
            np.zeros((size, size)),
            np.zeros(size),
            graph.reads(name),
        )
        for m, n in itertools.product((name, *read), repeat=2):
            hessian[program.at(m), program.at(n)] = 0.4 * draw(size=(SIZE, SIZE))
        for n in (name, *read):
            linear[program.at(n)] = draw(size=SIZE)
        hessian = (hessian + hessian.T) / 2
        hessian[program.at(name), program.at(name)] += 2.5 * np.eye(SIZE)
        costs[name] = hessian, linear
    return Quadratics(graph, costs)


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(graphs(), st.integers(0, 1000))
def test_total_gradients_of_random_graphs(graph, seed):
    program = quadratics(graph, seed)
    name = max(graph.names, key=lambda n: len(graph.movers(n)))
    z = np.random.default_rng(seed).normal(size=SIZE * len(graph.names))
    z = program.answers(graph.movers(name))(z)
    engine = program.engine(mlox.Implicit(mlox.Dense()))
    state = {
        n: problem.replace(params=jnp.asarray(z[program.at(n)]))
        for n, problem in engine.init().items()
    }
    batches = dict.fromkeys(graph.names)
    found = jax.jit(
        lambda state: engine.hypergradient(state, batches, name)[1],
        compiler_options={"xla_backend_optimization_level": 0},
    )(state)
    expected = program.slope(name)(z)[program.at(name)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
