"""pytest benchmarks: what a call takes of the host, beside torch's, on any machine (see host.py)."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tritonbn
from tritonbn import targets
from tritonbn.launching.launch import INTERPRETED

from . import host

if INTERPRETED:
    pytest.skip("expected a process without TRITON_INTERPRET=1", allow_module_level=True)

MODULES = {"tritonbn": tritonbn.BatchNorm2d, "torch.nn": nn.BatchNorm2d}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, torch would share out a few elements, and wait for whoever is late."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("call", host.LIMITS)
def test_host_time(benchmark: object, call: str, name: str) -> None:
    """Ours up to a driver that lists launches, torch's with its arithmetic on a few elements."""
    x, dy = torch.randn(host.SHAPE, requires_grad=True), torch.randn(host.SHAPE)
    with targets.compiling_for("sm_90") as launches:
        calls = host.cases(MODULES[name](host.SHAPE[1]), launches, x, dy)
        function = dict(zip(host.LIMITS, calls, strict=True))[call]
        function()
        benchmark.group = f"host time of BatchNorm2d, {call}"
        benchmark(function)
