"""What is measured of each way to differentiate an answer, on the smallest programs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mlox

RATE, STEPS, LOOP = 0.3, 80, 40
X = jnp.array([0.7, -0.4])
H = jnp.array([[1.5, 0.4], [0.4, 1.0]])


class Way(NamedTuple):
    """A way to differentiate an answer.

    Attributes:
        method: A method; None where the graph is rewritten.
        rewrite: (problems, u2l, l2u) -> what an engine takes.
        rng: The seed of the lower, or None.
    """

    method: Any = None
    rewrite: Callable[..., Any] = lambda *graph: graph
    rng: int | None = None


def split(loss: Callable[[Any, Any], Any]) -> Any:
    """Return a loss (params, ctx) -> scalar in parts, for Gauss-Newton."""
    return mlox.Composed(
        lambda params, batch, ctx: params, lambda z, batch, ctx: loss(z, ctx)
    )


def quadratic(away: Any) -> Any:
    return 0.5 * away @ H @ away


def judge(name: str) -> Any:
    def loss(x: Any, batch: Any, ctx: Any) -> Any:
        return 0.5 * jnp.sum((ctx[name].params - 1.0) ** 2) + 0.05 * jnp.sum(x**2)

    return loss


def problem(name: str, loss_fn: Any, start: Any, **parts: Any) -> mlox.Problem:
    given = {"tx": optax.sgd(RATE), "loss_fn": loss_fn, "params": start, **parts}
    return mlox.Problem.create(name=name, **given)


def two_levels(way: Way, tasks: int | None = None, steps: int = STEPS) -> mlox.Engine:
    """Return "y" under "x", solved at sin(x)."""
    y = problem(
        "y",
        split(lambda y, ctx: quadratic(y - jnp.sin(ctx.x.params))),
        jnp.sin(X),
        method=way.method,
        tasks=tasks,
        unroll_steps=steps,
        rng=way.rng,
    )
    x = problem("x", judge("y"), X)
    return mlox.Engine(*way.rewrite([x, y], {"x": ["y"]}, {"y": ["x"]}))


def middle_of_three(way: Way) -> mlox.Engine:
    """Return the method at "y", to which "z" responds, under "x"."""
    return three(way, way.method, None)


def lowest_of_three(way: Way) -> mlox.Engine:
    """Return the method at "z", below "y" with GMRES."""
    return three(way, mlox.Implicit(mlox.GMRES(8)), way.method)


def three(way: Way, of_y: Any, of_z: Any) -> mlox.Engine:
    def loss(y: Any, ctx: Any) -> Any:
        return quadratic(ctx.z.params - jnp.sin(ctx.x.params)) + 0.2 * jnp.sum(y**2)

    goal = jnp.linalg.solve(H + 0.4 * jnp.eye(2), H @ jnp.sin(X))
    x = problem("x", judge("y"), X)
    y = problem("y", split(loss), goal, unroll_steps=LOOP, method=of_y, rng=way.rng)
    follow = split(lambda z, ctx: quadratic(z - ctx.y.params))
    z = problem("z", follow, goal, unroll_steps=STEPS, method=of_z)
    edges = {"x": ["y"], "y": ["z"]}, {"z": ["y"], "y": ["x"]}
    return mlox.Engine(*way.rewrite([x, y, z], *edges))


def slope(engine: mlox.Engine, params: Any = X) -> Any:
    state = engine.init()
    state = {**state, "x": state["x"].replace(params=params)}
    if state["x"].memory is not None:
        resting = {**state, "x": state["x"].replace(tx=optax.sgd(0.0))}
        step = lambda s, _: (engine.step(s, dict.fromkeys(s))[0], None)
        settled = jax.lax.scan(step, resting, length=STEPS)[0]
        state = {**state, "x": state["x"].replace(memory=settled["x"].memory)}
    return engine.hypergradient(state, dict.fromkeys(engine.names), "x")[1]


CG = mlox.CG(4)
SERIES = mlox.Neumann(60, step=0.5)
WAYS = {
    "Unrolled()": Way(mlox.Unrolled()),
    "Unrolled(levels=L)": Way(mlox.Unrolled(levels=2)),
    "Unrolled(mixed=True)": Way(mlox.Unrolled(mixed=True)),
    "Unrolled(last_steps=K)": Way(mlox.Unrolled(last_steps=5)),
    "Forward()": Way(mlox.Forward()),
    "Detached()": Way(mlox.Detached()),
    "Implicit()": Way(mlox.Implicit()),
    "Implicit(CG(K))": Way(mlox.Implicit(CG)),
    "Implicit(CG(K, damping=d))": Way(mlox.Implicit(mlox.CG(4, damping=0.3))),
    "Implicit(Neumann(K, step=a))": Way(mlox.Implicit(SERIES)),
    "Implicit(Richardson(K, step=a))": Way(
        mlox.Implicit(mlox.Richardson(60, step=0.5))
    ),
    "Implicit(Nystrom(rank=r, damping=d))": Way(
        mlox.Implicit(mlox.Nystrom(rank=1, damping=0.1))
    ),
    "Implicit(CG(K, preconditioner=Nystrom(r, d)))": Way(
        mlox.Implicit(mlox.CG(4, preconditioner=mlox.Nystrom(rank=1, damping=0.1)))
    ),
    "Implicit(Dense())": Way(mlox.Implicit(mlox.Dense())),
    "Implicit(GMRES(K))": Way(mlox.Implicit(mlox.GMRES(8))),
    "Implicit(BiCGStab(K))": Way(mlox.Implicit(mlox.BiCGStab(12))),
    "Implicit(MINRES(K))": Way(mlox.Implicit(mlox.MINRES(8))),
    "Implicit(Identity())": Way(mlox.Implicit(mlox.Identity())),
    "Implicit(solver, warm_start=True)": Way(mlox.Implicit(CG, warm_start=True)),
    "Implicit(solver, refine=R)": Way(mlox.Implicit(CG, refine=1)),
    "Implicit(Neumann(Q, a), draws=Q)": Way(mlox.Implicit(SERIES, draws=3)),
    "GaussNewton(solver)": Way(mlox.GaussNewton(CG)),
    "FixedPoint(iterations=K)": Way(mlox.FixedPoint(iterations=60)),
    "SAMA()": Way(mlox.SAMA()),
    "SAMA(epsilon=e)": Way(mlox.SAMA(epsilon=0.01)),
    "FiniteDifference()": Way(mlox.FiniteDifference()),
    "SOBA(step=a)": Way(mlox.SOBA(step=0.5)),
    "penalty(strength=k)": Way(rewrite=partial(mlox.penalty, lower="y", strength=1e3)),
    "penalty(strength=k, order=2)": Way(
        rewrite=partial(mlox.penalty, lower="y", strength=1e2, order=2)
    ),
    "evolve(pairs=N, sigma=s)": Way(
        rewrite=partial(mlox.evolve, lower="y", pairs=2000, sigma=0.1), rng=0
    ),
}
