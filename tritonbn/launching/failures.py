"""What a failure is to be blamed on: a config, or what would have failed with any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..measured.timings import Timing

OUT_OF_MEMORY = "out of memory"
"""As CUDA and HIP say it, in RuntimeErrors of Triton ("Triton Error [CUDA]: out of memory") and of torch."""


CAPTURE = "captur"
"""As they say it while a graph is captured: "operation not permitted when stream is capturing", and the like."""


class DeviceLostError(RuntimeError):
    """The GPU does nothing more for this process since a config ran."""

    def __init__(self, name: str, after: Timing) -> None:
        super().__init__(f"{name} does nothing more after {after.config}: {after.failure}")
        self.after = after
        """The failure."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no room, as Python, torch or a driver says it: another time there may be."""
    of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return of_memory or (isinstance(error, RuntimeError) and OUT_OF_MEMORY in str(error))


def is_of_capture(error: BaseException) -> bool:
    """Whether it was no time to load a kernel, since a graph is being captured: before and after, there is."""
    return isinstance(error, RuntimeError) and CAPTURE in str(error)


def wait_for(place: torch.device) -> None:
    """Wait for the GPU of these tensors, if they are on one; what it says of earlier launches if those have failed."""
    if place.type in ("cuda", "xpu"):
        torch.get_device_module(place).synchronize(place)


def require_device(place: torch.device, name: str, after: Timing) -> None:
    """DeviceLostError if the GPU of this place and name has not survived a failure."""
    try:
        wait_for(place)
    except RuntimeError as error:
        raise DeviceLostError(name, after) from error
