"""How new policies learn in the four rooms with a given reward, and a picture of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _environment import CELLS, START, play, reinforce, value
from _picture import band, panels, save

LIFE = 50  # steps of a policy
mean = lambda to_go: to_go.mean(axis=0)  # over the episodes, for each time


def train_new(
    extra: Any, goals: Any, rate: Any, baseline: Callable[..., Any]
) -> jax.Array:
    """Return the true returns of new policies as they learn, a mean over goals.

    `extra` is the reward of each cell beside the true one, for each goal.
    """
    start = jnp.zeros((len(CELLS), 4))

    def live(extra: Any, goal: Any, key: Any) -> jax.Array:
        def step(logits: Any, key: Any) -> Any:
            played = play(logits, goal, key)
            rewards = played.reward + extra[played.after]
            slope = jax.grad(reinforce)(logits, played, rewards, baseline)
            return logits - rate * slope, value(played)

        return jax.lax.scan(step, start, jax.random.split(key, LIFE + 1))[1]

    keys = jax.random.split(jax.random.key(7), len(goals))
    return jax.vmap(live)(extra, goals, keys).mean(axis=0)


def draw(curves: dict[str, np.ndarray], goal: int, rated: Any, file: str) -> None:
    """Draw the reward of each cell for one goal, and the returns [seeds, steps]."""
    figure, axes = panels(1, 2)
    maze = np.full((9, 9), np.nan)
    maze[tuple(CELLS.T)] = rated
    axes[0].grid(False)
    axes[0].set_facecolor("0.3")  # the walls
    figure.colorbar(axes[0].imshow(maze), ax=axes[0], shrink=0.8)
    axes[0].plot(*CELLS[goal][::-1], "*", color="tab:red", ms=18)
    axes[0].plot(*CELLS[START][::-1], "o", color="tab:red", ms=10)
    axes[0].set(title="learned reward, goal: star", xticks=[], yticks=[])
    for name, found in curves.items():
        style = ":" if name == "shortest path" else "-"
        band(axes[1], range(LIFE + 1), found, name, ls=style)
    axes[1].set(xlabel="steps of a new policy", ylabel="true return", ylim=(0, None))
    axes[1].legend(fontsize=10)
    save(figure, file)
