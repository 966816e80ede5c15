"""The tensors of a case, the same for every provider."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .cases import Case

MEANS, DEVIATIONS = (-2.0, 2.0), (-5.0, 1.0)
"""Of channels: from, to, of deviations the logarithms to the base of 2: nobody is right with another channel's."""

DRIFT = 0.5
"""Of x, in deviations, from the first sample to the middle one: a part of the batch has not the mean of all."""

DY_MEAN, DY_XHAT = 0.5, 0.5
"""What of dy the mean and xhat have a part in: otherwise dx would hardly depend on the sums."""

MOMENTUM, EPS = 0.1, 1e-5
KERAS_MOMENTUM, KERAS_EPS = 0.99, 1e-3


@dataclass(frozen=True)
class Inputs:
    """Random tensors, and vectors in float32."""

    x: Tensor
    """As Problem.input has it: (N, C, ...), for Keras' mode 1 (N, ..., C)."""
    dy: Tensor
    residual: Tensor | None
    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken for, by the gradient's name."""
        named = {"dx": self.x, "dweight": self.weight, "dbias": self.bias, "dresidual": self.residual}
        return {name: leaf for name, leaf in named.items() if leaf is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """All that are given."""
        return [tensor for tensor in vars(self).values() if tensor is not None]

    def with_own_buffers(self) -> Inputs:
        """The same with running buffers that nobody else updates."""
        return replace(self, running_mean=self.running_mean.clone(), running_var=self.running_var.clone())


def make(case: Case, device: torch.device) -> Inputs:
    """The same numbers at every call on a kind of device."""
    generator = torch.Generator(device).manual_seed(0)
    like = case.problem.input()
    axis = like.dim() - 1 if case.keras == 1 else 1
    along_channels = [-1 if d == axis else 1 for d in range(like.dim())]
    along_samples = [-1] + [1] * (like.dim() - 1)

    def normal() -> Tensor:
        empty = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
        return empty.normal_(generator=generator)

    def vector(low: float, high: float) -> Tensor:
        return torch.empty(like.shape[axis], device=device).uniform_(low, high, generator=generator)

    x, dy = normal(), normal()
    x += torch.linspace(-DRIFT, DRIFT, len(x), device=device).view(along_samples).to(x.dtype)
    dy.add_(x, alpha=DY_XHAT).add_(DY_MEAN)
    x *= vector(*DEVIATIONS).exp2().view(along_channels).to(x.dtype)
    x += vector(*MEANS).view(along_channels).to(x.dtype)
    return Inputs(
        x=x.requires_grad_(),
        dy=dy,
        residual=normal().requires_grad_() if case.fused else None,
        weight=nn.Parameter(vector(0.5, 1.5)),
        bias=nn.Parameter(vector(-0.5, 0.5)),
        running_mean=vector(*MEANS),
        running_var=vector(*DEVIATIONS).exp2().square(),
    )
