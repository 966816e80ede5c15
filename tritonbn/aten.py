"""The same functions by torch's own operations: what computes where the kernels do not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import checkpoint

from .backends import innermost_transform
from .launching.launch import statistics_dtype

STOPPED = getattr(checkpoint, "_StopRecomputationError", ())
"""What ends a function that a checkpoint calls again, where all is computed that it had saved."""


def fused(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    axis: int,
    correction: int,
    residual: Tensor | None,
    activation: str | None,
    slope: float,
) -> Tensor:
    """activation(batch_norm + residual)."""
    if not torch.compiler.is_compiling():
        momentum = float(momentum)  # which would break a graph
    y = batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps, axis, correction)
    return activate(y if residual is None else y + residual, activation, slope)


def activate(z: Tensor, activation: str | None, slope: float) -> Tensor:
    """activation(z)."""
    if activation == "relu":
        return F.relu(z)
    if activation == "leaky_relu":
        return F.leaky_relu(z, slope)
    return F.silu(z) if activation == "silu" else z


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    axis: int,
    correction: int,
) -> Tensor:
    """torch.nn.functional.batch_norm, for any axis and for either correction of the running variance.

    Of more than three axes, one of them of size 1, torch's backward pass on the CPU misreads a dy that lies otherwise
    than x: such inputs go to it as (N, C, L).
    """
    dtypes = {vector.dtype for vector in (running_mean, running_var, weight, bias) if vector is not None}
    vectors = [running_mean, running_var, weight, bias]
    is_torchs = axis == correction == 1 and not isinstance(momentum, Tensor)
    is_torchs = is_torchs and all(vector is None or vector.is_contiguous() for vector in vectors)
    if is_torchs and (len(dtypes) == 0 or dtypes in ({x.dtype}, {statistics_dtype(x.dtype)})):
        misread = x.device.type == "cpu" and x.dim() > 3 and 1 in x.shape and x.is_contiguous()
        read = x.flatten(2) if misread else x
        y = F.batch_norm(read, running_mean, running_var, weight, bias, training, momentum, eps)
        return y.view(x.shape) if misread else y

    channels_second = (x.movedim(axis, 1) if x.dim() > 1 else x.unsqueeze(0)).contiguous()
    # Copies, since autograd keeps them and a later training call changes the running buffers.
    mean, var, weight, bias = (
        None if v is None else v.to(statistics_dtype(x.dtype), copy=True, memory_format=torch.contiguous_format)
        for v in vectors
    )
    if training and mean is not None:
        mean, var = torch.zeros_like(mean), torch.zeros_like(var)
    read = channels_second.flatten(2) if x.dim() > 3 else channels_second
    running = (running_mean, running_var) if training and running_mean is not None and x.numel() > 0 else ()
    check_writable(*running)
    given = momentum, x.numel() // x.shape[axis] if running else 0, correction
    try:  # F.batch_norm would refuse one value per channel
        y = torch.batch_norm(read, weight, bias, mean, var, training, 1.0, eps, torch.backends.cudnn.enabled)
    except STOPPED:
        update(running, (mean, var), *given)
        raise
    update(running, (mean, var), *given)
    y = y.view(channels_second.shape)
    y = y.movedim(1, axis) if x.dim() > 1 else y.squeeze(0)
    if not torch.compiler.is_compiling() and innermost_transform() is not None:
        return y.clone()  # x may stand for one where y stands for several
    return torch.empty_like(x).copy_(y)


def update(
    running: tuple[Tensor, ...],
    batch: tuple[Tensor | None, Tensor | None],
    momentum: float | Tensor,
    values: int,
    correction: int,
) -> None:
    """Running mean and variance, if they are to be updated, by those of a batch, the unbiased variance."""
    if not running:
        return
    mean, var = batch
    var = torch.zeros_like(var) if values == 1 else var * ((values - 1) / (values - correction))
    share = momentum.reshape(()).to(var.dtype) if isinstance(momentum, Tensor) else momentum
    with torch.no_grad():
        for old, new in zip(running, (mean, var), strict=True):
            old.copy_(old.to(new.dtype).lerp(new, share))


def check_writable(*vectors: Tensor) -> None:
    """Raise what torch would for a tensor of inference mode, before another one has changed."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return
    if any(vector.is_inference() for vector in vectors):
        raise RuntimeError("batch_norm: expected no running buffer of inference mode outside of it")


def sample_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Each row of the last axis normalized on its own: weight (x - mean) / (sqrt(variance + eps) + eps) + bias."""
    deviation = x - x.mean(-1, keepdim=True, dtype=statistics_dtype(x.dtype))
    variance = deviation.square().mean(-1, keepdim=True)
    y = deviation / (torch.sqrt(variance + eps) + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype)
