"""Batch renormalization: the ordinary kernels, with a weight and bias that lead from batch to running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..autograd import BatchNorm, launching, require_savable
from ..backends import uses_kernels
from ..functional import Activation, Arguments, batch_norm, check, known_case
from ..launching.launch import statistics_dtype, walkable
from ..modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, _KernelBatchNorm
from ..plan import State
from ..planning.case import Case
from ..synced.plan import moments as moments_of
from ..synced.plan import normalize, nothing


class _BatchRenorm(_KernelBatchNorm):
    """A batch norm that in training normalizes by the running statistics, as far as r_max and d_max allow."""

    def __init__(
        self,
        num_features: int,
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
        r_max: float = 3.0,
        d_max: float = 5.0,
    ) -> None:
        ours = {"activation": activation, "negative_slope": negative_slope}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, **ours)
        self.r_max, self.d_max = r_max, d_max
        self.check_renorm(self.running_mean)

    def check_renorm(self, running_mean: Tensor | None) -> None:
        """Raise unless batches can be renormalized."""
        name = type(self).__name__
        if running_mean is None:
            raise ValueError(f"{name}: expected running statistics to renormalize by, got none")
        if not (self.r_max >= 1 and self.d_max >= 0):
            raise ValueError(f"{name}: expected r_max >= 1 and d_max >= 0, got {self.r_max} and {self.d_max}")

    def function(self, *args: Any, **kwargs: Any) -> Tensor:
        """batch_norm, in training renormalized."""
        given = Arguments(*args, axis=1, correction=1, **kwargs)
        if given.training:
            self.check_renorm(given.running_mean)
            if given.input.numel() > 0 and (self.r_max != 1 or self.d_max != 0):
                return batch_renorm(given, self.r_max, self.d_max)
        return batch_norm(*args, **kwargs)

    def extra_repr(self) -> str:
        """As the batch norm's, and both limits."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


class BatchRenorm1d(_BatchRenorm, BatchNorm1d):
    """Batch renormalization (Ioffe, "Batch Renormalization", 2017): (N, C) or (N, C, L).

    In training y = activation(((x - mean) / sigma r + d) weight + bias + residual), with the batch's mean and
    sigma = sqrt(variance + eps), and

        r = clip(sigma / running sigma, 1 / r_max, r_max)
        d = clip((mean - running mean) / running sigma, -d_max, d_max)

    which have no gradient: within the limits that is x normalized by the running statistics as they were before this
    batch, running sigma = sqrt(running_var + eps). They are then updated as BatchNorm1d's are. r_max and d_max may be
    changed between steps, also of a compiled module; the paper begins with r_max=1, d_max=0, which is batch norm
    itself, in one launch, and relaxes them to the defaults when the running statistics have become meaningful. In
    evaluation it is BatchNorm1d, whose arguments, state_dict and errors it has; r_max and d_max are given by name,
    math.inf for no limit.

    Two launches forward, with some operations on (C,) vectors in between, and one backward; where the kernels do not
    compute, and in graphs of torch.compile, statistics by torch and then batch_norm.

    ValueError for r_max below 1, d_max below 0, and training without running statistics, before anything is changed.
    """


class BatchRenorm2d(_BatchRenorm, BatchNorm2d):
    """Batch renormalization of (N, C, H, W), contiguous or channels_last: see BatchRenorm1d."""


class BatchRenorm3d(_BatchRenorm, BatchNorm3d):
    """Batch renormalization of (N, C, D, H, W), contiguous or channels_last_3d: see BatchRenorm1d."""


def batch_renorm(given: Arguments, r_max: float, d_max: float) -> Tensor:
    """batch_norm in training of input (N, C, ...), renormalized; y is like input."""
    check(given)
    x, counter = given.input, given.num_batches_tracked
    if is_compiling() or not uses_kernels(x) or (counter is not None and counter.device != x.device):
        values = x.detach().to(statistics_dtype(x.dtype))
        variance, mean = torch.var_mean(values, [d for d in range(x.dim()) if d != 1], correction=0)
        return batch_norm(**corrected(given, mean, variance, r_max, d_max)._asdict())
    x = walkable(x, 1)
    vector = given.running_mean.to(statistics_dtype(x.dtype))  # of the form that weight and bias will have
    case = known_case(given._replace(input=x, weight=vector, bias=vector))
    moments = moments_of(case, x).view(1, -1)  # of one process
    centre, offset, variance = moments[0, :-1].view(3, -1)
    given = corrected(given, centre + offset, variance, r_max, d_max)
    weight, bias, residual = given.weight, given.bias, given.residual
    state = given.running_mean, given.running_var, counter, given.momentum
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        return Renormalized.apply(x, weight, bias, residual, case, (state, moments))
    return normalize(case, x, weight, bias, residual, state, False, moments, nothing)[0]


def corrected(given: Arguments, mean: Tensor, variance: Tensor, r_max: float, d_max: float) -> Arguments:
    """The same with weight r and bias + weight d, in the precision of the batch's mean and variance (C,)."""
    vectors = given.running_mean, given.running_var, given.weight, given.bias
    running_mean, running_var, weight, bias = (None if v is None else v.to(mean.dtype) for v in vectors)
    if is_compiling():  # to which a number that is not in a tensor's place would be another graph
        r_max, d_max = torch.ones_like(mean) * r_max, torch.ones_like(mean) * d_max
    running_sigma = torch.sqrt(running_var + given.eps)
    r = (torch.sqrt(variance + given.eps) / running_sigma).clamp(1 / r_max, r_max)
    d = ((mean - running_mean) / running_sigma).clamp(-d_max, d_max)
    if weight is not None:
        r, d = weight * r, weight * d
    return given._replace(weight=r, bias=d if bias is None else bias + d)


@launching
class Renormalized(BatchNorm):
    """A training forward whose first half is done; its backward pass is the batch norm's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        case: Case,
        given: tuple[State, Tensor],
    ) -> Tensor:
        """The second half, by the running buffers, counter and momentum, and by moments (1, 3 C + 1)."""
        state, moments = given
        keeps_signs, *kept = case.kept(bias, residual)
        require_savable(x, weight, *kept)
        y, statistics, signs = normalize(case, x, weight, bias, residual, state, keeps_signs, moments, nothing)
        ctx.save_for_backward(x, weight, statistics, signs, *kept)
        ctx.case = case
        return y
