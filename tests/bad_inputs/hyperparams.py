"""Hyperparameters of optimizers that uppers cannot set."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

import mlox

from ..small import fit_loss, pair, problem
from .case import Case, table

ADAM = optax.inject_hyperparams(optax.adam)
SGD = optax.inject_hyperparams(optax.sgd)


def _set(returned: Any, tx: Any = None, **parts: Any) -> Any:
    """Build an engine whose lower has an optimizer that `hyperparams` sets."""
    fit = {
        "tx": ADAM(1e-3) if tx is None else tx,
        "hyperparams": returned if callable(returned) else lambda ctx: returned,
        "method": mlox.Detached(),
        **parts,
    }
    return pair(fit)


def _label(params: Any) -> Any:
    return {"a": "a", "b": "b"}


def _two_groups() -> Any:
    groups: dict[Any, Any] = {"a": SGD(0.1), "b": SGD(0.1)}
    return optax.partition(groups, _label)


def _grouped(returned: Any) -> Any:
    params = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    return _set(returned, _two_groups(), params=params)


def _implicit() -> Any:
    read = lambda ctx: {"learning_rate": jnp.sum(ctx.penalty.params)}
    return _set(read, method=mlox.Implicit(), loss_fn=fit_loss)


def cases() -> list[Case]:
    return table(
        "Optimizers that read uppers",
        [
            (
                "an optimizer without injected hyperparameters",
                lambda _: problem(tx=optax.adam(1e-3), hyperparams=lambda ctx: {}),
                ValueError,
                r"'fit': hyperparams=.*optax.inject_hyperparams\(optax.adam\)",
            ),
            (
                "values in place of a function",
                lambda _: problem(tx=ADAM(1e-3), hyperparams={"learning_rate": 0.1}),
                TypeError,
                r"hyperparams is {'learning_rate'.*\(ctx\)",
            ),
            (
                "a value without its name",
                lambda _: _set(0.1),
                TypeError,
                r"'fit': hyperparams\(ctx\) is 0.1.*dict.*'learning_rate'",
            ),
            (
                "a misspelt hyperparameter",
                lambda _: _set({"learning_rates": 0.1}),
                ValueError,
                r"\['learning_rates'\].*'b1', .*'learning_rate'.*pass a number",
            ),
            (
                "a hyperparameter that is None",
                lambda _: _set({"momentum": 0.1}, SGD(0.1)),
                ValueError,
                r"\['momentum'\]: tx has no such.*None.*pass a number",
            ),
            (
                "a hyperparameter that is a schedule",
                lambda _: _set(
                    {"learning_rate": 0.1}, ADAM(optax.constant_schedule(0.1))
                ),
                ValueError,
                r"\['learning_rate'\].*schedule.*Pass a number",
            ),
            (
                "a schedule that is not indexed",
                lambda _: _set({"learning_rate": jnp.ones(5, jnp.float32)}),
                ValueError,
                r"\['learning_rate'\] is float32\[5\].*float32\[\].*inner_step",
            ),
            (
                "an integer learning rate",
                lambda _: _set({"learning_rate": jnp.int32(1)}),
                ValueError,
                r"\['learning_rate'\] is int32\[\]; expected float32\[\]",
            ),
            (
                "a learning rate in words",
                lambda _: _set({"learning_rate": "small"}),
                TypeError,
                r"\['learning_rate'\] is 'small'; expected a number",
            ),
            (
                "no learning rate",
                lambda _: _set({"learning_rate": None}),
                TypeError,
                r"\['learning_rate'\] is None; expected a number",
            ),
            (
                "a group that does not exist",
                lambda _: _grouped({"c": {"learning_rate": 0.1}}),
                ValueError,
                r"no group 'c'.*\['a', 'b'\].*optax.partition",
            ),
            (
                "a hyperparameter of two groups",
                lambda _: _grouped({"learning_rate": 0.1}),
                ValueError,
                r"2 optimizers in tx.*\['a'\], \['b'\].*{group: {'learning_rate'",
            ),
            (
                "a group where there is none",
                lambda _: _set({"a": {"learning_rate": 0.1}}),
                ValueError,
                r"no group 'a'.*leave them out",
            ),
            (
                "a problem that is not declared",
                lambda _: _set(lambda ctx: {"learning_rate": ctx.rates.params}),
                ValueError,
                r"'fit' reads ctx\['rates'\].*u2l={'rates': \['fit'\]}.*hyperparams of",
            ),
            (
                "an implicit answer",
                lambda _: _implicit(),
                UserWarning,
                r"optimizer of 'fit' reads 'penalty'.*Implicit\(\).*mlox.Unrolled\(\)",
            ),
        ],
    )
