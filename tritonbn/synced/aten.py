"""The same passes as plan.py's by torch's own operations, for a process whose batch may be empty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import aten
from ..plan import State
from ..planning.case import Case
from .plan import Arrived


def moments(case: Case, x: Tensor) -> Tensor:
    """This process's moments (3 C + 1)."""
    values = by_channel(case, x)
    count = values.shape[1]
    if count == 0:
        return values.new_zeros(3 * case.channels + 1)
    centre = values.mean(1).nan_to_num(0.0, 0.0, 0.0)
    deviation = values - centre[:, None]
    offset = deviation.mean(1)
    variance = (deviation - offset[:, None]).square().mean(1)
    return torch.cat((centre, offset, variance, values.new_full((1,), count)))


def merge(gathered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance (C,) and number of values per channel of moments (ranks, 3 C + 1), by Chan's rule."""
    centre, offset, variance, values = gathered.tensor_split([n * (gathered.shape[1] // 3) for n in (1, 2, 3)], 1)
    share, some = values / values.sum().clamp(min=1), values > 0
    reference = centre.index_select(0, values.argmax().view(1))  # which the host need not know
    delta = torch.where(some, centre - reference + offset, 0.0)
    mean = (delta * share).sum(0)
    variance = torch.where(some, variance + (delta - mean).square(), 0.0)
    return reference[0] + mean, (variance * share).sum(0), values.sum()


def normalize(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_signs: bool,
    gathered: Tensor,
    arrived: Arrived,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y like x, statistics (2, C), mean and invstd, and no signs; running buffers are updated in place."""
    arrived()
    mean, variance, values = merge(gathered)
    update(case, state, mean, variance * (values / (values - case.correction).clamp(min=1)), values > 0)
    statistics = torch.stack((mean, (variance + case.eps).rsqrt()))
    y = aten.activate(affine(case, x, weight, bias, residual, statistics), case.activation, case.slope)
    return torch.empty_like(x).copy_(y), statistics, None


def update(case: Case, state: State, mean: Tensor, variance: Tensor, some: Tensor) -> None:
    """The running buffers and the counter, unless no process has any values."""
    running_mean, running_var, num_batches_tracked, momentum = state
    if case.cumulative:
        momentum = 1.0 / (num_batches_tracked + 1).to(mean.dtype)
    if isinstance(momentum, Tensor):
        momentum = momentum.reshape(())
    for running, batch in ((running_mean, mean), (running_var, variance)):
        if running is not None:
            old = running.to(batch.dtype)
            running.copy_(torch.where(some, old + (batch - old) * momentum, old))
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)


def sums(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> Tensor:
    """This process's sums (2 C + 1); its own part of those gradients that are given."""
    dz = gradient_of_z(case, x, dy, weight, bias, statistics, residual)
    mean, invstd = statistics
    rows = by_channel(case, dz)
    sum_dz, sum_dz_x = rows.sum(1), (rows * (by_channel(case, x) - mean[:, None])).sum(1)
    for gradient, value in ((dresidual, dz), (dweight, sum_dz_x * invstd), (dbias, sum_dz)):
        if gradient is not None:
            gradient.copy_(value)
    return torch.cat((sum_dz, sum_dz_x, rows.new_full((1,), rows.shape[1])))


def gradients(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    added: Tensor,
    arrived: Arrived,
) -> Tensor:
    """dx like x, by the sums (2 C + 1) of all processes."""
    dz = gradient_of_z(case, x, dy, weight, bias, statistics, residual)
    arrived()
    mean, invstd = statistics
    sum_dz, sum_dz_x = added[:-1].view(2, -1) / added[-1].clamp(min=1)
    scale = invstd if weight is None else invstd * weight
    deviation = (x - along(case, mean, x)) * along(case, invstd.square() * sum_dz_x, x)
    return torch.empty_like(x).copy_((dz - along(case, sum_dz, x) - deviation) * along(case, scale, x))


def upstream(
    case: Case, x: Tensor, dy: Tensor, residual: Tensor | None, signs: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """dy and residual as they are."""
    return dy, residual


def gradient_of_z(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
) -> Tensor:
    """The gradient before the activation, in the precision of the statistics."""
    dy = dy.to(statistics.dtype)
    if case.activation is None:
        return dy
    z = affine(case, x, weight, bias, residual, statistics)
    if case.activation == "silu":
        return torch.ops.aten.silu_backward(dy, z)
    if case.activation == "relu":
        return torch.ops.aten.threshold_backward(dy, z, 0)
    return torch.ops.aten.leaky_relu_backward(dy, z, case.slope, False)


def affine(
    case: Case, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, statistics: Tensor
) -> Tensor:
    """xhat weight + bias + residual, in the precision of the statistics."""
    mean, invstd = statistics
    z = (x - along(case, mean, x)) * along(case, invstd if weight is None else invstd * weight, x)
    if bias is not None:
        z = z + along(case, bias, x)
    return z if residual is None else z + residual


def along(case: Case, vector: Tensor, x: Tensor) -> Tensor:
    """A number a channel in a shape that meets x."""
    return vector.view([-1 if d == case.axis else 1 for d in range(x.dim())])


def by_channel(case: Case, x: Tensor) -> Tensor:
    """Values (C, values) in the precision of the statistics."""
    x = x.movedim(case.axis, 0)
    return x.reshape(case.channels, math.prod(x.shape[1:])).to(case.statistics.dtype)
