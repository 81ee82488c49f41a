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

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _moons import accuracy, draw_sides, load, network
from _program import parsed, parser, print_table

import mlox

DECAY, NOISES, WEIGHT, UNLABELLED = 0.99, (0.05, 0.15, 0.3), 10.0, 200
adam, average = optax.adam(3e-3), optax.sgd(1 - DECAY)


def student_loss(params: Any, batch: Any, ctx: mlox.Context, noise: float) -> Any:
    """Return the loss on labels, and the distance from the teacher's predictions."""
    points, labels, more = batch
    rng: Any = ctx.rng
    keys = jax.random.split(rng, 3)
    noisy = lambda key, x: x + noise * jax.random.normal(key, x.shape)
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


@functools.cache  # of a noise: all seeds share the compiled programs
def with_noise(noise: float) -> Any:
    return functools.partial(student_loss, noise=noise)


def build(seed: int, taught: bool, noise: float) -> mlox.Engine:
    params = network.init(jax.random.key(seed), jnp.ones((1, 2)))
    student = mlox.Problem.create(
        name="student", params=params, tx=adam, loss_fn=with_noise(noise), rng=seed
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


def draw(labels: int, seed: int) -> Any:
    """Yield batches: the labelled points of each moon, and points without labels."""
    points, moons = load(seed)
    few = np.concatenate([np.flatnonzero(moons == k)[:labels] for k in (0, 1)])
    rng = np.random.default_rng(seed)
    while True:
        yield points[few], moons[few], points[rng.integers(2000, size=UNLABELLED)]


def fit(seed: int, taught: bool, noise: float, args: Any) -> Any:
    engine, data = build(seed, taught, noise), {"student": draw(args.labels, seed)}
    how: Any = {"cycles_per_dispatch": min(args.steps, 100), "progress": False}
    state, _ = engine.run(engine.init(), data, args.steps, loggers=(), **how)
    return {name: problem.params for name, problem in state.items()}


def tuned(taught: bool, args: Any) -> float:
    """Return the noise that is best on other seeds."""

    def score(noise: float) -> float:
        fits = [fit(seed, taught, noise, args)["student"] for seed in (100, 101, 102)]
        tests = [load(seed) for seed in (1100, 1101, 1102)]
        return sum(map(accuracy, fits, tests))

    return max(NOISES, key=score)


def main() -> None:
    options = parser("Train a mean teacher with mlox.")
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--labels", type=int, default=4, help="for each moon")
    args = parsed(options, steps=10_000, seeds=10)
    noises, runs, found = [tuned(taught, args) for taught in (False, True)], [], {}
    for seed in range(args.seeds):
        alone = fit(seed, False, noises[0], args)["student"]
        found = {"labels alone": alone, **fit(seed, True, noises[1], args)}
        test = load(1000 + seed)
        runs.append({name: accuracy(params, test) for name, params in found.items()})
    print(
        f"{2 * args.labels} labels, {args.steps} steps; noise, chosen on other seeds:"
    )
    print(f"{noises[0]} for labels alone, {noises[1]} for student and teacher")
    print_table(["", "test accuracy"], runs)
    last = args.seeds - 1
    draw_sides(found, next(draw(args.labels, last)), load(1000 + last), args.out)


if __name__ == "__main__":
    main()
