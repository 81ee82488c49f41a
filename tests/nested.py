"""Fully solved nested problems: what hypergradients are held against.

Every answer is found by Newton's method on the *total* gradient of its cost, with all
that answers to it solved inside; the derivative of the outcome is then taken by central
differences. Nothing here uses mlox but the names of problems.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

SIZE = 2
ITERATIONS = 7


def closure(u2l, l2u, name):
    """List the movers of a problem, from the definition."""
    lowers = {}
    for lower, uppers in l2u.items():
        for upper in uppers:
            lowers.setdefault(upper, set()).add(lower)
    below, fringe = set(), {name}
    while fringe:
        fringe = {c for p in fringe for c in lowers.get(p, ())} - below
        below |= fringe
    reads = {
        n: {p for p, cs in u2l.items() if n in cs} | lowers.get(n, set()) for n in below
    }
    moving = set(u2l.get(name, ())) & below
    while more := {n for n in below - moving if reads[n] & moving}:
        moving |= more
    return moving


class Program:
    """A graph with smooth non-quadratic costs, drawn at random from a seed."""

    def __init__(self, names, u2l, l2u, seed=0, quartic=0.1, coupling=0.35, size=SIZE):
        self.names, self.u2l, self.l2u, self.size = names, u2l, l2u, size
        self.movers = {n: closure(u2l, l2u, n) for n in names}
        generator = np.random.default_rng(seed)
        self.reads = {
            n: [p for p, cs in u2l.items() if n in cs]
            + [c for c, ps in l2u.items() if n in ps]
            for n in names
        }
        draw = lambda *shape: jnp.asarray(generator.normal(size=shape))
        self.parts = {}
        for n in names:
            root = draw(size, size)
            matrix = jnp.eye(size) * 1.5 + 0.2 * root @ root.T
            cross = {m: coupling * draw(size, size) for m in self.reads[n]}
            pulls = {m: 0.3 * draw(size) for m in self.reads[n]}
            self.parts[n] = (matrix, draw(size), cross, pulls)
        self.quartic = quartic

    def cost(self, name, own, others):
        """Evaluate the cost of a problem at its own and its neighbours' parameters."""
        matrix, linear, cross, pulls = self.parts[name]
        value = 0.5 * own @ matrix @ own - linear @ own + self.quartic * (own**4).sum()
        for m, other in others.items():
            value += own @ cross[m] @ other + pulls[m] @ other
            value += 0.5 * self.quartic * ((own * other) ** 2).sum()
            value += 0.25 * self.quartic * (other**4).sum()
        return value

    def total(self, name, theta):
        """Evaluate the cost of a problem with all of its movers solved."""
        theta = self.solve(frozenset(self.movers[name]), theta)
        return self.cost(name, theta[name], {m: theta[m] for m in self.reads[name]})

    def solve(self, members, theta):
        """Solve for a set of answers: tops jointly, what they move inside."""
        if not members:
            return theta
        tops = sorted(members - set().union(*(self.movers[m] for m in members)))
        rest = members - set(tops)

        def residual(y):
            there = {**theta, **y}
            there = self.solve(rest, there)
            return {
                t: jax.grad(lambda x, t=t: self.total(t, {**there, t: x}))(there[t])
                for t in tops
            }

        def newton(y, _):
            flat, unravel = jax.flatten_util.ravel_pytree(y)
            g = lambda v: jax.flatten_util.ravel_pytree(residual(unravel(v)))[0]
            return unravel(flat - jnp.linalg.solve(jax.jacfwd(g)(flat), g(flat))), None

        start = {t: theta[t] for t in tops}
        y, _ = jax.lax.scan(newton, start, None, length=ITERATIONS)
        return self.solve(rest, {**theta, **y})

    def problems(self, methods, **options):
        """Make the problems, with optimizers that stay where they are."""
        def loss(name):
            def loss_fn(params, batch, ctx):
                del batch
                others = {m: ctx[m].params for m in self.reads[name]}
                return self.cost(name, params, others)

            return loss_fn

        default = methods if not isinstance(methods, dict) else mlox.Implicit()
        return [
            mlox.Problem.create(
                name=n,
                params=jnp.zeros(self.size),
                tx=optax.sgd(0.0),
                loss_fn=loss(n),
                method=methods.get(n, default) if isinstance(methods, dict) else methods,
                **options,
            )
            for n in self.names
        ]

    def engine(self, methods, coupling="total", **options):
        """Make the engine."""
        return mlox.Engine(
            self.problems(methods, **options), self.u2l, self.l2u, coupling=coupling
        )

    def solved(self, name, theta):
        """Return all parameters with the movers of a problem solved."""
        return jax.jit(lambda t: self.solve(frozenset(self.movers[name]), t))(theta)

    def differences(self, name, theta, epsilon=1e-4):
        """Take central differences of fourth order of the solved nested problem."""
        value = jax.jit(jax.vmap(lambda x: self.total(name, {**theta, name: x})))
        eye = np.eye(self.size) * epsilon
        shifts = np.concatenate([eye, -eye, 2 * eye, -2 * eye])
        up, down, up2, down2 = np.split(
            np.asarray(value(theta[name] + shifts)), 4
        )
        return (8 * (up - down) - (up2 - down2)) / (12 * epsilon)

    def theta(self, seed=1):
        """Draw parameters for all problems."""
        generator = np.random.default_rng(seed)
        return {n: jnp.asarray(0.3 * generator.normal(size=self.size)) for n in self.names}


GRAPHS = {
    "bilevel": (["t", "c"], {"t": ["c"]}, {"c": ["t"]}),
    "two lowers": (["t", "a", "b"], {"t": ["a", "b"]}, {"a": ["t"], "b": ["t"]}),
    "two uppers": (["s", "t", "c"], {"s": ["c"], "t": ["c"]}, {"c": ["s", "t"]}),
    "three levels": (
        ["t", "p", "c"],
        {"t": ["p"], "p": ["c"]},
        {"c": ["p"], "p": ["t"]},
    ),
    "skip edge": (
        ["t", "p", "c"],
        {"t": ["p", "c"], "p": ["c"]},
        {"c": ["p", "t"], "p": ["t"]},
    ),
    "uncoupled reader": (
        ["t", "p", "c"],
        {"t": ["c"]},
        {"c": ["p"], "p": ["t"]},
    ),
    "siblings": (
        ["t", "p", "q", "c"],
        {"t": ["p"], "p": ["c"], "q": ["c"]},
        {"c": ["p", "q"], "p": ["t"], "q": ["t"]},
    ),
    "diamond": (
        ["t", "p", "q", "c"],
        {"t": ["p", "q"], "p": ["c"], "q": ["c"]},
        {"c": ["p", "q"], "p": ["t"], "q": ["t"]},
    ),
    "lower of two levels": (
        ["t", "p", "c"],
        {"t": ["c"], "p": ["c"]},
        {"c": ["p", "t"], "p": ["t"]},
    ),
    "four levels": (
        ["s", "t", "p", "c"],
        {"s": ["t"], "t": ["p"], "p": ["c"]},
        {"c": ["p"], "p": ["t"], "t": ["s"]},
    ),
}
