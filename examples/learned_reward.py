"""Learn a reward with which new policies find their goal after a few steps.

A policy starts in a corner of four rooms, and gets 1 when it reaches a goal that it
does not know; before that, nothing. A network r rates each cell for a given goal. New
policies learn from the true reward plus r by REINFORCE, K = 10 steps each, and r is
trained so that they have a high *true* return after them:

    max over r   mean over goals g of the true return of p_K(r, g)           "reward"
    such that    p_(k+1) = p_k + rate * gradient of REINFORCE(p_k), k = 0, ..., 9, with
                 the rewards 1[cell = g] + r(cell, g), from a uniform p_0    "policy"

Eight goals at a time are eight tasks of the lower (`tasks=`). The episodes are played
inside the compiled step with the present policy (`sample=`), and `mlox.Unrolled`
differentiates through the ten steps: Zheng et al., On Learning Intrinsic Rewards for
Policy Gradient Methods, NeurIPS 2018, here over a whole life of the policy.

    pip install "mlox[examples]"
    python examples/learned_reward.py
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _environment import CELLS, EPISODES, START, Episodes, best, play, reinforce, value
from _lives import LIFE, draw, mean, train_new
from _program import parser, print_table

import mlox

STEPS, TASKS, RATE, META = 10, 8, 3.0, 1e-3
RATES, CONSTANTS, SCALES = (3.0, 10.0, 30.0, 100.0), (0.0, 0.1, 0.3), (0.03, 0.1, 0.3)
PLACE, UNIFORM = jnp.asarray(CELLS / 4.0 - 1.0), jnp.zeros((len(CELLS), 4))
network = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(32), nn.tanh, nn.Dense(1)])
sgd = optax.sgd(RATE)


def rate_cells(reward: Any, goal: Any) -> jax.Array:
    """Return the learned reward of each cell."""
    pairs = [PLACE, jnp.broadcast_to(PLACE[goal], PLACE.shape)]
    found: Any = network.apply(reward, jnp.concatenate(pairs, axis=1))
    return found[:, 0]


def policy_loss(logits: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    episodes, goal = batch
    extra = rate_cells(ctx.reward.params, goal)[episodes.after]
    return reinforce(logits, episodes, episodes.reward + extra, mean)


def reward_loss(reward: Any, batch: Episodes, ctx: mlox.Context) -> Any:
    one = lambda logits, played: reinforce(logits, played, played.reward, mean)
    losses = jax.vmap(one)(ctx.policy.params, batch)
    return {"loss": losses.mean(), "return": jax.vmap(value)(batch).mean()}


def learn(goals: np.ndarray, cycles: int, seed: int) -> Any:
    """Return the parameters of a reward, and the true return while it was learned."""

    def goal_of(cycle: Any, task: Any) -> jax.Array:  # the same for both problems
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), cycle), task)
        return jax.random.choice(key, jnp.asarray(goals))

    def draw_for_policy(logits: Any, ctx: mlox.Context) -> Any:
        goal = goal_of(ctx.step // STEPS, ctx.task_index)
        return play(logits, goal, ctx.rng), goal

    def draw_for_reward(reward: Any, ctx: mlox.Context) -> Episodes:
        drawn = jax.vmap(goal_of, (None, 0))(ctx.step, jnp.arange(TASKS))
        keys: Any = jax.random.split(ctx.rng, TASKS)
        one = lambda logits, goal, key: play(logits, goal, key)
        return jax.vmap(one)(ctx.policy.params, drawn, keys)

    decay = optax.linear_schedule(META, 0.0, cycles)
    reward = mlox.Problem.create(
        name="reward",
        params=network.init(jax.random.key(seed), jnp.ones((1, 4))),
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(decay)),
        loss_fn=reward_loss,
        sample=draw_for_reward,
        rng=seed,
    )
    policy = mlox.Problem.create(
        name="policy",
        params=UNIFORM,
        tx=sgd,
        loss_fn=policy_loss,
        sample=draw_for_policy,
        reset=lambda logits, ctx: UNIFORM,
        method=mlox.Unrolled(),
        unroll_steps=STEPS,
        tasks=TASKS,
        rng=seed + 1000,
    )
    engine = mlox.Engine([reward, policy], {reward: [policy]}, {policy: [reward]})
    how = {"cycles_per_dispatch": 20, "loggers": (), "progress": False}
    return engine.run(engine.init(), None, cycles, **how)[0]["reward"].params


def compare(cycles: int, seed: int) -> tuple[dict[str, np.ndarray], Any]:
    """Learn on some goals, choose rates and baselines on them, and test on others."""
    order = np.random.default_rng(seed).permutation(np.delete(range(len(CELLS)), START))
    goals, new = jnp.asarray(order[:-20]), jnp.asarray(order[-20:])
    reward = learn(order[:-20], cycles, seed)
    learned = jax.vmap(lambda goal: rate_cells(reward, goal))
    nothing = lambda goals: jnp.zeros((len(goals), len(CELLS)))
    far = lambda goals: -jnp.abs(PLACE - PLACE[goals][:, None]).sum(axis=2)
    ways: dict[str, list[Any]] = {
        "constant baseline": [
            (nothing, lambda to_go, c=c: c + 0 * to_go) for c in CONSTANTS
        ],
        "mean baseline": [(nothing, mean)],
        "minus the distance": [(lambda g, s=s: s * far(g), mean) for s in SCALES],
        "learned reward": [(learned, mean)],
    }
    found = {}
    for name, settings in ways.items():
        runs = []
        for extra, baseline in settings:
            run = jax.jit(lambda g, r, e=extra, b=baseline: train_new(e(g), g, r, b))
            runs += [(run(goals, rate)[STEPS], rate, run) for rate in RATES]
        _, rate, run = max(runs, key=lambda one: one[0])
        found[name] = np.asarray(run(new, rate))
    found["shortest path"] = np.full(LIFE + 1, jax.vmap(best)(new).mean())
    return found, (new, learned(new))


def main() -> None:
    options = parser("Learn a reward with mlox.")
    options.add_argument("--steps", type=int, default=600, help="steps of the reward")
    args = options.parse_args()
    cycles = args.steps * (5 if args.large else 1)
    runs = [compare(cycles, seed) for seed in range(args.seeds)]
    ends = [0, 5, STEPS, LIFE]
    rows = [{name: found[ends] for name, found in run.items()} for run, _ in runs]
    print(f"true return of new policies on 20 new goals, {EPISODES} episodes a step")
    print_table(["learns from", *(f"after {end} steps" for end in ends)], rows)
    curves = {name: np.stack([run[name] for run, _ in runs]) for name in runs[0][0]}
    goals, rated = runs[0][1]
    draw(curves, int(goals[0]), rated[0], args.out)


if __name__ == "__main__":
    main()
