"""An optimiser that learns from fewer examples than Adam does: momentum with orthogonalised steps.

The step for a weight matrix is its averaged gradient with all singular values set near one, so that directions that
are rarely seen move as far as common ones. Keller Jordan and others, "Muon: an optimizer for hidden layers in neural
networks", 2024; PyTorch has its own from 2.9 on, which the older stack lacks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrix with singular values near one, by a quintic Newton-Schulz iteration.

    Parameters
    ----------
    matrix
        float32, (rows, columns).
    steps
        Number of iterations; five bring the singular values to between about 0.7 and 1.2.

    Returns
    -------
    torch.Tensor
        float32, (rows, columns).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices of hidden layers; embeddings, biases and heads are better left to Adam.

    Parameters
    ----------
    params
        Matrices.
    lr
        Step length; about the root mean square of the change of a weight is 0.2 times this.
    momentum
        Share of the past in the averaged gradient, 0 to 1.
    weight_decay
        Decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step from the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - group["momentum"])
                step = orthogonalise(weight.grad.lerp(average, group["momentum"]))
                # The same root mean square for every shape, so that Adam's learning rates fit.
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)
