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
    """(C,): as it should be afterwards, unbiased."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Normalized:
    """Batch normalization over axis 1 (Ioffe and Szegedy, 2015); changes no argument, differentiable by autograd."""
    x, weight, bias, running_mean, running_var = (
        tensor if tensor is None else tensor.to(torch.float64)
        for tensor in (input, weight, bias, running_mean, running_var)
    )
    shape = [1, -1] + [1] * (x.dim() - 2)
    if training:
        reduced = [axis for axis in range(x.dim()) if axis != 1]
        values = x.numel() // x.shape[1]
        mean = x.mean(reduced)
        variance = (x - mean.view(shape)).square().mean(reduced)
        if running_mean is not None:
            unbiased = variance * values / (values - 1)
            running_mean = (1 - momentum) * running_mean + momentum * mean.detach()
            running_var = (1 - momentum) * running_var + momentum * unbiased.detach()
    else:
        mean, variance = running_mean, running_var
    invstd = 1 / torch.sqrt(variance + eps)
    y = (x - mean.view(shape)) * invstd.view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return Normalized(y, mean, invstd, running_mean, running_var)
