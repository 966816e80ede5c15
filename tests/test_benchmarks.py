"""The report's own parts: the list of layers, the timing rounds, the check of values."""

import io
import math

import pytest
import torch
from rich.console import Console

import tritonbn
from benchmarks import resnet, timing, training
from benchmarks.layers import RESNET50, Layer


def test_resnet50_has_53_batch_norms_of_12_shapes():
    assert sum(layer.count for layer in RESNET50) == 53
    assert len({layer.shape(1) for layer in RESNET50}) == 12
    parameters = sum(2 * layer.channels * layer.count for layer in RESNET50)
    assert parameters == 53120, "weights and biases of all batch norms of ResNet-50"


class FakeClock:
    """A device module whose events read a clock that the timed functions move."""

    def __init__(self):
        self.now = 0.0

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self):
        pass


class FakeEvent:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = self.clock.now

    def elapsed_time(self, later):
        return later.at - self.at


def test_rounds_are_interleaved_and_warm_up_is_not_counted(monkeypatch):
    clock, calls = FakeClock(), []
    monkeypatch.setattr(torch, "get_device_module", lambda device: clock)
    monkeypatch.setattr(timing, "CACHE_BYTES", 16)

    def function(name, milliseconds):
        def run():
            calls.append(name)
            clock.now += milliseconds + (1000 if len(calls) <= 4 else 0)

        return run

    times = timing.interleaved([function("a", 2.0), function("b", 3.0)], torch.device("cpu"), rounds=3, warmup=2)
    assert "".join(calls) == "ababababab"
    assert [t.samples for t in times] == [(2.0,) * 3, (3.0,) * 3]
    assert [t.median for t in times] == [2.0, 3.0]


def test_layers_are_reduced_until_they_fit():
    layer = Layer("", 64, (112, 112), 1)
    assert resnet.reduced(layer, 2, 2**20) == (2, 32, 112, 112)
    assert resnet.reduced(layer, 2, 1) == (2, 1, 112, 112)
    assert resnet.reduced(layer, 2, 2**30) == (2, 64, 112, 112)


@pytest.mark.parametrize("wrong", [False, True])
def test_wrong_values_are_reported(monkeypatch, wrong):
    monkeypatch.setattr(resnet, "RESNET50", (Layer("", 4, (7, 7), 1),))
    if wrong:
        correct = resnet.layer_errors
        monkeypatch.setattr(resnet, "layer_errors", lambda *args: correct(*args) | {"dx": math.nan})
    out = io.StringIO()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert resnet.check_layers(device, 2, 2**14, Console(file=out)) is not wrong
    assert ("NO" in out.getvalue()) is wrong


@pytest.mark.backend_choice
def test_both_networks_train_alike_and_learn():
    with tritonbn.backend("aten"):
        ours, theirs = training.train(torch.device("cpu"), 150, Console(quiet=True))
    assert ours.losses == theirs.losses
    assert ours.losses[-1] < 0.3 < ours.losses[0]
    assert ours.accuracy == theirs.accuracy > 0.9
