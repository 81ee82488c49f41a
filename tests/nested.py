"""Fully solved nested problems: what hypergradients are held against.

Every answer is found by Newton's method on the *total* gradient of its cost, with all
that answers to it solved (or run) inside. Nothing here uses mlox or JAX but to hand the
same costs to an engine: the arithmetic is NumPy on dual numbers, and nothing compiles.

A dual number is an array whose first axis holds the coefficients of the products of
units e_1, e_2, ... with e_i e_i = 0: of 1, e_1, e_2, e_1 e_2, e_3, ... Sums, and
products with constants, are those of arrays. The coefficient of e in f(x + e) is df/dx,
and a derivative of a derivative takes one unit more.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import mlox

Theta = Mapping[str, np.ndarray]
"""Parameters of every problem: dual vectors [coefficients, *points, size]."""

Function = Callable[[Theta], np.ndarray]


@functools.cache
def _terms(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the pairs of coefficients that make up each coefficient of a product."""
    pairs = [[(t, s ^ t) for t in range(s + 1) if t & s == t] for s in range(count)]
    starts = np.cumsum([0, *map(len, pairs[:-1])])
    left, right = np.array([pair for terms in pairs for pair in terms]).T
    return left, right, starts


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply dual numbers, element by element."""
    left, right, starts = _terms(len(a))
    return np.add.reduceat(a[left] * b[right], starts, axis=0)


def slope(function: Function, theta: Theta, name: str) -> np.ndarray:
    """Differentiate a function with respect to one vector; a new axis is added for it.

    A scalar [coefficients, *points] becomes [coefficients, *points, size], a vector
    [coefficients, *points, m] becomes [coefficients, *points, size, m].
    """
    size = theta[name].shape[-1]
    lifted = {}
    for n, x in theta.items():
        x = np.repeat(x[..., None, :], size, axis=-2)
        lifted[n] = np.concatenate([x, np.zeros_like(x)])
    lifted[name][len(theta[name])] += np.eye(size)
    return function(lifted)[len(theta[name]) :]


def solved(residual: Function, theta: Theta, names: Sequence[str]) -> Theta:
    """Solve residual = 0 for the parameters of some problems by Newton's method.

    The Jacobian is that of the leading coefficients, kept once steps are small; each
    iteration then settles one more order of the others.
    """
    sizes = np.cumsum([theta[n].shape[-1] for n in names])[:-1]
    inverse, moved = np.zeros(0), np.inf
    for _ in range(60):
        value = residual(theta)
        if moved > 1e-2:
            rows = [slope(residual, theta, n)[0] for n in names]
            inverse = np.linalg.inv(np.concatenate(rows, axis=-2))
        step = (value[..., None, :] @ inverse)[..., 0, :]
        parts = dict(zip(names, np.split(step, sizes, axis=-1), strict=True))
        theta = {**theta, **{n: theta[n] - part for n, part in parts.items()}}
        moved = np.abs(step).max()
        if moved < 1e-12:
            return theta
    raise AssertionError(f"Newton's method for {names} does not converge.")


class Graph(NamedTuple):
    """Names and edges, the problem that all others are below of first."""

    names: tuple[str, ...]
    u2l: Mapping[str, Sequence[str]]
    l2u: Mapping[str, Sequence[str]]

    def lowers(self, name: str) -> set[str]:
        return {c for c, uppers in self.l2u.items() if name in uppers}

    def reads(self, name: str) -> tuple[str, ...]:
        uppers = {p for p, lowers in self.u2l.items() if name in lowers}
        return tuple(n for n in self.names if n in uppers | self.lowers(name))

    def movers(self, name: str) -> frozenset[str]:
        """List the answers that move with a problem, from the definition."""
        below, fringe = set(), {name}
        while fringe:
            fringe = set().union(*map(self.lowers, fringe)) - below
            below |= fringe
        moving = set(self.u2l.get(name, ()))
        while more := {n for n in below - moving if moving & set(self.reads(n))}:
            moving |= more
        return frozenset(moving)


class Program:
    """A graph with smooth costs, not quadratic, drawn at random from a seed.

    Attributes:
        graph: The graph.
        run: How answers respond that are not solved but run: {name: function}, from
            the parameters of all problems to those after the inner loop of this one.
    """

    def __init__(
        self,
        graph: Graph,
        seed: int = 0,
        quartic: float = 0.1,
        size: int = 2,
    ) -> None:
        self.graph, self.size = graph, size
        self.run: dict[str, Callable[[Theta], Theta]] = {}
        self.quartic = dict.fromkeys(graph.names, quartic)
        draw = np.random.default_rng(seed).normal
        self.parts = {}
        for n in graph.names:
            root = draw(size=(size, size))
            self.parts[n] = (
                1.5 * np.eye(size) + 0.2 * root @ root.T,
                draw(size=size),
                {m: 0.6 * draw(size=(size, size)) for m in graph.reads(n)},
                {m: 0.6 * draw(size=size) for m in graph.reads(n)},
            )

    def cost(self, name, theta, times=times):
        """Evaluate the cost of a problem: of dual numbers, or of JAX arrays."""
        matrix, linear, cross, pulls = self.parts[name]
        own, quartic = theta[name], self.quartic[name]
        square = times(own, own)
        value = 0.5 * times(own, own @ matrix).sum(-1) - own @ linear
        value = value + quartic * times(square, square).sum(-1)
        for m in self.graph.reads(name):
            other = times(theta[m], theta[m])
            value = (
                value + times(own @ cross[m], theta[m]).sum(-1) + theta[m] @ pulls[m]
            )
            value = value + 0.5 * quartic * times(square, other).sum(-1)
            value = value + 0.25 * quartic * times(other, other).sum(-1)
        return value

    def total(self, name: str, theta: Theta) -> np.ndarray:
        """Evaluate the cost of a problem with all that moves with it moved."""
        return self.cost(name, self.answered(self.graph.movers(name), theta))

    def answered(self, members: frozenset[str], theta: Theta) -> Theta:
        """Solve for a set of answers: the tops jointly, what they move inside."""
        if not members:
            return theta
        inner = frozenset().union(*map(self.graph.movers, members))
        tops = sorted(members - inner)
        rest = members - set(tops)
        for top in tops:
            if top in self.run:
                theta = self.run[top](theta)
        tops = [top for top in tops if top not in self.run]

        def residual(theta: Theta) -> np.ndarray:
            theta = self.answered(rest, theta)
            totals = [functools.partial(self.total, top) for top in tops]
            rows = map(slope, totals, [theta] * len(tops), tops)
            return np.concatenate(list(rows), axis=-1)

        theta = solved(residual, theta, tops) if tops else theta
        return self.answered(rest, theta)

    def theta(self, seed: int = 1) -> Theta:
        """Draw parameters for all problems."""
        draw = np.random.default_rng(seed).normal
        return {n: 0.3 * draw(size=(1, self.size)) for n in self.graph.names}

    def stationary(self, name: str, seed: int = 1) -> Theta:
        """Draw parameters and solve for the movers of a problem."""
        return self.answered(self.graph.movers(name), self.theta(seed))

    def differences(self, name: str, theta: Theta, function=None) -> np.ndarray:
        """Take central differences of fourth order, by default of the total cost."""
        function = function or functools.partial(self.total, name)
        epsilon = 2e-3
        shifts = epsilon * np.concatenate(
            [k * np.eye(self.size) for k in (1, -1, 2, -2)]
        )
        points = {n: x[:, None] + np.zeros_like(shifts) for n, x in theta.items()}
        values = function({**points, name: points[name] + shifts})[0]
        up, down, up2, down2 = np.split(values, 4)
        return (8 * (up - down) - (up2 - down2)) / (12 * epsilon)

    def problem(self, name: str, **options) -> mlox.Problem:
        """Make a problem of the same cost, by default one that stays where it is."""

        def loss_fn(params, batch, ctx):
            del batch
            theta = {n: ctx[n].params for n in self.graph.reads(name)}
            return self.cost(name, {**theta, name: params}, operator.mul)

        options = {"tx": optax.sgd(0.0), "params": jnp.zeros(self.size), **options}
        return mlox.Problem.create(name=name, loss_fn=loss_fn, **options)

    def engine(self, methods, *, coupling="total", **options) -> mlox.Engine:
        """Make the engine.

        Args:
            methods: One method for all problems, or {name: method}.
            coupling: As for an engine.
            **options: What differs from the default for a problem, by its name.
        """
        problems = [
            self.problem(
                n,
                method=methods.get(n) if isinstance(methods, dict) else methods,
                **options.get(n, {}),
            )
            for n in self.graph.names
        ]
        return mlox.Engine(problems, self.graph.u2l, self.graph.l2u, coupling=coupling)


GRAPHS = {
    "bilevel": Graph(("t", "c"), {"t": ["c"]}, {"c": ["t"]}),
    "two lowers": Graph(("t", "a", "b"), {"t": ["a", "b"]}, {"a": ["t"], "b": ["t"]}),
    "two uppers": Graph(("s", "t", "c"), {"s": ["c"], "t": ["c"]}, {"c": ["s", "t"]}),
    "uncoupled reader": Graph(("t", "p", "c"), {"t": ["c"]}, {"c": ["p"], "p": ["t"]}),
    "three levels": Graph(
        ("t", "p", "c"), {"t": ["p"], "p": ["c"]}, {"c": ["p"], "p": ["t"]}
    ),
    "skip edge": Graph(
        ("t", "p", "c"), {"t": ["p", "c"], "p": ["c"]}, {"c": ["p", "t"], "p": ["t"]}
    ),
    "lower of two levels": Graph(
        ("t", "p", "c"), {"t": ["c"], "p": ["c"]}, {"c": ["p", "t"], "p": ["t"]}
    ),
    "siblings": Graph(
        ("t", "p", "q", "c"),
        {"t": ["p"], "p": ["c"], "q": ["c"]},
        {"c": ["p", "q"], "p": ["t"], "q": ["t"]},
    ),
    "diamond": Graph(
        ("t", "p", "q", "c"),
        {"t": ["p", "q"], "p": ["c"], "q": ["c"]},
        {"c": ["p", "q"], "p": ["t"], "q": ["t"]},
    ),
    "four levels": Graph(
        ("s", "t", "p", "c"),
        {"s": ["t"], "t": ["p"], "p": ["c"]},
        {"c": ["p"], "p": ["t"], "t": ["s"]},
    ),
}
