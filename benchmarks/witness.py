"""Which kernels a GPU ran for a call, so that nobody is timed under another's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

NO_KERNELS = ("Memcpy", "Memset", "Activity Buffer", "##")
"""How names begin of what runs on a GPU or beside it and is no kernel."""

ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}


TRIES = 3
"""A profiler that was just started may miss what it should see."""


def kernels_of(call: Callable[[], Any], device: torch.device) -> list[str]:
    """The names of the kernels in the order of their start; none if the profiler sees nothing, try after try."""
    module = torch.get_device_module(device)
    for _ in range(TRIES):
        with profile(activities=[ProfilerActivity.CPU, ACTIVITIES[device.type]]) as seen:
            call()
            module.synchronize()
        names = names_of(seen.events())
        if names:
            return names
    return []


def names_of(events: Iterable[Any]) -> list[str]:
    """Of the kernels among the profiler's events: copies and fills of memory, and what frameworks note, are none."""
    ran = [event for event in events if event.device_type != DeviceType.CPU]
    ran.sort(key=lambda event: event.time_range.start)
    notes = {event.name for event in ran if getattr(event, "is_user_annotation", False)}
    return [event.name for event in ran if event.name not in notes and not event.name.startswith(NO_KERNELS)]
