"""Keras 1.2's initializations, as they apply to a vector: f(shape) -> tensor, drawn from torch's generator.

Drawn in float64 on the CPU whatever the layer's dtype and device are, so that a seed gives the same values everywhere.
A vector of n elements has fan_in = fan_out = sqrt(n).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
Initializer = Callable[[Shape], Any]
"""f(shape) returns an array or a tensor of that shape."""


def zero(shape: Shape) -> Tensor:
    """Zeros."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


def one(shape: Shape) -> Tensor:
    """Ones."""
    return torch.ones(shape, dtype=torch.float64, device="cpu")


def uniform(shape: Shape, scale: float = 0.05) -> Tensor:
    """Uniform between -scale and scale."""
    return zero(shape).uniform_(-scale, scale)


def normal(shape: Shape, scale: float = 0.05) -> Tensor:
    """Normal with mean 0 and standard deviation `scale`."""
    return zero(shape).normal_(0.0, scale)


def fan(shape: Shape) -> float:
    """fan_in and fan_out of anything but a matrix or a convolution's kernel."""
    return sqrt(prod(shape))


def lecun_uniform(shape: Shape) -> Tensor:
    """Uniform between +-sqrt(3 / fan_in) (LeCun et al., "Efficient BackProp", 1998)."""
    return uniform(shape, sqrt(3 / fan(shape)))


def glorot_uniform(shape: Shape) -> Tensor:
    """Uniform between +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return uniform(shape, sqrt(6 / (2 * fan(shape))))


def glorot_normal(shape: Shape) -> Tensor:
    """Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    return normal(shape, sqrt(2 / (2 * fan(shape))))


def he_uniform(shape: Shape) -> Tensor:
    """Uniform between +-sqrt(6 / fan_in) (He et al., 2015)."""
    return uniform(shape, sqrt(6 / fan(shape)))


def he_normal(shape: Shape) -> Tensor:
    """Normal with variance 2 / fan_in (He et al., 2015)."""
    return normal(shape, sqrt(2 / fan(shape)))


def identity(shape: Shape) -> Tensor:
    """The identity matrix; ValueError for anything but a square matrix, so for every vector."""
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"identity: expected the shape of a square matrix, got {shape}")
    return torch.eye(shape[0], dtype=torch.float64, device="cpu")


def orthogonal(shape: Shape) -> Tensor:
    """An orthogonal matrix times 1.1 (Saxe et al., 2013); ValueError for fewer than two axes, so for every vector."""
    if len(shape) < 2:
        raise ValueError(f"orthogonal: expected a shape of two axes or more, got {shape}")
    return torch.nn.init.orthogonal_(zero(shape), gain=1.1)


BY_NAME: dict[str, Initializer] = {
    function.__name__: function
    for function in (
        *(zero, one, uniform, normal, lecun_uniform, glorot_uniform, glorot_normal, he_uniform, he_normal),
        *(identity, orthogonal),
    )
}


def name_of(identifier: str | Initializer) -> str | Initializer:
    """The name by which `get` finds an initializer; the callable itself where it is nobody's but the user's."""
    name = getattr(identifier, "__name__", None)
    return name if BY_NAME.get(name) is identifier else identifier


def get(identifier: str | Initializer) -> Initializer:
    """The initializer of a name, or the callable itself; ValueError for anything else."""
    if callable(identifier):
        return identifier
    if not isinstance(identifier, str) or identifier not in BY_NAME:
        raise ValueError(f"Invalid initialization: {identifier} (expected a callable or one of {', '.join(BY_NAME)})")
    return BY_NAME[identifier]
