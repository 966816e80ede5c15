"""The report's own parts: the timing rounds, the model's table, the check of values."""

import io
import math

import pytest
import torch
from rich.console import Console

import tritonbn
from benchmarks import host, modelled, resnet, timing, training
from tritonbn import devices
from tritonbn.suites import Layer


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


def tick(event):
    """Record an event, which takes a millisecond."""
    event.clock.now += 1.0
    event.at = event.clock.now


def test_every_provider_is_timed_on_every_layer(monkeypatch):
    clock = FakeClock()
    clock.get_device_name = lambda device: "a GPU of glass"
    monkeypatch.setattr(FakeEvent, "record", tick)
    called = dict.fromkeys(("ours", "theirs"), 0)

    def provider(name, milliseconds):
        def function(x, mean, var, weight, bias, training):
            called[name] += 1
            clock.now += milliseconds
            return x * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

        return function

    monkeypatch.setattr(torch, "get_device_module", lambda device: clock)
    monkeypatch.setattr(timing, "CACHE_BYTES", 16)
    monkeypatch.setattr(resnet, "RESNET50", (Layer("", 4, (2, 2), 1),))
    monkeypatch.setattr(resnet, "providers", lambda: {"ours": provider("ours", 2.0), "theirs": provider("theirs", 5.0)})
    out = io.StringIO()
    resnet.time_layers(torch.device("cpu"), Console(file=out, width=160))
    assert out.getvalue().count("6000.0 2.00x") == 2, "forward, contiguous and channels_last"
    assert out.getvalue().count("1000.0 1.00x") == 2, "backward"
    assert called["ours"] == called["theirs"] == 2 * (35 + 1)


def test_providers_compute_the_same():
    x, *vectors = torch.randn(4, 3, 2, 2), torch.zeros(3), torch.ones(3), torch.rand(3), torch.rand(3)
    functions = resnet.providers()
    results = [f(x, *(v.clone() for v in vectors), True) for name, f in functions.items() if name != "torch.compile"]
    assert len(results) == len(functions) - 1
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


def test_host_time_is_measured_in_turns(monkeypatch):
    order = []
    monkeypatch.setattr(host.time, "perf_counter", lambda: float(len(order)))
    functions = [lambda: order.append("a"), lambda: order.extend("bb")]
    assert host.microseconds(functions, calls=2, rounds=2) == [1e6, 2e6]
    assert "".join(order) == "aabbbb" * 3


def test_the_model_never_beats_the_floor():
    for gpu in modelled.GPUS:
        for shape in modelled.SHAPES:
            for mode in modelled.MODES:
                floor = modelled.floor(shape.work(mode), devices.named(gpu))
                assert modelled.modelled(shape, mode, devices.named(gpu))[1] > floor
    out = io.StringIO()
    modelled.show(17e-6, Console(file=out, width=250))
    assert all(shape.name.split(",")[0] in out.getvalue() for shape in modelled.SHAPES)
    assert "Modelled" in out.getvalue()
    assert "17 us" in out.getvalue()


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
