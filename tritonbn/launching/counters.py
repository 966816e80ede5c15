"""Where the programs of a launch count each other (kernels/exchange.py): zeros before it, and zeros again after it.

One buffer serves every launch on a stream, since these follow each other. A launch that fails leaves no telling what it
counted: its buffer is forgotten, and so are a forked process's. A launch that is captured into a graph gets a buffer of
its own, zeroed in the graph, since graphs may be replayed on any stream.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock

import torch
import triton
from torch import Tensor

from ..devices import INTERPRETED
from ..geometry import power_of_two

LEAST = 4096
"""Numbers of the smallest buffer: 16 KiB."""

SEATS = 2
"""Streams of a device on which programs may wait for such as have not started; on others they never do."""

SHARE = 3
"""On each of these, chunks that wait for each other take at most one in so many of the places that a GPU has."""

REPLAYS = 4
"""Graphs with programs that wait which may be replayed at once, on whatever streams."""

CAPTURED_SHARE = 12 * REPLAYS
"""The same share in each of them, a twelfth of the places in all."""

FRACTION = 4
"""A program that waits takes at most one in so many parts of an SM.

All such launches that can be under way at once hold 2/3 + 4/48 = 3/4 of the places of a GPU while none can go on, so
that on some SM a fourth is free: enough for a program of any of them, and that one goes on.
"""

_seated: dict[torch.device, list[int]] = {}

_kept: dict[tuple[torch.device, int], Tensor] = {}

_given_up: list[Tensor] = []
"""Never freed: other streams may still use them, and where CUDA has failed or was forked from, to free them aborts."""

_changing = Lock()
"""Held while a buffer is replaced: of two threads on one stream the second has to find what the first one put there."""


def current_stream(device: torch.device) -> int:
    """The stream that Triton launches on."""
    return 0 if INTERPRETED else triton.runtime.driver.active.get_current_stream(device.index)


def may_capture(device: torch.device) -> bool:
    """Whether launches on a device can be recorded into a graph at all."""
    return is_cuda(device)


def capturing(device: torch.device) -> bool:
    """Whether launches are being recorded into a graph instead of run."""
    if not may_capture(device):
        return False
    if device.index in (None, torch.cuda.current_device()):
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@cache
def is_cuda(device: torch.device) -> bool:
    """Looked up, since torch spells a device's type out each time that it is asked."""
    return device.type == "cuda"


def take(device: torch.device, size: int) -> Tensor:
    """`size` or more int32 zeros for the launches that follow on the device's current stream."""
    if capturing(device):
        return torch.zeros(size, dtype=torch.int32, device=device)
    key = device, current_stream(device)
    kept = _kept.get(key)
    if kept is None or kept.numel() < size:
        with _changing:
            kept = _kept.get(key)
            if kept is None or kept.numel() < size:
                if kept is not None:
                    _given_up.append(kept)
                kept = _kept[key] = zeros_to_keep(max(LEAST, power_of_two(size)), device)
    return kept


def zeros_to_keep(size: int, device: torch.device) -> Tensor:
    """int32 zeros for the current stream, of memory that no graph will use again.

    Before torch.compile captures a graph, what its thread, or its stream, allocates goes into the graph's own pool.
    """
    if not is_cuda(device) or torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        return torch.zeros(size, dtype=torch.int32, device=device)
    with ThreadPoolExecutor(1) as another:  # on the default stream, as threads begin
        zeros = another.submit(torch.zeros, size, dtype=torch.int32, device=device).result()
    torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
    return zeros


def share(device: torch.device) -> int:
    """SHARE on a stream that is one of the first that asked, CAPTURED_SHARE in a capture, 0 where nobody may wait."""
    if capturing(device):
        return CAPTURED_SHARE
    seated, stream = _seated.setdefault(device, []), current_stream(device)
    if stream not in seated:
        with _changing:
            if stream not in seated and len(seated) < SEATS:
                seated.append(stream)
    return SHARE if stream in seated else 0


def forget() -> None:
    """Give up all buffers, after a launch that did not end as it should."""
    with _changing:
        _given_up.extend(_kept.values())
        _kept.clear()


def forget_in_child() -> None:
    """The same in a forked process, where the thread that changed something then does not go on."""
    _changing._at_fork_reinit()
    forget()


os.register_at_fork(after_in_child=forget_in_child)
