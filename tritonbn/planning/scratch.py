"""Tensors to time a pass on, which nobody else holds, with values that leave torch's random state alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..launching.launch import Strides

if TYPE_CHECKING:
    from .case import Case

SEED = 0


def like(case: Case, strides: Strides | None) -> Tensor | None:
    """Normal values of the input's shape and dtype that lie so; None for None."""
    if strides is None:
        return None
    extent = 1 + sum((size - 1) * step for size, step in zip(case.shape, strides, strict=True))
    values = torch.empty(extent, dtype=case.dtype, device=case.place)
    if not values.is_meta:
        values.normal_(generator=torch.Generator(case.place).manual_seed(SEED))
    return values.as_strided(case.shape, strides)


def vectors(case: Case) -> list[Tensor | None]:
    """running_mean, running_var, weight, bias and num_batches_tracked, as far as the case has them: ones."""
    *of_channels, counter = case.vectors
    found = [
        None if dtype is None else torch.ones(case.channels, dtype=dtype, device=case.place) for dtype in of_channels
    ]
    return [*found, None if counter is None else torch.ones((), dtype=counter, device=case.place)]
