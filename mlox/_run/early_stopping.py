"""Early stopping: a rule as a value, and what it has seen as plain numbers."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stop a run when a metric has not improved for a while.

    The metric is judged wherever it is recorded: a score of the validation at every
    validation, a mean metric at every log point. A value is an improvement if it is
    better than the best one so far by more than `min_delta`; NaN never is. The run
    stops after `patience` points in a row without an improvement, and that point is
    its last log point and validation.

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
        if not isinstance(self.metric, str) or "/" not in self.metric:
            raise ValueError(
                f"EarlyStopping: metric is {self.metric!r}; expected the name of a "
                "metric, e.g. 'validation/accuracy' or 'classifier/loss'."
            )
        if self.mode not in ("min", "max"):
            raise ValueError(
                f"EarlyStopping: mode is {self.mode!r}; expected 'min' if smaller is "
                "better, or 'max' if larger is."
            )
        if not _is_number(self.patience, int | np.integer) or self.patience < 1:
            raise ValueError(
                f"EarlyStopping: patience is {self.patience!r}; expected a positive "
                "int, the number of points without an improvement."
            )
        number = _is_number(self.min_delta, int | float | np.integer | np.floating)
        if not number or not 0 <= self.min_delta < math.inf:
            raise ValueError(
                f"EarlyStopping: min_delta is {self.min_delta!r}; expected a finite "
                "number of at least 0, in units of the metric."
            )
        if not isinstance(self.restore_best, bool):
            raise TypeError(
                f"EarlyStopping: restore_best is {self.restore_best!r}; expected True "
                "or False."
            )

    @property
    def is_score(self) -> bool:
        """Whether the metric reads as a score of the validation."""
        return self.metric.startswith("validation/")


class Best(NamedTuple):
    """What a rule has seen: plain numbers, which JSON can hold.

    Attributes:
        cycle: Where the best value was seen; 0 while there is none.
        value: The best value; NaN while there is none.
        waited: The points since, which were no improvement.
    """

    cycle: int = 0
    value: float = math.nan
    waited: int = 0


def update(rule: EarlyStopping, best: Best, cycle: int, value: float) -> Best:
    """Judge one more point: a pure function.

    Args:
        rule: What counts as an improvement.
        best: What was seen before.
        cycle: The number of cycles behind the point.
        value: The metric there.

    Returns:
        What has been seen now; the run should stop once `waited` is `rule.patience`.

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
    rule: EarlyStopping | None, problems: Iterable[str], validated: bool
) -> None:
    """Refuse what is no rule, or one whose metric nothing can record.

    Args:
        rule: What `run` was given.
        problems: The names of all problems.
        validated: Whether there is a validation.

    Raises:
        TypeError: If it is no `EarlyStopping`.
        ValueError: If its metric is a score without a validation, or a metric of a
            problem that there is not.
    """
    if rule is None:
        return
    if not isinstance(rule, EarlyStopping):
        raise TypeError(
            f"`early_stopping` must be a mlox.EarlyStopping, got "
            f"{type(rule).__name__}. Pass e.g. "
            "mlox.EarlyStopping('validation/accuracy', mode='max')."
        )
    known = sorted(problems)
    if rule.metric.split("/")[0] in known or (validated and rule.is_score):
        return
    if rule.is_score:
        raise ValueError(
            f"`early_stopping` judges {rule.metric!r}, but there is no `validation`: "
            "pass a function from a state to a dict of scalars."
        )
    raise ValueError(
        f"`early_stopping` judges {rule.metric!r}, but no problem is called "
        f"{rule.metric.split('/')[0]!r}. Known: {known}, and 'validation' for the "
        "scores of `validation`."
    )


def check_metric(rule: EarlyStopping, recorded: Iterable[str]) -> None:
    """Refuse a metric that is not among those that were recorded."""
    known = sorted(recorded)
    if rule.metric not in known:
        raise ValueError(
            f"`early_stopping` judges {rule.metric!r}, but no scalar is recorded under "
            f"this name. There are {known}."
        )


def value_of(rule: EarlyStopping, scalars: Mapping[str, float]) -> float:
    """Pick the metric among the scalars of a point, or say which there are."""
    check_metric(rule, (name for name in scalars if "/" in name))
    return scalars[rule.metric]


def reason(rule: EarlyStopping, best: Best) -> str:
    """Say in one line why a run stops, for people.

    Example:
        >>> rule = EarlyStopping("validation/error", "min", patience=5)
        >>> reason(rule, Best(cycle=300, value=0.125, waited=5))
        'stopped early: validation/error was best 5 points ago, at cycle 300 (0.1250)'
    """
    if not best.cycle:
        return f"stopped early: {rule.metric} was never a number"
    ago = "1 point" if best.waited == 1 else f"{best.waited} points"
    where = f"at cycle {best.cycle} ({best.value:#.4g})"
    return f"stopped early: {rule.metric} was best {ago} ago, {where}"


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
