"""What planning knows of a GPU: its processors, their registers, its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import triton

from .kernels import forward_kernel

DRIVERS = triton.runtime.driver
"""Knows the driver that is active."""

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when the kernels were defined: they then run on the CPU, in numpy."""


@dataclass(frozen=True, eq=False)
class Device:
    """A GPU; "SM" is NVIDIA's word, AMD's is CU."""

    name: str
    arch: str
    """As targets.target() takes it."""
    sm_count: int
    threads: int
    """Most threads an SM holds."""
    programs: int
    """Most programs an SM holds."""
    l2_bytes: int
    bandwidth: float
    """Of the memory, bytes a second."""
    clock: float
    """Of the SMs under load, in hertz."""
    shared_bytes: int
    """Of shared memory, an SM."""
    registers: int = 65536
    """32-bit registers an SM."""
    warp_size: int = 32
    concurrent: bool = True
    """Whether programs of a launch run side by side, so that one may wait for another that started later."""

    @property
    def backend(self) -> str:
        """Triton's name of the maker's toolchain."""
        return "hip" if self.arch.startswith("gfx") else "cuda"


TABLE = (
    Device("V100", "sm_70", 80, 2048, 32, 6 << 20, 0.90e12, 1.53e9, 96 << 10),
    Device("T4", "sm_75", 40, 1024, 16, 4 << 20, 0.32e12, 1.59e9, 64 << 10),
    Device("A100", "sm_80", 108, 2048, 32, 40 << 20, 2.04e12, 1.41e9, 164 << 10),
    Device("RTX 3090", "sm_86", 82, 1536, 16, 6 << 20, 0.94e12, 1.70e9, 100 << 10),
    Device("RTX 4090", "sm_89", 128, 1536, 24, 72 << 20, 1.01e12, 2.52e9, 100 << 10),
    Device("H100", "sm_90", 132, 2048, 32, 50 << 20, 3.35e12, 1.83e9, 228 << 10),
    Device("B200", "sm_100", 148, 2048, 32, 126 << 20, 8.0e12, 1.85e9, 228 << 10),
    Device("RTX 5090", "sm_120", 170, 1536, 24, 96 << 20, 1.79e12, 2.41e9, 100 << 10),
    Device("MI250X", "gfx90a", 110, 2048, 32, 8 << 20, 1.6e12, 1.7e9, 64 << 10, registers=131072, warp_size=64),
    Device("MI300X", "gfx942", 304, 2048, 32, 4 << 20, 5.3e12, 2.1e9, 64 << 10, registers=131072, warp_size=64),
    Device("MI355X", "gfx950", 256, 2048, 32, 4 << 20, 8.0e12, 2.4e9, 160 << 10, registers=131072, warp_size=64),
    Device("RX 7900 XTX", "gfx1100", 96, 1024, 32, 6 << 20, 0.96e12, 2.5e9, 64 << 10, registers=98304),
)
"""One GPU for each architecture, from the makers' data sheets; a MI250X is one of its two dies."""

INTERPRETER = replace(TABLE[5], name="interpreter", sm_count=4, concurrent=False)
"""Plans as for a small GPU, and runs one program after another."""

_assumed: ContextVar[Device | None] = ContextVar("tritonbn_device", default=None)


def named(name: str) -> Device:
    """The device of the table with this name or architecture; ValueError if there is none."""
    for device in TABLE:
        if name.lower() in (device.name.lower(), device.arch):
            return device
    raise ValueError(f"expected one of {', '.join(d.name for d in TABLE)} or their architectures, got {name!r}")


@contextmanager
def assume(device: str | Device | None = None, **fields: Any) -> Iterator[Device]:
    """Plan, inside, as if this were the GPU: a name of the table or a Device, with any of its fields replaced.

    Without a name the current device is the one whose fields are replaced. Says nothing about where kernels run, nor
    for which architecture they are compiled. ValueError for an unknown name, TypeError for an unknown field.
    """
    base = named(device) if isinstance(device, str) else current() if device is None else device
    token = _assumed.set(replace(base, **fields))
    try:
        yield _assumed.get()
    finally:
        _assumed.reset(token)


def planned_for() -> Any:
    """What `current` depends on beside the device that is current: the one that is assumed, or Triton's driver."""
    return _assumed.get() or (INTERPRETER if INTERPRETED else DRIVERS.active)


def current(index: int | None = None) -> Device:
    """The GPU of this number, or that Triton launches on, unless another one is assumed."""
    source = planned_for()
    if isinstance(source, Device):
        return source
    return described(source, source.get_current_device() if index is None else index)


@lru_cache(maxsize=64)
def described(driver: Any, index: Any) -> Device:
    """What the driver tells of a device, completed from the most similar one of the table."""
    target = driver.get_current_target()
    arch = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
    like = most_similar(arch)
    told = driver.utils.get_device_properties(index)
    sm_count = told.get("multiprocessor_count") or like.sm_count
    share = sm_count / like.sm_count
    return replace(
        like,
        arch=arch,
        sm_count=sm_count,
        registers=max(told.get("max_num_regs") or 0, like.registers),
        bandwidth=like.bandwidth * share,
        l2_bytes=int(like.l2_bytes * min(1.0, share)),
        warp_size=target.warp_size,
    )


def most_similar(arch: str) -> Device:
    """The device of this architecture, or else the newest older one of its maker."""
    same_maker = [device for device in TABLE if device.arch[:3] == arch[:3]] or list(TABLE)
    older = [device for device in same_maker if (len(device.arch), device.arch) <= (len(arch), arch)]
    return older[-1] if older else same_maker[0]
