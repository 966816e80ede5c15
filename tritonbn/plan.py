"""Batch norm from tensors to launches: which kernel, in which phases, on which grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .configs import Mode, heuristic, power_of_two
from .geometry import describe
from .kernels import backward_kernel, forward_kernel, inference_kernel
from .launch import Plan, dense, statistics_dtype, steps, tile_keywords, walkable_beside

KERNELS = {"forward": forward_kernel, "inference": inference_kernel, "backward": backward_kernel}


def training_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
    eps: float,
    axis: int,
    correction: int,
) -> tuple[Tensor, Tensor]:
    """y like x, and statistics (2, C): mean and invstd; the running buffers are updated in place."""
    y = torch.empty_like(x)
    statistics = x.new_empty((2, x.shape[axis]), dtype=statistics_dtype(x.dtype))
    buffers = [dense(running_mean), dense(running_var)]
    average_factor, momentum = (momentum, 0.0) if isinstance(momentum, Tensor) else (None, momentum)
    plan = cached_plan("forward", FORWARD_PHASES[correction], x.dtype, axis, x.shape, x.stride(), y.stride())
    plan.run(
        x.device,
        x,
        y,
        dense(weight),
        dense(bias),
        *buffers,
        average_factor,
        statistics,
        plan.workspace(x),
        momentum,
        eps,
    )
    for original, updated in zip((running_mean, running_var), buffers, strict=True):
        if original is not updated:
            original.copy_(updated)
    return y, statistics


def inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    axis: int,
    keep_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """y like x, and if a backward pass may follow a copy of the statistics (2, C): mean and invstd."""
    y = torch.empty_like(x)
    statistics = None
    if keep_statistics:
        statistics = x.new_empty((2, x.shape[axis]), dtype=statistics_dtype(x.dtype))
    plan = cached_plan("inference", INFERENCE_PHASES, x.dtype, axis, x.shape, x.stride(), y.stride())
    plan.run(x.device, x, y, dense(weight), dense(bias), dense(running_mean), dense(running_var), statistics, eps)
    return y, statistics


def backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    training: bool,
    axis: int,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Fill those of the gradients that are given; `training` says that the statistics were those of x itself."""
    dy = walkable_beside(x, axis, dy)
    sums = training or dweight is not None or dbias is not None
    phases = backward_phases(training, sums, dx is not None)
    plan = cached_plan(
        "backward", phases, x.dtype, axis, x.shape, x.stride(), dy.stride(), (x if dx is None else dx).stride()
    )
    workspace = plan.workspace(x) if sums else None
    plan.run(x.device, x, dy, dx, dense(weight), statistics, dweight, dbias, workspace)


@dataclass(frozen=True)
class Phase:
    """One launch of a kernel: what it does, and whether one program a channel block is enough for it."""

    constexprs: tuple[tuple[str, Any], ...] = ()
    merges_only: bool = False


FORWARD_PHASES = tuple(
    tuple(Phase((("PHASE", name), ("CORRECTION", correction))) for name in ("statistics", "normalize"))
    for correction in (0, 1)
)
"""By the correction of the running variance."""
INFERENCE_PHASES = (Phase(),)


@lru_cache
def backward_phases(training: bool, sums: bool, writes_dx: bool) -> tuple[Phase, ...]:
    """With given statistics dx needs no sum, and is written in the sweep that sums."""
    first = Phase((("PHASE", "sums"), ("TRAINING", training)))
    merge = Phase((("PHASE", "gradients"), ("TRAINING", training)), merges_only=not (training and writes_dx))
    return (first, merge) if sums else (first,)


@lru_cache(maxsize=4096)
def cached_plan(
    mode: Mode, phases: tuple[Phase, ...], dtype: torch.dtype, axis: int, shape: torch.Size, *strides: tuple[int, ...]
) -> Plan:
    """Cut the tensors' geometry as the mode's config says, and write down each phase's launch."""
    geometry = describe(shape, axis, *strides)
    config = heuristic(geometry, dtype.itemsize, mode)
    blocks, chunks = config.channel_blocks(geometry), config.chunks(geometry)
    keywords = tile_keywords(geometry, config, dtype)
    if mode != "inference":
        keywords["BLOCK_K"] = power_of_two(chunks)
    return Plan(
        kernel=KERNELS[mode],
        sizes=(
            geometry.channels,
            geometry.outer_size,
            *geometry.outer[1:],
            geometry.inner,
            chunks,
            config.tiles_per_chunk,
            *steps(geometry),
        ),
        launches=tuple(
            ((blocks if phase.merges_only else blocks * chunks,), keywords | dict(phase.constexprs)) for phase in phases
        ),
        partials=(2, geometry.channels, power_of_two(chunks)),
    )
