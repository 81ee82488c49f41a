"""Implicit MAML in mlox: `Proximal` around the loss, and the method `Implicit(CG)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _side import Given, Side
from peers import _sinusoids_jax, _sinusoids_mlox

import mlox


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    loss = mlox.Proximal(
        lambda params, points, ctx: _sinusoids_jax.error(params, points),
        to="init",
        strength=settings["strength"],
    )
    method = mlox.Implicit(mlox.CG(settings["products"]))
    return _sinusoids_mlox.build(given, settings, method, loss)
