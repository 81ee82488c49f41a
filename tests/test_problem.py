"""Problems and what their losses see and return: values, copies, errors."""

import dataclasses
import functools
import pydoc
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._problem.context import RESERVED
from mlox._problem.optimizer import apply_gradients, restart

SGD = optax.sgd(0.1)
ADAM = optax.adam(0.1)


def square(params, batch, ctx):
    del batch, ctx
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def create(name="inner", **parts):
    defaults = {"params": jnp.ones(2), "tx": SGD, "loss_fn": square}
    return mlox.Problem.create(name=name, **{**defaults, **parts})


@dataclasses.dataclass(frozen=True)
class Parametrized:
    """A callable value; it hashes by its fields."""

    scale: object

    def __call__(self, params, batch, ctx):
        return jnp.sum(self.scale * params**2)


class LacksPairing:
    def multiplier(self, answer, cotangent, guess):
        return cotangent, {}


@dataclasses.dataclass(frozen=True)
class Tagged(mlox.Implicit):
    tags: object = ()


KEYS = jax.random.split(jax.random.key(0))
LEAF = jax.ShapeDtypeStruct((), np.float32)
ADAM_OF_THREE = ADAM.init(jnp.ones(3))
UNHASHABLE_TX = optax.GradientTransformation(Parametrized([1.0]), SGD.update)

# Parts of a problem, with the type of the error and what it says; the messages of the
# other parts are tested in bad_inputs/problems.py.
BAD_PARTS = {
    "name": (ValueError, "identifier", ["", "a-b", "1st", "a/b", None, *RESERVED]),
    "unroll_steps": (ValueError, "positive int", [0, -1, 2.0, True, "3", None]),
    "warmup_steps": (ValueError, "int, 0 or more", [-1, 0.0, False, None]),
    "tasks": (ValueError, "positive int or None", [0, 2.0, True]),
    "params": (ValueError, "at least one floating", [None, {}, [], {"a": None}]),
    "tx": (TypeError, "optax transformation", [None, "sgd", (SGD.init, SGD.update)]),
    "method": (TypeError, "pairing of mlox.Method", [3, square, LacksPairing()]),
    "loss_fn": (TypeError, "expected a function", [None, 3, jnp.ones(2)]),
    "apply_fn": (TypeError, "expected a function or None", [3, jnp.ones(2)]),
    "opt_state": (TypeError, "expected an array", [(object(),), "fresh"]),
    "model_state": (TypeError, "expected an array", [{"mean": "text"}]),
    "rng": (TypeError, "PRNG key", [1.5, True, 2**64, jnp.ones(2), KEYS]),
}


@pytest.mark.parametrize(
    ("part", "value"),
    [(part, value) for part, (_, _, values) in BAD_PARTS.items() for value in values],
)
def test_create_raises_if_part_is_not_of_its_kind(part, value):
    error, expected, _ = BAD_PARTS[part]
    with pytest.raises(error, match=f"{part}.* (is|are) .*{expected}"):
        create(**{part: value})


@pytest.mark.parametrize("leaf", ["text", square, LEAF, 3, np.arange(2), True, 1j])
def test_create_raises_if_leaf_of_params_is_not_floating(leaf):
    with pytest.raises(TypeError, match=r"params\['w'\] is .* floating array"):
        create(params={"w": leaf})


@pytest.mark.parametrize("part", ["loss_fn", "apply_fn"])
@pytest.mark.parametrize("scale", [np.ones(2), jnp.ones(2), [1.0]])
def test_create_raises_if_function_is_not_hashable(part, scale):
    with pytest.raises(TypeError, match=f"{part} is not hashable .unhashable type: "):
        create(**{part: Parametrized(scale)})


@pytest.mark.parametrize(
    "part", [{"method": Tagged(tags=["a"])}, {"tx": UNHASHABLE_TX}]
)
def test_create_raises_if_value_is_not_hashable(part):
    with pytest.raises(TypeError, match=f"{next(iter(part))} is not hashable"):
        create(**part)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("loss_fn", lambda p, b: 0.0),
        ("sample", lambda p: p),
        ("reset", lambda p: p),
        ("project", lambda p, c: p),
        ("trainable", lambda: True),
        ("meta_trainable", lambda p, c: True),
    ],
)
def test_create_raises_if_function_takes_other_arguments(part, value):
    with pytest.raises(TypeError, match=rf"{part} takes \(.*\); expected a function"):
        create(**{part: value})


@pytest.mark.parametrize(
    ("opt_state", "message"),
    [
        (SGD.init(jnp.ones(2)), r"\[0\].count is missing, expected int32\[\]; "),
        (ADAM_OF_THREE, r": \[0\].mu is float64\[3\], expected float64\[2\]; "),
        ((), r"\[0\].count is missing"),
    ],
)
def test_create_raises_if_opt_state_is_of_another_optimizer(opt_state, message):
    with pytest.raises(ValueError, match=message):
        create(tx=ADAM, opt_state=opt_state)


def test_create_raises_if_only_the_structure_of_opt_state_differs():
    with pytest.raises(ValueError, match=r"the structure is PyTreeDef\(\(\)\)"):
        create(opt_state=())


def test_messages_about_trees_of_many_leaves_fit_a_screen():
    def net(size):
        layer = {"kernel": jnp.ones((size, size)), "bias": jnp.ones(size)}
        return {f"encoder_block_{i}": dict(layer) for i in range(100)}

    def other_state(params, batch, ctx):
        return {"loss": square(params, batch, ctx), "model_state": net(3)}

    def step(**parts):
        problem = create(params=net(2), model_state=net(2), **parts)
        engine = mlox.Engine([problem])
        jax.eval_shape(engine.step, engine.init(), {"inner": None})

    for fails in (
        lambda: create(params=net(2), tx=ADAM, opt_state=ADAM.init(net(3))),
        lambda: create(params=net(2), tx=ADAM, opt_state=SGD.init(net(2))),
        lambda: create(params=net(2), trainable=lambda params: {"head": True}),
        lambda: step(loss_fn=other_state),
        lambda: step(project=lambda params: net(3)),
        lambda: restart(create(params=net(2)), net(3)),
        lambda: restart(create(params=net(2)), None),
    ):
        with pytest.raises(ValueError, match=r"fit.*params|does not fit") as caught:
            fails()
        message = str(caught.value).split("\n----")[0]  # JAX adds a paragraph
        assert len(message) <= 1000
        assert "encoder_block_0" in message


@pytest.mark.parametrize("method", [mlox.FiniteDifference, mlox.SAMA])
@pytest.mark.parametrize("epsilon", [0, -1.0, "small", jnp.ones(())])
def test_method_raises_if_perturbation_is_not_positive(method, epsilon):
    with pytest.raises(
        ValueError, match=rf"{method.__name__}: epsilon is .* number > 0"
    ):
        method(epsilon)


class TestCreate:
    @pytest.mark.parametrize("name", ["params", "lambda", "_private", "θ"])
    def test_takes_any_other_identifier(self, name):
        assert create(name=name).name == name

    def test_takes_integers_of_numpy(self):
        assert create(unroll_steps=np.int64(3)).unroll_steps == 3

    def test_makes_arrays_of_numbers(self):
        params = create(params={"a": 1.5, "b": np.ones(2, np.float32)}).params
        assert all(isinstance(leaf, jax.Array) for leaf in params.values())
        assert params["b"].dtype == np.float32

    def test_strips_weak_types(self):
        # Or the second step, which gets strong types, would be compiled again.
        problem = create(params=1.5, model_state=2.0)
        assert not problem.params.weak_type
        assert not problem.model_state.weak_type

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_keeps_dtypes(self, dtype):
        assert create(params=jnp.ones(2, dtype)).params.dtype == dtype

    def test_keeps_a_typed_key_in_the_state_of_an_optimizer(self):
        tx = optax.add_noise(0.1, 0.5, jax.random.key(0))
        assert create(tx=tx).opt_state.rng_key == jax.random.key(0)

    def test_takes_a_state_to_start_from(self):
        state = jax.tree.map(lambda x: x + 1, ADAM.init(jnp.ones(2)))
        problem = create(tx=ADAM, opt_state=jax.tree.map(np.asarray, state))
        chex.assert_trees_all_equal(problem.opt_state, state)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(problem.opt_state))

    def test_takes_none_as_implicit(self):
        assert create(method=None).method == mlox.Implicit()

    def test_takes_hashable_callable_values(self):
        assert create(loss_fn=Parametrized(2.0)).loss_fn == Parametrized(2.0)

    @pytest.mark.parametrize("rng", [0, np.int32(0), jax.random.key(0)])
    def test_takes_a_seed_or_a_key(self, rng):
        assert create(rng=rng).rng == jax.random.key(0)

    def test_takes_a_raw_key(self):
        key = jax.random.PRNGKey(0)
        chex.assert_trees_all_equal(create(rng=key).rng, key)

    def test_takes_a_wrapper_by_its_own_arguments(self):
        def two(params, batch):
            return jnp.sum(params**2)

        @functools.wraps(two)
        def three(params, batch, ctx):
            return two(params, batch)

        assert create(loss_fn=three).loss_fn is three
        assert create(loss_fn=jax.jit(square)).loss_fn

    def test_annotates_an_error_in_a_mask(self):
        with pytest.raises(KeyError) as caught:
            create(params={"w": jnp.ones(2)}, trainable=lambda params: params["head"])
        assert caught.value.__notes__ == [
            "The error occurred in trainable of problem 'inner', called with params="
            "{'w': 'float64[2]'}."
        ]

    def test_works_inside_transformations(self):
        params = jax.vmap(lambda x: create(params=x).params)(jnp.ones((3, 2)))
        assert params.shape == (3, 2)


def test_reserved_names_are_those_of_a_context():
    reserved = {"name", "neighbours", "rng", "step", "model_state", "train"}
    assert set(RESERVED) == reserved | {"task_index", "inner_step"}


class TestPytree:
    def test_leaves_are_the_arrays(self):
        problem = create(tx=ADAM, model_state={"mean": jnp.zeros(3)}, rng=0)
        shapes = [leaf.shape for leaf in jax.tree.leaves(problem)]
        assert shapes == [(2,), (), (2,), (2,), (3,), (), ()]
        assert problem.step.dtype == jnp.int32
        assert int(problem.step) == 0

    def test_unflattens_with_placeholders(self):
        problem = create(tx=ADAM)
        leaves, structure = jax.tree.flatten(problem)
        again = jax.tree.unflatten(structure, [object()] * len(leaves))
        assert again.loss_fn is square
        assert jax.tree.structure(again) == structure

    def test_static_parts_are_compared(self):
        one, same, other = create(), create(), create(unroll_steps=2)
        assert jax.tree.structure(one) == jax.tree.structure(same)
        assert jax.tree.structure(one) != jax.tree.structure(other)


class TestReplace:
    def test_returns_a_changed_copy(self):
        problem = create()
        changed = problem.replace(params=jnp.zeros(2), unroll_steps=4)
        assert changed.params.tolist() == [0, 0]
        assert changed.unroll_steps == 4
        assert problem.params.tolist() == [1, 1]
        assert problem.unroll_steps == 1
        assert changed.loss_fn is problem.loss_fn

    @pytest.mark.parametrize("part", ["name", "tx", "method", "loss_fn", "tasks"])
    def test_raises_as_create_if_a_static_part_is_not_of_its_kind(self, part):
        error, expected, (value, *_) = BAD_PARTS[part]
        with pytest.raises(error, match=f"{part} is .*{expected}"):
            create().replace(**{part: value})

    def test_drops_functions(self):
        assert create(project=lambda p: p).replace(project=None).project is None


def test_help_leads_to_create():
    text = pydoc.plain(pydoc.render_doc(mlox.Problem))
    documentation = text[text.index("One optimization problem") :]
    assert "Problem.create" in documentation.splitlines()[0]
    assert {n for n in vars(mlox.Problem) if n[0] != "_"} == {"create", "replace"}
    assert len(re.findall(r"^ \|  create\(", text, re.MULTILINE)) == 1


class TestApplyGradients:
    def test_keeps_the_dtypes_of_the_state_of_the_optimizer(self):
        params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
        tx = optax.inject_hyperparams(optax.adam)(optax.constant_schedule(0.1))
        before = create(params=params, tx=tx)
        after = apply_gradients(before, params, None, 0.0)
        chex.assert_trees_all_equal_dtypes(before.opt_state, after.opt_state)
        assert all(x.max() < 1 for x in jax.tree.leaves(after.params))

    def test_keeps_a_typed_key_in_the_state_of_the_optimizer(self):
        def update(grads, key, params=None):
            return grads, jax.random.split(key)[0]

        tx = optax.GradientTransformation(lambda params: jax.random.key(0), update)
        after = apply_gradients(create(tx=tx), jnp.ones(2), None, 0.0)
        assert jnp.issubdtype(after.opt_state.dtype, jax.dtypes.prng_key)

    def test_passes_the_loss(self):
        tx = optax.polyak_sgd(max_learning_rate=10.0)
        grads = jnp.array([3.0, 4.0])
        before = create(params=jnp.zeros(2), tx=tx)
        after = apply_gradients(before, grads, None, 5.0)
        chex.assert_trees_all_close(after.params, -5.0 / 25.0 * grads)

    def test_takes_lbfgs_without_a_line_search(self):
        problem = create(tx=optax.lbfgs(learning_rate=0.1, linesearch=None))
        after = apply_gradients(problem, jnp.ones(2), None, 0.0)
        assert (after.params < problem.params).all()


def trace_step(loss_fn, **parts):
    """Trace a step of one problem; nothing is compiled."""
    engine = mlox.Engine([create(loss_fn=loss_fn, **parts)])
    return jax.eval_shape(engine.step, engine.init(), {"inner": None})


class TestLossOutput:
    @pytest.mark.parametrize(
        ("returned", "shown"),
        [
            (jnp.ones(2), "float64[2]"),
            (3, "3"),
            (True, "True"),
            (jnp.asarray(1j), "complex128[]"),
            (None, "'loss' = None"),
            ((1.0, {}), "'loss' = (1.0, {})"),
            ({}, "{}"),
            ({"a": 1.0, 3: 1.0}, "{'a': 1.0, 3: 1.0}"),
            ({"loss": jnp.ones(2)}, "{'loss': 'float64[2]'}"),
            ({"loss": 1.0, "m": "x"}, "'m' = 'x'"),
            ({"loss": 1.0, "m": None}, "'m' = None"),
            ({"loss": 1.0, "m": {"a": 1}}, "'m' = {'a': 1}"),
            ({"loss": 1.0, "m": [1, [2, 3]]}, "'m' = [1, [2, 3]]"),
        ],
    )
    def test_raises_if_not_a_floating_scalar_with_metrics(self, returned, shown):
        message = f"loss of 'inner' returned {shown}; expected a floating scalar"
        with pytest.raises(ValueError, match=re.escape(message)):
            trace_step(lambda params, batch, ctx: returned)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (None, jnp.ones(2), "it is float64[2], expected None. "),
            ({"m": 0.0}, {"n": 0.0}, "['n'] is float64[], expected no such leaf; ['m"),
            (jnp.zeros(2), jnp.zeros(3), "it is float64[3], expected float64[2]"),
            (jnp.zeros(2), jnp.zeros(2, int), "it is int64[2], expected float64[2]"),
            (jnp.zeros(2), None, "it is None, expected float64[2]"),
            ((1.0,), [1.0], "the structure is PyTreeDef([*]), expected PyTreeDef((*,"),
        ],
    )
    def test_raises_if_model_state_does_not_fit(self, before, after, message):
        def loss_fn(params, batch, ctx):
            return {"loss": jnp.sum(params), "model_state": after}

        message = "loss of 'inner': model_state does not fit the one that it got: " + (
            message
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            trace_step(loss_fn, model_state=before)

    def test_takes_metrics_of_any_shape_and_dtype(self):
        def loss_fn(params, batch, ctx):
            extra = {
                "params": params,
                "count": 3,
                "right": True,
                "key": ctx.rng,
                0: 1.0,
            }
            return {"loss": jnp.sum(params), **extra}

        _, metrics = trace_step(loss_fn, rng=0)
        assert {key: (x.shape, str(x.dtype)) for key, x in metrics.items()} == {
            "inner/loss": ((1,), "float64"),
            "inner/params": ((1, 2), "float64"),
            "inner/count": ((1,), "int64"),
            "inner/right": ((1,), "bool"),
            "inner/key": ((1,), "key<fry>"),
            "inner/0": ((1,), "float64"),
        }


class TestContext:
    CTX = mlox.Context(
        name="inner",
        neighbours={"outer": mlox.Neighbour(2.0, None, lambda params, x: params * x)},
        rng=None,
        step=0,
        model_state=None,
    )

    def test_item_and_attribute_are_the_same(self):
        assert self.CTX["outer"] is self.CTX.outer
        assert self.CTX.outer.params == 2.0

    def test_calling_a_neighbour_applies_its_function_to_its_params(self):
        assert self.CTX.outer(3.0) == 6.0

    @pytest.mark.parametrize("read", [lambda c: c["other"], lambda c: c.other])
    def test_raises_if_a_neighbour_is_not_declared(self, read):
        message = r"'inner' reads ctx\['other'\].*u2l={'other': \['inner'\]}.*l2u={"
        with pytest.raises(ValueError, match=message):
            read(self.CTX)

    def test_python_protocols_find_no_neighbour(self):
        assert dataclasses.replace(self.CTX, step=1).step == 1
        assert not hasattr(self.CTX, "__array__")
