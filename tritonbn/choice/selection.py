"""Which config runs: the model's choice, the fastest that was ever timed, or one that is timed now."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch

from ..configs import Strategy, Work
from ..devices import Device
from ..launching import counters
from ..launching.failures import DeviceLostError, require_device, wait_for
from ..measured import store
from ..measured.timings import Choice, Entry, Run, choice, failed, key_of, seconds_of, timing
from . import sample_space, space
from .blocks import Block, known
from .sample_configs import SampleStrategy
from .timed import Benchmark, Trial, describe_failure, one_at_a_time, time_best

Name = Literal["off", "model", "timed"]
NAMES: tuple[str, ...] = get_args(Name)
VARIABLE = "TRITONBN_TUNE"

STRATEGIES: tuple[str, ...] = (*get_args(Strategy), *get_args(SampleStrategy))
"""Of batch norm and of sample norm."""

MOST_FAILURES = 8
"""Configs that may fail before what runs anywhere is taken."""


class StrategyError(ValueError):
    """None of the strategies that tuning() allows can run."""


class Setting(NamedTuple):
    """How configs are chosen, what times them, and of which strategies they may be."""

    name: str
    do_bench: Benchmark | None = None
    strategies: tuple[str, ...] = STRATEGIES

    def among(self, configs: Iterable[Any]) -> list[Any]:
        """Those of the strategies."""
        return [config for config in configs if config.strategy in self.strategies]

    @property
    def is_limited(self) -> bool:
        """Whether some strategies are left out, of which nothing that is timed says anything."""
        return set(self.strategies) != set(STRATEGIES)

    def knows(self, entry: Entry, work: Work, configs: Iterable[Any]) -> bool:
        """Whether there are times to choose by."""
        seconds = entry.seconds(work.geometry)
        return any(choice(config) in seconds for config in configs) if self.is_limited else bool(seconds)

    def required(self, config: Any, work: Work) -> Any:
        """The config itself; StrategyError if it is of another strategy, which happens where none of these may run."""
        if config.strategy not in self.strategies:
            wanted = ", ".join(map(repr, self.strategies))
            raise StrategyError(f"tuning: expected a strategy that can run {work.mode} of such an input, got {wanted}")
        return config


_chosen: ContextVar[tuple[Setting, ...]] = ContextVar("tritonbn_tuning", default=())
"""Of the blocks that this thread or task is in, innermost last."""

setting = _chosen.get


class tuning(Block):
    """Choose how configs are chosen, inside a `with` block or a decorated function; local to a thread.

    - "off": by the model alone: the same choice, and the same bits, whatever was ever timed.
    - "model": the fastest of those that were timed on such a GPU, by `tritonbn tune` or before; else by the model.
    - "timed": the same, but what was never timed is timed first, the model's best eight, on tensors of its own:
      nothing that the caller holds is read or written, nor is torch's random state. Not while a graph is captured.

    Outside of it the environment variable TRITONBN_TUNE decides, "model" if unset. A call keeps the config that was
    chosen for the first one of its kind.

    Args:
        name: one of these.
        do_bench: called as do_bench(call, quantiles=(0.5, 0.2, 0.8)) to time a call in milliseconds, instead of the
            driver's own, which is triton.testing.do_bench: medians with a cold L2.
        strategies: the only ones that may run, to compare them: "resident", "dataflow", "split"; "short", "long" of
            sample norm. A call for which none of them may run raises ValueError.

    Raises ValueError for another name or strategy, or no strategy; TypeError for a do_bench that cannot be called or
    hashed, and where a coroutine or a generator is decorated.
    """

    chosen = _chosen

    def __init__(self, name: Name, do_bench: Benchmark | None = None, strategies: Sequence[str] = STRATEGIES) -> None:
        if do_bench is not None and not callable(do_bench):
            raise TypeError(f"tuning: expected do_bench to be a function, got {type(do_bench).__name__}")
        if isinstance(strategies, str) or not strategies or not set(strategies) <= set(STRATEGIES):
            raise ValueError(f"tuning: expected strategies from {', '.join(STRATEGIES)}, got {strategies!r}")
        self.value = Setting(known(name, NAMES, "tuning"), do_bench, tuple(strategies))
        hash(self.value)


def in_force() -> Setting:
    """The innermost block's, or the environment's."""
    blocks = setting()
    return blocks[-1] if blocks else Setting(known(os.environ.get(VARIABLE) or "model", NAMES, VARIABLE))


def is_put_off(level: Setting, place: torch.device) -> bool:
    """Whether a choice made now is to be made again, since nothing can be timed while a graph is captured."""
    return level.name == "timed" and counters.capturing(place)


def choose(
    level: Setting,
    work: Work,
    device: Device,
    share: int,
    unfit: set[Choice],
    place: torch.device,
    trial: Trial,
) -> Any:
    """The config to run, without those that turned out not to; for `share` see space.waits_safely."""
    candidates = level.among(rules_of(work).space(work, device, share))
    if level.name == "off":
        return level.required(best(work, device, candidates, unfit, unfit), work)
    entry = store.current().load(key_of(work, device))
    if level.name == "timed" and not level.knows(entry, work, candidates) and not counters.capturing(place):
        entry, tried = time_now(level, work, device, place, trial)
        unfit = unfit | tried
    useless = unfit | failed(entry.exactly(work.geometry))
    timed = fastest(candidates, entry.seconds(work.geometry), useless)
    return level.required(timed or best(work, device, candidates, useless, unfit), work)


def time_now(
    level: Setting, work: Work, device: Device, place: torch.device, trial: Trial
) -> tuple[Entry, set[Choice]]:
    """All that is known of the work's key once it was timed, and the choices that failed now.

    What another process has kept in the meantime goes before what was timed here, so that both run the same config.
    DeviceLostError where the GPU does not survive a config, which alone is kept then.
    """
    key, kept, rules = key_of(work, device), store.current(), rules_of(work)
    with one_at_a_time, on_device(place):
        entry = kept.load(key)
        known = failed(entry.exactly(work.geometry))
        allowed = level.among(rules.space(work, device, counters.share(place)))
        candidates = [config for config in allowed if choice(config) not in known]
        if level.knows(entry, work, candidates) or len(candidates) < 2:  # another thread may have been first
            return entry, set()
        estimate = partial(rules.modelled_time, work, device=device)
        survive = partial(require_device, place, device.name)
        wait_for(place)  # what the caller's own launches have done is no config's fault
        try:
            timings, is_complete = time_best(work.mode, candidates, estimate, trial, level.do_bench, survive)
        except DeviceLostError as lost:
            kept.record(key, work.geometry, [lost.after])
            raise
        now = Run(work.geometry, timings)
        if is_complete and seconds_of(now) and not level.is_limited:
            kept.record(key, work.geometry, timings, if_first=True)
            return kept.load(key), failed(now)
        entry.exactly(work.geometry).add(timings)
        return entry, failed(now)


def on_device(place: torch.device) -> Any:
    """A block in which the tensors' device is the current one, whose events a benchmark records."""
    if place.type in ("cuda", "xpu") and place.index is not None:
        return torch.get_device_module(place).device(place.index)
    return nullcontext()


def rules_of(work: Work) -> Any:
    """The module that knows which configs there are, what each should take, and which one always runs."""
    return sample_space if work.mode in ("sample_forward", "sample_backward") else space


def fastest(candidates: Iterable[Any], seconds: dict[Choice, float], unfit: set[Choice]) -> Any:
    """Which of the candidates took the least time, the first of several; None if none was timed."""
    known = {choice(config): config for config in candidates} if seconds else {}
    timed = [found for found in seconds if found in known and found not in unfit]
    return known.get(min(timed, key=seconds.__getitem__, default=None))


def best(work: Work, device: Device, candidates: Iterable[Any], useless: set[Choice], unfit: set[Choice]) -> Any:
    """The config of least modelled time, the first of several; if too many failed here, what runs anywhere."""
    rules = rules_of(work)
    left = [config for config in candidates if choice(config) not in useless] if useless else candidates
    if left and len(unfit) < MOST_FAILURES:
        return min(left, key=lambda config: rules.modelled_time(work, config, device))
    if useless:
        warnings.warn(
            f"tritonbn: {len(useless)} configs of {work.mode} failed on {device.name}; it runs slowly, in small tiles",
            RuntimeWarning,
            stacklevel=2,
        )
    return rules.conservative(work, device)


def remember(level: Setting, work: Work, device: Device, config: Any, error: BaseException) -> None:
    """Keep that a config does not run here."""
    if level.name != "off":
        store.current().record(key_of(work, device), work.geometry, [timing(config, None, describe_failure(error))])
