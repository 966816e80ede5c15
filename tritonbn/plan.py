"""From tensors to launches: which kernel, in which phases, on which grid. Nobody else launches a kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import Mode, heuristic, power_of_two
from .geometry import MOST_AXES, describe
from .kernels import backward_kernel, forward_kernel, inference_kernel

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when the kernels were defined: they then run on the CPU, in numpy."""

KERNELS = {"forward": forward_kernel, "inference": inference_kernel, "backward": backward_kernel}

CHANNEL_AXIS = 1


def training_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """y like x, and statistics (2, C): mean and invstd; the running buffers are updated in place."""
    y = torch.empty_like(x)
    statistics = x.new_empty((2, x.shape[CHANNEL_AXIS]), dtype=statistics_dtype(x.dtype))
    buffers = [dense(running_mean), dense(running_var)]
    average_factor, momentum = (momentum, 0.0) if isinstance(momentum, Tensor) else (None, momentum)
    plan = cached_plan("forward", FORWARD_PHASES, x.dtype, x.shape, x.stride(), y.stride())
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
    keep_statistics: bool,
) -> tuple[Tensor, Tensor | None]:
    """y like x, and if a backward pass may follow a copy of the statistics (2, C): mean and invstd."""
    y = torch.empty_like(x)
    statistics = None
    if keep_statistics:
        statistics = x.new_empty((2, x.shape[CHANNEL_AXIS]), dtype=statistics_dtype(x.dtype))
    plan = cached_plan("inference", INFERENCE_PHASES, x.dtype, x.shape, x.stride(), y.stride())
    plan.run(x.device, x, y, dense(weight), dense(bias), dense(running_mean), dense(running_var), statistics, eps)
    return y, statistics


def backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    training: bool,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Fill those of the gradients that are given; `training` says that the statistics were those of x itself."""
    dy = walkable(dy)
    sums = training or dweight is not None or dbias is not None
    phases = backward_phases(training, sums, dx is not None)
    plan = cached_plan(
        "backward", phases, x.dtype, x.shape, x.stride(), dy.stride(), (x if dx is None else dx).stride()
    )
    workspace = plan.workspace(x) if sums else None
    plan.run(x.device, x, dy, dx, dense(weight), statistics, dweight, dbias, workspace)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of mean, invstd and every accumulation: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def walkable(x: Tensor) -> Tensor:
    """x itself, unless it is a lazy negation, or has so many axes that only a copy can surely be described."""
    return (x if x.dim() <= MOST_AXES else x.contiguous()).resolve_neg()


def dense(vector: Tensor | None) -> Tensor | None:
    """The kernels read vectors of channels with stride 1."""
    return None if vector is None else vector.contiguous().resolve_neg()


@dataclass(frozen=True)
class Phase:
    """One launch of a kernel: what it does, and whether one program a channel block is enough for it."""

    constexprs: tuple[tuple[str, Any], ...] = ()
    merges_only: bool = False


FORWARD_PHASES = (Phase((("PHASE", "statistics"),)), Phase((("PHASE", "normalize"),)))
INFERENCE_PHASES = (Phase(),)


@lru_cache
def backward_phases(training: bool, sums: bool, writes_dx: bool) -> tuple[Phase, ...]:
    """With given statistics dx needs no sum, and is written in the sweep that sums."""
    first = Phase((("PHASE", "sums"), ("TRAINING", training)))
    merge = Phase((("PHASE", "gradients"), ("TRAINING", training)), merges_only=not (training and writes_dx))
    return (first, merge) if sums else (first,)


@dataclass(frozen=True)
class Plan:
    """The launches of one kernel for one geometry: everything but the tensors and the scalars."""

    kernel: Any
    partials: tuple[int, int, int]
    """The workspace's shape: two numbers of each channel and chunk, the chunks rounded up to a power of two."""
    sizes: tuple[int, ...]
    """The integers in the order that every kernel takes them: sizes, chunks, then the strides of each tensor."""
    launches: tuple[tuple[tuple[int], dict[str, Any]], ...]
    """Grid and keywords (constexprs and launch options) of each launch."""

    def workspace(self, x: Tensor) -> Tensor:
        """Room for the partial results of every chunk."""
        return x.new_empty(self.partials, dtype=statistics_dtype(x.dtype))

    def run(self, device: torch.device, *arguments: Tensor | float | None) -> None:
        """Launch the kernel's phases, one after the other, on the tensors' device."""
        with on_device(device):
            for grid, keywords in self.launches:
                self.kernel[grid](*arguments, *self.sizes, **keywords)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which `device` is the one that Triton launches on."""
    if device.type not in ("cuda", "xpu"):
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device.index)


@lru_cache(maxsize=4096)
def cached_plan(
    mode: Mode, phases: tuple[Phase, ...], dtype: torch.dtype, shape: torch.Size, *strides: tuple[int, ...]
) -> Plan:
    """Cut the tensors' geometry as the mode's config says, and write down each phase's launch."""
    geometry = describe(shape, CHANNEL_AXIS, *strides)
    config = heuristic(geometry, dtype.itemsize, mode)
    blocks, chunks = config.channel_blocks(geometry), config.chunks(geometry)
    keywords: dict[str, Any] = {
        "ACCUMULATOR": tl.float64 if dtype == torch.float64 else tl.float32,
        "INDEX": tl.int64 if geometry.index_bits == 64 else tl.int32,
        "OUTER_RANK": geometry.outer_rank,
        "CHANNELS_LAST": geometry.channels_last,
        "ALIGN": geometry.alignment,
        "BLOCK_C": config.block_c,
        "BLOCK_O": config.block_o,
        "BLOCK_I": config.block_i,
        "MASK_C": geometry.channels % config.block_c != 0,
        "MASK_O": geometry.outer_size % config.block_o != 0,
        "MASK_I": geometry.inner % config.block_i != 0,
        "num_warps": config.num_warps,
        "enable_fp_fusion": True,
    }
    if mode != "inference":
        keywords["BLOCK_K"] = power_of_two(chunks)
    return Plan(
        kernel=KERNELS[mode],
        partials=(2, geometry.channels, power_of_two(chunks)),
        sizes=(
            geometry.channels,
            geometry.outer_size,
            *geometry.outer[1:],
            geometry.inner,
            chunks,
            config.tiles_per_chunk,
            *(step for steps in geometry.strides for step in steps),
        ),
        launches=tuple(
            ((blocks if phase.merges_only else blocks * chunks,), keywords | dict(phase.constexprs)) for phase in phases
        ),
    )
