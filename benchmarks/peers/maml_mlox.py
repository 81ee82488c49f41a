"""MAML in mlox: a problem with `tasks=`, whose steps are unrolled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _side import Given, Side
from peers import _sinusoids_mlox

import mlox


def build(given: Given, settings: Mapping[str, Any]) -> Side:
    return _sinusoids_mlox.build(given, settings, mlox.Unrolled())
