"""A kind of call of sample_norm: what calls have in common that differ in nothing but the contents of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..configs import Mode, Work
from ..geometry import describe
from ..launching.launch import Strides, statistics_dtype
from .plans import Plans


@dataclass(eq=False)
class SampleCase(Plans):
    """All calls that differ in nothing but the contents of tensors: what they have in common, and their plans."""

    shape: torch.Size
    dtype: torch.dtype
    x: Strides
    """How x lies."""
    like: Strides
    """How y and dx lie."""
    weight: torch.dtype | None
    bias: torch.dtype | None
    dense: bool
    """Whether both lie as the kernels read them."""

    def __post_init__(self) -> None:
        self.axis = len(self.shape) - 1
        self.columns = self.shape[-1]
        self.rows = self.shape.numel() // self.columns

    def statistics(self) -> Tensor:
        """Room for mean and sigma of every row."""
        return torch.empty((2, self.rows), dtype=statistics_dtype(self.dtype), device=self.place)

    def vector(self, dtype: torch.dtype | None) -> Tensor | None:
        """Room for a number a column; None for None."""
        if dtype is None:
            return None
        return torch.empty_strided((self.columns,), (1,), dtype=dtype, device=self.place)

    def work(self, mode: Mode, *strides: Strides) -> Work:
        """Tensors that lie so, walked in the order of the last."""
        return Work(mode, describe(self.shape, self.axis, *strides), self.dtype)
