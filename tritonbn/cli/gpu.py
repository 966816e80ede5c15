"""The GPU that a command is about: the one that is here, or one that is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from .. import devices, targets
from ..devices import INTERPRETED, Device
from .exits import FAILED, USAGE, ExitError

GPUS = ", ".join(device.name for device in devices.TABLE)
NAMES = f"a GPU ({GPUS}) or an architecture that the compiler knows (sm_90, gfx942, ...)"


def place() -> torch.device | None:
    """Where kernels run and can be timed, None if nowhere; ends the command where torch cannot use the GPU."""
    if INTERPRETED or not torch.cuda.is_available():
        return None
    with usable():
        return torch.device("cuda", torch.cuda.current_device())


def identity() -> list[str]:
    """What tells the GPU here from others of its kind; nothing where there is none, or torch does not know."""
    at = place()
    if at is None or at.type != "cuda":
        return []
    uuid = getattr(torch.cuda.get_device_properties(at), "uuid", None)
    return [] if uuid is None else [str(uuid)]


def here() -> Device:
    """The GPU that Triton launches on; ends the command where Triton's driver cannot be built or asked."""
    with usable():
        return devices.current()


@contextmanager
def usable() -> Iterator[None]:
    """Inside, whatever a C compiler, a linker or a driver has to say ends the command, in a line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExitError(FAILED, f"the GPU here cannot be used: {reason}") from error


def named(name: str | None) -> Device:
    """The GPU of this name, the first one of this architecture; without a name the one here, or else an H100."""
    if name is None:
        return here() if place() else devices.named("H100")
    try:
        arch = devices.architecture(targets.target(name))
    except ValueError as error:
        raise ExitError(USAGE, f"--target: expected {NAMES}, got {name!r}") from error
    return replace(devices.find(name) or devices.most_similar(arch), arch=arch)
