"""The forward and backward passes as a pair that torch's autograd knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import aten, plan, sample_plan
from .launch import walkable


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    axis: int,
    correction: int,
) -> Tensor:
    """y from the kernels, attached to the autograd graph where a gradient can be asked for."""
    x = walkable(x, axis)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return BatchNorm.apply(x, weight, bias, running_mean, running_var, training, momentum, eps, axis, correction)
    if training:
        return plan.training_forward(x, weight, bias, running_mean, running_var, momentum, eps, axis, correction)[0]
    return plan.inference(x, weight, bias, running_mean, running_var, eps, axis, keep_statistics=False)[0]


class BatchNorm(torch.autograd.Function):
    """Saves x, weight and statistics (2, C).

    With given statistics too, the backward pass uses the copy that the forward pass made: a later update of the running
    buffers changes no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float | Tensor,
        eps: float,
        axis: int,
        correction: int,
    ) -> Tensor:
        if training:
            y, statistics = plan.training_forward(
                x, weight, bias, running_mean, running_var, momentum, eps, axis, correction
            )
        else:
            y, statistics = plan.inference(x, weight, bias, running_mean, running_var, eps, axis, keep_statistics=True)
        ctx.save_for_backward(x, weight, statistics)
        ctx.bias_form = None if bias is None else (bias.shape, bias.dtype)
        ctx.training = training
        ctx.eps = eps
        ctx.axis = axis
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        wants_dx, wants_dweight, wants_dbias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            dx, dweight, dbias = differentiable_backward(x, dy, weight, statistics, ctx.training, ctx.eps, ctx.axis)
            dweight = dweight.to(weight.dtype).view_as(weight) if wants_dweight else None
            dbias = dbias.to(ctx.bias_form[1]).view(ctx.bias_form[0]) if wants_dbias else None
        else:
            dx = torch.empty_like(x) if wants_dx else None
            dweight = torch.empty_like(weight) if wants_dweight else None
            dbias = x.new_empty(ctx.bias_form[0], dtype=ctx.bias_form[1]) if wants_dbias else None
            plan.backward(x, dy, weight, statistics, ctx.training, ctx.axis, dx, dweight, dbias)
        return dx, dweight, dbias, *[None] * 7


def differentiable_backward(
    x: Tensor, dy: Tensor, weight: Tensor | None, statistics: Tensor, training: bool, eps: float, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and dweight and dbias (C,) in the statistics' dtype, by torch operations that can be differentiated again."""
    values, dvalues = x.to(statistics.dtype)[None], dy.to(statistics.dtype)[None]  # never without an axis to reduce
    axes = [d for d in range(values.dim()) if d != axis + 1]
    along_channels = [-1 if d == axis + 1 else 1 for d in range(values.dim())]
    if training:
        variance, mean = torch.var_mean(values, axes, correction=0, keepdim=True)
        invstd = (variance + eps).rsqrt()
    else:
        mean, invstd = statistics.view(2, *along_channels)
    xhat = (values - mean) * invstd
    dbias, dweight = dvalues.sum(axes), (dvalues * xhat).sum(axes)
    if training:
        dvalues = dvalues - dvalues.mean(axes, keepdim=True) - xhat * (dvalues * xhat).mean(axes, keepdim=True)
    scale = invstd if weight is None else invstd * weight.view(along_channels)
    return (dvalues * scale)[0].to(x.dtype), dweight, dbias


def sample_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """y from the sample-wise kernels, attached to the autograd graph where a gradient can be asked for."""
    x = walkable(x, x.dim() - 1)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return SampleNorm.apply(x, weight, bias, eps)
    return sample_plan.forward(x, weight, bias, eps, keep_statistics=False)[0]


class SampleNorm(torch.autograd.Function):
    """Saves x, weight and statistics (2, rows): mean and sqrt(variance + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, statistics = sample_plan.forward(x, weight, bias, eps, keep_statistics=True)
        ctx.save_for_backward(x, weight, statistics)
        ctx.bias_form = None if bias is None else (bias.shape, bias.dtype)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        wants_dx, wants_dweight, wants_dbias, _ = ctx.needs_input_grad
        dx = dweight = dbias = None
        if torch.is_grad_enabled():
            x, weight = x.view_as(x), None if weight is None else weight.view_as(weight)  # where differentiation stops
            wanted = [t for t, wants in ((x, wants_dx), (weight, wants_dweight)) if wants]
            y = aten.sample_norm(x, weight, None, ctx.eps)
            gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True) if wanted else ())
            dx = next(gradients) if wants_dx else None
            dweight = next(gradients) if wants_dweight else None
            if wants_dbias:
                dbias = dy.to(statistics.dtype).sum_to_size(ctx.bias_form[0]).to(ctx.bias_form[1])
        else:
            dx = torch.empty_like(x) if wants_dx else None
            dweight = torch.empty_like(weight) if wants_dweight else None
            dbias = x.new_empty(ctx.bias_form[0], dtype=ctx.bias_form[1]) if wants_dbias else None
            sample_plan.backward(x, dy, weight, statistics, ctx.eps, dx, dweight, dbias)
        return dx, dweight, dbias, None
