"""The picture of data_attribution.py: predictions, scores, and telling examples."""

from typing import Any, NamedTuple

import numpy as np
from _data import Pair
from _picture import mosaic, save


class Attribution(NamedTuple):
    """The derivatives of test losses, and the losses where examples were left out."""

    tau: np.ndarray  # [images, rows]
    kept: np.ndarray  # [subsets, rows], 0 where left out
    found: np.ndarray  # [subsets, images]
    rows: Pair
    images: Pair


def draw(tables: list[dict[str, Any]], one: Attribution, file: str) -> None:
    """Draw one test image of one run, and the first column of the tables."""
    names = ["test", "helps", "harms"]
    figure, axes = mosaic([["points", "bars", name] for name in names], [1.3, 1.3, 0.6])
    k = int(np.ptp(one.found, axis=0).argmax())  # the loss that changes most
    draw_points(axes["points"], (one.kept - 1) @ one.tau[k], one.found[:, k])
    draw_scores(axes["bars"], tables)
    order = one.tau[k].argsort()
    telling = [(one.images, k), (one.rows, order[0]), (one.rows, order[-1])]
    for name, ((images, labels), at) in zip(names, telling, strict=True):
        axes[name].imshow(images[at], cmap="gray_r")
        axes[name].set(xticks=[], yticks=[])
        axes[name].set_title(f"{name}: {labels[at]}", fontsize=11, pad=2)
    save(figure, file)


def draw_points(axes: Any, predicted: np.ndarray, found: np.ndarray) -> None:
    axes.scatter(predicted - predicted.mean(), found - found.mean(), s=16)
    axes.set(xlabel="predicted change", ylabel="true change")
    axes.set_title("loss of one test image", fontsize=12)


def draw_scores(axes: Any, tables: list[dict[str, Any]]) -> None:
    for at, name in enumerate(tables[0]):
        found = np.array([table[name][0] for table in tables])
        axes.barh(at, found.mean(), xerr=found.std(), height=0.45)
        axes.text(0.02, at + 0.27, f"{name}: {found.mean():.2f}", fontsize=11)
    axes.set(xlim=(0, 1.05), yticks=[], ylim=(-0.4, len(tables[0]) - 0.3))
    axes.set_title("LDS, 5 % left out", fontsize=12)
