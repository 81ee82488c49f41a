"""Batches: stacked without loss, restarted at their end, refused with a remedy."""

import itertools
import re

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._data.combinators import repeat
from mlox._data.stacking import check_data, stack


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


@hypothesis.given(
    steps=st.integers(1, 4),
    cycles=st.none() | st.integers(1, 3),
    shape=st.lists(st.integers(0, 3), max_size=2),
    dtype=st.sampled_from(["float64", "float32", "int8", "bool", "bfloat16"]),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_stack_places_every_batch(steps, cycles, shape, dtype):
    kind = jnp.dtype(dtype)
    draw = np.random.default_rng(0)
    count = steps * (cycles or 1)
    rows = [draw.integers(0, 2, shape).astype(kind) for _ in range(count)]
    batches = [{"x": row, "y": (i, float(i))} for i, row in enumerate(rows)]
    found = stack({"inner": steps}, {"inner": iter(batches)}, cycles)["inner"]
    lead = (steps,) if cycles is None else (cycles, steps)
    assert found["x"].dtype == kind
    np.testing.assert_array_equal(found["x"], np.reshape(rows, (*lead, *shape)))
    np.testing.assert_array_equal(found["y"][0], np.arange(count).reshape(lead))
    assert found["y"][1].dtype == np.float64


def test_problems_without_data_take_none():
    batches = stack({"a": 1, "b": 2, "c": 1}, {"a": None, "b": iter([1, 2])})
    assert batches["a"] is None
    assert batches["b"].tolist() == [1, 2]
    assert batches["c"] is None


def test_an_iterator_goes_on_where_it_stopped():
    source = iter(range(5))
    assert stack({"a": 2}, {"a": source})["a"].tolist() == [0, 1]
    assert stack({"a": 2}, {"a": source})["a"].tolist() == [2, 3]
    assert next(source) == 4


def test_a_loader_may_reuse_its_buffer():
    def loader():
        buffer = np.zeros(2)
        for i in itertools.count():
            buffer[:] = i
            yield {"x": buffer}

    found = stack({"a": 3}, {"a": loader()})["a"]["x"]
    assert found.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_tensors_of_other_libraries_are_converted():
    found = stack({"a": 2}, {"a": iter([[Tensor([1.0, 2.0])], [Tensor([3.0, 4.0])]])})
    np.testing.assert_array_equal(found["a"][0], [[1.0, 2.0], [3.0, 4.0]])


def test_engine_stacks_what_its_step_takes():
    problem = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(2),
        tx=optax.sgd(0.5),
        loss_fn=lambda params, batch, ctx: jnp.sum((params - batch) ** 2) / 2,
    )
    engine = mlox.Engine([problem])
    batches = engine.stack({"fit": iter([np.array([2.0, 4.0])])})
    state, metrics = engine.step(engine.init(), batches)
    assert state["fit"].params.tolist() == [1.0, 2.0]
    assert metrics["fit/loss"].tolist() == [10.0]


def take(series, count):
    return [int(batch) for batch in itertools.islice(repeat("a", series), count)]


def test_series_start_again_at_their_end():
    assert take([0, 1, 2], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert take(Rewinding([0, 1]), 5) == [0, 1, 0, 1, 0]
    loader = Loader([0, 1, 2])
    assert take(loader, 7) == [0, 1, 2, 2, 0, 1, 1]
    assert loader.epochs == 3


def test_nothing_is_taken_before_it_is_needed():
    taken = []
    source = repeat("a", (taken.append(i) or i for i in itertools.count()))
    assert taken == []
    assert stack({"a": 2}, {"a": source})["a"].tolist() == [0, 1]
    assert taken == [0, 1]


def test_a_one_shot_series_says_that_it_ran_out():
    source = repeat("outer", iter([1, 2, 3]))
    assert [next(source) for _ in range(3)] == [1, 2, 3]
    message = r"'outer' ran out after 3 batches.*re-iterable, e.g. a list.*cycle"
    with pytest.raises(ValueError, match=message):
        next(source)


@pytest.mark.parametrize("series", [[], iter([]), Loader([])])
def test_an_empty_series_is_refused(series):
    with pytest.raises(ValueError, match=r"'outer' is empty.*drop_last"):
        next(repeat("outer", series))


def test_unknown_names_are_refused():
    expected = re.escape("names ['iner'], but no problem is called so. Known: ['inner'")
    with pytest.raises(ValueError, match=expected):
        check_data(["outer", "inner"], {"iner": [1]})
    with pytest.raises(ValueError, match=expected):
        stack({"outer": 1, "inner": 1}, {"iner": iter([1])})


def test_data_must_be_a_dict():
    with pytest.raises(TypeError, match=r"must be a dict \{name.*got list"):
        check_data(["inner"], [1, 2])


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        ({"x": [1.0]}, "dict"),
        (([1.0], [2.0]), "tuple"),
        (np.zeros(3), "ndarray"),
        (jnp.zeros(3), "ArrayImpl"),
        ("abc", "str"),
    ],
)
def test_a_single_batch_is_not_a_series(series, kind):
    with pytest.raises(ValueError, match=rf"'inner' is one {kind}.*itertools.repeat"):
        check_data(["inner"], {"inner": series})


@pytest.mark.parametrize(
    ("series", "call"),
    [(([1], [2]), r"together\(\*them"), ({"a": [1]}, r"together\(\*\*them")],
)
def test_several_series_are_pointed_to_together(series, call):
    with pytest.raises(ValueError, match=f"several series, pass mlox.{call}"):
        check_data(["inner"], {"inner": series})


def test_data_must_be_iterable():
    with pytest.raises(TypeError, match=r"'inner' must be an iterable.*got int.*list"):
        check_data(["inner"], {"inner": 3})


def test_stack_wants_iterators():
    with pytest.raises(TypeError, match=r"'a' must be an iterator, got list.*iter\("):
        stack({"a": 1}, {"a": [1, 2, 3]})


def test_stack_says_when_an_iterator_runs_out():
    with pytest.raises(ValueError, match=r"'a' ran out after 1 of the 3.*cycle"):
        stack({"a": 3}, {"a": iter([1])})


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        ("text", "leaf of type str and dtype <U4. Leaves must be arrays or numbers"),
        (object(), "leaf of type object and dtype object. Leaves must be"),
        (
            Tensor(0, RuntimeError("call detach")),
            "type Tensor: NumPy says: call detach",
        ),
    ],
)
def test_leaves_must_be_arrays_or_numbers(leaf, expected):
    with pytest.raises(ValueError, match=expected):
        stack({"a": 1}, {"a": iter([{"x": leaf}])})


def test_batches_of_a_cycle_must_be_alike():
    full, short = np.zeros((4, 2)), np.zeros((3, 2))
    with pytest.raises(ValueError, match="batch 2 of 'a' has the structure"):
        stack({"a": 2}, {"a": iter([{"x": full}, {"y": full}])})
    message = r"batch 3 of 'a' has a leaf float64\[3, 2\].*float64\[4, 2\].*drop_last"
    with pytest.raises(ValueError, match=message):
        stack({"a": 3}, {"a": iter([full, full, short])})
    with pytest.raises(ValueError, match=r"float32\[4, 2\].*float64\[4, 2\]"):
        stack({"a": 2}, {"a": iter([full, full.astype(np.float32)])})
