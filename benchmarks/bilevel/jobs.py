"""The jobs: costs, data, starts, budgets, and the exact value function beside them.

They are those of the public bilevel benchmark (Dagreou et al., A Framework for Bilevel
Optimization that Enables Stochastic and Global Variance Reduction Algorithms, NeurIPS
2022; github.com/benchopt/benchmark_bilevel): y minimizes the lower cost g(y, x), and x
the value function F(x) = f(y*(x), x). Nothing in this file needs mlox, so that other
programs can be run on the same jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import exact
import jax
import jax.numpy as jnp
import numpy as np
import rows

Cost = Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array]
REGULARIZATION = 0.2  # of data cleaning


@dataclass(frozen=True, eq=False)
class Job:
    """A bilevel problem whose costs are means over rows.

    Attributes:
        name: Of the file with its results.
        lower: g(y, x, batch) -> mean of the lower cost over the rows of a batch.
        upper: f(y, x, batch) -> mean of the upper cost over the rows of a batch.
        y: Where the lower starts.
        x: Where the upper starts.
        data: {"lower": rows, "upper": rows}, dicts of arrays. The batches are blocks of
            successive rows, and have an entry "start", the first one's number.
        batch: The rows of a batch; it divides the number of rows.
        steps: The step lengths of the lower among which settings are drawn.
        rates: The least and largest step length of the upper.
        budget: The gradient evaluations of a run.
        trial: Those of a run that settings are chosen by.
        measure: (many x, guesses of y) -> (values, norms, solutions): F and the norm of
            its gradient, computed exactly.
    """

    name: str
    lower: Cost
    upper: Cost
    y: np.ndarray
    x: np.ndarray
    data: dict[str, dict[str, np.ndarray]]
    batch: int
    steps: tuple[float, ...]
    rates: tuple[float, float]
    budget: int
    trial: int
    measure: exact.Measure

    def blocks(self, problem: str) -> dict[str, np.ndarray]:
        """Return the rows of a problem in blocks, with the number of the first row."""
        found = {
            key: value.reshape(-1, self.batch, *value.shape[1:])
            for key, value in self.data[problem].items()
        }
        number = len(next(iter(found.values())))
        return {**found, "start": self.batch * np.arange(number, dtype=np.int32)}


def ridge(budget: int = 60_000) -> Job:
    """Select one penalty per feature of a least-squares fit: progress of diabetes."""
    data = rows.diabetes()

    def misfit(y: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        return 0.5 * jnp.mean((batch["inputs"] @ y - batch["target"]) ** 2)

    width = data["lower"]["inputs"].shape[1]
    return Job(
        name="ridge",
        lower=lambda y, x, batch: misfit(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2),
        upper=lambda y, x, batch: misfit(y, batch),
        y=np.zeros(width, np.float32),
        x=np.zeros(width, np.float32),
        data=data,
        batch=16,
        steps=(0.003, 0.01, 0.03, 0.1),
        rates=(0.3, 300.0),
        budget=budget,
        trial=budget,
        measure=exact.ridge(data),
    )


def logistic(data: str = "digits", budget: int = 60_000) -> Job:
    """Select one penalty per feature of a logistic regression."""
    readers = {"digits": rows.digits, "ijcnn1": rows.ijcnn1, "covtype": rows.covtype}
    found = readers[data]()

    def misfit(y: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        margin = batch["target"] * (batch["inputs"] @ y)
        return jnp.mean(jax.nn.softplus(-margin))

    width = found["lower"]["inputs"].shape[1]
    return Job(
        name="logistic" if data == "digits" else data,
        lower=lambda y, x, batch: misfit(y, batch) + 0.5 * jnp.sum(jnp.exp(x) * y**2),
        upper=lambda y, x, batch: misfit(y, batch),
        y=np.zeros(width, np.float32),
        x=np.zeros(width, np.float32),
        data=found,
        batch=32 if data == "digits" else 64,
        steps=(0.03, 0.1, 0.3, 1.0),
        rates=(0.1, 100.0),
        budget=budget,
        trial=budget,
        measure=exact.logistic(found),
    )


def cleaning(corruption: float, budget: int = 10_000, images: int = 25_000) -> Job:
    """Weight training images of which a part has random labels; a linear softmax."""
    data = rows.images(corruption, images)

    def losses(y: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        scores = batch["inputs"] @ y
        target = jnp.take_along_axis(scores, batch["target"][:, None], 1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - target

    def lower(y: jax.Array, x: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        each = losses(y, batch)
        here = jax.lax.dynamic_slice_in_dim(x, batch["start"], len(each))
        weighted = jnp.mean(jax.nn.sigmoid(here) * each)
        return weighted + REGULARIZATION * jnp.sum(y**2)

    number, width = data["lower"]["inputs"].shape
    return Job(
        name=f"cleaning_{corruption}",
        lower=lower,
        upper=lambda y, x, batch: jnp.mean(losses(y, batch)),
        y=np.zeros((width, 10), np.float32),
        x=np.full(number, -2.0, np.float32),
        data=data,
        batch=100 if number % 100 == 0 else 10,
        steps=(0.003, 0.01, 0.03, 0.1),
        rates=(3.0, 30_000.0),
        budget=budget,
        trial=budget // 4,
        measure=exact.cleaning(data, REGULARIZATION),
    )


def quadratic(budget: int = 60_000, samples: int = 4096) -> Job:
    """Minimize random quadratics: 100 lower and 10 upper parameters."""
    data = rows.quadratics(samples, 1024)

    def cost(y: jax.Array, x: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        squares = (batch["a"] @ y) ** 2 + (batch["b"] @ x) ** 2
        cross = (batch["u"] @ x) * (batch["v"] @ y)
        return jnp.mean(squares / 2 + cross + batch["p"] @ y + batch["q"] @ x)

    width_y, width_x = (data["lower"][key].shape[1] for key in "ab")
    return Job(
        name="quadratic",
        lower=cost,
        upper=cost,
        y=np.zeros(width_y, np.float32),
        x=np.full(width_x, -2.0, np.float32),
        data=data,
        batch=64,
        steps=(0.01, 0.03, 0.1, 0.3),
        rates=(0.003, 3.0),
        budget=budget,
        trial=budget,
        measure=exact.quadratic(data),
    )


JOBS: dict[str, Callable[..., Job]] = {
    "ridge": ridge,
    "logistic": logistic,
    "quadratic": quadratic,
    "cleaning_0.5": lambda **options: cleaning(0.5, **options),
    "cleaning_0.7": lambda **options: cleaning(0.7, **options),
    "cleaning_0.9": lambda **options: cleaning(0.9, **options),
}
# Only with the original files, see rows.py.
LARGE: dict[str, Callable[..., Job]] = {
    name: lambda name=name, **options: logistic(name, **options)
    for name in ("ijcnn1", "covtype")
}


def describe(job: Job) -> dict[str, Any]:
    """Return the sizes of a job, for its file of results."""
    number = {key: len(next(iter(job.data[key].values()))) for key in job.data}
    return {
        "rows": number,
        "parameters": {"lower": int(job.y.size), "upper": int(job.x.size)},
        "batch": job.batch,
        "budget": job.budget,
        "trial": job.trial,
    }
