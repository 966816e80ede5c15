"""Sweeps: what is timed, and that every timing is kept whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from support import DEVICE, forget, lose_the_gpu

import tritonbn
from tritonbn import devices, functional, problems, sweep
from tritonbn.choice import selection, timed
from tritonbn.launching import failures, launch
from tritonbn.launching.failures import DeviceLostError
from tritonbn.measured import timings
from tritonbn.problems import Problem, Task

PLACE = torch.device(DEVICE)
SHAPE = (2, 4, 3, 3)


pytestmark = pytest.mark.usefixtures("cache")


class Bench:
    """One millisecond for the first that is timed, two for the second, and so on; runs it only if asked to."""

    def __init__(self, error=lambda number: None, runs=False):
        self.calls, self.error, self.runs = 0, error, runs

    def __call__(self, call, quantiles):
        assert quantiles == (0.5, 0.2, 0.8)
        self.calls += 1
        if error := self.error(self.calls):
            raise error
        if self.runs:
            call()
        return [float(self.calls)] * len(quantiles)


EPILOGUES = [(None, False), ("relu", False), (None, True), ("relu", True), ("silu", False), ("silu", True)]


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("activation", "residual"), EPILOGUES)
def test_a_problem_is_what_a_module_asks_for(monkeypatch, layout, activation, residual):
    """Work, and the pass that is timed for it, are those of a real call."""
    asked, original = [], selection.choose
    monkeypatch.setattr(
        selection, "choose", lambda level, work, *args: (asked.append(work), original(level, work, *args))[1]
    )
    monkeypatch.setattr(
        launch.Plan, "run", lambda self, *args, run=launch.Plan.run: (ran.append(self.launches), run(self, *args))[1]
    )
    ran = []
    x = torch.randn(SHAPE, device=DEVICE).contiguous(memory_format=getattr(torch, FORMATS[layout])).requires_grad_()
    module = tritonbn.BatchNorm2d(4, activation=activation).to(DEVICE)
    beside = [torch.randn_like(x).requires_grad_()] if residual else []
    y = module(x, *beside)
    y.backward(torch.empty_like(y).copy_(y))
    module.eval()
    with torch.no_grad():
        module(x, *beside)
    for number, mode in enumerate(("forward", "backward", "inference")):
        task = Task(Problem(SHAPE, mode, torch.float32, layout, activation, residual), PLACE)
        assert task.work == asked[number], mode
        config = next(iter(task.configs.values()))
        assert config == original(selection.in_force(), task.work, task.device, 3, set(), PLACE, None)
        before = ran[number]
        task.trial()(config)
        assert ran[-1] == before, mode


FORMATS = {"channels_first": "contiguous_format", "channels_last": "channels_last"}


def test_a_problem_of_sample_norm(monkeypatch):
    asked, original = [], selection.choose
    monkeypatch.setattr(
        selection, "choose", lambda level, work, *args: (asked.append(work), original(level, work, *args))[1]
    )
    x = torch.randn(5, 7, device=DEVICE, requires_grad=True)
    weight, bias = (torch.ones(7, device=DEVICE, requires_grad=True) for _ in range(2))
    functional.sample_norm(x, weight, bias).sum().backward()
    for number, mode in enumerate(("sample_forward", "sample_backward")):
        task = Task(Problem((5, 7), mode, torch.float32), PLACE)
        assert task.work.geometry.values == asked[number].geometry.values
        assert task.work.mode == asked[number].mode
        assert len(list(sweep.run(task, sweep.pending(task, top=2), Bench(runs=True)))) == 2
    with pytest.raises(ValueError, match="neither an activation nor a residual"):
        Task(Problem((5, 7), "sample_forward", residual=True), PLACE)


def test_every_mode_has_its_configs_best_first():
    for mode in problems.MODES:
        task = Task(Problem(SHAPE, mode), PLACE)
        modelled = [task.modelled(config) for config in task.configs.values()]
        assert modelled == sorted(modelled)
        assert len(modelled) > 1
        assert all(time > task.floor > 0 for time in modelled)


def test_what_no_call_takes_is_no_problem():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        Task(Problem((1, 4)), PLACE)
    with pytest.raises(RuntimeError, match="axis 1"):
        Task(Problem((4,)), PLACE)
    with pytest.raises(ValueError, match="expected a mode of forward, .*, got 'training'"):
        Task(Problem((4, 4), "training"), PLACE)
    with pytest.raises(ValueError, match="expected a layout of channels_first, channels_last, got 'NHWC'"):
        Task(Problem((4, 4), layout="NHWC"), PLACE)


@pytest.mark.parametrize("mode", problems.MODES)
def test_every_config_is_timed_and_kept_at_once(cache, mode):
    task = Task(Problem(SHAPE, mode), PLACE)
    bench, configs = Bench(runs=mode == "forward"), list(task.configs.values())
    for number, found in enumerate(sweep.run(task, sweep.pending(task), bench)):
        assert found == timings.timing(configs[number], (number + 1) / 1e3), "in the order of the model"
        forget()
        assert sweep.recorded(task).timings[-1] == found, "on disk before the next begins"
    assert bench.calls == len(configs) == number + 1
    assert sweep.pending(task) == []


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_no_strategy_is_left_out(mode):
    """Even where the model finds dozens of one before the first of another."""
    with devices.assume("H100"):
        task = Task(Problem((32, 64, 112, 112), mode), PLACE)
    configs = list(task.configs.values())
    found = sweep.pending(task, top=32)
    count = Counter(config.strategy for config in found)
    assert len({config.strategy for config in configs[:32]}) == 1
    assert min(count["resident"], count["dataflow"], count["split"]) >= 5
    assert len(found) == 32
    assert found == [config for config in configs if config in found]
    assert found[:16] == configs[:16]


def test_only_the_best_and_only_what_is_not_known():
    task = Task(Problem(SHAPE), PLACE)
    configs = list(task.configs.values())
    assert sweep.pending(task, top=3) == configs[:3]
    list(sweep.run(task, configs[1:2], Bench()))
    assert sweep.pending(task, top=3) == [configs[0], configs[2]]
    assert sweep.pending(task, top=3, again=True) == configs[:3]
    assert sweep.pending(task, top=len(configs) + 1, again=True) == configs
    assert sweep.pending(Task(Problem((2, 4, 3, 4)), PLACE), top=3), "another geometry is timed by itself"


def test_the_fastest_is_what_runs_from_then_on(monkeypatch):
    task = Task(Problem(SHAPE, dtype=torch.float32), PLACE)
    bench = Bench(lambda number: RuntimeError("no luck") if number < len(task.configs) else None)
    list(sweep.run(task, sweep.pending(task), bench))
    ran = []
    monkeypatch.setattr(
        launch.Plan, "run", lambda self, *args, run=launch.Plan.run: (ran.append(self.config), run(self, *args))[1]
    )
    with tritonbn.tuning("model"):
        tritonbn.BatchNorm2d(4).to(DEVICE)(torch.randn(SHAPE, device=DEVICE))
    assert ran == [list(task.configs.values())[-1]]


def test_a_config_that_fails_is_recorded_and_passed_over():
    task = Task(Problem(SHAPE), PLACE)
    bench = Bench(lambda number: RuntimeError("out of luck\nwith details") if number == 2 else None)
    found = list(sweep.run(task, sweep.pending(task), bench))
    assert [timing.seconds is None for timing in found] == [number == 1 for number in range(len(task.configs))]
    assert found[1].failure == "RuntimeError: out of luck"
    assert sweep.recorded(task).timings == found
    assert sweep.pending(task) == [], "it is not tried again"


def test_a_kernel_that_cannot_be_launched_is_a_failure(monkeypatch):
    """A trial goes on with no other config, as a call would."""
    task, tries = Task(Problem(SHAPE), PLACE), []

    def run(plan, *args):
        tries.append(plan.config)
        try:
            raise ValueError("no room")
        except ValueError as error:
            raise launch.UnfitError(plan) from error

    monkeypatch.setattr(launch.Plan, "run", run)
    found = list(sweep.run(task, sweep.pending(task, top=4), Bench(runs=True)))
    assert {timing.failure for timing in found} == {"ValueError: no room"}
    assert len(found) == 4
    assert len(tries) <= 8


def test_without_memory_nothing_is_recorded(cache):
    task = Task(Problem(SHAPE), PLACE)
    with pytest.raises(torch.OutOfMemoryError):
        list(sweep.run(task, sweep.pending(task), Bench(lambda number: torch.OutOfMemoryError("no room"))))
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Triton Error [HIP]:  Code: 2, Messsage: out of memory"),
        MemoryError(),
    ],
    ids=str,
)
def test_what_a_driver_has_no_memory_for_is_no_failure_of_the_config(cache, error):
    """It may have some the next time; torch has an error of its own for that, Triton has none."""
    task = Task(Problem(SHAPE), PLACE)
    with pytest.raises(type(error)) as raised:
        list(sweep.run(task, sweep.pending(task), Bench(lambda number: error)))
    assert raised.value is error
    assert not list(cache.glob("*.json"))


def test_a_lost_gpu_ends_the_sweep_after_recording_why(monkeypatch):
    lose_the_gpu(monkeypatch)
    task = Task(Problem(SHAPE), PLACE)
    bench = Bench(lambda number: RuntimeError("CUDA error: misaligned address"))
    with pytest.raises(DeviceLostError, match="does nothing more after .*misaligned address"):
        list(sweep.run(task, sweep.pending(task), bench))
    assert bench.calls == 1
    assert [timing.failure for timing in sweep.recorded(task).timings] == [
        "RuntimeError: CUDA error: misaligned address"
    ]


@pytest.mark.parametrize("kind", ["cpu", "meta", "cuda", "xpu"])
def test_whoever_waits_for_a_gpu_waits_for_that_of_the_tensors(monkeypatch, kind):
    asked = []
    module = SimpleNamespace(synchronize=asked.append)
    monkeypatch.setattr(torch, "get_device_module", lambda place: module)
    failures.wait_for(torch.device(kind, 1))
    assert asked == [torch.device(kind, 1)] * (kind in ("cuda", "xpu"))


def test_a_benchmark_is_on_the_gpu_of_the_tensors(monkeypatch):
    """Its events say nothing of another's kernels."""
    task, current = Task(Problem(SHAPE), PLACE), []

    @contextlib.contextmanager
    def on_device(place):
        current.append(place)
        yield
        current.remove(place)

    def bench(call, quantiles):
        call()
        return [len(current), 1.0, 1.0]

    monkeypatch.setattr(sweep, "on_device", on_device)
    found = list(sweep.run(task, sweep.pending(task, top=2), bench))
    assert [timing.seconds for timing in found] == [1e-3] * 2


def test_without_a_gpu_and_a_benchmark_of_ones_own(monkeypatch):
    task = Task(Problem(SHAPE), torch.device("cpu"))
    monkeypatch.setattr(timed.DRIVERS, "_active", object(), raising=False)
    with pytest.raises(RuntimeError, match="expected a GPU to time on"):
        list(sweep.run(task, sweep.pending(task)))
    assert sweep.recorded(task).timings == []


def test_an_interrupted_sweep_keeps_what_it_has():
    task = Task(Problem(SHAPE), PLACE)
    with pytest.raises(KeyboardInterrupt):
        list(sweep.run(task, sweep.pending(task), Bench(lambda number: KeyboardInterrupt() if number == 4 else None)))
    forget()
    assert len(sweep.recorded(task).timings) == 3
    assert sweep.pending(task) == list(task.configs.values())[3:]


SWEEP = """
import sys, time, torch
from tritonbn import sweep
from tritonbn.problems import Problem, Task

def bench(call, quantiles):
    time.sleep(0.05)
    return [1.0] * len(quantiles)

for mode in ("forward", "backward"):
    task = Task(Problem((2, 4, 3, 3), mode), torch.device("cpu"))
    for found in sweep.run(task, sweep.pending(task), bench):
        print(mode, found.config, flush=True)
"""


@pytest.mark.thorough
@pytest.mark.skipif(DEVICE != "cpu", reason="the processes run in the interpreter")
def test_a_killed_sweep_goes_on_where_it_was(cache):
    command = [sys.executable, "-c", SWEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        first = [killed.stdout.readline() for _ in range(5)]
        time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        first += killed.stdout.readlines()
    second = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines(keepends=True)
    every = [
        f"{mode} {timings.timing(config, None).config}\n"
        for mode in ("forward", "backward")
        for config in Task(Problem(SHAPE, mode), PLACE).configs.values()
    ]
    unsaid = len(every) - len(first) - len(second)
    assert 0 <= unsaid <= 1, "killed between its record and its word"
    assert first == every[: len(first)]
    assert second == every[len(first) + unsaid :]
    for mode in ("forward", "backward"):
        task = Task(Problem(SHAPE, mode), PLACE)
        assert len(sweep.recorded(task).timings) == len(task.configs)
