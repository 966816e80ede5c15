"""The passes of a batch that several processes share as operators of torch.library, which exchange by themselves.

A graph that holds them is for a process group of the same name in every process, as functional collectives are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import distributed
from .autograd import as_allocated
from .case import Case
from .functional import known_case
from .launch import walkable
from .operators import (
    GRADIENTS,
    HOW,
    LIBRARY,
    STATE,
    TENSORS,
    arguments,
    fake_backward,
    fake_forward,
    like,
    register,
    room_for_gradients,
    weight_of_batch,
)
from .plan import State

TOGETHER = "str group, bool kernels"
"""The name of the process group, and who computes."""

NOBODY: State = (None, None, None, None)


def training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    average_factor: Tensor | None,
    cumulative: bool,
    momentum: float,
    *how: Any,
) -> tuple[Tensor, Tensor]:
    """A training step's forward pass, running buffers and counter updated in place."""
    *rest, name, kernels = how
    state = running_mean, running_var, num_batches_tracked, weight_of_batch(average_factor, cumulative, momentum)
    case, read = case_of(x, weight, bias, residual, state, rest, kernels)
    y, statistics, _ = distributed.forward(case, read, weight, bias, residual, state, named(name), keeps_signs=False)
    return like(x, y), statistics


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    bias_dtype: torch.dtype | None,
    wanted: Sequence[bool],
    momentum: float,
    *how: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients; bias and residual are given where an activation's derivative depends on them."""
    *rest, name, kernels = how
    shift = x.new_empty(x.shape[rest[1]], dtype=bias_dtype) if bias is None and bias_dtype is not None else bias
    case, read = case_of(x, weight, shift, residual, NOBODY, rest, kernels)
    given = read, weight, bias, as_allocated(statistics), residual, None
    found = distributed.backward(case, dy, *given, named(name), tuple(wanted))
    dx, dweight, dbias, dresidual = (
        empty if each is None else each
        for each, empty in zip(found, room_for_gradients(x, weight, bias_dtype, [False] * 4, rest[1]), strict=True)
    )
    return like(x, dx) if wanted[0] else dx, dweight, dbias, like(x, dresidual) if wanted[3] else dresidual


def case_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    how: Sequence[Any],
    kernels: bool,
) -> tuple[Case, Tensor]:
    """What the passes are of, and the input as they read it; an empty part is left to torch's operations."""
    kernels = kernels and x.numel() > 0
    read = walkable(x, how[1]) if kernels else x
    return known_case(arguments(read, weight, bias, residual, state, True, *how), kernels), read


def named(name: str) -> dist.ProcessGroup:
    """The process group of this name."""
    return dist.distributed_c10d._resolve_process_group(name)


class Differentiable(torch.autograd.Function):
    """Saves what distributed.Synchronized does, but no signs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *others: Any
    ) -> tuple[Tensor, Tensor]:
        """The operator below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            y, statistics = torch.ops.tritonbn.synced_training(x, weight, bias, residual, *others)
        ctx.how, ctx.bias_dtype = others[-8:], None if bias is None else bias.dtype
        recomputed = (None, None) if ctx.how[4] is None else (bias, residual)
        ctx.save_for_backward(x, weight, statistics, *recomputed)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """By the operator, unless all that is wanted is the residual's, which then is dy."""
        x, weight, statistics, bias, residual = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        passes_on = wanted[3] and ctx.how[4] is None
        asked = [*wanted[:3], wanted[3] and not passes_on]
        found: Sequence[Tensor | None] = [None] * 4
        if any(asked):
            found = torch.ops.tritonbn.synced_backward(
                dy, x, weight, bias, residual, statistics, ctx.bias_dtype, asked, *ctx.how
            )
        gradients = [each if wants else None for each, wants in zip(found, asked, strict=True)]
        if passes_on:
            gradients[3] = dy
        return *gradients, *[None] * (len(ctx.needs_input_grad) - 4)


def fake_training(*given: Any) -> tuple[Tensor, Tensor]:
    """What training returns, without contents."""
    return fake_forward(*given[:-2])


def fake_gradients(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What backward returns, without contents."""
    return fake_backward(*given[:-2])


register(
    "synced_training",
    f"({TENSORS}, {STATE}, {HOW}, {TOGETHER}) -> (Tensor y, Tensor statistics)",
    training,
    fake_training,
)
register(
    "synced_backward",
    f"(Tensor dy, {TENSORS}, Tensor statistics, ScalarType? bias_dtype, bool[4] wanted, {HOW}, {TOGETHER}) "
    f"-> {GRADIENTS}",
    backward,
    fake_gradients,
)
LIBRARY.impl("synced_training", Differentiable.apply, "Autograd")
