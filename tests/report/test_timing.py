"""Rounds in turns, medians and fifths, what runs before and after the clock."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing
from benchmarks.timing import CallError, Stopwatch, Times

CPU = torch.device("cpu")


def silent(name):
    pass


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "WARM_UP", 2)


def takes(clock, called, name, *milliseconds):
    """A function that takes so long, call after call, the last one again and again."""
    left = list(milliseconds)

    def run():
        called.append(name)
        clock.now += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_rounds_are_in_turns_and_warm_up_does_not_count(clock):
    called, told = [], []
    calls = {"a": takes(clock, called, "a", 1000, 1000, 2), "b": takes(clock, called, "b", 1000, 1000, 3)}
    times = Stopwatch(CPU).cold(calls, told.append)
    assert "".join(called) == "".join(told) == "ababababab"
    assert times == {"a": Times(2000, 2000, 2000), "b": Times(3000, 3000, 3000)}


def test_median_and_fifths():
    samples = [float(number) for number in range(11)]
    assert Times.of(samples[::-1]) == Times(2, 5, 8)
    assert Times.of([7.0]) == Times(7, 7, 7)


def test_a_cold_call_finds_nothing_and_a_warm_one_its_own(clock):
    order = []
    stopwatch = Stopwatch(CPU)
    stopwatch.cache = type("Cache", (), {"sum": lambda self: order.append("flush")})()
    stopwatch.cold({"a": takes(clock, order, "a", 2)}, silent)
    assert order == ["flush", "a"] * 5
    order.clear()
    times = stopwatch.warm({"a": takes(clock, order, "a", 5, 2, 5, 2, 5, 2, 5, 2, 5, 2)}, silent)
    assert order == ["flush", "a", "a"] * 5
    assert times["a"].p50 == 2000, "the second of both counts"


def test_a_replayed_graph_is_shared_by_its_calls(clock):
    times = Stopwatch(CPU).replayed({"a": takes(clock, [], "a", timing.REPLAYED)}, silent)
    assert times["a"].p50 == 1000


def test_the_hosts_time_is_that_of_the_call_alone(clock, monkeypatch):
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    clock.synchronize = lambda *_: setattr(clock, "now", clock.now + 1e6)
    assert Stopwatch(CPU).host({"a": takes(clock, [], "a", 2)}, silent)["a"] == Times(2e6, 2e6, 2e6)


def test_the_copys_bandwidth_counts_both_ways(clock, monkeypatch):
    monkeypatch.setattr(timing, "CACHE_BYTES", 4000)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: setattr(clock, "now", clock.now + 2))
    assert timing.copy_bandwidth(CPU) == pytest.approx(2 * 4000 / 2e-3)


def test_a_copy_moves_so_many_bytes_in_all():
    assert [timing.copying(moved, CPU)().nbytes for moved in (1, 4000, 4001)] == [1, 2000, 2001]


def test_a_host_that_is_late_gets_more_time(clock, monkeypatch):
    """The GPU had begun before everything was launched: such a sample counts for nothing."""
    late = [True, True, False]
    monkeypatch.setattr("clock.Event.query", lambda self: late.pop(0))
    stopwatch, called = Stopwatch(CPU), []
    slow, endless = takes(clock, called, "a", 9, 9, 2), takes(clock, called, "a", 5)
    assert stopwatch.device_time(slow) == 2000
    assert (stopwatch.flushes[slow], len(called)) == (4, 3)
    monkeypatch.setattr("clock.Event.query", lambda self: True)
    assert stopwatch.device_time(endless) == 5000, "for ever it does not wait"
    assert stopwatch.flushes == {slow: 4, endless: timing.MOST_FLUSHES}, "each as much as it needs"


def test_who_raises_is_named(clock):
    def broken():
        raise ZeroDivisionError("what a bug")

    with pytest.raises(CallError) as raised:
        Stopwatch(CPU).cold({"a": takes(clock, [], "a", 1), "b": broken}, silent)
    assert (raised.value.name, str(raised.value.cause)) == ("b", "what a bug")


class Cuda:
    """torch.cuda as far as capturing takes it; everything happens on one stream, or the test fails."""

    def __init__(self):
        self.default, self.current, self.streams, self.capturing = object(), None, [], False
        self.current = self.default

    def Stream(self):
        self.streams.append(object())
        return self.streams[-1]

    def set_stream(self, stream):
        self.current = stream

    def current_stream(self):
        return self.current

    def default_stream(self):
        return self.default

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: "replayed")

    @contextmanager
    def graph(self, graph, stream):
        assert stream is self.current is not self.default
        self.capturing = True
        yield
        self.capturing = False


def test_graphs_are_captured_on_the_stream_of_all_else(monkeypatch):
    """autograd's nodes keep to the stream that they were made on, and a capture to its own."""
    cuda, seen = Cuda(), []
    for name in ("Stream", "set_stream", "current_stream", "default_stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for _ in range(2):
        timing.leave_default_stream(torch.device("cuda"))
    replay, result = timing.captured(lambda: seen.append((cuda.current, cuda.capturing)) or len(seen))
    assert (replay(), result) == ("replayed", timing.REPLAYED)
    assert seen == [(cuda.streams[0], True)] * timing.REPLAYED
    assert len(cuda.streams) == 1
