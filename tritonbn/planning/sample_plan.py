"""The passes of sample norm, from tensors to launches: kernels for rows that a tile holds, and for longer ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..choice.sample_configs import MERGE_WARPS, MERGED_COLUMNS, MERGED_RUNS, SampleConfig
from ..configs import Work
from ..geometry import Geometry, power_of_two
from ..kernels import (
    sample_columns_kernel,
    sample_gradients_kernel,
    sample_long_forward_kernel,
    sample_row_sums_kernel,
    sample_short_forward_kernel,
)
from ..launching.launch import Plan, Strides, dense, steps, tile_keywords, walkable_beside
from . import scratch
from .sample_case import SampleCase


def forward(
    case: SampleCase, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, keeps_statistics: bool
) -> tuple[Tensor, Tensor | None]:
    """y like x, and if a backward pass may follow the statistics (2, rows): mean and sigma, in the order of y."""
    y, statistics = torch.empty_like(x), case.statistics() if keeps_statistics else None
    if not case.dense:
        weight, bias = dense(weight), dense(bias)

    def launch(plan: Plan) -> None:
        if plan.kernel is sample_long_forward_kernel:
            plan.run(case.place, x, y, weight, bias, statistics, plan.workspace(x), eps)
        else:
            plan.run(case.place, x, y, weight, bias, statistics, eps)

    case.run(Forward(keeps_statistics), launch)
    return y, statistics


def backward(
    case: SampleCase,
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
    dy, weight = walkable_beside(x, case.axis, dy), dense(weight)

    def launch(plan: BackwardPlan) -> None:  # perhaps again after a part of it
        row_sums, column_sums = None, None
        if plan.row_sums is not None:
            row_sums = plan.row_sums.workspace(x)
            plan.row_sums.run(case.place, x, dy, weight, statistics, row_sums, eps)
        if plan.columns is not None:
            column_sums = plan.gradients.workspace(x)
        plan.gradients.run(case.place, x, dy, dx, weight, statistics, row_sums, column_sums, eps)
        if plan.columns is not None:
            plan.columns.run(case.place, column_sums, dweight, dbias)

    case.run(Backward(dy.stride(), dx is not None, dweight is not None, dbias is not None), launch)


class Forward(NamedTuple):
    """A forward pass, with statistics for a backward pass or without."""

    keeps_statistics: bool

    def work(self, case: SampleCase) -> Work:
        """What a config is chosen for."""
        return case.work("sample_forward", case.x, case.like)

    def plan(self, case: SampleCase, work: Work, config: SampleConfig) -> Plan:
        """One launch, or two where several programs share a row."""
        geometry, keywords = work.geometry, tile_keywords(work.geometry, config, case.dtype)
        chunks, runs = config.chunks(geometry), config.runs(geometry)
        if config.strategy == "short":
            sizes = (*row_sizes(geometry), config.run_tiles, *steps(geometry))
            return Plan(sample_short_forward_kernel, sizes, (((runs,), keywords),), config=config)
        keywords["BLOCK_K"] = power_of_two(chunks)
        phases = ("both",) if chunks == 1 else ("statistics", "normalize")
        return Plan(
            sample_long_forward_kernel,
            (*row_sizes(geometry), chunks, config.chunk_tiles, config.run_tiles, *steps(geometry)),
            tuple(((runs * chunks,), keywords | {"PHASE": phase}) for phase in phases),
            partials=() if chunks == 1 else (chunks, 2, geometry.values),
            config=config,
        )

    def trial(self, case: SampleCase) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, weight, bias = scratch.like(case, case.x), *ones(case)

        def run(plan: Plan) -> None:
            forward(case.fixed(plan), x, weight, bias, 1e-3, self.keeps_statistics)

        return run


@dataclass(frozen=True)
class BackwardPlan:
    """What follows each other: the sums of long rows, the gradients, and the columns' sums over all runs of rows."""

    row_sums: Plan | None
    gradients: Plan
    columns: Plan | None
    waits: ClassVar[bool] = False
    """No program waits for another."""


class Backward(NamedTuple):
    """A backward pass for a dy that lies so, and for those gradients that are wanted."""

    dy: Strides
    dx: bool
    dweight: bool
    dbias: bool

    def work(self, case: SampleCase) -> Work:
        """What a config is chosen for."""
        return case.work("sample_backward", case.x, self.dy, case.like)

    def plan(self, case: SampleCase, work: Work, config: SampleConfig) -> BackwardPlan:
        """Up to three launches."""
        geometry, keywords = work.geometry, tile_keywords(work.geometry, config, case.dtype)
        chunks, runs = config.chunks(geometry), config.runs(geometry)
        row_sums = Plan(
            sample_row_sums_kernel,
            (*row_sizes(geometry), chunks, config.chunk_tiles, config.run_tiles, *steps(geometry)),
            (((runs * chunks,), keywords),),
            partials=(chunks, 2, geometry.values),
            config=config,
        )
        gradients = Plan(
            sample_gradients_kernel,
            (*row_sizes(geometry), chunks, config.run_tiles, *steps(geometry)),
            (((runs * config.column_tiles(geometry),), keywords | {"BLOCK_K": power_of_two(chunks)}),),
            partials=(runs, 2, geometry.channels),
            config=config,
        )
        return BackwardPlan(
            row_sums if config.strategy == "long" and self.dx else None,
            gradients,
            columns_plan(geometry, config, keywords["ACCUMULATOR"]) if self.dweight or self.dbias else None,
        )

    def trial(self, case: SampleCase) -> Callable[[BackwardPlan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, dy, weight = scratch.like(case, case.x), scratch.like(case, self.dy), ones(case)[0]
        statistics = case.statistics().fill_(1)
        dx = scratch.like(case, case.like) if self.dx else None
        dweight = case.vector(case.weight) if self.dweight else None
        dbias = case.vector(case.bias) if self.dbias else None

        def run(plan: BackwardPlan) -> None:
            backward(case.fixed(plan), x, dy, weight, statistics, 1e-3, dx, dweight, dbias)

        return run


def columns_plan(geometry: Geometry, config: SampleConfig, accumulator: Any) -> Plan:
    """One launch that adds up what the runs left of every column."""
    keywords = {
        "ACCUMULATOR": accumulator,
        "BLOCK_C": MERGED_COLUMNS,
        "BLOCK_K": min(MERGED_RUNS, power_of_two(config.runs(geometry))),
        "num_warps": MERGE_WARPS,
        "enable_fp_fusion": True,
    }
    grid = (ceil(geometry.channels / MERGED_COLUMNS),)
    return Plan(sample_columns_kernel, (geometry.channels, config.runs(geometry)), ((grid, keywords),), config=config)


def row_sizes(geometry: Geometry) -> tuple[int, ...]:
    """The sizes with which every kernel of rows begins."""
    return (geometry.channels, geometry.outer_size, *geometry.outer[1:], geometry.inner)


def ones(case: SampleCase) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias, as far as the case has them."""
    weight, bias = case.vector(case.weight), case.vector(case.bias)
    return weight if weight is None else weight.fill_(1), bias if bias is None else bias.fill_(1)
