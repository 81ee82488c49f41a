"""Measure methods on three jobs by mlox.compare, and write the tables of the docs.

python docs/make_method_table.py            # writes them into docs/which_method.md
python docs/make_method_table.py --check    # fails if errors differ; times may
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import mlox

PAGE = pathlib.Path(__file__).parent / "which_method.md"
SAME = 0.02  # by how much a cosine may differ between machines

Job = tuple[mlox.Engine, Any, Any, str, Mapping[str, mlox.Method | mlox.Loop]]


def regression() -> Job:
    """Return a logistic regression, solved, with a penalty for each feature."""
    x, noise = jax.random.normal(jax.random.key(0), (2, 400, 50))
    y = jnp.sign(x[:, :5].sum(1) + noise[:, 0])

    def logistic(w, rows):
        return jnp.mean(jnp.logaddexp(0.0, -rows[1] * (rows[0] @ w)))

    def fit_loss(w, batch, ctx):
        return logistic(w, batch) + 0.5 * jnp.sum(jnp.exp(ctx.upper.params) * w**2)

    def upper_loss(params, batch, ctx):
        return logistic(ctx.fit.params, batch)

    upper = mlox.Problem.create(
        name="upper",
        params=jnp.full(50, -3.0),
        tx=optax.adam(0.05),
        loss_fn=upper_loss,
    )
    fit = mlox.Problem.create(
        name="fit",
        params=jnp.zeros(50),
        tx=optax.sgd(0.8, momentum=0.9),
        loss_fn=fit_loss,
        unroll_steps=100,
    )
    cg = mlox.CG(iterations=20)
    methods = {
        "`Implicit(Dense())`": mlox.Implicit(mlox.Dense()),
        "`Implicit(CG(iterations=20))`": mlox.Implicit(cg),
        "`Implicit(CG(iterations=5))`": mlox.Implicit(mlox.CG(iterations=5)),
        "`Implicit(CG(iterations=20), refine=1)`": mlox.Implicit(cg, refine=1),
        "`Implicit(CG(iterations=5, preconditioner=Nystrom(rank=10)))`": mlox.Implicit(
            mlox.CG(iterations=5, preconditioner=mlox.Nystrom(rank=10))
        ),
        "`Implicit(Nystrom(rank=20))`": mlox.Implicit(mlox.Nystrom(rank=20)),
        "`Implicit(Neumann(iterations=20, step=2.0))`": mlox.Implicit(
            mlox.Neumann(iterations=20, step=2.0)
        ),
        "`FixedPoint(iterations=20)`": mlox.FixedPoint(iterations=20),
        "`Unrolled()`": mlox.Unrolled(),
        "`Forward()`": mlox.Forward(),
        "`FiniteDifference()`": mlox.FiniteDifference(),
        "`SAMA()`": mlox.SAMA(),
    }
    return *start(upper, fit, (x[200:], y[200:]), (x[:200], y[:200])), "upper", methods


def weighted_network() -> Job:
    """Return a network in the middle of its training, with a weight for each row."""
    x, _ = jax.random.normal(jax.random.key(1), (2, 500, 20))
    hidden, out = jax.random.normal(jax.random.key(2), (2, 20, 20))
    y = jnp.argmax(jnp.tanh(x @ hidden) @ out[:, :4], axis=1)
    wrong = jax.random.randint(jax.random.key(3), (100,), 0, 4)
    keys = jax.random.split(jax.random.key(4), 3)
    sizes = [(20, 64), (64, 64), (64, 4)]
    layers = [
        jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, sizes, strict=True)
    ]

    def outputs(params, batch, ctx):
        a, b, c = params
        return jnp.tanh(jnp.tanh(batch[0] @ a) @ b) @ c, params

    def fit_loss(found, batch, ctx):
        logits, params = found
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(
            jax.nn.sigmoid(ctx.upper.params) * losses
        ) + 2e-3 * optax.tree.norm(params, squared=True)

    def upper_loss(params, batch, ctx):
        logits, _ = outputs(ctx.fit.params, batch, ctx)
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        )

    upper = mlox.Problem.create(
        name="upper", params=jnp.zeros(200), tx=optax.adam(0.1), loss_fn=upper_loss
    )
    fit = mlox.Problem.create(
        name="fit",
        params=layers,
        tx=optax.sgd(0.2, momentum=0.9),
        loss_fn=mlox.Composed(outputs, fit_loss),
        unroll_steps=50,
    )
    methods = {
        "`Implicit(GMRES(iterations=20))`": mlox.Implicit(mlox.GMRES(iterations=20)),
        "`Implicit(CG(iterations=20))`": mlox.Implicit(mlox.CG(iterations=20)),
        "`Implicit(CG(iterations=5, damping=0.01))`": mlox.Implicit(
            mlox.CG(iterations=5, damping=0.01)
        ),
        "`Implicit(Nystrom(rank=20, damping=0.1))`": mlox.Implicit(
            mlox.Nystrom(rank=20, damping=0.1)
        ),
        "`GaussNewton(CG(iterations=20))`": mlox.GaussNewton(mlox.CG(iterations=20)),
        "`Unrolled()`": mlox.Unrolled(),
        "`Unrolled(last_steps=5)`": mlox.Unrolled(last_steps=5),
        "`FiniteDifference()`": mlox.FiniteDifference(),
        "`SAMA()`": mlox.SAMA(),
    }
    rows = (x[:200], y[:200].at[:100].set(wrong))
    return *start(upper, fit, (x[200:], y[200:]), rows), "upper", methods


def long_loop() -> Job:
    """Return 1000 steps of a small network, whose rate and decay are learned."""
    x, noise = jax.random.normal(jax.random.key(5), (2, 100, 8))
    y = jnp.sin(x[:, 0]) + 0.3 * noise[:, 0]
    keys = jax.random.split(jax.random.key(6))
    params = (
        jax.random.normal(keys[0], (8, 32)) / 3,
        jax.random.normal(keys[1], (32,)) / 6,
    )

    def squared(params, rows):
        return jnp.mean((jnp.tanh(rows[0] @ params[0]) @ params[1] - rows[1]) ** 2)

    def fit_loss(params, batch, ctx):
        decay = jnp.exp(ctx.upper.params["decay"])
        return squared(params, batch) + decay * optax.tree.norm(params, squared=True)

    upper = mlox.Problem.create(
        name="upper",
        params={"decay": jnp.float32(-6.0), "rate": jnp.float32(-4.0)},
        tx=optax.adam(0.05),
        loss_fn=lambda params, batch, ctx: squared(ctx.fit.params, batch),
    )
    fit = mlox.Problem.create(
        name="fit",
        params=params,
        tx=optax.inject_hyperparams(optax.sgd)(0.02),
        loss_fn=fit_loss,
        hyperparams=lambda ctx: {"learning_rate": jnp.exp(ctx.upper.params["rate"])},
        method=mlox.Unrolled(),
        unroll_steps=1000,
    )
    methods = {
        "`Unrolled()`": mlox.Unrolled(),
        "`Unrolled(levels=1)`": mlox.Unrolled(levels=1),
        "`Unrolled(levels=4)`": mlox.Unrolled(levels=4),
        "`Unrolled(last_steps=100)`": mlox.Unrolled(last_steps=100),
        "`Forward()`": mlox.Forward(),
    }
    return *start(upper, fit, (x[50:], y[50:]), (x[:50], y[:50])), "upper", methods


def start(upper, fit, valid, train) -> tuple[mlox.Engine, Any, Any]:
    """Return an engine, its first state and the batches of a cycle."""
    engine = mlox.Engine([upper, fit], {"upper": ["fit"]}, {"fit": ["upper"]})
    rows = {"upper": iter([valid]), "fit": iter([train] * fit.unroll_steps)}
    return engine, engine.init(), engine.stack(rows)


JOBS: dict[str, Callable[[], Job]] = {
    "regression": regression,
    "weighted_network": weighted_network,
    "long_loop": long_loop,
}
HEADER = "| method | cosine | norm ratio | rel. error | time | memory |"


def table(measured: mlox.Comparison) -> str:
    """Write a comparison as a table of Markdown."""
    lines = [HEADER, "|---|---:|---:|---:|---:|---:|"]
    for row in measured.rows:
        memory = "?" if row.memory is None else f"{row.memory / 2**10:,.0f} KiB"
        lines.append(
            f"| {row.name} | {row.cosine:.3f} | {row.norm_ratio:.3g} | "
            f"{row.error:.2g} | {row.seconds * 1e3:.2f} ms | {memory} |"
        )
    return "\n".join([*lines, "", f"Reference: {measured.reference}.", ""])


def is_same(old: str, new: str) -> bool:
    """Whether two tables have the same methods, with cosines that agree."""
    rows = [
        dict(re.findall(r"^\| (`.+?`) \| (\S+)", t, re.MULTILINE)) for t in (old, new)
    ]
    return list(rows[0]) == list(rows[1]) and all(
        abs(float(rows[0][name]) - float(rows[1][name])) < SAME for name in rows[0]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    page, stale = PAGE.read_text("utf-8"), 0
    for name, job in JOBS.items():
        engine, state, batches, upper, methods = job()
        measured = mlox.compare(engine, state, batches, upper, {"fit": methods})
        new = table(measured)
        print(f"{name}\n{new}")
        place = rf"(?<=<!-- {name} -->\n\n).*?(?=\n<!-- end -->)"
        old = re.findall(place, page, re.DOTALL)
        if not is_same(old[0], new):
            stale = 1
            print(f"The table {name} is stale: run python docs/make_method_table.py")
        page = re.sub(place, lambda _, new=new: new, page, flags=re.DOTALL)
    if not check:
        PAGE.write_text(page, "utf-8")
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main())
