"""Learn from few labels with a teacher that is the moving average of its student.

A mean teacher (Tarvainen and Valpola, NeurIPS 2017) has the weights

    teacher <- decay * teacher + (1 - decay) * student

after each step of the student, which learns from a few labelled points of two moons,
and from the teacher's predictions on many unlabelled ones. In mlox the teacher is a
problem of its own: a step of `optax.sgd(1 - decay)` on |teacher - student|^2 / 2 is
that average. Each of the two reads the other one as a constant, Engine(reads=). For
comparison the same network is trained on the labels alone.

    pip install "mlox[examples]"
    python examples/mean_teacher.py
"""

import argparse
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import make_moons

import mlox

DECAY, NOISE, WEIGHT, UNLABELLED = 0.99, 0.15, 10.0, 200
network = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(2)])
adam, average = optax.adam(3e-3), optax.sgd(1 - DECAY)


def noisy(key: Any, points: jax.Array) -> jax.Array:
    return points + NOISE * jax.random.normal(key, points.shape)


def student_loss(params: Any, batch: Any, ctx: mlox.Context) -> Any:
    """Return the loss on labels, and the distance from the teacher's predictions."""
    points, labels, more = batch
    rng: Any = ctx.rng
    keys = jax.random.split(rng, 3)
    logits: Any = network.apply(params, noisy(keys[0], points))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    if "teacher" not in ctx.neighbours:
        return loss
    own: Any = network.apply(params, noisy(keys[1], more))
    target = nn.softmax(ctx.teacher(noisy(keys[2], more)))
    ramp = jnp.minimum(ctx.step / 500, 1.0)
    distance = ((nn.softmax(own) - target) ** 2).sum(axis=1).mean()
    return {"loss": loss + WEIGHT * ramp * distance, "distance": distance}


def teacher_loss(params: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    difference = jax.tree.map(jnp.subtract, params, ctx.student.params)
    return 0.5 * optax.tree.norm(difference, squared=True)


def build(seed: int, taught: bool) -> mlox.Engine:
    params = network.init(jax.random.key(seed), jnp.ones((1, 2)))
    student = mlox.Problem.create(
        name="student", params=params, tx=adam, loss_fn=student_loss, rng=seed
    )
    if not taught:
        return mlox.Engine([student])
    teacher = mlox.Problem.create(
        name="teacher",
        params=params,
        tx=average,
        loss_fn=teacher_loss,
        apply_fn=network.apply,
    )
    return mlox.Engine(
        [student, teacher], reads={student: [teacher], teacher: [student]}
    )


def load(seed: int) -> Any:
    """Return the points of two moons, and to which of the two each one belongs."""
    points, moons = make_moons(2000, noise=0.1, random_state=seed)
    return np.asarray(points, np.float32), np.asarray(moons, np.int32)


def draw(labels: int, seed: int) -> Any:
    """Yield batches: the labelled points of each moon, and points without labels."""
    points, moons = load(seed)
    few = np.concatenate([np.flatnonzero(moons == k)[:labels] for k in (0, 1)])
    rng = np.random.default_rng(seed)
    while True:
        yield points[few], moons[few], points[rng.integers(2000, size=UNLABELLED)]


def accuracy(params: Any, pair: Any) -> float:
    logits: Any = network.apply(params, pair[0])
    return float((logits.argmax(axis=1) == pair[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a mean teacher with mlox.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--labels", type=int, default=4, help="for each moon")
    args = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        test = load(1000 + seed)
        for taught in (False, True):
            engine = build(seed, taught)
            state, _ = engine.run(
                engine.init(),
                {"student": draw(args.labels, seed)},
                train_iters=args.steps,
                cycles_per_dispatch=min(args.steps, 100),
                loggers=(),
                progress=False,
            )
            for name, problem in state.items():
                row = name if taught else "labels alone"
                rows.setdefault(row, []).append(accuracy(problem.params, test))
    print(f"test accuracy with {2 * args.labels} labels, {args.steps} steps")
    for row, found in rows.items():
        print(f"{row:14} {np.mean(found):.3f} ± {np.std(found):.3f}")


if __name__ == "__main__":
    main()
