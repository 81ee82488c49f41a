"""Choose settings: the same random search for every method, on seeds of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import jobs
import numpy as np
import runs
from programs import Method, Rates

SETTINGS = 16
SEEDS = (1000, 1001)  # reported runs have the seeds 0, 1, ...
# Settings of the three data cleanings are chosen on one of them.
TUNED_ON = {"cleaning_0.5": "cleaning_0.7", "cleaning_0.9": "cleaning_0.7"}


class Setting(NamedTuple):
    """What is chosen for a method on a job.

    Attributes:
        step: The step length of the lower, and of a multiplier that makes steps.
        rate: The step length of the upper.
        decay: Both fall like 1 / (k + 1)^decay in the k-th step of the upper.
        option: What else the method has, see its table.
        value: The mean value function at the end of the runs that chose it.
    """

    step: float
    rate: float
    decay: float
    option: Any = None
    value: float = float("nan")

    @property
    def rates(self) -> Rates:
        """The step lengths."""
        return Rates(self.step, self.rate, self.decay)


def draw_settings(job: jobs.Job, method: Method) -> list[Setting]:
    """Draw settings: the same step lengths for every method of a job."""
    generator = np.random.default_rng(SEEDS[0])
    least, most = np.log10(job.rates)
    each = SETTINGS // len(job.steps)
    found = []
    for step, option in zip(job.steps, method.options, strict=True):
        # One draw in each part of the range, so that no method is out of luck.
        places = (np.arange(each) + generator.random(each)) / each
        decays = generator.permutation(np.arange(each) % 2) / 2
        for place, decay in zip(places, decays, strict=True):
            rate = float(f"{10 ** (least + place * (most - least)):.2g}")
            decay = float(decay) if method.decay is None else method.decay
            found.append(Setting(step, rate, decay, option))
    return found


def tune(job: jobs.Job, method: Method) -> Setting:
    """Return the setting with the least value function at the end, in the mean."""
    settings = draw_settings(job, method)
    alike = not method.by_step and len(set(method.options)) == 1
    groups = [settings] if alike else _grouped(settings)
    found: list[Setting] = []
    for group in groups:
        program = method.make(job, group[0].step, group[0].option)
        many = Rates(*map(np.array, zip(*(s.rates for s in group), strict=True)))
        ends = runs.run_many(job, program, many, job.trial, SEEDS)
        values = np.mean([runs.measure(job, *end)[0] for end in ends], axis=0)
        found += [
            s._replace(value=float(v)) for s, v in zip(group, values, strict=True)
        ]
    return best_of(found)


def best_of(found: list[Setting]) -> Setting:
    """Return the setting with the least finite value."""
    return min(found, key=lambda s: s.value if np.isfinite(s.value) else np.inf)


def _grouped(settings: list[Setting]) -> list[list[Setting]]:
    """Return the settings in groups of one step length and option."""
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.step, setting.option), []).append(setting)
    return list(groups.values())


def describe(job: jobs.Job) -> dict[str, Any]:
    """Return how settings were chosen, for the file of results."""
    return {
        "settings": SETTINGS,
        "seeds": SEEDS,
        "on": TUNED_ON.get(job.name, job.name),
        "by": "least value function at the end, mean over seeds",
    }
