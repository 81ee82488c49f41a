"""Learn one L2 penalty for each feature."""

import logging

import numpy as np
import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem

torch.set_default_dtype(torch.float64)
logging.disable(logging.INFO)
draw = np.random.default_rng(0)
x = torch.tensor(draw.normal(size=(80, 5)))
noise = torch.tensor(draw.normal(size=80))
y = x @ torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0]) + noise
train, valid = (x[:40], y[:40]), (x[40:], y[40:])


class Vector(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(values)


def error(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean()


class Fit(ImplicitProblem):
    def training_step(self, batch):
        w = self.module.values
        l2 = torch.exp(self.penalty.module.values)
        return error(w, batch) + (l2 * w**2).sum()


class Penalty(ImplicitProblem):
    def training_step(self, batch):
        return error(self.fit.module.values, batch)


def learn(**method):
    def problem(kind, name, start, rate, data, config):
        module = Vector(start)
        optimizer = torch.optim.SGD(
            module.parameters(), lr=rate
        )
        return kind(
            name=name,
            module=module,
            optimizer=optimizer,
            train_data_loader=[data],
            config=config,
        )

    penalty = problem(
        Penalty,
        "penalty",
        torch.full((5,), -3.0),
        1.0,
        valid,
        Config(retain_graph=True),
    )
    fit = problem(
        Fit,
        "fit",
        torch.zeros(5),
        0.1,
        train,
        Config(unroll_steps=50, **method),
    )
    engine = Engine(
        problems=[penalty, fit],
        dependencies={
            "u2l": {penalty: [fit]},
            "l2u": {fit: [penalty]},
        },
        config=EngineConfig(
            train_iters=50 * 20, strategy="cpu"
        ),
    )
    engine.run()
    return penalty.module.values.detach().numpy()


neumann = learn(
    type="neumann",
    neumann_iterations=100,
    neumann_alpha=0.1,
)
cg = learn(type="cg", cg_iterations=5)
print(*neumann, *cg)
