"""The forward and backward passes as a pair that torch's autograd knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import aten, plan
from .launching.launch import POINTER_ALIGNMENT, laid_out
from .plan import State
from .planning import sample_plan
from .planning.case import Case
from .planning.sample_case import SampleCase


def batch_norm(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
) -> Tensor:
    """y from the kernels, attached to the autograd graph where a gradient can be asked for."""
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        return apply(x, weight, bias, residual, case, state)
    if case.training:
        return plan.training_forward(case, x, weight, bias, residual, state, keeps_signs=False)[0]
    return plan.inference(case, x, weight, bias, residual, state, keeps_statistics=False, keeps_signs=False)[0]


AnyFunction = TypeVar("AnyFunction", bound=torch.autograd.Function)

NO_OTHERS = None, None, None
"""Signs, bias and residual of a batch norm without an activation."""


def launching(kind: type[AnyFunction]) -> type[AnyFunction]:
    """A Function whose backward pass launches kernels: called at once by the engine, untraced by compiled autograd."""

    def untraced(ctx: Any, *given: Any) -> Any:
        return torch.compiler.disable(kind.backward)(ctx, *given)

    kind._backward_cls.apply = kind.backward  # torch's own looks at every step for which of two methods there is
    # where compiled autograd looks for what it should trace
    kind._backward_cls._forward_cls = type(kind.__name__, (kind,), {"backward": staticmethod(untraced)})
    return kind


@launching
class BatchNorm(torch.autograd.Function):
    """Saves x, weight and statistics (2, C): mean, invstd; with an activation also bias and residual.

    Of a residual before relu or leaky_relu it saves one bit per element instead of both. With given statistics too, the
    backward pass uses the copy that the forward pass made: a later update of the running buffers changes no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        case: Case,
        state: State,
    ) -> Tensor:
        keeps_signs, kept_bias, kept_residual = case.kept(bias, residual)
        if not case.savable:
            require_savable(x, weight, kept_bias, kept_residual)
        if case.training:
            y, statistics, signs = plan.training_forward(case, x, weight, bias, residual, state, keeps_signs)
        else:
            y, statistics, signs = plan.inference(case, x, weight, bias, residual, state, True, keeps_signs)
        if case.activation is None:
            ctx.save_for_backward(x, weight, statistics)
        else:
            ctx.save_for_backward(x, weight, statistics, signs, kept_bias, kept_residual)
        ctx.case = case
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        case = ctx.case
        x, weight, statistics, *others = ctx.saved_tensors
        signs, bias, residual = others or NO_OTHERS
        x, statistics = laid_out(x, case.x), as_allocated(statistics)
        weight = weight if weight is None else weight.contiguous()
        signs = signs if signs is None else as_allocated(signs)
        bias = bias if bias is None else bias.contiguous()
        wants_dx, wants_dweight, wants_dbias, wants_dresidual, _, _ = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            dx = torch.empty_like(x) if wants_dx else None
            dresidual = dy if wants_dresidual else None
            separate = torch.empty_like(x) if wants_dresidual and case.activation is not None else None
            dweight = torch.empty_like(weight) if wants_dweight else None
            dbias = torch.empty_like(case.dbias) if wants_dbias else None
            try:
                if not (dx is separate is dweight is dbias is None):
                    plan.backward(case, x, dy, weight, bias, statistics, residual, signs, dx, separate, dweight, dbias)
                return dx, dweight, dbias, dresidual if separate is None else separate, None, None
            except RuntimeError:  # rather than look beforehand, at every step
                if not is_batched(dy):
                    raise
        dz = dy
        if case.activation is not None:
            dz = dy * activation_slope(case, x, weight, bias, residual, statistics, signs)
        dx, dweight, dbias = differentiable_backward(x, dz, weight, statistics, case.training, case.eps, case.axis)
        dweight = dweight.to(weight.dtype).view_as(weight) if wants_dweight else None
        dbias = dbias.to(case.bias_dtype) if wants_dbias else None
        return dx, dweight, dbias, dz.to(dy.dtype) if wants_dresidual else None, None, None


def require_savable(
    x: Tensor, weight: Tensor | None, bias: Tensor | None = None, residual: Tensor | None = None
) -> None:
    """Raise for a tensor of inference mode: torch would too, but only after the running buffers are updated."""
    if (
        x.is_inference()
        or (weight is not None and weight.is_inference())
        or (bias is not None and bias.is_inference())
        or (residual is not None and residual.is_inference())
    ):
        raise RuntimeError("batch_norm: expected tensors that can be saved for backward, got one of inference mode")


apply = super(torch.autograd.Function, BatchNorm).apply
"""Function.apply looks for torch.func's transforms first, which never get here: backends.uses_kernels."""


def is_batched(tensor: Tensor) -> bool:
    """Whether it stands for several, as under torch.vmap and torch.autograd.grad's is_grads_batched: no kernel's."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def as_allocated(saved: Tensor) -> Tensor:
    """The tensor itself, or a copy that lies as the forward pass made it: hooks may return it otherwise."""
    if saved.is_contiguous() and saved.data_ptr() % POINTER_ALIGNMENT == 0:
        return saved
    return saved.clone(memory_format=torch.contiguous_format)


def activation_slope(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    signs: Tensor | None,
) -> Tensor:
    """The activation's derivative at every element; silu's can be differentiated again, others are constant."""
    if case.activation != "silu":
        slope = torch.empty_like(x)
        given = evaluation_of(case)
        with torch.no_grad():
            plan.backward(
                given, x, torch.ones_like(x), weight, bias, statistics, residual, signs, None, slope, None, None
            )
        return slope
    z = normalized(x, statistics, case.training, case.eps, case.axis)[0]
    along_channels = [-1 if d == case.axis else 1 for d in range(x.dim())]
    if weight is not None:
        z = z * weight.view(along_channels)
    if bias is not None:
        z = z + bias.view(along_channels)
    if residual is not None:
        z = z + residual
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


_evaluations: WeakKeyDictionary[Case, Case] = WeakKeyDictionary()


def evaluation_of(case: Case) -> Case:
    """The same but for statistics that are given, with plans of its own, made once."""
    known = _evaluations.get(case)
    if known is None:
        known = _evaluations[case] = replace(case, training=False, plans={}, unfit={})
    return known


def normalized(x: Tensor, statistics: Tensor, training: bool, eps: float, axis: int) -> tuple[Tensor, Tensor]:
    """xhat like x, and invstd as broadcast over it, by torch operations that can be differentiated."""
    values = x.to(statistics.dtype)[None]  # never without an axis to reduce
    if training:
        axes = [d for d in range(values.dim()) if d != axis + 1]
        variance, mean = torch.var_mean(values, axes, correction=0, keepdim=True)
        invstd = (variance + eps).rsqrt()
    else:
        mean, invstd = statistics.view(2, *(-1 if d == axis + 1 else 1 for d in range(values.dim())))
    return ((values - mean) * invstd)[0], invstd[0]


def differentiable_backward(
    x: Tensor, dy: Tensor, weight: Tensor | None, statistics: Tensor, training: bool, eps: float, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and dweight and dbias (C,) in the statistics' dtype, by torch operations that can be differentiated again."""
    xhat, invstd = (t[None] for t in normalized(x, statistics, training, eps, axis))
    dvalues = dy.to(statistics.dtype)[None]
    axes = [d for d in range(dvalues.dim()) if d != axis + 1]
    dbias, dweight = dvalues.sum(axes), (dvalues * xhat).sum(axes)
    if training:
        dvalues = dvalues - dvalues.mean(axes, keepdim=True) - xhat * (dvalues * xhat).mean(axes, keepdim=True)
    scale = invstd if weight is None else invstd * weight.view([-1 if d == axis + 1 else 1 for d in range(xhat.dim())])
    return (dvalues * scale)[0].to(x.dtype), dweight, dbias


def sample_norm(case: SampleCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """y from the sample-wise kernels, attached to the autograd graph where a gradient can be asked for."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return SampleNorm.apply(x, weight, bias, case, eps)
    return sample_plan.forward(case, x, weight, bias, eps, keeps_statistics=False)[0]


@launching
class SampleNorm(torch.autograd.Function):
    """Saves x, weight and statistics (2, rows): mean and sqrt(variance + eps)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, case: SampleCase, eps: float
    ) -> Tensor:
        y, statistics = sample_plan.forward(case, x, weight, bias, eps, keeps_statistics=True)
        ctx.save_for_backward(x, weight, statistics)
        ctx.case, ctx.eps = case, eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        case = ctx.case
        x, weight, statistics = ctx.saved_tensors
        x, statistics = laid_out(x, case.x), as_allocated(statistics)
        wants_dx, wants_dweight, wants_dbias, _, _ = ctx.needs_input_grad
        dx = dweight = dbias = None
        differentiable = torch.is_grad_enabled()
        if differentiable or is_batched(dy):
            with torch.enable_grad():  # differentiation stops at these views
                x, weight = x.view_as(x), None if weight is None else weight.view_as(weight)
                wanted = [t for t, wants in ((x, wants_dx), (weight, wants_dweight)) if wants]
                y = aten.sample_norm(x, weight, None, ctx.eps)
            gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=differentiable) if wanted else ())
            dx = next(gradients) if wants_dx else None
            dweight = next(gradients) if wants_dweight else None
            if wants_dbias:
                dbias = dy.to(statistics.dtype).sum_to_size(case.columns).to(case.bias)
        else:
            dx = torch.empty_like(x) if wants_dx else None
            dweight = torch.empty_like(weight) if wants_dweight else None
            dbias = case.vector(case.bias) if wants_dbias else None
            sample_plan.backward(case, x, dy, weight, statistics, ctx.eps, dx, dweight, dbias)
        return dx, dweight, dbias, None, None
