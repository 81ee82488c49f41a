"""Four rooms: a maze of 9 x 9 cells with a goal, in compiled functions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAZE = """
    #
    #

    #
## ### ##
    #
    #

    #
"""
EPISODES, LENGTH, DISCOUNT = 16, 40, 0.95
ROWS = [line.ljust(9)[:9] for line in MAZE.strip("\n").split("\n")]
CELLS = np.argwhere(np.array([list(row) for row in ROWS]) == " ")  # [cells, 2]
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
PLACES = {tuple(cell): i for i, cell in enumerate(CELLS.tolist())}
# The cell after each move; a wall stops it.
NEXT = np.array(
    [[PLACES.get(tuple(c + m), i) for m in MOVES] for i, c in enumerate(CELLS)]
)
START = PLACES[0, 0]


class Episodes(NamedTuple):
    """Episodes from the first cell to the goal, each an array [EPISODES, LENGTH].

    Attributes:
        cell: Where a move starts.
        move: Which of the four it is.
        after: Where it ends.
        reward: 1 for a move to the goal, which ends the episode, otherwise 0.
        alive: 1 until the episode has ended.
    """

    cell: jax.Array
    move: jax.Array
    after: jax.Array
    reward: jax.Array
    alive: jax.Array


def play(logits: jax.Array, goal: Any, key: Any) -> Episodes:
    """Play by a policy, the logits of the moves in each cell [cells, 4]."""

    def step(carry: Any, key: Any) -> Any:
        cell, alive = carry
        move = jax.random.categorical(key, logits[cell])
        after = jnp.asarray(NEXT)[cell, move]
        reward = alive * (after == goal)
        return (after, alive - reward), Episodes(cell, move, after, reward, alive)

    start = jnp.full(EPISODES, START), jnp.ones(EPISODES)
    found = jax.lax.scan(step, start, jax.random.split(key, LENGTH))[1]
    return jax.tree.map(lambda x: x.T, found)


def to_go(rewards: jax.Array) -> jax.Array:
    """Return the discounted sum of the rewards from each move on."""
    back = lambda total, reward: (reward + DISCOUNT * total,) * 2
    return jax.lax.scan(back, jnp.zeros(len(rewards)), rewards.T, reverse=True)[1].T


def reinforce(
    logits: jax.Array, episodes: Episodes, rewards: Any, baseline: Any
) -> jax.Array:
    """Return the loss of REINFORCE; no derivative flows through how moves were drawn.

    The sum over an episode of -log p(move) (rewards to go - baseline), a mean over
    episodes. `baseline` maps the rewards to go, [EPISODES, LENGTH], to what is
    subtracted.
    """
    total = to_go(rewards * episodes.alive)
    chosen = jax.nn.log_softmax(logits)[episodes.cell, episodes.move]
    advantage = (total - baseline(total)) * episodes.alive
    return -(chosen * advantage).sum(axis=1).mean()


def value(episodes: Episodes) -> jax.Array:
    """Return the mean of the true discounted return."""
    return to_go(episodes.reward)[:, 0].mean()


def best(goal: Any) -> jax.Array:
    """Return the true discounted return of a shortest path."""
    ends = jnp.asarray(NEXT) == goal
    found = lambda _, v: jnp.where(ends, 1.0, DISCOUNT * v[NEXT]).max(axis=1)
    return jax.lax.fori_loop(0, LENGTH, found, jnp.zeros(len(CELLS)))[START]
