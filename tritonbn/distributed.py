"""Batch norm over the processes that share a batch: one all_gather forward, one all_reduce backward.

As torch.nn.SyncBatchNorm, but mean, variance and count are merged by Chan's rule in a fixed order, and both passes are
two launches each, whatever follows the normalization. Processes whose work is cut in the same way have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .autograd import as_allocated, launching, require_savable
from .launching.launch import dense, laid_out
from .plan import State
from .planning.case import Case
from .synced import aten as synced_aten
from .synced import plan as synced_plan
from .synced.plan import Arrived, nothing

ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""Its name, which is another one before torch 2.13."""


def sharing(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group if it is one of several processes, this one among them; TypeError if it is none at all."""
    if group is None or group == dist.GroupMember.NON_GROUP_MEMBER:
        return None
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"batch_norm: expected process_group to be a ProcessGroup or None, got {type(group).__name__}")
    return group if size_of(group) > 1 else None


def size_of(group: dist.ProcessGroup) -> int:
    """How many processes it has."""
    return dist.get_world_size(group)


def batch_norm(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    group: dist.ProcessGroup,
) -> Tensor:
    """y, attached to the autograd graph where a gradient can be asked for."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        return Synchronized.apply(x, weight, bias, residual, case, state, group)
    return forward(case, x, weight, bias, residual, state, group, keeps_signs=False)[0]


@launching
class Synchronized(torch.autograd.Function):
    """Saves what autograd.BatchNorm does."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        case: Case,
        state: State,
        group: dist.ProcessGroup,
    ) -> Tensor:
        """One exchange between two launches."""
        keeps_signs, *kept = case.kept(bias, residual)
        require_savable(x, weight, *kept)
        y, statistics, signs = forward(case, x, weight, bias, residual, state, group, keeps_signs)
        recomputed = (bias, residual) if case.activation is not None and signs is None else (None, None)
        ctx.save_for_backward(x, weight, statistics, signs, *recomputed)
        ctx.case, ctx.group = case, group
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The same again, unless dx is not wanted: dweight, dbias and dresidual are each process's own."""
        if torch.is_grad_enabled():  # once_differentiable would let those through that do not depend on dy
            raise RuntimeError("SyncBatchNorm has no second derivatives: expected a backward pass without create_graph")
        x, weight, statistics, signs, bias, residual = ctx.saved_tensors
        given = x, weight, bias, as_allocated(statistics), residual, None if signs is None else as_allocated(signs)
        found = backward(ctx.case, dy, *given, ctx.group, ctx.needs_input_grad[:4])
        return *found, None, None, None


def forward(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    group: dist.ProcessGroup,
    keeps_signs: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, statistics (2, C) of the whole batch, and signs if they are wanted and kernels make them.

    The running buffers are updated when all processes' moments are there, not before.
    """
    passes = passes_of(case)
    moments = passes.moments(case, x)
    size = moments.numel()
    gathered = moments.new_empty(size_of(group) * size)
    arrived = begin(getattr(dist, ALL_GATHER), gathered, moments, group=group)
    return passes.normalize(case, x, weight, bias, residual, state, keeps_signs, gathered.view(-1, size), arrived)


def backward(
    case: Case,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    group: dist.ProcessGroup,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """dx, dweight, dbias and dresidual, those that are wanted."""
    passes = passes_of(case)
    weight, bias = dense(weight), dense(bias)
    wants_dx, wants_dweight, wants_dbias, wants_dresidual = wanted
    x = laid_out(x, case.x)
    separate = torch.empty_like(x) if wants_dresidual and case.activation is not None else None
    dweight = torch.empty_like(weight) if wants_dweight else None
    dbias = case.empty_vector(case.bias_dtype) if wants_dbias else None
    dx = None
    if wants_dx or dweight is not None or dbias is not None or separate is not None:
        upstream, residual = passes.upstream(case, x, dy, residual, signs)
        given = x, upstream, weight, bias, statistics, residual, signs
        sums = passes.sums(case, *given, separate, dweight, dbias)
        if wants_dx:
            arrived = begin(dist.all_reduce, sums, group=group)
            dx = passes.gradients(case, *given, sums, arrived)
    dresidual = (dy if separate is None else separate) if wants_dresidual else None
    return dx, dweight, dbias, dresidual


def passes_of(case: Case) -> Any:
    """The module whose moments, normalize, sums and gradients compute."""
    return synced_plan if case.device is not None else synced_aten


def begin(collective: Callable[..., Any], *tensors: Tensor, group: dist.ProcessGroup) -> Arrived:
    """Start a collective; what it returns is to be called before its result is read.

    Where the host would have to wait for it, it goes on beside the host; a GPU's stream waits by itself, and would have
    to meet another stream for nothing.
    """
    work = collective(*tensors, group=group, async_op=tensors[0].device.type == "cpu")
    return nothing if work is None else work.wait
