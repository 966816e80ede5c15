"""How well the model ranks configs that were timed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import devices
from ..choice import selection
from ..configs import Work
from ..devices import Device
from ..functional import DTYPES
from ..launching import counters
from ..measured.timings import Key, Run, choice, seconds_of

FIRST = 8
"""The model's best: the regret is how much slower than all others the best of these is."""


@dataclass(frozen=True)
class Ranking:
    """The model beside the clock, over the configs of a run that were timed."""

    timed: int
    spearman: float
    """Rank correlation; nan if there are fewer than two configs, or all are alike."""
    regret: float
    """The least time of the model's first eight over the least of all, minus 1; nan if nothing was timed."""


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, where those that are equal share their average rank; nan where there is none."""
    mean = (len(first) + 1) / 2
    one, other = ranks(first) - mean, ranks(second) - mean
    scale = math.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale else math.nan


def ranks(values: Sequence[float]) -> np.ndarray:
    """1 for the least; the average where several are equal."""
    _, group, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[group]


def regret(modelled: Sequence[float], measured: Sequence[float], first: int = FIRST) -> float:
    """How much slower the best of the model's first is than the best of all: 0.1 for a tenth."""
    tried = np.argsort(modelled, kind="stable")[:first]
    return float(np.min(np.take(measured, tried)) / np.min(measured) - 1)


def rank(work: Work, device: Device, run: Run) -> Ranking:
    """Of those configs of the run that are in the work's space and took some time."""
    rules, seconds = selection.rules_of(work), seconds_of(run)
    timed = [config for config in rules.space(work, device, counters.SHARE) if choice(config) in seconds]
    if not timed:
        return Ranking(0, math.nan, math.nan)
    modelled = [rules.modelled_time(work, config, device) for config in timed]
    measured = [seconds[choice(config)] for config in timed]
    return Ranking(len(timed), spearman(modelled, measured), regret(modelled, measured))


def work_of(key: Key, run: Run) -> Work:
    """What a run was timed for; ValueError if the key's dtype is none that is normalized."""
    for dtype in DTYPES:
        if str(dtype) == f"torch.{key.dtype}":
            return Work(key.mode, run.geometry, dtype, key.epilogue, *key.beside)
    raise ValueError(f"expected a key of one of {', '.join(map(str, DTYPES))}, got {key.dtype}")


def device_of(key: Key) -> Device:
    """The GPU of a key, completed from the most similar one of the table; ValueError if the key names none."""
    if not (named := re.fullmatch(r"(.+), (sm_\d+|gfx\w+), (\d+) SMs", key.gpu)):
        raise ValueError(f"expected a name, an architecture and a number of SMs, got {key.gpu!r}")
    name, arch, sm_count = named[1], named[2], int(named[3])
    like = devices.most_similar(arch, name, sm_count)
    bandwidth = like.bandwidth * sm_count / like.sm_count
    return replace(like, name=name, arch=arch, sm_count=sm_count, bandwidth=bandwidth)
