"""The engine: a graph of problems, compiled into one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mlox._cycle.cycle import Cycle
from mlox._cycle.report import REPORTS
from mlox._data import stacking as _data
from mlox._engine.build import Edges, build_plan
from mlox._engine.constraints import warn_if_curved_inside
from mlox._engine.differentiate import Differentiation
from mlox._engine.draw import draw
from mlox._engine.evaluate import Evaluation
from mlox._engine.explain import explain, mermaid
from mlox._engine.first_updates import warn_if_first_updates_have_no_slope
from mlox._engine.html import to_html
from mlox._engine.jit import CompiledStep, jit_value
from mlox._engine.memory import warn_if_memory_is_reset
from mlox._engine.refine import warn_if_refined_on_samples
from mlox._engine.slopes import warn_if_slopes_are_infinite
from mlox._engine.steering import check_steering
from mlox._engine.step import Step
from mlox._engine.summary import summarize_engine
from mlox._engine.validation import (
    ONE_BATCH,
    check_donated,
    check_methods,
    check_problems,
    name_of_known,
)
from mlox._graph.graph import Graph
from mlox._hypergradient.memory import start_memories
from mlox._problem.problem import Problem
from mlox._problem.validation import as_key
from mlox._run.run import run
from mlox._sharding.layout import layout_of
from mlox._utils.fields import FLAG, check, one_of, optional
from mlox._utils.types import Batches, Metrics, PyTree, State


@dataclass(frozen=True, init=False, repr=False)
class Engine:
    """Compile a graph of problems into one step.

    Every problem k minimizes a cost C_k(theta_k, uppers, lowers). Along a u2l edge
    p -> c the cost of c reads theta_p, and the gradient of p flows through the answer
    (the best response) theta_c*(theta_p); along an l2u edge c -> p the cost of p reads
    that answer. A problem without lowers steps at every tick, another one when all its
    lowers have done their `unroll_steps`; one cycle is the largest period. The whole
    cycle is one traced function.

    Engines are frozen and hashable. Two are equal if their graphs, the kinds of their
    methods and their options are.

    Attributes:
        problems: The problems as they were given.
        cycle: The traced function and its plan.
        unroll_loops: See the argument.

    Args:
        problems: The problems, made by `Problem.create`.
        u2l: Upper -> lowers that read it; names, or the problems themselves.
        l2u: Lower -> uppers that read its answer.
        reads: Problem -> those that its loss reads as constants; see docs/games.md.
        coupling: "total": an implicit problem with responsive lowers (movers) answers
            to its total objective, which includes their response; exact at any depth.
            "direct": it answers to the partial gradient of its cost, the rule of Betty;
            cheaper, and biased for three levels and more.
        roll_back: Whether windows are look-aheads: after an upper has stepped, the
            problems below it are restored to the start of the window, and make one
            round under the new upper with the last batches of the window.
        unroll_loops: Whether loops over steps are unrolled. None: only if a loss has a
            convolution and the backend is the CPU, where XLA runs convolutions 11 to 30
            times slower inside a loop.
        telemetry: Whether steps report of what their gradients are made, as metrics:
            "upper/gradient_norm" and "upper/nonfinite_entries" (a count) of the whole,
            and if answers respond, "upper/direct_norm", "upper/lower/norm" and
            "upper/lower/cosine" of the direct part and of that through each answer,
            with the cosine between the two. Without it the program is the same as ever.
        metrics: Of which steps metrics are returned. "all": of every one. "last": of
            the last one of each problem in the cycle, with a leading axis of 1. "none":
            of the problems whose answer nobody reads; no loss of a lower is evaluated,
            nor a gap.

    Raises:
        TypeError: If an entry of `problems` or an edge is not a problem.
        ValueError: If l2u has a cycle, a u2l edge has no way back, periods do not
            divide each other, or a method cannot solve for the answers that it has to;
            the message names problem and edge.

    References:
        Choe et al., Betty: An Automatic Differentiation Library for Multilevel
        Optimization, ICLR 2023.

    Example:
        >>> import jax.numpy as jnp, optax, mlox
        >>> penalty = mlox.Problem.create(
        ...     name="penalty", params=jnp.zeros(()), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: (ctx.fit.params - 1.0) ** 2)
        >>> fit = mlox.Problem.create(
        ...     name="fit", params=jnp.zeros(()), tx=optax.sgd(0.1), unroll_steps=5,
        ...     loss_fn=lambda params, batch, ctx:
        ...         (params - 2.0) ** 2 + jnp.exp(ctx.penalty.params) * params ** 2)
        >>> engine = mlox.Engine(
        ...     [penalty, fit], u2l={"penalty": ["fit"]}, l2u={"fit": ["penalty"]})
        >>> state, history = engine.run(engine.init(), train_iters=200, progress=False,
        ...                             loggers=())
        >>> round(float(state["fit"].params), 3)
        1.0
    """

    problems: tuple[Problem, ...] = field(compare=False)
    cycle: Cycle
    unroll_loops: bool | None

    def __init__(
        self,
        problems: Sequence[Problem],
        u2l: Edges | None = None,
        l2u: Edges | None = None,
        reads: Edges | None = None,
        *,
        coupling: Literal["total", "direct"] = "total",
        roll_back: bool = False,
        unroll_loops: bool | None = None,
        telemetry: bool = False,
        metrics: Literal["all", "last", "none"] = "all",
    ) -> None:
        check_problems(problems)
        if coupling not in ("total", "direct"):
            raise ValueError(
                f"coupling is {coupling!r}; expected 'total' (exact at any depth) or "
                "'direct' (each problem takes its lowers as fixed)."
            )
        check("roll_back", roll_back, FLAG)
        check("unroll_loops", unroll_loops, optional(FLAG))
        check("telemetry", telemetry, FLAG)
        check("metrics", metrics, one_of(*REPORTS))
        plan = build_plan(problems, u2l, l2u, coupling == "total", reads)
        check_methods(plan, {p.name: p for p in problems})
        warn_if_slopes_are_infinite(plan, problems)
        warn_if_first_updates_have_no_slope(plan, problems)
        warn_if_refined_on_samples(plan, problems)
        warn_if_curved_inside(plan, problems)
        warn_if_memory_is_reset(plan, problems)
        check_steering(plan, problems)
        object.__setattr__(self, "problems", tuple(problems))
        report = REPORTS[metrics]
        cycle = Cycle(plan, bool(unroll_loops), roll_back, telemetry, report)
        object.__setattr__(self, "cycle", cycle)
        object.__setattr__(self, "unroll_loops", unroll_loops)

    @property
    def graph(self) -> Graph:
        """The graph of the problems."""
        return self.cycle.plan.graph

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the problems, in the order in which they were given."""
        return self.graph.names

    @property
    def steps_per_cycle(self) -> dict[str, int]:
        """The optimizer steps of each problem in one cycle."""
        return dict(self.graph.steps_per_cycle)

    @property
    def paths(self) -> dict[str, list[tuple[str, ...]]]:
        """The best-response paths of each problem, (name, ..., lower, name).

        One u2l edge down and l2u edges back up, written from the end. For people and
        tests: the engine computes the same sum without listing them.
        """
        return dict(self.graph.paths)

    def init(self) -> dict[str, Problem]:
        """Return the state of a new run: fresh copies of all problems by name."""
        check_donated({problem.name: problem for problem in self.problems})
        state = {
            problem.name: jax.tree.map(lambda x: jnp.array(x, copy=True), problem)
            for problem in self.problems
        }
        return start_memories(self.cycle.plan, state, lambda k, b: True)

    def step(
        self, state: State, batches: Batches
    ) -> tuple[dict[str, Problem], Metrics]:
        """Run one cycle: a pure function to jit, scan, vmap or shard.

        Args:
            state: {name: Problem}.
            batches: {name: pytree of arrays with a leading axis of
                `steps_per_cycle[name]`}, or None for a problem without data.

        Returns:
            The state after, of the same structure, and the metrics: a flat dict
            "problem/metric" -> array with a leading axis of `steps_per_cycle`. Solvers
            report "upper/lower/residual" and "upper/lower/iterations". For each block
            of implicit answers, named by its top, "upper/lower/gap" is about by how
            much the loss of the upper is larger than at the solved answer.

        Raises:
            ValueError: If the state or the batches do not fit the engine, or a loss
                does not return a loss; while tracing, before anything runs.

        Warns:
            UserWarning: If an edge carries no derivative, while tracing: a loss that
                does not read the neighbour, cuts its derivative or only adds it, or an
                answer whose own loss does not depend on it. The message names the edge
                and the remedy. An answer that is meant to be a constant is
                `mlox.Detached`.
        """
        after, metrics = self.traced(state, batches)
        return dict(after), metrics

    def compile(
        self, donate: bool = True, *, like: State | None = None
    ) -> CompiledStep:
        """Return `jax.jit` of the step.

        Args:
            donate: Whether the state that is returned reuses the buffers of the one
                that is passed, which cannot be used again: JAX then raises "Buffer has
                been deleted or donated", and the `repr` of its problems says "donated".
            like: A state on a mesh, see `mlox.shard`; the states that are returned are
                sharded like it.

        Returns:
            The jitted function; engines that are equal and have the same losses share
            what was compiled.

        Raises:
            TypeError: If `donate` is not a bool.
        """
        check("donate", donate, FLAG)
        return jit_value(self.traced, donate, layout_of(like))

    def hypergradient(
        self, state: State, batches: Batches, name: str | Problem
    ) -> tuple[jax.Array, PyTree]:
        """Return the total gradient of a problem's cost, without an update.

        dL/dtheta at fixed answers and multipliers, as `step` would use it at the first
        update of the problem in the cycle: its lowers run first. It can itself be
        differentiated. Jitted; engines that are equal and have the same losses share
        what was compiled.

        Args:
            state: {name: Problem}.
            batches: As for `step`.
            name: The problem, or its name.

        Returns:
            The loss, and a pytree like the problem's params.

        Raises:
            ValueError: If the problem is unknown, or as for `step`.
        """
        name = name_of_known("hypergradient", self.names, name)
        check_donated(state)
        differentiate = jit_value(Differentiation(self.traced, name), False, None)
        try:
            return differentiate(state, batches)
        except TypeError:  # `jax.jit` does not name the argument that is no array
            self.traced.check(state)
            self.traced.check_batches(state, batches)
            raise

    def evaluate(
        self,
        state: State,
        name: str | Problem,
        batch: PyTree,
        rng: jax.Array | int | None = None,
    ) -> dict[str, jax.Array]:
        """Evaluate the loss of one problem and its metrics, without an update.

        For validation: `ctx.train` is False, so that a loss can leave out dropout and
        use its running statistics. The neighbours are those of the state, and no
        mutable state changes. Jitted; engines that are equal and have the same losses
        share what was compiled.

        Args:
            state: {name: Problem}.
            name: The problem, or its name.
            batch: One batch of the problem, without the leading axis that `step` needs;
                None for a problem without data, or to sample a batch with `rng`.
            rng: The `ctx.rng` of the loss: a PRNG key, a seed, or None, also if the
                problem has its own key.

        Returns:
            {"loss": loss, and the other metrics of the loss by their names}.

        Raises:
            TypeError: If `rng` is neither a key, nor a seed, nor None, or the batch is
                an iterator.
            ValueError: If the problem is unknown, a leaf of the batch is not an array
                or lacks the axis of tasks, or the state does not fit.

        Example:
            >>> import jax.numpy as jnp, mlox, optax
            >>> def loss(params, batch, ctx):
            ...     bias, decay = params - batch, 0.1 if ctx.train else 0.0
            ...     return {"loss": bias**2 + decay * params**2, "bias": bias}
            >>> problem = mlox.Problem.create(
            ...     name="x", params=jnp.ones(()), tx=optax.sgd(0.25), loss_fn=loss)
            >>> engine = mlox.Engine([problem])
            >>> scores = engine.evaluate(engine.init(), "x", 3.0)
            >>> {name: float(score) for name, score in scores.items()}
            {'bias': -2.0, 'loss': 4.0}
        """
        name = name_of_known("evaluate", self.names, name)
        check_donated(state)
        check(f"evaluate of {name!r}: batch", batch, ONE_BATCH)
        evaluation = Evaluation(
            self.cycle.plan, name, jax.tree.structure(self.problems)
        )
        evaluation = jit_value(evaluation, False, None)
        return evaluation(
            state, _data.as_arrays(name, batch), as_key(f"problem {name!r}: rng", rng)
        )

    def stack(self, iterators: Mapping[str, Iterator[Any] | None]) -> dict[str, PyTree]:
        """Build the batches of one cycle from plain Python iterators.

        Args:
            iterators: {name: iterator over batches}; a problem without data may be
                left out.

        Returns:
            Batches for `step`.

        Raises:
            ValueError: If an iterator ends within the cycle, or its batches differ in
                structure or shapes.
        """
        return _data.stack_batches(self.steps_per_cycle, iterators)

    run = run
    explain = explain
    mermaid = mermaid
    draw = draw
    __repr__ = summarize_engine
    _repr_html_ = to_html

    @property
    def traced(self) -> Step:
        """The step as a value without arrays, by which programs are cached."""
        problems = jax.tree.structure(self.problems)
        return Step(self.cycle, self.unroll_loops, problems)
