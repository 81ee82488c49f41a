"""Names of types that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

PyTree: TypeAlias = Any
"""A nested container of arrays, as `jax.tree` takes it."""

Tree: TypeAlias = Any
"""A pytree of real floating arrays (or Python floats) that acts as one vector."""

State: TypeAlias = Mapping[str, Any]
"""{name: Problem}, the state of a run."""

Batches: TypeAlias = Mapping[str, PyTree]
"""{name: the batches of a problem, or None}."""

Params: TypeAlias = Mapping[str, PyTree]
"""{name: the parameters of a problem, or some of their leaves}."""

Metrics: TypeAlias = dict[str, jax.Array]
"""{name: array}, what losses and solvers report."""

Scalars: TypeAlias = Mapping[str, float]
"""{name: number}, what loggers get."""

Columns: TypeAlias = dict[str, np.ndarray]
"""{name: array}, the history of a run, or one of its rows."""

LossFn: TypeAlias = Callable[..., Any]
"""(params, batch, ctx) -> loss, or a dict with "loss"."""

Validation: TypeAlias = Callable[[Any], Mapping[str, Any]]
"""A state of a run -> {name of a score: scalar}."""

Mask: TypeAlias = Callable[[PyTree], PyTree]
"""params -> a pytree of bools like params, or a prefix of one."""

Position: TypeAlias = Any
"""Where a series of batches is: values that JSON holds."""
