"""The rounds of a window: a scan over the windows of the layer below."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mlox._cycle import batches as _batches
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.types import Batches, Metrics, State
from mlox.methods import Unrolled, checkpointed_scan

Window = Callable[[State, Any, Batches], tuple[dict[str, Problem], Any, Metrics]]


@dataclass(frozen=True)
class Rounds:
    """The rounds below a layer, as a function of the state.

    Attributes:
        plan: Which answers move.
        layer: The index of the layer.
        window: (state, kept, batches) -> (state, kept, metrics), of the layer below.
        steady: Whether every problem steps as often as the graph says.
        unroll: Whether loops are written out.
    """

    plan: Plan
    layer: int
    window: Window
    steady: bool
    unroll: bool

    def __call__(
        self, state: State, kept: Any, batches: Batches
    ) -> tuple[State, Any, Metrics]:
        """Run the rounds.

        Where answers are differentiated through their last steps only, the rounds
        fall into phases, and the derivative of an answer is cut as its phase begins.
        """
        graph, layer = self.plan.graph, self.layer
        names = graph.beneath(layer)
        length = graph.layer_period[layer] // graph.layer_period[layer - 1]
        if length == 1:
            return self.window(state, kept, {n: batches[n] for n in names})
        counts = {n: graph.count(layer - 1, n) for n in names}
        xs = {n: _batches.split(batches[n], length, counts[n]) for n in names}
        cuts = self.cuts(state, length)
        edges = sorted({0, length, *cuts.values()})
        parts = []
        for start, stop in itertools.pairwise(edges):
            newly = [u for u, cut in cuts.items() if cut == start > 0]
            state = {**state, **{u: jax.lax.stop_gradient(state[u]) for u in newly}}
            idle = bool(cuts) and start < min(cuts.values())
            here = jax.lax.stop_gradient(state) if idle else state
            part = jax.tree.map(lambda x, a=start, b=stop: x[a:b], xs)
            below, kept, metrics = self.scanned(here, kept, part, stop - start)
            state = {**state, **below}
            parts.append(metrics)
        metrics = jax.tree.map(lambda *phases: jnp.concatenate(phases), *parts)
        return state, kept, metrics

    def scanned(
        self, state: State, kept: Any, xs: Batches, length: int
    ) -> tuple[dict[str, Problem], Any, Metrics]:
        """Scan over a number of rounds."""
        names = self.plan.graph.beneath(self.layer)

        def body(carry: tuple[State, Any], x: Batches) -> tuple[Any, Metrics]:
            below, kept = carry
            after, kept, metrics = self.window({**state, **below}, kept, x)
            return ({n: after[n] for n in names}, kept), metrics

        (below, kept), metrics = checkpointed_scan(
            body,
            ({n: state[n] for n in names}, kept),
            xs,
            length,
            self.checkpoint(state, length),
            self.unroll,
        )
        counts = {n: self.plan.graph.count(self.layer - 1, n) for n in names}
        merged = {
            key: x.reshape(-1, *x.shape[2:]) if counts[key.split("/")[0]] > 1 else x
            for key, x in metrics.items()
        }
        if self.steady:  # counted outside, the steps of a loop cost it nothing
            below = {
                n: problem.replace(step=state[n].step + length * counts[n])
                for n, problem in below.items()
            }
        return below, kept, merged

    def checkpoint(self, state: State, length: int) -> Any:
        """Choose the thriftiest of what the answers that are unrolled here ask for."""
        order = ("none", "step", "segments")
        methods = [state[u].method for u in self.own()]
        asked = [m.keeps(length) for m in methods if isinstance(m, Unrolled)]
        return max(asked, key=order.index, default="none")

    def cuts(self, state: State, length: int) -> dict[str, int]:
        """Find the round in which the derivative of each unrolled answer begins."""
        cuts = {}
        for u in self.own():
            method: Any = state[u].method
            here = self.plan.window_of[u] == self.layer and isinstance(method, Unrolled)
            steps = method.last_steps if here else None
            per_round = self.plan.steps_per_round(u, self.layer)
            cuts[u] = 0 if steps is None else max(0, length - steps // per_round)
        return cuts

    def own(self) -> list[str]:
        """List the unrolled answers that respond through this window."""
        names = self.plan.graph.layers[self.layer]
        return [u for n in names for u in self.plan.responses[n].own]
