"""Learn the learning rate of ten steps with momentum."""

import higher
import numpy as np
import torch

torch.set_default_dtype(torch.float64)
draw = np.random.default_rng(0)
x = torch.tensor(draw.normal(size=(40, 5)))
y = x @ torch.arange(5.0) / 5

net = torch.nn.Linear(5, 1, bias=False)
torch.nn.init.zeros_(net.weight)
log_rate = torch.tensor(-3.0, requires_grad=True)
outer = torch.optim.SGD([log_rate], lr=0.5)
inner = torch.optim.SGD(
    net.parameters(), lr=1.0, momentum=0.5
)


def error(net, part):
    return ((net(x[part])[:, 0] - y[part]) ** 2).mean()


for _ in range(20):
    with higher.innerloop_ctx(
        net, inner, override={"lr": [torch.exp(log_rate)]}
    ) as (fit, optimizer):
        for _ in range(10):
            optimizer.step(error(fit, slice(20)))
        loss = error(fit, slice(20, 40))
        outer.zero_grad()
        loss.backward()
    outer.step()

print(loss.item(), log_rate.item())
