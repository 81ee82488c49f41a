"""Early stopping: a rule as a value, and its state as plain numbers."""

import dataclasses
import math
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple

from mlox._utils.describe import summarize
from mlox._utils.fields import (
    COUNT,
    FLAG,
    NAME_OF_SCALAR,
    NOT_NEGATIVE,
    Kind,
    check,
    check_fields,
    one_of,
)


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stop a run when a metric has not improved for a while.

    The metric is compared whenever it is recorded: a validation score at every
    validation, a mean metric at every log point. A value is an improvement if it is
    better than the best one so far by more than `min_delta`; NaN is never one. The run
    stops after `patience` points in a row without an improvement; the last one of them
    is also its last log point and validation.

    `flax.training.early_stopping.EarlyStopping` stops one point later: its patience of
    `n` is `patience=n + 1` here.

    Attributes:
        metric: A name of the history: `"validation/<score>"`, or a mean metric that is
            a scalar, such as `"classifier/loss"`.
        mode: `"min"` if smaller is better, `"max"` if larger is.
        patience: The number of points, at least 1.
        min_delta: The smallest improvement that counts, in units of the metric, >= 0.
        restore_best: Whether `run` returns the state of the best point, also if it does
            not stop early, or else the last state. If the metric was always NaN, there
            is no best point, and the last state is returned.

    Raises:
        TypeError: If an attribute has a wrong type.
        ValueError: If an attribute has a wrong value.

    Example:
        >>> import jax.numpy as jnp, mlox, optax
        >>> problem = mlox.Problem.create(
        ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25),
        ...     loss_fn=lambda params, batch, ctx: params**2)
        >>> engine = mlox.Engine([problem])
        >>> rule = mlox.EarlyStopping("validation/error", "min", patience=3)
        >>> state, history = engine.run(
        ...     engine.init(), train_iters=100, log_every=1, loggers=(),
        ...     validation=lambda state: {"error": (state["x"].params - 0.25) ** 2},
        ...     early_stopping=rule)
        >>> history["cycle"].tolist(), int(history["best_cycle"])
        ([1, 2, 3, 4, 5], 2)
        >>> float(state["x"].params)
        0.25
    """

    metric: str
    mode: Literal["min", "max"]
    patience: int = 5
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            metric=NAME_OF_SCALAR,
            mode=one_of("min", "max"),
            patience=COUNT,
            min_delta=NOT_NEGATIVE,
            restore_best=FLAG,
        )

    @property
    def uses_score(self) -> bool:
        """Whether the metric is a validation score, by its name."""
        return self.metric.startswith("validation/")


class Best(NamedTuple):
    """The state of a rule: plain numbers that can be written as JSON.

    Attributes:
        cycle: The cycle of the best value; 0 while there is none.
        value: The best value; NaN while there is none.
        waited: The number of points without an improvement since then.
    """

    cycle: int = 0
    value: float = math.nan
    waited: int = 0


def update(rule: EarlyStopping, best: Best, cycle: int, value: float) -> Best:
    """Return the state of a rule after one more point.

    The run should stop once `waited` has reached `rule.patience`.

    Example:
        >>> rule = EarlyStopping("validation/accuracy", "max", min_delta=0.01)
        >>> best = update(rule, Best(), 10, 0.5)
        >>> update(rule, best, 20, 0.505)
        Best(cycle=10, value=0.5, waited=1)
        >>> update(rule, best, 20, 0.75)
        Best(cycle=20, value=0.75, waited=0)
    """
    gain = value - best.value if rule.mode == "max" else best.value - value
    first = math.isnan(best.value) and not math.isnan(value)
    if first or gain > rule.min_delta:
        return Best(cycle, value, 0)
    return best._replace(waited=best.waited + 1)


def check_rule(
    rule: EarlyStopping,
    problems: Collection[str],
    reporters: Iterable[str],
    validated: bool,
) -> None:
    """Raise ValueError if a run cannot record the metric of a rule.

    `reporters` are the problems whose metrics the step returns.
    """
    known = sorted([*reporters, *["validation"] * validated])
    name = rule.metric.split("/")[0]
    hint = "" if validated else "Scores need a function as `validation`."
    if name in problems:
        hint = "Build the engine with other metrics than 'none', which leaves it out."
    kind = Kind(f"a metric of one of {known}", lambda _: name in known)
    check("`early_stopping`: metric", rule.metric, kind, hint)


def check_recorded(rule: EarlyStopping, recorded: Iterable[str]) -> None:
    """Raise ValueError if the metric of a rule is not among the scalars recorded."""
    names = sorted(name for name in recorded if "/" in name)
    kind = Kind(
        f"a scalar that is recorded, one of {summarize(names, 500)}", names.__contains__
    )
    check("`early_stopping`: metric", rule.metric, kind)


def stop_reason(rule: EarlyStopping, best: Best) -> str:
    """Return one line on why a run stops.

    Example:
        >>> rule = EarlyStopping("validation/error", "min", patience=5)
        >>> stop_reason(rule, Best(cycle=300, value=0.125, waited=5))
        'stopped early: validation/error was best 5 points ago, at cycle 300 (0.1250)'
    """
    if not best.cycle:
        return f"stopped early: {rule.metric} was never a number"
    ago = "1 point" if best.waited == 1 else f"{best.waited} points"
    where = f"at cycle {best.cycle} ({best.value:#.4g})"
    return f"stopped early: {rule.metric} was best {ago} ago, {where}"
