"""From the call to the driver, by Triton's real path: what is launched, how often, on which grid, with what."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton

import tritonbn
from tritonbn import functional, targets
from tritonbn.launching import counters
from tritonbn.launching.launch import Plan

SHAPE = (4, 6, 5, 7)


@pytest.fixture
def recorded():
    """All launches of a test, compiled for an H100 and not run."""
    with targets.compiling_for("sm_90") as launches:
        yield launches


def names(launches):
    return [(launch.kernel, launch.arguments.get("PHASE")) for launch in launches]


FORWARD = [("resident_forward_kernel", None)]
BACKWARD = [("resident_backward_kernel", None)]
SUMS = [("backward_kernel", "sums")]
LARGE = (8, 64, 256, 256)
"""Several chunks per channel."""


def numbers(launch):
    """What is kept of all channels for all chunks and spans: mean, in float32 in two parts, and M2; or two sums."""
    given = launch.arguments
    results = 3 if "forward" in launch.kernel and given["x"].dtype == torch.float32 else 2
    spans = given["BLOCK_K"] // given["SPAN"] if given["SPAN"] < given["BLOCK_K"] else 0
    rows = max(given["BLOCK_K"], 2) + spans
    return given["blocks"] * given["BLOCK_C"] * rows * results


def test_training(recorded):
    x = torch.randn(SHAPE, requires_grad=True)
    mean, var = torch.zeros(6), torch.ones(6)
    weight, bias = torch.ones(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    batches = torch.tensor(7)
    y = tritonbn.batch_norm(
        x, mean, var, weight, bias, training=True, momentum=0.3, eps=1e-4, num_batches_tracked=batches
    )
    assert names(recorded) == FORWARD
    for launch in recorded:
        given = launch.arguments
        assert given["x"].data_ptr() == x.data_ptr()
        assert given["y"].data_ptr() == y.data_ptr()
        assert given["weight"] is weight
        assert given["bias"] is bias
        assert given["running_mean"] is mean
        assert given["running_var"] is var
        assert given["average_factor"] is None
        assert given["num_batches_tracked"] is batches
        assert (given["momentum"], given["eps"]) == (0.3, 1e-4)
        assert given["statistics"].shape == (2, 6)
        assert given["statistics"].dtype == torch.float32
        assert given["partials"] is given["counters"] is None, "one chunk has nobody to wait for"
    recorded.clear()
    dy = torch.randn(SHAPE)
    dx, dweight, dbias = torch.autograd.grad(y, [x, weight, bias], dy)
    assert names(recorded) == BACKWARD
    for launch in recorded:
        given = launch.arguments
        assert given["dy"].data_ptr() == dy.data_ptr()
        assert given["dx"].data_ptr() == dx.data_ptr()
        assert given["dweight"].data_ptr() == dweight.data_ptr()
        assert given["dbias"].data_ptr() == dbias.data_ptr()


def test_several_chunks_a_channel_are_one_launch_too(recorded):
    x = torch.empty(LARGE, dtype=torch.float16, device="meta", requires_grad=True)
    y = tritonbn.batch_norm(x, None, None, training=True)
    torch.autograd.grad(y, x, torch.empty_like(y))
    assert names(recorded) == FORWARD + BACKWARD
    for launch in recorded:
        given = launch.arguments
        assert given["chunks"] > 1
        assert launch.grid == (given["blocks"] * given["chunks"], 1, 1) or given["AT_ONCE"]
        assert given["partials"].dtype == torch.float32
        assert given["partials"].numel() == numbers(launch)
        assert given["counters"].dtype == torch.int32


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
def test_an_epilogue_adds_no_launch(recorded, cut, activation):
    cut(1, 8, 1024, 1, strategy="resident")
    x, residual = (torch.empty(LARGE, dtype=torch.float16, device="meta", requires_grad=True) for _ in range(2))
    y = tritonbn.batch_norm(x, None, None, training=True, residual=residual, activation=activation)
    torch.autograd.grad(y, [x, residual], torch.empty_like(y))
    kernels = [launch.kernel.removeprefix("resident_") for launch in recorded]
    assert kernels == ["forward_kernel", "backward_kernel"]


def test_evaluation(recorded):
    x, weight = torch.randn(SHAPE, requires_grad=True), torch.ones(6, requires_grad=True)
    with torch.no_grad():
        tritonbn.batch_norm(x, torch.zeros(6), torch.ones(6), weight)
    assert names(recorded) == [("inference_kernel", None)]
    assert recorded[0].arguments["statistics"] is None
    recorded.clear()
    y = tritonbn.batch_norm(x, torch.zeros(6), torch.ones(6), weight)
    assert names(recorded) == [("inference_kernel", None)]
    assert recorded[0].arguments["statistics"].shape == (2, 6)
    recorded.clear()
    torch.autograd.grad(y, [x, weight], torch.randn(SHAPE))
    assert names(recorded) == SUMS
    assert recorded[0].arguments["TRAINING"] is False


def test_evaluation_with_frozen_parameters_needs_no_sums(recorded):
    x = torch.randn(SHAPE, requires_grad=True)
    y = tritonbn.batch_norm(x, torch.zeros(6), torch.ones(6), torch.ones(6))
    recorded.clear()
    torch.autograd.grad(y, x, torch.randn(SHAPE))
    assert names(recorded) == SUMS
    assert recorded[0].arguments["partials"] is recorded[0].arguments["counters"] is None


def test_only_parameters_want_a_gradient(recorded):
    weight = torch.ones(6, requires_grad=True)
    y = tritonbn.batch_norm(torch.randn(SHAPE), None, None, weight, training=True)
    recorded.clear()
    torch.autograd.grad(y, weight, torch.randn(SHAPE))
    assert names(recorded) == SUMS
    assert recorded[0].arguments["dx"] is None


@pytest.mark.parametrize("shape", [(4, 6, 5, 7), (64, 16, 32, 32), (65537, 3), (1, 1, 10**6), (2, 5000, 3)])
def test_grid_and_workspace(recorded, shape):
    with targets.assume("H100"):
        tritonbn.batch_norm(torch.empty(shape, device="meta"), None, None, training=True)
    with targets.assume("H100", concurrent=False):
        tritonbn.batch_norm(torch.empty(shape, device="meta"), None, None, training=True)
    for launch in recorded:
        given = launch.arguments
        tiles = math.ceil(given["outer"] / given["BLOCK_O"]) * math.ceil(given["inner"] / given["BLOCK_I"])
        if given["RUN"]:
            tiles = math.ceil(given["outer"] * given["inner"] / given["FOLD"] / given["BLOCK_O"])
        assert given["chunks"] == math.ceil(tiles / given.get("tiles_per_chunk", given.get("TILES")))
        assert given["blocks"] == math.ceil(shape[1] / given["BLOCK_C"])
        items = given["blocks"] * given["chunks"]
        if given.get("PHASE") == "dataflow":
            items = 2 * given["chunks"] * given["window"] * math.ceil(given["blocks"] / given["window"])
        assert launch.grid == (items, 1, 1) or given["AT_ONCE"]
        assert given["BLOCK_K"] >= given["chunks"]
        if given["partials"] is not None:
            assert given["partials"].numel() == numbers(launch)


def planned():
    """How many cases of calls are known, and the plans of all of them."""
    cases = functional._cases.values()
    return len(cases), sum(len(case.plans) for case in cases)


def test_nothing_is_compiled_or_planned_twice(recorded, monkeypatch):
    module = tritonbn.BatchNorm2d(6, momentum=None)
    module(torch.randn(SHAPE)).sum().backward()
    monkeypatch.setattr(triton.JITFunction, "_do_compile", lambda *_, **__: pytest.fail("compiled again"))
    before = planned()
    for _ in range(3):
        module(torch.randn(SHAPE)).sum().backward()
    assert planned() == before
    assert len(recorded) == 8
    assert all(launch.arguments["num_batches_tracked"] is module.num_batches_tracked for launch in recorded[::2])


@pytest.mark.parametrize(
    ("seated", "shape", "dtype"),
    [((), (8, 4, 256, 256), torch.bfloat16), ((1, 2), (32, 32, 32, 32), torch.float32)],
    ids=["seated", "no seat left"],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda shape: lambda x: tritonbn.batch_norm(x, None, None, training=True),
        lambda shape: tritonbn.BatchNormalization(axis=1, batch_input_shape=(None, *shape[1:]), device="meta"),
    ],
    ids=["batch_norm", "Keras"],
)
def test_a_captured_call_loads_no_kernel(recorded, monkeypatch, make, seated, shape, dtype):
    """While a graph is captured the driver refuses to: what runs then was made ready by the call before.

    Also by one on a third stream, where programs do not wait.
    """
    monkeypatch.setattr(counters, "_seated", {torch.device("meta"): [*seated]})
    monkeypatch.setattr(counters, "current_stream", lambda device: 3)
    monkeypatch.setattr(counters, "may_capture", lambda place: True)
    monkeypatch.setattr(counters, "capturing", lambda place: False)
    x = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    call = make(shape)

    def train():
        y = call(x)
        torch.autograd.grad(y, x, torch.empty_like(y))

    train()
    eager = [made.key for made in recorded]
    recorded.clear()
    monkeypatch.setattr(counters, "capturing", lambda place: True)
    monkeypatch.setattr(Plan, "prepare", lambda *_: pytest.fail("compiled or loaded"))
    train()
    assert [made.kernel.removeprefix("resident_") for made in recorded] == ["forward_kernel", "backward_kernel"]
    assert [made.key for made in recorded] != eager, "a share of the GPU of its own, so another kernel"


def test_where_no_graph_is_ever_captured_nothing_is_made_ready_for_one(recorded, monkeypatch):
    made = []
    monkeypatch.setattr(Plan, "make_ready", lambda *_: made.append(1))
    monkeypatch.setattr(counters, "capturing", lambda place: False)
    for may_capture in (False, True):
        monkeypatch.setattr(counters, "may_capture", lambda place, may_capture=may_capture: may_capture)
        functional._cases.clear()
        tritonbn.batch_norm(torch.empty(32, 64, 56, 56, device="meta"), None, None, training=True)
        assert bool(made) == may_capture


def test_tensors_of_a_gpu_are_taken_where_another_is_compiled_for(recorded, monkeypatch):
    """A driver that is no GPU's has no number to be compared with the tensors' own."""
    run = Plan.run
    monkeypatch.setattr(Plan, "run", lambda self, place, *given: run(self, torch.device("cuda", 0), *given))
    tritonbn.batch_norm(torch.randn(SHAPE), None, None, training=True)
    assert names(recorded) == FORWARD


def test_what_is_remembered_of_a_call_holds_no_memory(recorded):
    """Torch may have sent it to the pool of a graph, which is used again."""
    functional._cases.clear()
    tritonbn.batch_norm(torch.randn(SHAPE), None, None, bias=torch.ones(6), training=True)
    (case,) = functional._cases.values()
    assert [kept.untyped_storage().nbytes() for kept in (case.statistics, case.dbias)] == [0, 0]


def test_a_new_momentum_compiles_nothing(recorded, monkeypatch):
    x, buffers = torch.randn(SHAPE), (torch.zeros(6), torch.ones(6))
    tritonbn.batch_norm(x, *buffers, training=True, momentum=0.1, eps=1e-5)
    monkeypatch.setattr(triton.JITFunction, "_do_compile", lambda *_, **__: pytest.fail("compiled again"))
    tritonbn.batch_norm(x, *buffers, training=True, momentum=0.7, eps=1e-3)
    tritonbn.batch_norm(x, *buffers, training=True, momentum=1.0, eps=1.0)


def test_nobody_waits_for_the_device(recorded, monkeypatch):
    """The cumulative average is computed on the device: nothing of a training step reads a tensor on the host."""
    for name in ("item", "__float__", "__int__", "__bool__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} was called"))
    module = tritonbn.BatchNorm2d(6, momentum=None)
    y = module(torch.empty(SHAPE))
    torch.autograd.grad(y, module.weight, torch.empty(SHAPE))
    assert recorded[0].arguments["CUMULATIVE"] is True
    assert recorded[0].arguments["num_batches_tracked"] is module.num_batches_tracked


def test_a_profiler_is_told_of_every_launch(recorded):
    """Whoever asks Triton to be called at a launch finds its hook among what the driver is given."""

    def seen():
        recorded.clear()
        tritonbn.batch_norm(torch.randn(SHAPE), None, None, training=True)
        return recorded[0].values[2:4]

    def hook(_):
        pass

    runtime = triton.knobs.runtime
    assert seen() == (None, None)
    for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        chain.add(hook)
        assert seen() == (runtime.launch_enter_hook, runtime.launch_exit_hook)
        chain.remove(hook)
    assert seen() == (None, None)


def test_threads_whose_first_calls_are_the_same(recorded, monkeypatch):
    """One of them loads the kernel, which takes a while; none is launched before."""
    driver, loading = triton.runtime.driver.active, threading.Event()

    def load(name, *_):
        loading.set()
        time.sleep(0.2)
        return name, name, 0, 0, 1024

    monkeypatch.setattr(driver.utils, "load_binary", load)
    given, launcher = [], driver.launcher_cls

    def launcher_cls(source, metadata):
        launch = launcher(source, metadata)

        def run(*arguments):
            given.append(arguments[4])
            launch(*arguments)

        return run

    monkeypatch.setattr(driver, "launcher_cls", launcher_cls)

    def call():
        with tritonbn.backend("triton"):
            tritonbn.batch_norm(torch.randn(3, 5, 7, 11), None, None, training=True)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(call)
        assert loading.wait(60)
        for done in (threads.submit(call), first):
            done.result()
    assert given == ["resident_forward_kernel"] * 2


def test_the_driver_is_restored():
    config = triton.runtime.driver
    before = config._active

    def fails_inside():
        with targets.compiling_for("sm_80"):
            assert config.active.get_current_target().arch == 80
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert config._active is before


def test_lists_are_apart_when_nested():
    x = torch.randn(SHAPE)
    with targets.compiling_for("sm_90") as outer:
        tritonbn.batch_norm(x, None, None, training=True)
        with targets.compiling_for("sm_90") as inner:
            tritonbn.batch_norm(x, torch.zeros(6), torch.ones(6))
        tritonbn.batch_norm(x, None, None, training=True)
    assert names(outer) == FORWARD * 2
    assert names(inner) == [("inference_kernel", None)]
