"""The passes of a batch that several processes share as operators of torch.library, with torch's collectives between.

The compiler sees what is exchanged, and keeps the order of collectives: it has to be the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .autograd import as_allocated
from .functional import known_case
from .launching.launch import statistics_dtype, walkable
from .operators import (
    HOW,
    LIBRARY,
    NO_STATE,
    STATE,
    TENSORS,
    Differentiable,
    How,
    arguments,
    fake_backward,
    fake_forward,
    like,
    register,
    room_for_gradients,
    weight_of_batch,
)
from .plan import State
from .planning.case import Case
from .synced.plan import nothing

HOW_MUCH = "str group, int ranks, bool kernels"
"""The process group's name, how many processes it has, and who computes."""


def moments(x: Tensor, *how: Any) -> Tensor:
    """What this process sends in the forward pass, (3 C + 1)."""
    case, read = case_of(x, None, None, None, NO_STATE, *parted(how))
    return distributed.passes_of(case).moments(case, read).clone()  # where compiled kernels expect tensors to begin


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    average_factor: Tensor | None,
    cumulative: bool,
    gathered: Tensor,
    *how: Any,
) -> tuple[Tensor, Tensor]:
    """y and statistics by the moments of all; running buffers and counter updated in place."""
    how, kernels = parted(how)
    state = running_mean, running_var, num_batches_tracked, weight_of_batch(average_factor, cumulative, how.momentum)
    case, read = case_of(x, weight, bias, residual, state, how, kernels)
    given = read, weight, bias, residual, state, False, gathered, nothing
    y, statistics, _ = distributed.passes_of(case).normalize(case, *given)
    return like(x, y), statistics


def sums(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    bias_dtype: torch.dtype | None,
    wanted: Sequence[bool],
    *how: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What this process sends in the backward pass, (2 C + 1), dweight, dbias and dresidual, empty if not wanted."""
    how, kernels = parted(how)
    found = room_for_gradients(x, weight, bias_dtype, wanted, how.axis)
    dweight, dbias, dresidual = (each if wants else None for each, wants in zip(found[1:], wanted[1:], strict=True))
    case, given = backward_of(dy, x, weight, bias, residual, statistics, bias_dtype, how, kernels)
    sent = distributed.passes_of(case).sums(case, *given, dresidual, dweight, dbias)
    return sent.clone(), *found[1:]


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    bias_dtype: torch.dtype | None,
    added: Tensor,
    *how: Any,
) -> Tensor:
    """dx by the sums of all."""
    case, given = backward_of(dy, x, weight, bias, residual, statistics, bias_dtype, *parted(how))
    return like(x, distributed.passes_of(case).gradients(case, *given, added, nothing))


def parted(how: Sequence[Any]) -> tuple[How, bool]:
    """With what the arguments of one half end, and who computes."""
    *how, kernels = how
    return How(*how), kernels


def backward_of(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    bias_dtype: torch.dtype | None,
    how: How,
    kernels: bool,
) -> tuple[Case, tuple[Any, ...]]:
    """The case, and what both halves take; bias is given where an activation's derivative depends on it."""
    shift = x.new_empty(x.shape[how.axis], dtype=bias_dtype) if bias is None and bias_dtype is not None else bias
    case, read = case_of(x, weight, shift, residual, NO_STATE, how, kernels)
    upstream, residual = distributed.passes_of(case).upstream(case, read, dy, residual, None)
    return case, (read, upstream, weight, bias, as_allocated(statistics), residual, None)


def case_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    how: How,
    kernels: bool,
) -> tuple[Case, Tensor]:
    """What the passes are of, and the input as they read it; an empty part is left to torch's operations."""
    kernels = kernels and x.numel() > 0
    read = walkable(x, how.axis) if kernels else x
    return known_case(arguments(read, weight, bias, residual, state, True, how), kernels), read


def training(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    """A training step's forward pass: both halves, and the exchange between them."""
    *others, group, ranks, kernels = others
    how = How.last_of(others)
    state, how = others[: -len(how)], (*how, kernels)
    sent, collectives = torch.ops.tritonbn.synced_moments(x, *how), torch.ops._c10d_functional
    gathered = collectives.wait_tensor(collectives.all_gather_into_tensor(sent, ranks, group)).view(ranks, -1)
    return torch.ops.tritonbn.synced_normalize(x, weight, bias, residual, *state, gathered, *how)


def all_gradients(given: tuple[Any, ...], asked: Sequence[bool], others: tuple[Any, ...]) -> list[Tensor | None]:
    """dx, dweight, dbias and dresidual: both halves, and the exchange between them if dx is asked for."""
    *others, group, _, kernels = others
    how, dx, collectives = (*How.last_of(others), kernels), None, torch.ops._c10d_functional
    added, *found = torch.ops.tritonbn.synced_sums(*given, asked, *how)
    if asked[0]:
        added = collectives.wait_tensor(collectives.all_reduce(added, "sum", group))
        dx = torch.ops.tritonbn.synced_gradients(*given, added, *how)
    return [dx, *found]


def differentiable(*given: Any) -> tuple[Tensor, Tensor]:
    """training, with its backward pass."""
    *others, _, _, _ = given
    return Differentiable.apply(training, all_gradients, How.last_of(others).activation, *given)


def fake_moments(x: Tensor, *how: Any) -> Tensor:
    """What moments returns, without contents."""
    return x.new_empty(3 * x.shape[parted(how)[0].axis] + 1, dtype=statistics_dtype(x.dtype))


def fake_normalize(*given: Any) -> tuple[Tensor, Tensor]:
    """What normalize returns, without contents."""
    *given, _ = given
    return fake_forward(*given)


def fake_sums(dy: Tensor, x: Tensor, weight: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What sums returns, without contents."""
    *others, _ = others
    _, *found = fake_backward(dy, x, weight, *others)
    axis = How.last_of(others).axis
    return x.new_empty(2 * x.shape[axis] + 1, dtype=statistics_dtype(x.dtype)), *found


def fake_training(*given: Any) -> tuple[Tensor, Tensor]:
    """What training returns, without contents."""
    *given, _, _, _ = given
    return fake_forward(*given)


def fake_gradients(dy: Tensor, x: Tensor, *others: Any) -> Tensor:
    """What gradients returns, without contents."""
    return torch.empty_like(x)


GIVEN = f"Tensor dy, {TENSORS}, Tensor statistics, ScalarType? bias_dtype"
HOW_LOCALLY = f"{HOW}, bool kernels"
FORWARD = "(Tensor y, Tensor statistics)"

register("synced_moments", f"(Tensor x, {HOW_LOCALLY}) -> Tensor", moments, fake_moments)
register(
    "synced_normalize",
    f"({TENSORS}, {STATE}, Tensor gathered, {HOW_LOCALLY}) -> {FORWARD}",
    normalize,
    fake_normalize,
)
register(
    "synced_sums",
    f"({GIVEN}, bool[4] wanted, {HOW_LOCALLY}) -> (Tensor sums, Tensor dweight, Tensor dbias, Tensor dresidual)",
    sums,
    fake_sums,
)
register("synced_gradients", f"({GIVEN}, Tensor added, {HOW_LOCALLY}) -> Tensor", gradients, fake_gradients)
register("synced_training", f"({TENSORS}, {STATE}, {HOW}, {HOW_MUCH}) -> {FORWARD}", training, fake_training)
LIBRARY.impl("synced_training", differentiable, "Autograd")
