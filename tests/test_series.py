"""Several series for one problem, and calls at the ends of their passes."""

import itertools
import weakref

import chex
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._data.combinators import open_series


def make_engine(loss=lambda params, batch, ctx: params * batch):
    problem = mlox.Problem.create(
        name="x", params=jnp.zeros(()), tx=optax.sgd(-1.0), loss_fn=loss
    )
    return mlox.Engine([problem])


def take(series, count):
    return list(itertools.islice(open_series("data of 'x'", series), count))


#
# Several series
#


@hypothesis.given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
@hypothesis.settings(max_examples=20)
def test_together_starts_every_series_again_on_its_own(lengths):
    whole = mlox.together(*(range(length) for length in lengths))
    expected = [tuple(i % length for length in lengths) for i in range(9)]
    assert take(whole, 9) == expected
    assert take(whole, 9) == expected  # it can be iterated over again
    assert list(itertools.islice(whole, 9)) == expected


def test_together_makes_dicts_of_named_series_that_may_be_nested():
    whole = mlox.together(clean=[1, 2], noisy=mlox.together([3], [4, 5]))
    assert take(whole, 2) == [
        {"clean": 1, "noisy": (3, 4)},
        {"clean": 2, "noisy": (3, 5)},
    ]


def test_together_gives_a_loss_all_batches():
    def loss(params, batch, ctx):
        return params * (batch["clean"][0] + 10 * batch["noisy"])

    engine = make_engine(loss)
    data = mlox.together(clean=[(np.ones(()),)], noisy=[0.0, 1.0, 2.0])
    state, _ = engine.run(
        engine.init(), {"x": data}, 4, cycles_per_dispatch=2, loggers=()
    )
    assert float(state["x"].params) == 4 + 10 * (0 + 1 + 2 + 0)


def test_together_names_a_series_that_runs_out_with_its_problem():
    engine = make_engine(lambda params, batch, ctx: params * batch["noisy"])
    data = mlox.together(clean=[1.0], noisy=iter([1.0, 2.0]))
    message = r"source 'noisy' of data of 'x' ran out after 2 batches.*re-iterable"
    with pytest.raises(mlox.RunError, match=message) as caught:
        engine.run(engine.init(), {"x": data}, 9, loggers=())
    assert caught.value.cycle == 2
    assert float(caught.value.state["x"].params) == 3.0


def test_together_names_an_empty_series_before_anything_runs():
    engine = make_engine(lambda params, batch, ctx: params * batch[0])
    with pytest.raises(ValueError, match=r"^source 1 of data of 'x' is empty"):
        engine.run(engine.init(), {"x": mlox.together([1.0], [])}, loggers=())
    with pytest.raises(ValueError, match=r"^source 'b' of mlox.together is empty"):
        next(iter(mlox.together(a=[1.0], b=[])))
    nested = mlox.together(mlox.together(a=[]))
    with pytest.raises(ValueError, match=r"^source 'a' of source 0 of data of 'x' is"):
        take(nested, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0.0], mlox.together([0.0], [1.0])),
        (mlox.together([0.0], [1.0]), [0.0]),
        (mlox.together([0.0], [1.0]), mlox.together([0.0])),
    ],
)
def test_series_of_another_kind_raises_for_a_position(before, after):
    position = open_series("data of 'x'", before).position()
    with pytest.raises(ValueError, match="data of 'x' is another kind of series than"):
        open_series("data of 'x'", after, position)


#
# Shuffled arrays
#


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shuffled_draws_every_pass_in_the_order_of_seed_and_pass(size):
    arrays = {"x": np.arange(7.0), "y": np.arange(14).reshape(7, 2)}
    expected = []
    for epoch in range(4):
        order = np.random.default_rng((5, epoch)).permutation(7)
        for i in range(7 // size):
            chosen = order[i * size : (i + 1) * size]
            expected.append({"x": arrays["x"][chosen], "y": arrays["y"][chosen]})
    series = mlox.shuffled(arrays, size, seed=5)
    chex.assert_trees_all_equal(take(series, len(expected)), expected)
    for count in range(len(expected)):
        source = open_series("data of 'x'", series)
        for _ in range(count):
            next(source)
        part = open_series("data of 'x'", series, source.position())
        following = list(itertools.islice(part, len(expected) - count))
        chex.assert_trees_all_equal(following, expected[count:])


def test_shuffled_holds_one_permutation_at_a_time(monkeypatch):
    made = []

    class Generator:
        def __init__(self, seed):
            self.seed = seed

        def permutation(self, length):
            assert all(order() is None for _, order in made)
            order = np.arange(length)
            made.append((self.seed, weakref.ref(order)))
            return order

    monkeypatch.setattr(np.random, "default_rng", Generator)
    series = iter(mlox.shuffled(np.arange(5), 2, seed=3))
    for _ in range(8):
        next(series)
    assert [seed for seed, _ in made] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    del series
    assert all(order() is None for _, order in made)


#
# Ends of passes
#


def test_on_epoch_end_calls_whenever_a_pass_ends():
    ends, taken = [], []
    series = mlox.on_epoch_end([5, 6], lambda epoch: ends.append((epoch, len(taken))))
    for batch in itertools.islice(open_series("data of 'x'", series), 5):
        taken.append(batch)
    assert taken == [5, 6, 5, 6, 5]
    assert ends == [(1, 2), (2, 4)]


def test_on_epoch_end_calls_in_the_order_in_which_it_was_applied():
    ends = []
    series = [1, 2]
    for name in "abc":
        series = mlox.on_epoch_end(series, lambda n, name=name: ends.append((name, n)))
    assert take(series, 4) == [1, 2, 1, 2]
    assert ends == [("a", 1), ("b", 1), ("c", 1)]
    assert list(itertools.islice(series, 3)) == [1, 2, 1]


def test_on_epoch_end_counts_anew_in_another_run():
    ends = []
    engine = make_engine()
    series = mlox.on_epoch_end([1.0, 2.0], ends.append)
    state, _ = engine.run(engine.init(), {"x": series}, 5, loggers=())
    engine.run(state, {"x": series}, 3, loggers=())
    assert ends == [1, 2, 1]


def test_on_epoch_end_counts_each_of_several_series():
    ends = []
    series = mlox.together(
        mlox.on_epoch_end([1, 2], lambda epoch: ends.append(("a", epoch))),
        mlox.on_epoch_end([1, 2, 3], lambda epoch: ends.append(("b", epoch))),
    )
    take(series, 5)
    assert ends == [("a", 1), ("b", 1), ("a", 2)]


@pytest.mark.parametrize("series", [[], iter([])])
def test_on_epoch_end_makes_no_call_for_an_empty_series(series):
    with pytest.raises(ValueError, match="'x' is empty"):
        take(mlox.on_epoch_end(series, pytest.fail), 1)


def test_on_epoch_end_calls_once_for_a_one_shot_series():
    ends = []
    with pytest.raises(ValueError, match="'x' ran out after 2 batches"):
        take(mlox.on_epoch_end(iter([1, 2]), ends.append), 3)
    assert ends == [1]


def test_callback_that_raises_keeps_the_state():
    def callback(epoch):
        if epoch == 2:
            raise InterruptedError("enough")

    engine = make_engine()
    series = mlox.on_epoch_end([1.0, 2.0], callback)
    message = "failed at the data of cycle 5 of 9.*InterruptedError: enough"
    with pytest.raises(mlox.RunError, match=message) as caught:
        engine.run(engine.init(), {"x": series}, 9, loggers=())
    assert caught.value.cycle == 4
    assert float(caught.value.state["x"].params) == 6.0
