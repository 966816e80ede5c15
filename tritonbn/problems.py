"""A problem: an input and what is done with it, as one names it; and the pass and the configs that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from . import functional, plan
from .choice import selection
from .choice.cost import floor
from .choice.timed import Trial
from .configs import Work
from .devices import Device
from .launching import counters
from .measured.timings import Choice, choice
from .planning import sample_plan
from .planning.case import SIGNED, Case
from .planning.plans import Pass
from .planning.sample_case import SampleCase
from .suites import Layout

EPS, MOMENTUM, SLOPE = 1e-5, 0.1, 0.01


@dataclass(frozen=True)
class Problem:
    """What configs are compared for."""

    shape: tuple[int, ...]
    """Of the input, channels second; sample norm takes each sample over the last axis."""
    mode: str = "forward"
    """One of MODES."""
    dtype: torch.dtype = torch.bfloat16
    layout: Layout = "channels_first"
    activation: functional.Activation | None = None
    residual: bool = False
    name: str = ""
    """Of the layer that has this input."""

    def input(self) -> Tensor:
        """A tensor that lies so, without memory."""
        if self.layout == "channels_first":
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        batch, channels, *spatial = self.shape
        return torch.empty((batch, *spatial, channels), dtype=self.dtype, device="meta").movedim(-1, 1)

    @property
    def keeps_signs(self) -> bool:
        """Whether the forward pass leaves the backward pass a bit for each element."""
        return self.residual and self.activation in SIGNED


Call = tuple[Case | SampleCase, Pass]
"""A case, and a pass of it."""


def batch_norm(problem: Problem, place: torch.device, training: bool) -> Case:
    """The case of a call as torch.nn's modules make it, with vectors in float32; what batch_norm raises otherwise."""
    x = problem.input()
    mean, var, weight, bias = torch.empty((4, x.shape[1] if x.dim() > 1 else 0), device="meta")
    given = functional.Arguments(
        input=x,
        running_mean=mean,
        running_var=var,
        weight=weight,
        bias=bias,
        training=training,
        momentum=MOMENTUM,
        eps=EPS,
        axis=1,
        correction=1,
        residual=x if problem.residual else None,
        activation=problem.activation,
        negative_slope=SLOPE,
        num_batches_tracked=torch.empty((), dtype=torch.int64, device="meta"),
    )
    functional.check(given)
    return replace(functional.case_of(given), place=place)


def forward(problem: Problem, place: torch.device) -> Call:
    """The forward pass of a training step."""
    case = batch_norm(problem, place, training=True)
    return case, plan.Forward(case.x if problem.residual else None, problem.keeps_signs)


def inference(problem: Problem, place: torch.device) -> Call:
    """Evaluation, without gradients."""
    case = batch_norm(problem, place, training=False)
    return case, plan.Inference(case.x if problem.residual else None, keeps_statistics=False, keeps_signs=False)


def backward(problem: Problem, place: torch.device) -> Call:
    """The backward pass of a training step: all gradients."""
    case = batch_norm(problem, place, training=True)
    return case, plan.Backward(
        dy=case.like,
        residual=case.x if problem.residual and problem.activation == "silu" else None,
        signs=problem.keeps_signs,
        dx=True,
        dresidual=problem.residual and problem.activation is not None,
        dweight=True,
        dbias=True,
    )


def sample_norm(problem: Problem, place: torch.device) -> SampleCase:
    """The case of a call with vectors in float32; what sample_norm raises otherwise."""
    if problem.activation is not None or problem.residual:
        raise ValueError("sample_norm: expected neither an activation nor a residual")
    x = problem.input()
    weight, bias = torch.empty((2, x.shape[-1]), device="meta")
    functional.check_sample(x, weight, bias, EPS)
    return replace(functional.sample_case_of(x, weight, bias), place=place)


def sample_forward(problem: Problem, place: torch.device) -> Call:
    """Sample norm's forward pass of a training step."""
    return sample_norm(problem, place), sample_plan.Forward(keeps_statistics=True)


def sample_backward(problem: Problem, place: torch.device) -> Call:
    """Sample norm's backward pass: all gradients."""
    case = sample_norm(problem, place)
    return case, sample_plan.Backward(case.like, dx=True, dweight=True, dbias=True)


MODES: dict[str, Callable[[Problem, torch.device], Call]] = {
    "forward": forward,
    "backward": backward,
    "inference": inference,
    "sample_forward": sample_forward,
    "sample_backward": sample_backward,
}
"""What a problem's mode may be, and what calls come of it."""

USUAL = ("forward", "backward", "inference")
"""The passes of batch norm."""


class Task:
    """A problem on a device: the pass, and every config that may run."""

    def __init__(self, problem: Problem, place: torch.device) -> None:
        """For tensors on `place`, planned for the current device.

        Raises what a call with such an input would, and ValueError for another mode or layout.
        """
        for what, given, known in (("mode", problem.mode, MODES), ("layout", problem.layout, get_args(Layout))):
            if given not in known:
                raise ValueError(f"expected a {what} of {', '.join(known)}, got {given!r}")
        self.problem = problem
        self.case, self.wanted = MODES[problem.mode](problem, place)
        self.work: Work = self.wanted.work(self.case)

    @property
    def device(self) -> Device:
        """The GPU that is planned for."""
        return self.case.device

    @property
    def floor(self) -> float:
        """Seconds in which the memory moves every tensor once."""
        return floor(self.work, self.device)

    @cached_property
    def configs(self) -> dict[Choice, Any]:
        """Every config worth considering, by its choice, the one of least modelled time first."""
        found = selection.rules_of(self.work).space(self.work, self.device, counters.SHARE)
        return {choice(config): config for config in sorted(found, key=self.modelled)}

    def modelled(self, config: Any, registers: int | None = None, spills: int = 0) -> float:
        """Seconds that the config should take; registers and spills as the compiler reports them, if known."""
        return selection.rules_of(self.work).modelled_time(self.work, config, self.device, registers, spills)

    def trial(self) -> Trial:
        """What runs the pass once, cut by a config, on tensors of its own, which live as long as it does."""
        return self.case.trial(self.work, self.wanted)
