"""The passes of a batch that several processes share: two launches each way, and room for what is exchanged between.

moments and normalize are a training forward, sums and gradients its backward; `arrived` is called when all is ready for
the second launch but what the other processes send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configs import Config, Work
from ..kernels import backward_kernel, forward_kernel
from ..launching.launch import Plan, Strides, dense
from ..plan import State, backward_scratch, momentum_arguments, walkable_dy, work_of, write_back
from ..planning import scratch
from ..planning.case import Case
from ..planning.cutting import cut_keywords, cut_plan

Arrived = Callable[[], None]


def moments(case: Case, x: Tensor) -> Tensor:
    """This process's moments (3 C + 1), as kernels/ranks.py has them."""

    def launch(plan: Plan) -> Tensor:
        partials, counts = plan.exchange(x)
        plan.run(
            case.place, x, None, None, None, None, None, None, None, None, None, None, partials, counts,
            0.0, case.eps, case.slope,
        )  # fmt: skip
        return partials[-size_of_moments(case) :]

    return case.run(Moments(), launch)


def normalize(
    case: Case,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    state: State,
    keeps_signs: bool,
    gathered: Tensor,
    arrived: Arrived,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What plan.training_forward returns, by the moments (ranks, 3 C + 1) of all processes."""
    y, statistics = torch.empty_like(x), torch.empty_like(case.statistics)
    *running, num_batches_tracked, momentum = state
    if residual is not None:
        residual = case.beside(x, residual, case.like)
    weight, bias, mean, var = map(dense, (weight, bias, *running))
    average_factor, number = momentum_arguments(momentum)

    def launch(plan: Plan) -> Tensor | None:
        signs = plan.signs(x) if keeps_signs else None
        counts = plan.exchange(x)[1] if plan.counted else None
        arrived()
        plan.run(
            case.place, x, y, residual, weight, bias, mean, var, average_factor, num_batches_tracked,
            statistics, signs, gathered, counts, number, case.eps, case.slope,
        )  # fmt: skip
        return signs

    lies = None if residual is None else residual.stride()
    signs = case.run(Normalize(gathered.shape[0], lies, keeps_signs), launch)
    write_back(tuple(running), (mean, var))
    return y, statistics, signs


def sums(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> Tensor:
    """This process's sums (2 C + 1), as kernels/ranks.py has them; its own part of those gradients that are given."""

    def launch(plan: Plan) -> Tensor:
        partials, counts = plan.exchange(x)
        plan.run(
            case.place, x, dy, None, dresidual, residual, signs, weight, bias, statistics, dweight, dbias,
            partials, counts, case.slope,
        )  # fmt: skip
        return partials[-size_of_sums(case) :]

    lies = None if residual is None else residual.stride()
    given = signs is not None, dresidual is not None, dweight is not None, dbias is not None
    return case.run(Sums(dy.stride(), lies, *given), launch)


def gradients(
    case: Case,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    signs: Tensor | None,
    added: Tensor,
    arrived: Arrived,
) -> Tensor:
    """dx like x, by the sums (2 C + 1) of all processes."""
    dx = torch.empty_like(x)

    def launch(plan: Plan) -> None:
        arrived()
        plan.run(
            case.place, x, dy, dx, None, residual, signs, weight, bias, statistics, None, None,
            added, None, case.slope,
        )  # fmt: skip

    lies = None if residual is None else residual.stride()
    case.run(Gradients(dy.stride(), lies, signs is not None), launch)
    return dx


def upstream(
    case: Case, x: Tensor, dy: Tensor, residual: Tensor | None, signs: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """dy and residual as sums and gradients can walk them beside x."""
    dy = walkable_dy(case, x, dy, signs)
    return dy, case.beside(x, residual, dy.stride())


def size_of_moments(case: Case) -> int:
    """How many numbers a process sends in the forward pass."""
    return 3 * case.channels + 1


def size_of_sums(case: Case) -> int:
    """How many numbers a process sends in the backward pass."""
    return 2 * case.channels + 1


class Moments(NamedTuple):
    """The first half of a training forward pass."""

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        return work_of(case, "moments", None, case.x, case.x)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launch, cut so."""
        keywords = forward_keywords(case, work, config) | {"RANKS": 1}
        phases = [{"PHASE": "statistics"}]
        return cut_plan(forward_kernel, case, work, config, keywords, phases, sends=size_of_moments(case))

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x = scratch.like(case, case.x)

        def run(plan: Plan) -> None:
            moments(case.fixed(plan), x)

        return run


class Normalize(NamedTuple):
    """The second half."""

    ranks: int
    residual: Strides | None
    keeps_signs: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        return work_of(case, "normalize", self.residual, case.x, case.like, writes_signs=self.keeps_signs)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launch, cut so."""
        keywords = forward_keywords(case, work, config) | {"RANKS": self.ranks}
        phases = [{"PHASE": "normalize"}]
        counts = case.cumulative
        return cut_plan(forward_kernel, case, work, config, keywords, phases, always_counts=counts)

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, residual = scratch.like(case, case.x), scratch.like(case, self.residual)
        mean, var, weight, bias, counter = scratch.vectors(case)
        state = mean, var, counter, None if case.cumulative else 0.1
        gathered = torch.ones((self.ranks, size_of_moments(case)), dtype=case.statistics.dtype, device=case.place)

        def run(plan: Plan) -> None:
            normalize(case.fixed(plan), x, weight, bias, residual, state, self.keeps_signs, gathered, nothing)

        return run


class Sums(NamedTuple):
    """The first half of a backward pass."""

    dy: Strides
    residual: Strides | None
    signs: bool
    dresidual: bool
    dweight: bool
    dbias: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        strides = case.x, self.dy, case.like
        return work_of(case, "sums", self.residual, *strides, reads_signs=self.signs, also_written=self.dresidual)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launch, cut so."""
        keywords = backward_keywords(case, work, config)
        return cut_plan(backward_kernel, case, work, config, keywords, [{"PHASE": "sums"}], sends=size_of_sums(case))

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, dy, statistics, weight, bias = backward_scratch(case, self.dy, self.signs)
        residual = scratch.like(case, self.residual)
        dresidual = scratch.like(case, case.like if self.dresidual else None)
        dweight = torch.empty_like(weight) if self.dweight else None
        dbias = case.empty_vector(case.bias_dtype) if self.dbias else None

        def run(plan: Plan) -> None:
            signs = plan.signs(x) if self.signs else None
            given = weight, bias, statistics, residual, signs
            sums(case.fixed(plan), x, dy, *given, dresidual, dweight, dbias)

        return run


class Gradients(NamedTuple):
    """The second half."""

    dy: Strides
    residual: Strides | None
    signs: bool

    def work(self, case: Case) -> Work:
        """What a config is chosen for."""
        return work_of(case, "gradients", self.residual, case.x, self.dy, case.like, reads_signs=self.signs)

    def plan(self, case: Case, work: Work, config: Config) -> Plan:
        """The launch, cut so."""
        keywords = backward_keywords(case, work, config)
        return cut_plan(backward_kernel, case, work, config, keywords, [{"PHASE": "gradients"}])

    def trial(self, case: Case) -> Callable[[Plan], None]:
        """What runs a plan once, on tensors that nobody else holds."""
        x, dy, statistics, weight, bias = backward_scratch(case, self.dy, self.signs)
        residual, added = scratch.like(case, self.residual), statistics.new_ones(size_of_sums(case))

        def run(plan: Plan) -> None:
            signs = plan.signs(x) if self.signs else None
            gradients(case.fixed(plan), x, dy, weight, bias, statistics, residual, signs, added, nothing)

        return run


def forward_keywords(case: Case, work: Work, config: Config) -> dict[str, Any]:
    """The constexprs and launch options of both halves."""
    keywords = cut_keywords(work, config, case)
    return keywords | {"CORRECTION": case.correction, "CUMULATIVE": case.cumulative, "STAGES": config.stages}


def backward_keywords(case: Case, work: Work, config: Config) -> dict[str, Any]:
    """The constexprs and launch options of both halves."""
    return cut_keywords(work, config, case) | {"TRAINING": True, "RANKS": 1, "STAGES": config.stages}


def nothing() -> None:
    """Nobody else sends anything."""
