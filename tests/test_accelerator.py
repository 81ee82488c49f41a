"""The program for accelerators, at a small size on the CPU."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mlox

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("name", ["Implicit(Identity())", "FiniteDifference(epsilon)"])
def test_a_hypergradient_is_as_exact_as_its_precision_and_no_more(programs, name):
    regression = programs("on_accelerator.regression")
    correctness = programs("on_accelerator.correctness")
    size = programs("on_accelerator.sizes").SIZES["tiny"].regression
    way = regression.ways(size)[name]
    reference = programs("on_accelerator.reference").in_float64(way, size)
    found = correctness.in_float32(way, size)
    assert correctness.compare(found, way, size, reference)["wrong"] == []
    swapped = {**found, "float32": found["bfloat16"]}
    assert correctness.compare(swapped, way, size, reference)["wrong"] == ["float32"]


def test_a_row_that_fails_or_comes_too_late_does_not_stop_the_others(programs):
    parts = programs("on_accelerator.parts")

    def fails():
        raise ValueError("too large\nmore")

    rows = {"fails": fails, "works": lambda: {"found": 1}}
    failed, works = parts.measure(rows, None, 60.0)
    assert failed == {"row": "fails", "failed": "ValueError: too large"}
    assert works["found"] == 1
    assert [row["row"] for row in parts.measure(rows, "works", 60.0)] == ["works"]
    late = list(parts.measure(rows, None, 0.0))
    assert [set(row) for row in late] == [{"row", "skipped"}] * 2


def test_without_a_measurement_the_section_says_so(programs):
    text = programs("accelerator").section(None)
    assert text.startswith("## On an accelerator")
    assert "not measured on a GPU" in text


def test_operations_are_shown_also_without_an_accelerator(programs):
    accelerator, record = programs("accelerator"), programs("_record")
    rows = [
        {"row": "decoder, SAMA()", "price": 2.667},
        {"row": "decoder, Implicit(CG(5))", "price": 8.0, "product": 1.5},
        {"row": "MLP, Implicit(CG(5))", "price": 8.5, "product": 1.25},
        {"row": "MLP, SAMA()", "failed": "MemoryError: "},
        {"row": "decoder, Other()", "price": 1.0},
        {"row": "MLP, Other()", "price": 1.0},
    ]
    counted = {**record.about("python some.py"), "rows": rows, "size": "tiny"}
    text = accelerator.section(None, counted)
    assert text.startswith(accelerator.section(None))
    assert "| SAMA() | 2.67 |  |  |  | 2.2 | not counted: MLP |" in text
    assert "| Other() | 1.00 |  | 1.00 |  |  |  |" in text
    assert "| Implicit(CG(5)) | 8.00 | 1.50 | 8.50 | 1.25 | 9 | met |" in text
    assert "- operations, MLP, SAMA(): MemoryError: " in text
    assert "`python some.py`" in text


def test_operations_are_as_many_as_the_page_explains(programs):
    rows = programs("_record").read("operations")["rows"]
    # A step of the lower takes 3F, so that a price of p is 3pF.
    forward = {row["row"]: round(3 * row["price"]) for row in rows}
    page = programs("on_accelerator.operations").WHY
    for method, words in (
        ("SAMA()", "`SAMA()`, 8F"),
        ("Implicit(CG(5))", "`Implicit(CG(5))`, 37F"),
        ("GaussNewton(CG(5))", "`GaussNewton(CG(5))`, 28F"),
        ("CG(5), products by differences of gradients", "of gradients, 23F"),
    ):
        assert words.endswith(f", {forward[f'decoder, {method}']}F")
        assert words in page


@pytest.fixture
def single():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.usefixtures("single")
def test_every_iteration_of_a_solver_is_counted(programs):
    work = programs("on_accelerator.work")
    sizes = programs("on_accelerator.sizes").SIZES["tiny"]
    method = mlox.GaussNewton(mlox.CG(3, damping=1.0))
    found = work.count(work.network, method, sizes)
    assert 1.0 < found["product"] < 1.1  # not a third of it, as in a loop
    assert 5.0 < found["price"] < 6.0


def test_products_by_differences_solve_a_linear_system(programs):
    work = programs("on_accelerator.work")
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    answer = mlox.Answer(
        point=jnp.ones(2),
        residual=lambda y: matrix @ y - 1.0,
        system=mlox.System.DEFINITE,
        pull_update=lambda v: v,
    )
    method = work.Differences(mlox.CG(2))
    found, _ = method.multiplier(answer, jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(found, 1.0, rtol=1e-9)
    slope = method.pairing(lambda y: y @ matrix @ y, answer.point, found)
    np.testing.assert_allclose(slope, 14.0)
    zero, _ = method.multiplier(answer, jnp.zeros(2))
    np.testing.assert_array_equal(zero, 0.0)


@pytest.mark.usefixtures("single")
def test_losses_in_two_parts_are_those_in_one(programs):
    job = programs("_jobs").mlp(1, None, width=4, batch=3)
    outputs, loss = job.composed
    batch = jax.tree.map(lambda x: x[0], job.batches["lower"])
    found = loss(outputs(job.lower, batch), job.upper, batch)
    assert found["loss"] == job.lower_loss(job.lower, job.upper, batch)["loss"]


def test_the_blocks_of_the_decoder_are_the_same_in_a_loop_recomputed_or_written_out(
    programs,
):
    decoder = programs("_decoder")
    shape = decoder.Shape(8, 2, 2, 16, 4, 2)
    params, tokens = decoder.init(shape), decoder.batches(shape, 1)["fit"]["t"][0]
    assert sum(x.size for x in jax.tree.leaves(params)) == shape.parameters
    losses = [
        decoder.losses(params, tokens, shape, **how)
        for how in ({}, {"remat": True}, {"written_out": True})
    ]
    for found in losses[1:]:
        np.testing.assert_allclose(found, losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[0], np.log(16), rtol=0.1)


def test_an_engine_is_built_while_jax_traces():
    def made():
        x = mlox.Problem.create(
            name="x",
            params=jnp.ones(2),
            tx=optax.sgd(0.1),
            loss_fn=lambda params, batch, ctx: jnp.sum(ctx.y.params**2),
        )
        y = mlox.Problem.create(
            name="y",
            params=jnp.ones(2),
            tx=optax.adam(0.1),  # of infinite slope at zero, which values alone show
            loss_fn=lambda params, batch, ctx: jnp.sum((params - ctx.x.params) ** 2),
            method=mlox.Unrolled(),
        )
        return mlox.Engine([x, y], {"x": ["y"]}, {"y": ["x"]}).init()

    shapes = jax.eval_shape(made)
    assert shapes["y"].params.shape == (2,)


@pytest.mark.slow
def test_the_command_counts_operations_without_a_device(tmp_path):
    command = [sys.executable, FOLDER / "accelerator.py", "--operations"]
    command += ["--size", "tiny", "--rows", "1", "--results", tmp_path]
    subprocess.run(command, check=True, timeout=600)
    (path,) = tmp_path.iterdir()
    (row,) = json.loads(path.read_text())["rows"]
    assert path.name == "operations.json"
    assert row["row"] == "decoder, FiniteDifference()"
    assert 1.5 < row["price"] < 2.0


@pytest.mark.slow
def test_the_command_measures_every_part_on_a_cpu(tmp_path):
    command = [sys.executable, FOLDER / "accelerator.py", "--size", "tiny"]
    command += ["--rows", "1", "--seconds", "3000", "--results", tmp_path]
    subprocess.run(command, check=True, timeout=3000)
    found = json.loads((tmp_path / "accelerator.json").read_text())
    parts = dict(found["parts"])
    del parts["beside_betty"]  # where PyTorch and a card are
    assert all("seconds" in row for rows in parts.values() for row in rows)
    assert {len(rows) for rows in found["parts"].values()} == {1}
