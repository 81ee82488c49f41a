"""Batches: stacked without loss; series: restarted at their end."""

import itertools
import json

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._data.combinators import open_series
from mlox._data.stacking import check_data, stack_batches


class Tensor:
    """What a PyTorch tensor is to NumPy: an object that turns into an array."""

    def __init__(self, values, error=None):
        self.values = values
        self.error = error

    def __array__(self, dtype=None, copy=None):
        if self.error is not None:
            raise self.error
        return np.array(self.values, dtype=dtype)


class Loader:
    """Like a DataLoader: every epoch is another order of the same batches."""

    def __init__(self, batches):
        self.batches = batches
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        return iter(np.roll(self.batches, self.epochs - 1))


class Rewinding:
    """An iterator whose __iter__ starts it again, as old loaders do."""

    def __init__(self, batches):
        self.batches = batches
        self.position = 0

    def __iter__(self):
        self.position = 0
        return self

    def __next__(self):
        if self.position == len(self.batches):
            raise StopIteration
        self.position += 1
        return self.batches[self.position - 1]


class Stateful(Rewinding):
    """An iterator that can tell its position as bytes, as those of grain."""

    def __iter__(self):
        return Stateful(self.batches)

    def get_state(self):
        return bytes([self.position, 255])

    def set_state(self, state):
        self.position = state[0]


@hypothesis.given(
    steps=st.integers(1, 4),
    cycles=st.none() | st.integers(1, 3),
    shape=st.lists(st.integers(0, 3), max_size=2),
    dtype=st.sampled_from(["float64", "float32", "int8", "bool", "bfloat16"]),
)
@hypothesis.settings(max_examples=30)
def test_stack_batches_places_every_batch(steps, cycles, shape, dtype):
    kind = jnp.dtype(dtype)
    draw = np.random.default_rng(0)
    count = steps * (cycles or 1)
    rows = [draw.integers(0, 2, shape).astype(kind) for _ in range(count)]
    batches = [{"x": row, "y": (i, float(i))} for i, row in enumerate(rows)]
    found = stack_batches({"inner": steps}, {"inner": iter(batches)}, cycles)["inner"]
    lead = (steps,) if cycles is None else (cycles, steps)
    assert found["x"].dtype == kind
    np.testing.assert_array_equal(found["x"], np.reshape(rows, (*lead, *shape)))
    np.testing.assert_array_equal(found["y"][0], np.arange(count).reshape(lead))
    assert found["y"][1].dtype == np.float64


def test_stack_batches_returns_none_for_problems_without_data():
    batches = stack_batches({"a": 1, "b": 2, "c": 1}, {"a": None, "b": iter([1, 2])})
    assert batches["a"] is None
    np.testing.assert_array_equal(batches["b"], [1, 2])
    assert batches["c"] is None


def test_stack_batches_takes_from_an_iterator_where_it_stopped():
    source = iter(range(5))
    np.testing.assert_array_equal(stack_batches({"a": 2}, {"a": source})["a"], [0, 1])
    np.testing.assert_array_equal(stack_batches({"a": 2}, {"a": source})["a"], [2, 3])
    assert next(source) == 4


def test_stack_batches_copies_a_buffer_that_a_loader_uses_again():
    def loader():
        buffer = np.zeros(2)
        for i in itertools.count():
            buffer[:] = i
            yield {"x": buffer}

    found = stack_batches({"a": 3}, {"a": loader()})["a"]["x"]
    np.testing.assert_array_equal(found, [[0, 0], [1, 1], [2, 2]])


def test_stack_batches_converts_tensors_of_other_libraries():
    tensors = [[Tensor([1.0, 2.0])], [Tensor([3.0, 4.0])]]
    found = stack_batches({"a": 2}, {"a": iter(tensors)})
    np.testing.assert_array_equal(found["a"][0], [[1.0, 2.0], [3.0, 4.0]])
    broken = iter([Tensor(0, RuntimeError("call detach"))])
    with pytest.raises(ValueError, match=r"type Tensor.*NumPy: call detach"):
        stack_batches({"a": 1}, {"a": broken})


def test_engine_stack_returns_what_step_takes():
    problem = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(2),
        tx=optax.sgd(0.5),
        loss_fn=lambda params, batch, ctx: jnp.sum((params - batch) ** 2) / 2,
    )
    engine = mlox.Engine([problem])
    batches = engine.stack({"fit": iter([np.array([2.0, 4.0])])})
    state, metrics = engine.step(engine.init(), batches)
    np.testing.assert_array_equal(state["fit"].params, [1.0, 2.0])
    np.testing.assert_array_equal(metrics["fit/loss"], [10.0])


def take(series, count):
    batches = itertools.islice(open_series("data of 'a'", series), count)
    return [int(batch) for batch in batches]


def test_series_start_again_at_their_end():
    assert take([0, 1, 2], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert take(Rewinding([0, 1]), 5) == [0, 1, 0, 1, 0]
    loader = Loader([0, 1, 2])
    assert take(loader, 7) == [0, 1, 2, 2, 0, 1, 1]
    assert loader.epochs == 3


def test_series_give_no_batch_before_it_is_needed():
    taken = []
    source = open_series("a", (taken.append(i) or i for i in itertools.count()))
    assert taken == []
    np.testing.assert_array_equal(stack_batches({"a": 2}, {"a": source})["a"], [0, 1])
    assert taken == [0, 1]


EXAMPLES = np.arange(5)


@pytest.mark.parametrize(
    "series",
    [
        [0, 1, 2],
        Stateful([0, 1, 2]),
        itertools.repeat(0),
        mlox.shuffled(EXAMPLES, 2, seed=3),
        mlox.together([0, 1, 2], b := Stateful([3, 4]), mlox.together(b)),
        mlox.together(a=mlox.shuffled(EXAMPLES, 1), b=[0, 1]),
        mlox.on_epoch_end([0, 1, 2], print),
    ],
    ids=["list", "stateful", "repeat", "shuffled", "tuples", "dicts", "callback"],
)
@pytest.mark.parametrize("count", [0, 1, 3, 4, 8])
def test_series_continue_from_a_position(series, count):
    whole = open_series("a", series)
    before = [next(whole) for _ in range(count)]
    position = json.loads(json.dumps(whole.position()))
    part = open_series("a", series, position)
    assert part.position() == position
    following = [str(next(part)) for _ in range(7)]
    assert following == [str(next(whole)) for _ in range(7)]
    assert part.position() == whole.position()
    assert len(before) == count


def test_series_without_a_position_are_read_again_with_a_warning():
    series = Loader([0, 1, 2])
    position = {"drawn": 5, "before": 3, "passes": 1, "inner": None}
    with pytest.warns(UserWarning, match="'a' cannot tell its position.*first 2 batch"):
        part = open_series("data of 'a'", series, position)
    assert [int(next(part)) for _ in range(2)] == [2, 2]


def test_one_shot_series_raises_at_its_end():
    source = open_series("data of 'outer'", iter([1, 2, 3]))
    assert [next(source) for _ in range(3)] == [1, 2, 3]
    message = r"'outer' ran out after 3 batches.*re-iterable, e.g. a list.*cycle"
    with pytest.raises(ValueError, match=message):
        next(source)


@pytest.mark.parametrize("series", [[], iter([]), Loader([])])
def test_empty_series_raises(series):
    with pytest.raises(ValueError, match="'outer' is empty"):
        next(open_series("data of 'outer'", series))


@pytest.mark.parametrize("series", [{"x": [1.0]}, ([1.0],), jnp.zeros(3), "abc"])
def test_check_data_raises_for_a_single_batch(series):
    kind = type(series).__name__
    with pytest.raises(ValueError, match=rf"'inner' is one {kind}.*itertools.repeat"):
        check_data(["inner"], {"inner": series})
