"""A run with all that a checkpoint must hold, to be killed.

python tests/kill/job.py FOLDER KIND

It prints "ready" before it begins, and the cycle at every log point. At its end, the
checksums of everything that it returns are in FOLDER/end.json.
"""

import hashlib
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlox

CYCLES = 60
COLUMNS = ["inner/loss", "outer/loss", "validation/error"]
DATA = {"x": np.arange(64.0).reshape(32, 2) / 64, "y": np.arange(32.0) % 3}
SPOILED = {"x": DATA["x"], "y": np.full(32, np.nan)}
BATCHES = [DATA, {"x": -DATA["x"], "y": DATA["y"]}]

KINDS: dict[str, dict[str, Any]] = {
    "one cycle per dispatch, early stopping": {
        "early_stopping": mlox.EarlyStopping("validation/error", "min", patience=8)
    },
    "three cycles, donated, saved at once": {
        "cycles_per_dispatch": 3,
        "donate": True,
        "async_": False,
    },
    "spoiled batches, back to the last checkpoint": {
        "on_nonfinite": "restore",
        "early_stopping": mlox.EarlyStopping("outer/loss", "min", patience=40),
    },
}


class Line:
    """A logger that prints where the run is."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        del metrics
        print(step, flush=True)

    def close(self) -> None:
        print("closed", flush=True)


def inner_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    noise = jax.random.normal(ctx.rng, params["w"].shape)
    answer = batch["x"] @ (params["w"] + 0.01 * noise)
    mean = 0.9 * ctx.model_state + 0.1 * answer.mean()
    loss = jnp.mean(jnp.tanh(answer - batch["y"] - mean) ** 2)
    penalty = jnp.exp(ctx.outer.params) * jnp.sum(params["w"] ** 2)
    return {"loss": loss + penalty, "model_state": mean, "mean": mean}


def outer_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    error = batch["x"] @ ctx.inner.params["w"] - batch["y"]
    return jnp.mean(error**2) + params**2


def engine() -> mlox.Engine:
    outer = mlox.Problem.create(
        name="outer", params=jnp.array(-1.0), tx=optax.adam(0.1), loss_fn=outer_loss
    )
    inner = mlox.Problem.create(
        name="inner",
        params={"w": jnp.full(2, 0.1)},
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
        loss_fn=inner_loss,
        model_state=jnp.zeros(()),
        rng=jax.random.key(3),
        unroll_steps=2,
    )
    return mlox.Engine(
        [outer, inner], u2l={"outer": ["inner"]}, l2u={"inner": ["outer"]}
    )


def score(state: Any) -> dict[str, Any]:
    """Score a state; it gets better, and then worse again."""
    norm = jnp.sum(state["inner"].params["w"] ** 2)
    return {"error": jnp.sin(7.0 * norm) + 0.5 * norm}


def checksums(tree: Any) -> dict[str, str]:
    """Return a checksum of each leaf, by path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if key else leaf)
        text = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        found[jax.tree_util.keystr(path)] = hashlib.sha256(text).hexdigest()[:16]
    return found


def main() -> None:
    folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
    options = dict(KINDS[kind])
    checkpoint = mlox.Checkpoint(
        folder,
        every=6,
        keep=2,
        best="validation/error",
        async_=options.pop("async_", True),
    )
    spoils = "on_nonfinite" in options
    outer = [*BATCHES, *BATCHES, SPOILED, *BATCHES] if spoils else BATCHES
    made = engine()
    print("ready", flush=True)
    end = made.run(
        made.init(),
        {"inner": mlox.shuffled(DATA, 4, seed=1), "outer": outer},
        CYCLES,
        validation=score,
        valid_every=3,
        log_every=1,
        logdir=folder / "logs",
        loggers=[Line(), mlox.csv_logger(folder / "logs" / "table.csv", COLUMNS)],
        progress=False,
        checkpoint=checkpoint,
        resume=True,
        **options,
    )
    (folder / "end.json").write_text(json.dumps(checksums(end)))


if __name__ == "__main__":
    main()
