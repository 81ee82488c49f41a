"""Several series for one problem, and calls at the ends of their passes."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._series import repeat


def make_engine(loss=lambda params, batch, ctx: params * batch):
    problem = mlox.Problem.create(
        name="x", params=jnp.zeros(()), tx=optax.sgd(-1.0), loss_fn=loss
    )
    return mlox.Engine([problem])


def take(series, count):
    return list(itertools.islice(repeat("x", series), count))


#
# Several series
#


@hypothesis.given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
@hypothesis.settings(deadline=None, max_examples=20)
def test_every_series_starts_again_on_its_own(lengths):
    whole = mlox.together(*(range(length) for length in lengths))
    expected = [tuple(i % length for length in lengths) for i in range(9)]
    assert take(whole, 9) == expected
    assert take(whole, 9) == expected  # it can be iterated over again
    assert list(itertools.islice(whole, 9)) == expected


def test_named_series_make_dicts_that_may_be_nested():
    whole = mlox.together(clean=[1, 2], noisy=mlox.together([3], [4, 5]))
    assert take(whole, 2) == [
        {"clean": 1, "noisy": (3, 4)},
        {"clean": 2, "noisy": (3, 5)},
    ]


def test_a_loss_gets_all_batches():
    def loss(params, batch, ctx):
        return params * (batch["clean"][0] + 10 * batch["noisy"])

    engine = make_engine(loss)
    data = mlox.together(clean=[(np.ones(()),)], noisy=[0.0, 1.0, 2.0])
    state, _ = engine.run(
        engine.init(), {"x": data}, 4, cycles_per_dispatch=2, loggers=()
    )
    assert float(state["x"].params) == 4 + 10 * (0 + 1 + 2 + 0)


def test_a_series_that_runs_out_is_named_with_its_problem():
    engine = make_engine(lambda params, batch, ctx: params * batch["noisy"])
    data = mlox.together(clean=[1.0], noisy=iter([1.0, 2.0]))
    message = r"source 'noisy' of data of 'x' ran out after 2 batches.*re-iterable"
    with pytest.raises(mlox.RunError, match=message) as caught:
        engine.run(engine.init(), {"x": data}, 9, loggers=())
    assert caught.value.cycle == 2
    assert float(caught.value.state["x"].params) == 3.0


def test_an_empty_series_is_named_before_anything_runs():
    engine = make_engine(lambda params, batch, ctx: params * batch[0])
    with pytest.raises(ValueError, match=r"^source 1 of data of 'x' is empty"):
        engine.run(engine.init(), {"x": mlox.together([1.0], [])}, loggers=())
    with pytest.raises(ValueError, match=r"^source 'b' of mlox.together is empty"):
        next(iter(mlox.together(a=[1.0], b=[])))
    nested = mlox.together(mlox.together(a=[]))
    with pytest.raises(ValueError, match=r"^source 'a' of source 0 of data of 'x' is"):
        take(nested, 1)


@pytest.mark.parametrize(
    ("args", "named", "kind", "message"),
    [
        ((), {}, TypeError, r"got no series; expected mlox.together\(a, b\)"),
        (([1],), {"b": [1]}, TypeError, "got series with and without names; expected"),
        ((3,), {}, TypeError, "source 0 of mlox.together must be an iterable.*got int"),
        ((), {"b": None}, TypeError, "source 'b' of mlox.together.*got NoneType"),
        (([1], np.ones(2)), {}, ValueError, "source 1 of mlox.together is one ndarray"),
    ],
)
def test_arguments_of_together_are_checked(args, named, kind, message):
    with pytest.raises(kind, match=message):
        mlox.together(*args, **named)
