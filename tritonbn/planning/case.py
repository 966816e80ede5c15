"""A kind of call of batch_norm: what calls have in common that differ in nothing but the contents of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..backends import innermost_transform
from ..geometry import describe
from ..launching.launch import Strides, statistics_dtype, walkable_beside
from .plans import Plans

SIGNED = ("relu", "leaky_relu")
"""Activations whose derivative a bit tells."""


@dataclass(eq=False)
class Case(Plans):
    """All calls that differ in nothing but the contents of tensors: what they have in common, and their plans."""

    shape: torch.Size
    dtype: torch.dtype
    x: Strides
    """How x lies."""
    like: Strides
    """How y, dx and dresidual lie."""
    axis: int
    training: bool
    correction: int
    cumulative: bool
    """Whether a batch weighs as much as each one before it."""
    counts_elsewhere: bool
    """Whether batches are counted on another device."""
    eps: float
    activation: str | None
    slope: float
    vectors: tuple[torch.dtype | None, ...]
    """Of running_mean, running_var, weight, bias and num_batches_tracked, as far as they are given."""
    dense: bool
    """Whether all vectors lie as the kernels read them."""
    savable: bool
    """Whether no tensor is of inference mode, so that torch saves any for a backward pass."""

    def __post_init__(self) -> None:
        self.channels = self.shape[self.axis]
        self.bias_dtype = self.vectors[3]
        self.statistics = self.pattern(2, self.channels, dtype=statistics_dtype(self.dtype))
        """Of the form of mean and invstd."""
        self.dbias = None if self.bias_dtype is None else self.pattern(self.channels, dtype=self.bias_dtype)
        """Of the form of the bias' gradient."""

    def pattern(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor without memory, for others to be like it: what is kept must not hold on to a pool of a graph's."""
        pattern = torch.empty((), dtype=dtype, device=self.place).expand(shape)
        if innermost_transform() is None:  # of torch.func, whose tensors have no storage that can be asked for
            pattern.untyped_storage().resize_(0)
        return pattern

    def empty_vector(self, dtype: torch.dtype) -> Tensor:
        """Room for a number a channel."""
        return torch.empty_strided((self.channels,), (1,), dtype=dtype, device=self.place)

    def kept(self, bias: Tensor | None, residual: Tensor | None) -> tuple[bool, Tensor | None, Tensor | None]:
        """Whether signs are kept for the backward pass, and of bias and residual what is kept itself.

        Beside x, weight and statistics: what tells the derivative of the activation.
        """
        if self.activation is None:
            return False, None, None
        if residual is not None and self.activation in SIGNED:
            return True, None, None
        return False, bias, residual

    def form(self, *strides: Strides) -> tuple[Any, ...]:
        """What forward and backward pass have to agree on for an element's sign to be found again."""
        return form(self.shape, self.axis, self.dtype.itemsize, self.activation in SIGNED, self.x, *strides, self.like)

    def beside(self, x: Tensor, residual: Tensor | None, other: Strides) -> Tensor | None:
        """The residual itself, unless walking it too would change how x is cut into rows, or is not possible."""
        if residual is not None:
            residual = walkable_beside(x, self.axis, residual)
            if self.form(other, residual.stride()) != self.form(other):
                residual = torch.empty_like(x).copy_(residual)
        return residual


@lru_cache(maxsize=4096)
def form(shape: torch.Size, axis: int, itemsize: int, signs: bool, *strides: Strides) -> tuple[Any, ...]:
    """How rows of the fast axis lie, whatever the strides between them; if bits of them are kept, how these do."""
    geometry = describe(shape, axis, *strides)
    return geometry.channels_last, geometry.inner, geometry.fold(itemsize), geometry.edges(itemsize) if signs else None
