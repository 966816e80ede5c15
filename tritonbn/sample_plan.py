"""Sample norm from tensors to launches: kernels for rows that a tile holds, and for longer ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from .configs import power_of_two
from .geometry import Geometry, describe
from .kernels import (
    sample_columns_kernel,
    sample_gradients_kernel,
    sample_long_forward_kernel,
    sample_row_sums_kernel,
    sample_short_forward_kernel,
)
from .launch import Kinds, Plan, dense, dense_strides, kinds, statistics_dtype, steps, tile_keywords, walkable_beside
from .sample_configs import MERGED_COLUMNS, MERGED_RUNS, SampleConfig, sample_heuristic


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keep_statistics: bool
) -> tuple[Tensor, Tensor | None]:
    """y like x, and if a backward pass may follow the statistics (2, rows): mean and sigma, in the order of y."""
    y = torch.empty_like(x)
    statistics = None
    if keep_statistics:
        statistics = x.new_empty((2, x.numel() // x.shape[-1]), dtype=statistics_dtype(x.dtype))
    plan = cached_forward(x.dtype, kinds(weight, bias, statistics), x.shape, x.stride(), y.stride())
    arguments = [x, y, dense(weight), dense(bias), statistics]
    if plan.kernel is sample_long_forward_kernel:
        arguments.append(plan.workspace(x) if plan.partials else None)
    plan.run(x.device, *arguments, eps)
    return y, statistics


def backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    eps: float,
    dx: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Fill those of the gradients that are given."""
    dy, weight = walkable_beside(x, x.dim() - 1, dy), dense(weight)
    dx_strides = dense_strides(x) if dx is None else dx.stride()
    given = kinds(weight, dx, dweight, dbias)
    plan = cached_backward(x.dtype, given, x.shape, x.stride(), dy.stride(), dx_strides)
    sums_columns = dweight is not None or dbias is not None
    column_sums = plan.gradients.workspace(x) if sums_columns else None
    row_sums = None
    if plan.row_sums is not None and dx is not None:
        row_sums = plan.row_sums.workspace(x)
        plan.row_sums.run(x.device, x, dy, weight, statistics, row_sums, eps)
    plan.gradients.run(x.device, x, dy, dx, weight, statistics, row_sums, column_sums, eps)
    if sums_columns:
        plan.columns.run(x.device, column_sums, dweight, dbias)


@lru_cache(maxsize=4096)
def cached_forward(dtype: torch.dtype, given: Kinds, shape: torch.Size, *strides: tuple[int, ...]) -> Plan:
    """One launch, or two where several programs share a row."""
    geometry = describe(shape, len(shape) - 1, *strides)
    config = sample_heuristic(geometry, dtype.itemsize, "forward")
    keywords = tile_keywords(geometry, config, dtype)
    chunks, runs = config.chunks(geometry), config.runs(geometry)
    if config.holds_rows(geometry):
        sizes = (*row_sizes(geometry), config.run_tiles, *steps(geometry))
        return Plan(sample_short_forward_kernel, sizes, (((runs,), keywords),))
    keywords["BLOCK_K"] = power_of_two(chunks)
    phases = ("both",) if chunks == 1 else ("statistics", "normalize")
    return Plan(
        sample_long_forward_kernel,
        (*row_sizes(geometry), chunks, config.chunk_tiles, config.run_tiles, *steps(geometry)),
        tuple(((runs * chunks,), keywords | {"PHASE": phase}) for phase in phases),
        partials=() if chunks == 1 else (chunks, 2, geometry.values),
    )


@dataclass(frozen=True)
class BackwardPlan:
    """What follows each other: the sums of long rows, the gradients, and the columns' sums over all runs of rows."""

    row_sums: Plan | None
    gradients: Plan
    columns: Plan


@lru_cache(maxsize=4096)
def cached_backward(dtype: torch.dtype, given: Kinds, shape: torch.Size, *strides: tuple[int, ...]) -> BackwardPlan:
    """Up to three launches."""
    geometry = describe(shape, len(shape) - 1, *strides)
    config = sample_heuristic(geometry, dtype.itemsize, "backward")
    keywords = tile_keywords(geometry, config, dtype)
    chunks, runs = config.chunks(geometry), config.runs(geometry)
    row_sums = Plan(
        sample_row_sums_kernel,
        (*row_sizes(geometry), chunks, config.chunk_tiles, config.run_tiles, *steps(geometry)),
        (((runs * chunks,), keywords),),
        partials=(chunks, 2, geometry.values),
    )
    gradients = Plan(
        sample_gradients_kernel,
        (*row_sizes(geometry), chunks, config.run_tiles, *steps(geometry)),
        (((runs * config.column_tiles(geometry),), keywords | {"BLOCK_K": power_of_two(chunks)}),),
        partials=(runs, 2, geometry.channels),
    )
    columns = columns_plan(geometry, config, dtype)
    return BackwardPlan(None if config.holds_rows(geometry) else row_sums, gradients, columns)


def columns_plan(geometry: Geometry, config: SampleConfig, dtype: torch.dtype) -> Plan:
    """One launch that adds up what the runs left of every column."""
    keywords = {
        "ACCUMULATOR": tile_keywords(geometry, config, dtype)["ACCUMULATOR"],
        "BLOCK_C": MERGED_COLUMNS,
        "BLOCK_K": min(MERGED_RUNS, power_of_two(config.runs(geometry))),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    grid = (ceil(geometry.channels / MERGED_COLUMNS),)
    return Plan(sample_columns_kernel, (geometry.channels, config.runs(geometry)), ((grid, keywords),))


def row_sizes(geometry: Geometry) -> tuple[int, ...]:
    """The sizes with which every kernel of rows begins."""
    return (geometry.channels, geometry.outer_size, *geometry.outer[1:], geometry.inner)
