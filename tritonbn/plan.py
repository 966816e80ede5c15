"""Batch norm from tensors to launches: which kernel, in which phases, on which grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import counters, devices
from .configs import Config, Epilogue, Mode, Work, fitted, power_of_two, sign_group
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
from .launch import Plan, dense, statistics_dtype, steps, tile_keywords, walkable_beside
from .space import choose

Strides = tuple[int, ...]

State = tuple[Tensor | None, Tensor | None, Tensor | None, float | Tensor | None]
"""running_mean and running_var (C,), num_batches_tracked (), and the batch's weight."""


@dataclass(eq=False)
class Case:
    """All calls that differ in nothing but the contents of tensors: what they have in common, and their plans."""

    device: Device
    place: torch.device
    """Where the tensors are."""
    shape: torch.Size
    dtype: torch.dtype
    x: Strides
    """How x lies."""
    like: Strides
    """How y, dx and dresidual lie."""
    axis: int
    training: bool
    correction: int
    cumulative: bool
    """Whether a batch weighs as much as each one before it."""
    counts_elsewhere: bool
    """Whether batches are counted on another device."""
    eps: float
    activation: str | None
    slope: float
    bias_dtype: torch.dtype | None
    dense: bool
    """Whether all vectors lie as the kernels read them."""
    plans: dict[Any, Plan] = field(default_factory=dict)

    def plan(self, kind: Pass, *key: Any) -> Plan:
        """The plan of this pass and key, made once for each share of the GPU in which programs may wait."""
        plan = self.plans.get((counters.SHARE, kind, key)) or self.plan_for(counters.SHARE, kind, key)
        return self.plan_for(counters.share(self.place), kind, key) if plan.waits else plan

    def plan_for(self, share: int, kind: Pass, key: tuple[Any, ...]) -> Plan:
        """The same for one share."""
        plan = self.plans.get((share, kind, key))
        if plan is None:
            work = kind.work(self, *key)
            config = fitted(choose(work, self.device, share), work.geometry, work.itemsize)
            plan = self.plans[share, kind, key] = kind.plan(self, work, config, *key)
        return plan

    def __post_init__(self) -> None:
        self.channels = self.shape[self.axis]
        one = torch.empty((), dtype=statistics_dtype(self.dtype), device=self.place)
        self.statistics = one.expand(2, self.channels)
        """Of the form of mean and invstd; what is like it has memory of its own."""

    def empty_vector(self, dtype: torch.dtype) -> Tensor:
        """Room for a number a channel."""
        return torch.empty_strided((self.channels,), (1,), dtype=dtype, device=self.place)

    def form(self, *strides: Strides) -> tuple[Any, ...]:
        """What forward and backward pass have to agree on for an element's sign to be found again."""
        return form(self.shape, self.axis, self.dtype.itemsize, self.x, *strides, self.like)

    def beside(self, x: Tensor, residual: Tensor | None, other: Strides) -> Tensor | None:
        """The residual itself, unless walking it too would change how x is cut into rows, or is not possible."""
        if residual is not None:
            residual = walkable_beside(x, self.axis, residual)
            if self.form(other, residual.stride()) != self.form(other):
                residual = torch.empty_like(x).copy_(residual)
        return residual


@lru_cache(maxsize=4096)
def form(shape: torch.Size, axis: int, itemsize: int, *strides: Strides) -> tuple[Any, ...]:
    """How rows of the fast axis lie, whatever the strides between them."""
    geometry = describe(shape, axis, *strides)
    return geometry.channels_last, geometry.inner, geometry.fold(itemsize)


def training_forward(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_signs: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y like x, statistics (2, C), mean and invstd, and if wanted the signs; running buffers are updated in place."""
    y, statistics = torch.empty_like(x), torch.empty_like(case.statistics)
    running_mean, running_var, num_batches_tracked, momentum = state
    lies = None
    if residual is not None:
        residual = case.beside(x, residual, case.like)
        lies = residual.stride()
    mean, var = running_mean, running_var
    if not case.dense:
        weight, bias, mean, var = map(dense, (weight, bias, mean, var))
    average_factor, number = None, momentum
    if momentum.__class__ is not float:
        average_factor, number = (
            (dense(momentum), 0.0) if isinstance(momentum, Tensor) else (None, float(momentum or 0))
        )
    plan = case.plan(Forward, lies, keeps_signs)
    signs = plan.signs(x) if keeps_signs else None
    partials, counts = plan.exchange(x) if plan.counted else (None, None)
    plan.run(
        case.place, x, y, residual, weight, bias, mean, var, average_factor, num_batches_tracked,
        statistics, signs, partials, counts, number, case.eps, case.slope,
    )  # fmt: skip
    if not case.dense:
        for original, updated in ((running_mean, mean), (running_var, var)):
            if original is not updated:
                original.copy_(updated)
    return y, statistics, signs


def inference(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_statistics: bool,
    keeps_signs: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y like x, and if a backward pass may follow a copy of the statistics (2, C), mean and invstd, and the signs."""
    y, statistics = torch.empty_like(x), torch.empty_like(case.statistics) if keeps_statistics else None
    lies = None
    if residual is not None:
        residual = case.beside(x, residual, case.like)
        lies = residual.stride()
    mean, var = state[:2]
    if not case.dense:
        weight, bias, mean, var = map(dense, (weight, bias, mean, var))
    plan = case.plan(Inference, lies, keeps_statistics, keeps_signs)
    signs = plan.signs(x) if keeps_signs else None
    plan.run(x.device, x, y, residual, weight, bias, mean, var, statistics, signs, case.eps, case.slope)
    return y, statistics, signs


def backward(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    dx: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Fill those of the gradients that are given; in training the statistics were those of x itself."""
    dy = walkable_beside(x, case.axis, dy)
    if signs is not None and case.form(dy.stride()) != case.form():
        dy = torch.empty_like(x).copy_(dy)
    lies = None
    if residual is not None:
        residual = case.beside(x, residual, dy.stride())
        lies = residual.stride()
    if not case.dense:
        weight, bias = dense(weight), dense(bias)
    given = signs is not None, dx is not None, dresidual is not None, dweight is not None, dbias is not None
    plan = case.plan(Backward, dy.stride(), lies, *given)
    partials, counts = plan.exchange(x) if plan.counted else (None, None)
    plan.run(
        case.place, x, dy, dx, dresidual, residual, signs, weight, bias, statistics, dweight, dbias,
        partials, counts, case.slope,
    )  # fmt: skip


SPLIT_FORWARD = [{"PHASE": "statistics"}, {"PHASE": "normalize"}]
SPLIT_BACKWARD = [{"PHASE": "sums"}, {"PHASE": "gradients"}]


class Forward:
    """A training forward pass, of a residual that lies so and with signs or without."""

    @staticmethod
    def work(case: Case, residual: Strides | None, keeps_signs: bool) -> Work:
        """What a config is chosen for."""
        return work_of(case, "forward", residual, case.x, case.like)

    @staticmethod
    def plan(case: Case, work: Work, config: Config, residual: Strides | None, keeps_signs: bool) -> Plan:
        """The launches, cut so."""
        keywords = cut_keywords(work, config, case)
        keywords |= {"CORRECTION": case.correction, "CUMULATIVE": case.cumulative}
        if config.strategy == "resident":
            keywords |= {"PACKED": packs(config, case), "AT_ONCE": config.at_once > 0}
            return cut_plan(resident_forward_kernel, work, config, keywords, [{}], always_counts=case.cumulative)
        keywords["STAGES"] = config.stages
        phases = [{"PHASE": "dataflow"}] if config.strategy == "dataflow" else SPLIT_FORWARD
        return cut_plan(forward_kernel, work, config, keywords, phases)


class Inference:
    """A forward pass with given statistics, in one launch."""

    @staticmethod
    def work(case: Case, residual: Strides | None, keeps_statistics: bool, keeps_signs: bool) -> Work:
        """What a config is chosen for."""
        return work_of(case, "inference", residual, case.x, case.like)

    @staticmethod
    def plan(
        case: Case, work: Work, config: Config, residual: Strides | None, keeps_statistics: bool, keeps_signs: bool
    ) -> Plan:
        """The launches, cut so."""
        keywords = cut_keywords(work, config, case)
        del keywords["BLOCK_K"]
        return cut_plan(inference_kernel, work, config, keywords, [{}])


class Backward:
    """A backward pass; if dx does not depend on the sums, one sweep without waiting does it all."""

    @staticmethod
    def work(
        case: Case,
        dy: Strides,
        residual: Strides | None,
        signs: bool,
        dx: bool,
        dresidual: bool,
        dweight: bool,
        dbias: bool,
    ) -> Work:
        """What a config is chosen for."""
        mode = "backward" if case.training and dx else "sums" if dweight or dbias else "inference"
        return work_of(case, mode, residual, case.x, dy, case.like)

    @staticmethod
    def plan(case: Case, work: Work, config: Config, *_: Any) -> Plan:
        """The launches, cut so."""
        keywords = cut_keywords(work, config, case)
        strategy = config.strategy if work.mode == "backward" else "sweep"
        if strategy == "resident":
            keywords |= {"PACKED": packs(config, case), "AT_ONCE": config.at_once > 0}
            return cut_plan(resident_backward_kernel, work, config, keywords, [{}])
        phases = {"sweep": SPLIT_BACKWARD[:1], "dataflow": [{"PHASE": "dataflow"}], "split": SPLIT_BACKWARD}[strategy]
        keywords |= {"TRAINING": case.training, "STAGES": config.stages}
        return cut_plan(backward_kernel, work, config, keywords, phases, exchanges=work.mode != "inference")


Pass = type[Forward] | type[Inference] | type[Backward]


def work_of(case: Case, mode: Mode, residual: Strides | None, *strides: Strides) -> Work:
    """Tensors walked in the order of the last, with the residual (or the last) in front."""
    geometry = describe(case.shape, case.axis, strides[-1] if residual is None else residual, *strides)
    return Work(mode, geometry, case.dtype, epilogue_of(mode, case.activation, residual is not None))


def epilogue_of(mode: Mode, activation: str | None, has_residual: bool) -> Epilogue:
    """How much a launch has to do beside the affine map, or beside its gradient."""
    if activation == "silu":
        return "value"
    beside = has_residual if mode in ("forward", "inference") else activation is not None
    return "sign" if beside else "none"


def cut_keywords(work: Work, config: Config, case: Case) -> dict[str, Any]:
    """The constexprs and launch options that follow from how the work is cut."""
    geometry, itemsize = work.geometry, work.itemsize
    keywords = tile_keywords(geometry, config, case.dtype)
    fold = geometry.fold(itemsize)
    keywords |= {"FOLD": 0, "RUN": 0, "GROUP": sign_group(geometry, itemsize), "ACTIVATION": case.activation}
    keywords["BLOCK_K"] = power_of_two(config.chunks(geometry))
    if fold:
        keywords |= {"FOLD": fold.lanes, "RUN": fold.run, "ALIGN": fold.alignment, "MASK_I": fold.run != config.block_i}
        if geometry.channels_last:
            keywords |= {"MASK_C": False, "MASK_O": geometry.values % (fold.lanes * config.block_o) != 0}
    if config.registers and not devices.INTERPRETED:
        keywords |= register_cap(config.registers, case.device)
    if config.at_once and not devices.INTERPRETED:
        keywords["launch_cooperative_grid"] = True
    return keywords


def register_cap(registers: int, device: Device) -> dict[str, int]:
    """The launch option that keeps a thread to so many registers; AMD's compilers are told how many waves must fit."""
    if device.backend == "cuda":
        return {"maxnreg": registers}
    return {"waves_per_eu": max(1, device.registers // 4 // device.warp_size // registers)}


def sign_bytes(geometry: Geometry, config: Config, itemsize: int) -> int:
    """Bytes that the signs of all elements take: rows of the fast axis, each beginning with a byte of its own."""
    bits = sign_group(geometry, itemsize)
    if fold := geometry.fold(itemsize):
        blocks = 1 if geometry.channels_last else config.channel_blocks(geometry)
        return blocks * -(-geometry.values // fold.lanes) * -(-fold.run // bits)
    fast = geometry.channels if geometry.channels_last else geometry.inner
    return geometry.channels * geometry.values // fast * -(-fast // bits)


def packs(config: Config, case: Case) -> bool:
    """Whether a resident tile is kept packed: an instruction of CUDA's, for values of 16 bits."""
    return config.packed and case.dtype.itemsize == 2 and case.device.backend == "cuda" and not devices.INTERPRETED


def cut_plan(
    kernel: Any,
    work: Work,
    config: Config,
    keywords: dict[str, Any],
    phases: list[dict[str, str]],
    exchanges: bool = True,
    always_counts: bool = False,
) -> Plan:
    """One launch for each phase, over all chunks of all blocks."""
    geometry = work.geometry
    blocks, chunks = config.channel_blocks(geometry), config.chunks(geometry)
    padded = power_of_two(chunks)
    programs = blocks * chunks
    if phases[0].get("PHASE") == "dataflow":
        programs = 2 * chunks * config.window * -(-blocks // config.window)
    if config.at_once:
        programs = config.at_once
    resident = kernel in (resident_forward_kernel, resident_backward_kernel)
    numbers = 3 * padded if kernel in (forward_kernel, resident_forward_kernel) else 2 * (padded + 1)
    exchanges = exchanges and kernel is not inference_kernel and not (resident and chunks == 1)
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
        partials=(geometry.channels * numbers,) if exchanges else (),
        counted=SPACING.value * (2 + blocks) + blocks * padded if exchanges or always_counts else 0,
        waits=resident and chunks > 1 and not config.at_once,
        sign_bytes=sign_bytes(geometry, config, work.itemsize),
    )
