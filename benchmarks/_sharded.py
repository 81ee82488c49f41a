"""The job of `scaling.py`, placed on devices and compiled for them.

Meta-Weight-Net: a 784-512-512-16 MLP with Adam, whose examples a small network weighs,
five steps of the MLP for each of the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _collectives import Collective, collectives
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import mlox

STEPS, PRODUCTS = 5, 3
SIZES = (784, 512, 512, 16)


class Case(NamedTuple):
    """A method, and what it evaluates in a cycle.

    Attributes:
        method: The method.
        evaluations: The gradients of the MLP and products with its Hessian: each of
            them is a sum over all examples, so that each needs one all-reduce.
        gradients: What they cost in computing; a product takes two.
    """

    method: Any
    evaluations: int
    gradients: int


# Five steps; the gradient of the network's loss at the answer; then what the method is,
# with the derivative by the network's weights, which is worth one gradient of the MLP.
CASES = {
    "Detached": Case(mlox.Detached(), STEPS, STEPS),
    "FiniteDifference": Case(mlox.FiniteDifference(), STEPS + 1, STEPS + 3),
    # The gradient that Adam was given.
    "SAMA": Case(mlox.SAMA(), STEPS + 1 + 1, STEPS + 3),
    "CG(3)": Case(
        mlox.Implicit(mlox.CG(iterations=PRODUCTS)),
        STEPS + 1 + PRODUCTS,
        STEPS + 2 + 2 * PRODUCTS,
    ),
    "Neumann(3)": Case(
        mlox.Implicit(mlox.Neumann(iterations=PRODUCTS, step=0.01)),
        STEPS + 1 + PRODUCTS,
        STEPS + 2 + 2 * PRODUCTS,
    ),
    "Unrolled": Case(mlox.Unrolled(), STEPS + 1 + STEPS, STEPS + 1 + 2 * STEPS),
    "Unrolled(mixed=True)": Case(
        mlox.Unrolled(mixed=True), STEPS + 1 + STEPS, STEPS + 1 + 2 * STEPS
    ),
}

Mean = Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]
"""A change of a loss (*params, batch) -> mean over the examples."""


def layers(sizes: Sequence[int]) -> dict[str, dict[str, jax.Array]]:
    """Make the parameters of an MLP."""
    draw = np.random.default_rng(0).normal
    return {
        f"layer{i}": {
            "w": jnp.asarray(draw(size=(n, m)) / n**0.5, jnp.float32),
            "b": jnp.zeros(m, jnp.float32),
        }
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }


def unit() -> int:
    """Return the bytes of all parameters of the MLP."""
    return sum(x.nbytes for x in jax.tree.leaves(layers(SIZES)))


def mlp(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Apply an MLP."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def losses(params: Any, batch: Any) -> jax.Array:
    images, labels = batch
    logits = mlp(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def weighed(params: Any, weigher: Any, batch: Any) -> jax.Array:
    found = losses(params, batch)
    seen = jax.lax.stop_gradient(found)[:, None]
    return jnp.mean(jax.nn.sigmoid(mlp(weigher, seen))[:, 0] * found)


def plain(params: Any, batch: Any) -> jax.Array:
    return jnp.mean(losses(params, batch))


def as_it_is(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return loss


def mean_of_means(mesh: Mesh) -> Mean:
    """Return a change of a loss: each device's own mean, and the mean of these.

    Inside `shard_map` a derivative adds all its terms on the device, and is summed over
    the devices where it leaves.
    """

    def change(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def whole(*given: Any) -> jax.Array:
            *params, _ = given
            specs = (*(PartitionSpec() for _ in params), PartitionSpec("data"))
            return jax.shard_map(
                lambda *given: jax.lax.pmean(loss(*given), "data"),
                mesh=mesh,
                in_specs=specs,
                out_specs=PartitionSpec(),
            )(*given)

        return whole

    return change


def engine_of(method: Any, change: Mean = as_it_is) -> mlox.Engine:
    """Make the engine."""
    fit_loss, weigh_loss = change(weighed), change(plain)
    weigh = mlox.Problem.create(
        name="weigh",
        params=layers((1, 64, 1)),
        tx=optax.adam(1e-3),
        loss_fn=lambda params, batch, ctx: weigh_loss(ctx.fit.params, batch),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=layers(SIZES),
        tx=optax.adam(1e-3, eps_root=1e-16),
        loss_fn=lambda params, batch, ctx: fit_loss(params, ctx.weigh.params, batch),
        method=method,
        unroll_steps=STEPS,
    )
    return mlox.Engine([weigh, fit], u2l={"weigh": ["fit"]}, l2u={"fit": ["weigh"]})


def batches_of(engine: mlox.Engine, size: int, mesh: Mesh) -> Any:
    """Make batches of a size for each process."""
    generator = np.random.default_rng(jax.process_index())

    def batch() -> Any:
        images = generator.normal(size=(size, SIZES[0])).astype(np.float32)
        return images, generator.integers(SIZES[-1], size=size)

    series = {name: iter([batch() for _ in range(STEPS)]) for name in engine.names}
    return mlox.shard_batches(engine, engine.stack(series), mesh)


class Program(NamedTuple):
    """A compiled step on some devices.

    Attributes:
        state: Bytes of the state on one device.
        temporaries: The peak of what there is besides.
        collectives: Its communication.
        step: It itself.
        arguments: What it takes.
    """

    state: int
    temporaries: int
    collectives: list[Collective]
    step: Any
    arguments: tuple[Any, Any]


def mesh_of(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), ("data",))


def compiled(
    engine: mlox.Engine,
    rules: Any,
    mesh: Mesh,
    batch: int,
    target: Mesh | None = None,
    options: Mapping[str, Any] | None = None,
) -> Program:
    """Compile the step for a mesh.

    Args:
        engine: The engine.
        rules: Of `mlox.shard`.
        mesh: Where the arrays are.
        batch: The examples in a batch, on each process.
        target: As large a mesh to compile for, of devices that need not be there.
        options: For the compiler.
    """
    state = mlox.shard(engine, engine.init(), mesh, rules)
    arguments = state, batches_of(engine, batch, mesh)
    shards = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    if target is not None:
        arguments = jax.tree.map(lambda x: _moved(x, target), arguments)
    lowered = engine.compile(like=arguments[0]).lower(*arguments)
    step = lowered.compile(compiler_options=options)
    temporaries = step.memory_analysis().temp_size_in_bytes
    found = collectives(step.as_text())
    return Program(sum(shards), temporaries, found, step, arguments)


def _moved(x: jax.Array, target: Mesh) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(target, x.sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def communication(program: Program, devices: int) -> dict[str, Any]:
    """Return what a program moves: by kind its size in units, and its operations."""
    size = unit()
    found: dict[str, Any] = {}
    for one in program.collectives:
        units, count = found.get(one.kind, (0.0, 0))
        found[one.kind] = (units + one.size * one.times / size, count + one.times)
    return {
        "collectives": found,
        "sent": sum(one.sent(devices) for one in program.collectives),
        "temporaries": program.temporaries,
    }
