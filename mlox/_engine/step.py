"""The step of an engine: one checked cycle, as a value that can be jitted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from mlox._cycle.cycle import Cycle
from mlox._cycle.report import Report
from mlox._cycle.unrolled import find_stateful
from mlox._engine.dead_edges import warn_of_dead_edges
from mlox._engine.nonfinite import has_nonfinite
from mlox._engine.validation import (
    check_batches,
    check_donated,
    check_one_program,
    check_state,
)
from mlox._hypergradient.custom_rules import find_ruled
from mlox._hypergradient.newton import why_not_stationary
from mlox._utils.convolutions import has_convolution, has_slow_loops
from mlox._utils.types import Batches, Metrics, State


@dataclass(frozen=True)
class Step:
    """The step of an engine as a value: hashable, compared by value.

    Attributes:
        cycle: The cycle.
        unroll_loops: As for `Engine`.
        problems: The structure of the problems, with their losses and optimizers: the
            programs of other losses are then those of another value, which caches of a
            bounded size forget.
    """

    cycle: Cycle
    unroll_loops: bool | None
    problems: Hashable

    def __call__(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle."""
        cycle = self.prepare(state, batches)
        with warn_of_dead_edges(cycle, cycle.graph.names, state, batches):
            return cycle.step(state, batches)

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The optimizer steps of each problem in one cycle."""
        return self.cycle.plan.graph.steps_per_cycle

    @property
    def reporters(self) -> Sequence[str]:
        """The problems whose metrics the step returns."""
        report, graph = self.cycle.report, self.cycle.graph
        return [n for n in graph.names if report.includes(graph, n)]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The description of the engine that checkpoints record and compare."""
        graph = self.cycle.plan.graph
        return {
            "problems": sorted(graph.names),
            "u2l": sorted(map(list, graph.u2l)),
            "l2u": sorted(map(list, graph.l2u)),
            # None as in checkpoints that are older than plain reads.
            "reads": sorted(map(list, graph.plain)) or None,
            "unroll_steps": dict(zip(graph.names, graph.unroll_steps, strict=True)),
            "coupling": "total" if self.cycle.plan.total else "direct",
            "roll_back": self.cycle.roll_back,
        }

    def find_nonfinite(
        self, before: State, after: State, metrics: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Return whether a cycle produced non-finite numbers, for each problem."""
        return {
            name: has_nonfinite(before[name], problem, metrics.get(f"{name}/loss"))
            for name, problem in after.items()
        }

    def rewind(self, to: State, after: State) -> State:
        """Return an earlier state, with the step counts of a later one."""
        return {
            name: dataclasses.replace(problem, step=after[name].step)
            for name, problem in to.items()
        }

    def confirm(self, state: State, batches: Batches, name: str) -> Metrics:
        """Return how far the answers below a problem are from where they should be.

        A pure function, which needs one solve for each block of answers beside the
        hypergradient of the problem's first step.

        Returns:
            For each block of implicit answers, by its top, "name/lower/distance", the
            length of a Newton step relative to the answer; and if there is any,
            "name/norm_ratio" and "name/cosine" between the hypergradient as configured
            and that after this step, which is right to second order in the distance.
            Blocks without a linear system are left out.
        """
        return self.prepare(state, batches).confirm(state, batches, name)

    def list_screened(self, state: State) -> tuple[tuple[str, str], ...]:
        """Return (upper, lower) for each answer whose gap can be judged.

        The gap must be reported. These are the tops of blocks of which a Newton step is
        defined: elsewhere the multiplier solves no system, or the residual is not zero
        at the answer.
        """
        if self.cycle.report is Report.NONE:
            return ()
        plan = self.cycle.plan
        return tuple(
            (k, b.tops[0])
            for k in plan.graph.names
            for b in plan.responses[k].blocks
            if why_not_stationary(plan, b, {n: state[n] for n in b.names}) is None
        )

    def check(self, state: Any) -> None:
        """Raise if a state does not fit the engine, or was donated."""
        check_state(self.cycle.plan, state)
        check_donated(state)

    def check_batches(self, state: State, batches: Batches) -> None:
        """Raise if batches do not fit the schedule, or the problems of the state."""
        check_batches(self.cycle.plan.graph, state, batches)

    def prepare(self, state: State, batches: Batches) -> Cycle:
        """Check the arguments of a step, and decide what depends on its losses."""
        plan = self.cycle.plan
        check_one_program("step")
        self.check(state)
        self.check_batches(state, batches)
        stateful = find_stateful(plan, self.cycle.cost, state, batches)
        if stateful:
            plan = dataclasses.replace(plan, stateful=stateful)
        program_of = functools.cache(partial(_trace_cost, self.cycle, state, batches))
        ruled = find_ruled(plan, self.cycle.cost, program_of, state, batches)
        if ruled:
            plan = dataclasses.replace(plan, ruled=ruled)
        unroll = self.cycle.unroll
        if self.unroll_loops is None:
            looped = [
                n
                for n, steps in plan.graph.steps_per_cycle.items()
                if steps > 1 or state[n].tasks_at_once is not None
            ]
            slow = has_slow_loops()
            unroll = slow and any(has_convolution(program_of(n)) for n in looped)
        return dataclasses.replace(self.cycle, plan=plan, unroll=unroll)


def _trace_cost(cycle: Cycle, state: State, batches: Batches, name: str) -> ClosedJaxpr:
    """Return the program of the cost of a problem."""
    scope = cycle.plan.scope[name]
    seen = ({n: given[n] for n in scope} for given in (state, batches))
    return jax.make_jaxpr(partial(cycle.cost, name=name))(*seen)
