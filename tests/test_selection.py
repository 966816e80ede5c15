"""Which config runs: the model's, the fastest ever timed, one that is timed now; and what that leaves alone."""

import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from support import DEVICE, forget, lose_the_gpu, random, vector

import tritonbn
from tritonbn import functional
from tritonbn.choice import selection, space, timed
from tritonbn.launching import counters
from tritonbn.launching.failures import DeviceLostError
from tritonbn.measured import store, timings

SHAPE = (3, 2, 4, 4)


pytestmark = pytest.mark.usefixtures("cache")


class Bench:
    """Times that depend on the config alone: `favourite(config)` says which are fast."""

    def __init__(self, runs, favourite=lambda config: False, error=None):
        self.runs, self.favourite, self.error = runs, favourite, error
        self.timed = []

    def __call__(self, call, quantiles):
        call()
        config = self.runs[-1]
        self.timed.append(config)
        if self.error is not None and self.error(config):
            raise RuntimeError(f"out of luck with {config.num_warps} warps")
        taken = 1.0 if self.favourite(config) else 2.0
        return [taken] * len(quantiles)


def forward(x, training=True):
    mean, var = vector(2, torch.float32, 1), vector(2, torch.float32, 2, positive=True)
    y = tritonbn.batch_norm(x, mean, var, training=training)
    return y, mean, var


def test_the_model_runs_nothing_to_choose(runs):
    for level in ("off", "model"):
        with tritonbn.tuning(level):
            forward(random(SHAPE))
    assert len(runs) == 2
    assert runs[0] == runs[1]


def test_the_fastest_is_kept(runs):
    with tritonbn.tuning("off"):
        forward(random(SHAPE))
    bench = Bench(runs, lambda config: config.strategy == "dataflow")
    with tritonbn.tuning("timed", bench):
        forward(random(SHAPE))
    assert 1 < len(bench.timed) <= timed.MOST_TIMED
    assert runs[0] in bench.timed, "the model's choice is among them"
    assert runs[-1].strategy == "dataflow"
    assert {config.strategy for config in bench.timed} == {"resident", "dataflow", "split"}

    before = len(bench.timed)
    with tritonbn.tuning("timed", bench):
        forward(random(SHAPE))
        forget()
        forward(random(SHAPE))
    with tritonbn.tuning("model"):
        forward(random(SHAPE))
    assert runs[-4:] == [runs[-1]] * 4
    with tritonbn.tuning("off"):
        forward(random(SHAPE))
    assert runs[-1] == runs[0], "off asks no cache"
    assert len(bench.timed) == before


def test_each_mode_is_timed_by_itself(runs, cache):
    bench = Bench(runs)
    x = random(SHAPE).requires_grad_()
    with tritonbn.tuning("timed", bench):
        y, *_ = forward(x)
        y.backward(torch.ones_like(y))
        y, *_ = forward(x, training=False)
        y.backward(torch.ones_like(y))
    kept = sorted(path.name.split("-")[0] for path in cache.glob("*.json"))
    assert kept == ["backward", "elementwise", "forward", "inference"]


@pytest.mark.parametrize(
    ("activation", "memory_format"), [("relu", torch.contiguous_format), ("silu", torch.channels_last)], ids=str
)
def test_nothing_of_the_caller_is_touched(runs, activation, memory_format):
    """Many configs run, but buffers are updated once, the input is not written, and no random number is drawn."""
    x = random(SHAPE).to(memory_format=memory_format)
    kept, state, found = x.clone(), torch.get_rng_state(), {}
    for level in ("off", "timed"):
        module = tritonbn.BatchNorm2d(2, momentum=None, activation=activation).to(DEVICE)
        leaf, residual = x.clone().requires_grad_(), random(SHAPE, seed=3).requires_grad_()
        with tritonbn.tuning(level, Bench(runs, lambda config: config.strategy == "dataflow")):
            y = module(leaf, residual)
            y.backward(torch.ones_like(y))
        tensors = [y, leaf.grad, residual.grad, *module.state_dict().values()]
        found[level] = [t.detach().clone() for t in (*tensors, *(p.grad for p in module.parameters()))]
    assert len(runs) > 10
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(found["timed"], found["off"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_backward_pass_in_another_thread_is_chosen_like_its_forward_pass(runs):
    """As torch's autograd runs it for a GPU."""
    bench, x = Bench(runs), random(SHAPE).requires_grad_()
    with tritonbn.tuning("timed", bench):
        y, *_ = forward(x)
    timed_forward = len(bench.timed)
    thread = threading.Thread(target=lambda: y.sum().backward())
    thread.start()
    thread.join()
    assert x.grad is not None
    assert len(bench.timed) > timed_forward


def test_expanded_and_negated_inputs_are_timed_too(runs):
    bench = Bench(runs)
    with tritonbn.tuning("timed", bench):
        x = random((3, 2, 1, 1)).expand(SHAPE)
        torch.testing.assert_close(forward(x)[0], torch.nn.functional.batch_norm(x, None, None, training=True))
    assert bench.timed


def test_alike_shapes_share_timings(runs):
    bench = Bench(runs)
    with tritonbn.tuning("timed", bench):
        forward(random((16, 2, 2, 2)))
        timed = len(bench.timed)
        forward(random((15, 2, 2, 2)))
        assert len(bench.timed) == timed
        forward(random((8, 2, 2, 2)))
        assert len(bench.timed) > timed


def test_what_was_timed_and_may_not_run_here_is_passed_over(runs):
    """The space of the call decides what may run, not the file: it may be of a GPU with more room."""
    x = random(SHAPE)
    with tritonbn.tuning("off"):
        forward(x)
    (case,) = functional._cases.values()
    work, device = case_work(case), case.device
    foreign = timings.Timing(dict(timings.choice(runs[0])) | {"num_warps": 64}, 1e-9)
    slow = timings.timing(runs[0], 1.0)
    store.current().record(timings.key_of(work, device), work.geometry, [foreign, slow])
    with tritonbn.tuning("model"):
        forward(x)
    assert runs[-1] == runs[0]


def case_work(case):
    from tritonbn.plan import Forward

    return Forward(None, keeps_signs=False).work(case)


def test_nothing_is_timed_while_a_graph_is_captured(runs, monkeypatch):
    bench, x = Bench(runs), random(SHAPE)
    with tritonbn.tuning("timed", bench):
        with monkeypatch.context() as capture:
            capture.setattr(counters, "capturing", lambda device: True)
            forward(x)
            assert not bench.timed
        forward(x)
        assert bench.timed, "put off, not given up"


def test_threads_time_one_after_the_other(runs):
    with tritonbn.tuning("off"):
        forward(random(SHAPE))
    (case,) = functional._cases.values()
    work, inside, most, chosen = case_work(case), [], [], []

    def bench(call, quantiles):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        call()
        return [1.0] * len(quantiles)

    def choose():
        with tritonbn.tuning("timed", bench):
            chosen.append(
                selection.choose(selection.in_force(), work, case.device, 0, set(), case.place, lambda config: None)
            )

    threads = [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) <= timed.MOST_TIMED
    assert chosen == chosen[:1] * 4


def test_two_processes_that_time_at_once_run_the_same_config(runs):
    """What was kept first goes before: here by another process, while this one was timing, and found otherwise."""

    def bench(call, quantiles):
        call()
        entry = store.Store(*store.current().directories)
        (case,) = functional._cases.values()
        work = case_work(case)
        theirs = [timings.timing(config, 1.0) for config in runs if config.strategy == "split"]
        entry.record(timings.key_of(work, case.device), work.geometry, theirs)
        return [1.0 if runs[-1].strategy == "dataflow" else 2.0] * len(quantiles)

    with tritonbn.tuning("timed", bench):
        forward(random(SHAPE))
    assert runs[-1].strategy == "split"
    forget()
    with tritonbn.tuning("model"):
        forward(random(SHAPE))
    assert runs[-1] == runs[-2]


def test_a_lost_gpu_ends_the_call_and_only_the_config_that_did_it_is_a_failure(runs, monkeypatch):
    bench = Bench(runs, error=lambda config: len(bench.timed) > 2)
    lose_the_gpu(monkeypatch, lambda: len(bench.timed) > 2)
    with (
        tritonbn.tuning("timed", bench),
        pytest.raises(DeviceLostError, match="does nothing more after .*: RuntimeError: out of luck with"),
    ):
        forward(random(SHAPE))
    assert len(bench.timed) == 3
    forget()
    (entry,) = store.current().entries()
    ((guilty,),) = [run.timings for run in entry.runs]
    assert guilty == timings.timing(bench.timed[-1], None, guilty.failure)


def test_what_has_lost_a_gpu_is_not_timed_again(runs):
    first = Bench(runs)
    with tritonbn.tuning("timed", first):
        forward(random(SHAPE))
    (case,) = functional._cases.values()
    key, geometry = timings.key_of(case_work(case), case.device), case_work(case).geometry
    for path in store.current().files():
        path.unlink()
    store.current().record(key, geometry, [timings.timing(first.timed[0], None, "illegal memory access")])
    forget()
    second = Bench(runs)
    with tritonbn.tuning("timed", second):
        forward(random(SHAPE))
    assert second.timed
    assert first.timed[0] not in second.timed


def test_a_gpu_that_was_lost_before_is_no_fault_of_a_config(runs, monkeypatch, cache):
    lose_the_gpu(monkeypatch)
    bench = Bench(runs)
    with tritonbn.tuning("timed", bench), pytest.raises(RuntimeError, match="^CUDA error: an illegal memory access"):
        forward(random(SHAPE))
    assert not bench.timed
    assert not list(cache.glob("*.json"))


def test_a_config_that_fails_is_passed_over_and_kept_as_failed(runs, cache):
    bench = Bench(runs, error=lambda config: config.strategy == "resident")
    with tritonbn.tuning("timed", bench):
        y, *_ = forward(random(SHAPE))
    assert runs[-1].strategy != "resident"
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(random(SHAPE), None, None, training=True))
    (entry,) = store.current().entries()
    (run,) = entry.runs
    failures = {t.config["strategy"]: t.failure for t in run.timings if t.seconds is None}
    assert failures.keys() == {"resident"}
    assert "RuntimeError: out of luck with" in failures["resident"]


def test_if_all_fail_what_runs_anywhere_does(runs, cache):
    x = random(SHAPE)
    bench = Bench(runs, error=lambda config: True)
    with tritonbn.tuning("timed", bench), pytest.warns(RuntimeWarning, match="8 configs of forward failed") as caught:
        y, _ = [forward(x)[0] for _ in range(2)]
    assert len(caught) == 1
    (case,) = functional._cases.values()
    assert runs[-1] == space.conservative(case_work(case), case.device)
    assert runs[-1].strategy == "split"
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, training=True))
    assert not list(cache.glob("*.json")), "a machine on which nothing runs says nothing about the next one"


@pytest.mark.parametrize("milliseconds", [float("nan"), -1.0, float("inf")])
def test_a_clock_that_says_nonsense(runs, cache, milliseconds):
    """Such a config counts as failed; the file stays one that can be read."""
    with tritonbn.tuning("timed", lambda call, quantiles: call() or [milliseconds if len(runs) == 1 else 1.0] * 3):
        forward(random(SHAPE))
        forget()
        forward(random(SHAPE))
    failures = [t.failure for entry in store.current().entries() for t in entry.runs[0].timings if t.seconds is None]
    assert failures == [f"expected a time in seconds, got {milliseconds / 1e3}"]


def test_a_clock_that_is_too_coarse(runs, cache):
    with tritonbn.tuning("timed", lambda call, quantiles: call() or [0.0] * 3):
        forward(random(SHAPE))
    (entry,) = store.current().entries()
    assert all(t.seconds == timings.SHORTEST for t in entry.runs[0].timings)


def test_a_benchmark_that_breaks_says_nothing_of_configs(runs, cache):
    def bench(call, quantiles):
        raise RuntimeError("no events left")

    with tritonbn.tuning("timed", bench), pytest.warns(RuntimeWarning, match="nothing was timed.*no events left"):
        forward(random(SHAPE))
    assert len(runs) == 1
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("Triton Error [CUDA]: out of memory, no room")], ids=str
)
def test_without_memory_to_time_on(runs, cache, error):
    def bench(call, quantiles):
        call()
        raise error

    with tritonbn.tuning("off"):
        forward(random(SHAPE))
    with (
        tritonbn.tuning("timed", bench),
        pytest.warns(RuntimeWarning, match="nothing was timed for forward: .*no room"),
    ):
        forward(random(SHAPE))
    assert runs[-1] == runs[0]
    assert not list(cache.glob("*.json"))


def test_the_environment(runs, monkeypatch):
    monkeypatch.setenv(selection.VARIABLE, "of")
    with pytest.raises(ValueError, match="TRITONBN_TUNE: expected one of 'off', 'model', 'timed', got 'of'"):
        forward(random(SHAPE))
    monkeypatch.setenv(selection.VARIABLE, "")
    forward(random(SHAPE))
    assert len(runs) == 1
    with pytest.raises(ValueError, match="tuning: expected one of 'off', 'model', 'timed', got 'fast'"):
        tritonbn.tuning("fast")


def test_blocks_nest_and_decorate():
    @tritonbn.tuning("timed")
    def inner():
        return selection.in_force().name

    with tritonbn.tuning("off"):
        assert inner() == "timed"
        assert selection.in_force().name == "off"
        with tritonbn.tuning("model"):
            assert selection.in_force().name == "model"
        assert selection.in_force().name == "off"
    assert selection.in_force().name == "model"


SECOND = """
import sys, torch, tritonbn
from tritonbn.launching import launch
runs = []
original = launch.Plan.run
launch.Plan.run = lambda self, *args: (runs.append(self.config), original(self, *args))[1]
timed = []
def bench(call, quantiles):
    call()
    timed.append(runs[-1])
    return [1.0 if runs[-1].strategy == "dataflow" else 2.0] * len(quantiles)
with tritonbn.backend("triton"), tritonbn.tuning("timed", bench):
    tritonbn.batch_norm(torch.randn(3, 2, 4, 4), None, None, training=True)
print(len(timed), runs[-1])
"""


@pytest.mark.thorough
@pytest.mark.skipif(DEVICE != "cpu", reason="the two processes run in the interpreter")
def test_a_second_process_times_nothing(cache):
    first, second = (
        subprocess.run([sys.executable, "-c", SECOND], check=True, capture_output=True, text=True).stdout.split(" ", 1)
        for _ in range(2)
    )
    assert int(first[0]) > 1
    assert int(second[0]) == 0
    assert first[1] == second[1]
    assert "strategy='dataflow'" in first[1]


def test_no_warning_otherwise():
    with warnings.catch_warnings(), tritonbn.tuning("model"):
        warnings.simplefilter("error")
        forward(random(SHAPE))


@pytest.mark.skipif(DEVICE == "cpu", reason="times with the driver's own benchmark, on a GPU")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_timed_for_real(runs, memory_format):
    x = random((32, 64, 56, 56), torch.bfloat16).to(memory_format=memory_format).requires_grad_()
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    dy = torch.randn_like(expected)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)
    with tritonbn.tuning("timed"):
        y = tritonbn.batch_norm(x, None, None, training=True)
        (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(dx, expected_dx, rtol=0.02, atol=0.02)
    for entry in store.current().entries():
        (run,) = entry.runs
        assert all(t.seconds for t in run.timings), [t.failure for t in run.timings]
        assert entry.key.gpu.startswith(torch.cuda.get_device_name())


@pytest.mark.skipif(DEVICE == "cpu", reason="captures a CUDA graph")
def test_a_captured_call_is_not_timed(runs):
    x = random((32, 64, 56, 56), torch.bfloat16)
    bench = Bench(runs)
    with tritonbn.tuning("off"):
        tritonbn.batch_norm(x, None, None, training=True)
    graph = torch.cuda.CUDAGraph()
    with tritonbn.tuning("timed", bench), torch.cuda.graph(graph):
        y = tritonbn.batch_norm(x, None, None, training=True)
    assert not bench.timed
    graph.replay()
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, training=True), rtol=0.02, atol=0.02)
