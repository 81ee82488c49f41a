"""One cycle of a graph of problems as one traced function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax

from mlox._cycle.batches import first_window, restore_axes, squeeze_batches
from mlox._cycle.chunks import run_in_chunks
from mlox._cycle.confirm import confirm
from mlox._cycle.constants import keep_constants
from mlox._cycle.history import History, LowerRun, narrow_run
from mlox._cycle.last_step import point_at_last_steps
from mlox._cycle.loops import run_with_pull_back
from mlox._cycle.overflow import back_off_movers
from mlox._cycle.replay import find_starts
from mlox._cycle.report import Report, report_updates
from mlox._cycle.reset import forget_inner_loops, start_inner_loops
from mlox._cycle.roll_back import roll_back
from mlox._cycle.sample import empty_samples, sample_batches
from mlox._cycle.scan import scan_rounds
from mlox._cycle.telemetry import with_telemetry
from mlox._cycle.unrolled import add_unrolled
from mlox._cycle.update import Update, update
from mlox._cycle.warmup import waits
from mlox._cycle.windows import start_windows
from mlox._graph.dependencies import Plan
from mlox._graph.graph import Graph
from mlox._hypergradient.adjoint import Hypergradient, hypergradient
from mlox._hypergradient.attach import prepare_point
from mlox._hypergradient.cost import cost
from mlox._hypergradient.point import EvaluationPoint
from mlox._hypergradient.refine import report_actual
from mlox._hypergradient.tasks import losses_of
from mlox._problem.problem import Problem
from mlox._utils.types import Batches, Metrics, Params, PyTree, State

# The window of a layer is a `lax.scan` over its rounds, each a window of the layer
# below, and then one step of each of its problems:
#
#     run_window(i) = run_lowers(i); update each problem of layer i
#     run_lowers(i) = run_rounds(i), by the loops of the unrolled answers that respond
#     run_rounds(i) = scan of run_window(i - 1)
#
# The window of the highest layer is the cycle. The recursion is unfolded while tracing,
# so nothing is counted at run time, and the program does not grow with `unroll_steps`.


@dataclass(frozen=True)
class Cycle:
    """The cycle of a plan; hashable, compared by value.

    Batches and metrics of a problem have a leading axis, its steps in the current
    window. There is no such axis for a single step.

    Attributes:
        plan: Which answers respond.
        unroll: Whether loops are unrolled in the program.
        roll_back: Whether a window is a look-ahead: the problems below are restored
            after it, and make one round under the new upper.
        telemetry: Whether steps report of what their gradients are made.
        report: Of which steps the metrics are returned.
    """

    plan: Plan
    unroll: bool
    roll_back: bool = False
    telemetry: bool = False
    report: Report = Report.ALL

    @property
    def graph(self) -> Graph:
        """The graph of the plan."""
        return self.plan.graph

    def reporting(self, report: Report) -> Cycle:
        """Return the cycle with another report."""
        return dataclasses.replace(self, report=report)

    def step(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle; batches and metrics have all their leading axes."""
        top = len(self.graph.layers) - 1
        batches = squeeze_batches(self.graph, batches)
        state, _, metrics = self.run_window(
            top, state, self.start_history(state), batches
        )
        last = self.report is Report.LAST
        return state, restore_axes(self.graph, metrics, last)

    def hypergradient(
        self, state: State, batches: Batches, name: str
    ) -> tuple[jax.Array, PyTree]:
        """Return the loss and the hypergradient of a problem's first step."""
        run, batches = self.run_first_window(state, batches, name)
        layer = self.graph.layer_of[name]
        found, grads = self.differentiate(layer, name, run, batches)
        return losses_of(state[name], found.metrics), grads

    def confirm(
        self, state: State, batches: Batches, name: str
    ) -> dict[str, jax.Array]:
        """Return how far the answers below a problem are, see `mlox._cycle.confirm`."""
        run, batches = self.run_first_window(state, batches, name)
        point = self.point(self.graph.layer_of[name], name, run, batches)
        return confirm(
            self.plan,
            name,
            point,
            lambda p: self.differentiate_at(run, {name: p})[name][1],
        )

    def run_first_window(
        self, state: State, batches: Batches, name: str
    ) -> tuple[LowerRun, Batches]:
        """Run what is below a problem's first step, and return the batches of it."""
        layer = self.graph.layer_of[name]
        batches = first_window(self.graph, name, batches)
        silent = self.reporting(Report.SILENT)
        run = silent.run_lowers(layer, state, self.start_history(state), batches)
        return run, sample_batches(self.plan, layer, run, batches)

    def cost(self, state: State, batches: Batches, name: str) -> jax.Array:
        """Return the cost of a problem alone, to inspect its program."""
        return cost(self.plan, name, self.inspect(state, batches, name))[0]

    def inspect(self, state: State, batches: Batches, name: str) -> EvaluationPoint:
        """Return a point of the cost of a problem, where no lower has run."""
        layer = self.graph.layer_of[name]
        scope = self.plan.scope[name]
        state, batches = ({n: given[n] for n in scope} for given in (state, batches))
        run = LowerRun(state, self.start_history(state), {}, lambda x: x)
        batches = first_window(self.graph, name, batches)
        own = sample_batches(self.plan, layer, run, {name: batches[name]})
        return self.point(layer, name, run, {**batches, **own})

    def start_history(self, state: State) -> History:
        """Return the history before any step; it is overwritten before it is used."""
        starts = find_starts(self.plan, state, state)
        return History(
            model_states={n: problem.model_state for n, problem in state.items()},
            samples=empty_samples(self.plan, state),
            starts=dict(starts),
            first_steps={n: problem.step for n, problem in state.items()},
            constants=keep_constants(self.plan, state, state),
        )

    def run_window(
        self, layer: int, state: State, history: History, batches: Batches
    ) -> tuple[dict[str, Problem], History, Metrics]:
        """Run a window of a layer: the rounds below it, then its own steps."""
        names = [n for n in self.graph.layers[layer] if n in batches]
        run = self.run_lowers(layer, state, history, batches)
        batches = sample_batches(self.plan, layer, run, batches)
        updates = self.update_layer(layer, run, batches)
        lowered = back_off_movers(
            self.plan, run.state, {n: u.finite for n, u in updates.items()}
        )
        after = {**run.state, **lowered, **{n: u.problem for n, u in updates.items()}}
        history = _record(self.plan, run, names, batches)
        if self.roll_back:
            window = partial(self.reporting(Report.SILENT).run_window, layer - 1)
            stepped = [after[n].step > run.state[n].step for n in names]
            # Inner loops start again, under the problems that have stepped.
            before = start_inner_loops(
                self.plan, layer, {**state, **{n: after[n] for n in names}}
            )
            after, history = roll_back(
                self.graph, layer, window, before, after, history, batches, stepped
            )
        metrics = report_updates(self.report, self.plan, updates)
        return after, history, run.metrics | metrics

    def run_rounds(
        self, layer: int, state: State, history: History, batches: Batches
    ) -> tuple[State, History, Metrics]:
        """Run the rounds below a layer, from the start of its inner loops."""
        if layer == 0:
            return state, history, {}
        run = partial(self._run_rounds_at_once, layer)
        return run_in_chunks(
            self.plan,
            layer,
            run,
            self.unroll,
            self.telemetry,
            self.report is Report.LAST,
            state,
            history,
            batches,
        )

    def _run_rounds_at_once(
        self, layer: int, state: State, history: History, batches: Batches
    ) -> tuple[State, History, Metrics]:
        """Run the rounds for all tasks that the state has."""
        state = start_inner_loops(self.plan, layer, state)
        history = start_windows(self.graph, layer, state, history)
        window = partial(self.run_window, layer - 1)
        before_last = self.report.before_last
        early = partial(self.reporting(before_last).run_window, layer - 1)
        return scan_rounds(
            self.plan,
            layer,
            window,
            self.unroll,
            state,
            history,
            batches,
            None if before_last is self.report else early,
        )

    def run_lowers(
        self, layer: int, state: State, history: History, batches: Batches
    ) -> LowerRun:
        """Run the rounds below a layer, with a pull-back where answers are unrolled."""
        names = [n for n in self.graph.layers[layer] if n in batches]
        lower = [n for n in self.graph.names_below(layer) if n in batches]

        def run(params: Params) -> tuple[State, History, Metrics]:
            moved = {
                n: dataclasses.replace(state[n], params=p) for n, p in params.items()
            }
            after, kept, metrics = self.run_rounds(
                layer, {**state, **moved}, history, batches
            )
            return {n: after[n] for n in lower}, kept, metrics

        # The problems of one layer share the run; each pulls its own cotangents back.
        params = {n: state[n].params for n in names if self.plan.responses[n].unrolled}
        (below, kept, metrics), pull = run_with_pull_back(
            self.plan, layer, state, run, params
        )
        starts = find_starts(self.plan, names, state)
        kept = kept._replace(starts={**kept.starts, **starts})
        after = forget_inner_loops(self.plan, layer, {**state, **below})
        return LowerRun(after, kept, metrics, pull)

    def update_layer(
        self, layer: int, run: LowerRun, batches: Batches
    ) -> dict[str, Update]:
        """Make one optimizer step of each problem of a layer."""
        names = [n for n in self.graph.layers[layer] if n in batches]
        runs = {n: self.narrow(n, run) for n in names}
        found: dict[str, tuple[Hypergradient, PyTree]] = {}
        for group in self.plan.pulled_together[layer]:
            ready = {
                n: runs[n]
                for n in group
                if n in runs and not waits(self.plan, n, run.state)
            }
            found |= self.differentiate_together(layer, run, ready, batches)
        return {n: self.update(layer, n, runs[n], batches, found.get(n)) for n in names}

    def narrow(self, name: str, run: LowerRun) -> LowerRun:
        """Return a run as a step of a problem sees it."""
        run = narrow_run(run, self.plan.scope[name])
        if name not in self.plan.implicit:
            return run
        # The loop of an implicit answer is never differentiated: where its derivative
        # is needed, it is attached, see mlox/_hypergradient/attach.py.
        state, history = jax.lax.stop_gradient((run.state, run.history))
        return run._replace(state=state, history=history)

    def update(
        self,
        layer: int,
        name: str,
        run: LowerRun,
        batches: Batches,
        found: tuple[Hypergradient, PyTree] | None,
    ) -> Update:
        """Make one optimizer step of a problem, whose hypergradient may be known."""
        after = update(
            self.plan,
            name,
            run.state,
            gradient=lambda: found or self.differentiate(layer, name, run, batches),
            point=lambda: self.point(layer, name, run, batches),
        )
        if name in self.plan.implicit:
            after = after._replace(problem=jax.lax.stop_gradient(after.problem))
        return after

    def differentiate(
        self, layer: int, name: str, run: LowerRun, batches: Batches
    ) -> tuple[Hypergradient, PyTree]:
        """Return the hypergradient of a problem after the rounds below its layer."""
        return self.differentiate_together(layer, run, {name: run}, batches)[name]

    def differentiate_together(
        self,
        layer: int,
        run: LowerRun,
        seen: Mapping[str, LowerRun],
        batches: Batches,
    ) -> dict[str, tuple[Hypergradient, PyTree]]:
        """Return the hypergradients of problems that share one pull-back of a run.

        `seen` has the run as each of them sees it.
        """
        actual = {n: self.point(layer, n, one, batches) for n, one in seen.items()}
        points = {n: prepare_point(self.plan, n, at) for n, at in actual.items()}
        together: dict[str, tuple[Hypergradient, PyTree]] = {}
        for n, (found, grads) in self.differentiate_at(run, points).items():
            found = report_actual(self.plan, n, actual[n], found)
            if self.telemetry:
                found = with_telemetry(self.plan, n, found, grads)
            together[n] = found, grads
        return together

    def differentiate_at(
        self, run: LowerRun, points: Mapping[str, EvaluationPoint]
    ) -> dict[str, tuple[Hypergradient, PyTree]]:
        """Return the hypergradients of problems at prepared points."""
        # dL_k/dtheta_k at fixed answers, and the part of the unrolled answers: their
        # cotangents, pulled back through the window that led to them.
        found = {
            n: hypergradient(self.plan, n, at, replay=False) for n, at in points.items()
        }
        return add_unrolled(self.plan, run, found)

    def point(
        self, layer: int, name: str, run: LowerRun, batches: Batches
    ) -> EvaluationPoint:
        """Return the point at which a problem is differentiated."""
        silent = self.reporting(Report.SILENT)
        return point_at_last_steps(silent, self.plan, layer, name, run, batches)


def _record(
    plan: Plan, run: LowerRun, names: Sequence[str], batches: Batches
) -> History:
    """Return the history after the steps of some problems."""
    model_states = {n: run.state[n].model_state for n in names}
    samples = {n: batches[n] for n in names if n in run.history.samples}
    return run.history._replace(
        model_states={
            **run.history.model_states,
            **jax.lax.stop_gradient(model_states),
        },
        samples={**run.history.samples, **samples},
        constants={**run.history.constants, **keep_constants(plan, names, run.state)},
    )
