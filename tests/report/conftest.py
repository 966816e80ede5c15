"""A device for the harness of the report that needs no GPU."""

import pytest
import torch
from clock import Clock

from benchmarks import inputs, measure, memory, providers, timing, witness


@pytest.fixture
def clock(monkeypatch):
    """The clock of every device; tensors are on the CPU."""
    made = Clock()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    monkeypatch.setattr(timing, "CACHE_BYTES", 16)
    return made


@pytest.fixture
def gpu(monkeypatch, clock):
    """A device of glass: the harness takes it for a GPU, but its tensors are on the CPU."""
    cpu, original = torch.device("cpu"), timing.Stopwatch.__init__
    monkeypatch.setattr(measure, "make", lambda case, device: inputs.make(case, cpu))
    monkeypatch.setattr(measure, "copying", lambda moved, device: timing.copying(moved, cpu))
    monkeypatch.setattr(timing.Stopwatch, "__init__", lambda self, device: original(self, cpu))
    monkeypatch.setattr(memory, "peak_bytes", lambda call, device: 12)
    monkeypatch.setattr(witness, "kernels_of", lambda call, device: ["batch_norm_of_glass"])
    return torch.device("xpu")


@pytest.fixture
def registry(monkeypatch):
    """No provider but those that a test registers."""
    monkeypatch.setattr(providers, "PROVIDERS", {})
    monkeypatch.setattr(measure, "PROVIDERS", providers.PROVIDERS)
    return providers.PROVIDERS
