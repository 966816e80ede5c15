"""The same functions in plain torch and float64, written to be read: the truth in tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Normalized(NamedTuple):
    """What batch_norm computes. Everything is float64."""

    y: Tensor
    """Of the input's shape."""
    mean: Tensor
    """(C,): of the batch in training, else the running mean."""
    invstd: Tensor
    """(C,): 1 / sqrt(variance + eps), the variance biased."""
    running_mean: Tensor | None
    """(C,): as it should be afterwards."""
    running_var: Tensor | None
    """(C,): as it should be afterwards, unbiased with correction 1."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    correction: int = 1,
) -> Normalized:
    """Batch normalization (Ioffe and Szegedy, 2015); changes no argument, differentiable by autograd."""
    x, weight, bias, running_mean, running_var = (
        tensor if tensor is None else tensor.to(torch.float64)
        for tensor in (input, weight, bias, running_mean, running_var)
    )
    axis %= x.dim()
    shape = [-1 if d == axis else 1 for d in range(x.dim())]
    if training:
        columns = x.movedim(axis, -1).reshape(-1, x.shape[axis])
        values = len(columns)
        mean = columns.mean(0)
        variance = (columns - mean).square().mean(0)
        if running_mean is not None:
            corrected = variance * values / (values - correction)
            running_mean = (1 - momentum) * running_mean + momentum * mean.detach()
            running_var = (1 - momentum) * running_var + momentum * corrected.detach()
    else:
        mean, variance = running_mean, running_var
    invstd = 1 / torch.sqrt(variance + eps)
    y = (x - mean.view(shape)) * invstd.view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return Normalized(y, mean, invstd, running_mean, running_var)


def sample_norm(input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-3) -> Tensor:
    """Each row of the last axis normalized on its own (Keras, mode 1), in float64, differentiable by autograd."""
    x, weight, bias = (tensor if tensor is None else tensor.to(torch.float64) for tensor in (input, weight, bias))
    mean = x.mean(-1, keepdim=True)
    sigma = torch.sqrt((x - mean).square().mean(-1, keepdim=True) + eps)
    y = (x - mean) / (sigma + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y
