"""MAML, first-order MAML and implicit MAML, for the regression of sinusoids.

A task is to learn a * sin(x + p) from 10 points, with a in [0.1, 5], p in [0, pi] and x
in [-5, 5] (Finn, Abbeel and Levine, ICML 2017). The upper problem learns the initial
parameters, init, such that a few steps on a task give parameters w that are good at
other points:

    min over init   mean over tasks t of error_t(w_t(init)), on 10 other points of t
    such that       w_t(init) = the result of 5 steps on error_t from init        (MAML)
                    w_t(init) = argmin of error_t(w) + 5 |w - init|^2    (implicit MAML)

The lower problem holds 25 tasks, and its arguments describe one of them; `reset` sets
its parameters to init before each inner loop. The upper differentiates the steps
(`Unrolled`), ignores them (`Detached`, first-order MAML), or differentiates the argmin
(`Implicit`, Rajeswaran et al., NeurIPS 2019).

Tasks are drawn inside the compiled step. All steps of an inner loop and the upper step
after it must use the same tasks, so the key of a task is its cycle and its index.

    pip install "mlox[examples]"
    python examples/maml.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _picture import band, panels, save
from _program import parsed, parser, print_table
from _sinusoids import SHOWN, Points, draw, drawn, error, errors_of, network

import mlox

TASKS = 25


class Way(NamedTuple):  # noqa: D101
    method: Any  # None: one fit to the points of all tasks
    tx: optax.GradientTransformation  # of the steps on a task
    steps: int = 5
    pull: float = 0.0  # towards init
    rate: float = 3e-3  # of Adam on init, at the start

    def loss(self, params: Any, points: Points, init: Any) -> Any:
        """Return the loss of one task."""
        away = jax.tree.map(jnp.subtract, params, init)
        pull = self.pull / 2 * optax.tree.norm(away, squared=True)
        return error(params, points) + pull


# The argmin does not depend on the step size. So unlike MAML, implicit MAML does not
# keep errors from becoming too steep for the steps, which are short and clipped. They
# end where the Hessian is not definite, so two CG iterations are better than five.
careful = optax.chain(optax.clip(5.0), optax.sgd(3e-3))
WAYS = {
    "joint training": Way(None, careful),
    "MAML": Way(mlox.Unrolled(), optax.sgd(0.01)),
    "first-order MAML": Way(mlox.Detached(), optax.sgd(0.01)),
    "implicit MAML": Way(mlox.Implicit(mlox.CG(2)), careful, 16, pull=10.0, rate=1e-3),
}


def build(way: Way, cycles: int, seed: int) -> mlox.Engine:
    first = 1_000_000 * seed  # other tasks for each seed

    def joint_loss(params: Any, batch: Points, ctx: mlox.Context) -> Any:
        return jax.vmap(error, (None, 0))(params, batch).mean()

    def init_loss(params: Any, batch: Points, ctx: mlox.Context) -> Any:
        return jax.vmap(error)(ctx.tasks.params, batch).mean()

    def task_loss(params: Any, batch: Points, ctx: mlox.Context) -> Any:
        return way.loss(params, batch, ctx.init.params)

    init = mlox.Problem.create(
        name="init",
        params=network.init(jax.random.key(seed), jnp.zeros(1)),
        tx=optax.adam(optax.cosine_decay_schedule(way.rate, cycles)),
        loss_fn=init_loss if way.method else joint_loss,
        sample=lambda params, ctx: drawn(first + ctx.step, TASKS)[1],
    )
    if not way.method:
        return mlox.Engine([init])
    tasks = mlox.Problem.create(
        name="tasks",
        params=init.params,
        tx=way.tx,
        loss_fn=task_loss,
        method=way.method,
        unroll_steps=way.steps,
        tasks=TASKS,
        reset=lambda params, ctx: ctx.init.params,
        sample=lambda params, ctx: draw(first + ctx.step // way.steps, ctx.task_index)[
            0
        ],
    )
    return mlox.Engine([init, tasks], u2l={init: [tasks]}, l2u={tasks: [init]})


def tuned(way: Way, init: Any, tasks: int) -> Way:
    """Choose the rate of the steps on a task, by the errors on other tasks."""
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    ways = [way._replace(tx=optax.chain(optax.clip(5.0), optax.sgd(r))) for r in rates]
    score = lambda way: errors_of(init, way.loss, way.tx, tasks, 2**31 - 2)[5]
    return min(ways, key=score)


def fit_all(seed: int, cycles: int, tasks: int) -> dict[str, np.ndarray]:
    """Return the errors on new tasks after each number of steps."""
    found = {}
    for name, way in WAYS.items():
        engine = build(way, cycles, seed)
        state = engine.init()
        if not way.method:
            found["no training"] = errors_of(
                state["init"].params, way.loss, way.tx, tasks
            )
        each = min(cycles, 250)
        state, _ = engine.run(
            state, None, cycles, cycles_per_dispatch=each, loggers=(), progress=False
        )
        init = state["init"].params
        way = way if way.method else tuned(way, init, tasks)
        found[name] = errors_of(init, way.loss, way.tx, tasks)
    return {name: np.asarray(errors) for name, errors in found.items()}


def main() -> None:
    options = parser("MAML with mlox.")
    options.add_argument("--cycles", type=int, default=1500, help="steps of init")
    options.add_argument("--tasks", type=int, default=600, help="to test on")
    args = parsed(options, cycles=10_000)
    runs = [fit_all(seed, args.cycles, args.tasks) for seed in range(args.seeds)]
    print(f"Mean squared error on {args.tasks} new tasks after some steps")
    chosen = [{k: errors[list(SHOWN)] for k, errors in run.items()} for run in runs]
    print_table(["after steps", *map(str, SHOWN)], chosen)
    figure, axes = panels()
    for name in runs[0]:
        curves = np.stack([run[name] for run in runs])
        band(axes, np.arange(curves.shape[1]), curves, name, marker="o", ms=4)
    axes.set(xlabel="steps on a new task", title="Squared error", ylim=(0, 5))
    axes.legend()
    save(figure, args.out)


if __name__ == "__main__":
    main()
