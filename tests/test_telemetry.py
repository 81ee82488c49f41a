"""Telemetry: the parts of hypergradients, as metrics, and nothing where it is off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._cycle import cycle

from .nested import GRAPHS, Program, slope
from .small import GOOD
from .small import pair as tiny_pair
from .test_laws import DENSE, UNROLLED, momentum, quick, state_at, without_data


def telling(program, methods, **options):
    """Return an engine with telemetry, and its metrics at drawn parameters."""
    plain = program.engine(methods, **options)
    graph = program.graph
    engine = mlox.Engine(plain.problems, graph.u2l, graph.l2u, telemetry=True)
    batches = without_data(engine)

    @quick
    def found(state):
        top = graph.names[0]
        grads = engine.hypergradient(state, batches, top)[1]
        return engine.step(state, batches)[1], grads

    return engine, *found(state_at(engine, program.theta()))


@pytest.mark.slow
def test_parts_of_one_lower_are_those_of_the_formula():
    program = Program(GRAPHS["bilevel"])
    theta = program.theta()
    _, metrics, total = telling(program, {"c": DENSE})
    direct = slope(lambda x: program.cost("t", x), theta, "t")[0]
    indirect = total - direct
    lengths = [np.linalg.norm(x) for x in (direct, indirect)]
    expected = {
        "t/gradient_norm": np.linalg.norm(total),
        "t/direct_norm": lengths[0],
        "t/c/norm": lengths[1],
        "t/c/cosine": direct @ indirect / (lengths[0] * lengths[1]),
        "t/nonfinite_entries": 0,
        "c/gradient_norm": np.linalg.norm(
            slope(lambda x: program.cost("c", x), theta, "c")[0]
        ),
        "c/nonfinite_entries": 0,
    }
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], [value], rtol=1e-10)
    usual = {"t/loss", "t/c/gap", "t/c/iterations", "t/c/residual", "c/loss"}
    assert set(metrics) - usual <= set(expected)


@pytest.mark.slow
def test_unrolled_answers_are_one_part_beside_implicit_ones():
    program = Program(GRAPHS["two lowers"])
    _, metrics, total = telling(
        program, {"a": UNROLLED, "b": DENSE}, a=momentum(2), b={"unroll_steps": 2}
    )
    names = ("direct_norm", "a/norm", "b/norm")
    direct, unrolled, implicit = (metrics[f"t/{name}"].item() for name in names)
    # |d + u + i| from the lengths and the cosines with d alone: a bound.
    along = direct + sum(
        metrics[f"t/{n}/norm"].item() * metrics[f"t/{n}/cosine"].item() for n in "ab"
    )
    assert min(direct, unrolled, implicit) > 0
    assert abs(along) <= np.linalg.norm(total) <= direct + unrolled + implicit


@pytest.mark.slow
def test_nonfinite_entries_are_counted():
    loss = lambda params, batch, ctx: jnp.sum(jnp.sqrt(params))
    problem = mlox.Problem.create(
        name="x", params=jnp.array([0.0, 1.0, 0.0]), tx=optax.sgd(0.1), loss_fn=loss
    )
    engine = mlox.Engine([problem], telemetry=True)
    _, metrics = engine.step(engine.init(), {"x": None})
    assert metrics["x/nonfinite_entries"].tolist() == [2]


def test_telemetry_is_no_part_of_a_program_without_it(monkeypatch):
    """And engines with and without it are two values."""
    off, also_off, on = (tiny_pair(telemetry=t) for t in (False, False, True))
    assert off == also_off == tiny_pair()
    assert off != on
    trace = lambda engine: jax.eval_shape(engine.step, engine.init(), GOOD)[1]
    assert trace(on)["fit/gradient_norm"].shape == (2,)
    monkeypatch.setattr(cycle, "with_telemetry", None)
    assert "fit/gradient_norm" not in trace(off)
    with pytest.raises(TypeError, match="NoneType"):
        trace(on)
