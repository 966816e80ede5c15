"""Ghost batch norm: statistics over parts of a batch, each part a launch of the ordinary kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import plan
from ..autograd import activation_slope, as_allocated, differentiable_backward, is_batched, launching, require_savable
from ..backends import uses_kernels
from ..functional import Activation, Arguments, batch_norm, check, known_case
from ..launching.launch import POINTER_ALIGNMENT, dense_strides, laid_out, statistics_dtype, walkable
from ..modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, _KernelBatchNorm
from ..plan import State
from ..planning.case import Case


class _GhostBatchNorm(_KernelBatchNorm):
    """A batch norm that in training normalizes each virtual batch by its own statistics."""

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        ours = {"activation": activation, "negative_slope": negative_slope}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, **ours)
        if not isinstance(virtual_batch_size, int) or virtual_batch_size < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: expected virtual_batch_size to be a positive integer, got {virtual_batch_size}")
        self.virtual_batch_size = virtual_batch_size

    def function(self, input: Tensor, *given: Any, **epilogue: Any) -> Tensor:
        """batch_norm, in training of virtual batches."""
        if self.training and input.shape[0] > self.virtual_batch_size:
            return ghost_batch_norm(Arguments(input, *given, axis=1, correction=1, **epilogue), self.virtual_batch_size)
        return batch_norm(input, *given, **epilogue)

    def extra_repr(self) -> str:
        """As the batch norm's, and the size of virtual batches."""
        return f"{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}"


class GhostBatchNorm1d(_GhostBatchNorm, BatchNorm1d):
    """Ghost batch norm (Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017): (N, C) or (N, C, L).

    In training consecutive samples are one of ceil(N / virtual_batch_size) virtual batches, whose sizes differ by one
    at most, so that none is much smaller than the others; where one of them had but one value per channel, there is one
    virtual batch less. Each is normalized by its own statistics, and updates the running buffers, in order, as a batch
    of its own: num_batches_tracked counts virtual batches, and momentum=None averages over all of them. In evaluation,
    and with virtual_batch_size samples or fewer, it is BatchNorm1d, whose state_dict and errors it has, and whose other
    arguments follow num_features and virtual_batch_size.

    One launch a virtual batch forward, and one backward, in place: nothing is copied or concatenated. Where the kernels
    do not compute, in graphs of torch.compile, where N is not the slowest axis in memory, or where a part begins at no
    multiple of 16 bytes, it is batch_norm of every part, concatenated.

    ValueError for a virtual_batch_size that is no positive integer, and for virtual batches of one value per channel.
    """


class GhostBatchNorm2d(_GhostBatchNorm, BatchNorm2d):
    """Ghost batch norm of (N, C, H, W), contiguous or channels_last: see GhostBatchNorm1d."""


class GhostBatchNorm3d(_GhostBatchNorm, BatchNorm3d):
    """Ghost batch norm of (N, C, D, H, W), contiguous or channels_last_3d: see GhostBatchNorm1d."""


def ghost_batch_norm(given: Arguments, virtual_batch_size: int) -> Tensor:
    """batch_norm of each virtual batch of input (N, C, ...), with N above virtual_batch_size; y is like input."""
    check(given)
    x, residual = given.input, given.residual
    sizes = sizes_of_parts(x, virtual_batch_size)
    # In the statistics' precision, so that the parts' gradients are added in it.
    weight, bias = (None if v is None else v.to(statistics_dtype(x.dtype)) for v in (given.weight, given.bias))
    given, cases = given._replace(weight=weight, bias=bias), None
    if not is_compiling() and x.numel() > 0 and uses_kernels(x):
        x = walkable(x, 1)
        cases = cases_in_place(given._replace(input=x), sizes)
    if cases is None:
        parts = zip(parts_of(x, sizes), parts_of(residual, sizes), strict=True)
        y = torch.cat([batch_norm(**given._replace(input=a, residual=b)._asdict()) for a, b in parts])
        like = torch.empty_like(x)
        return y if y.stride() == like.stride() else like.copy_(y)
    state = given.running_mean, given.running_var, given.num_batches_tracked, given.momentum
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        return GhostBatchNorm.apply(x, weight, bias, residual, cases, state)
    return normalize(cases, x, weight, bias, residual, state, keeps_signs=False)[0]


def sizes_of_parts(x: Tensor, size: int) -> list[int]:
    """Of the virtual batches, in order; ValueError where one has one value per channel and no sample to take over."""
    samples, values = x.shape[0], math.prod(x.shape[2:])
    number = -(-samples // size)
    if samples // number * values == 1:
        if size == 1:
            raise ValueError(
                "ghost batch norm: expected more than 1 value per channel in every virtual batch when training, "
                f"got input of shape {tuple(x.shape)} and virtual_batch_size 1"
            )
        number -= 1
    return [(samples + number - 1 - k) // number for k in range(number)]


def parts_of(tensor: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    """Its slices along N."""
    return [None] * len(sizes) if tensor is None else tensor.split(sizes)


def cases_in_place(given: Arguments, sizes: list[int]) -> list[Case] | None:
    """What the kernels do for each part; None if y's slices do not lie, or begin, as a part's own y would."""
    x = given.input
    of_size = {size: known_case(given._replace(input=x[:size], residual=None)) for size in set(sizes)}
    like = dense_strides(x)
    is_odd = any(begin * like[0] * x.element_size() % POINTER_ALIGNMENT for begin in accumulate(sizes[:-1]))
    if is_odd or any(case.counts_elsewhere or case.like != like for case in of_size.values()):
        return None
    return [of_size[size] for size in sizes]


def normalize(
    cases: Sequence[Case],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_signs: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """y like x, and of each part the statistics (2, C), and if wanted the signs."""
    y, sizes = torch.empty_like(x), [case.shape[0] for case in cases]
    kept = [
        plan.training_forward(case, part, weight, bias, beside, state, keeps_signs, out)[1:]
        for case, part, beside, out in zip(cases, *(parts_of(t, sizes) for t in (x, residual, y)), strict=True)
    ]
    return y, *map(list, zip(*kept, strict=True))


@launching
class GhostBatchNorm(torch.autograd.Function):
    """Saves what autograd.BatchNorm does, statistics and signs for each part."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        cases: Sequence[Case],
        state: State,
    ) -> Tensor:
        """All parts, one after the other, into one y."""
        keeps_signs, *kept = cases[0].kept(bias, residual)
        require_savable(x, weight, *kept)
        y, statistics, signs = normalize(cases, x, weight, bias, residual, state, keeps_signs)
        ctx.save_for_backward(x, weight, *kept, *statistics, *signs)
        ctx.cases = cases
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """All parts, into one dx; the parts' sums for weight and bias are added."""
        cases, sizes = ctx.cases, [case.shape[0] for case in ctx.cases]
        x, weight, bias, residual, *kept = ctx.saved_tensors
        x = laid_out(x, cases[0].x)
        weight, bias = (v if v is None else v.contiguous() for v in (weight, bias))
        kept = [t if t is None else as_allocated(t) for t in kept]
        wants_dx, wants_dweight, wants_dbias, wants_dresidual, *_ = ctx.needs_input_grad
        given = [parts_of(x, sizes), parts_of(dy, sizes), kept[: len(cases)]]
        given += [parts_of(residual, sizes), kept[len(cases) :]]
        if torch.is_grad_enabled() or is_batched(dy):
            found = [
                differentiable_gradients(case, weight, bias, *part) for case, *part in zip(cases, *given, strict=True)
            ]
            dx, dweight, dbias, dresidual = zip(*found, strict=True)
            dx, dresidual = torch.cat(dx), torch.cat(dresidual)
        else:
            dx = torch.empty_like(x) if wants_dx else None
            dresidual = torch.empty_like(x) if wants_dresidual and cases[0].activation is not None else None
            dweight = [torch.empty_like(weight) if wants_dweight else None for _ in cases]
            dbias = [case.empty_vector(case.bias_dtype) if wants_dbias else None for case in cases]
            if wants_dx or wants_dweight or wants_dbias or dresidual is not None:
                outputs = parts_of(dx, sizes), parts_of(dresidual, sizes), dweight, dbias
                for case, part, dy_part, statistics, beside, signs, *out in zip(cases, *given, *outputs, strict=True):
                    plan.backward(case, part, dy_part, weight, bias, statistics, beside, signs, *out)
            dresidual = dy if dresidual is None else dresidual
        return (
            dx if wants_dx else None,
            total(dweight) if wants_dweight else None,
            total(dbias) if wants_dbias else None,
            dresidual if wants_dresidual else None,
            None,
            None,
        )


def differentiable_gradients(
    case: Case,
    weight: Tensor | None,
    bias: Tensor | None,
    x: Tensor,
    dy: Tensor,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
) -> tuple[Tensor, ...]:
    """dx, dweight, dbias and dresidual of a part, by torch operations that can be differentiated again."""
    dz = dy
    if case.activation is not None:
        dz = dy * activation_slope(case, x, weight, bias, residual, statistics, signs)
    return *differentiable_backward(x, dz, weight, statistics, case.training, case.eps, case.axis), dz.to(dy.dtype)


def total(parts: Iterable[Tensor]) -> Tensor:
    """Their sum, in one and the same order."""
    return torch.stack(list(parts)).sum(0)
