"""Batch norm of padded batches: valid positions are packed, normalized by the ordinary kernels, and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import Activation, Arguments, batch_norm, check
from ..launching.launch import dense_strides
from ..modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, _KernelBatchNorm


def masked_batch_norm(
    input: Tensor,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
    axis: int = 1,
    correction: int = 1,
) -> Tensor:
    """batch_norm of the valid positions alone, as if nothing else were there; y, and all gradients, are 0 elsewhere.

    So are padded sequences normalized in Laurent, Pereyra, Brakel, Zhang and Bengio, "Batch Normalized Recurrent Neural
    Networks" (2016), by statistics over the unpadded frames of all sequences.

    Args:
        input: (N, C, ...), of two axes or more.
        mask: bool, of input's shape without the channels' axis, (N, ...): True where valid. None for batch_norm.
        residual: like input; its padding is no more read than input's.

    The others, and what is raised, are batch_norm's, which in training is given the M valid positions as a batch: an
    empty one leaves the running buffers alone, and one position is too few. TypeError for a mask that is no tensor,
    RuntimeError for one of another shape, dtype or device, before anything is changed.

    In training packing is a copy of input and residual, and unpacking one of y, backward too, with one launch each way
    in between. The host waits for M, so that no CUDA graph can be captured. In evaluation nothing is packed, but y
    copied with zeros in it; there padding has to be finite if weight gets a gradient, or there is an activation and
    anything gets one.
    """
    given = Arguments(
        input, running_mean, running_var, weight, bias, bool(training), momentum, eps, axis, correction,
        residual, activation, negative_slope, num_batches_tracked,
    ).plain()  # fmt: skip
    if mask is None:
        return batch_norm(**given._asdict())
    check(given, is_shared=True)
    check_mask(mask, input, given.axis)
    axis = given.axis % input.dim()
    if not training:
        return torch.where(mask.unsqueeze(axis), batch_norm(**given._asdict()), 0)
    strides, found = dense_strides(input), mask.nonzero(as_tuple=True)
    # In the order of memory, so that what autograd's index operations make lies as input does.
    order = sorted(range(input.dim()), key=strides.__getitem__, reverse=True)
    at = tuple(slice(None) if d == axis else found[d - (d > axis)] for d in order)
    x, beside = (None if t is None else t.permute(order)[at] for t in (input, residual))
    packed = batch_norm(**given._replace(input=x, residual=beside, axis=min(order.index(axis), 1))._asdict())
    y = packed.new_zeros([input.shape[d] for d in order])
    y[at] = packed
    return y.permute([order.index(d) for d in range(input.dim())])


def check_mask(mask: Tensor, input: Tensor, axis: int) -> None:
    """Raise unless the mask says of every position whether it is valid."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"masked_batch_norm: expected mask to be a Tensor or None, got {type(mask).__name__}")
    if input.dim() < 2:
        raise RuntimeError(f"masked_batch_norm: expected input of 2 axes or more, got {tuple(input.shape)}")
    shape = list(input.shape)
    del shape[axis]
    expected = tuple(shape), torch.bool, input.device
    given = tuple(mask.shape), mask.dtype, mask.device
    if given != expected:
        raise RuntimeError(f"masked_batch_norm: expected mask like {expected}, got {given}")


class _MaskedBatchNorm(_KernelBatchNorm):
    """A batch norm of valid positions."""

    def forward(self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """activation(batch_norm(input) + residual) where the mask is True, by statistics of what is there; else 0."""
        return super().forward(input, (mask, residual))

    def function(self, input: Tensor, *given: Any, residual: tuple[Tensor | None, ...], **epilogue: Any) -> Tensor:
        """masked_batch_norm, of the pair that forward made."""
        mask, beside = residual
        return masked_batch_norm(input, mask, *given, residual=beside, **epilogue)


class MaskedBatchNorm1d(_MaskedBatchNorm, BatchNorm1d):
    """BatchNorm1d of (N, C) or (N, C, L) with a mask (N,) or (N, L), True where valid: see masked_batch_norm.

    Arguments, attributes, state_dict and errors are BatchNorm1d's, which it is where no mask is given.
    """


class MaskedBatchNorm2d(_MaskedBatchNorm, BatchNorm2d):
    """BatchNorm2d of (N, C, H, W) with a mask (N, H, W): see MaskedBatchNorm1d."""


class MaskedBatchNorm3d(_MaskedBatchNorm, BatchNorm3d):
    """BatchNorm3d of (N, C, D, H, W) with a mask (N, D, H, W): see MaskedBatchNorm1d."""
