"""The table and the picture of noisy_reviews.py: weights, accuracies and suspects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _picture import COLORS, panels, save
from _program import print_table
from _texts import Texts

COLUMNS = ["trained on", "test, last step", "test, chosen", "AUC"]
NOTES = """
chosen: the best checkpoint on clean texts that are not trained on. "clean alone" has
        none left and takes the last. "both" trains on the noisy texts and half of the
        clean ones. "clean, noisy", "small losses" and "mlox" train on half of the
        clean texts first, then on the noisy ones: all of them; those with the smallest
        losses of a batch (a fraction of 0.5, 0.65 or 0.8, chosen on clean texts); or
        weighted. Nothing is chosen on test texts.
AUC:    how well the weights (mlox) or the losses (the others) of the noisy texts
        separate correct labels from wrong ones, at the chosen checkpoint.
oracle: trained on the noisy texts whose labels are correct."""


class Outcome(NamedTuple):
    row: np.ndarray  # accuracy on test texts at the last and the chosen checkpoint, AUC
    judged: float  # accuracy of the chosen checkpoint where it was chosen
    trust: Any  # of each noisy text: its weight, or minus its loss
    last: Any = None  # the parameters at the end


Runs = Sequence[dict[str, Outcome]]


def print_outcomes(runs: Runs, split: Texts, names: list[str]) -> None:
    print_table(COLUMNS, [{k: o.row for k, o in run.items()} for run in runs], 15)
    print(NOTES)
    print("\nThe smallest weights of the first seed:")
    for i in np.argsort(np.asarray(runs[0]["mlox"].trust))[:6]:
        given, true = split.noisy[1][i], split.true[i]
        mark = "wrong" if given != true else "right"
        text = split.texts[i]
        short = text if len(text) <= 60 else text[:57] + "..."
        print(f"  {names[given]:9}({mark})  {short}")


def draw(runs: Runs, split: Texts, file: str) -> None:
    """Draw the weights of the first seed, and all accuracies."""
    figure, (left, bars) = panels(1, 2)
    trust, right = np.asarray(runs[0]["mlox"].trust), split.noisy[1] == split.true
    weights = trust / trust.max()
    both, bins = [weights[right], weights[~right]], np.linspace(0, 1, 31)
    label = ["correct label", "wrong label"]
    left.hist(both, bins, stacked=True, color=[COLORS[2], COLORS[4]], label=label)
    left.set(title="Learned weights", xlabel="weight / largest", ylabel="texts")
    left.legend(fontsize=10)
    found = np.array([[o.row[1] for o in run.values()] for run in runs])
    mean, std = found.mean(axis=0), found.std(axis=0)
    colors = [COLORS[0] if name == "mlox" else COLORS[1] for name in runs[0]]
    bars.barh(list(runs[0]), mean, xerr=std, color=colors)
    bars.set(title="Test accuracy", xlim=(mean.min() - 0.05, mean.max() + 0.05))
    bars.invert_yaxis()
    save(figure, file)
