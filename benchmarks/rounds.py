"""A case and a provider under pytest-benchmark, which times rounds and compares groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import timing
from .cases import Case
from .inputs import make
from .measure import Contender, blame, check
from .providers import PROVIDERS
from .rows import OURS, Key, Row


def run(benchmark: Any, case: Case, name: str, device: torch.device) -> None:
    """Check the provider, then time it with a cold L2 until the device is done, which includes the launch.

    Skips who has nothing for it, who is wrong, and whose work others do; fails where we are.
    """
    row = Row(Key.of(case), name, case.least_bytes, case.elements)
    inputs = make(case, device)
    contender = Contender(PROVIDERS[name], case, inputs.with_own_buffers())
    try:
        check(row, contender, inputs, device)
    except Exception as error:
        blame(row, error, device)
        (pytest.fail if name.startswith(OURS) and not row.unfit else pytest.skip)(row.why)
    module = torch.get_device_module(device)
    cache = torch.zeros(timing.CACHE_BYTES // 4, device=device)
    call = contender.timed()

    def flush() -> None:
        cache.sum()
        module.synchronize()

    def timed() -> None:
        call()
        module.synchronize()

    benchmark.group = f"{case.name}, until the device is done"
    benchmark.extra_info |= {"least_bytes": row.least_bytes, "saved_bytes": row.saved_bytes, "kernels": row.kernels}
    benchmark.pedantic(timed, setup=flush, rounds=timing.ROUNDS, warmup_rounds=timing.WARM_UP)
