"""The batches of a window: those of a problem have its steps as leading axis.

A unit axis is left out, since it slows XLA down.
"""

from __future__ import annotations

import jax

from mlox._graph.graph import Graph
from mlox._utils.types import Batches, PyTree


def entered(graph: Graph, batches: Batches) -> Batches:
    """Leave out the leading axis of problems that step once in a cycle."""
    top = len(graph.layers) - 1
    return {
        n: jax.tree.map(lambda x: x[0], batch) if graph.count(top, n) == 1 else batch
        for n, batch in batches.items()
    }


def first(graph: Graph, name: str, batches: Batches) -> Batches:
    """Take the batches of the first window of a problem's layer."""
    layer = graph.layer_of[name]
    names = (*graph.beneath(layer), *graph.layers[layer])
    counts = {n: graph.count(layer, n) for n in names}
    return {
        n: jax.tree.map(lambda x, c=count: x[0] if c == 1 else x[:c], batches[n])
        for n, count in counts.items()
    }


def last(graph: Graph, layer: int, name: str, batches: Batches, steps: int) -> PyTree:
    """Take the last batches of a problem in a window, without a unit axis."""
    if graph.count(layer, name) == 1:
        return batches[name]
    take = slice(-steps, None) if steps > 1 else -1
    return jax.tree.map(lambda x: x[take], batches[name])


def split(batch: PyTree, length: int, count: int) -> PyTree:
    """Give a batch a leading axis of `length` rounds, without a unit axis behind."""
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x.reshape(length, count, *x.shape[1:]), batch)
