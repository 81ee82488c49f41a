"""A game of three players: three firms that share a market.

Firm i chooses the quantity q_i that it sells, at the cost c_i q_i + d q_i^2 / 2. The
market below them finds the price p, so that demand meets supply:

    max over q_i   p* q_i - c_i q_i - d q_i^2 / 2            for i = 1, 2, 3
    such that      p* = argmin over p of p^2 / 2 - p (a - b (q_1 + q_2 + q_3))

"price takers" read the price as a constant, without `u2l` edges: the competitive
equilibrium, p = c_i + d q_i. "response": each firm also differentiates the answer of
the market, along a `u2l` edge of its own to the lower that all share: the equilibrium
of Nash and Cournot, p - b q_i = c_i + d q_i. "cartel": each firm maximizes the sum of
all profits, for which it reads the others: p - b (q_1 + q_2 + q_3) = c_i + d q_i. All
three are linear equations, with which the program compares what it finds.

    pip install "mlox[examples]"
    python examples/three_players.py
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _picture import COLORS, panels, save
from _program import parsed, parser, print_table

import mlox

jax.config.update("jax_enable_x64", True)
A, B, D, FIRMS = 10.0, 1.0, 0.5, 3
WAYS = ("price takers", "response", "cartel")
NAMES = [f"firm{i}" for i in range(FIRMS)]
momentum, halves = optax.sgd(0.05, momentum=0.5), optax.sgd(0.5)


def profit(q: Any, p: Any, cost: Any) -> Any:
    return p * q - cost * q - D * q**2 / 2


def market_loss(p: jax.Array, batch: None, ctx: mlox.Context) -> jax.Array:
    sold = sum(ctx[name].params for name in NAMES)
    return p**2 / 2 - p * (A - B * sold)


def build(way: str, costs: np.ndarray, start: np.ndarray) -> mlox.Engine:
    """Build the game; the costs are constants of the losses."""

    def firm_loss(i: int) -> Any:
        def loss(q: jax.Array, batch: None, ctx: mlox.Context) -> Any:
            p = ctx.market.params
            others: Any = 0.0
            if way == "cartel":
                rest = [k for k in range(FIRMS) if k != i]
                others = sum(profit(ctx[NAMES[k]].params, p, costs[k]) for k in rest)
            return -profit(q, p, costs[i]) - others

        return loss

    firms = [
        mlox.Problem.create(
            name=name, params=jnp.asarray(q), tx=momentum, loss_fn=firm_loss(i)
        )
        for i, (name, q) in enumerate(zip(NAMES, start, strict=True))
    ]
    market = mlox.Problem.create(
        name="market",
        params=jnp.asarray(A / 2),
        tx=halves,
        loss_fn=market_loss,
        method=mlox.Implicit(mlox.CG(iterations=1)),  # exact: the price is a number
        unroll_steps=10,
    )
    players, l2u = [*firms, market], {market: firms}
    if way == "price takers":  # the market reads the firms, and none looks through it
        return mlox.Engine(players, l2u=l2u, reads={market: firms})
    others = {f: [o for o in firms if o is not f] for f in firms}
    reads = others if way == "cartel" else {}
    u2l = {firm: [market] for firm in firms}
    return mlox.Engine(players, u2l=u2l, l2u=l2u, reads=reads)


def exact(way: str, costs: np.ndarray) -> np.ndarray:
    """Return the quantities of the equilibrium: a - b Q - (own effect) = c + d q."""
    ones, own = np.ones((FIRMS, FIRMS)), np.eye(FIRMS)
    effect = {"price takers": 0 * ones, "response": B * own, "cartel": B * ones}[way]
    return np.linalg.solve(B * ones + effect + D * own, A - costs)


def play(way: str, costs: np.ndarray, start: np.ndarray, cycles: int) -> np.ndarray:
    """Return the quantities after each cycle, [cycles + 1, firms]."""
    engine = build(way, costs, start)
    nothing = dict.fromkeys(engine.names)

    def cycle(state: Any, _: None) -> Any:
        state, _ = engine.step(state, nothing)
        return state, jnp.stack([state[name].params for name in NAMES])

    run = jax.jit(lambda state: jax.lax.scan(cycle, state, length=cycles)[1])
    return np.concatenate([start[None], run(engine.init())])


def main() -> None:
    options = parser("Three firms and a market, with mlox.")
    options.add_argument("--cycles", type=int, default=400)
    args = parsed(options, seeds=20)
    figure, (left, right) = panels(1, 2)
    runs, errors = [], dict.fromkeys(WAYS, 0.0)
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        costs, start = rng.uniform(0.5, 2.0, FIRMS), rng.uniform(0.2, 1.5, FIRMS)
        rows = {}
        for way, color in zip(WAYS, COLORS, strict=False):
            path, best = play(way, costs, start, args.cycles), exact(way, costs)
            price = A - B * path.sum(axis=1)
            gain = profit(path, price[:, None], costs).sum(axis=1)
            error = np.abs(path[-1] - best).max() / np.abs(best).max()
            errors[way] = max(errors[way], float(error))
            rows[way] = path[-1].sum(), price[-1], gain[-1]
            if seed == 0:
                left.plot(path[:, 0], path[:, 1], color=color, label=way)
                left.plot(*best[:2], "*", ms=15, color=color)
                right.plot(gain[:120], color=color)
        runs.append(rows)
    print_table(["play", "quantity", "price", "sum of profits"], runs)
    print("\nlargest relative distance to the equilibrium in closed form:")
    for way, error in errors.items():
        print(f"{way:22}{error:.0e}")
    left.set(xlabel="firm 1 sells", ylabel="firm 2 sells", title="Paths; stars: exact")
    left.legend(fontsize=10)
    right.set(xlabel="cycle", title="Sum of profits")
    save(figure, args.out)


if __name__ == "__main__":
    main()
