"""An environment inside the compiled step: rollouts of the policy that learns.

A point on a line is to go to 0. The policy draws its accelerations from a Gaussian
around `gain * position + bias`; the lower ascends the return by REINFORCE, on rollouts
that `sample` makes with the present policy. Its baseline, a line in the position, is
what the upper learns: to have the smallest variance of the returns around it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

EPISODES, LENGTH, STEPS = 8, 4, 3
POLICY, BASELINE = jnp.array([0.1, 0.2]), jnp.array([-1.0, 0.3])
SLOW, FAST = optax.sgd(0.02), optax.sgd(0.05)
SAMPLE = 2**32 - 2  # the stream of the keys that `sample` gets


def mean_action(policy, position):
    return policy[0] * position + policy[1]


def rollout(policy, key):
    """Play one episode: positions, actions and rewards, each [LENGTH]."""
    first, rest = jax.random.split(key)

    def move(position, key):
        noise = 0.5 * jax.random.normal(key)
        action = mean_action(policy, position) + noise
        after = position + action
        return after, (position, action, -(after**2))

    start = jax.random.uniform(first, minval=-1.0, maxval=1.0)
    return jax.lax.scan(move, start, jax.random.split(rest, LENGTH))[1]


def rollouts(policy, key):
    keys = jax.random.split(key, EPISODES)
    positions, actions, rewards = jax.vmap(rollout, (None, 0))(policy, keys)
    to_go = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return positions, actions, to_go


def advantages(baseline, episodes):
    positions, _, to_go = episodes
    return to_go - baseline[0] - baseline[1] * positions**2


def reinforce(policy, baseline, episodes):
    positions, actions, _ = episodes
    log_likelihood = -2.0 * (actions - mean_action(policy, positions)) ** 2
    return -jnp.mean(log_likelihood * advantages(baseline, episodes))


def policy_loss(params, batch, ctx):
    loss = reinforce(params, ctx.baseline.params, batch)
    return {"loss": loss, "return": batch[2][:, 0].mean()}


def baseline_loss(params, batch, ctx):
    return jnp.mean(advantages(params, batch) ** 2)


def answer_loss(params, batch, ctx):
    """Judge the baseline by what the policy became, too."""
    return baseline_loss(params, batch, ctx) + jnp.sum(ctx.policy.params**2)


def make_engine(method, upper_loss, policy_tx=FAST, baseline_tx=SLOW):
    baseline = mlox.Problem.create(
        name="baseline",
        params=BASELINE,
        tx=baseline_tx,
        loss_fn=upper_loss,
        sample=lambda params, ctx: rollouts(ctx.policy.params, ctx.rng),
        rng=1,
    )
    policy = mlox.Problem.create(
        name="policy",
        params=POLICY,
        tx=policy_tx,
        loss_fn=policy_loss,
        sample=lambda params, ctx: rollouts(params, ctx.rng),
        method=method,
        unroll_steps=STEPS,
        rng=2,
    )
    return mlox.Engine(
        [baseline, policy], u2l={baseline: [policy]}, l2u={policy: [baseline]}
    )


def key_of(seed, step):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SAMPLE), step)


def trained(policy, baseline, cycle):
    """Make the policy's steps of one cycle by hand."""
    for step in range(STEPS):
        episodes = rollouts(policy, key_of(2, STEPS * cycle + step))
        episodes = jax.lax.stop_gradient(episodes)
        policy = policy - 0.05 * jax.grad(reinforce)(policy, baseline, episodes)
    return policy


@jax.jit
def by_hand(policy, baseline, cycle):
    """Make one cycle by hand: the policy and the baseline after it."""
    after = trained(policy, baseline, cycle)
    episodes = rollouts(after, key_of(1, cycle))

    def cost(baseline):
        answer = trained(policy, baseline, cycle)
        return jnp.mean(advantages(baseline, episodes) ** 2) + jnp.sum(answer**2)

    return after, baseline - 0.02 * jax.grad(cost)(baseline)


def test_steps_on_rollouts_are_those_by_hand():
    engine = make_engine(mlox.Unrolled(), answer_loss)
    state, _ = engine.run(engine.init(), train_iters=3, loggers=())
    policy, baseline = POLICY, BASELINE
    for cycle in range(3):
        policy, baseline = by_hand(policy, baseline, cycle)
    np.testing.assert_allclose(state["policy"].params, policy, rtol=1e-12)
    np.testing.assert_allclose(state["baseline"].params, baseline, rtol=1e-12)


def test_a_baseline_changes_where_the_policy_goes():
    slope = jax.jit(jax.jacobian(trained, argnums=1))(POLICY, BASELINE, 0)
    assert jnp.abs(slope).max() > 1e-3, "the derivative that is checked is not zero"


def test_the_return_improves_and_the_baseline_fits():
    adam = optax.adam(0.02)
    engine = make_engine(mlox.Detached(), baseline_loss, adam, adam)
    _, history = engine.run(
        engine.init(), train_iters=150, cycles_per_dispatch=30, loggers=()
    )
    found = history["policy/return"]
    assert found[-3:].mean() > 0.5 * found[0], "less than half of the cost is left"
    assert history["baseline/loss"][-1] < 0.3 * history["baseline/loss"][0]
