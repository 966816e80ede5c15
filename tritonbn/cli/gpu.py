"""The GPU that a command is about: the one that is here, or one that is named."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from .. import devices, targets
from ..devices import INTERPRETED, Device
from .exits import USAGE, ExitError

NAMES = "a GPU (" + ", ".join(device.name for device in devices.TABLE) + ") or an architecture (sm_90, gfx942, ...)"


def place() -> torch.device | None:
    """Where kernels run and can be timed, None if nowhere."""
    if INTERPRETED or not torch.cuda.is_available():
        return None
    return torch.device("cuda", torch.cuda.current_device())


def here() -> Device | None:
    """The GPU that Triton launches on, None if there is none."""
    with suppress(RuntimeError):  # Triton has found no driver
        return devices.current()
    return None


def named(name: str | None) -> Device:
    """The GPU of this name, the first one of this architecture; without a name the one here, or else an H100."""
    if name is None:
        return here() if place() else devices.named("H100")
    try:
        arch = devices.architecture(targets.target(name))
    except ValueError as error:
        raise ExitError(USAGE, f"--target: expected {NAMES}, got {name!r}") from error
    return replace(devices.find(name) or devices.most_similar(arch), arch=arch)
