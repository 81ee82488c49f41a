"""One cycle of a graph of problems as one traced function.

The problems form layers, by period and depth. The window of a layer is a number of
rounds of the layers below it, a `lax.scan`, and then its own updates; the window of the
highest layer is the cycle. Nothing is counted at run time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlox._objective import Draw, Gradient, Objective, Values
from mlox._plan import Plan
from mlox._problem import Problem
from mlox.methods import Unrolled, checkpointed_scan

PyTree = Any
State = Mapping[str, Problem]
Batches = Mapping[str, PyTree]
Metrics = dict[str, jax.Array]


class Kept(NamedTuple):
    """What a hypergradient needs of the past of a window.

    Attributes:
        before: The mutable state of each problem before its last step.
        starts: For each problem whose last window will be run again, the problems
            below it when that window began.
    """

    before: dict[str, PyTree]
    starts: dict[str, dict[str, Problem]]


class Ran(NamedTuple):
    """The outcome of the rounds below a layer.

    Attributes:
        state: The state after.
        kept: What is kept of them.
        metrics: Their metrics.
        pull: Cotangents of the unrolled answers -> cotangents of the layer's params.
    """

    state: dict[str, Problem]
    kept: Kept
    metrics: Metrics
    pull: Callable[[PyTree], Any]


@dataclass(frozen=True)
class Rerun:
    """Run the rounds below a layer again, as a function of the problems above.

    Attributes:
        cycle: The cycle.
        layer: The index of the layer.
    """

    cycle: Cycle
    layer: int

    def __call__(
        self, state: State, kept: Kept, batches: Batches, params: Mapping[str, PyTree]
    ) -> dict[str, PyTree]:
        """Return the parameters that the rounds lead to."""
        above = self.cycle.plan.graph.order[len(self.cycle.beneath(self.layer)) :]
        state = {
            **state,
            **{n: state[n].replace(params=params[n]) for n in above},
        }
        state, _, _ = self.cycle.rounds(self.layer, state, kept, batches)
        return {n: problem.params for n, problem in state.items()}


@dataclass(frozen=True)
class Cycle:
    """The cycle of a plan; hashable, compared by value.

    Batches and metrics of a problem have a leading axis, its steps in the window at
    hand; it is left out where that is one step, since a unit axis slows XLA down.

    Attributes:
        plan: Which answers move.
        unroll: Whether loops are written out.
    """

    plan: Plan
    unroll: bool

    @property
    def objective(self) -> Objective:
        """The objectives of the plan."""
        return Objective(self.plan)

    def beneath(self, layer: int) -> tuple[str, ...]:
        """List the problems of the layers below a layer."""
        return tuple(n for names in self.plan.graph.layers[:layer] for n in names)

    def count(self, layer: int, name: str) -> int:
        """Count the steps of a problem in a window of a layer."""
        graph = self.plan.graph
        return graph.layer_period[layer] // graph.period[name]

    def fresh(self, state: State) -> Kept:
        """Make what is kept before anything has run; it is overwritten before use."""
        layer_of = self.plan.graph.layer_of
        return Kept(
            before={n: problem.model_state for n, problem in state.items()},
            starts={
                n: {m: state[m] for m in self.beneath(layer_of[n])}
                for n in sorted(self.plan.windowed)
            },
        )

    def window(
        self, layer: int, state: State, kept: Kept, batches: Batches
    ) -> tuple[dict[str, Problem], Kept, Metrics]:
        """Run a window of a layer: the rounds below it, then its own updates."""
        ran = self.run_below(layer, state, kept, batches)
        updated, before, metrics = {}, {}, ran.metrics
        for name in self.plan.graph.layers[layer]:
            # An implicit answer's loop is never differentiated: see Objective.attach.
            cut = name in self.plan.moved - self.plan.unrolled
            ran_here = jax.lax.stop_gradient(ran[:2]) if cut else ran[:2]
            found, grads = self.gradient(
                layer, name, Ran(*ran_here, {}, ran.pull), batches
            )
            problem = ran.state[name].updated(grads, found.model_state)
            updated[name] = jax.lax.stop_gradient(problem) if cut else problem
            before[name] = jax.lax.stop_gradient(ran.state[name].model_state)
            metrics |= {f"{name}/{key}": value for key, value in found.metrics.items()}
        kept = ran.kept._replace(before={**ran.kept.before, **before})
        return {**ran.state, **updated}, kept, metrics

    def run_below(self, layer: int, state: State, kept: Kept, batches: Batches) -> Ran:
        """Run the rounds below a layer, with a pull-back where answers are unrolled."""
        names = self.plan.graph.layers[layer]
        unrolling = [n for n in names if self.own(n)]
        answers = {u for n in names for u in self.own(n)}

        def run(params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
            moved = {n: state[n].replace(params=params[n]) for n in unrolling}
            ran = self.rounds(layer, {**state, **moved}, kept, batches)
            below = {n: ran[0][n] for n in self.beneath(layer)}
            return {u: below[u].params for u in answers}, (below, *ran[1:])

        params = {n: state[n].params for n in unrolling}
        if unrolling:
            _, pull, (below, after, metrics) = jax.vjp(run, params, has_aux=True)
        else:
            _, (below, after, metrics) = run(params)
            pull = lambda cotangents: cotangents
        starts = {
            n: jax.lax.stop_gradient({m: state[m] for m in below})
            for n in names
            if n in self.plan.windowed
        }
        after = after._replace(starts={**after.starts, **starts})
        return Ran({**state, **below}, after, metrics, pull)

    def gradient(
        self, layer: int, name: str, ran: Ran, batches: Batches
    ) -> tuple[Gradient, PyTree]:
        """Return the hypergradient of a problem after the rounds below its layer."""
        values = self.values(layer, name, ran, batches)
        values = self.objective.settled(name, values)
        found = self.objective.gradient(name, values, rerun=False)
        grads = found.params[name]
        if own := self.own(name):
            # Problems of one layer share the run; each pulls its own cotangents back.
            layer_own = {u for n in self.plan.graph.layers[layer] for u in self.own(n)}
            nothing = {
                u: jax.tree.map(jnp.zeros_like, ran.state[u].params) for u in layer_own
            }
            (pulled,) = ran.pull({**nothing, **{u: found.params[u] for u in own}})
            grads = jax.tree.map(jnp.add, grads, pulled[name])
        return found, grads

    def values(self, layer: int, name: str, ran: Ran, batches: Batches) -> Values:
        """Gather where a gradient is evaluated: each lower at its own last draw."""
        beneath = self.beneath(layer)

        def draw(n: str) -> Draw:
            problem = ran.state[n]
            batch, step, model_state = None, problem.step, problem.model_state
            window = None
            if n == name:
                batch = batches[n]
            elif n in beneath:
                batch = self.last(layer, n, batches, 1)
                step, model_state = problem.step - 1, ran.kept.before[n]
                if n in self.plan.windowed:
                    window = self.again(layer, n, ran, batches)
            rng = None if problem.rng is None else jax.random.fold_in(problem.rng, step)
            return Draw(problem, batch, rng, step, model_state, window)

        return Values(
            params={n: problem.params for n, problem in ran.state.items()},
            multipliers={},
            draws={n: draw(n) for n in ran.state},
        )

    def again(
        self, layer: int, name: str, ran: Ran, batches: Batches
    ) -> Callable[[Mapping[str, PyTree]], dict[str, PyTree]]:
        """Make the function that runs the last window of a lower again."""
        own = self.plan.graph.layer_of[name]
        start = ran.kept.starts[name]
        steps = {n: self.count(own, n) for n in start}
        return jax.tree_util.Partial(
            Rerun(self, own),
            {**ran.state, **start},
            ran.kept,
            {n: self.last(layer, n, batches, steps[n]) for n in start},
        )

    def last(self, layer: int, name: str, batches: Batches, steps: int) -> PyTree:
        """Take the last batches of a problem in a window, without a unit axis."""
        if self.count(layer, name) == 1:
            return batches[name]
        take = slice(-steps, None) if steps > 1 else -1
        return jax.tree.map(lambda x: x[take], batches[name])

    def rounds(
        self, layer: int, state: State, kept: Kept, batches: Batches
    ) -> tuple[State, Kept, Metrics]:
        """Run the rounds below a layer.

        Where answers are differentiated through their last steps only, the rounds
        fall into phases, and the derivative of an answer is cut as its phase begins.
        """
        if layer == 0:
            return state, kept, {}
        graph, names = self.plan.graph, self.beneath(layer)
        length = graph.layer_period[layer] // graph.layer_period[layer - 1]
        if length == 1:
            return self.window(layer - 1, state, kept, {n: batches[n] for n in names})
        xs = {n: _split(batches[n], length, self.count(layer - 1, n)) for n in names}
        cuts = self.cuts(layer, state, length)
        edges = sorted({0, length, *cuts.values()})
        parts = []
        for start, stop in itertools.pairwise(edges):
            newly = [u for u, cut in cuts.items() if cut == start > 0]
            state = {**state, **{u: jax.lax.stop_gradient(state[u]) for u in newly}}
            idle = bool(cuts) and start < min(cuts.values())
            here = jax.lax.stop_gradient(state) if idle else state
            part = jax.tree.map(lambda x, a=start, b=stop: x[a:b], xs)
            below, kept, metrics = self._scan(layer, here, kept, part, stop - start)
            state = {**state, **below}
            parts.append(metrics)
        metrics = jax.tree.map(lambda *phases: jnp.concatenate(phases), *parts)
        return state, kept, metrics

    def _scan(
        self, layer: int, state: State, kept: Kept, xs: Batches, length: int
    ) -> tuple[dict[str, Problem], Kept, Metrics]:
        names = self.beneath(layer)

        def body(carry: tuple[State, Kept], x: Batches) -> tuple[Any, Metrics]:
            below, kept = carry
            after, kept, metrics = self.window(layer - 1, {**state, **below}, kept, x)
            return ({n: after[n] for n in names}, kept), metrics

        (below, kept), metrics = checkpointed_scan(
            body,
            ({n: state[n] for n in names}, kept),
            xs,
            length,
            self._checkpoint(layer, state, length),
            self.unroll,
        )
        merged = {
            key: x.reshape(-1, *x.shape[2:])
            if self.count(layer - 1, key.split("/")[0]) > 1
            else x
            for key, x in metrics.items()
        }
        # Counted outside, the steps of a loop cost it nothing.
        counted = {
            n: problem.replace(step=state[n].step + length * self.count(layer - 1, n))
            for n, problem in below.items()
        }
        return counted, kept, merged

    def _checkpoint(self, layer: int, state: State, length: int) -> Any:
        """Choose the thriftiest of what the answers that are unrolled here ask for."""
        order = ("none", "step", "segments")
        names = self.plan.graph.layers[layer]
        methods = (state[u].method for n in names for u in self.own(n))
        asked = [m.keeps(length) for m in methods if isinstance(m, Unrolled)]
        return max(asked, key=order.index, default="none")

    def cuts(self, layer: int, state: State, length: int) -> dict[str, int]:
        """Find the round in which the derivative of each unrolled answer begins."""
        cuts = {}
        for u in (u for n in self.plan.graph.layers[layer] for u in self.own(n)):
            method: Any = state[u].method
            steps = method.last_steps if self.plan.window_of[u] == layer else None
            rounds = (
                length
                if steps is None
                else steps // self.plan.steps_per_round(u, layer)
            )
            cuts[u] = max(0, length - rounds)
        return cuts

    def own(self, name: str) -> tuple[str, ...]:
        """List the unrolled answers that respond through a problem's own window."""
        return self.plan.responses[name].own

    def entered(self, batches: Batches) -> Batches:
        """Leave out the leading axis of problems that step once in a cycle."""
        top = len(self.plan.graph.layers) - 1
        return {
            n: jax.tree.map(lambda x: x[0], batch) if self.count(top, n) == 1 else batch
            for n, batch in batches.items()
        }

    def first(self, name: str, batches: Batches) -> Batches:
        """Take the batches of the first window of a problem's layer."""
        layer = self.plan.graph.layer_of[name]
        names = (*self.beneath(layer), *self.plan.graph.layers[layer])
        counts = {n: self.count(layer, n) for n in names}
        return {
            n: jax.tree.map(lambda x, c=count: x[0] if c == 1 else x[:c], batches[n])
            for n, count in counts.items()
        }

    def step(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle; batches and metrics have all their leading axes."""
        top = len(self.plan.graph.layers) - 1
        state, _, metrics = self.window(
            top, state, self.fresh(state), self.entered(batches)
        )
        once = [n for n in self.plan.graph.names if self.count(top, n) == 1]
        return state, {
            key: value[None] if key.split("/")[0] in once else value
            for key, value in metrics.items()
        }

    def hypergradient(
        self, state: State, batches: Batches, name: str
    ) -> tuple[jax.Array, PyTree]:
        """Return the loss and the hypergradient of a problem's first step."""
        layer = self.plan.graph.layer_of[name]
        batches = self.first(name, batches)
        ran = self.run_below(layer, state, self.fresh(state), batches)
        found, grads = self.gradient(layer, name, ran, batches)
        return found.metrics["loss"], grads

    def cost(self, state: State, batches: Batches, name: str) -> jax.Array:
        """Evaluate the loss of a problem alone, for a look at its program."""
        layer = self.plan.graph.layer_of[name]
        ran = Ran(dict(state), self.fresh(state), {}, lambda x: x)
        values = self.values(layer, name, ran, self.first(name, batches))
        return self.objective.cost(name, values)[0]

    def unrolled(self, unroll: bool) -> Cycle:
        """Return the cycle with its loops written out, or not."""
        return dataclasses.replace(self, unroll=unroll)


def _split(batch: PyTree, length: int, count: int) -> PyTree:
    """Give a batch a leading axis of `length` rounds, without a unit axis behind."""
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x.reshape(length, count, *x.shape[1:]), batch)
