"""Batches that several processes share: each has what one process with the whole batch has.

Four processes do all of it once, in the interpreter, in groups of one to four, and write down what they saw.
"""

import contextlib
import os
import time
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import quick_interpreter
import torch
import torch.distributed as dist
from support import DEVICE, random, run_in_processes, thorough
from torch import nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from twins import assert_near, varied

import tritonbn
from tritonbn import aten
from tritonbn.distributed import ALL_GATHER
from tritonbn.launching import launch

PROCESSES = 4
LIMIT = 240
"""Seconds after which processes that wait for each other hang."""

TIMEOUT = 4
"""Seconds that a process group waits for a process that is late."""

UNITS = 1024
"""Of rounding: sums of some hundred products of numbers up to ten."""

AMONG = tuple(range(1, PROCESSES + 1))


@dataclass(frozen=True)
class Layer:
    """A batch norm, and the parts of its batch that each process has."""

    sizes: tuple[int, ...] = (2, 1, 2, 1)
    shape: tuple[int, ...] = (2, 3, 2)
    dtype: torch.dtype = torch.float64
    parameters: torch.dtype | None = None
    """Their dtype, if not the input's."""
    options: dict[str, Any] = field(default_factory=dict)
    residual: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    backend: str = "triton"
    compiled: bool = False
    among: tuple[int, ...] = (PROCESSES,)
    """In groups of so many processes."""
    steps: int = 1


LAYERS = {
    "images": Layer((2, 2, 2, 2)),
    "images, by ATen": Layer(backend="aten", among=AMONG),
    "uneven": Layer((1, 3, 2, 4), among=AMONG, steps=2),
    "empty first": Layer((0, 3, 0, 2), among=(2, 3, 4)),
    "empty last": Layer((2, 1, 3, 0), options={"activation": "relu"}, residual=True),
    "all but one empty, by ATen": Layer((0, 0, 4, 0), among=(3, 4), options={"activation": "silu"}, backend="aten"),
    "a value each": Layer((1, 1, 1, 1), (3,)),
    "features": Layer((4, 2, 3, 1), (9,), options={"momentum": None}, steps=2),
    "volumes": Layer(shape=(2, 2, 1, 3), options={"affine": False}),
    "no buffers": Layer(options={"track_running_stats": False}),
    "channels_last": Layer(shape=(8, 2, 2), memory_format=torch.channels_last),
    "relu of a sum": Layer(options={"activation": "relu"}, residual=True),
    "relu of a sum, by ATen": Layer(options={"activation": "relu"}, residual=True, backend="aten"),
    "leaky_relu": Layer(options={"activation": "leaky_relu", "negative_slope": 0.125}),
    "silu of a sum": Layer(
        shape=(8, 2, 2), options={"activation": "silu"}, residual=True, memory_format=torch.channels_last
    ),
    "float32": Layer((2, 3, 1, 4), dtype=torch.float32),
    "float32, by ATen": Layer((2, 3, 1, 4), dtype=torch.float32, backend="aten"),
    "bfloat16": Layer((2, 3, 1, 4), dtype=torch.bfloat16, parameters=torch.float32, among=(3,)),
    "compiled": Layer((2, 3, 1, 4), among=(3,), options={"activation": "relu"}, residual=True, compiled=True, steps=2),
    "compiled, one empty": Layer((2, 0, 1, 4), among=(3,), compiled=True, steps=2),
    "compiled, cumulative": Layer(among=(2,), options={"momentum": None}, compiled=True, steps=2),
    "compiled, by ATen": Layer(among=(2,), options={"activation": "silu"}, compiled=True, steps=2, backend="aten"),
}


def part(layer, rank, step, seed=0):
    """What one process has of a batch, of a residual or of a gradient."""
    x = random((layer.sizes[rank], *layer.shape), layer.dtype, 100 * seed + 10 * step + rank).cpu()
    return x.contiguous(memory_format=layer.memory_format)


def step(call, parameters, x, residual, dy):
    """All that a step gives."""
    leaves = [x.requires_grad_(), None if residual is None else residual.requires_grad_(), *parameters]
    y = call(x, residual)
    gradients = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
    names = "dx", "dresidual", "dweight", "dbias"
    return {"y": y.detach()} | {
        name: next(gradients) for name, leaf in zip(names, leaves, strict=False) if leaf is not None
    }


def shared(layer, rank, group):
    """What one process of a group sees."""
    module = varied(tritonbn.SyncBatchNorm(layer.shape[0], process_group=group, **layer.options))
    module = module.to(layer.parameters or layer.dtype)
    call = module
    if layer.compiled:
        call = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=layer.options != {})
    steps = []
    with tritonbn.backend(layer.backend), counted() as calls:
        for number in range(layer.steps):
            x, residual, dy = (part(layer, rank, number, seed) for seed in range(3))
            steps.append(step(call, module.parameters(), x, residual if layer.residual else None, dy))
    return {"steps": steps, "buffers": list(module.buffers()), "calls": calls}


def alone(layer, among):
    """The same in float64 by one process that has the whole batch."""
    options = dict(layer.options)
    activation, slope = options.pop("activation", None), options.pop("negative_slope", 0.01)
    module = varied(Norm(layer.shape[0], **options)).to(layer.parameters or layer.dtype).double()

    def call(x, residual):
        return aten.activate(module(x) if residual is None else module(x) + residual, activation, slope)

    steps = []
    for number in range(layer.steps):
        parts = [[part(layer, rank, number, seed).double() for rank in range(among)] for seed in range(3)]
        x, residual, dy = (torch.cat(each) for each in parts)
        steps.append(step(call, module.parameters(), x, residual if layer.residual else None, dy))
    return {"steps": steps, "buffers": list(module.buffers())}


class Norm(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input):
        """Any will do."""


@contextlib.contextmanager
def counted():
    """How often kernels are launched and functions of torch.distributed are called inside."""
    calls = {}
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((launch.Plan, "run"), (dist, ALL_GATHER), (dist, "all_reduce")):
            calls[name], original = 0, getattr(owner, name)

            def count(*args, name=name, original=original, **kwargs):
                calls[name] += 1
                return original(*args, **kwargs)

            patch.setattr(owner, name, count)
        yield calls


def begin(rank, directory, processes, **options):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # in favour of what older torch has not
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # in torch's own forward mode
    quick_interpreter.install()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    where = f"file://{directory}/meeting"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=processes, **options)


def training(rank, directory):
    """All that one of the processes does."""
    begin(rank, directory, PROCESSES)
    groups = {among: dist.new_group(range(among)) for among in AMONG}
    seen = {}
    for among, group in groups.items():
        for name, layer in LAYERS.items():
            if rank < among in layer.among:
                seen[name, among] = shared(layer, rank, group)
    seen["model"] = model_of_all(rank)
    seen["evaluation"], seen["refused"], seen["around"] = evaluation(rank), refused(rank), around(rank)
    seen["lazy"] = first_call(rank)
    torch.save(seen, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def model():
    return varied(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))).double()


def model_of_all(rank):
    """Gradients and buffers of a converted model under DistributedDataParallel."""
    converted = tritonbn.convert(tritonbn.convert_sync(model()), fuse=True)
    called = DistributedDataParallel(converted)
    with counted() as calls:
        called(part(LAYERS["images"], rank, 0)).square().mean().backward()
    gradients = [parameter.grad for parameter in converted.parameters()]
    return {"gradients": gradients, "buffers": list(converted.buffers()), "calls": calls}


def first_call(rank):
    """Output and buffers of the call that initializes a lazy batch norm."""
    lazy = tritonbn.convert(nn.LazyBatchNorm2d(dtype=torch.float64), activation="relu")
    y = tritonbn.convert_sync(lazy)(part(LAYERS["images"], rank, 0))
    return [y.detach(), *lazy.buffers()]


def evaluation(rank):
    """Results and calls where nothing is to be synchronized, or no gradient is wanted."""
    module, x = tritonbn.SyncBatchNorm(2).double(), part(LAYERS["images"], rank, 0)
    with counted() as calls, torch.no_grad():
        module(x)
        without_gradients = dict(calls)
        module.eval()(x)
    return without_gradients, calls


def refused(rank):
    """What is said of second derivatives and of torch.func, which torch's has not either; before anything is sent."""
    module, x = tritonbn.SyncBatchNorm(2).double(), part(LAYERS["images"], rank, 0).requires_grad_()
    y = module(x)
    errors = []
    with counted() as calls:
        for call in (
            lambda: torch.autograd.grad(y.sum(), x, create_graph=True),
            lambda: torch.func.grad(lambda x: module(x).sum())(x),
            lambda: forward_mode(module, x.detach()),
        ):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
    return errors, calls


def forward_mode(module, x):
    with forward_ad.dual_level():
        module(forward_ad.make_dual(x, x))


def around(rank):
    """A step in a checkpoint, and one with hooks; and how often moments and sums were exchanged."""
    (x, dy), found = (part(LAYERS["images"], rank, 0, seed) for seed in (0, 2)), []
    for kind in ("plain", "checkpoint", "hooks"):
        module, leaf = varied(tritonbn.SyncBatchNorm(2)).double(), x.clone().requires_grad_()
        if kind == "hooks":
            module.register_forward_hook(lambda module, given, y: y * 2)
            module.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 3,))
        with counted() as calls:
            y = checkpoint(module, leaf, use_reentrant=False) if kind == "checkpoint" else module(leaf)
            y.backward(dy)
        found.append(([y.detach(), leaf.grad], module.num_batches_tracked, calls))
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of the processes saw."""
    directory = tmp_path_factory.mktemp("processes")
    run_in_processes(training, PROCESSES, (str(directory),), LIMIT)
    return [torch.load(directory / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize(
    ("name", "among"), [(name, among) for name, layer in LAYERS.items() for among in layer.among], ids=str
)
def test_as_one_process_with_the_whole_batch(seen, name, among):
    """y, all gradients and buffers; those of weight and bias are to be added up."""
    layer, mine = LAYERS[name], [seen[rank][name, among] for rank in range(among)]
    whole = alone(layer, among)
    for number, theirs in enumerate(whole["steps"]):
        ours = [each["steps"][number] for each in mine]
        for key, expected in theirs.items():
            found = [each[key].double() for each in ours]
            found = sum(found) if key in ("dweight", "dbias") else torch.cat(found)
            assert_close(found, expected, ours[0][key].dtype)
    for rank, each in enumerate(mine):
        for ours, theirs in zip(each["buffers"], whole["buffers"], strict=True):
            assert_close(ours.double(), theirs.double(), layer.parameters or layer.dtype)
        by_kernels = layer.backend == "triton" and layer.sizes[rank] > 0
        exchanges = among > 1 and not layer.compiled  # where they are torch's operators
        launches = (4 if among > 1 else 2) if by_kernels else 0
        assert each["calls"] == {
            "run": layer.steps * launches, ALL_GATHER: layer.steps * exchanges, "all_reduce": layer.steps * exchanges,
        }  # fmt: skip


def assert_close(found, expected, dtype):
    units = 4 if dtype is torch.bfloat16 else UNITS
    bound = units * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def test_all_processes_have_the_same_buffers(seen):
    for name, layer in LAYERS.items():
        if PROCESSES in layer.among:
            parts = [seen[rank][name, PROCESSES]["buffers"] for rank in range(PROCESSES) if layer.sizes[rank]]
            assert all(torch.equal(*pair) for each in parts for pair in zip(each, parts[0], strict=True)), name


def test_a_converted_model_in_parallel(seen):
    """Gradients are averaged by DistributedDataParallel; the batch norm and the relu are two launches each way."""
    whole = model()
    whole(torch.cat([part(LAYERS["images"], rank, 0) for rank in range(PROCESSES)])).square().mean().backward()
    for each in seen:
        found = each["model"]
        assert_near(found["gradients"], [parameter.grad for parameter in whole.parameters()], UNITS)
        assert_near(found["buffers"], list(whole.buffers()), UNITS)
        assert found["calls"]["run"] == 4
        assert found["calls"][ALL_GATHER] == 1


def test_the_first_call_of_a_lazy_one_is_synchronized(seen):
    whole = nn.BatchNorm2d(2, dtype=torch.float64)
    y = whole(torch.cat([part(LAYERS["images"], rank, 0) for rank in range(PROCESSES)])).relu()
    assert_near(torch.cat([each["lazy"][0] for each in seen]), y.detach(), UNITS)
    for each in seen:
        assert_near(each["lazy"][1:], list(whole.buffers()), UNITS)


def test_nothing_is_exchanged_in_evaluation(seen):
    for each in seen:
        without_gradients, calls = each["evaluation"]
        assert without_gradients == {"run": 2, ALL_GATHER: 1, "all_reduce": 0}
        assert calls == {**without_gradients, "run": 3}


def test_second_derivatives_and_transforms_are_refused(seen):
    for each in seen:
        (second, transformed, forward), calls = each["refused"]
        assert "no forward mode" in forward
        assert "no second derivatives" in second
        assert "torch.func" in transformed or "functorch" in transformed
        assert not any(calls.values())


def test_checkpoints_and_hooks(seen):
    """The second forward pass of a checkpoint exchanges again, and updates the buffers again, as torch's does."""
    for each in seen:
        (plain, once, _), (again, twice, calls), (hooked, _, _) = each["around"]
        assert_near(again, plain, 0)
        assert (once, twice) == (1, 2)
        assert (calls[ALL_GATHER], calls["all_reduce"]) == (2, 1)
        assert_near(hooked, [plain[0] * 2, plain[1] * 6], UNITS)


def failing(rank, directory, how):
    """One process fails in its second step, before it sends anything; the others write down what they get."""
    begin(rank, directory, 3, timeout=timedelta(seconds=TIMEOUT))
    module, layer = tritonbn.SyncBatchNorm(2).double(), LAYERS["images"]
    module(part(layer, rank, 0))
    before = [buffer.clone() for buffer in module.buffers()]
    dist.barrier()
    if rank == 2:
        if how == "dies":
            os._exit(0)
        time.sleep(TIMEOUT + 2)
    start = time.monotonic()
    try:
        module(part(layer, rank, 1))
        error = None
    except RuntimeError as raised:
        error = str(raised)
    unchanged = all(torch.equal(*pair) for pair in zip(before, module.buffers(), strict=True))
    torch.save((error, time.monotonic() - start, unchanged), f"{directory}/{rank}.pt")
    os._exit(0)


@pytest.mark.parametrize("how", thorough(["dies", "is late"], "dies"))
def test_the_others_are_told(how, tmp_path):
    """Within the group's timeout, and their buffers are as they were."""
    run_in_processes(failing, 3, (str(tmp_path), how), LIMIT)
    for rank in range(2):
        error, seconds, unchanged = torch.load(tmp_path / f"{rank}.pt")
        assert error, "no error"
        assert seconds < TIMEOUT + 2
        assert unchanged


def test_without_processes(runs):
    """It is the BatchNorm of its input, in one launch."""
    x = part(LAYERS["images"], 0, 0).to(DEVICE)
    y = tritonbn.SyncBatchNorm(2).double().to(DEVICE)(x)
    torch.testing.assert_close(y, tritonbn.BatchNorm2d(2).double().to(DEVICE)(x), rtol=0, atol=0)
    assert len(runs) == 2


def test_no_process_group():
    x = part(LAYERS["images"], 0, 0)
    with pytest.raises(TypeError, match="expected process_group to be a ProcessGroup or None, got str"):
        tritonbn.batch_norm(x, None, None, training=True, process_group="all")
