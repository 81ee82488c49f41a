"""What a comparison is: a job, and the sides that do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """One side of a comparison.

    Attributes:
        name: What the table calls it: "mlox", "by hand", "Betty".
        environment: Where it runs, a name of `_environments.ENVIRONMENTS`. Sides of one
            environment share a process.
        module: The module of peers/ that builds it, "peers.maml_torchopt".
        settings: What it is told beside the settings of the job.
        at_most: The largest accepted ratio of mlox's processor time to its own.
        at_least: The least accepted ratio of its processor time to mlox's.
        remark: What a reader must know of this side, such as a floor.
        variables: Environment variables of its process, which is its own then;
            "{folder}" in one is a folder that lasts as long as the comparison.
    """

    name: str
    environment: str
    module: str
    settings: Mapping[str, Any] = {}
    at_most: float | None = None
    at_least: float | None = None
    remark: str = ""
    variables: Mapping[str, str] = {}


class Comparison(NamedTuple):
    """A job in several libraries.

    Attributes:
        group: The heading that it stands under, such as "Meta-Weight-Net".
        job: The job and the method, such as "MLP, DARTS".
        given: Return the arrays that all sides start from, and take batches from.
        settings: What all sides are told, as JSON holds it.
        parts: The sides; the first, mlox where it takes part, is that of the ratios.
        steps: The upper steps after which outcomes are compared.
        tolerance: The largest accepted difference of an outcome, relative to the
            largest entry of each array.
        length: The upper steps of one timed sample.
        quick: Whether `--quick` includes it.
    """

    group: str
    job: str
    given: Callable[[], Mapping[str, np.ndarray]]
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]
    steps: int
    tolerance: float
    length: int
    quick: bool = False
