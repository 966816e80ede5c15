"""Time calls on a GPU in one run, in turns, so that drift of the clocks hits all of them alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch

CACHE_BYTES = 2**30
"""Read before a measurement: more than any L2 (H100 50 MB, MI300X 256 MB), which then holds nothing to be written."""

MOST_FLUSHES = 64
"""How often it is read at most, so that the host has launched all before the GPU begins.

A call that waits for the GPU itself is timed all the same, its waiting included.
"""

ROUNDS, WARM_UP = 30, 5
"""Rounds that count, and before them those that do not."""

REPLAYED = 20
"""Calls in a graph."""

HOST_CALLS = 10
"""Calls between two looks at the clock, few enough that the GPU's queue does not fill."""

Call = Callable[[], Any]
Calls = Mapping[str, Call]

Told = Callable[[str], None]
"""Is told who is next: what is named last when nothing more is heard hangs."""


@dataclass(frozen=True)
class Times:
    """Microseconds of a call: the middle one of all rounds, and the fifth that was fastest and slowest."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, samples: list[float]) -> Times:
        """Of one sample at least."""
        fifths = quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else samples * 9
        return cls(fifths[1], fifths[4], fifths[7])


class CallError(Exception):
    """A call that was to be timed has raised something."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(name, cause)
        self.name, self.cause = name, cause


def in_turns(calls: Calls, sample: Callable[[Call], float], told: Told) -> dict[str, Times]:
    """Samples of every call in rounds A B A B; the first ones do not count. CallError names who cannot go on."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            told(name)
            try:
                taken = sample(call)
            except Exception as error:
                raise CallError(name, error) from error
            if number >= WARM_UP:
                samples[name].append(taken)
    return {name: Times.of(taken) for name, taken in samples.items()}


class Stopwatch:
    """Times what a device does."""

    def __init__(self, device: torch.device) -> None:
        self.module = torch.get_device_module(device)
        self.cache = torch.zeros(CACHE_BYTES // 4, device=device)
        self.flushes: defaultdict[Call, int] = defaultdict(lambda: 1)

    def device_time(self, call: Call, before: Call | None = None) -> float:
        """Microseconds by events, with the host far enough ahead not to count; what runs before leaves its L2."""
        while True:
            for _ in range(self.flushes[call]):
                self.cache.sum()
            if before is not None:
                before()
            start, end = (self.module.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            is_late = start.query()
            self.module.synchronize()
            if not is_late or self.flushes[call] >= MOST_FLUSHES:
                return start.elapsed_time(end) * 1e3
            self.flushes[call] *= 2

    def cold(self, calls: Calls, told: Told) -> dict[str, Times]:
        """With nothing of the call's in the L2."""
        return in_turns(calls, self.device_time, told)

    def warm(self, calls: Calls, told: Told) -> dict[str, Times]:
        """Right after the same call."""
        return in_turns(calls, lambda call: self.device_time(call, before=call), told)

    def replayed(self, graphs: Calls, told: Told) -> dict[str, Times]:
        """A call's part of a replayed graph of them."""
        return in_turns(graphs, lambda graph: self.device_time(graph, before=graph) / REPLAYED, told)

    def host(self, calls: Calls, told: Told) -> dict[str, Times]:
        """What the host takes until it may go on."""
        return in_turns(calls, self.host_time, told)

    def host_time(self, call: Call) -> float:
        """Microseconds a call."""
        self.module.synchronize()
        start = time.perf_counter()
        for _ in range(HOST_CALLS):
            call()
        taken = time.perf_counter() - start
        self.module.synchronize()
        return taken / HOST_CALLS * 1e6


def captured(call: Call) -> tuple[Call, Any]:
    """The replay of a CUDA graph of calls, and what the last of them returns.

    Captured on the current stream, on which the call has run before: autograd's graph keeps to the streams that it was
    made on.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(REPLAYED):
            result = call()
    return graph.replay, result


def leave_default_stream(device: torch.device) -> None:
    """From now on everything is launched on one other stream, as graphs can only be captured there."""
    if device.type == "cuda" and torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())


def copying(moved: int, device: torch.device) -> Call:
    """A plain copy that reads and writes so many bytes in all."""
    source, target = (torch.zeros(-(-moved // 2), dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain copy of a gigabyte reads and writes."""
    times = Stopwatch(device).cold({"copy": copying(2 * CACHE_BYTES, device)}, lambda name: None)
    return 2 * CACHE_BYTES / (times["copy"].p50 * 1e-6)
