"""Evolution strategies: an answer that is differentiated by random differences."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mlox._engine.build import Edges
from mlox._graph.dependencies import Plan
from mlox._problem.problem import Problem
from mlox._utils.fields import (
    COUNT,
    POSITIVE,
    check,
    check_function,
    instance_of,
    optional,
)
from mlox.methods import Detached
from mlox.rewritings._copies import (
    Copy,
    CopyHyperparams,
    CopyLoss,
    CopySample,
    Draw,
    Windows,
)
from mlox.rewritings._estimators import ES, NRES, PES, Estimator
from mlox.rewritings._graph import Graph, make_graph, read_graph
from mlox.rewritings._pair import find_pair
from mlox.rewritings._smoothed import SmoothedLoss, trained_part

ESTIMATOR = instance_of(
    ES | PES | NRES, "mlox.ES(), mlox.PES(windows=...) or mlox.NRES(windows=...)"
)


def evolve(
    problems: Sequence[Problem],
    u2l: Edges | None = None,
    l2u: Edges | None = None,
    reads: Edges | None = None,
    *,
    lower: str | Problem,
    pairs: int,
    sigma: float,
    estimator: Estimator = ES(),  # noqa: B008  (a frozen value)
    pairs_at_once: int | None = None,
    draw: Draw = jax.random.normal,
) -> Graph:
    r"""Estimate an upper's hypergradient from losses alone, at random perturbations.

    The lower becomes 2 N copies, its tasks: copy i runs the window of inner steps under
    x + s_i, and copy N + i under x - s_i, with s_i ~ N(0, sigma^2 I), the same batches
    and the same keys in all of them (common random numbers). The slope of the upper's
    loss F, at the copies, becomes the antithetic estimate

        g = 1 / (2 sigma^2 N) sum_i s_i (F(x + s_i) - F(x - s_i)),

    an unbiased one of d/dx E[F(x + s)], the gradient of F smoothed by sigma. F is read
    as a function of x in all ways: through the window, through `reset`, `sample` and
    `hyperparams` of the lower, and in the upper's own loss. Neither it nor the window
    is differentiated in x: either may be chaotic, round, sample, or call what JAX
    cannot differentiate. (The lower still descends along its own gradient.)

    For a smooth window `mlox.Unrolled` has the gradient itself, for the price of one
    window and without noise. If only (dy/dx)^T v is to be estimated, and the upper's
    loss has a gradient v, write a `mlox.Loop`, as in the example there.

    Cost: 2 N windows and 2 N losses of the upper per step, without a derivative in x.
    Memory: 2 N states of the lower, and as many perturbations of the size of x (twice
    as many under `mlox.PES`). They are tasks, which `mlox.shard` splits over devices.

    Args:
        problems: As for `mlox.Engine`, like u2l, l2u and reads.
        u2l: Upper -> lowers that read it.
        l2u: Lower -> uppers that read its answer.
        reads: Problem -> those that its loss reads as constants.
        lower: The problem that is copied, or its name. It has `rng`, from which the
            perturbations are drawn. Its upper is perturbed, in all that is trained.
        pairs: N. The variance of the estimate falls as 1 / N, and grows as the number
            of parameters in x.
        sigma: The standard deviation of perturbations. The bias grows as sigma^2 times
            the third derivatives of F; below the size of its jumps, or of the noise
            of a chaotic window, the variance grows as 1 / sigma^2. It is a step in x
            that matters: one for all leaves, so scale them alike.
        estimator: How perturbations live, where an inner problem goes on over several
            windows: `mlox.ES`, `mlox.PES` or `mlox.NRES`.
        pairs_at_once: The number of pairs whose windows are run at a time; None for
            all.
        draw: (key, shape, dtype) -> perturbations of variance one, such as
            `jax.random.rademacher` (simultaneous perturbations, SPSA).

    Returns:
        The graph, in which the lower is its copies. Metrics of both problems are means
        over copies. For the answer to an x that was found, train the lower in the graph
        as it was.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument has a wrong value, or the graph is one for which the
            estimate is not defined.

    References:
        Salimans et al., Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning, 2017; Vicol et al., 2021, and Li et al., 2023, as in `mlox.PES` and
        `mlox.NRES`; Spall, Multivariate Stochastic Approximation Using a Simultaneous
        Perturbation Gradient Approximation, 1992.

    Example:
        A loss that is rounded has no useful derivative; its smoothed one is that of
        y^2, since y = x / 2:

        >>> import jax.numpy as jnp, mlox, optax
        >>> x = mlox.Problem.create(
        ...     name="x", params=jnp.array(4.0), tx=optax.sgd(0.1),
        ...     loss_fn=lambda params, batch, ctx: jnp.round(4 * ctx.y.params**2) / 4)
        >>> y = mlox.Problem.create(
        ...     name="y", params=jnp.zeros(()), tx=optax.sgd(0.25), rng=0,
        ...     loss_fn=lambda params, batch, ctx:
        ...         0.5 * (2 * params - ctx.x.params) ** 2,
        ...     reset=lambda params, ctx: jnp.zeros(()))
        >>> graph = mlox.evolve(
        ...     [x, y], {"x": ["y"]}, {"y": ["x"]}, lower="y", pairs=2000, sigma=0.5)
        >>> engine = mlox.Engine(*graph)
        >>> _, slope = engine.hypergradient(engine.init(), {"x": None, "y": None}, "x")
        >>> bool(abs(slope - 2.0) < 0.1)
        True
    """
    by_name, plan = read_graph(problems, u2l, l2u, reads)
    one, copied = find_pair("mlox.evolve", by_name, plan, lower)
    check("mlox.evolve: pairs", pairs, COUNT)
    check("mlox.evolve: sigma", sigma, POSITIVE)
    check("mlox.evolve: estimator", estimator, ESTIMATOR)
    check_function("mlox.evolve: draw", draw, "(key, shape, dtype) -> array")
    _check_pairs_at_once(pairs, pairs_at_once)
    _check_graph(plan, one.name, copied.name)
    _check_problems(one, copied, estimator)
    windows = Windows(copied.reset, one.name, estimator, pairs, float(sigma), draw)
    at_once = None if pairs_at_once is None else 2 * pairs_at_once
    changed = {
        one.name: one.replace(
            loss_fn=SmoothedLoss(
                one.loss_fn,
                one.sample,
                one.trainable,
                copied.name,
                pairs,
                float(sigma),
            ),
            sample=None,
        ),
        copied.name: _copy(copied, one, windows, at_once),
    }
    graph = plan.graph
    return make_graph(
        [changed.get(name, problem) for name, problem in by_name.items()],
        graph.u2l,
        graph.l2u,
        graph.plain,
    )


def _copy(
    lower: Problem, upper: Problem, windows: Windows, at_once: int | None
) -> Problem:
    """Return the lower as copies, its tasks."""
    zeros = jax.tree.map(jnp.zeros_like, trained_part(upper.trainable, upper.params))
    state = Copy(lower.model_state, windows.estimator.first(zeros), jnp.int32(0))
    sample, hyperparams = lower.sample, lower.hyperparams
    made = Problem.create(
        name=lower.name,
        params=lower.params,
        tx=lower.tx,
        loss_fn=CopyLoss(lower.loss_fn, upper.name),
        apply_fn=lower.apply_fn,
        unroll_steps=lower.unroll_steps,
        tasks=2 * windows.pairs,
        tasks_at_once=at_once,
        shared_batches=True,
        sample=None if sample is None else CopySample(sample, upper.name),
        reset=windows,
        project=lower.project,
        trainable=lower.trainable,
        warmup_steps=lower.warmup_steps,
        hyperparams=None
        if hyperparams is None
        else CopyHyperparams(hyperparams, upper.name),
        loss_scale=lower.loss_scale,
        model_state=state,
        rng=lower.rng,
        opt_state=lower.opt_state,
    )
    return made.replace(step=lower.step, method=Detached())


def _check_pairs_at_once(pairs: int, at_once: int | None) -> None:
    """Raise ValueError unless chunks of that many pairs make up all of them."""
    check("mlox.evolve: pairs_at_once", at_once, optional(COUNT))
    if at_once is not None and pairs % at_once:
        fits = [k for k in range(1, pairs + 1) if pairs % k == 0]
        raise ValueError(
            f"mlox.evolve: pairs_at_once is {at_once}, which does not divide "
            f"pairs={pairs}; expected one of {fits}."
        )


def _check_graph(plan: Plan, upper: str, lower: str) -> None:
    """Raise ValueError if others see the copies, or the upper sees other answers."""
    graph = plan.graph
    others = [n for n in graph.lowers(upper) if n != lower]
    if others:
        raise ValueError(
            f"mlox.evolve: the upper {upper!r} has the lowers {lower!r} and "
            f"{others[0]!r}; expected one, as what {others[0]!r} answers to each "
            "perturbation is not known. Join the two into one problem, with both as "
            "entries of params."
        )
    readers = sorted(a for a, b in graph.plain if b == lower and a != upper)
    if readers:
        raise ValueError(
            f"mlox.evolve: {readers[0]!r} reads {lower!r} as a constant, which becomes "
            f"copies. Let it read {upper!r}, or a problem of its own."
        )


def _check_problems(upper: Problem, lower: Problem, estimator: Estimator) -> None:
    """Raise ValueError if the parts of a problem do not fit the copies."""
    for problem in (upper, lower):
        if problem.tasks is not None:
            raise ValueError(
                f"mlox.evolve: problem {problem.name!r} has tasks={problem.tasks}; "
                "expected no tasks, since the copies are tasks. Put the tasks into its "
                "loss, by jax.vmap over stacked params; or run the engine for each, by "
                "jax.vmap of engine.step."
            )
    if upper.model_state is not None:
        raise ValueError(
            f"mlox.evolve: problem {upper.name!r} has a mutable state, of which each "
            f"copy would make another one. Keep it in {lower.name!r}, or drop "
            "model_state."
        )
    if lower.rng is None:
        raise ValueError(
            f"mlox.evolve: problem {lower.name!r} has no PRNG key, from which "
            "perturbations are drawn. Pass rng=, e.g. rng=0, to Problem.create."
        )
    if lower.reset is None and (estimator.goes_on_alone or estimator.windows > 1):
        raise ValueError(
            f"mlox.evolve: {estimator} begins the inner problem anew after each "
            f"episode, but problem {lower.name!r} has no reset. Pass reset=lambda "
            "params, ctx: start to Problem.create; or use mlox.ES(), for windows that "
            "go on for ever."
        )
