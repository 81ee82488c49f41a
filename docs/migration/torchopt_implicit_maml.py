"""Implicit MAML: a start that fits are pulled to."""

import numpy as np
import torch
import torchopt
from torchopt.nn import ImplicitMetaGradientModule

torch.set_default_dtype(torch.float64)
draw = np.random.default_rng(0)
x = torch.tensor(draw.normal(size=(20, 5)))
y = torch.tensor(draw.normal(size=20))


class Start(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(5))


class Fit(
    ImplicitMetaGradientModule,
    linear_solve=torchopt.linear_solve.solve_cg(),
):
    def __init__(self, start):
        super().__init__()
        self.start = start
        w = start.w.detach().clone()
        self.w = torch.nn.Parameter(w.requires_grad_())

    def error(self, part):
        errors = torch.tanh(x[part] @ self.w) - y[part]
        return (errors**2).mean()

    def objective(self):
        pull = ((self.w - self.start.w) ** 2).sum()
        return self.error(slice(10)) + 0.5 * pull

    def solve(self):
        optimizer = torch.optim.SGD([self.w], lr=0.3)
        with torch.enable_grad():
            for _ in range(50):
                optimizer.zero_grad()
                loss = self.objective()
                loss.backward(inputs=[self.w])
                optimizer.step()


start = Start()
outer = torch.optim.SGD(start.parameters(), lr=0.3)
for _ in range(20):
    fit = Fit(start)
    fit.solve()
    loss = fit.error(slice(10, 20))
    outer.zero_grad()
    loss.backward()
    outer.step()

print(loss.item(), *start.w.tolist())
