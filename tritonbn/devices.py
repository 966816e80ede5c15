"""The GPU that is planned for: the running one by its own properties, one of the table, or one that is assumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from .gpus import TABLE, Device
from .kernels import forward_kernel

DRIVERS = triton.runtime.driver
"""Knows the driver that is active."""

INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when the kernels were defined: they then run on the CPU, in numpy."""

PLAUSIBLE = 4
"""What a GPU tells of itself is believed if it is at most so many times as large or as small as expected."""

TRANSFERS = 2
"""For each tick of the memory's clock, as NVIDIA's drivers count it."""

UNRELIABLE = {"hip": {"bandwidth", "registers"}}
"""AMD's drivers count the ticks of some memories otherwise, and only the registers that one program can have."""

_assumed: ContextVar[Device | None] = ContextVar("tritonbn_device", default=None)


def words(name: str) -> list[str]:
    """Its letters and digits, in small letters, word by word."""
    return re.findall(r"[a-z0-9]+", name.lower())


def find(name: str) -> Device | None:
    """The device of the table with this name or architecture, however its words are joined; None if there is none."""
    spelt = "".join(words(name))
    return next((device for device in TABLE if spelt in map("".join, map(words, (device.name, device.arch)))), None)


def named(name: str) -> Device:
    """The same, but ValueError if there is none."""
    device = find(name)
    if device is None:
        raise ValueError(f"expected one of {', '.join(d.name for d in TABLE)} or their architectures, got {name!r}")
    return device


INTERPRETER = replace(named("H100"), name="interpreter", sm_count=4, concurrent=False)
"""Plans as for a small GPU, and runs one program after another."""


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
    """What a GPU tells of itself, completed from the most similar one of the table.

    Where that has its name and as many SMs, it is the same GPU: then memory, L2 and clock are as its maker says.
    """
    with torch.cuda.device(index) if launches_on_gpus(driver) else nullcontext():
        target = driver.get_current_target()
    arch = architecture(target)
    own = told(driver, index)
    name = own.get("name", "")
    like = most_similar(arch, name, own.get("sm_count", 0))
    share = own.get("sm_count", like.sm_count) / like.sm_count
    same = {"bandwidth", "l2_bytes", "clock"} if share == 1 and named_by(like, name) else set()
    base = replace(like, bandwidth=like.bandwidth * share, l2_bytes=int(like.l2_bytes * min(1.0, share)))
    known = same | UNRELIABLE.get(target.backend, set())
    own = {key: value for key, value in own.items() if key not in known and plausible(key, value, base)}
    return replace(base, **own, arch=arch, warp_size=target.warp_size)


def architecture(target: GPUTarget) -> str:
    """As targets.target() takes it."""
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def told(driver: Any, index: Any) -> dict[str, Any]:
    """What Triton's driver and torch tell of a GPU, as fields of a Device."""
    by_driver = driver.utils.get_device_properties(index) or {}
    by_torch = torch_properties(driver, index)
    transfers = TRANSFERS * 1e3 * (by_driver.get("mem_clock_rate") or 0)
    fields = {
        "name": by_driver.get("name") or getattr(by_torch, "name", None),
        "sm_count": by_driver.get("multiprocessor_count"),
        "threads": getattr(by_torch, "max_threads_per_multi_processor", None),
        "shared_bytes": getattr(by_torch, "shared_memory_per_multiprocessor", None),
        "registers": by_driver.get("max_num_regs"),
        "l2_bytes": getattr(by_torch, "L2_cache_size", None),
        "clock": 1e3 * (by_driver.get("sm_clock_rate") or 0),
        "bandwidth": transfers * (by_driver.get("mem_bus_width") or 0) / 8,
    }
    return {key: value for key, value in fields.items() if value}


def torch_properties(driver: Any, index: Any) -> Any:
    """Torch's, None where there are none."""
    return torch.cuda.get_device_properties(index) if launches_on_gpus(driver) else None


def launches_on_gpus(driver: Any) -> bool:
    """Whether the driver is one of Triton's own: any other may stand for a GPU that is not there."""
    return type(driver.utils).__module__.startswith("triton.backends.") and torch.cuda.is_available()


def plausible(key: str, value: Any, base: Device) -> bool:
    """Whether what a GPU tells is near enough to what is expected of it."""
    if key in ("name", "sm_count"):
        return True
    expected = getattr(base, key)
    return expected / PLAUSIBLE <= value <= expected * PLAUSIBLE


def most_similar(arch: str, name: str = "", sm_count: int = 0) -> Device:
    """The device of this architecture, or else of the newest older one of its maker, that has this name or SM count."""
    same_maker = [device for device in TABLE if device.arch[:3] == arch[:3]] or list(TABLE)
    older = [device for device in same_maker if (len(device.arch), device.arch) <= (len(arch), arch)]
    arch = (older[-1] if older else same_maker[0]).arch
    rows = [device for device in TABLE if device.arch == arch]
    return max(rows, key=lambda device: (named_by(device, name), device.sm_count == sm_count))


def named_by(device: Device, name: str) -> int:
    """How many words of a GPU's own name are the device's name; 0 if not all of these are among them."""
    needed = words(device.name)
    return len(needed) if set(needed) <= set(words(name)) else 0
