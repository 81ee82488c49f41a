"""Early stopping: a rule as a value, and what it has seen as plain numbers."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

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

    The metric is compared wherever it is recorded: a score of the validation at every
    validation, a mean metric at every log point. A value is an improvement if it is
    better than the best one so far by more than `min_delta`; NaN never is. The run
    stops after `patience` points in a row without an improvement, and that point is
    its last log point and validation.

    `flax.training.early_stopping.EarlyStopping` stops one point later: its patience of
    `n` is `patience=n + 1` here.

    Attributes:
        metric: A name as loggers and the history have it: `"validation/<score>"`, or a
            mean metric that is a scalar, such as `"classifier/loss"`.
        mode: `"min"` if smaller is better, `"max"` if larger is.
        patience: The number of points, at least 1.
        min_delta: What an improvement exceeds, in units of the metric, at least 0.
        restore_best: Whether the state of the best point is returned, whether the run
            stopped early or not; else the last one is. If the metric was never a
            number, there is no best point, and the last state is returned.

    Raises:
        TypeError: If an attribute is of a wrong kind.
        ValueError: If an attribute is wrong.

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
        """Whether the metric reads as a score of the validation."""
        return self.metric.startswith("validation/")


class Best(NamedTuple):
    """What a rule has seen: plain numbers, which JSON can hold.

    Attributes:
        cycle: Where the best value was seen; 0 while there is none.
        value: The best value; NaN while there is none.
        waited: The number of points since, which were no improvement.
    """

    cycle: int = 0
    value: float = math.nan
    waited: int = 0


def update(rule: EarlyStopping, best: Best, cycle: int, value: float) -> Best:
    """Return what a rule has seen after one more point; a pure function.

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


def check_rule(rule: EarlyStopping, problems: Iterable[str], validated: bool) -> None:
    """Raise ValueError if nothing in a run can record the metric of a rule."""
    known = sorted([*problems, *["validation"] * validated])
    hint = "" if validated else "Scores need a function as `validation`."
    kind = Kind(f"a metric of one of {known}", lambda x: x.split("/")[0] in known)
    check("`early_stopping`: metric", rule.metric, kind, hint)


def check_recorded(rule: EarlyStopping, recorded: Iterable[str]) -> None:
    """Raise ValueError if the metric of a rule is not among the scalars recorded."""
    names = sorted(name for name in recorded if "/" in name)
    kind = Kind(f"a scalar that is recorded, one of {names}", names.__contains__)
    check("`early_stopping`: metric", rule.metric, kind)


def stop_reason(rule: EarlyStopping, best: Best) -> str:
    """Return one line that says why a run stops.

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
