"""batch_norm's passes as operators of torch.library: what torch.compile, torch.export and AOTAutograd see of it.

How work is cut is decided when an operator runs: for a backward pass, where that has a thread of its own, by
TRITONBN_TUNE, since no `tuning` block is in force there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import plan
from .autograd import as_allocated
from .functional import Arguments, known_case
from .launching.launch import statistics_dtype, walkable

LIBRARY = torch.library.Library("tritonbn", "DEF")

HOW = "float momentum, float eps, int axis, int correction, str? activation, float negative_slope"


class How(NamedTuple):
    """What is no tensor, as batch_norm takes it."""

    momentum: float
    eps: float
    axis: int
    correction: int
    activation: str | None
    negative_slope: float

    @classmethod
    def last_of(cls, given: Sequence[Any]) -> How:
        """That with which an operator's arguments end."""
        return cls(*given[-len(cls._fields) :])


TENSORS = "Tensor x, Tensor? weight, Tensor? bias, Tensor? residual"
STATE = (
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, Tensor? average_factor, "
    "bool cumulative"
)
SCHEMAS = {
    "training": f"({TENSORS}, {STATE}, {HOW}) -> (Tensor y, Tensor statistics)",
    "normalization": f"({TENSORS}, {HOW}) -> (Tensor y, Tensor statistics)",
    "inference": f"({TENSORS}, Tensor running_mean, Tensor running_var, {HOW}) -> (Tensor y, Tensor statistics)",
    "backward": (
        f"(Tensor dy, {TENSORS}, Tensor statistics, bool training, ScalarType? bias_dtype, bool[4] wanted, {HOW}) "
        "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
    ),
}
"""y, dx and dresidual lie like x; statistics are mean and invstd, (2, C). A gradient that is not wanted is empty.

relu of a sum saves the residual, where eager calls save one bit per element: how many bytes those take depends on how
the work is cut, which nobody knows while a graph is traced.
"""

NO_STATE: plan.State = (None, None, None, None)
"""Where neither running buffers nor a counter are given."""

KEYS = ("CPU", "CUDA", "XPU")
"""Where tensors are that may go to the kernels; HIP's are CUDA's to torch."""


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
    *how: Any,
) -> tuple[Tensor, Tensor]:
    """A training step's forward pass, running buffers and counter updated in place."""
    how = How(*how)
    state = running_mean, running_var, num_batches_tracked, weight_of_batch(average_factor, cumulative, how.momentum)
    read = walkable(x, how.axis)
    case = known_case(arguments(read, weight, bias, residual, state, True, how))
    y, statistics, _ = plan.training_forward(case, read, weight, bias, residual, state, keeps_signs=False)
    return like(x, y), statistics


def normalization(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *how: Any
) -> tuple[Tensor, Tensor]:
    """The same without any state, which torch.cond takes: nothing is updated in place."""
    return training(x, weight, bias, residual, *NO_STATE, False, *how)


def weight_of_batch(average_factor: Tensor | None, cumulative: bool, momentum: float) -> Tensor | float | None:
    """batch_norm's momentum, from what an operator is given in place of it."""
    return None if cumulative else momentum if average_factor is None else average_factor


def inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    *how: Any,
) -> tuple[Tensor, Tensor]:
    """A forward pass with given statistics, of which it returns a copy."""
    how, state = How(*how), (running_mean, running_var, None, None)
    read = walkable(x, how.axis)
    case = known_case(arguments(read, weight, bias, residual, state, False, how))
    y, statistics, _ = plan.inference(case, read, weight, bias, residual, state, True, keeps_signs=False)
    return like(x, y), statistics


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    training: bool,
    bias_dtype: torch.dtype | None,
    wanted: Sequence[bool],
    *how: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients; bias and residual are given where an activation's derivative depends on them."""
    how = How(*how)
    read, statistics = walkable(x, how.axis), as_allocated(statistics)
    found = room_for_gradients(read, weight, bias_dtype, wanted, how.axis)
    dx, dweight, dbias, dresidual = (each if wants else None for each, wants in zip(found, wanted, strict=True))
    vectors = weight, dbias if bias is None else bias  # of bias and of its gradient a case needs the dtype
    case = known_case(arguments(read, *vectors, residual, NO_STATE, training, how))
    plan.backward(case, read, dy, weight, bias, statistics, residual, None, dx, dresidual, dweight, dbias)
    return like(x, found[0]) if wanted[0] else found[0], *found[1:3], like(x, found[3]) if wanted[3] else found[3]


def arguments(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: plan.State,
    training: bool,
    how: How,
) -> Arguments:
    """As batch_norm has them."""
    mean, var, counter, momentum = state
    return Arguments(
        x, mean, var, weight, bias, training, momentum, how.eps, how.axis, how.correction,
        residual, how.activation, how.negative_slope, counter,
    )  # fmt: skip


def like(x: Tensor, found: Tensor) -> Tensor:
    """A result that lies as an empty tensor like x does, which is what was promised while the graph was traced."""
    promised = torch.empty_like(x)
    return found if found.stride() == promised.stride() else promised.copy_(found)


def room_for_gradients(
    x: Tensor, weight: Tensor | None, bias_dtype: torch.dtype | None, wanted: Sequence[bool], axis: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias and dresidual, without contents; empty if not wanted."""
    dx, dresidual = (torch.empty_like(x) if wants else x.new_empty(0) for wants in (wanted[0], wanted[3]))
    dtypes = None if weight is None else weight.dtype, bias_dtype
    dweight, dbias = (
        x.new_empty(x.shape[axis] if wants else 0, dtype=dtype or x.dtype)
        for wants, dtype in zip(wanted[1:3], dtypes, strict=True)
    )
    return dx, dweight, dbias, dresidual


def fake_forward(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """What all forward operators return, without contents."""
    axis = How.last_of(others).axis
    return torch.empty_like(x), x.new_empty((2, x.shape[axis]), dtype=statistics_dtype(x.dtype))


def fake_backward(dy: Tensor, x: Tensor, weight: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What backward returns, without contents."""
    how = How.last_of(others)
    *_, bias_dtype, wanted = others[: -len(how)]
    return room_for_gradients(x, weight, bias_dtype, wanted, how.axis)


class Differentiable(torch.autograd.Function):
    """Operators as a pair that autograd knows; saves what the eager function does, but no signs."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., tuple[Tensor, Tensor]],
        gradients: Callable[..., Sequence[Tensor | None]],
        activation: str | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        *others: Any,
    ) -> tuple[Tensor, Tensor]:
        """run(x, weight, bias, residual, *others) below autograd: y and statistics."""
        with torch._C._AutoDispatchBelowAutograd():
            y, statistics = run(x, weight, bias, residual, *others)
        ctx.gradients, ctx.activation, ctx.others = gradients, activation, others
        ctx.bias_dtype = None if bias is None else bias.dtype
        recomputed = (None, None) if activation is None else (bias, residual)
        ctx.save_for_backward(x, weight, statistics, *recomputed)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """By `gradients`, asked for what is wanted; without an activation the residual's gradient is dy itself."""
        x, weight, statistics, bias, residual = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[3:7])
        passes_on = wanted[3] and ctx.activation is None
        asked = [*wanted[:3], wanted[3] and not passes_on]
        found: Sequence[Tensor | None] = [None] * 4
        if any(asked):
            given = dy, x, weight, bias, residual, statistics, ctx.bias_dtype
            found = ctx.gradients(given, asked, ctx.others)
        gradients = [each if wants else None for each, wants in zip(found, asked, strict=True)]
        if passes_on:
            gradients[3] = dy
        return None, None, None, *gradients, *[None] * len(ctx.others)


def differentiable(name: str, *given: Any) -> tuple[Tensor, Tensor]:
    """The forward operator of this name, whose backward pass is the operator `backward`."""

    def gradients(passed: tuple[Any, ...], asked: Sequence[bool], others: tuple[Any, ...]) -> Sequence[Tensor]:
        *tensors, bias_dtype = passed
        return torch.ops.tritonbn.backward(*tensors, name != "inference", bias_dtype, asked, *How.last_of(others))

    activation = How.last_of(given).activation
    return Differentiable.apply(getattr(torch.ops.tritonbn, name), gradients, activation, *given)


def register(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator."""
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in KEYS:
        LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"tritonbn::{name}", fake, lib=LIBRARY)


for name, implementation in (("training", training), ("normalization", normalization), ("inference", inference)):
    register(name, SCHEMAS[name], implementation, fake_forward)
    LIBRARY.impl(name, partial(differentiable, name), "Autograd")
register("backward", SCHEMAS["backward"], backward, fake_backward)
