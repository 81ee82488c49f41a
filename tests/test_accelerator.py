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
def test_the_command_measures_every_part_on_a_cpu(tmp_path):
    command = [sys.executable, FOLDER / "accelerator.py", "--size", "tiny"]
    command += ["--rows", "1", "--seconds", "3000", "--results", tmp_path]
    subprocess.run(command, check=True, timeout=3000)
    found = json.loads((tmp_path / "accelerator.json").read_text())
    parts = dict(found["parts"])
    del parts["beside_betty"]  # where PyTorch and a card are
    assert all("seconds" in row for rows in parts.values() for row in rows)
    assert {len(rows) for rows in found["parts"].values()} == {1}
