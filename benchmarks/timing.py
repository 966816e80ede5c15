"""Time several functions on a GPU in one run, in turns, so that drift of the clocks hits all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

CACHE_BYTES = 2**30
"""Written before every measurement: more than any L2 (H100 50 MB, MI300X 256 MB), and long enough to launch behind."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one function over all rounds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


def interleaved(
    functions: Sequence[Callable[[], Any]], device: torch.device, rounds: int = 30, warmup: int = 5
) -> list[Times]:
    """Device time of each function by events, with a cold L2, in rounds A B A B; warm-up rounds are not counted."""
    module = torch.get_device_module(device)
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
    samples: list[list[float]] = [[] for _ in functions]
    for number in range(warmup + rounds):
        for function, results in zip(functions, samples, strict=True):
            cache.zero_()
            start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            module.synchronize()
            if number >= warmup:
                results.append(start.elapsed_time(end))
    return [Times(tuple(results)) for results in samples]
