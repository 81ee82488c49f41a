"""Problems and what their losses see and return: values, copies, refusals."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox
from mlox._problem.context import RESERVED
from mlox._problem.optimizer import apply_gradients
from mlox._utils.describe import summarize

SGD = optax.sgd(0.1)
ADAM = optax.adam(0.1)


def square(params, batch, ctx):
    del batch, ctx
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def create(name="inner", **parts):
    defaults = {"params": jnp.ones(2), "tx": SGD, "loss_fn": square}
    return mlox.Problem.create(name=name, **{**defaults, **parts})


def refuses(kind, message, **parts):
    with pytest.raises(kind, match=re.escape(message)):
        create(**parts)


class Lacking:
    def multiplier(self, answer, cotangent, guess):
        return cotangent, {}


@dataclasses.dataclass(frozen=True)
class Parametrized:
    """A callable value; it hashes by its fields."""

    scale: object

    def __call__(self, params, batch, ctx):
        return jnp.sum(self.scale * params**2)


@dataclasses.dataclass(frozen=True)
class Tagged(mlox.Implicit):
    tags: object = ()


class TestNames:
    @pytest.mark.parametrize("name", ["", "two words", "a-b", "1st", "a/b", None, 3])
    def test_no_identifier(self, name):
        message = f"Problem name {name!r} is no identifier; expected letters, digits"
        refuses(ValueError, message, name=name)

    @pytest.mark.parametrize("name", [*RESERVED, "__len__"])
    def test_reserved(self, name):
        message = f"Problem name {name!r} is taken: ctx.{name} means something else. "
        refuses(ValueError, message, name=name)

    def test_reserved_names_are_those_of_a_context(self):
        reserved = {"name", "neighbours", "rng", "step", "model_state", "train"}
        reserved |= {"task_index"}
        assert set(RESERVED) == reserved

    @pytest.mark.parametrize("name", ["params", "lambda", "_private", "θ"])
    def test_other_identifiers_will_do(self, name):
        assert create(name=name).name == name


class TestSteps:
    @pytest.mark.parametrize("steps", [0, -1, 2.5, 2.0, True, "3", None])
    def test_no_positive_integer(self, steps):
        message = (
            f"problem 'inner': unroll_steps must be a positive integer, got {steps!r}."
        )
        refuses(ValueError, message, unroll_steps=steps)

    def test_integers_of_numpy_will_do(self):
        assert create(unroll_steps=np.int64(3)).unroll_steps == 3


class TestParams:
    @pytest.mark.parametrize("params", [None, {}, [], {"a": None}])
    def test_empty(self, params):
        message = (
            f"problem 'inner': params are empty ({params!r}); expected a pytree with "
            "at least one floating array."
        )
        refuses(ValueError, message, params=params)

    @pytest.mark.parametrize("leaf", ["text", square, jax.ShapeDtypeStruct((), float)])
    def test_no_array(self, leaf):
        message = f"problem 'inner': params['w'] is {leaf!r} of type "
        refuses(TypeError, message, params={"w": leaf})

    @pytest.mark.parametrize(
        ("leaf", "dtype"),
        [(3, "int64"), (np.arange(2), "int64"), (True, "bool"), (1j, "complex128")],
    )
    def test_no_floating_array(self, leaf, dtype):
        if dtype == "complex128":
            leaf = np.asarray(leaf)
        message = (
            f"problem 'inner': params[0] has dtype {dtype}; expected a floating dtype. "
            "Convert it, or keep it in model_state or the batch."
        )
        refuses(TypeError, message, params=[leaf])

    def test_arrays_of_numpy_and_numbers_become_arrays(self):
        params = create(params={"a": 1.5, "b": np.ones(2, np.float32)}).params
        assert all(isinstance(leaf, jax.Array) for leaf in params.values())
        assert params["b"].dtype == np.float32

    def test_numbers_lose_their_weak_type(self):
        # Else the second step, which gets strong types, would be compiled again.
        problem = create(params=1.5, model_state=2.0)
        assert not problem.params.weak_type
        assert not problem.model_state.weak_type

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_dtypes_stay(self, dtype):
        assert create(params=jnp.ones(2, dtype)).params.dtype == dtype


class TestOptimizer:
    @pytest.mark.parametrize("tx", [None, "sgd", (SGD.init, SGD.update), optax.sgd])
    def test_no_transformation(self, tx):
        message = f"problem 'inner': tx is {tx!r}; expected an optax transformation"
        refuses(TypeError, message, tx=tx)

    def test_factory_that_was_not_called(self):
        refuses(TypeError, "e.g. optax.sgd(0.1)", tx=optax.sgd)

    def test_state_of_another_optimizer(self):
        refuses(
            ValueError,
            "problem 'inner': opt_state does not fit tx and params. Got {}, expected "
            "{'[0].count': 'int32[]', '[0].mu': 'float64[2]', '[0].nu': 'float64[2]'}. "
            "Make it with tx.init(params)",
            tx=ADAM,
            opt_state=SGD.init(jnp.ones(2)),
        )

    def test_state_of_other_parameters(self):
        refuses(
            ValueError,
            "'[0].mu': 'float64[3]'",
            tx=ADAM,
            opt_state=ADAM.init(jnp.ones(3)),
        )

    def test_state_of_another_structure_without_arrays(self):
        message = "opt_state does not fit tx and params. Got PyTreeDef(()), expected "
        refuses(ValueError, message, opt_state=())

    def test_state_that_holds_no_arrays(self):
        message = "problem 'inner': opt_state holds something that is no array"
        refuses(TypeError, message, opt_state=(object(),))

    def test_state_that_holds_a_key(self):
        tx = optax.add_noise(0.1, 0.5, jax.random.key(0))
        assert create(tx=tx).opt_state.rng_key == jax.random.key(0)

    def test_state_to_go_on_from(self):
        _, state = ADAM.update(jnp.ones(2), ADAM.init(jnp.ones(2)))
        problem = create(tx=ADAM, opt_state=jax.tree.map(np.asarray, state))
        assert int(problem.opt_state[0].count) == 1
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(problem.opt_state))


class TestMethod:
    @pytest.mark.parametrize("method", ["cg", mlox.Implicit, mlox.Unrolled])
    def test_string_or_class(self, method):
        message = (
            f"problem 'inner': method is {method!r}; expected a value such as "
            "mlox.Implicit(mlox.CG()), mlox.Unrolled(), mlox.FiniteDifference()."
        )
        refuses(TypeError, message, method=method)

    @pytest.mark.parametrize(
        ("method", "lacking"),
        [
            (Lacking(), "lacks pairing"),
            (mlox.CG(), "lacks multiplier and pairing"),
            (square, "lacks multiplier and pairing"),
            (3, "lacks multiplier and pairing"),
        ],
    )
    def test_value_without_the_functions(self, method, lacking):
        message = f"problem 'inner': method {method!r} {lacking}; expected a value such"
        refuses(TypeError, message, method=method)

    def test_none_means_implicit(self):
        assert create(method=None).method == mlox.Implicit()

    def test_solver_that_is_no_function(self):
        with pytest.raises(TypeError, match="expected a function"):
            mlox.Implicit("cg")

    def test_solver_that_is_a_class(self):
        with pytest.raises(TypeError, match=r"Write mlox.Implicit\(mlox.CG"):
            mlox.Implicit(mlox.CG)

    @pytest.mark.parametrize("method", [mlox.FiniteDifference, mlox.SAMA])
    @pytest.mark.parametrize("epsilon", [0, -1.0, "small", jnp.ones(())])
    def test_length_of_a_perturbation(self, method, epsilon):
        message = f"{method.__name__}: epsilon is .*; expected a finite number > 0"
        with pytest.raises(ValueError, match=message):
            method(epsilon)

    @pytest.mark.parametrize("steps", [0, -2, 1.5, True])
    def test_truncation(self, steps):
        with pytest.raises(ValueError, match=r"last_steps is .* positive int"):
            mlox.Unrolled(last_steps=steps)

    def test_checkpoint(self):
        message = "Unrolled: checkpoint is 'all'.*'segments'"
        with pytest.raises(ValueError, match=message):
            mlox.Unrolled(checkpoint="all")


class TestStaticParts:
    @pytest.mark.parametrize("what", ["loss_fn", "apply_fn"])
    @pytest.mark.parametrize("scale", [np.ones(2), jnp.ones(2), [1.0]])
    def test_unhashable_function(self, what, scale):
        message = (
            f"problem 'inner': {what} is not hashable .unhashable type: .*. It is a "
            "static part of the compiled step: keep arrays out of it, pass them in "
            "params, model_state or the batch."
        )
        with pytest.raises(TypeError, match=message):
            create(**{what: Parametrized(scale)})

    def test_unhashable_method(self):
        message = "problem 'inner': method is not hashable"
        refuses(TypeError, message, method=Tagged(tags=["a"]))

    def test_unhashable_optimizer(self):
        refuses(
            TypeError,
            "problem 'inner': tx is not hashable",
            tx=optax.GradientTransformation(Parametrized([1.0]), SGD.update),
        )

    @pytest.mark.parametrize("what", ["loss_fn", "apply_fn"])
    def test_no_function(self, what):
        message = f"problem 'inner': {what} is 3; expected a function"
        refuses(TypeError, message, **{what: 3})

    def test_hashable_callable_values_will_do(self):
        problem = create(loss_fn=Parametrized(2.0))
        assert problem.loss_fn == Parametrized(2.0)


class TestRandomness:
    @pytest.mark.parametrize("rng", [0, np.int32(0), jax.random.key(0)])
    def test_seed_or_key(self, rng):
        assert create(rng=rng).rng == jax.random.key(0)

    def test_key_of_the_old_form(self):
        key = jax.random.PRNGKey(0)
        assert (create(rng=key).rng == key).all()

    @pytest.mark.parametrize(
        "rng",
        [
            "seed",
            1.5,
            True,
            2**64,
            jnp.ones(2),
            jnp.zeros(3, jnp.uint32),
            jax.random.split(jax.random.key(0)),
        ],
    )
    def test_no_key(self, rng):
        message = (
            f"problem 'inner': rng is {summarize(rng)}; expected one PRNG key, e.g. "
        )
        refuses(TypeError, message, rng=rng)

    def test_model_state_that_is_no_array(self):
        message = "problem 'inner': model_state holds something that is no array"
        refuses(TypeError, message, model_state={"mean": "text"})


class TestPytree:
    def test_leaves_are_the_arrays(self):
        problem = create(tx=ADAM, model_state={"mean": jnp.zeros(3)}, rng=0)
        shapes = [leaf.shape for leaf in jax.tree.leaves(problem)]
        assert shapes == [(2,), (), (2,), (2,), (3,), (), ()]
        assert problem.step.dtype == jnp.int32
        assert int(problem.step) == 0

    def test_placeholders_pass_through(self):
        problem = create(tx=ADAM)
        leaves, structure = jax.tree.flatten(problem)
        again = jax.tree.unflatten(structure, [object()] * len(leaves))
        assert again.loss_fn is square
        assert jax.tree.structure(again) == structure

    def test_static_parts_are_compared(self):
        one, same, other = create(), create(), create(unroll_steps=2)
        assert jax.tree.structure(one) == jax.tree.structure(same)
        assert jax.tree.structure(one) != jax.tree.structure(other)

    def test_problems_are_made_inside_transformations(self):
        params = jax.vmap(lambda x: create(params=x).params)(jnp.ones((3, 2)))
        assert params.shape == (3, 2)

    def test_replace_changes_a_copy(self):
        problem = create()
        changed = problem.replace(params=jnp.zeros(2), unroll_steps=4)
        assert changed.params.tolist() == [0, 0]
        assert changed.unroll_steps == 4
        assert problem.params.tolist() == [1, 1]
        assert problem.unroll_steps == 1
        assert changed.loss_fn is problem.loss_fn

    def test_replace_of_an_unknown_attribute(self):
        with pytest.raises(TypeError, match="'parameters'"):
            create().replace(parameters=jnp.zeros(2))

    def test_attributes_cannot_be_set(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            create().params = jnp.zeros(2)


class TestUpdated:
    def test_dtypes_of_the_optimizers_state_stay(self):
        params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
        tx = optax.inject_hyperparams(optax.adam)(optax.constant_schedule(0.1))
        before = create(params=params, tx=tx)
        after = apply_gradients(before, params, None, 0.0)
        kinds = [jax.tree.map(lambda x: x.dtype, p.opt_state) for p in (before, after)]
        assert kinds[0] == kinds[1]
        assert all(x.max() < 1 for x in jax.tree.leaves(after.params))

    def test_a_typed_key_in_the_optimizers_state(self):
        def update(grads, key, params=None):
            return grads, jax.random.split(key)[0]

        tx = optax.GradientTransformation(lambda params: jax.random.key(0), update)
        after = apply_gradients(
            create(params=jnp.ones(2), tx=tx), jnp.ones(2), None, 0.0
        )
        assert jnp.issubdtype(after.opt_state.dtype, jax.dtypes.prng_key)

    def test_an_optimizer_that_goes_by_the_loss(self):
        tx = optax.polyak_sgd(max_learning_rate=10.0)
        grads = jnp.array([3.0, 4.0])
        after = apply_gradients(create(params=jnp.zeros(2), tx=tx), grads, None, 5.0)
        np.testing.assert_allclose(after.params, -5.0 / 25.0 * grads)

    def test_a_line_search_is_refused(self):
        message = (
            "problem 'inner': tx cannot update from gradients, params and value=loss "
            "alone: .*'grad' and 'value_fn'. Line searches are not supported; leave "
            r"them out, e.g. by optax.lbfgs\(learning_rate=0.1, linesearch=None\)."
        )
        with pytest.raises(TypeError, match=message):
            create(tx=optax.lbfgs())
        create(tx=optax.lbfgs(learning_rate=0.1, linesearch=None))


def step_of(loss_fn, **parts):
    """Trace a step of one problem; nothing is compiled."""
    engine = mlox.Engine([create(loss_fn=loss_fn, **parts)])
    return jax.eval_shape(engine.step, engine.init(), {"inner": None})


class TestReturned:
    @pytest.mark.parametrize(
        ("returned", "message"),
        [
            (jnp.ones(2), "loss of 'inner' returned float64[2]; expected one floating"),
            (jnp.ones(1), "loss of 'inner' returned float64[1]; expected one floating"),
            (3, "loss of 'inner' returned int64[]; expected one floating scalar, or"),
            (True, "loss of 'inner' returned bool[]; expected one floating scalar"),
            (jnp.asarray(1j), "loss of 'inner' returned complex128[]; expected one"),
            (None, "loss of 'inner' returned 'loss' = None; expected one floating"),
            ("low", "loss of 'inner' returned 'loss' = 'low'; expected one floating"),
            ((1.0, {}), "loss of 'inner' returned 'loss' = (1.0, {}); expected one"),
            ({"los": 1.0}, "returned a dict with the keys ['los']; expected 'loss'"),
            ({}, "loss of 'inner' returned a dict with the keys []; expected 'loss'"),
            ({"a": 1.0, 3: 1.0}, "returned a dict with the keys ['a', 3]; expected"),
            ({"loss": jnp.ones(2)}, "loss of 'inner' returned float64[2]; expected"),
            ({"loss": None}, "returned 'loss' = None; expected one floating scalar."),
            ({"loss": 1.0, "m": "x"}, "returned 'm' = 'x'; expected an array. Return"),
            (
                {"loss": 1.0, "m": None},
                "returned 'm' = None; expected an array. Return",
            ),
            (
                {"loss": 1.0, "m": {"a": 1}},
                "returned 'm' = {'a': 1}; expected an array",
            ),
            ({"loss": 1.0, "m": [1, [2, 3]]}, "'m' = [1, [2, 3]]; expected an array"),
        ],
    )
    def test_no_loss(self, returned, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            step_of(lambda params, batch, ctx: returned)

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            (None, jnp.ones(2), "float64[2] against None. Pass the initial one to"),
            ({"m": 0.0}, {"n": 0.0}, "{'n': 'float64[]'} against {'m': 'float64[]'}"),
            (jnp.zeros(2), jnp.zeros(3), "float64[3] against float64[2]"),
            (jnp.zeros(2), jnp.zeros(2, int), "int64[2] against float64[2]"),
            (jnp.zeros(2), None, "None against float64[2]"),
        ],
    )
    def test_model_state_of_another_structure(self, before, after, message):
        def loss_fn(params, batch, ctx):
            return {"loss": jnp.sum(params), "model_state": after}

        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            step_of(loss_fn, model_state=before)
        assert "loss of 'inner' returned a model_state unlike" in str(caught.value)
        assert "return one of the same structure" in str(caught.value)

    def test_model_state_that_is_no_array(self):
        def loss_fn(params, batch, ctx):
            return {"loss": jnp.sum(params), "model_state": "text"}

        message = "loss of 'inner' returned a model_state that holds something that is"
        with pytest.raises(ValueError, match=message):
            step_of(loss_fn, model_state=0.0)

    def test_metrics_of_any_shape_and_dtype(self):
        def loss_fn(params, batch, ctx):
            extra = {
                "params": params,
                "count": 3,
                "right": True,
                "key": ctx.rng,
                0: 1.0,
            }
            return {"loss": jnp.sum(params), **extra}

        _, metrics = step_of(loss_fn, rng=0)
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

    def test_calling_applies_the_function_to_the_params(self):
        assert self.CTX.outer(3.0) == 6.0

    @pytest.mark.parametrize("read", [lambda c: c["other"], lambda c: c.other])
    def test_undeclared_neighbour(self, read):
        message = (
            "problem 'inner' reads ctx['other'], but no edge between them is declared. "
            "If 'other' is an upper of 'inner', add u2l={'other': ['inner']}; if it is "
            "a lower, add l2u={'other': ['inner']}. Declared: ['outer']."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            read(self.CTX)

    @pytest.mark.parametrize("read", [lambda c: c["other"], lambda c: c.other])
    def test_undeclared_neighbour_in_a_loss(self, read):
        message = r"problem 'inner' reads ctx\['other'\].* Declared: \[\]"
        with pytest.raises(ValueError, match=message):
            step_of(lambda params, batch, ctx: read(ctx).params.sum())

    def test_neighbour_without_a_function(self):
        message = (
            "neighbour 'fit' was called, but has no apply_fn. Pass apply_fn= to "
            "Problem.create of 'fit', or use its params."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            mlox.Neighbour(2.0, None, None, "fit")(3.0)

    def test_protocols_of_python_find_no_neighbour(self):
        assert dataclasses.replace(self.CTX, step=1).step == 1
        assert not hasattr(self.CTX, "__array__")


class TestFunctions:
    @pytest.mark.parametrize(
        ("part", "value", "message"),
        [
            (
                "loss_fn",
                lambda p, b: 0.0,
                "takes (p, b); expected a function (params, ",
            ),
            ("sample", lambda p: p, "takes (p); expected a function (params, ctx) -> "),
            (
                "project",
                lambda p, c: p,
                "takes (p, c); expected a function (params) ->",
            ),
            ("apply_fn", 3, "is 3; expected a function."),
            ("loss_fn", jnp.ones(2), "is float64[2]; expected a function (params, bat"),
        ],
    )
    def test_wrong_kinds_and_numbers_of_arguments(self, part, value, message):
        refuses(TypeError, f"problem 'inner': {part} {message}", **{part: value})

    def test_a_wrapper_is_taken_by_its_own_arguments(self):
        def two(params, batch):
            return jnp.sum(params**2)

        @functools.wraps(two)
        def three(params, batch, ctx):
            return two(params, batch)

        assert create(loss_fn=three).loss_fn is three
        assert create(loss_fn=jax.jit(square)).loss_fn

    def test_an_error_in_a_mask_names_problem_and_mask(self):
        with pytest.raises(KeyError) as caught:
            create(params={"w": jnp.ones(2)}, trainable=lambda params: params["head"])
        assert caught.value.__notes__ == [
            "Raised in trainable of problem 'inner', which got params="
            "{'w': 'float64[2]'}."
        ]


class TestReplace:
    def test_an_unknown_attribute(self):
        message = "problem 'inner': replace got 'lr', which is no attribute; there are "
        with pytest.raises(TypeError, match=message):
            create().replace(lr=0.1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "a b"}, "Problem name 'a b' is no identifier"),
            ({"method": "sama"}, "problem 'inner': method is 'sama'; expected a value"),
            ({"unroll_steps": 0}, "problem 'inner': unroll_steps must be a positive "),
            ({"tx": 0.1}, "problem 'inner': tx is 0.1; expected an optax"),
            ({"loss_fn": None}, "problem 'inner': loss_fn is None; expected a funct"),
        ],
    )
    def test_what_is_no_array_is_checked_as_when_created(self, changes, message):
        with pytest.raises((TypeError, ValueError), match=message):
            create().replace(**changes)

    def test_functions_may_be_dropped(self):
        assert create(project=lambda p: p).replace(project=None).project is None


def test_arrays_of_objects_are_no_params():
    refuses(TypeError, "params has dtype object", params=np.array([None, 1.0]))


def test_a_state_of_an_optimizer_that_is_no_array():
    message = "problem 'inner': opt_state holds something that is no array: is 'fresh' "
    refuses(TypeError, message, opt_state="fresh")
