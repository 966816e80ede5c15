"""The plans of a kind of call: a config is chosen for each pass, its plan kept, and one that does not run replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from ..choice import selection
from ..choice.timed import Trial
from ..configs import Work
from ..devices import Device
from ..launching import counters
from ..launching.launch import UnfitError
from ..measured.timings import Choice, choice

Result = TypeVar("Result")


class Pass(Protocol):
    """One of those of plan.py, sample_plan.py and synced/plan.py, of a case.

    A NamedTuple of what plans depend on beside the case: which tensors are given, and how they lie.
    """

    def work(self, case: Any) -> Work:
        """What a config is chosen for."""

    def plan(self, case: Any, work: Work, config: Any) -> Any:
        """The launches, cut so."""

    def trial(self, case: Any) -> Callable[[Any], None]:
        """What runs a plan once, on tensors that nobody else holds."""


@dataclass(eq=False, kw_only=True)
class Plans:
    """What a case has beside what its calls have in common: device, tuning level and the plans of its passes."""

    device: Device
    place: torch.device
    """Where the tensors are."""
    level: selection.Setting = field(default_factory=selection.in_force)
    """How configs are chosen: for a backward pass, which runs in a thread of its own, as for its forward pass."""
    plans: dict[tuple[int, type, Pass], Any] = field(default_factory=dict)
    """By share of the GPU and pass; passes of two types may be equal tuples."""
    unfit: dict[tuple[type, Pass], set[Choice]] = field(default_factory=dict)
    """The configs of a pass that turned out not to run."""

    def run(self, wanted: Pass, launch: Callable[[Any], Result]) -> Result:
        """launch(plan) of a pass, by another plan if one turns out not to run; plan.py's passes spare these calls."""
        try:
            return launch(self.plan(type(wanted), *wanted))
        except UnfitError as raised:
            failure = raised
        with self.without(failure, wanted):  # not in the handler, where a chain of contexts would grow
            return self.run(wanted, launch)

    def fixed(self, plan: Any) -> Any:
        """The case with this plan for everything, and no other if it does not run."""
        found = copy.copy(self)
        found.plan, found.without = lambda *_: plan, reraise
        return found

    def plan(self, kind: type[Pass], *facts: Any) -> Any:
        """The plan of the pass kind(*facts), made once for each share of the GPU in which programs may wait."""
        plan = self.plans.get((counters.SHARE, kind, facts)) or self.plan_for(counters.SHARE, kind(*facts))
        if not plan.waits or (share := counters.share(self.place)) == counters.SHARE:
            return plan
        return self.plan_for(share, kind(*facts))

    def plan_for(self, share: int, wanted: Pass) -> Any:
        """The same for one share."""
        key = share, type(wanted), wanted
        plan = self.plans.get(key)
        if plan is None:
            work = wanted.work(self)
            unfit, trial = self.unfit.get((type(wanted), wanted), set()), self.trial(work, wanted)
            config = selection.choose(self.level, work, self.device, share, unfit, self.place, trial)
            plan = wanted.plan(self, work, config)
            if share != counters.CAPTURED_SHARE and (plan.waits or share == 0):  # in a capture another plan may run
                with suppress(selection.StrategyError):  # a captured call raises it then
                    plan = replace(plan, captured=self.plan_for(counters.CAPTURED_SHARE, wanted))
            if not selection.is_put_off(self.level, self.place):
                self.plans[key] = plan
        return plan

    def trial(self, work: Work, wanted: Pass) -> Trial:
        """What runs this pass once, cut by a config."""

        @cache
        def run() -> Callable[[Any], None]:
            return wanted.trial(self)

        @cache
        def plan(config: Any) -> Any:
            return wanted.plan(self, work, config)

        return lambda config: run()(plan(config))

    @contextmanager
    def without(self, failure: UnfitError, wanted: Pass) -> Iterator[None]:
        """Inside, the pass goes on without a config that does not run; remembered if another one does.

        Raises the failure's cause if there is nothing left to go on with.
        """
        work, config = wanted.work(self), failure.plan.config
        unfit = self.unfit.setdefault((type(wanted), wanted), set())
        last = selection.rules_of(work).conservative(work, self.device)
        if choice(config) == choice(last) and (choice(config) in unfit or len(unfit) >= selection.MOST_FAILURES):
            reraise(failure)
        unfit.add(choice(config))
        for made_for in list(self.plans):
            if made_for[1:] == (type(wanted), wanted):
                self.plans.pop(made_for, None)
        yield
        selection.remember(self.level, work, self.device, config, failure.__cause__)


def reraise(failure: UnfitError, _: Pass | None = None) -> NoReturn:
    """Raise its cause, whose traceback should not hold on to this call and all tensors that it holds."""
    try:
        raise failure.__cause__
    finally:
        del failure
