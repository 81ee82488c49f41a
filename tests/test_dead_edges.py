"""Edges that carry nothing are told where a step is traced, and no others."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import mlox
from mlox._cycle.dead_reads import Fault
from mlox._engine import step as step_module
from mlox._engine.dead_edges import find_dead_edges
from mlox._hypergradient.watch import watch_reads, watched

stop = jax.lax.stop_gradient
ONES = jnp.ones(2)
NO_DATA = {"up": None, "low": None}


def problem(name, loss_fn, **parts):
    parts = {"params": ONES, "tx": optax.sgd(0.1), **parts}
    return mlox.Problem.create(name=name, loss_fn=loss_fn, **parts)


def cost(params):
    return jnp.sum((params - 1) ** 2)


def judge(params, batch, ctx):
    return cost(ctx.low.params)


def weigh(params, batch, ctx):
    return cost(params) + jnp.sum(jnp.exp(ctx.up.params) * params**2)


def bilevel(low=weigh, up=judge, method=None, upper=None, **parts):
    parts = {"unroll_steps": 2, "method": method, **parts}
    return mlox.Engine(
        [problem("up", up, **(upper or {})), problem("low", low, **parts)],
        {"up": ["low"]},
        {"low": ["up"]},
    )


def find(engine, batches=None):
    """Return (fault, reader, read) of each edge that a check finds."""
    state = engine.init()
    batches = dict.fromkeys(state) if batches is None else batches
    cycle = engine.traced.prepare(state, batches)
    found = find_dead_edges(cycle, state, batches)
    return [(e.fault, e.link.reader, e.link.read) for e in found]


def traced_warnings(engine, batches=None):
    """Return what is told while a step is traced."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = dict.fromkeys(engine.names) if batches is None else batches
        jax.eval_shape(engine.step, engine.init(), batches)
    return [str(warning.message) for warning in caught]


# Losses of the lower that do not let its answer respond, and of the upper that do not
# let the response come back.
DEAD_LOWERS = {
    "not read": (Fault.NOT_READ, lambda p, b, ctx: cost(p)),
    "a metric alone": (
        Fault.NOT_READ,
        lambda p, b, ctx: {"loss": cost(p), "up": jnp.sum(p * ctx.up.params)},
    ),
    "multiplied into nothing": (
        Fault.NOT_READ,
        lambda p, b, ctx: cost(p) + jnp.sum(p * jnp.zeros_like(ctx.up.params)),
    ),
    "stop_gradient": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: cost(p) + jnp.sum(stop(ctx.up.params) * p**2),
    ),
    "rounded": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: cost(p) + jnp.sum(jnp.round(ctx.up.params) * p**2),
    ),
    "cast to integers": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: (
            cost(p) + jnp.sum(ctx.up.params.astype(int).astype(p.dtype) * p)
        ),
    ),
    "an index": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: cost(p) + p[jnp.argmax(ctx.up.params)],
    ),
    "added": (
        Fault.ADDITIVE,
        lambda p, b, ctx: cost(p) + jnp.sum(ctx.up.params**2),
    ),
    "added, under remat": (
        Fault.ADDITIVE,
        lambda p, b, ctx: jax.checkpoint(lambda p, x: cost(p) + cost(x))(
            p, ctx.up.params
        ),
    ),
    "added in a loop": (
        Fault.ADDITIVE,
        lambda p, b, ctx: jax.lax.scan(
            lambda c, _: (c + cost(p) + cost(ctx.up.params), None), 0.0, None, 3
        )[0],
    ),
    "added, and a weight that is cut": (
        Fault.ADDITIVE,
        lambda p, b, ctx: (
            cost(ctx.up.params) + jnp.sum(jnp.round(ctx.up.params) * p**2)
        ),
    ),
}
DEAD_UPPERS = {
    "not read": (Fault.NOT_READ, lambda p, b, ctx: cost(p)),
    "stop_gradient": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: cost(p) + cost(stop(ctx.low.params)),
    ),
    "accuracy": (
        Fault.DERIVATIVE_CUT,
        lambda p, b, ctx: cost(p) + jnp.mean(ctx.low.params > 0, dtype=p.dtype),
    ),
}


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct,))


def network(params, batch, ctx):
    mean = ctx.model_state["mean"]
    return {"loss": weigh(params, batch, ctx), "model_state": {"mean": mean + 1}}


HEALTHY = {
    "a pure upper": lambda: bilevel(),
    "an upper of its own": lambda: bilevel(up=lambda p, b, c: judge(p, b, c) + cost(p)),
    "a branch": lambda: bilevel(
        lambda p, b, ctx: (
            cost(p)
            + jax.lax.cond(
                ctx.step > 5, lambda: jnp.sum(ctx.up.params * p), lambda: 0.0
            )
        )
    ),
    "a loop": lambda: bilevel(
        lambda p, b, ctx: jax.lax.fori_loop(
            0, 3, lambda _, c: c + jnp.sum(ctx.up.params * p), cost(p)
        )
    ),
    "remat": lambda: bilevel(
        lambda p, b, ctx: jax.checkpoint(lambda p, x: cost(p * x))(p, ctx.up.params)
    ),
    "training alone": lambda: bilevel(
        lambda p, b, ctx: weigh(p, b, ctx) if ctx.train else cost(p)
    ),
    "apply_fn": lambda: bilevel(
        lambda p, b, ctx: cost(ctx.up(p)), upper={"apply_fn": lambda x, p: x * p}
    ),
    "straight through": lambda: bilevel(
        lambda p, b, ctx: cost(p) + jnp.sum(straight_through(ctx.up.params) * p)
    ),
    "micro-batches": lambda: bilevel(mlox.Accumulated(weigh, 2)),
    "low precision": lambda: bilevel(mlox.MixedPrecision(weigh, jnp.bfloat16)),
    "one leaf of two": lambda: bilevel(
        lambda p, b, ctx: cost(p * ctx.up.params["a"]),
        upper={"params": {"a": ONES, "b": ONES}},
    ),
    "a mutable state": lambda: bilevel(network, model_state={"mean": 0.0}),
    "a mutable state alone": lambda: bilevel(
        network,
        lambda p, b, ctx: cost(p) + ctx.low.model_state["mean"],
        model_state={"mean": 0.0},
    ),
    "a metric of the answer": lambda: bilevel(
        up=lambda p, b, ctx: {"loss": cost(p), "low": judge(p, b, ctx)}
    ),
    "a frozen part": lambda: bilevel(
        lambda p, b, ctx: weigh(p["w"] + p["b"], b, ctx),
        lambda p, b, ctx: cost(ctx.low.params["b"]),
        params={"w": ONES, "b": ONES},
        meta_trainable=lambda p: {"w": True, "b": False},
    ),
    "warm-up": lambda: bilevel(warmup_steps=3),
    "tasks": lambda: bilevel(
        up=lambda p, b, ctx: cost(jnp.sum(ctx.low.params, 0)), tasks=3
    ),
    "sample alone": lambda: bilevel(
        lambda p, b, ctx: cost(p - b), sample=lambda p, ctx: 2 * ctx.up.params
    ),
    "reset alone": lambda: bilevel(
        lambda p, b, ctx: cost(p), reset=lambda p, ctx: ctx.up.params
    ),
    "reset alone, unrolled": lambda: bilevel(
        lambda p, b, ctx: cost(p),
        method=mlox.Unrolled(),
        reset=lambda p, ctx: ctx.up.params,
    ),
    "a start without a slope, unrolled": lambda: bilevel(
        lambda p, b, ctx: 0.0 * jnp.sum(ctx.up.params),
        method=mlox.Unrolled(),
        reset=lambda p, ctx: ctx.up.params,
    ),
    "a constant answer": lambda: bilevel(
        DEAD_LOWERS["added"][1], method=mlox.Detached()
    ),
    "a constant that is read": lambda: bilevel(
        up=DEAD_UPPERS["stop_gradient"][1], method=mlox.Detached()
    ),
}
METHODS = {
    "implicit": mlox.Implicit(),
    "unrolled": mlox.Unrolled(),
    "segments": mlox.Unrolled(checkpoint="segments"),
    "truncated": mlox.Unrolled(last_steps=1),
    "identity": mlox.Implicit(mlox.Identity()),
    "sama": mlox.SAMA(),
    "difference": mlox.FiniteDifference(),
}


def quick(names, *always):
    """Return names as parameters of a test: some always, the others if all run."""
    slow = pytest.mark.slow
    return [pytest.param(n, marks=() if n in always else slow) for n in names]


@pytest.mark.parametrize("method", quick(METHODS, "implicit"))
@pytest.mark.parametrize("name", quick(DEAD_LOWERS, "not read", "rounded", "added"))
def test_lower_that_does_not_respond_is_found(name, method):
    fault, loss = DEAD_LOWERS[name]
    engine = bilevel(loss, method=METHODS[method])
    assert find(engine) == [(fault, "low", "up")]


@pytest.mark.parametrize("method", quick(METHODS, "implicit"))
@pytest.mark.parametrize("name", quick(DEAD_UPPERS, "not read", "stop_gradient"))
def test_upper_that_does_not_see_the_response_is_found(name, method):
    fault, loss = DEAD_UPPERS[name]
    engine = bilevel(up=loss, method=METHODS[method])
    assert find(engine) == [(fault, "up", "low")]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_of_differences_what_is_added_is_told_by_a_check_alone(method):
    engine = bilevel(DEAD_LOWERS["added"][1], method=METHODS[method])
    assert len(traced_warnings(engine)) == (method != "difference")


FEW = ["a pure upper", "a branch", "a mutable state alone", "sample alone"]
FEW += ["reset alone", "a constant answer"]


@pytest.mark.parametrize("name", quick(HEALTHY, *FEW))
def test_nothing_is_found_in_a_program_without_fault(name):
    engine = HEALTHY[name]()
    batches = {"up": None, "low": jnp.ones((2, 4))} if name == "micro-batches" else None
    assert traced_warnings(engine, batches) == []


def test_edges_the_wrong_way_round_are_one_finding():
    problems = [problem("up", judge), problem("low", weigh)]
    engine = mlox.Engine(problems, {"low": ["up"]}, {"up": ["low"]})
    assert find(engine) == [(Fault.EDGE_REVERSED, "up", "up")]
    assert "Perhaps upper and lower are exchanged" in traced_warnings(engine)[0]


def three_levels(top=None, mid=None, low=None, skip=False, **options):
    """Make t over p over c; with `skip` t also reads c."""
    losses = {
        "t": lambda p, b, ctx: cost(ctx.p.params),
        "p": lambda p, b, ctx: cost(ctx.c.params) + jnp.sum((p - ctx.t.params) ** 2),
        "c": lambda p, b, ctx: cost(p) + jnp.sum(ctx.p.params * p**2),
    }
    losses |= {n: f for n, f in {"t": top, "p": mid, "c": low}.items() if f}
    l2u = {"c": ["p", "t"] if skip else ["p"], "p": ["t"]}
    problems = [problem(name, loss) for name, loss in losses.items()]
    return mlox.Engine(problems, {"t": ["p"], "p": ["c"]}, l2u, **options)


class TestThreeLevels:
    @pytest.mark.slow
    @pytest.mark.parametrize("coupling", ["total", "direct"])
    def test_healthy(self, coupling):
        assert traced_warnings(three_levels(coupling=coupling)) == []

    @pytest.mark.slow
    def test_pure_hyperparameters_in_the_middle(self):
        """The middle reads itself through its lower alone; fixed, it has no answer."""
        mid = lambda p, b, ctx: cost(ctx.c.params * ctx.t.params)
        assert traced_warnings(three_levels(mid=mid)) == []
        found = find(three_levels(mid=mid, coupling="direct"))
        assert found == [(Fault.EDGE_REVERSED, "p", "p")]

    @pytest.mark.slow
    def test_top_that_acts_on_the_answer_of_the_bottom(self):
        """C_p = <theta_t, theta_c> + f(theta_p) moves p through the answer of c."""
        mid = lambda p, b, ctx: jnp.sum(ctx.t.params * ctx.c.params) + cost(p)
        assert traced_warnings(three_levels(mid=mid)) == []

    @pytest.mark.slow
    def test_one_of_several_edges(self):
        low = lambda p, b, ctx: cost(p) + jnp.sum(stop(ctx.p.params) * p**2)
        found = find(three_levels(low=low))
        assert found == [(Fault.DERIVATIVE_CUT, "c", "p")]

    def test_top_that_reads_the_bottom_alone(self):
        """p weighs the loss of c; without the edge p -> t it would not be below t."""

        def engine(top, coupling="total"):
            losses = {
                "t": top,
                "p": lambda p, b, ctx: (
                    cost(ctx.c.params) + jnp.sum(ctx.t.params * p**2)
                ),
                "c": lambda p, b, ctx: cost(p) + jnp.sum(ctx.p.params * p**2),
            }
            problems = [problem(name, loss) for name, loss in losses.items()]
            edges = {"t": ["p"], "p": ["c"]}, {"p": ["t"], "c": ["p", "t"]}
            return mlox.Engine(problems, *edges, coupling=coupling)

        top = lambda p, b, ctx: cost(ctx.c.params)
        assert traced_warnings(engine(top)) == []
        # With direct coupling c does not respond to p, hence not to t.
        assert find(engine(top, "direct")) == [(Fault.NOT_READ, "t", "p")]
        cut = lambda p, b, ctx: cost(ctx.c.params + stop(ctx.p.params))
        assert find(engine(cut)) == [(Fault.DERIVATIVE_CUT, "t", "p")]

    @pytest.mark.slow
    def test_skip_edge_that_is_not_read(self):
        engine = three_levels(skip=True)
        assert find(engine) == [(Fault.NOT_READ, "t", "c")]

    def test_only_way_back_through_a_reader(self):
        """t leads c, p reads c, t reads p: p must respond to c for t to see it."""

        def engine(mid):
            losses = {
                "t": lambda p, b, ctx: cost(ctx.p.params),
                "p": mid,
                "c": lambda p, b, ctx: cost(p - ctx.t.params),
            }
            problems = [problem(name, loss) for name, loss in losses.items()]
            return mlox.Engine(problems, {"t": ["c"]}, {"c": ["p"], "p": ["t"]})

        healthy = lambda p, b, ctx: cost(p - ctx.c.params)
        assert traced_warnings(engine(healthy)) == []
        added = lambda p, b, ctx: cost(p) + cost(ctx.c.params)
        assert find(engine(added)) == [(Fault.ADDITIVE, "p", "c")]

    def test_plain_read_of_an_answer_may_be_cut(self):
        """A reader beside the way back: nobody differentiates what it reads."""
        problems = [
            problem("up", judge),
            problem("low", weigh),
            problem("log", lambda p, b, ctx: cost(p) + cost(stop(ctx.low.params))),
        ]
        engine = mlox.Engine(problems, {"up": ["low"]}, {"low": ["up", "log"]})
        assert traced_warnings(engine) == []


class TestWarning:
    CUT = bilevel(DEAD_LOWERS["stop_gradient"][1])
    MESSAGE = "the loss of 'low' reads the parameters of 'up', but has no derivative"

    def test_names_problem_edge_and_remedy(self):
        (message,) = traced_warnings(self.CUT)
        assert message.startswith(self.MESSAGE)
        assert "u2l={'up': ['low']} is declared" in message
        assert "the hypergradient of 'up' lacks the response of 'low'" in message
        assert "method=mlox.Detached() to 'low'" in message

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "transform",
        [
            lambda step, state: jax.jit(step)(state),
            lambda step, state: jax.jvp(step, (state,), (state,)),
            lambda step, state: jax.grad(lambda s: step(s)["low"].sum())(state),
            lambda step, state: jax.lax.scan(lambda s, _: (step(s), 0), state, None, 2),
            lambda step, state: jax.vmap(step)(jax.tree.map(lambda x: x[None], state)),
        ],
        ids=["jit", "jvp", "grad", "scan", "vmap"],
    )
    @pytest.mark.parametrize("loss", [weigh, DEAD_LOWERS["stop_gradient"][1]])
    def test_under_transformations(self, transform, loss):
        engine = bilevel(loss)
        state = engine.init()

        def of_params(params):
            moved = {n: state[n].replace(params=p) for n, p in params.items()}
            after = engine.step(moved, NO_DATA)[0]
            return {n: problem.params for n, problem in after.items()}

        params = {n: p.params for n, p in state.items()}
        told = contextlib.nullcontext()
        if loss is not weigh:
            told = pytest.warns(UserWarning, match=self.MESSAGE)
        with told:
            jax.eval_shape(lambda p: transform(of_params, p), params)

    def test_of_a_hypergradient(self):
        with pytest.warns(UserWarning, match=self.MESSAGE):
            jax.eval_shape(
                lambda state: self.CUT.hypergradient(state, NO_DATA, "up"),
                self.CUT.init(),
            )

    def test_is_given_once_in_a_run(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            self.CUT.run(self.CUT.init(), None, 3, loggers=(), progress=False)
        assert len(caught) == 1


@pytest.mark.parametrize("method", [mlox.Implicit(), mlox.Unrolled()])
def test_watching_leaves_the_program_as_it_is(method, monkeypatch):
    engine = bilevel(method=method, unroll_steps=4)

    def operations():
        step = jax.jit(lambda state: engine.step(state, NO_DATA))
        text = step.lower(engine.init()).as_text()
        return sorted(line.split("=")[-1].split("%")[0] for line in text.splitlines())

    watched_step = operations()
    without = lambda *args: contextlib.nullcontext()
    monkeypatch.setattr(step_module, "warn_of_dead_edges", without)
    assert operations() == watched_step


def test_nothing_is_seen_after_a_watch_has_ended():
    read = lambda x: watched("low", "up", x)
    with watch_reads([("low", "up")]) as carried:
        _, pull = jax.vjp(lambda x: read(x) ** 2, 3.0)
    assert read(1.0) == 1.0
    assert pull(1.0)[0] == 6.0
    assert not carried


def test_a_watch_ends_with_an_error():
    engine = bilevel(lambda p, b, ctx: p)
    with pytest.raises(ValueError, match="returned"):
        engine.step(engine.init(), NO_DATA)
    x = jnp.ones(())
    assert watched("low", "up", x) is x
