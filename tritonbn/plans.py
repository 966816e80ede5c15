"""The plans of a kind of call: a config is chosen for each pass, its plan kept, and one that does not run replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NoReturn, Protocol

import torch

from . import counters, selection
from .configs import Work
from .devices import Device
from .launch import UnfitError
from .timed import Trial
from .timings import Choice, choice


class Pass(Protocol):
    """One of those of plan.py, sample_plan.py and synced_plan.py, of a case.

    A key says which tensors are given, and how they lie.
    """

    def work(self, case: Any, *key: Any) -> Work:
        """What a config is chosen for."""

    def plan(self, case: Any, work: Work, config: Any, *key: Any) -> Any:
        """The launches, cut so."""

    def trial(self, case: Any, *key: Any) -> Callable[[Any], None]:
        """What runs a plan once, on tensors that nobody else holds."""


@dataclass(eq=False, kw_only=True)
class Plans:
    """What a case has beside what its calls have in common."""

    device: Device
    place: torch.device
    """Where the tensors are."""
    level: selection.Setting = field(default_factory=selection.in_force)
    """How configs are chosen: for a backward pass, which runs in a thread of its own, as for its forward pass."""
    plans: dict[Any, Any] = field(default_factory=dict)
    unfit: dict[Any, set[Choice]] = field(default_factory=dict)
    """The configs of a pass and key that turned out not to run."""

    def plan(self, kind: Pass, *key: Any) -> Any:
        """The plan of this pass and key, made once for each share of the GPU in which programs may wait."""
        plan = self.plans.get((counters.SHARE, kind, key)) or self.plan_for(counters.SHARE, kind, key)
        share = counters.share(self.place) if plan.waits else counters.SHARE
        return plan if share == counters.SHARE else self.plan_for(share, kind, key)

    def plan_for(self, share: int, kind: Pass, key: tuple[Any, ...]) -> Any:
        """The same for one share."""
        plan = self.plans.get((share, kind, key))
        if plan is None:
            work = kind.work(self, *key)
            unfit, trial = self.unfit.get((kind, key), set()), self.trial(work, kind, key)
            config = selection.choose(self.level, work, self.device, share, unfit, self.place, trial)
            plan = kind.plan(self, work, config, *key)
            if share != counters.CAPTURED_SHARE and (plan.waits or share == 0):  # nobody waits in place of such a plan
                with suppress(selection.StrategyError):  # a captured call raises it then
                    plan = replace(plan, captured=self.plan_for(counters.CAPTURED_SHARE, kind, key))
            if not selection.is_put_off(self.level, self.place):
                self.plans[share, kind, key] = plan
        return plan

    def trial(self, work: Work, kind: Pass, key: tuple[Any, ...]) -> Trial:
        """What runs this pass once, cut by a config."""

        @cache
        def run() -> Callable[[Any], None]:
            return kind.trial(self, *key)

        @cache
        def plan(config: Any) -> Any:
            return kind.plan(self, work, config, *key)

        return lambda config: run()(plan(config))

    @contextmanager
    def without(self, failure: UnfitError, kind: Pass, *key: Any) -> Iterator[None]:
        """Inside, the pass goes on without a config that does not run; remembered if another one does.

        Raises the failure's cause if there is nothing left to go on with.
        """
        work, config = kind.work(self, *key), failure.plan.config
        unfit, last = (
            self.unfit.setdefault((kind, key), set()),
            selection.rules_of(work).conservative(work, self.device),
        )
        if choice(config) == choice(last) and (choice(config) in unfit or len(unfit) >= selection.MOST_FAILURES):
            reraise(failure)
        unfit.add(choice(config))
        for made_for in list(self.plans):
            if made_for[1:] == (kind, key):
                self.plans.pop(made_for, None)
        yield
        selection.remember(self.level, work, self.device, config, failure.__cause__)


def reraise(failure: UnfitError, *_: Any) -> NoReturn:
    """Raise its cause, whose traceback should not hold on to this call and all tensors that it holds."""
    try:
        raise failure.__cause__
    finally:
        del failure
