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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlox._cycle import batches as _batches
from mlox._cycle import hooks as _hooks
from mlox._cycle.scan import Rounds
from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._hypergradient.lagrangian import Gradient, Objective, losses
from mlox._hypergradient.point import EvaluationPoint, StepInputs
from mlox._problem.loss_scaling import all_finite, back_off, skip_overflow
from mlox._problem.optimizer import apply_gradients
from mlox._problem.problem import Problem
from mlox._problem.responsive import stop_unresponsive
from mlox._utils.tree import combine
from mlox._utils.types import Batches, Metrics, PyTree, State
from mlox.methods import Detached


class Kept(NamedTuple):
    """What a hypergradient needs of the past of a window.

    Attributes:
        before: The mutable state of each problem before its last step.
        drawn: The last batch of each problem that samples its own.
        starts: For each problem whose last window will be run again, the problems
            below it when that window began.
    """

    before: dict[str, PyTree]
    drawn: dict[str, PyTree]
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
        above = self.cycle.plan.graph.order[len(self.cycle.graph.beneath(self.layer)) :]
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
        roll_back: Whether a window is a look-ahead: what is below is restored after it,
            and makes one round for good.
    """

    plan: Plan
    unroll: bool
    roll_back: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the plan."""
        return self.plan.graph

    @property
    def objective(self) -> Objective:
        """The objectives of the plan."""
        return Objective(self.plan)

    def fresh(self, state: State) -> Kept:
        """Make what is kept before anything has run; it is overwritten before use."""
        layer_of = self.graph.layer_of
        return Kept(
            before={n: problem.model_state for n, problem in state.items()},
            drawn={
                n: jax.tree.map(
                    lambda x: jnp.zeros(x.shape, x.dtype),
                    jax.eval_shape(partial(_hooks.sampled, self.objective, n), state),
                )
                for n, problem in state.items()
                if problem.sample is not None
            },
            starts={
                n: {m: state[m] for m in self.graph.beneath(layer_of[n])}
                for n in sorted(self.plan.windowed)
            },
        )

    def window(
        self, layer: int, state: State, kept: Kept, batches: Batches
    ) -> tuple[dict[str, Problem], Kept, Metrics]:
        """Run a window of a layer: the rounds below it, then its own updates."""
        ran = self.run_below(layer, state, kept, batches)
        batches = _hooks.drawn(self.objective, layer, ran.state, batches)
        names, metrics = self.graph.layers[layer], ran.metrics
        updated: dict[str, Problem] = {}
        lowered: dict[str, Problem] = {}
        for name in names:
            updated[name], found, finite = self.updated(layer, name, ran, batches)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            for n in self.scaling(name, ran.state):
                lowered[n] = back_off(lowered.get(n, ran.state[n]), finite)
        before = {n: jax.lax.stop_gradient(ran.state[n].model_state) for n in names}
        drawn = {n: batches[n] for n in names if n in ran.kept.drawn}
        kept = ran.kept._replace(
            before={**ran.kept.before, **before}, drawn={**ran.kept.drawn, **drawn}
        )
        after = {**ran.state, **lowered, **updated}
        below = frozenset().union(*(self.graph.below[n] for n in names))
        if self.roll_back and below:
            back = self.rolled_back(layer, below, state, after, kept, batches)
            if any(state[n].warmup_steps for n in below):
                stepped = [updated[n].step > ran.state[n].step for n in names]
                back = optax.tree.where(jnp.stack(stepped).any(), back, (after, kept))
            after, kept = back
        return after, kept, metrics

    def scaling(self, name: str, state: State) -> list[str]:
        """List the movers of a problem that scale their losses."""
        return [n for n in self.plan.movers[name] if state[n].loss_scale is not None]

    def updated(
        self, layer: int, name: str, ran: Ran, batches: Batches
    ) -> tuple[Problem, Metrics, jax.Array]:
        """Make one optimizer step of a problem, unless it waits for one below.

        Returns the problem, its metrics, and whether its gradient was finite, which is
        looked at only where losses are scaled.
        """
        # An implicit answer's loop is never differentiated: see Objective.attach.
        cut = name in self.plan.moved - self.plan.unrolled
        ran_here = jax.lax.stop_gradient(ran[:2]) if cut else ran[:2]
        ran = Ran(*ran_here, {}, ran.pull)
        problem = ran.state[name]
        guarded = problem.loss_scale is not None or self.scaling(name, ran.state)

        def update() -> tuple[Problem, Metrics, jax.Array]:
            found, grads = self.gradient(layer, name, ran, batches)
            loss = losses(problem, found.metrics)
            after = apply_gradients(problem, grads, found.model_state, loss)
            finite = all_finite(grads) if guarded else jnp.array(True)
            if guarded:
                after = skip_overflow(problem, after, finite)
            if isinstance(problem.method, Detached):
                after = _hooks.passed(problem, after)
            if name in self.plan.moved:
                after = dataclasses.replace(
                    after, params=stop_unresponsive(problem, after.params)
                )
            return after, found.metrics, finite

        def wait() -> tuple[Problem, Metrics, jax.Array]:
            values = self.values(layer, name, ran, batches)
            metrics = self.objective.cost(name, values)[1][0]
            shapes = jax.eval_shape(update)[1]
            nothing = {key: jnp.zeros(x.shape, x.dtype) for key, x in shapes.items()}
            return problem, {**nothing, **metrics}, jnp.array(True)

        below = [ran.state[n] for n in self.graph.below[name]]
        waits = [p.step > p.warmup_steps for p in below if p.warmup_steps > 0]
        if waits:
            found = jax.lax.cond(jnp.stack(waits).all(), update, wait)
        else:
            found = update()
        after, metrics, finite = found
        return (jax.lax.stop_gradient(after) if cut else after), metrics, finite

    def rolled_back(
        self,
        layer: int,
        below: frozenset[str],
        before: State,
        after: State,
        kept: Kept,
        batches: Batches,
    ) -> tuple[dict[str, Problem], Kept]:
        """Restore what is below a layer, and make one round for good.

        The round takes the last batches of the window, under the problems of the layer
        as they are now. Loss scales stay as the window has found them.
        """
        restored = {n: before[n].replace(loss_scale=after[n].loss_scale) for n in below}
        beneath = self.graph.beneath(layer)
        steps = {n: self.graph.count(layer - 1, n) for n in beneath}
        last = {
            n: _batches.last(self.graph, layer, n, batches, steps[n]) for n in beneath
        }
        real, real_kept, _ = self.window(layer - 1, {**after, **restored}, kept, last)

        def joined(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
            return {n: (new if n in below else old)[n] for n in old}

        parts = itertools.starmap(joined, zip(real_kept, kept, strict=True))
        return joined(real, after), Kept(*parts)

    def run_below(self, layer: int, state: State, kept: Kept, batches: Batches) -> Ran:
        """Run the rounds below a layer, with a pull-back where answers are unrolled."""
        names = self.graph.layers[layer]
        unrolling = [n for n in names if self.own(n)]
        answers = {u for n in names for u in self.own(n)}

        def run(params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
            moved = {n: state[n].replace(params=params[n]) for n in unrolling}
            ran = self.rounds(layer, {**state, **moved}, kept, batches)
            below = {n: ran[0][n] for n in self.graph.beneath(layer)}
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
            layer_own = {u for n in self.graph.layers[layer] for u in self.own(n)}
            nothing = {
                u: jax.tree.map(jnp.zeros_like, ran.state[u].params) for u in layer_own
            }
            arrived = {u: combine(found.params[u], nothing[u]) for u in own}
            (pulled,) = ran.pull({**nothing, **arrived})
            grads = jax.tree.map(jnp.add, grads, pulled[name])
        return found, grads

    def values(
        self, layer: int, name: str, ran: Ran, batches: Batches
    ) -> EvaluationPoint:
        """Gather where a gradient is evaluated: each lower at its own last draw."""
        beneath = self.graph.beneath(layer)

        def draw(n: str) -> StepInputs:
            problem = ran.state[n]
            batch, step, model_state = None, problem.step, problem.model_state
            window = None
            if n == name:
                batch = batches[n]
            elif n in beneath:
                batch = _batches.last(self.graph, layer, n, batches, 1)
                batch = ran.kept.drawn.get(n, batch)
                step, model_state = problem.step - 1, ran.kept.before[n]
                if n in self.plan.windowed:
                    window = self.again(layer, n, ran, batches)
            rng = None if problem.rng is None else jax.random.fold_in(problem.rng, step)
            return StepInputs.make(problem, batch, rng, step, model_state, window)

        return EvaluationPoint(
            params={
                n: stop_unresponsive(problem, problem.params)
                if n in beneath
                else problem.params
                for n, problem in ran.state.items()
            },
            multipliers={},
            inputs={n: draw(n) for n in ran.state},
        )

    def again(
        self, layer: int, name: str, ran: Ran, batches: Batches
    ) -> Callable[[Mapping[str, PyTree]], dict[str, PyTree]]:
        """Make the function that runs the last window of a lower again."""
        own = self.graph.layer_of[name]
        start = ran.kept.starts[name]
        steps = {n: self.graph.count(own, n) for n in start}
        return jax.tree_util.Partial(
            Rerun(self, own),
            {**ran.state, **start},
            ran.kept,
            {n: _batches.last(self.graph, layer, n, batches, steps[n]) for n in start},
        )

    def rounds(
        self, layer: int, state: State, kept: Kept, batches: Batches
    ) -> tuple[State, Kept, Metrics]:
        """Run the rounds below a layer, from the start of its inner loops."""
        if layer == 0:
            return state, kept, {}
        state = _hooks.begun(self.objective, layer, state)
        window = partial(self.window, layer - 1)
        # A window steps as often as the graph says, if nothing waits or goes back.
        steady = not self.roll_back and not any(
            problem.warmup_steps for problem in state.values()
        )
        rounds = Rounds(self.plan, layer, window, steady, self.unroll)
        return rounds(state, kept, batches)

    def own(self, name: str) -> tuple[str, ...]:
        """List the unrolled answers that respond through a problem's own window."""
        return self.plan.responses[name].own

    def step(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle; batches and metrics have all their leading axes."""
        top = len(self.graph.layers) - 1
        state, _, metrics = self.window(
            top, state, self.fresh(state), _batches.entered(self.graph, batches)
        )
        once = [n for n in self.graph.names if self.graph.count(top, n) == 1]
        return state, {
            key: value[None] if key.split("/")[0] in once else value
            for key, value in metrics.items()
        }

    def hypergradient(
        self, state: State, batches: Batches, name: str
    ) -> tuple[jax.Array, PyTree]:
        """Return the loss and the hypergradient of a problem's first step."""
        layer = self.graph.layer_of[name]
        batches = _batches.first(self.graph, name, batches)
        ran = self.run_below(layer, state, self.fresh(state), batches)
        batches = _hooks.drawn(self.objective, layer, ran.state, batches)
        found, grads = self.gradient(layer, name, ran, batches)
        return losses(state[name], found.metrics), grads

    def cost(self, state: State, batches: Batches, name: str) -> jax.Array:
        """Evaluate the loss of a problem alone, for a look at its program."""
        layer = self.graph.layer_of[name]
        ran = Ran(dict(state), self.fresh(state), {}, lambda x: x)
        batches = _batches.first(self.graph, name, batches)
        batches = _hooks.drawn(self.objective, layer, state, batches)
        values = self.values(layer, name, ran, batches)
        return self.objective.cost(name, values)[0]

    def unrolled(self, unroll: bool) -> Cycle:
        """Return the cycle with its loops written out, or not."""
        return dataclasses.replace(self, unroll=unroll)
