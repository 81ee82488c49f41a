"""The table of methods says what is true of each row."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .method_table import (
    WAYS,
    X,
    lowest_of_three,
    middle_of_three,
    slope,
    two_levels,
)

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"
EXACT = jnp.cos(X) * (jnp.sin(X) - 1) + 0.1 * X  # at the answer y = sin x


def read_table():
    """Return {first code of a row: {heading: cell}}."""
    section = PAGE.read_text("utf-8").split("## All ways in one table\n")[1]
    lines = [n for n in section.split("\n## ")[0].splitlines() if n.startswith("|")]
    heads, _, *rows = (
        [c.strip() for c in re.split(r"(?<!\\)\|", n)[1:-1]] for n in lines
    )
    return {row[0].strip("`"): dict(zip(heads, row, strict=True)) for row in rows}


TABLE = read_table()
every_row = pytest.mark.parametrize("name", WAYS)


def test_table_has_a_row_for_each_way():
    assert set(WAYS) <= set(TABLE)


def off(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.slow
@every_row
def test_bias_is_none_where_the_table_says_so(name):
    error = off(slope(two_levels(WAYS[name])), EXACT)
    bias = TABLE[name]["bias, at a solved lower"]
    if bias.startswith("none"):
        assert error < 1e-6
    elif not bias.startswith("of"):  # of the order of a setting
        assert error > 0.05


@pytest.mark.slow
@every_row
def test_forward_mode_is_reverse_mode(name):
    engine, v = two_levels(WAYS[name], steps=10), jnp.array([1.0, 2.0])
    of = lambda x: slope(engine, x)
    found = jax.jvp(of, (X,), (v,))[1]
    np.testing.assert_allclose(found, jax.jacrev(of)(X) @ v, atol=1e-10)
    # Differences of random draws, and what is cut, have no derivative.
    assert (TABLE[name]["forward mode"] == "yes") == bool(found.any())


@pytest.mark.slow
@every_row
def test_two_equal_tasks_have_twice_the_slope(name):
    if TABLE[name]["tasks, devices"] == "devices":
        with pytest.raises(ValueError, match=r"expected no tasks"):
            two_levels(WAYS[name], tasks=2)
        return
    both, one = (slope(two_levels(WAYS[name], tasks=n)) for n in (2, None))
    np.testing.assert_allclose(both - 0.1 * X, 2 * (one - 0.1 * X), rtol=1e-9)


@pytest.fixture(scope="module")
def three_levels():
    return slope(middle_of_three(WAYS["Implicit(Dense())"]))


@pytest.mark.slow
@every_row
def test_depth_is_what_the_table_says(name, three_levels):
    depth, way = TABLE[name]["depth"], WAYS[name]
    if depth.startswith(("any", "direct")):
        error = off(slope(middle_of_three(way)), three_levels)
        exact = TABLE[name]["bias, at a solved lower"].startswith("none")
        if depth.startswith("direct"):
            assert error > 0.1
        elif exact and "break down" not in depth:
            assert error < 1e-6
    else:
        with pytest.raises(ValueError, match=r"expected|cannot|keeps|asks|not defined"):
            middle_of_three(way)
    if depth.startswith("two"):
        with pytest.raises(ValueError, match=r"keeps a memory|of its own"):
            lowest_of_three(way)
    else:
        assert jnp.isfinite(slope(lowest_of_three(way))).all()
