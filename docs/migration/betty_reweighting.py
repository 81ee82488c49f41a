"""Weigh examples, of which 40 % are mislabelled."""

import numpy as np
import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.problems import ImplicitProblem
from torch.nn import functional

torch.set_default_dtype(torch.float64)
draw = np.random.default_rng(0)
x = draw.normal(size=(700, 20))
y = (x[:, 0] > x[:, 1]).astype(float)
wrong = draw.random(700) < 0.4
noisy = np.where(wrong, 1 - y, y)
cross_entropy = functional.binary_cross_entropy_with_logits


def loader(*arrays):
    tensors = map(torch.tensor, arrays)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors),
        batch_size=100,
    )


class Classifier(ImplicitProblem):
    def training_step(self, batch):
        x, y, index = batch
        logits = self.module(x)[:, 0]
        losses = cross_entropy(logits, y, reduction="none")
        return (self.weights(index) * losses).mean()


class Weights(ImplicitProblem):
    def training_step(self, batch):
        x, y = batch
        logits = self.classifier(x)[:, 0]
        return {"loss": cross_entropy(logits, y)}


class Table(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.raw = torch.nn.Parameter(torch.zeros(size))

    def forward(self, index):
        return torch.sigmoid(self.raw[index])


linear, table = torch.nn.Linear(20, 1), Table(500)
torch.nn.init.zeros_(linear.weight)
torch.nn.init.zeros_(linear.bias)
classifier = Classifier(
    name="classifier",
    module=linear,
    optimizer=torch.optim.SGD(
        linear.parameters(), lr=0.5, momentum=0.9
    ),
    train_data_loader=loader(
        x[:500], noisy[:500], np.arange(500)
    ),
    config=Config(type="darts", unroll_steps=4),
)
weights = Weights(
    name="weights",
    module=table,
    optimizer=torch.optim.Adam(table.parameters(), lr=0.1),
    train_data_loader=loader(x[500:600], y[500:600]),
    config=Config(log_step=-1),
)
engine = Engine(
    problems=[weights, classifier],
    dependencies={
        "u2l": {weights: [classifier]},
        "l2u": {classifier: [weights]},
    },
    config=EngineConfig(
        train_iters=4 * 200, strategy="cpu"
    ),
)
engine.run()

found = torch.sigmoid(table.raw).detach().numpy()
test = torch.tensor(x[600:])
right = (linear(test)[:, 0] > 0) == torch.tensor(
    y[600:] > 0
)
print(
    found[wrong[:500]].mean(),  # of wrong labels
    found[~wrong[:500]].mean(),  # of right labels
    right.double().mean().item(),  # test accuracy
)
