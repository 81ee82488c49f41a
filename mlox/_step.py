"""The step of an engine: one checked cycle, as a value that can be jitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from mlox._checks import check_batches, check_state
from mlox._cycle import Batches, Cycle, Metrics, State
from mlox._loops import unrolls


@dataclass(frozen=True)
class Step:
    """The step of an engine as a value: hashable, compared by value.

    Attributes:
        cycle: The cycle.
        unroll_loops: As for `Engine`.
    """

    cycle: Cycle
    unroll_loops: bool | None

    def __call__(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle."""
        return self.prepared(state, batches).step(state, batches)

    @property
    def steps_per_cycle(self) -> Mapping[str, int]:
        """The optimizer steps of each problem in one cycle."""
        return self.cycle.plan.graph.steps_per_cycle

    def prepared(self, state: State, batches: Batches) -> Cycle:
        """Check the arguments of a step, and decide whether loops are written out."""
        plan = self.cycle.plan
        check_state(plan, state)
        check_batches(plan.graph, state, batches)
        if self.unroll_loops is not None:
            return self.cycle
        looped = [n for n, steps in plan.graph.steps_per_cycle.items() if steps > 1]
        unroll = any(
            unrolls(partial(self.cycle.cost, name=name), state, batches)
            for name in looped
        )
        return self.cycle.unrolled(unroll)
