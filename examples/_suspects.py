"""The picture of data_cleaning.py: suspects, weights and accuracies."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _data import Split
from _picture import band, mosaic, save

COLORS = ["tab:orange", "tab:green", "tab:purple", "tab:blue", "gray"]
RIGHT, WRONG = "tab:green", "tab:red"


NOTES = """
chosen: the best checkpoint on the clean images. "clean alone" trains on these, so it
        takes the last checkpoint. "both" trains on the noisy images and half of the
        clean ones, and chooses on the other half. Nothing is chosen on test images.
AUC:    how well the weights (mlox) or the losses (the others) of the noisy images
        separate correct labels from wrong ones, at the chosen checkpoint.
oracle: trained on the noisy images whose labels are correct."""


class Outcome(NamedTuple):
    """The results of a training at all checkpoints, and at the chosen one."""

    accuracy: np.ndarray  # [checkpoints], on the test images
    chosen: int
    trust: np.ndarray  # of each noisy image: its weight, or minus its loss
    auc: float  # how well trust separates correct labels from wrong ones


Runs = Sequence[dict[str, Outcome]]


def print_outcomes(runs: Runs) -> None:
    print(f"\n{'':15}{'test accuracy':^30}")
    print(f"{'trained on':15}{'last step':17}{'chosen':17}AUC")
    for name in runs[0]:
        found = [run[name] for run in runs]
        row = [(o.accuracy[-1], o.accuracy[o.chosen], o.auc) for o in found]
        cells = zip(np.mean(row, axis=0), np.std(row, axis=0), strict=True)
        print(f"{name:15}" + "    ".join(f"{m:.3f} ± {s:.3f}" for m, s in cells))
    print(NOTES)


def draw(split: Split, runs: Runs, steps: int, file: str) -> None:
    """Draw the least trusted images and the weights of one run, and all accuracies."""
    figure, axes = mosaic([["images", "weights"], ["images", "curves"]], [1.1, 1])
    trust = runs[0]["mlox"].trust
    draw_suspects(axes["images"], split, trust)
    draw_weights(axes["weights"], trust, split.noisy[1] == split.true)
    draw_curves(axes["curves"], runs, steps)
    save(figure, file)


def draw_suspects(axes: Any, split: Split, trust: np.ndarray) -> None:
    images, given = split.noisy
    suspects = trust.argsort()[:15]
    wrong = (given != split.true)[suspects].sum()
    axes.set_title(f"The 15 smallest weights:\n{wrong} of these labels are wrong")
    axes.axis("off")
    for place, i in enumerate(suspects):
        row, column = divmod(place, 5)
        cell = axes.inset_axes([column / 5, 1 - (row + 0.9) / 3, 0.17, 0.21])
        cell.imshow(images[i], cmap="gray_r")
        cell.set(xticks=[], yticks=[])
        color = RIGHT if given[i] == split.true[i] else WRONG
        name, true = split.names[given[i]], split.names[split.true[i]]
        cell.set_title(name, color=color, fontsize=12, pad=2)
        cell.set_xlabel(f"is {true}", fontsize=9, labelpad=1)


def draw_weights(axes: Any, trust: np.ndarray, right: np.ndarray) -> None:
    weights = trust / trust.max()
    both, bins = [weights[right], weights[~right]], np.linspace(0, 1, 31)
    label = ["correct label", "wrong label"]
    axes.hist(both, bins, stacked=True, color=[RIGHT, WRONG], label=label)
    axes.set(title="Learned weights", ylabel="images")
    axes.legend(fontsize=10)


def draw_curves(axes: Any, runs: Runs, steps: int) -> None:
    for name, color in zip(runs[0], COLORS, strict=True):
        curves = np.stack([run[name].accuracy for run in runs])
        at = np.linspace(0, steps, curves.shape[1] + 1)[1:]
        style = "--" if name == "oracle" else "-"
        band(axes, at, curves, name, color=color, ls=style)
    axes.set(title="Test accuracy", xlabel="steps", xlim=(0, steps))
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.5 * (high - low), high)  # room for the legend
    style = {"columnspacing": 1, "handlelength": 1.2}
    axes.legend(ncols=3, fontsize=9, loc="lower center", **style)
