"""Bad inputs of pictures."""

from __future__ import annotations

import numpy as np

import mlox

from .case import Case, table

RUN = {"cycle": np.array([1, 2]), "fit/loss": np.ones(2)}


def cases() -> list[Case]:
    return [*_histories(), *_others()]


def _histories() -> list[Case]:
    history, health = mlox.plot.history, mlox.plot.health
    return table(
        "Plots of histories",
        [
            (
                "a pair of state and history",
                lambda _: history(({}, RUN)),  # type: ignore[arg-type]
                TypeError,
                "plot.history: history is .*; expected the history of a run, a dict",
            ),
            (
                "an unknown name",
                lambda _: history(RUN, ["fit/los"]),
                ValueError,
                r"plot.history: names are \['fit/los'\];.*\['fit/loss'\]",
            ),
            (
                "no name",
                lambda _: history(RUN, []),
                ValueError,
                r"plot.history: names are \[\];.*at least one",
            ),
            (
                "names=1",
                lambda _: history(RUN, 1),  # type: ignore[arg-type]
                TypeError,
                "plot.history: names is 1; expected a name or a list of names",
            ),
            (
                "a history without rows",
                lambda _: history({"cycle": np.zeros(0), "fit/loss": np.zeros(0)}),
                ValueError,
                "plot.history: 'fit/loss' has no rows; expected one for each logged",
            ),
            (
                "a history without metrics",
                lambda _: history({"cycle": np.zeros(0)}),
                ValueError,
                "plot.history: the history has no metrics.*Run",
            ),
            (
                "a metric of text",
                lambda _: history({"fit/loss": ["low", "lower"]}),
                ValueError,
                "plot.history: 'fit/loss' is .*; expected an array",
            ),
            (
                "a metric of another length",
                lambda _: history({**RUN, "fit/loss": np.ones(3)}),
                ValueError,
                "'fit/loss' has 3 rows, but 'cycle' has 2;.*one row for each",
            ),
            (
                "ax='left'",
                lambda _: history(RUN, ax="left"),
                TypeError,
                "plot.history: ax is 'left'; expected matplotlib axes",
            ),
            (
                "no gap and no residual",
                lambda _: health(RUN),
                ValueError,
                "plot.health: .*neither a gap nor a residual.*mlox.Implicit",
            ),
        ],
    )


def _others() -> list[Case]:
    weights = mlox.plot.weights
    return table(
        "Plots of weights, comparisons and graphs",
        [
            (
                "weights that are not finite",
                lambda _: weights(np.array([1.0, np.nan])),
                ValueError,
                r"plot.weights: weights are float64\[2\], of which 1 are not finite",
            ),
            (
                "no weights",
                lambda _: weights([]),
                ValueError,
                r"plot.weights: weights are \[\]; expected.*at least one finite number",
            ),
            (
                "groups of another length",
                lambda _: weights(np.ones(3), ["a", "b"]),
                ValueError,
                "plot.weights: groups are .*; expected 3 strings",
            ),
            (
                "numbers as groups",
                lambda _: weights(np.ones(2), np.ones(2)),
                ValueError,
                "plot.weights: groups are .*; expected 2 strings",
            ),
            (
                "rows of a comparison",
                lambda _: mlox.plot.comparison(()),  # type: ignore[arg-type]
                TypeError,
                r"plot.comparison: comparison is \(\); expected a mlox.Comparison",
            ),
            (
                "an empty comparison",
                lambda _: mlox.plot.comparison(mlox.Comparison("fit", "exact", ())),
                ValueError,
                "plot.comparison: the comparison of 'fit' has no method.*mlox.compare",
            ),
            (
                "a graph of a dict",
                lambda _: mlox.plot.graph({}),  # type: ignore[arg-type]
                TypeError,
                "plot.graph: engine is {}; expected a mlox.Engine",
            ),
        ],
    )
