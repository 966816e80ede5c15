"""Which sample-wise config runs: the model's, the fastest ever timed, one that is timed now, one that does not fail."""

import subprocess
import sys

import pytest
import torch
from support import DEVICE, forget, random, vector

import tritonbn
from tritonbn import functional, reference
from tritonbn.choice import sample_space, selection, timed
from tritonbn.functional import sample_norm
from tritonbn.kernels import sample_gradients_kernel
from tritonbn.launching import counters, launch
from tritonbn.measured import store
from tritonbn.planning import sample_plan

SHAPE = (10, 24)


pytestmark = pytest.mark.usefixtures("cache")


class Bench:
    """Times that depend on the config alone: those that `fast(config)` are fast, those that `fails(config)` fail."""

    def __init__(self, runs, fast=lambda config: False, fails=lambda config: False):
        self.runs, self.fast, self.fails, self.timed = runs, fast, fails, []

    def __call__(self, call, quantiles):
        call()
        config = self.runs[-1]
        self.timed.append(config)
        if self.fails(config):
            raise RuntimeError("out of luck")
        return [1.0 if self.fast(config) else 2.0] * len(quantiles)


def both(x=None):
    """y and the gradients of input, weight and bias, each compared with the truth."""
    x = random(SHAPE) if x is None else x
    leaves = [t.requires_grad_() for t in (x, vector(SHAPE[1], torch.float32, 1), vector(SHAPE[1], torch.float32, 2))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    y, truth = sample_norm(*leaves), reference.sample_norm(*exact, 1e-3)
    dy = random(SHAPE, seed=3)
    torch.testing.assert_close(y.double(), truth, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(truth, exact, dy.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_the_model_runs_nothing_to_choose(runs):
    for level in ("off", "model"):
        with tritonbn.tuning(level):
            both()
    assert len(runs) == 6, "a forward launch, gradients and columns, each twice"
    assert runs[:3] == runs[3:]


def test_the_fastest_is_kept(runs, cache):
    with tritonbn.tuning("off"):
        both()
    ours = runs[0], runs[-1]
    bench = Bench(runs, lambda config: config not in ours and config.num_warps == 2)
    with tritonbn.tuning("timed", bench):
        both()
        assert {config.num_warps for config in runs[-2:]} == {2}
        assert 2 < len(bench.timed) <= 2 * timed.MOST_TIMED
        assert set(ours) <= set(bench.timed), "the model's choices are among them"
        before = len(bench.timed)
        forget()
        both()
    with tritonbn.tuning("model"):
        both()
    assert len(bench.timed) == before
    assert runs[-3:] == runs[-6:-3] == runs[-9:-6]
    with tritonbn.tuning("off"):
        both()
    assert (runs[-3], runs[-1]) == ours, "off asks no cache"
    assert sorted(path.name.split("-")[0] for path in cache.glob("*.json")) == ["sample_backward", "sample_forward"]


def test_nothing_of_the_caller_is_touched(runs):
    x = random(SHAPE)
    kept, state = x.clone(), torch.get_rng_state()
    with tritonbn.tuning("timed", Bench(runs)):
        both(x)
    assert len(runs) > 10
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)], ids=str)
def test_whatever_is_given_is_timed(runs, given):
    vectors = {name: vector(SHAPE[1], torch.float32, 1).requires_grad_() for name in given}
    bench, x = Bench(runs), random((1, SHAPE[1])).expand(SHAPE)
    with tritonbn.tuning("timed", bench):
        sample_norm(x, **vectors)
        forward = len(bench.timed)
        sample_norm(x.clone().requires_grad_(), **vectors).sum().backward()
    assert 0 < forward < len(bench.timed)


def test_nothing_is_timed_while_a_graph_is_captured(runs, monkeypatch):
    bench = Bench(runs)
    with tritonbn.tuning("timed", bench):
        with monkeypatch.context() as capture:
            capture.setattr(counters, "capturing", lambda device: True)
            both()
            assert not bench.timed
        both()
        assert bench.timed, "put off, not given up"


def test_a_config_that_fails_is_passed_over_and_kept_as_failed(runs):
    bench = Bench(runs, fails=lambda config: config.num_warps == 1)
    with tritonbn.tuning("timed", bench):
        both()
    assert all(config.num_warps > 1 for config in runs[-2:])
    for entry in store.current().entries():
        (run,) = entry.runs
        failed = [t for t in run.timings if t.seconds is None]
        assert failed
        assert all(t.config["num_warps"] == 1 and "RuntimeError: out of luck" in t.failure for t in failed)


def unfit(monkeypatch, fails):
    """Plans that `fails(plan)` do not compile; their kernels and configs, in order."""
    original, failed = launch.Plan.run, []

    def run(self, *args):
        if fails(self):
            failed.append((self.kernel, self.config))
            raise launch.UnfitError(self) from RuntimeError("too large")
        return original(self, *args)

    monkeypatch.setattr(launch.Plan, "run", run)
    return failed


@pytest.mark.parametrize("level", ["off", "model", "timed"])
def test_a_config_that_does_not_compile_is_replaced(monkeypatch, level, runs):
    failed = unfit(monkeypatch, lambda plan: plan.config.num_warps == 1)
    with tritonbn.tuning(level, Bench(runs)):
        both()
        assert failed
        assert len(set(failed)) == len(failed), "none is tried twice"
        before = len(failed)
        both()
    assert len(failed) == before


def test_all_launches_of_a_pass_have_the_same_config(monkeypatch, runs):
    """A later launch of the pass that does not compile takes the earlier ones with it."""
    monkeypatch.setattr(sample_space, "LONG", 8)
    monkeypatch.setitem(
        sample_space.SPACES, ("sample_backward", "rows"), sample_space.SPACES["sample_backward", "rows"][1:]
    )
    failed = []

    def fails(plan):
        fresh = plan.kernel is sample_gradients_kernel and len(failed) < 3
        failed.extend([plan] * fresh)
        return fresh

    unfit(monkeypatch, fails)
    both()
    assert [config.strategy for config in runs[1:]] == ["long"] * 6, "row sums four times, then gradients and columns"
    assert len({*runs[-3:]}) == 1
    assert len({*runs[1:]}) == 4


def test_if_nothing_compiles_the_reason_is_raised(monkeypatch):
    failed = unfit(monkeypatch, lambda plan: True)
    warning = pytest.warns(RuntimeWarning, match="8 configs of sample_forward failed")
    with warning, pytest.raises(RuntimeError, match="too large"):
        sample_norm(random(SHAPE))
    assert len(failed) == selection.MOST_FAILURES + 1
    assert failed[-1][1] == sample_space.conservative(*work_and_device())


def work_and_device():
    (case,) = functional._cases.values()
    return sample_plan.Forward(keeps_statistics=False).work(case), case.device


def test_a_conservative_config_computes_the_same(monkeypatch, runs):
    calls = []

    def conservative(level, work, device, *_):
        calls.append(work.mode)
        return sample_space.conservative(work, device)

    monkeypatch.setattr(selection, "choose", conservative)
    both()
    assert calls == ["sample_forward", "sample_backward"]


SECOND = """
import torch, tritonbn
from tritonbn.launching import launch
from tritonbn.functional import sample_norm
runs = []
original = launch.Plan.run
launch.Plan.run = lambda self, *args: (runs.append(self.config), original(self, *args))[1]
timed = []
def bench(call, quantiles):
    call()
    timed.append(runs[-1])
    return [1.0 if runs[-1].num_warps == 2 else 2.0] * len(quantiles)
with tritonbn.backend("triton"), tritonbn.tuning("timed", bench):
    sample_norm(torch.randn(10, 24))
print(len(timed), runs[-1])
"""


@pytest.mark.thorough
@pytest.mark.skipif(DEVICE != "cpu", reason="the two processes run in the interpreter")
def test_a_second_process_times_nothing():
    first, second = (
        subprocess.run([sys.executable, "-c", SECOND], check=True, capture_output=True, text=True).stdout.split(" ", 1)
        for _ in range(2)
    )
    assert int(first[0]) > 1
    assert int(second[0]) == 0
    assert first[1] == second[1]
    assert "num_warps=2" in first[1]
