"""The passes of batch norm, from tensors to launches: forward, inference and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .configs import WRITTEN, Config, Epilogue, Mode, Work
from .geometry import MOST_AXES, describe
from .kernels import (
    backward_kernel,
    forward_kernel,
    inference_kernel,
    resident_backward_kernel,
    resident_forward_kernel,
)
from .launching.launch import Plan, Strides, UnfitError, dense, walkable_beside
from .planning import scratch
from .planning.case import Case
from .planning.cutting import cut_keywords, cut_plan, deals, resident_keywords

State = tuple[Tensor | None, Tensor | None, Tensor | None, float | Tensor | None]
"""running_mean and running_var (C,), num_batches_tracked (one element), momentum (None: the cumulative average)."""


def training_forward(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_signs: bool,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y like x, statistics (2, C), mean and invstd, and if wanted the signs; running buffers are updated in place.

    Into the y that is given, if one is: of x's shape, and lying as the case says.
    """
    y, statistics = torch.empty_like(x) if y is None else y, torch.empty_like(case.statistics)
    running_mean, running_var, num_batches_tracked, momentum = state
    lies = None
    if residual is not None:
        residual = case.beside(x, residual, case.like)
        lies = residual.stride()
    mean, var = running_mean, running_var
    if not case.dense:
        weight, bias, mean, var = map(dense, (weight, bias, mean, var))
    average_factor, number = momentum_arguments(momentum)
    plan = case.plan(Forward, lies, keeps_signs)
    signs = plan.signs(x) if keeps_signs else None
    partials, counts = plan.exchange(x) if plan.counted else (None, None)
    try:
        plan.run(
            case.place, x, y, residual, weight, bias, mean, var, average_factor, num_batches_tracked,
            statistics, signs, partials, counts, number, case.eps, case.slope,
        )  # fmt: skip
    except UnfitError as raised:
        failure = raised
    else:
        if not case.dense:
            write_back((running_mean, running_var), (mean, var))
        return y, statistics, signs
    with case.without(failure, Forward(lies, keeps_signs)):
        return training_forward(case, x, weight, bias, residual, state, keeps_signs, y)


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
    try:
        plan.run(case.place, x, y, residual, weight, bias, mean, var, statistics, signs, case.eps, case.slope)
        return y, statistics, signs
    except UnfitError as raised:
        failure = raised
    with case.without(failure, Inference(lies, keeps_statistics, keeps_signs)):
        return inference(case, x, weight, bias, residual, state, keeps_statistics, keeps_signs)


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
    dy, lies = walkable_dy(case, x, dy, signs), None
    if residual is not None:
        residual = case.beside(x, residual, dy.stride())
        lies = residual.stride()
    if not case.dense:
        weight, bias = dense(weight), dense(bias)
    wanted = (
        dy.stride(), lies,
        signs is not None, dx is not None, dresidual is not None, dweight is not None, dbias is not None,
    )  # fmt: skip
    plan = case.plan(Backward, *wanted)
    partials, counts = plan.exchange(x) if plan.counted else (None, None)
    try:
        plan.run(
            case.place, x, dy, dx, dresidual, residual, signs, weight, bias, statistics, dweight, dbias,
            partials, counts, case.slope,
        )  # fmt: skip
        return
    except UnfitError as raised:
        failure = raised
    with case.without(failure, Backward(*wanted)):
        backward(case, x, dy, weight, bias, statistics, residual, signs, dx, dresidual, dweight, dbias)


def momentum_arguments(momentum: float | Tensor | None) -> tuple[Tensor | None, float]:
    """average_factor and momentum as kernels take them."""
    if momentum.__class__ is float:
        return None, momentum
    return (dense(momentum), 0.0) if isinstance(momentum, Tensor) else (None, float(momentum or 0))


def write_back(originals: tuple[Tensor | None, ...], updated: tuple[Tensor | None, ...]) -> None:
    """To vectors that kernels cannot walk, from the copies that they had."""
    for original, copy in zip(originals, updated, strict=True):
        if original is not copy:
            original.copy_(copy)


def walkable_dy(case: Case, x: Tensor, dy: Tensor, signs: Tensor | None) -> Tensor:
    """dy as kernels can walk it beside x, and beside the signs."""
    if dy.is_neg() or len(case.shape) > MOST_AXES:
        dy = walkable_beside(x, case.axis, dy)
    if signs is not None and case.form(dy.stride()) != case.form():
        dy = torch.empty_like(x).copy_(dy)
    return dy


SPLIT_FORWARD = [{"PHASE": "statistics"}, {"PHASE": "normalize"}]
SPLIT_BACKWARD = [{"PHASE": "sums"}, {"PHASE": "gradients"}]


class Forward(NamedTuple):
    """A training forward pass."""

    residual: Strides | None
    keeps_signs: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        return work_of(case, "forward", self.residual, case.x, case.like, writes_signs=self.keeps_signs)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launches, cut so."""
        keywords = cut_keywords(work, config, case, whole=config.strategy == "resident")
        keywords |= {"CORRECTION": case.correction, "CUMULATIVE": case.cumulative}
        if config.strategy == "resident":
            keywords |= resident_keywords(work, config, case)
            return cut_plan(resident_forward_kernel, case, work, config, keywords, [{}], always_counts=case.cumulative)
        keywords |= {"STAGES": config.stages, "RANKS": 0}
        phases = [{"PHASE": "dataflow"}] if config.strategy == "dataflow" else SPLIT_FORWARD
        return cut_plan(forward_kernel, case, work, config, keywords, phases)

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, beside = scratch.like(case, case.x), scratch.like(case, self.residual)
        mean, var, weight, bias, counter = scratch.vectors(case)
        state = mean, var, counter, None if case.cumulative else 0.1

        def run(plan: Plan) -> None:
            training_forward(case.fixed(plan), x, weight, bias, beside, state, self.keeps_signs)

        return run


class Inference(NamedTuple):
    """A forward pass with given statistics, in one launch."""

    residual: Strides | None
    keeps_statistics: bool
    keeps_signs: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        return work_of(case, "inference", self.residual, case.x, case.like, writes_signs=self.keeps_signs)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launches, cut so."""
        keywords = cut_keywords(work, config, case, whole=True)
        keywords["DEAL"] = deals(config, case)
        return cut_plan(inference_kernel, case, work, config, keywords, [{}])

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, beside = scratch.like(case, case.x), scratch.like(case, self.residual)
        mean, var, weight, bias, _ = scratch.vectors(case)
        state = mean, var, None, None

        def run(plan: Plan) -> None:
            inference(case.fixed(plan), x, weight, bias, beside, state, self.keeps_statistics, self.keeps_signs)

        return run


class Backward(NamedTuple):
    """A backward pass; if dx does not depend on the sums, one sweep without waiting does it all."""

    dy: Strides
    residual: Strides | None
    signs: bool
    dx: bool
    dresidual: bool
    dweight: bool
    dbias: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        adds = self.dweight or self.dbias
        mode = "backward" if case.training and self.dx else "sums" if adds else "elementwise"
        return work_of(
            case,
            mode,
            self.residual,
            case.x,
            self.dy,
            case.like,
            reads_signs=self.signs,
            reads_x=mode == "elementwise" and case.activation is not None and not self.signs,
            also_written=self.dx + self.dresidual - WRITTEN[mode],
        )

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launches, cut so."""
        strategy = config.strategy if work.mode == "backward" else "sweep"
        keywords = cut_keywords(work, config, case, whole=strategy == "resident")
        if strategy == "resident":
            keywords |= resident_keywords(work, config, case)
            return cut_plan(resident_backward_kernel, case, work, config, keywords, [{}])
        phases = {"sweep": SPLIT_BACKWARD[:1], "dataflow": [{"PHASE": "dataflow"}], "split": SPLIT_BACKWARD}[strategy]
        keywords |= {"TRAINING": case.training, "STAGES": config.stages, "RANKS": 0}
        return cut_plan(backward_kernel, case, work, config, keywords, phases)

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, dy, statistics, weight, bias = backward_scratch(case, self.dy, self.signs)
        residual = scratch.like(case, self.residual)
        dx, dresidual = (scratch.like(case, case.like if wanted else None) for wanted in (self.dx, self.dresidual))
        dweight = torch.empty_like(weight) if self.dweight else None
        dbias = case.empty_vector(case.bias_dtype) if self.dbias else None

        def run(plan: Plan) -> None:
            signs = plan.signs(x) if self.signs else None
            given = weight, bias, statistics, residual, signs
            backward(case.fixed(plan), x, dy, *given, dx, dresidual, dweight, dbias)

        return run


def backward_scratch(case: Case, dy: Strides, signs: bool) -> tuple[Tensor | None, ...]:
    """x, dy, statistics, weight and, where the activation's derivative takes it, bias."""
    _, _, weight, bias, _ = scratch.vectors(case)
    x, gradient = scratch.like(case, case.x), scratch.like(case, dy)
    return x, gradient, torch.ones_like(case.statistics), weight, None if signs or case.activation is None else bias


def work_of(
    case: Case,
    mode: Mode,
    residual: Strides | None,
    *strides: Strides,
    reads_signs: bool = False,
    writes_signs: bool = False,
    reads_x: bool = False,
    also_written: int = 0,
) -> Work:
    """Tensors walked in the order of the last, with the residual (or the last) in front; and what lies beside them."""
    geometry = describe(case.shape, case.axis, strides[-1] if residual is None else residual, *strides)
    sign = 1 / (8 * case.dtype.itemsize)
    return Work(
        mode,
        geometry,
        case.dtype,
        epilogue_of(mode, case.activation, residual is not None),
        read_beside=reads_x + (residual is not None) + reads_signs * sign,
        written_beside=also_written + writes_signs * sign,
    )


def epilogue_of(mode: Mode, activation: str | None, has_residual: bool) -> Epilogue:
    """How much a launch has to do beside the affine map, or beside its gradient."""
    if mode == "moments":
        return "none"
    if activation == "silu":
        return "value"
    beside = has_residual if mode in ("forward", "inference", "normalize") else activation is not None
    return "sign" if beside else "none"
