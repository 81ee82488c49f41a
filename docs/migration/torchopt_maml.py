"""MAML: a start from which five steps of Adam fit."""

import numpy as np
import torch
import torchopt

torch.set_default_dtype(torch.float64)
draw = np.random.default_rng(0)


def tasks(count, points=20):  # sinusoids
    height, phase = draw.uniform(0.5, 2.0, (2, count, 1, 1))
    x = draw.uniform(-3.0, 3.0, (count, points, 1))
    y = height * np.sin(x + phase)
    return torch.tensor(x), torch.tensor(y)


net = torch.nn.Sequential(
    torch.nn.Linear(1, 20),
    torch.nn.Tanh(),
    torch.nn.Linear(20, 1),
)
with torch.no_grad():
    for layer in (net[0], net[2]):
        size = layer.weight.T.shape
        weight = draw.normal(size=size) / size[0] ** 0.5
        layer.weight.copy_(torch.tensor(weight.T))
        layer.bias.zero_()
outer = torch.optim.Adam(net.parameters(), lr=0.01)
inner = torchopt.MetaAdam(net, lr=0.05, eps_root=1e-16)


def error(x, y):
    return ((net(x) - y) ** 2).mean()


for _ in range(20):
    xs, ys = tasks(8)
    start = torchopt.extract_state_dict(net)
    fresh = torchopt.extract_state_dict(inner)
    total = 0.0
    for x, y in zip(xs, ys, strict=True):
        for _ in range(5):
            inner.step(error(x[:10], y[:10]))
        total = total + error(x[10:], y[10:]) / len(xs)
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, fresh)
    outer.zero_grad()
    total.backward()
    outer.step()

params = [p.detach().sum().item() for p in net.parameters()]
print(total.item(), *params)
