"""Three levels: learn which source data to pretrain on, by the finetuned network.

The target are 60 faint, noisy digits with labels. The source are 750 clear digits of
five kinds in equal parts: as written, inverted, mirrored, turned by 90 degrees, and
with wrong labels. A network p is pretrained on the source with a weight for each kind,
and f is finetuned from it on half of the target; the other half judges the weights:

    min over v   mean loss of f* on the validation half of the target      "weights"
    such that    f* = argmin over f of mean loss on the training half
                      + rho |f - p*|^2                                     "finetune"
    and          p* = argmin over p of mean of softmax(v)[kind] * loss on the source
                      + l2 |p|^2                                           "pretrain"

The weights see the network only through both: the path is weights <- finetune <-
pretrain <- weights. After Betty's example of learning to reweight pretraining data
(Choe et al., ICLR 2023; Raghu et al., 2021).

    pip install "mlox[examples]"
    python examples/domain_adaptation.py
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _data import Pair
from _domains import KINDS, load_domains
from _finetuning import L2, adam, finetuned, losses, network, pretrained, pull, together
from _picture import panels, save
from _program import parser, print_table

import mlox

RHO, ROWS = 0.1, 30
PULLS, SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), (0.1, 0.3, 0.5, 0.7, 0.9)
fast = optax.adam(0.1)


def pretrain_loss(w: Any, batch: Any, ctx: mlox.Context) -> jax.Array:
    rows, kind = batch
    weights = jax.nn.softmax(ctx.weights.params)[kind]
    size = optax.tree.norm(w, squared=True)
    return jnp.average(losses(w, rows), weights=weights) + L2 * size


def finetune_loss(w: Any, rows: Pair, ctx: mlox.Context) -> jax.Array:
    return losses(w, rows).mean() + RHO * pull(w, ctx.pretrain.params)


def weights_loss(v: Any, rows: Pair, ctx: mlox.Context) -> jax.Array:
    return losses(ctx.finetune.params, rows).mean()


def learn(data: Any, kind: Any, w0: Any, cycles: int) -> tuple[jax.Array, Any]:
    """Return the weights of the kinds, and how they were learned."""
    source, train, valid = data[:3]
    weights = mlox.Problem.create(
        name="weights", params=jnp.zeros(len(KINDS)), tx=fast, loss_fn=weights_loss
    )
    finetune = mlox.Problem.create(
        name="finetune",
        params=w0,
        tx=adam,
        loss_fn=finetune_loss,
        method=mlox.Implicit(mlox.CG(iterations=10)),
        unroll_steps=2,
    )
    pretrain = mlox.Problem.create(
        name="pretrain",
        params=w0,
        tx=adam,
        loss_fn=pretrain_loss,
        method=mlox.Unrolled(),
    )
    edges = {weights: [pretrain]}, {pretrain: [finetune], finetune: [weights]}
    engine = mlox.Engine([weights, finetune, pretrain], *edges)
    batches = {"weights": [valid], "finetune": [train], "pretrain": [(source, kind)]}
    state, seen = engine.init(), [jnp.zeros(len(KINDS))]
    for _ in range(10):
        how = {"cycles_per_dispatch": 5, "loggers": (), "progress": False}
        state, _ = engine.run(state, batches, cycles // 10, **how)
        seen.append(state["weights"].params)
    return jax.nn.softmax(seen[-1]), jax.nn.softmax(jnp.stack(seen))


def compare(seed: int, cycles: int, each: int) -> tuple[dict[str, float], Any]:
    *data, kind = load_domains(seed, each, ROWS)
    source, train, valid, test = data
    both = jax.tree.map(lambda *x: jnp.concatenate(x), train, valid)
    w0 = network.init(jax.random.key(seed), source[0][:1])
    learned, seen = learn(data, jnp.asarray(kind), w0, cycles)
    start = lambda weights: pretrained(weights[kind], source, w0)
    tune = lambda p: (PULLS, lambda rho, rows: finetuned(p, rho, rows))
    ways: dict[str, Any] = {
        "target alone": tune(w0),
        "source and target": (SHARES, lambda c, rows: together(source, c, rows, w0)),
        "equal weights": tune(start(jnp.ones(5))),
        "mlox": tune(start(learned)),
        "as written only": tune(start(jnp.eye(5)[0])),
    }
    found = {}
    for name, (settings, train_on) in ways.items():
        score = lambda x, f=train_on: losses(f(x, train), valid).mean()
        w: Any = train_on(min(settings, key=score), both)
        right: Any = network.apply(w, test[0])
        found[name] = float((right.argmax(axis=1) == test[1]).mean())
    return found, seen


def main() -> None:
    options = parser("Learn which source data to pretrain on.")
    options.add_argument("--steps", type=int, default=100, help="steps of the weights")
    args = options.parse_args()
    each, seeds = 250 if args.large else 150, range(args.seeds)
    runs, seen = zip(*(compare(i, args.steps, each) for i in seeds), strict=True)
    print_table(["pretrained with", "test accuracy"], runs)
    figure, axes = panels(1, 2)
    times = np.linspace(0, args.steps, 11)
    for name, curve in zip(KINDS, np.mean(seen, axis=0).T, strict=True):
        axes[0].plot(times, curve, label=name)
    axes[0].set(xlabel="steps of the weights", title="weight of each kind")
    axes[0].legend(fontsize=10)
    found = np.array([[run[name] for run in runs] for name in runs[0]])
    axes[1].barh(list(runs[0]), found.mean(axis=1), xerr=found.std(axis=1))
    axes[1].set(xlim=(0.5, 1), title="test accuracy")
    save(figure, args.out)


if __name__ == "__main__":
    main()
