"""Batch norm from tensors to launches: which kernel, in which phases, on which grid."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import counters, devices
from .configs import Config, fitted, power_of_two, sign_group
from .devices import Device
from .geometry import Geometry, describe
from .kernels import (
    backward_kernel,
    forward_kernel,
    inference_kernel,
    resident_backward_kernel,
    resident_forward_kernel,
)
from .kernels.exchange import SPACING
from .launch import Plan, dense, dense_strides, statistics_dtype, steps, tile_keywords, walkable_beside
from .space import choose


def training_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | Tensor | None,
    eps: float,
    axis: int,
    correction: int,
    residual: Tensor | None,
    activation: str | None,
    slope: float,
    keep_signs: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y like x, statistics (2, C), mean and invstd, and if wanted the signs; running buffers are updated in place."""
    y = torch.empty_like(x)
    statistics = x.new_empty((2, x.shape[axis]), dtype=statistics_dtype(x.dtype))
    residual = beside(x, residual, y, axis)
    mean, var = dense(running_mean), dense(running_var)
    average_factor, number = (momentum, 0.0) if isinstance(momentum, Tensor) else (None, momentum or 0.0)
    plan = forward_plan(
        device_for(x), x.dtype, axis, correction, momentum is None, activation, x.shape, x.stride(), y.stride(),
        None if residual is None else residual.stride(),
    )  # fmt: skip
    signs = plan.signs(x) if keep_signs else None
    plan.run(
        x.device, x, y, residual, dense(weight), dense(bias), mean, var, average_factor, num_batches_tracked,
        statistics, signs, plan.workspace(x), plan.counters(x), number, eps, slope,
    )  # fmt: skip
    for original, updated in ((running_mean, mean), (running_var, var)):
        if original is not updated:
            original.copy_(updated)
    return y, statistics, signs


def inference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    axis: int,
    residual: Tensor | None,
    activation: str | None,
    slope: float,
    keep_statistics: bool,
    keep_signs: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y like x, and if a backward pass may follow a copy of the statistics (2, C), mean and invstd, and the signs."""
    y = torch.empty_like(x)
    residual = beside(x, residual, y, axis)
    statistics = None
    if keep_statistics:
        statistics = x.new_empty((2, x.shape[axis]), dtype=statistics_dtype(x.dtype))
    plan = inference_plan(
        device_for(x), x.dtype, axis, activation, x.shape, x.stride(), y.stride(),
        None if residual is None else residual.stride(),
    )  # fmt: skip
    signs = plan.signs(x) if keep_signs else None
    plan.run(
        x.device, x, y, residual, dense(weight), dense(bias), dense(running_mean), dense(running_var),
        statistics, signs, eps, slope,
    )  # fmt: skip
    return y, statistics, signs


def backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    training: bool,
    axis: int,
    activation: str | None,
    slope: float,
    dx: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Fill those of the gradients that are given; `training` says that the statistics were those of x itself."""
    like = dx if dx is not None else dresidual
    strides = dense_strides(x) if like is None else like.stride()
    dy = walkable_beside(x, axis, dy)
    if signs is not None and form(x, axis, dy.stride(), strides) != form(x, axis, strides):
        dy = torch.empty_like(x).copy_(dy)
    residual = beside(x, residual, dy, axis)
    sums = dweight is not None or dbias is not None or (training and dx is not None)
    plan = backward_plan(
        device_for(x), x.dtype, axis, training, sums, dx is not None, activation,
        x.shape, x.stride(), dy.stride(), strides, None if residual is None else residual.stride(),
    )  # fmt: skip
    workspace, counts = (plan.workspace(x), plan.counters(x)) if sums else (None, None)
    plan.run(
        x.device, x, dy, dx, dresidual, residual, signs, dense(weight), dense(bias), statistics, dweight, dbias,
        workspace, counts, slope,
    )  # fmt: skip


def device_for(x: Tensor) -> Device:
    """The GPU to plan for, as far as x's device and current stream may use it."""
    device = devices.current()
    return device if counters.may_wait(x.device) else devices.without_waiting(device)


def beside(x: Tensor, residual: Tensor | None, other: Tensor, axis: int) -> Tensor | None:
    """The residual itself, unless walking it too would change how x is cut into rows, or is not possible."""
    if residual is None:
        return None
    residual = walkable_beside(x, axis, residual)
    strides = dense_strides(x)
    if form(x, axis, other.stride(), residual.stride(), strides) != form(x, axis, other.stride(), strides):
        return torch.empty_like(x).copy_(residual)
    return residual


def form(x: Tensor, axis: int, *strides: tuple[int, ...]) -> tuple[Any, ...]:
    """What forward and backward pass have to agree on for an element's sign to be found again."""
    return cached_form(x.shape, axis, x.element_size(), x.stride(), *strides)


@lru_cache(maxsize=4096)
def cached_form(shape: torch.Size, axis: int, itemsize: int, *strides: tuple[int, ...]) -> tuple[Any, ...]:
    """How rows of the fast axis lie, whatever the strides between them."""
    geometry = describe(shape, axis, *strides)
    return geometry.channels_last, geometry.inner, geometry.fold(itemsize)


@lru_cache(maxsize=4096)
def forward_plan(
    device: Device,
    dtype: torch.dtype,
    axis: int,
    correction: int,
    cumulative: bool,
    activation: str | None,
    shape: torch.Size,
    x: tuple[int, ...],
    y: tuple[int, ...],
    residual: tuple[int, ...] | None,
) -> Plan:
    """The launches of a training forward pass for tensors of these strides."""
    geometry = describe_beside(shape, axis, residual, x, y)
    config = fitted(choose(geometry, dtype.itemsize, "forward", device), geometry, dtype.itemsize)
    constexprs = {"CORRECTION": correction, "CUMULATIVE": cumulative, "ACTIVATION": activation}
    keywords = cut_keywords(geometry, config, dtype, device) | constexprs
    if config.strategy == "resident":
        keywords["PACKED"] = packs(config, dtype, device)
        return cut_plan(resident_forward_kernel, geometry, config, keywords, dtype.itemsize, [{}], cumulative)
    phases = [{"PHASE": "dataflow"}] if config.strategy == "dataflow" else SPLIT_FORWARD
    return cut_plan(forward_kernel, geometry, config, keywords, dtype.itemsize, phases)


SPLIT_FORWARD = [{"PHASE": "statistics"}, {"PHASE": "normalize"}]
SPLIT_BACKWARD = [{"PHASE": "sums"}, {"PHASE": "gradients"}]


@lru_cache(maxsize=4096)
def inference_plan(
    device: Device,
    dtype: torch.dtype,
    axis: int,
    activation: str | None,
    shape: torch.Size,
    x: tuple[int, ...],
    y: tuple[int, ...],
    residual: tuple[int, ...] | None,
) -> Plan:
    """The one launch of an inference."""
    geometry = describe_beside(shape, axis, residual, x, y)
    config = fitted(choose(geometry, dtype.itemsize, "inference", device), geometry, dtype.itemsize)
    keywords = cut_keywords(geometry, config, dtype, device) | {"ACTIVATION": activation}
    del keywords["BLOCK_K"]
    return cut_plan(inference_kernel, geometry, config, keywords, dtype.itemsize, [{}])


@lru_cache(maxsize=4096)
def backward_plan(
    device: Device,
    dtype: torch.dtype,
    axis: int,
    training: bool,
    sums: bool,
    writes_dx: bool,
    activation: str | None,
    shape: torch.Size,
    x: tuple[int, ...],
    dy: tuple[int, ...],
    dx: tuple[int, ...],
    residual: tuple[int, ...] | None,
) -> Plan:
    """The launches of a backward pass; if dx does not depend on the sums, one sweep without waiting does it all."""
    geometry = describe_beside(shape, axis, residual, x, dy, dx)
    one_sweep = not (training and writes_dx)
    mode = "inference" if not sums else "sums" if one_sweep else "backward"
    config = fitted(choose(geometry, dtype.itemsize, mode, device), geometry, dtype.itemsize)
    keywords = cut_keywords(geometry, config, dtype, device) | {"ACTIVATION": activation}
    if config.strategy == "resident" and not one_sweep:
        keywords["PACKED"] = packs(config, dtype, device)
        return cut_plan(resident_backward_kernel, geometry, config, keywords, dtype.itemsize, [{}])
    phases = SPLIT_BACKWARD[:1] if one_sweep else SPLIT_BACKWARD
    if config.strategy == "dataflow" and not one_sweep:
        phases = [{"PHASE": "dataflow"}]
    return cut_plan(backward_kernel, geometry, config, keywords | {"TRAINING": training}, dtype.itemsize, phases)


def describe_beside(
    shape: torch.Size, axis: int, residual: tuple[int, ...] | None, *strides: tuple[int, ...]
) -> Geometry:
    """The geometry of the tensors, in the order of the last, with the residual's strides (or the last's) in front."""
    return describe(shape, axis, strides[-1] if residual is None else residual, *strides)


def cut_keywords(geometry: Geometry, config: Config, dtype: torch.dtype, device: Device) -> dict[str, Any]:
    """The constexprs and launch options that follow from how the work is cut."""
    keywords = tile_keywords(geometry, config, dtype)
    fold = geometry.fold(dtype.itemsize)
    keywords |= {"FOLD": 0, "RUN": 0, "GROUP": sign_group(geometry, dtype.itemsize)}
    keywords["BLOCK_K"] = power_of_two(config.chunks(geometry))
    if fold:
        keywords |= {"FOLD": fold.lanes, "RUN": fold.run, "ALIGN": fold.alignment, "MASK_I": fold.run != config.block_i}
        if geometry.channels_last:
            keywords |= {"MASK_C": False, "MASK_O": geometry.values % (fold.lanes * config.block_o) != 0}
    if config.registers and device.backend == "cuda" and not devices.INTERPRETED:
        keywords["maxnreg"] = config.registers
    return keywords


def sign_bytes(geometry: Geometry, config: Config, itemsize: int) -> int:
    """Bytes that the signs of all elements take: rows of the fast axis, each beginning with a byte of its own."""
    bits = sign_group(geometry, itemsize)
    if fold := geometry.fold(itemsize):
        blocks = 1 if geometry.channels_last else config.channel_blocks(geometry)
        return blocks * -(-geometry.values // fold.lanes) * -(-fold.run // bits)
    fast = geometry.channels if geometry.channels_last else geometry.inner
    return geometry.channels * geometry.values // fast * -(-fast // bits)


def packs(config: Config, dtype: torch.dtype, device: Device) -> bool:
    """Whether a resident tile is kept packed: an instruction of CUDA's, for values of 16 bits."""
    return config.packed and dtype.itemsize == 2 and device.backend == "cuda" and not devices.INTERPRETED


def cut_plan(
    kernel: Any,
    geometry: Geometry,
    config: Config,
    keywords: dict[str, Any],
    itemsize: int,
    phases: list[dict[str, str]],
    always_counts: bool = False,
) -> Plan:
    """One launch for each phase, over all chunks of all blocks."""
    blocks, chunks = config.channel_blocks(geometry), config.chunks(geometry)
    padded = power_of_two(chunks)
    programs = blocks * chunks
    if phases[0].get("PHASE") == "dataflow":
        programs = 2 * chunks * config.window * -(-blocks // config.window)
    exchanges = kernel in (forward_kernel, backward_kernel) or (chunks > 1 and kernel is not inference_kernel)
    return Plan(
        kernel=kernel,
        sizes=(
            geometry.channels,
            geometry.outer_size,
            *geometry.outer[1:],
            geometry.inner,
            blocks,
            chunks,
            config.tiles_per_chunk,
            config.window,
            *steps(geometry, residual_last=True),
        ),
        launches=tuple(((programs,), keywords | phase) for phase in phases),
        partials=(2 * geometry.channels * (padded + 1),) if exchanges else (),
        counted=SPACING.value * (2 + blocks) + blocks * padded if exchanges or always_counts else 0,
        sign_bytes=sign_bytes(geometry, config, itemsize),
    )
