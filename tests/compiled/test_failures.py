"""Configs that do not compile, load or launch: the call goes on with another one, as if it had never been chosen."""

import re

import pytest
import torch
from triton.runtime.errors import OutOfResources

import tritonbn
from tritonbn import functional, targets
from tritonbn.choice import selection, space
from tritonbn.launching import launch
from tritonbn.measured import store, timings

SHAPE = (8, 16, 12, 12)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def recorded():
    """All launches of a test, compiled for an H100 and not run."""
    with targets.compiling_for("sm_90") as launches:
        yield launches


@pytest.fixture
def breaking(monkeypatch):
    """breaking(fails) makes `prepare` of a plan whose config is such raise; the configs that were tried are listed."""

    def breaks(fails, error=None):
        tried, original = [], launch.Plan.prepare

        def prepare(self, arguments, grid, keywords):
            tried.append(self.config)
            if fails(self.config, keywords):
                raise error or OutOfResources(300000, 232448, "shared memory")
            return original(self, arguments, grid, keywords)

        monkeypatch.setattr(launch.Plan, "prepare", prepare)
        return tried

    return breaks


def train():
    x = torch.randn(SHAPE, requires_grad=True)
    mean, var, counter = torch.zeros(16), torch.ones(16), torch.tensor(0)
    y = tritonbn.batch_norm(x, mean, var, training=True, num_batches_tracked=counter)
    return x, y


def kernels(launches):
    return [found.kernel for found in launches]


def failures():
    return {
        timings.choice_in(t): t.failure
        for entry in store.current().entries()
        for run in entry.runs
        for t in run.timings
        if t.failure
    }


def test_the_next_best_runs(recorded, breaking):
    first = []
    tried = breaking(lambda config, _: config in first or (not first and not first.append(config)))
    x, y = train()
    assert len(tried) == 2
    assert kernels(recorded) == ["resident_forward_kernel"], "one launch, so buffers are updated once"
    assert recorded[0].arguments["x"].data_ptr() == x.data_ptr()
    assert recorded[0].arguments["y"].data_ptr() == y.data_ptr()
    assert failures() == {timings.choice(tried[0]): "OutOfResources: out of resource: shared memory, Required: 300000, "
                          "Hardware limit: 232448. Reducing block sizes or `num_stages` may help."}  # fmt: skip
    functional._cases.clear()
    train()
    assert tried[2:] == [tried[1]], "what failed is not tried again"


def test_in_every_pass(recorded, breaking):
    """The config that is tried first fails."""
    first = {}
    tried = breaking(
        lambda config, keywords: first.setdefault(("DEAL" in keywords, "CORRECTION" in keywords), config) == config
    )
    x, y = train()
    y.backward(torch.ones_like(y))
    tritonbn.batch_norm(x.detach(), torch.zeros(16), torch.ones(16))
    assert [name.removeprefix("resident_") for name in kernels(recorded)] == [
        "forward_kernel",
        "backward_kernel",
        "inference_kernel",
    ]
    assert len(first) == 3
    assert len(tried) >= 6


def test_the_second_of_two_launches_fails_before_the_first_is_launched(recorded, breaking, monkeypatch):
    """Else the running buffers would be updated twice."""
    monkeypatch.setattr(space, "valid", lambda work, config, *_: [config] if config.strategy == "split" else [])
    tried = breaking(lambda config, keywords: keywords.get("PHASE") == "normalize" and config == tried_first(config))
    first = []

    def tried_first(config):
        first.append(config)
        return first[0]

    train()
    assert kernels(recorded) == ["forward_kernel"] * 2
    assert [found.arguments["PHASE"] for found in recorded] == ["statistics", "normalize"]
    assert tried[0] != tried[-1]


def test_what_runs_anywhere_is_left(recorded, breaking):
    conservative = []

    def fails(config, _):
        conservative[:] = [config]
        return config.strategy != "split" or config.num_warps != space.SAFE_WARPS

    tried = breaking(fails)
    with pytest.warns(RuntimeWarning, match="8 configs of forward failed on H100; it runs slowly"):
        train()
    assert len(set(tried)) == selection.MOST_FAILURES + 1
    assert kernels(recorded) == ["forward_kernel"] * 2
    assert len(failures()) == selection.MOST_FAILURES


def test_nothing_compiles_at_all(recorded, breaking):
    """A broken compiler: its own error, and nothing said of the configs."""
    breaking(lambda *_: True, RuntimeError("no ptxas"))
    with pytest.raises(RuntimeError, match="no ptxas"), pytest.warns(RuntimeWarning, match="8 configs"):
        train()
    assert not recorded
    assert not failures()


@pytest.mark.parametrize(
    "error",
    [
        "[CUDA]: out of memory",
        "[HIP]:  Code: 2, Messsage: out of memory",
        "[CUDA]: operation not permitted when stream is capturing",
    ],
)
def test_what_is_no_fault_of_a_config(recorded, breaking, error):
    """Neither time nor memory to load a kernel: the call fails, as without memory for tensors; the next begins anew."""
    short = [True]
    tried = breaking(lambda *_: bool(short), RuntimeError(f"Triton Error {error}"))
    with pytest.raises(RuntimeError, match=re.escape(error)):
        train()
    assert len(tried) == 1
    assert not failures()
    short.clear()
    train()
    assert tried == tried[:1] * 2, "the same config"


def test_a_kernel_whose_loading_failed_is_loaded_again(monkeypatch):
    """Which Triton does not do by itself: it would launch nothing at all."""
    loaded = []
    original = targets.CompilingDriver.load_binary

    def load(self, *arguments):
        loaded.append(arguments[0])
        if len(loaded) == 1:
            raise RuntimeError("Triton Error [CUDA]: out of memory")
        return original(self, *arguments)

    monkeypatch.setattr(targets.CompilingDriver, "load_binary", load)
    with targets.compiling_for("A100 40GB") as recorded:  # of no other test: kernels stay loaded
        with pytest.raises(RuntimeError, match="out of memory"):
            train()
        train()
        train()
    assert loaded == ["resident_forward_kernel"] * 2
    assert len(recorded) == 2


def test_a_launch_that_the_driver_refuses(monkeypatch):
    """The first launch of a plan: nothing has run yet. A later one is the caller's to know of."""
    refused = []
    original = targets.CompilingDriver.launcher_cls

    def launcher(self, source, metadata):
        launched = original(self, source, metadata)

        def launch(*arguments):
            if not refused:
                refused.append(metadata.name)
                raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")
            launched(*arguments)

        return launch

    monkeypatch.setattr(targets.CompilingDriver, "launcher_cls", launcher)
    with targets.compiling_for("sm_86") as recorded:  # of no other test: kernels keep the launcher of their first load
        train()
        assert refused
        assert len(recorded) == 1
        refused.clear()
        with pytest.raises(RuntimeError, match="too many blocks"):
            train()


def test_nothing_is_timed_where_nothing_can_be(recorded):
    """The recording driver has no clock."""
    with tritonbn.tuning("timed"), pytest.warns(RuntimeWarning, match="nothing was timed for forward"):
        train()
    assert kernels(recorded) == ["resident_forward_kernel"]


def test_timed_candidates_are_compiled_and_the_fastest_launched(recorded):
    """Through Triton's real path, with a clock of the test's; the kernel timed is the kernel launched."""

    def bench(call, quantiles):
        recorded.clear()
        call()
        return [float(recorded[0].num_warps)] * len(quantiles)

    with tritonbn.tuning("timed", bench):
        train()
        timed = recorded[-1]
        recorded.clear()
        train()
    (again,) = recorded
    assert again.key == timed.key
    assert again.num_warps == min(t.config["num_warps"] for e in store.current().entries() for t in e.runs[0].timings)
