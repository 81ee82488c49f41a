"""Blocks with two tops: siblings that lead a lower which they share, a Nash game."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mlox._graph.dependencies import Player
from mlox._hypergradient.point import EvaluationPoint, Unknowns

Lagrangian = Callable[[str, EvaluationPoint], jax.Array]

# Each sibling answers to its own Lagrangian, in which the lower responds and the other
# sibling is held fixed. So the rows of the residual are slopes of different functions,
# and the matrix dG/dy is not symmetric: GMRES. The player n has the rows
#
#     dL_n/dtheta_n             for its parameters,
#     dL_n/d(theta_j, lambda)   for its multipliers, if it is a tower: j are its movers,
#                               and the slope in lambda_j is minus the residual of j.


def residual(
    players: Sequence[Player], point: EvaluationPoint, lagrangian: Lagrangian
) -> Unknowns:
    """Return the residual G of a game at a point, row by row."""
    slopes = {
        n.name: jax.grad(_along(n, point, lagrangian))(point.select(n)) for n in players
    }
    return Unknowns(
        params={n.name: slopes[n.name].params[n.name] for n in players},
        multipliers={
            n.name: _without(n.name, slopes[n.name]) for n in players if n.is_tower
        },
    )


def pairing(
    method: Any,
    players: Sequence[Player],
    multiplier: Unknowns,
    point: EvaluationPoint,
    lagrangian: Lagrangian,
) -> jax.Array:
    """Return <multiplier, G>: the sum of the pairings of the players' own rows."""
    terms = (
        method.pairing(
            _along(n, point, lagrangian),
            point.select(n),
            _direction_of(n, multiplier),
        )
        for n in players
    )
    return functools.reduce(operator.add, terms)


def _along(
    player: Player, point: EvaluationPoint, lagrangian: Lagrangian
) -> Callable[[Unknowns], jax.Array]:
    return lambda y: lagrangian(player.name, point.at(y))


def _direction_of(player: Player, multiplier: Unknowns) -> Unknowns:
    """Return the part of a multiplier that belongs to the rows of a player."""
    own = {player.name: multiplier.params[player.name]}
    if not player.is_tower:
        return Unknowns(own, {})
    below = multiplier.multipliers[player.name]
    return Unknowns({**own, **below.params}, below.multipliers)


def _without(name: str, slopes: Unknowns) -> Unknowns:
    params = {n: slope for n, slope in slopes.params.items() if n != name}
    return slopes._replace(params=params)
