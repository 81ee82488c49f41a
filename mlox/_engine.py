"""The engine: a graph of problems, compiled into one step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mlox import _data, _explain, _run
from mlox._cycle import Batches, Cycle, Metrics, State
from mlox._graph import Graph, build_graph
from mlox._loops import unrolls
from mlox._plan import Block, Plan
from mlox._problem import Problem, described
from mlox.methods import Implicit, Unrolled, reach
from mlox.solvers import System

PyTree = Any
Node = str | Problem
Edges = Mapping[Any, Sequence[Node]]


@dataclass(frozen=True, init=False)
class Engine:
    """Compile a graph of problems into one step.

    Every problem k minimises a cost C_k(theta_k, uppers, lowers). Along a u2l edge
    p -> c the cost of c reads theta_p, and the gradient of p flows through the answer
    theta_c*(theta_p); along an l2u edge c -> p the cost of p reads that answer. A leaf
    steps at every tick, a problem when all its lowers have done their `unroll_steps`;
    one cycle is the largest period. The whole cycle is one traced function.

    Engines are frozen values: hashable, equal if graph, methods' kinds and options are.

    Attributes:
        problems: The problems as they were given.
        cycle: The traced function and its plan.
        unroll_loops: See the argument.

    Args:
        problems: The problems, made by `Problem.create`.
        u2l: Upper -> lowers that read it; names, or the problems themselves.
        l2u: Lower -> uppers that read its answer.
        coupling: "total": an implicit problem that has movers of its own answers to
            its total objective, in which they respond; exact at any depth. "direct":
            it answers to the partial gradient of its cost, the rule of Betty; cheaper,
            and biased for three levels and more.
        unroll_loops: Whether loops over steps are written out. None: only where a loss
            holds a convolution and the backend is the CPU, since XLA runs these 11 to
            30 times slower inside a loop there.

    Raises:
        TypeError: If a problem is none.
        ValueError: If the graph is not acyclic, not closed or not on schedule, or a
            method cannot serve where it stands; the message names problem and edge.

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
        *,
        coupling: Literal["total", "direct"] = "total",
        unroll_loops: bool | None = None,
    ) -> None:
        _check_problems(problems)
        if coupling not in ("total", "direct"):
            raise ValueError(
                f"coupling is {coupling!r}; expected 'total' (exact at any depth) or "
                "'direct' (each problem takes its lowers as fixed)."
            )
        graph = build_graph(
            [p.name for p in problems],
            _named("u2l", u2l),
            _named("l2u", l2u),
            {p.name: int(p.unroll_steps) for p in problems},
        )
        plan = _plan(graph, problems, coupling == "total")
        _check_methods(plan, {p.name: p for p in problems})
        _warn_of_adaptive(plan, problems)
        object.__setattr__(self, "problems", tuple(problems))
        object.__setattr__(self, "cycle", Cycle(plan, unroll=bool(unroll_loops)))
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
        return {
            problem.name: jax.tree.map(lambda x: jnp.array(x, copy=True), problem)
            for problem in self.problems
        }

    def step(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle. Pure and not jitted: jit, scan, vmap or shard it.

        Args:
            state: {name: Problem}.
            batches: {name: pytree of arrays with a leading axis of
                `steps_per_cycle[name]`}, or None for a problem without data.

        Returns:
            The state after, of the same structure, and the metrics: a flat dict
            "problem/metric" -> array with a leading axis of `steps_per_cycle`. The
            solvers report as "upper/lower/residual" and "upper/lower/iterations".

        Raises:
            ValueError: If state or batches do not fit, or a loss returns something
                else than a loss; while tracing, before anything runs.
        """
        return self._prepared(state, batches).step(state, batches)

    def compile(self, donate: bool = True) -> Any:
        """Return `jax.jit` of the step.

        Args:
            donate: Give the buffers of the state that is passed to the state that is
                returned; the one that was passed can then not be used again.

        Returns:
            The jitted function; equal engines share what was compiled.
        """
        return jax.jit(Step(self.cycle, self.unroll_loops), donate_argnums=(
            (0,) if donate else ()
        ))

    def hypergradient(
        self, state: State, batches: Batches, name: str
    ) -> tuple[jax.Array, PyTree]:
        """Return the total gradient of a problem's cost, without an update.

        dL/dtheta at fixed answers and multipliers, as `step` would use it at the first
        update of the problem in the cycle: its lowers run first. It can itself be
        differentiated.

        Args:
            state: {name: Problem}.
            batches: As for `step`.
            name: The problem.

        Returns:
            The loss, and a pytree like the problem's params.

        Raises:
            ValueError: If the problem is unknown, or as for `step`.
        """
        if name not in self.names:
            raise ValueError(
                f"hypergradient of {name!r}: no such problem; the engine has "
                f"{sorted(self.names)}."
            )
        return self._prepared(state, batches).hypergradient(state, batches, name)

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
        return _data.stack(self.steps_per_cycle, iterators)

    def run(
        self,
        state: State,
        data: Mapping[str, Iterable[Any] | None] | None = None,
        train_iters: int = 1000,
        **options: Any,
    ) -> tuple[dict[str, Problem], dict[str, np.ndarray]]:
        """Train for a number of cycles; see `mlox.run` for the options.

        Args:
            state: {name: Problem}, e.g. from `init`; it stays usable.
            data: {name: iterable of batches}, restarted at its end.
            train_iters: The number of cycles.
            **options: Those of `mlox.run`.

        Returns:
            The last state, and the history of the metrics for plotting.

        Raises:
            RunError: If a loss, loader, validation or logger fails; the last good
                state is attached.
        """
        return _run.run(self, state, data, train_iters, **options)

    def explain(self) -> str:
        """Return a readable text of graph, periods, paths, methods and steps."""
        return _explain.explain(self.cycle.plan, self.problems)

    def mermaid(self) -> str:
        """Return the graph as a Mermaid diagram, for Markdown."""
        return _explain.mermaid(self.cycle.plan, self.problems)

    def _prepared(self, state: State, batches: Batches) -> Cycle:
        return Step(self.cycle, self.unroll_loops).prepared(state, batches)


@dataclass(frozen=True)
class Step:
    """The step of an engine as a value: equal engines then share compiled programs.

    Attributes:
        cycle: The cycle.
        unroll_loops: As for `Engine`.
    """

    cycle: Cycle
    unroll_loops: bool | None

    def __call__(self, state: State, batches: Batches) -> tuple[State, Metrics]:
        """Run one cycle."""
        return self.prepared(state, batches).step(state, batches)

    def prepared(self, state: State, batches: Batches) -> Cycle:
        """Check the arguments of a step, and decide whether loops are written out."""
        plan = self.cycle.plan
        _check_state(plan, state)
        _check_batches(plan.graph, batches)
        if self.unroll_loops is not None:
            return self.cycle
        looped = [n for n, steps in plan.graph.steps_per_cycle.items() if steps > 1]
        return self.cycle.unrolled(
            any(self._convolves(state, batches, name) for name in looped)
        )

    def _convolves(self, state: State, batches: Batches, name: str) -> bool:
        def cost(state: State, batch: PyTree) -> jax.Array:
            return self.cycle.cost(state, batch, name)

        return unrolls(cost, state, jax.tree.map(lambda x: x[0], batches[name]))


def _named(kind: str, edges: Edges | None) -> dict[str, list[str]]:
    def name(node: Any) -> str:
        if isinstance(node, Problem):
            return node.name
        if not isinstance(node, str):
            raise TypeError(
                f"{kind} holds {node!r}; expected the name of a problem, or a Problem."
            )
        return node

    if edges is not None and not isinstance(edges, Mapping):
        raise TypeError(
            f"{kind} is {edges!r}; expected a dict from a problem to a list of problems."
        )
    return {
        name(start): ends if isinstance(ends, str) else [name(end) for end in ends]
        for start, ends in (edges or {}).items()
    }


def _plan(graph: Graph, problems: Sequence[Problem], total: bool) -> Plan:
    return Plan(
        graph=graph,
        unrolled=frozenset(p.name for p in problems if isinstance(p.method, Unrolled)),
        coupling=frozenset(
            p.name for p in problems if total and reach(p.method) > System.NONE
        ),
    )


def _check_problems(problems: Any) -> None:
    if isinstance(problems, Problem) or not isinstance(problems, Iterable):
        raise TypeError(f"Engine got {problems!r}; expected a list of problems.")
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(
                f"Engine got {problem!r} of type {type(problem).__name__} among its "
                "problems; make each with mlox.Problem.create."
            )


def _check_methods(plan: Plan, problems: Mapping[str, Problem]) -> None:
    blocks = {b: n for n, r in plan.responses.items() for b in r.blocks}
    for block, upper in blocks.items():
        _check_block(block, upper, problems)
    graph = plan.graph
    for layer, names in enumerate(graph.layers):
        for u in {u for n in names for u in plan.responses[n].own}:
            steps: Any = getattr(problems[u].method, "last_steps", None)
            per_round = graph.layer_period[layer - 1] // graph.period[u]
            if steps is not None and steps % per_round:
                raise ValueError(
                    f"problem {u!r}: Unrolled(last_steps={steps}) cuts through a round "
                    f"of {per_round} steps of {u!r} in the window of {names[0]!r}. "
                    f"Choose a multiple of {per_round}."
                )


def _check_block(block: Block, upper: str, problems: Mapping[str, Problem]) -> None:
    methods = {top: problems[top].method for top in block.tops}
    first = block.tops[0]
    for top, method in methods.items():
        if method != methods[first]:
            raise ValueError(
                f"problems {first!r} and {top!r} lead a lower that they share, so their "
                f"answers to {upper!r} are one linear system; but their methods differ: "
                f"{methods[first]} and {method}. Give both the same, e.g. "
                "mlox.Implicit(mlox.GMRES()), or use coupling='direct'."
            )
    served = reach(methods[first])
    if System.NONE < served < block.system:
        kind = {
            System.SYMMETRIC: "symmetric but indefinite, as lowers of its own respond",
            System.GENERAL: "not symmetric, a Nash game over what its tops share",
        }[block.system]
        raise ValueError(
            f"problem {first!r}: {methods[first]} cannot solve for its answer to "
            f"{upper!r}: the system of {', '.join(reversed(block.names))} is {kind}. "
            f"Use mlox.Implicit(mlox.GMRES()) for {first!r}, or mlox.Implicit(), which "
            "picks a fitting solver, or coupling='direct'."
        )


def _warn_of_adaptive(plan: Plan, problems: Sequence[Problem]) -> None:
    """Say so if an optimizer cannot be differentiated where a gradient is zero."""
    for problem in problems:
        if problem.name not in plan.moved & plan.unrolled:
            continue
        zeros = jax.tree.map(jnp.zeros_like, problem.params)
        ones = jax.tree.map(jnp.ones_like, problem.params)
        fresh = problem.replace(opt_state=problem.tx.init(problem.params))
        slopes = jax.jit(fresh.pull_update)(zeros, ones)
        if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(slopes)):
            warnings.warn(
                f"problem {problem.name!r} is Unrolled, but its optimizer has an "
                "infinite derivative where a gradient is zero (Adam's square root of a "
                "zero second moment): one such entry makes the hypergradient NaN. "
                "Pass eps_root=1e-8 to optax.adam and its kin, or use Implicit.",
                stacklevel=3,
            )


def _check_state(plan: Plan, state: State) -> None:
    if set(state) != set(plan.graph.names):
        raise ValueError(
            f"state has the problems {sorted(state)}, the engine {sorted(plan.graph.names)}"
            ". Start from engine.init(), and change problems with replace."
        )
    steps = dict(zip(plan.graph.names, plan.graph.unroll_steps, strict=True))
    for name, problem in state.items():
        unrolled = isinstance(problem.method, Unrolled)
        if problem.unroll_steps != steps[name] or unrolled != (name in plan.unrolled):
            raise ValueError(
                f"problem {name!r}: method or unroll_steps in the state "
                f"({problem.method}, {problem.unroll_steps}) are not those that the "
                "engine was built with. Build a new Engine with the changed problem; "
                "the state can stay."
            )
        expected = described(jax.eval_shape(problem.tx.init, problem.params))
        if described(problem.opt_state) != expected:
            raise ValueError(
                f"problem {name!r}: opt_state does not fit tx and params in the state. "
                f"Got {described(problem.opt_state)}, expected {expected}. When "
                "replacing params or tx by others, replace opt_state by "
                "tx.init(params)."
            )


def _check_batches(graph: Graph, batches: Batches) -> None:
    if not isinstance(batches, Mapping) or set(batches) != set(graph.names):
        given = sorted(batches) if isinstance(batches, Mapping) else batches
        raise ValueError(
            f"batches has {given}; expected one entry for each of {sorted(graph.names)}"
            ", None for a problem without data. engine.stack makes them."
        )
    for name, batch in batches.items():
        steps = graph.steps_per_cycle[name]
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if np.shape(leaf)[:1] != (steps,):
                raise ValueError(
                    f"batches[{name!r}]{jax.tree_util.keystr(path)} has shape "
                    f"{np.shape(leaf)}; expected a leading axis of {steps}, since "
                    f"{name!r} makes {steps} steps in a cycle. engine.stack stacks "
                    "them so."
                )
