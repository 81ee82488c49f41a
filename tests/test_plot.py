"""Pictures: which lines, with which values, labels and scales; never pixels."""

import builtins
import dataclasses
import itertools
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colors, pyplot

import mlox
from mlox._check.comparison import Candidate
from mlox.plot._axes import COLORS, look_of

from .small import BATCH, pair, run_engine

HISTORY = {
    "cycle": np.array([10, 20, 30]),
    "fit/loss": np.array([0.5, 0.25, 0.125]),
    "penalty/loss": np.array([2.0, 1.0, 0.5]),
    "penalty/fit/gap": np.array([0.1, -0.01, 0.0]),
    "penalty/fit/residual": np.array([1e-3, 1e-4, 1e-5]),
    "validation/cycle": np.array([15, 30]),
    "validation/accuracy": np.array([0.5, 0.75]),
}
ROWS = tuple(
    Candidate("fit", name, 1.0, 1.0, error, seconds, memory, None)
    for name, error, seconds, memory in [
        ("cg", 1e-6, 2e-3, 8.0),
        ("sama", 0.8, 1e-3, None),
    ]
)
TABLE = mlox.Comparison("penalty", "exact", ROWS)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_history_draws_losses_over_cycles():
    ax = mlox.plot.history(HISTORY)
    first, second = ax.get_lines()
    assert labels(ax) == ["fit/loss", "penalty/loss"]
    np.testing.assert_array_equal(first.get_xdata(), HISTORY["cycle"])
    np.testing.assert_array_equal(second.get_ydata(), HISTORY["penalty/loss"])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == (
        "cycle",
        "loss",
        "linear",
    )


def test_history_draws_scores_over_their_own_cycles():
    ax = mlox.plot.history(HISTORY, "validation/accuracy")
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [15, 30])
    assert ax.get_ylabel() == "validation/accuracy"
    assert ax.get_legend() is None


def test_history_draws_a_band_when_a_metric_has_axes():
    tasks = jnp.asarray([[1.0, 3.0], [0.01, 0.03]])
    ax = mlox.plot.history({"cycle": [1, 2], "fit/loss": tasks})
    (line,), (band,) = ax.get_lines(), ax.collections
    np.testing.assert_allclose(line.get_ydata(), [2.0, 0.02], rtol=1e-6)
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [0.01, 3.0], rtol=1e-6)
    assert ax.get_yscale() == "log"


def test_history_marks_the_best_cycle_and_draws_on_given_axes():
    _, given = pyplot.subplots()
    ax = mlox.plot.history({**HISTORY, "best_cycle": np.asarray(20)}, ax=given)
    assert ax is given
    assert labels(ax)[-1] == "best: cycle 20"
    assert ax.get_lines()[-1].get_xdata()[0] == 20


def test_history_counts_rows_when_there_are_no_cycles():
    ax = mlox.plot.history({"_x/$a$": [3.0, 2.0], "y": [1.0, np.nan]})
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [1, 2])
    assert labels(ax) == [r" _x/\$a\$", "y"]


def test_health_draws_gap_and_residual_of_each_edge_on_a_logarithmic_axis():
    ax = mlox.plot.health(HISTORY)
    gap, residual = ax.get_lines()
    assert ax.get_yscale() == "log"
    assert labels(ax) == [
        "penalty/fit gap",
        "penalty/fit residual",
        "open: negative",
    ]
    np.testing.assert_array_equal(gap.get_ydata(), [0.1, 0.01, 1e-12])
    assert gap.get_color() == residual.get_color()
    assert gap.get_linestyle() != residual.get_linestyle()
    filled = [face[3] for face in ax.collections[0].get_facecolors()]
    assert [bool(alpha) for alpha in filled] == [True, False, True]


@pytest.mark.parametrize("metrics", ["all", "last"])
def test_pictures_take_the_history_of_a_run(metrics):
    data = {"fit": [BATCH], "penalty": None}
    _, history = run_engine(pair({"method": mlox.Implicit()}, metrics=metrics), data)
    assert labels(mlox.plot.history(history)) == ["fit/loss", "penalty/loss"]
    assert "penalty/fit gap" in labels(mlox.plot.health(history))


def test_weights_draw_the_shares_of_each_group():
    ax = mlox.plot.weights(jnp.asarray([0.0, 0.5, 1.0, 1.0]), [True, False, True, True])
    assert labels(ax) == ["False: 1, mean 0.5", "True: 3, mean 0.667"]
    for shape in ax.patches:
        assert shape.get_xy()[:, 1].max() in (1.0, pytest.approx(2 / 3))
    means = [line.get_xdata()[0] for line in ax.get_lines()]
    np.testing.assert_allclose(means, [0.5, 2 / 3], rtol=1e-6)


def test_comparison_draws_time_against_error():
    ax = mlox.plot.comparison(TABLE)
    points = [each.get_offsets()[0].tolist() for each in ax.collections]
    assert points == [[2.0, 1e-6], [1.0, 0.8]]
    assert labels(ax) == ["cg", "sama"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    slow = dataclasses.replace(ROWS[0], seconds=1.0)
    ax = mlox.plot.comparison(mlox.Comparison("penalty", "exact", (*ROWS, slow)))
    assert ax.get_xscale() == "log"


def test_graph_draws_every_box_and_edge_once_and_all_texts_inside():
    ax = mlox.plot.graph(pair({"method": mlox.Implicit(mlox.CG(5))}))
    ax.figure.canvas.draw()
    gids = [patch.get_gid() for patch in ax.patches if patch.get_gid()]
    assert sorted(gids) == [
        "fit",
        "l2u: fit → penalty",
        "penalty",
        "u2l: penalty → fit",
    ]
    boxes = {p.get_gid(): p.get_path().get_extents() for p in ax.patches}
    (low, high), (bottom, top) = ax.get_xlim(), sorted(ax.get_ylim())
    texts = [p for p in ax.patches if p.get_label().startswith("text: ")]
    assert "text: Implicit(CG(iterations=5))" in [p.get_label() for p in texts]
    extents = [p.get_path().get_extents() for p in texts]
    assert all(low <= e.x0 and e.x1 <= high for e in extents)
    assert all(bottom <= e.y0 and e.y1 <= top for e in extents)
    for a, b in itertools.combinations(extents, 2):
        assert not a.overlaps(b)
    assert boxes["penalty"].y1 < boxes["fit"].y0 or boxes["fit"].y0 > 0


def test_colors_stand_out_from_white_and_dark_pages_and_looks_differ():
    def luminance(color):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in colors.to_rgb(color)
        ]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for color in COLORS:
        light = luminance(color) + 0.05
        assert 1.05 / light > 3.0, color
        assert light / (luminance("#121212") + 0.05) > 3.0, color
    assert len({look_of(number) for number in range(24)}) == 24


def test_picture_says_what_to_install_when_matplotlib_is_missing(monkeypatch):
    genuine = builtins.__import__

    def without(name, *args):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module", name="matplotlib")
        return genuine(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"plot.history needs matplotlib.*pip install"
    ):
        mlox.plot.history(HISTORY)


@pytest.mark.slow
def test_import_of_mlox_does_not_load_matplotlib():
    code = "import mlox, sys; mlox.plot.history; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_takes_trees_of_groups_and_almost_equal_weights():
    one = np.float64(0.7)
    weights = {"a": np.array([one, np.nextafter(one, 1)]), "b": np.full(3, one)}
    groups = {"a": np.array([True, False]), "b": np.ones(3, bool)}
    ax = mlox.plot.weights(weights, groups)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 2
    assert labels[0].startswith("False")
